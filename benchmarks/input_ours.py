"""Our side of `benchmarks.input`: the pipeline of the trainer, without the transfer."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np

from benchmarks.clock import per_second
from jaxmlcl.data.images import Crops, EncodedSource, Images, Photographs
from jaxmlcl.data.pipeline import GlobalOrder, Loading, Views, batches
from jaxmlcl.data.source import open_source

BATCH = 64


class Ours:
    """Two crops of 224 pixels of each image of a packed set."""

    def __init__(self, packed: str) -> None:
        source = open_source(f"shards:{packed}")
        assert isinstance(source, EncodedSource)
        photographs = Photographs(source, Images(size=224))
        self.reader = photographs.reader(Crops(seed=0, views=2))
        self.steps = Views(
            self.reader, photographs.annotations, GlobalOrder(len(source), BATCH, seed=0)
        )

    def views(self) -> np.ndarray:
        """The views of the first eight images, float32."""
        return np.stack([self.reader(row, 0)[0] for row in range(8)]).astype(np.float32)

    def rate(self, cores: int, workers: int, seconds: float) -> float:
        """Images per second on so many cores with so many workers; without any, a thread each."""
        whole = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(whole)[:cores])
        iterator = batches(self.steps, 0, Loading(workers=workers))
        try:
            return BATCH * per_second(iterator, 4 + 4 * workers, seconds)
        finally:
            iterator.close()
            os.sched_setaffinity(0, whole)

    def memory_of_a_worker(self) -> dict[str, float]:
        """Memory of a worker that has read 40 batches, MB: resident, and what no other has."""
        iterator = batches(self.steps, 0, Loading(workers=1))
        try:
            for _ in range(40):
                next(iterator)
            found = []
            for child in multiprocessing.active_children():
                lines = Path(f"/proc/{child.pid}/smaps_rollup").read_text().splitlines()[1:]
                sizes = {line.split()[0].rstrip(":"): int(line.split()[1]) / 1e3 for line in lines}
                found.append((sizes["Rss"], sizes["Private_Clean"] + sizes["Private_Dirty"]))
            resident, own = max(found)
            return {"resident": resident, "own": own}
        finally:
            iterator.close()
