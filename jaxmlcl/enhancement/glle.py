"""GLLE: label distributions from kernel regression that a neighbour graph smooths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxmlcl.enhancement._base import require, softmax, standardize
from jaxmlcl.enhancement._graph import affinity, laplacian
from jaxmlcl.enhancement._kernel import KernelEnhancer


class GLLE(KernelEnhancer):
    """Graph Laplacian label enhancement.

        min_W |F W - L|^2 + lam tr((F W)^T G F W),     D = softmax(F W) by row

    on standardised features. F = [K, 1] with K_ij = exp(-|x_i - x_j|^2 / (2 w^2)), w the mean
    distance of two rows; G = diag(A 1) - A, where a_ij = exp(-|x_i - x_j|^2 / (2 sigma^2)) if one
    of the rows i, j is among the nearest of the other, else 0.

    The published results are those of an optimiser that stops long before it converges: after 300
    iterations they still move with the seed, and as much with rounding, which every step makes
    larger; so another machine is like another seed. `max_iterations=None` gives the minimum
    itself, which nothing moves: softmax(L) smoothed by the graph, Z = (I + lam G)^-1 L where all
    rows differ, since kernel regression with a column for every row can take any values. As
    published, the optimiser is BFGS below 3000 unknowns, which comes nearer to it, and L-BFGS
    above.

    The kernel has a column for each of up to 10 000 rows; of more rows, only 1000 drawn at random
    have one (`landmarks`), so that memory grows with the rows and not with their square.

    Rows without labels are regressed on zeros, rows with all labels on ones: without neighbours to
    pull them, both are near uniform.

    Args:
      lam: weight of the graph.
      neighbours: nearest rows, the row itself among them, which makes one fewer.
      sigma: width of the graph's Gaussian.
      landmarks: rows that have a column in K; None: as said above.
      max_iterations: the most steps; None: the minimum, by conjugate gradients.
      tolerance: the optimiser stops where no entry of the gradient is above it, or no weight moves
        more.
      memory: steps that L-BFGS remembers.
      random_state: seed of the initial W ~ U(0, 1) and of the landmarks.

    Example:
      >>> features, labels = [[0.0], [0.1], [2.0]], [[1, 0], [1, 0], [0, 1]]
      >>> GLLE(max_iterations=None).fit_transform(features, labels).round(3).tolist()
      [[0.727, 0.273], [0.727, 0.273], [0.277, 0.723]]

    Source: Xu, Liu & Geng, "Label Enhancement for Label Distribution Learning", TKDE 2019, and its
    published program, whose constants these are.
    """

    title = "GLLE"

    def __init__(
        self,
        lam: float = 0.01,
        neighbours: int = 20,
        sigma: float = 10.0,
        landmarks: int | None = None,
        max_iterations: int | None = 300,
        tolerance: float = 1e-6,
        memory: int = 20,
        random_state: int | None = 0,
    ) -> None:
        self.lam = lam
        self.neighbours = neighbours
        self.sigma = sigma
        self.landmarks = landmarks
        self.max_iterations = max_iterations
        self.tolerance = tolerance
        self.memory = memory
        self.random_state = random_state

    def fit_many(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray | Sequence[np.ndarray],
        seeds: Sequence[int],
    ) -> np.ndarray:
        """See `Enhancer.fit_many`: transductive; graph and kernel are made once."""
        self._check()
        require(self, "neighbours", low=1, whole=True)
        require(self, "sigma", above=True)
        self._all_rows(features, rows)
        x = standardize(features)
        graph = laplacian(affinity(x, self.neighbours - 1, self.sigma))
        return softmax(self._regress(x, labels, lambda z: graph @ z, self.lam, seeds))
