"""The pipeline: from (seed, step) to a host batch, the same on any number of workers and devices.

The order of samples is a permutation per epoch that depends on (seed, epoch) only; batches cut the
endless stream of epochs without a remainder, so every sample is seen once per epoch and every step
has the same shape. Because step i can be computed without the steps before it, the position of the
pipeline is the step, and nothing else has to be saved.

Photographs are read, decoded and cropped by threads or by worker processes, which know files but no
labels; these join in the process that trains. Everything else is read by threads.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, ClassVar

import numpy as np

from jaxmlcl.data._shared import Full, Inbox, Outbox, Sent
from jaxmlcl.data.source import Source
from jaxmlcl.errors import ConfigError, DataError
from jaxmlcl.layout import deal


@dataclasses.dataclass(frozen=True)
class Loading:
    """How training data are read; what is read does not depend on it."""

    workers: int = 0
    """Processes that read, decode and crop photographs (count); 0: threads of this process, which
    suffice for some eight cores. Sources in memory need none."""
    threads: int | None = None
    """Threads that prepare batches, in this process or in each worker (count); if absent, one for
    each core, eight at most, for photographs without workers, else 1. 0: none beside the one that
    waits for them."""
    ahead: int | None = None
    """Batches that are kept ready, in all or by each worker (count); 8 if absent, and 1 by each
    worker."""

    def __post_init__(self) -> None:
        for name, least in (("workers", 0), ("threads", 0), ("ahead", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"loading: {name} must be at least {least}, not {value}")


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

    def epochs(self, step: int) -> np.ndarray:
        """In which pass over the data the samples of a step are, int64 [B].

        Example:
          >>> GlobalOrder(examples=5, batch_size=3, seed=0).epochs(1)
          array([0, 0, 1])
        """
        first = step * self.batch_size
        return np.arange(first, first + self.batch_size, dtype=np.int64) // self.examples

    def __reduce__(self) -> Any:
        # The cache of permutations stays where it is.
        return GlobalOrder, (self.examples, self.batch_size, self.seed)

    def _draw(self, epoch: int) -> np.ndarray:
        # Philox is counter-based: its key is (seed, epoch), and nothing else enters.
        key = np.array([self.seed, epoch], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        return generator.permutation(self.examples).astype(np.int32)


class Steps(abc.ABC):
    """Host batches by step, in two parts: what a worker may do, and what the trainer adds.

    Args:
      order: which samples each step sees.
      devices: n, over which rows are dealt out, as `jaxmlcl.layout` says.
      blocks: the devices whose rows are wanted, in order; all if left out.
    """

    def __init__(
        self, order: GlobalOrder, devices: int = 1, blocks: Sequence[int] | None = None
    ) -> None:
        self._order = order
        self._devices = devices
        self._blocks = blocks

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        return self.complete(step, self.read(step))

    decodes: ClassVar[bool] = False
    """Whether reading a batch is work for several threads."""

    @abc.abstractmethod
    def read(self, step: int) -> Any:
        """The part that is done ahead, in threads or in workers."""

    def complete(self, step: int, found: Any) -> dict[str, np.ndarray]:
        """The batch, from what was read ahead; in the process that trains."""
        del step
        batch: dict[str, np.ndarray] = found
        return batch

    @property
    def replaced(self) -> int:
        """How many samples of the batches so far are others in the place of undecodable ones."""
        return 0

    def _share(self, samples: np.ndarray) -> np.ndarray:
        return share(samples, self._devices, self._blocks)


class Records(Steps):
    """Host batches of a source, by step: {"inputs", "labels", "ids"} stacked over the batch.

    With "label_mask" where the source has unknown labels, and "targets" where it has some. Only the
    records of the wanted devices are read.
    """

    def __init__(
        self,
        source: Source,
        order: GlobalOrder,
        devices: int = 1,
        blocks: Sequence[int] | None = None,
    ) -> None:
        super().__init__(order, devices, blocks)
        self._source = source

    def read(self, step: int) -> dict[str, np.ndarray]:
        """The batch."""
        records = [self._source[int(index)] for index in self._share(self._order[step])]
        stacked = [name for name in records[0] if name != "id"]
        return {
            **{name: np.stack([record[name] for record in records]) for name in stacked},
            "ids": np.asarray([record["id"] for record in records], np.int32),
        }


class Indices(Steps):
    """Host batches for data that live on the device: {"index"}, by step, dealt out as `Records`."""

    def read(self, step: int) -> dict[str, np.ndarray]:
        """The batch."""
        return {"index": self._share(self._order[step])}


class Views(Steps):
    """Host batches of photographs, by step: as `Records`, with the views of each image.

    Args:
      reader: `reader(row, epoch, into)` writes inputs into an array, or a new one for None, and
        gives it with the row that they are of; picklable.
      annotations: `annotations(rows)` gives labels, ids and what else belongs to rows.
      order, devices, blocks: as in `Steps`.
    """

    decodes = True

    def __init__(
        self,
        reader: Callable[[int, int, np.ndarray | None], tuple[np.ndarray, int]],
        annotations: Callable[[np.ndarray], dict[str, np.ndarray]],
        order: GlobalOrder,
        devices: int = 1,
        blocks: Sequence[int] | None = None,
    ) -> None:
        super().__init__(order, devices, blocks)
        self._reader = reader
        self._annotations: Any = annotations
        self._replaced = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_annotations": None}

    @property
    def replaced(self) -> int:
        """How many samples of the batches so far are others in the place of undecodable ones."""
        return self._replaced

    def read(self, step: int) -> dict[str, np.ndarray] | str:
        """Inputs and the rows that they are of; or what went wrong, which is raised later."""
        rows = self._share(self._order[step])
        epochs = self._share(self._order.epochs(step))
        inputs: Any = None
        seen = np.empty(len(rows), np.int64)
        try:
            for place, (row, epoch) in enumerate(zip(rows, epochs, strict=True)):
                into = None if inputs is None else inputs[place]
                image, seen[place] = self._reader(int(row), int(epoch), into)
                if inputs is None:
                    inputs = np.empty((len(rows), *image.shape), image.dtype)
                    inputs[0] = image
        except DataError as error:
            return str(error)
        return {"inputs": inputs, "rows": seen}

    def complete(self, step: int, found: dict[str, np.ndarray] | str) -> dict[str, np.ndarray]:
        """The batch.

        Raises:
          DataError: an image could not be read.
        """
        if isinstance(found, str):
            raise DataError(found)
        rows = found["rows"]
        self._replaced += int((rows != self._share(self._order[step])).sum())
        return {"inputs": found["inputs"], **self._annotations(rows)}


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


def batches(steps: Steps, start: int, loading: Loading | None = None) -> Generator[Any]:
    """Iterate over step batches from a step on, prepared ahead in the background by grain.

    Args:
      steps: what to read.
      start: the first step.
      loading: threads, workers and how far ahead; neither batches nor their order depend on it.
    """
    import grain
    from absl import flags

    loading = loading or Loading()
    dataset = grain.MapDataset.source(_Ahead(steps)).slice(slice(start, None))
    # What is in memory is not worth a process.
    workers = loading.workers if steps.decodes else 0
    threads = loading.threads
    if threads is None:
        threads = min(8, _cores()) if steps.decodes and not workers else 1
    ahead = loading.ahead or (1 if workers else 8)
    reading: Any = dataset.to_iter_dataset(grain.ReadOptions(threads, max(ahead, threads)))
    if workers:
        # Its workers are told the flags of absl, which a program that has none never parses.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=ahead)
        reading = reading.mp_prefetch(options, worker_init_fn=_start_worker)
    iterator, inbox = iter(reading), Inbox()
    step = start
    try:
        while (found := next(iterator, None)) is not None:
            if isinstance(found, Full):
                raise DataError(
                    f"no room for a batch of {found.needed / 1e6:.0f} MB in shared memory "
                    "(/dev/shm); give the container more of it (docker run --shm-size 2g), or read "
                    "by threads, with --loading.workers 0"
                )
            if isinstance(found, Sent):
                found = inbox.take(found)
            yield steps.complete(step, found)
            step += 1
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        # grain's words for a worker that is gone without an exception of its own.
        code = str(error).partition("exit code ")[2].partition(".")[0]
        raise DataError(
            f"a process that reads photographs ended with {code or 'an error'}; if memory ran out, "
            "give fewer --loading.workers"
        ) from None
    finally:
        inbox.close()
        # Ends the background threads and processes at once instead of at some garbage collection.
        iterator.close()


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Seconds that a worker goes on after it was asked to end.
_GRACE = 60


class _Ahead:
    """The part of the steps that is read ahead."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, step: int) -> Any:
        found = self._steps.read(step)
        if _outbox is not None and isinstance(found, dict):
            return _outbox.put(found)
        return found


# Of a worker, by which batches leave it; None in the process that trains.
_outbox: Outbox | None = None


def _start_worker(index: int, count: int) -> None:
    """In a worker: leave accelerators and signals to the process that trains, and end with it."""
    global _outbox
    del index, count
    outbox = _outbox = Outbox()
    os.environ["JAX_PLATFORMS"] = "cpu"
    # A signal may reach all processes at once, from the keyboard or a scheduler; the trainer saves,
    # for which it may need another batch, and then ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked = threading.Event()

    def ask(*_: Any) -> None:
        asked.set()

    signal.signal(signal.SIGTERM, ask)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        left = _GRACE
        while parent is not None and parent.is_alive() and left > 0:
            time.sleep(1.0)
            left -= asked.is_set()
        outbox.close()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
