"""FCM: labels of fuzzy clusters, given back to the rows by their memberships."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxmlcl.enhancement._base import Enhancer, normalized, require, require_one_of, softmax
from jaxmlcl.enhancement._graph import blocks, squared_distances


class FCM(Enhancer):
    """Fuzzy c-means: a label's degree is that of the row's cluster which has the label most.

    Memberships U [n, p], whose rows sum to 1, and centres c of p clusters minimise
    sum_ik u_ik^m |x_i - c_k|^2 by turns,

        c_k = sum_i u_ik^m x_i / sum_i u_ik^m,
        u_ik = 1 / sum_l (|x_i - c_k| / |x_i - c_l|)^(2 / (m - 1))

    from random memberships, until none changes by more than `tolerance`. Then A = L^T U says how
    much each cluster has of each label, and

        d_ij = max_k A_jk u_ik      (max-product composition), divided by its sum over j.

    A row's own labels count only by what they add to A, so rows without labels, and with all, are
    like others. The result is uniform where no row at all has a label.

    Neither the number of clusters nor the normalisation of the published comparisons is known; 50
    and 1e-7 are those of PyLDL.

    Args:
      clusters: p; no more than there are rows.
      fuzziness: m, above 1.
      tolerance: when to stop.
      max_iterations: the most steps.
      output: "linear" divides by the sum; "softmax".
      random_state: seed of the first memberships.

    Example:
      >>> features, labels = [[0.0], [0.1], [5.0], [5.1]], [[1, 0], [1, 1], [0, 1], [0, 1]]
      >>> FCM(clusters=2).fit_transform(features, labels).round(2).tolist()
      [[0.67, 0.33], [0.67, 0.33], [0.0, 1.0], [0.0, 1.0]]

    Source: El Gayar, Schwenker & Palm, "A study of the robustness of KNN classifiers trained using
    soft labels", 2006, as the papers on label enhancement use it.
    """

    title = "FCM"
    seeded = True

    def __init__(
        self,
        clusters: int = 50,
        fuzziness: float = 2.0,
        tolerance: float = 1e-7,
        max_iterations: int = 1000,
        output: Literal["linear", "softmax"] = "linear",
        random_state: int | None = 0,
    ) -> None:
        self.clusters = clusters
        self.fuzziness = fuzziness
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.output = output
        self.random_state = random_state

    def fit_many(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray | Sequence[np.ndarray],
        seeds: Sequence[int],
    ) -> np.ndarray:
        """See `Enhancer.fit_many`: transductive."""
        require(self, "clusters", low=1, whole=True)
        require(self, "fuzziness", low=1, above=True)
        require(self, "tolerance")
        require(self, "max_iterations", low=1, whole=True)
        require_one_of(self, "output", ("linear", "softmax"))
        self._all_rows(features, rows)
        x = np.asarray(features, np.float64)
        found = np.empty((len(seeds), *labels.shape))
        for i, seed in enumerate(seeds):
            memberships = self._memberships(x, seed)
            composed = _max_product(labels.T @ memberships, memberships)
            found[i] = softmax(composed) if self.output == "softmax" else normalized(composed)
        return found

    def _memberships(self, x: np.ndarray, seed: int) -> np.ndarray:
        """U [n, p]."""
        # Distances do not change, and less cancels in the expanded square.
        x = x - x.mean(0)
        clusters = min(self.clusters, len(x))
        memberships = np.random.default_rng(seed).random((len(x), clusters))
        memberships /= memberships.sum(1, keepdims=True)
        for _ in range(self.max_iterations):
            weights = memberships**self.fuzziness
            centres = (weights.T @ x) / weights.sum(0)[:, None]
            before, memberships = memberships, self._shares(x, centres)
            if np.abs(memberships - before).max() <= self.tolerance:
                break
        return memberships

    def _shares(self, x: np.ndarray, centres: np.ndarray) -> np.ndarray:
        squares = squared_distances(x, centres)
        # By ratios to the nearest, so that no power overflows.
        least = squares.min(1, keepdims=True)
        ratios = np.where(least > 0, squares / np.where(least > 0, least, 1.0), np.inf)
        # A row that is a centre belongs to it alone, or to all that lie there.
        ratios = np.where((least == 0) & (squares == 0), 1.0, ratios)
        shares = ratios ** (-1 / (self.fuzziness - 1))
        return shares / shares.sum(1, keepdims=True)


def _max_product(table: np.ndarray, memberships: np.ndarray) -> np.ndarray:
    """max_k A_jk u_ik, [n, L]."""
    found = np.empty((len(memberships), len(table)))
    for part in blocks(len(memberships), table.size):
        found[part] = (memberships[part, None] * table).max(2)
    return found
