"""From label distributions to 0/1 labels."""

from __future__ import annotations

import difflib

import numpy as np
from numpy.typing import ArrayLike

RULES = ("cumulative", "threshold", "top-k")


def logical_labels(
    distributions: ArrayLike,
    rule: str = "cumulative",
    threshold: float = 0.5,
    k: int | None = None,
) -> np.ndarray:
    """The 0/1 labels that label distributions stand for.

    =========== ========================================================================
    rule        labels of a row
    =========== ========================================================================
    cumulative  the highest degrees, until they sum to strictly more than `threshold`
    threshold   degrees strictly above `threshold`
    top-k       the `k` highest degrees
    =========== ========================================================================

    Of equal degrees the first come first. `cumulative` with .5 gives the labels that the authors
    of the data sets published; with "at least" in place of "more than" some rows differ.

    Args:
      distributions: [n, L], degrees at least 0.
      rule: one of the above.
      threshold: of the first two rules, in [0, 1].
      k: of the third, 1 to L.

    Returns:
      [n, L] uint8.

    Raises:
      ValueError: an argument that does not fit, a degree that is negative or not finite.

    Example:
      >>> logical_labels([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
      array([[1, 1, 0],
             [0, 0, 1]], dtype=uint8)

    Source: the label sets beside LESC (H. Tang et al., Label Enhancement with Sample Correlations
    via Low-Rank Representation, AAAI 2020).
    """
    degrees = np.asarray(distributions)
    if degrees.ndim != 2 or degrees.shape[1] == 0 or degrees.dtype.kind not in "biuf":
        raise ValueError(
            f"distributions is {degrees.dtype} of shape {degrees.shape}; expected numbers [n, L]"
        )
    degrees = degrees.astype(np.float64)
    bad = ~(np.isfinite(degrees) & (degrees >= 0))
    if bad.any():
        row, label = (int(index) for index in np.argwhere(bad)[0])
        raise ValueError(
            f"distributions[{row}, {label}] is {degrees[row, label]}: degrees must be finite and "
            "at least 0"
        )
    if rule not in RULES:
        near = difflib.get_close_matches(str(rule), RULES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"rule is {rule!r}; expected one of {', '.join(RULES)}{hint}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected a number from 0 to 1")
    if (rule == "top-k") != (k is not None):
        raise ValueError(f"k is {k} with the rule {rule!r}; it belongs to 'top-k', which needs it")
    if rule == "threshold":
        return (degrees > threshold).astype(np.uint8)
    order = np.argsort(-degrees, axis=1, kind="stable")
    if k is not None:
        if not 1 <= k <= degrees.shape[1]:
            raise ValueError(f"k is {k}; expected a whole number from 1 to {degrees.shape[1]}")
        chosen = np.broadcast_to(np.arange(degrees.shape[1]) < k, degrees.shape)
    else:
        sums = np.cumsum(np.take_along_axis(degrees, order, axis=1), axis=1)
        # A label is taken while those before it have not yet passed the threshold.
        chosen = np.hstack([np.ones((len(degrees), 1), bool), sums[:, :-1] <= threshold])
    labels = np.zeros(degrees.shape, np.uint8)
    np.put_along_axis(labels, order, chosen.astype(np.uint8), axis=1)
    return labels
