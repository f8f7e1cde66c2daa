"""KM: memberships by the distance from a label's centre in a kernel's feature space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxmlcl.enhancement._base import Enhancer, normalized, require_one_of, softmax
from jaxmlcl.enhancement._graph import blocks, gaussian, mean_distance


class KM(Enhancer):
    """Kernel method: a label's degree falls with the distance from the centre of its rows.

    With K the Gaussian kernel whose width is the mean distance of two rows, and C_j the rows that
    have label j, the squared distance from its centre in the kernel's feature space is

        s_ij = K(x_i, x_i) - 2 / |C_j| sum_{k in C_j} K(x_i, x_k)
               + 1 / |C_j|^2 sum_{k, m in C_j} K(x_k, x_m),      r_j = max_{i in C_j} s_ij

    and the membership is m_ij = 1 - sqrt(s_ij / r_j) for rows that have the label, 0 for others.
    Rows of m are divided by their sums, so that labels a row does not have get nothing. Where all
    of a row's labels have it farthest from their centre (r_j = s_ij), it gets L / |L|; where a row
    has no label, it is uniform.

    Time grows with the square of the rows, memory does not: the kernel is walked in blocks of
    rows. Above 10 000 rows the width comes from 10 000 of them.

    Args:
      output: "linear" divides by the sum; "softmax" of m.

    Example:
      >>> KM().fit_transform([[0.0], [1.0], [2.0]], [[1, 1], [1, 0], [1, 1]]).round(3).tolist()
      [[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]]

    Source: Jiang, Yi & Lv, "Fuzzy SVM with a new fuzzy membership function", 2006, as the papers
    on label enhancement use it.
    """

    title = "KM"

    def __init__(self, output: Literal["linear", "softmax"] = "linear") -> None:
        self.output = output

    def fit_many(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray | Sequence[np.ndarray],
        seeds: Sequence[int],
    ) -> np.ndarray:
        """See `Enhancer.fit_many`: transductive, and the same for every seed."""
        require_one_of(self, "output", ("linear", "softmax"))
        self._all_rows(features, rows)
        memberships = _memberships(np.asarray(features, np.float64), labels)
        if self.output == "softmax":
            found = softmax(memberships)
        else:
            total = memberships.sum(1, keepdims=True)
            found = normalized(np.where(total > 0, memberships, labels))
        return np.repeat(found[None], len(seeds), 0)


def _memberships(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """m [n, L] in [0, 1], 0 where a row does not have the label."""
    n = len(x)
    width = mean_distance(x)
    counts = np.maximum(y.sum(0), 1.0)
    # The mean similarity of every row to each label's rows; the centre's own norm is the mean of
    # these over the label's rows.
    likeness = np.empty(y.shape)
    for part in blocks(n, n):
        likeness[part] = gaussian(x[part], x, width) @ (y / counts)
    norms = (y * likeness).sum(0) / counts
    # Rounding may go below zero.
    squares = np.maximum(1.0 - 2.0 * likeness + norms, 0.0) * y
    radii = squares.max(0)
    # A label whose rows all lie in its centre has no radius, and all of them belong to it.
    memberships = y * (1.0 - np.sqrt(squares / np.where(radii > 0, radii, 1.0)))
    # Several rows may be the farthest, but for rounding.
    return np.where(memberships > 1e-12, memberships, 0.0)
