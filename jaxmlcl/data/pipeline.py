"""The pipeline: from (seed, step) to a host batch, the same on any number of workers and devices.

The order of samples is a permutation per epoch that depends on (seed, epoch) only; batches cut the
endless stream of epochs without a remainder, so every sample is seen once per epoch and every step
has the same shape. Because step i can be computed without the steps before it, the position of the
pipeline is the step, and nothing else has to be saved.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from jaxmlcl.data.source import Source
from jaxmlcl.layout import deal


class GlobalOrder:
    """Which samples each step sees: a random-access sequence of index batches [B].

    Example:
      >>> order = GlobalOrder(examples=5, batch_size=2, seed=0)
      >>> first_epoch = np.concatenate([order[0], order[1], order[2]])[:5]
      >>> sorted(first_epoch.tolist())
      [0, 1, 2, 3, 4]
    """

    def __init__(self, examples: int, batch_size: int, seed: int) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        # Two epochs are enough for any batch that is not larger than the data.
        self._permutation = functools.lru_cache(maxsize=4)(self._draw)

    def __len__(self) -> int:
        # Endless in practice; grain wants a number.
        return 2**62

    def __getitem__(self, step: int) -> np.ndarray:
        """Indices of the samples of a step, int32 [B]."""
        position = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64)
        epochs, within = np.divmod(position, self.examples)
        indices = np.empty(self.batch_size, np.int32)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._permutation(int(epoch))[within[here]]
        return indices

    def _draw(self, epoch: int) -> np.ndarray:
        # Philox is counter-based: its key is (seed, epoch), and nothing else enters.
        key = np.array([self.seed, epoch], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        return generator.permutation(self.examples).astype(np.int32)


class Records:
    """Host batches of a source, by step: {"inputs", "labels", "ids"} stacked over the batch.

    With "label_mask" where the source has unknown labels, and "targets" where it has some. Rows are
    dealt out over the devices, as `jaxmlcl.layout` says; `blocks` are the devices whose rows are
    wanted, in order, and only their records are read.
    """

    def __init__(
        self,
        source: Source,
        order: GlobalOrder,
        devices: int = 1,
        blocks: Sequence[int] | None = None,
    ) -> None:
        self._source = source
        self._order = order
        self._devices = devices
        self._blocks = blocks

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        indices = share(self._order[step], self._devices, self._blocks)
        records = [self._source[int(index)] for index in indices]
        stacked = [name for name in records[0] if name != "id"]
        return {
            **{name: np.stack([record[name] for record in records]) for name in stacked},
            "ids": np.asarray([record["id"] for record in records], np.int32),
        }


class Indices:
    """Host batches for data that live on the device: {"index"}, by step, dealt out as `Records`."""

    def __init__(
        self, order: GlobalOrder, devices: int = 1, blocks: Sequence[int] | None = None
    ) -> None:
        self._order = order
        self._devices = devices
        self._blocks = blocks

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        return {"index": share(self._order[step], self._devices, self._blocks)}


def share(samples: np.ndarray, devices: int, blocks: Sequence[int] | None = None) -> np.ndarray:
    """The samples [B] of a step that some of the devices get, block by block.

    Sample i of the step goes to device i mod n, so over an epoch, whatever the batch size, any two
    devices get the same number of samples to within one.

    Args:
      samples: the step's samples, in the order of the stream.
      devices: n, over which they are dealt out; B divides by it.
      blocks: which devices; all if left out.

    Example:
      >>> share(np.array([10, 11, 12, 13, 14, 15]), 3, blocks=(1, 2))
      array([11, 14, 12, 15])
    """
    dealt = deal(samples, devices)
    return dealt if blocks is None else dealt.reshape(devices, -1)[list(blocks)].ravel()


def batches(source: Any, start: int, *, threads: int = 1, ahead: int = 8) -> Generator[Any]:
    """Iterate over step batches from a step on, prepared ahead in the background by grain.

    Args:
      source: `Records` or `Indices`.
      start: the first step.
      threads: threads that prepare batches; the order does not depend on it.
      ahead: batches that are kept ready (count).
    """
    import grain

    dataset = grain.MapDataset.source(source).slice(slice(start, None))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    iterator = iter(dataset.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        # Ends the background threads at once instead of at some garbage collection.
        iterator.close()
