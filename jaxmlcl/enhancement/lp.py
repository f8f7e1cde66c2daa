"""LP: labels spread over a graph of similar rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from scipy import linalg, sparse

from jaxmlcl.enhancement._base import Enhancer, normalized, require, require_one_of, softmax
from jaxmlcl.enhancement._graph import affinity, squared_distances

# Above so many rows the graph is one of nearest neighbours, unless told otherwise.
DENSE = 10_000
_NEIGHBOURS = 20


class LP(Enhancer):
    """Label propagation: a row's degrees are its labels and what similar rows give it.

        A_ij = exp(-|x_i - x_j|^2 / 2), A_ii = 0,     P = D^-1/2 A D^-1/2,     D = diag(A 1)
        F <- a P F + (1 - a) L,     whose limit is     F = (1 - a) (I - a P)^-1 L

    and rows of F are divided by their sums. Features are taken as they are: distances are
    compared with 1, so the scale of the features matters.

    A row whose similarities vanish gets (1 - a) L, that is L / |L|. Where nothing reaches a row
    without labels, it is uniform.

    Args:
      alpha: a, the share of what comes from other rows; below 1.
      solver: "closed" solves the linear system; "iterate" takes `iterations` steps from F = L.
      iterations: steps of "iterate", and the most that a graph of neighbours takes.
      zero_diagonal: whether a row is left out of those similar to it, as first published; else
        A_ii = 1.
      neighbours: None for all pairs of up to 10 000 rows and the 20 nearest of more; or how many
        nearest rows, either way round, are connected. Such a graph is sparse and its system is
        solved by iteration until nothing changes by more than 1e-12.
      output: "linear" divides by the sum; "softmax".

    Example:
      >>> features = [[0.0], [0.1], [9.0]]
      >>> LP().fit_transform(features, [[1, 0], [1, 1], [0, 1]]).round(3).tolist()
      [[0.75, 0.25], [0.6, 0.4], [0.0, 1.0]]

    Source: Li, Zhang & Geng, "Leveraging implicit relative labeling-importance information for
    effective multi-label learning", 2015. The published comparisons of label enhancement print
    what linear normalisation of this gives.
    """

    title = "LP"

    def __init__(
        self,
        alpha: float = 0.5,
        solver: Literal["closed", "iterate"] = "closed",
        iterations: int = 500,
        zero_diagonal: bool = True,
        neighbours: int | None = None,
        output: Literal["linear", "softmax"] = "linear",
    ) -> None:
        self.alpha = alpha
        self.solver = solver
        self.iterations = iterations
        self.zero_diagonal = zero_diagonal
        self.neighbours = neighbours
        self.output = output

    def fit_many(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray | Sequence[np.ndarray],
        seeds: Sequence[int],
    ) -> np.ndarray:
        """See `Enhancer.fit_many`: transductive, and the same for every seed."""
        require(self, "alpha", high=np.nextafter(1.0, 0.0))
        require_one_of(self, "solver", ("closed", "iterate"))
        require(self, "iterations", low=1, whole=True)
        require(self, "neighbours", low=1, whole=True, optional=True)
        require_one_of(self, "output", ("linear", "softmax"))
        self._all_rows(features, rows)
        spread = self._spread(np.asarray(features, np.float64), labels)
        # Rounding of the solver may go below zero.
        found = softmax(spread) if self.output == "softmax" else normalized(np.maximum(spread, 0))
        return np.repeat(found[None], len(seeds), 0)

    def _spread(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        count = self.neighbours
        if count is None and len(x) > DENSE:
            count = _NEIGHBOURS
        if count is not None:
            graph = affinity(x, count, 1.0)
            if not self.zero_diagonal:
                graph = (graph + sparse.eye_array(len(x))).tocsr()
            scale = _inverse_root(graph.sum(1))[:, None]
            tolerance = 1e-12 if self.solver == "closed" else 0.0
            return self._iterated(lambda f: scale * (graph @ (scale * f)), y, tolerance)
        propagation = squared_distances(x, x)
        propagation *= -0.5
        np.exp(propagation, out=propagation)
        np.fill_diagonal(propagation, 0.0 if self.zero_diagonal else 1.0)
        scale = _inverse_root(propagation.sum(1))
        propagation *= scale[:, None]
        propagation *= scale
        if self.solver == "iterate":
            return self._iterated(lambda f: propagation @ f, y, 0.0)
        # I - a P is symmetric and its eigenvalues are at least 1 - a.
        propagation *= -self.alpha
        propagation[np.diag_indices_from(propagation)] += 1.0
        right = (1 - self.alpha) * y
        return linalg.solve(propagation, right, assume_a="pos", overwrite_a=True)

    def _iterated(
        self, step: Callable[[np.ndarray], np.ndarray], y: np.ndarray, tolerance: float
    ) -> np.ndarray:
        f = y
        for _ in range(self.iterations):
            f, before = self.alpha * step(f) + (1 - self.alpha) * y, f
            if np.abs(f - before).max() <= tolerance:
                break
        return f


def _inverse_root(degrees: np.ndarray) -> np.ndarray:
    # A row that is similar to none has degree 0, and nothing to divide.
    return np.where(degrees > 0, np.where(degrees > 0, degrees, 1.0) ** -0.5, 0.0)
