"""How many images a second each stage of the input pipeline gives, and which of them bounds it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxmlcl.data.images import Photographs, Reader
from jaxmlcl.data.images.decoding import (
    centre_of,
    crops_of,
    decoded_for,
    decoded_for_centre,
    image_size,
)
from jaxmlcl.data.pipeline import GlobalOrder, Loading, Views, batches
from jaxmlcl.sharding import place_rows

# The stages of one core, in the order in which an image passes them.
STAGES = ("read", "decode", "crop", "batch")


@dataclasses.dataclass(frozen=True)
class InputFigures:
    """Images per second; the views of an image count once."""

    stages: dict[str, float]
    """Each of `STAGES` by itself, on one core."""
    core: float
    """All of `STAGES` one after the other, on one core."""
    transfer: float
    """From the host's memory to the devices."""
    pipeline: float
    """The whole pipeline as a run has it, transfer included."""
    step: float | None = None
    """The training step alone, on one batch; None where no experiment was given."""

    @property
    def bound(self) -> str:
        """What bounds a run, in words."""
        slowest = min(self.stages, key=self.stages.__getitem__)
        if self.step is not None and self.step <= self.pipeline:
            return f"the step ({self.step:.0f} images/s); the input gives {self.pipeline:.0f}"
        if self.transfer < self.pipeline * 1.1:
            return f"the transfer to the devices ({self.transfer:.0f} images/s)"
        return f"the input ({self.pipeline:.0f} images/s), and in it {slowest}"


def bench_input(
    source: Photographs,
    reader: Reader,
    mesh: jax.sharding.Mesh,
    *,
    batch_size: int,
    loading: Loading,
    images: int = 512,
    seconds: float = 3.0,
    seed: int = 0,
) -> InputFigures:
    """Measure every stage of the input pipeline on this machine.

    Args:
      source: the photographs, with their labels.
      reader: what reads and crops them.
      mesh: where batches go.
      batch_size: images per batch.
      loading: the workers and threads of the whole pipeline.
      images: how many are looked at by the single stages, at most.
      seconds: how long the whole pipeline is watched, once it runs.
      seed: of the order.

    Raises:
      DataError: an image cannot be read.
    """
    order = GlobalOrder(len(source), batch_size, seed)
    rows = np.unique(np.concatenate([order[step] for step in range(-(-images // batch_size))]))
    rows = np.random.default_rng(seed).permutation(rows)[:images]
    steps = Views(reader, source.annotations, order)
    stages, core = _stages(source, reader, rows.tolist(), batch_size)
    host = steps[0]
    return InputFigures(
        stages, core, _transfer(host, mesh), _pipeline(steps, mesh, batch_size, loading, seconds)
    )


def _stages(
    source: Photographs, reader: Reader, rows: Sequence[int], batch_size: int
) -> tuple[dict[str, float], float]:
    size, short = source.images.size, source.images.short_side
    spent = dict.fromkeys(STAGES, 0.0)
    whole = 0.0
    made: list[np.ndarray] = []
    for warm in (True, False):
        for row in rows[:8] if warm else rows:
            marks = [time.perf_counter()]
            stored, where = reader.stored(row)
            marks.append(time.perf_counter())
            boxes = reader.boxes(row, 0, *image_size(stored, where))
            if boxes:
                image, stored_size = decoded_for(stored, where, boxes, size)
            else:
                image, stored_size = decoded_for_centre(stored, where, short)
            marks.append(time.perf_counter())
            if boxes:
                made.append(crops_of(image, stored_size, boxes, size))
            else:
                made.append(centre_of(image, stored_size, size, short))
            marks.append(time.perf_counter())
            if len(made) == batch_size or row == rows[-1]:
                _ = np.stack(made), source.annotations(np.array(rows[: len(made)]))
                made.clear()
            marks.append(time.perf_counter())
            if not warm:
                for stage, a, b in zip(STAGES, marks, marks[1:], strict=False):
                    spent[stage] += b - a
                whole += marks[-1] - marks[0]
        made.clear()
    return {stage: len(rows) / seconds for stage, seconds in spent.items()}, len(rows) / whole


def _transfer(host: dict[str, np.ndarray], mesh: jax.sharding.Mesh, turns: int = 10) -> float:
    jax.block_until_ready(place_rows(host, mesh))
    started = time.perf_counter()
    for _ in range(turns):
        jax.block_until_ready(place_rows(host, mesh))
    return turns * len(host["ids"]) / (time.perf_counter() - started)


def _pipeline(
    steps: Views, mesh: jax.sharding.Mesh, batch_size: int, loading: Loading, seconds: float
) -> float:
    iterator = batches(steps, 0, loading)
    try:
        # Workers start, and what they have read ahead is used up, before the clock runs.
        ahead = 8 if loading.workers == 0 else 2 * loading.workers * (loading.ahead or 1)
        for _ in range(1 + (loading.ahead or ahead)):
            jax.block_until_ready(place_rows(next(iterator), mesh))
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            jax.block_until_ready(place_rows(next(iterator), mesh))
            count += 1
        return count * batch_size / (time.perf_counter() - started)
    finally:
        iterator.close()


def step_rate(step: Callable[[], Any], batch_size: int, seconds: float = 3.0) -> float:
    """Images per second of a function that takes one batch; run once before the clock starts.

    Example:
      >>> step_rate(lambda: None, batch_size=4, seconds=0.01) > 0
      True
    """
    jax.block_until_ready(step())
    started, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - started < seconds:
        jax.block_until_ready(step())
        count += 1
    return count * batch_size / (time.perf_counter() - started)
