"""An order of labels in which those that resemble one another stand together."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def clustered_order(similarities: ArrayLike) -> np.ndarray:
    """The order of labels by hierarchical clustering of their similarities.

    Labels are compared by their rows of similarities to all labels but the two that are compared;
    clusters merge by average linkage, and their leaves are ordered so that neighbours differ
    least (Bar-Joseph et al., Bioinformatics 17, 2001).

    Args:
      similarities: [L, L], symmetric, finite.

    Returns:
      A permutation of 0 to L - 1, int64 [L].

    Raises:
      ValueError: not a finite square matrix.

    Example:
      >>> alike = np.array([[1.0, 0.0, 0.9], [0.0, 1.0, 0.1], [0.9, 0.1, 1.0]])
      >>> order = clustered_order(alike).tolist()
      >>> abs(order.index(0) - order.index(2))
      1
    """
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    matrix = np.asarray(similarities, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
        raise ValueError(
            f"similarities has shape {list(matrix.shape)}; expected a square matrix of finite "
            "numbers"
        )
    count = len(matrix)
    if count < 3:
        return np.arange(count)
    # |row_i - row_j|^2 less what columns i and j add to it.
    squares = np.square(matrix).sum(1)
    distances = squares[:, None] + squares[None, :] - 2 * matrix @ matrix.T
    own = np.diag(matrix)
    distances -= np.square(own[:, None] - matrix.T) + np.square(matrix - own[None, :])
    distances = np.sqrt(np.maximum((distances + distances.T) / 2, 0))
    np.fill_diagonal(distances, 0)
    condensed = squareform(distances, checks=False)
    tree = linkage(condensed, method="average")
    return leaves_list(optimal_leaf_ordering(tree, condensed)).astype(np.int64)
