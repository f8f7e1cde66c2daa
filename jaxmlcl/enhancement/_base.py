"""What label enhancers have in common: features and 0/1 labels in, label distributions out."""

from __future__ import annotations

import abc
import math
import numbers
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin

from jaxmlcl.errors import ConfigError, UserError


class Enhancer(TransformerMixin, BaseEstimator, abc.ABC):
    """Recovers label distributions [n, L] from features [n, q] and logical labels [n, L].

    A scikit-learn transformer whose `y` are the logical labels: hyper-parameters are given to the
    constructor and kept unchanged, and `get_params`, `set_params` and `clone` work. Rows of what
    it returns sum to 1.

    Subclasses give `fit_many`; the rest follows from it.
    """

    out_of_sample: ClassVar[bool] = False
    """Whether rows that were not fitted can be enhanced, from their features and labels."""
    seeded: ClassVar[bool] = False
    """Whether anything depends on `random_state`."""
    title: ClassVar[str]
    """The name in tables."""

    def fit(self, features: ArrayLike, labels: ArrayLike) -> Self:
        """Fit; `distributions_` [n, L] are then those of the fitted rows."""
        x, y = check_rows(features, labels)
        everything = np.arange(len(x))[None]
        self.n_features_in_ = x.shape[1]
        self.distributions_ = self.fit_many(x, y, everything, self._seeds())[0]
        return self

    def fit_transform(self, features: ArrayLike, labels: ArrayLike, **_: Any) -> np.ndarray:
        """The label distributions [n, L] of the rows that are fitted, float64.

        Args:
          features: [n, q], finite.
          labels: [n, L], 0/1.

        Raises:
          ValueError: arrays that do not fit together, or labels other than 0 and 1.
        """
        return self.fit(features, labels).distributions_

    @abc.abstractmethod
    def fit_many(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray | Sequence[np.ndarray],
        seeds: Sequence[int],
    ) -> np.ndarray:
        """Fit several times at once: fit i on the rows `rows[i]`, with seed `seeds[i]`.

        Args:
          features: [n, q], checked.
          labels: [n, L] in {0, 1}, float64.
          rows: k arrays of row numbers, one a fit.
          seeds: k numbers.

        Returns:
          [k, n, L] float64: what each fit recovers for every row, also those it was not fitted
          to. Enhancers that are not `out_of_sample` are fitted to all rows or not at all.

        Raises:
          UserError: rows are left out and there is no out-of-sample form.
        """

    def _seeds(self) -> list[int]:
        state = getattr(self, "random_state", 0)
        return [0 if state is None else int(state)]

    def _all_rows(self, features: np.ndarray, rows: Any) -> None:
        """Refuse fits that leave rows out, for enhancers that know only the rows they fit."""
        if any(len(np.unique(part)) != len(features) for part in rows):
            raise UserError(
                f"{self.title} has no out-of-sample form: it recovers only the rows it is fitted "
                "to; fit it to all rows (the protocol is called transductive)"
            )


def check_rows(features: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels with their types; misuse is a ValueError that names the argument.

    Returns:
      features [n, q], float32 or float64 as given (others become float64); labels [n, L] float64.

    Example:
      >>> check_rows([[1, 2]], [[1, 2]])
      Traceback (most recent call last):
      ...
      ValueError: labels[0, 1] is 2; logical labels are 0 or 1
    """
    x, y = np.asarray(features), np.asarray(labels)
    if x.ndim != 2 or x.size == 0:
        raise ValueError(f"features has shape {x.shape}; expected rows of vectors [n, q]")
    if y.ndim != 2 or len(y) != len(x) or y.size == 0:
        raise ValueError(f"labels has shape {y.shape}; expected [{len(x)}, L], L at least 1")
    x = x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)
    if not np.isfinite(x).all():
        row, column = (int(index) for index in np.argwhere(~np.isfinite(x))[0])
        raise ValueError(f"features[{row}, {column}] is {x[row, column]}; features must be finite")
    bad = (y != 0) & (y != 1)
    if bad.any():
        row, label = (int(index) for index in np.argwhere(bad)[0])
        raise ValueError(f"labels[{row}, {label}] is {y[row, label]}; logical labels are 0 or 1")
    return x, y.astype(np.float64)


def require(
    estimator: Any,
    name: str,
    *,
    low: float = 0.0,
    high: float = math.inf,
    above: bool = False,
    whole: bool = False,
    optional: bool = False,
) -> None:
    """Refuse a hyper-parameter that is no number from low to high.

    Args:
      estimator: what has the parameter.
      name: of its attribute.
      low: the smallest value.
      high: the largest.
      above: low itself is refused too.
      whole: only whole numbers.
      optional: None is allowed.

    Raises:
      ConfigError: with one line that names estimator, parameter and value.

    Example:
      >>> import types
      >>> require(types.SimpleNamespace(rate=0), "rate", above=True)
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.ConfigError: SimpleNamespace: rate must be a number above 0, not 0
    """
    value = getattr(estimator, name)
    if value is None and optional:
        return
    kind = numbers.Integral if whole else numbers.Real
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if is_number and low <= value <= high and math.isfinite(value) and not (above and value == low):
        return
    said = "a whole number" if whole else "a number"
    said += f" above {low:g}" if above else f" of at least {low:g}"
    said += f" and at most {high:g}" if high < math.inf else ""
    said += ", or None" if optional else ""
    raise ConfigError(f"{type(estimator).__name__}: {name} must be {said}, not {value!r}")


def require_one_of(estimator: Any, name: str, choices: Sequence[str]) -> None:
    """Refuse a hyper-parameter that is none of these words.

    Raises:
      ConfigError: with one line that names them.
    """
    value = getattr(estimator, name)
    if value not in choices:
        words = " or ".join(f'"{choice}"' for choice in choices)
        raise ConfigError(f"{type(estimator).__name__}: {name} must be {words}, not {value!r}")


def standardize(features: np.ndarray, fitted: np.ndarray | None = None) -> np.ndarray:
    """Features [n, q] float64 with the fitted rows' mean 0 and sample standard deviation 1.

    Columns that are constant among the fitted rows become 0.

    Args:
      features: [n, q].
      fitted: numbers of the rows whose statistics are used; None: all.
    """
    x = np.asarray(features, np.float64)
    of = x if fitted is None else x[fitted]
    mean = of.mean(0)
    spread = of.std(0, ddof=1) if len(of) > 1 else np.zeros_like(mean)
    # A constant column's deviation is rounding, not zero.
    constant = spread <= 1e-12 * np.maximum(1.0, np.abs(mean))
    return np.where(constant, 0.0, (x - mean) / np.where(constant, 1.0, spread))


def softmax(values: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    shifted = np.exp(values - values.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def normalized(labels: np.ndarray) -> np.ndarray:
    """L / |L| by row; uniform where a row has none. Any weights of at least 0 may stand for L."""
    total = labels.sum(-1, keepdims=True)
    return np.where(total > 0, labels / np.where(total > 0, total, 1), 1 / labels.shape[-1])
