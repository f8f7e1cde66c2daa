"""The peer of `benchmarks.input`: a PyTorch DataLoader whose transforms are Pillow's."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.clock import per_second

SIZE = 224
Edges = tuple[int, int, int, int]


class TwoCrops(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Two crops of each image, uint8 [2, 224, 224, 3], and its labels.

    Images are in memory, and where they are cut is drawn beforehand: a worker needs nothing but
    Pillow, NumPy and PyTorch.
    """

    def __init__(
        self, images: list[bytes], labels: np.ndarray, edges: list[tuple[Edges, ...]]
    ) -> None:
        self.images, self.labels, self.edges = images, labels, edges

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(io.BytesIO(self.images[row])).convert("RGB")
        views = []
        for edges in self.edges[row]:
            view = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=edges)
            views.append(torch.from_numpy(np.array(view)))
        return torch.stack(views), torch.from_numpy(self.labels[row])


class Peer:
    """The DataLoader of a packed set.

    Args:
      packed: the set's folder.
      batch: images per batch.
    """

    def __init__(self, packed: str, batch: int) -> None:
        # Imported here, since the DataLoader's workers import this file and are PyTorch's alone.
        from jaxmlcl.data.images import Crops, EncodedSource, Images, Photographs
        from jaxmlcl.data.images.decoding import image_size
        from jaxmlcl.data.source import open_source

        torch.set_num_threads(1)
        source = open_source(f"shards:{packed}")
        assert isinstance(source, EncodedSource)
        # The same boxes as ours, so that both sides cut and resize as much.
        reader = Photographs(source, Images(size=SIZE)).reader(Crops(seed=0, views=2))
        images, edges = [], []
        for row in range(len(source)):
            stored, where = reader.stored(row)
            images.append(bytes(stored))
            boxes = reader.boxes(row, 0, *image_size(stored, where))
            edges.append(tuple((b.left, b.top, b.left + b.width, b.top + b.height) for b in boxes))
        self.batch = batch
        self.data = TwoCrops(images, source.labels(), edges)

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
            self.batch,
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
            return self.batch * per_second(iterator, 4 + 4 * workers, seconds)
        finally:
            iterator.close()
            del iterator
            os.sched_setaffinity(0, whole)
