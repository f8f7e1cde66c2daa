"""Choosing the score from which a label counts as predicted."""

from __future__ import annotations

import math
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import ArrayLike

from jaxmlcl.evaluation._counts import (
    THRESHOLD_METRICS,
    Conventions,
    Counts,
    count,
    ratio,
    resolve,
    threshold_measures,
)
from jaxmlcl.evaluation._inputs import check, check_grid, check_rows

THRESHOLD_GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_FALLBACK = 0.5


def choose_thresholds(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    per: Literal["metric", "label", "all"] = "metric",
    grid: ArrayLike = THRESHOLD_GRID,
    label_mask: ArrayLike | None = None,
    **conventions: Unpack[Conventions],
) -> Any:
    """The thresholds of a grid that do best on these scores, which should be validation scores.

    argmax over t in grid of measure(scores >= t, labels); of equally good ones the smallest, as
    a loop over the grid that keeps strict improvements would choose.

    Args:
        scores: [n, L], finite.
        labels: [n, L], 0/1.
        per: `metric`: one threshold for each measure that needs one, maximising that measure.
            `label`: one per label, maximising its F1. `all`: one for everything, maximising
            micro-F1.
        grid: candidate thresholds [T].
        label_mask: [n, L], True where the label is known; None: everywhere.
        **conventions: as in `multilabel_metrics` (`empty_rows` and so on).

    Returns:
        `metric`: a dict from the names in `THRESHOLD_METRICS` to a number. `label`: float64 [L].
        `all`: a float. Where nothing can be chosen by (a label without positives, a measure that
        is NaN at every threshold) it is 0.5.

    Raises:
        ValueError: as `multilabel_metrics`; unknown `per`; empty grid.

    Example:
        >>> scores, labels = [[0.35, 0.2], [0.1, 0.25]], [[1, 0], [0, 0]]
        >>> choose_thresholds(scores, labels, per="all")
        0.3
        >>> choose_thresholds(scores, labels, per="label")
        array([0.2, 0.5])

    Source: MulSupCon (AAAI 2024), experiments: one threshold of .1 to .9 per measure.
    """
    if per not in ("metric", "label", "all"):
        raise ValueError(f"per is {per!r}, expected 'metric', 'label' or 'all'")
    full = resolve(conventions)
    cuts = check_grid(grid)
    counts = count(check_rows(check(scores, labels, label_mask)), cuts[:, None])
    if per == "label":
        f1 = ratio(2 * counts.hits, counts.positives + counts.predicted)
        return np.where(counts.positives > 0, cuts[f1.argmax(axis=0)], _FALLBACK)
    chosen = best_of_grid(counts, cuts, full)[0]
    return chosen["micro_f1"] if per == "all" else chosen


def best_of_grid(
    counts: Counts, cuts: np.ndarray, conventions: Conventions
) -> tuple[dict[str, float], dict[str, float]]:
    """For every measure that needs a threshold: the best threshold of `cuts`, and its value."""
    curves = [threshold_measures(counts, i, conventions) for i in range(len(cuts))]
    chosen, values = {}, {}
    for name in THRESHOLD_METRICS:
        curve = np.array([point[name] for point in curves])
        if np.isnan(curve).all():
            chosen[name], values[name] = _FALLBACK, math.nan
        else:
            best = int(np.nanargmax(curve))
            chosen[name], values[name] = float(cuts[best]), float(curve[best])
    return chosen, values
