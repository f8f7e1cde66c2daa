"""Distances, kernels and neighbour graphs of the rows, none larger than it must be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse
from sklearn.metrics.pairwise import euclidean_distances

from jaxmlcl.neighbours import nearest

# Numbers held at once where a matrix is walked in blocks of rows: 64 MiB of them.
_HELD = 1 << 23
# Above so many rows, the mean distance is taken over a part of them.
SAMPLED = 10_000


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices that cover the rows, each of some 2^23 numbers if a row has `width`."""
    size = max(1, _HELD // max(1, width))
    for first in range(0, rows, size):
        yield slice(first, min(first + size, rows))


def squared_distances(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """|q_i - k_j|^2, [m, n] float64."""
    return euclidean_distances(queries, keys, squared=True)


def mean_distance(features: np.ndarray) -> float:
    """The mean Euclidean distance over all pairs of different rows; 0 of one row.

    Above 10 000 rows it is the mean over the pairs of 10 000 of them, drawn with a fixed seed.

    Args:
      features: [n, q].

    Example:
      >>> mean_distance(np.array([[0.0], [1.0], [3.0]]))
      2.0
    """
    x = np.asarray(features, np.float64)
    if len(x) > SAMPLED:
        x = x[np.random.default_rng(0).choice(len(x), SAMPLED, replace=False)]
    n = len(x)
    if n < 2:
        return 0.0
    total = 0.0
    for part in blocks(n, n):
        distances = euclidean_distances(x[part], x)
        # Rounding makes a row's distance from itself some 1e-8.
        distances[np.arange(len(distances)), np.arange(part.start, part.stop)] = 0.0
        total += distances.sum()
    return float(total / (n * (n - 1)))


def gaussian(
    queries: np.ndarray, keys: np.ndarray, width: float, out: np.ndarray | None = None
) -> np.ndarray:
    """exp(-|q_i - k_j|^2 / (2 width^2)), [m, n] float64; 1 everywhere for width 0."""
    kernel = np.empty((len(queries), len(keys))) if out is None else out
    # A width of 0 is the mean distance of rows that are all equal.
    scale = -0.5 / width**2 if width > 0 else 0.0
    for part in blocks(len(queries), len(keys)):
        squares = squared_distances(queries[part], keys)
        squares *= scale
        kernel[part] = np.exp(squares, out=squares)
    return kernel


def neighbour_rows(features: np.ndarray, count: int) -> np.ndarray:
    """[n, min(count, n - 1)]: the rows nearest to each row, itself left out, nearest first."""
    count = min(count, len(features) - 1)
    if count < 1:
        return np.empty((len(features), 0), np.int32)
    return nearest(features, features, count, leave_self_out=True)


def affinity(features: np.ndarray, neighbours: int, width: float) -> sparse.csr_array:
    """The weighted graph of nearest neighbours, [n, n] sparse and symmetric, its diagonal zero.

        a_ij = exp(-|x_i - x_j|^2 / (2 width^2))

    if row j is among the nearest of row i, or i among those of j; else 0.

    Args:
      features: [n, q].
      neighbours: how many are nearest, the row itself not among them; at most n - 1.
      width: of the Gaussian.

    Example:
      >>> graph = affinity(np.array([[0.0], [1.0], [3.0]]), 1, 1.0)
      >>> graph.toarray().round(3).tolist()
      [[0.0, 0.607, 0.0], [0.607, 0.0, 0.135], [0.0, 0.135, 0.0]]
    """
    x = np.asarray(features, np.float64)
    found = neighbour_rows(x, neighbours)
    n, count = found.shape
    squares = np.empty(found.shape)
    for part in blocks(n, max(1, count) * x.shape[1]):
        difference = x[found[part]] - x[part, None]
        squares[part] = np.einsum("ijk,ijk->ij", difference, difference)
    weights = np.exp(squares / (-2 * width**2)).ravel()
    rows = np.repeat(np.arange(n), count)
    graph = sparse.csr_array((weights, (rows, found.ravel())), shape=(n, n))
    # Both directions have the same weight, so the larger is the union.
    return graph.maximum(graph.T).tocsr()


def laplacian(graph: sparse.csr_array) -> sparse.csr_array:
    """diag(A 1) - A."""
    return (sparse.diags_array(graph.sum(1)) - graph).tocsr()
