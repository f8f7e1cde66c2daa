"""The peer of `benchmarks.input`: a PyTorch DataLoader whose transforms are Pillow's."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.input_ours import BATCH
from jaxmlcl.data.images import Crops, EncodedSource, Images, Photographs
from jaxmlcl.data.source import open_source

SIZE = 224


class TwoCrops(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Two random crops of each image, uint8 [2, 224, 224, 3], and its labels."""

    def __init__(self, packed: str) -> None:
        source = open_source(f"shards:{packed}")
        assert isinstance(source, EncodedSource)
        # All of it in memory: readers of shards have threads that end a worker badly.
        self.images = [bytes(source.read(row)) for row in range(len(source))]
        self.labels = source.labels()
        # The same boxes, so that both sides cut and resize as much.
        self.reader = Photographs(source, Images(size=SIZE)).reader(Crops(seed=0, views=2))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(io.BytesIO(self.images[row])).convert("RGB")
        views = []
        for box in self.reader.boxes(row, 0, image.height, image.width):
            edges = (box.left, box.top, box.left + box.width, box.top + box.height)
            view = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=edges)
            views.append(torch.from_numpy(np.array(view)))
        return torch.stack(views), torch.from_numpy(self.labels[row])


class Peer:
    """The DataLoader of a packed set."""

    def __init__(self, packed: str) -> None:
        torch.set_num_threads(1)
        self.data = TwoCrops(packed)

    def views(self) -> np.ndarray:
        """The views of the first eight images, float32."""
        found: np.ndarray = torch.stack([self.data[row][0] for row in range(8)]).float().numpy()
        return found

    def rate(self, cores: int, workers: int, seconds: float) -> float:
        """Images per second on so many cores with so many workers."""
        whole = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(whole)[:cores])
        loader = DataLoader(
            self.data,
            BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,
        )

        def endless() -> Iterator[object]:
            while True:
                yield from loader

        iterator = endless()
        try:
            for _ in range(4 + 4 * workers):
                next(iterator)
            started, count = time.perf_counter(), 0
            while time.perf_counter() - started < seconds:
                next(iterator)
                count += 1
            return count * BATCH / (time.perf_counter() - started)
        finally:
            iterator.close()
            del iterator
            os.sched_setaffinity(0, whole)
