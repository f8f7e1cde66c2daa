"""What baselines have in common: checked arrays in, scores of labels out."""

from __future__ import annotations

import abc
import dataclasses
import time
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Rows(NamedTuple):
    """Checked training data."""

    inputs: np.ndarray
    """[n, d] floating, finite."""
    labels: np.ndarray
    """[n, L] bool, False where unknown."""
    known: np.ndarray
    """[n, L] bool."""


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A fitted baseline."""

    features: int
    """Width of the inputs, d."""
    labels: int
    """Number of labels, L."""
    seconds: float
    """How long fitting took (seconds of wall time)."""
    function: Callable[[np.ndarray], np.ndarray] = dataclasses.field(repr=False)
    """From checked inputs [m, d] to scores [m, L]."""

    def scores(self, inputs: ArrayLike) -> np.ndarray:
        """Scores [m, L] float32 in [0, 1] of inputs [m, d]; at least 0.5 means predicted.

        Raises:
          ValueError: inputs of another width, or not finite.
        """
        x = _check_inputs(inputs)
        if x.shape[1] != self.features:
            raise ValueError(f"inputs has shape {x.shape}; expected [m, {self.features}]")
        return np.clip(self.function(x), 0.0, 1.0).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Baseline(abc.ABC):
    """A frozen set of hyper-parameters that `fit` turns into a predictor.

    Inputs are taken as they are: standardise them first, with the training rows' statistics.
    """

    looks_at_inputs: ClassVar[bool] = True
    """Whether scores depend on inputs; what does not look at them needs none."""

    def fit(
        self, inputs: ArrayLike, labels: ArrayLike, label_mask: ArrayLike | None = None
    ) -> Predictor:
        """Fit to training rows.

        Args:
          inputs: [n, d], finite.
          labels: [n, L], 0/1; where a label is unknown anything may stand.
          label_mask: [n, L], True where the label is known; None: everywhere.

        Returns:
          The predictor, with the seconds that fitting took.

        Raises:
          ValueError: arrays that do not fit together.
          ConfigError: hyper-parameters that do not fit the data.
        """
        rows = check_rows(inputs, labels, label_mask)
        started = time.perf_counter()
        function = self._fit(rows)
        seconds = time.perf_counter() - started
        return Predictor(rows.inputs.shape[1], rows.labels.shape[1], seconds, function)

    @abc.abstractmethod
    def describe(self) -> str:
        """A name for tables, in lower case."""

    @abc.abstractmethod
    def _fit(self, rows: Rows) -> Callable[[np.ndarray], np.ndarray]:
        """The function from inputs [m, d] to scores [m, L]."""


def check_rows(inputs: ArrayLike, labels: ArrayLike, label_mask: ArrayLike | None) -> Rows:
    """Training rows with their types; misuse is a ValueError that names the argument.

    Example:
      >>> check_rows([[1, 2]], [[1, 2]], [[1, 0]]).labels
      array([[ True, False]])
      >>> check_rows([[1, 2]], [[1, 2]], None)
      Traceback (most recent call last):
      ...
      ValueError: labels[0, 1] is 2; labels are 0 or 1 where they are known
    """
    x, y = _check_inputs(inputs), np.asarray(labels)
    if y.ndim != 2 or y.shape[0] != len(x) or y.size == 0:
        raise ValueError(f"labels has shape {y.shape}; expected [{len(x)}, L], L at least 1")
    known = np.ones(y.shape, bool) if label_mask is None else np.asarray(label_mask).astype(bool)
    if known.shape != y.shape:
        raise ValueError(f"label_mask has shape {known.shape}; expected {y.shape} as labels")
    bad = known & (y != 0) & (y != 1)
    if bad.any():
        row, label = (int(index) for index in np.argwhere(bad)[0])
        raise ValueError(
            f"labels[{row}, {label}] is {y[row, label]}; labels are 0 or 1 where they are known"
        )
    return Rows(x, (y == 1) & known, known)


def _check_inputs(inputs: ArrayLike) -> np.ndarray:
    x = np.asarray(inputs)
    if x.ndim != 2 or x.size == 0:
        raise ValueError(f"inputs has shape {x.shape}; expected rows of vectors [n, d]")
    x = x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)
    if not np.isfinite(x).all():
        row, column = (int(index) for index in np.argwhere(~np.isfinite(x))[0])
        raise ValueError(f"inputs[{row}, {column}] is {x[row, column]}; inputs must be finite")
    return x
