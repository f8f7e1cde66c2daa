"""What every measure accepts: finite scores, 0/1 labels, a mask of the known entries."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

Result = TypeVar("Result")

# Cells handled at once by one thread: small enough for the cache, large enough for numpy.
BLOCK_CELLS = 1 << 18


class Inputs(NamedTuple):
    """Checked arrays [n, L]: scores float, labels bool (False where unknown), mask bool or None."""

    scores: np.ndarray
    labels: np.ndarray
    mask: np.ndarray | None

    @property
    def known(self) -> np.ndarray:
        """Bool [n, L], a view of ones where no mask was given."""
        return np.broadcast_to(np.True_, self.labels.shape) if self.mask is None else self.mask

    def select(self, rows: slice | np.ndarray) -> Inputs:
        """The same arrays at some rows."""
        mask = None if self.mask is None else self.mask[rows]
        return Inputs(self.scores[rows], self.labels[rows], mask)


def _cell(array: np.ndarray, bad: np.ndarray) -> tuple[int, int, object]:
    row, label = (int(index) for index in np.argwhere(bad)[0])
    return row, label, array[row, label]


def check(scores: ArrayLike, labels: ArrayLike, label_mask: ArrayLike | None = None) -> Inputs:
    """Check scores, labels and mask, all [n, L], and give them their types.

    Scores stay float32 or float64 (other types become one of the two); labels become bool. Labels
    that the mask calls unknown may hold anything; scores must be finite everywhere.
    """
    values = np.asarray(scores)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"scores has shape {values.shape}, expected [n, L] with L >= 1")
    if values.dtype not in (np.float32, np.float64):
        # bfloat16 and float16 fit in float32; integers may need float64.
        values = values.astype(np.float64 if values.dtype.kind in "iub" else np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        row, label, value = _cell(values, ~finite)
        raise ValueError(f"scores[{row}, {label}] is {value}: scores must be finite")

    truth = np.asarray(labels)
    if truth.shape != values.shape:
        raise ValueError(f"labels has shape {truth.shape}, expected {values.shape} as scores")
    mask = None
    if label_mask is not None:
        mask = _binary(np.asarray(label_mask), "label_mask", values.shape, None)
    truth = _binary(truth, "labels", values.shape, mask)
    if mask is not None:
        truth = truth & mask
        mask = None if mask.all() else mask
    return Inputs(values, truth, mask)


def _binary(
    array: np.ndarray, name: str, shape: tuple[int, ...], where: np.ndarray | None
) -> np.ndarray:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape} as scores")
    if array.dtype == np.bool_:
        return array
    positive = array == 1
    wrong = ~positive & (array != 0)
    if where is not None:
        wrong &= where
    if wrong.any():
        row, label, value = _cell(array, wrong)
        raise ValueError(f"{name}[{row}, {label}] is {value}: {name} must be 0 or 1")
    return positive


def check_rows(inputs: Inputs) -> Inputs:
    """Refuse inputs in which nothing is known, since no measure is defined on them."""
    if not inputs.known.any():
        raise ValueError(f"scores has shape {inputs.scores.shape}: no known entry to measure")
    return inputs


def check_thresholds(threshold: ArrayLike, num_labels: int) -> np.ndarray:
    """A threshold, or one per label, as float64 [1] or [L]."""
    values = np.asarray(threshold, dtype=np.float64)
    if values.shape not in ((), (num_labels,)):
        raise ValueError(
            f"threshold has shape {values.shape}, expected a number or one per label, "
            f"[{num_labels}]"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"threshold is {values.tolist()}: thresholds must be finite")
    return np.atleast_1d(values)


def check_grid(grid: ArrayLike) -> np.ndarray:
    """Candidate thresholds [T], ascending and distinct."""
    values = np.unique(np.asarray(grid, dtype=np.float64))
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"grid is {values.tolist()}: expected at least one finite threshold")
    return values


def in_blocks(function: Callable[[slice], Result], size: int, step: int) -> list[Result]:
    """Call `function` on consecutive slices of range(size), in threads; results in order.

    numpy releases the interpreter's lock while it sorts and compares. The slices do not depend on
    the number of threads, hence neither do the results.
    """
    slices = [slice(start, min(start + step, size)) for start in range(0, size, step)]
    if len(slices) == 1:
        return [function(slices[0])]
    with ThreadPoolExecutor(min(len(slices), os.cpu_count() or 1)) as pool:
        return list(pool.map(function, slices))
