"""Distributions that no method was needed for: what every result is to be printed beside.

On several data sets they are better than published methods.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from jaxmlcl.enhancement._base import check_rows, softmax, standardize
from jaxmlcl.enhancement._base import normalized as _normalized
from jaxmlcl.enhancement._graph import neighbour_rows

# Of R1 and R2.
_UNIFORM, _NEIGHBOURS = 0.8, 20


def uniform(labels: ArrayLike) -> np.ndarray:
    """1 / L everywhere.

    Args:
      labels: [n, L], 0/1.

    Returns:
      [n, L] float64.

    Example:
      >>> uniform([[1, 0], [1, 1]]).tolist()
      [[0.5, 0.5], [0.5, 0.5]]
    """
    y = _labels(labels)
    return np.full(y.shape, 1 / y.shape[1])


def normalized(labels: ArrayLike) -> np.ndarray:
    """L / |L|: the labels share the mass, the others have none; uniform where a row has no label.

    Args:
      labels: [n, L], 0/1.

    Returns:
      [n, L] float64.

    Example:
      >>> normalized([[1, 1, 0, 0], [0, 0, 0, 0]]).tolist()
      [[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]
    """
    return _normalized(_labels(labels))


def softmax_of_normalized(labels: ArrayLike) -> np.ndarray:
    """softmax(L / |L|): a label has exp(1 / |L|) times the mass of one the row does not have.

    Args:
      labels: [n, L], 0/1.

    Returns:
      [n, L] float64.

    Example:
      >>> softmax_of_normalized([[1, 0]]).round(4).tolist()
      [[0.7311, 0.2689]]
    """
    return softmax(normalized(labels))


def r1(labels: ArrayLike) -> np.ndarray:
    """R1 = .8 uniform + .2 L / |L|.

    Args:
      labels: [n, L], 0/1.

    Returns:
      [n, L] float64.

    Example:
      >>> r1([[1, 0]]).round(4).tolist()
      [[0.6, 0.4]]
    """
    return _UNIFORM * uniform(labels) + (1 - _UNIFORM) * normalized(labels)


def r2(features: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """R2 = .8 uniform + .1 L / |L| + .1 mean of L / |L| over the 20 nearest rows.

    Nearest by the Euclidean distance of standardised features, the row itself left out; all other
    rows, if there are fewer than 20.

    Args:
      features: [n, q], finite.
      labels: [n, L], 0/1.

    Returns:
      [n, L] float64.

    Raises:
      ValueError: arrays that do not fit together, or labels other than 0 and 1.

    Example:
      >>> r2([[0.0], [1.0]], [[1, 0], [0, 1]]).round(4).tolist()
      [[0.5, 0.5], [0.5, 0.5]]
    """
    x, y = check_rows(features, labels)
    own = _normalized(y)
    found = neighbour_rows(standardize(x), _NEIGHBOURS)
    around = own[found].mean(1) if found.shape[1] else own
    return _UNIFORM / y.shape[1] + (1 - _UNIFORM) / 2 * (own + around)


def _labels(labels: ArrayLike) -> np.ndarray:
    y = np.asarray(labels)
    # The check wants features; any will do.
    return check_rows(np.zeros((max(1, len(y)), 1)) if y.ndim else [[0.0]], y)[1]


REFERENCES: dict[str, Callable[[ArrayLike, ArrayLike], np.ndarray]] = {
    "uniform": lambda _, labels: uniform(labels),
    "normalized": lambda _, labels: normalized(labels),
    "softmax_of_normalized": lambda _, labels: softmax_of_normalized(labels),
    "r1": lambda _, labels: r1(labels),
    "r2": r2,
}
"""By name: functions from features [n, q] and labels [n, L] to distributions [n, L].

The shares of R1 and R2 were set with true distributions in view: they are references to rank
against, not methods.
"""
