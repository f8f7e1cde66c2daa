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
    count_top,
    ratio,
    resolve,
    threshold_measures,
)
from jaxmlcl.evaluation._inputs import Inputs, check, check_grid, check_rows

THRESHOLD_GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_FALLBACK = 0.5


def choose_thresholds(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    per: Literal["metric", "label", "all", "cardinality"] = "metric",
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
            micro-F1. `cardinality`: one for everything, the score (of all that occur, not of the
            grid) at which the number of predicted labels is nearest to that of true ones.
        grid: candidate thresholds [T].
        label_mask: [n, L], True where the label is known; None: everywhere.
        **conventions: as in `multilabel_metrics` (`empty_rows` and so on).

    Returns:
        `metric`: a dict from the names in `THRESHOLD_METRICS` to a number. `label`: float64 [L].
        `all`, `cardinality`: a float. Where nothing can be chosen by (a label without positives, a
        measure that is NaN at every threshold) it is 0.5.

    Raises:
        ValueError: as `multilabel_metrics`; unknown `per`; empty grid.

    Example:
        >>> scores, labels = [[0.35, 0.2], [0.1, 0.25]], [[1, 0], [0, 0]]
        >>> choose_thresholds(scores, labels, per="all")
        0.3
        >>> choose_thresholds(scores, labels, per="label")
        array([0.2, 0.5])
        >>> choose_thresholds(scores, labels, per="cardinality")
        0.35

    Source: MulSupCon (AAAI 2024), experiments: one threshold of .1 to .9 per measure;
        cardinality: Read, Pfahringer, Holmes, Frank (Machine Learning 85, 2011), section 5.
    """
    choices = ("metric", "label", "all", "cardinality")
    if per not in choices:
        raise ValueError(f"per is {per!r}, expected one of {list(choices)}")
    full = resolve(conventions)
    cuts = check_grid(grid)
    inputs = check_rows(check(scores, labels, label_mask))
    if per == "cardinality":
        return cardinality_threshold(inputs)
    counts = count(inputs, cuts[:, None])
    if per == "label":
        return best_per_label(counts, cuts)
    chosen = best_of_grid(counts, cuts, full)[0]
    return chosen["micro_f1"] if per == "all" else chosen


def choose_top_k(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    label_mask: ArrayLike | None = None,
    **conventions: Unpack[Conventions],
) -> dict[str, int]:
    """The number k of labels per row that does best on these (validation) scores.

    argmax over k of measure(the k highest scores of each row, labels), for each measure that needs
    predictions, with k from 1 to the largest number of labels that a row has. Ties between scores
    go to the label that comes first; of equally good k the smallest is taken.

    Args:
        scores: [n, L], finite.
        labels: [n, L], 0/1.
        label_mask: [n, L], True where the label is known; None: everywhere. Unknown labels are
            not predicted; rows with fewer than k known labels have them all predicted.
        **conventions: as in `multilabel_metrics`.

    Returns:
        A dict from the names in `THRESHOLD_METRICS` to k; 1 where a measure is NaN at every k.

    Raises:
        ValueError: as `multilabel_metrics`.

    Example:
        >>> chosen = choose_top_k([[0.9, 0.4, 0.1], [0.2, 0.7, 0.6]], [[1, 0, 0], [0, 1, 1]])
        >>> chosen["op"], chosen["or"], chosen["hamming_accuracy"]
        (1, 2, 1)

    Source: the definition above; k = 3 of all images in MulCon (2021) and before it.
    """
    full = resolve(conventions)
    inputs = check_rows(check(scores, labels, label_mask))
    return best_top_k(inputs, full)


def best_top_k(inputs: Inputs, conventions: Conventions) -> dict[str, int]:
    """For every measure that needs predictions: the best number of labels per row."""
    sizes = np.arange(1, max(1, int(inputs.labels.sum(axis=1).max())) + 1)
    chosen = best_of_grid(count_top(inputs, len(sizes)), sizes, conventions, fallback=1)[0]
    return {name: int(k) for name, k in chosen.items()}


def cardinality_threshold(inputs: Inputs) -> float:
    """The score at which the number of predictions is nearest to that of true labels.

    All distinct scores are candidates, and one above them all. Of equally near ones the smallest
    is taken.
    """
    scores = inputs.scores.ravel() if inputs.mask is None else inputs.scores[inputs.mask]
    target = int(inputs.labels.sum())
    above_all = float(np.nextafter(scores.max(), np.asarray(np.inf, scores.dtype)))
    if target == 0:
        return above_all
    # The candidates around the target: the target-th highest score, and the next higher one.
    cut = np.partition(scores, scores.size - target)[scores.size - target]
    higher = scores[scores > cut]
    if int((scores >= cut).sum()) - target <= target - higher.size:
        return float(cut)
    return float(higher.min()) if higher.size else above_all


def best_per_label(counts: Counts, cuts: np.ndarray) -> np.ndarray:
    """For every label the threshold of `cuts` with the best F1 [L]; 0.5 without positives."""
    f1 = ratio(2 * counts.hits, counts.positives + counts.predicted)
    return np.where(counts.positives > 0, cuts[f1.argmax(axis=0)], _FALLBACK)


def best_of_grid(
    counts: Counts, cuts: np.ndarray, conventions: Conventions, fallback: float = _FALLBACK
) -> tuple[dict[str, float], dict[str, float]]:
    """For every measure that needs a threshold: the best threshold of `cuts`, and its value."""
    curves = [threshold_measures(counts, i, conventions) for i in range(len(cuts))]
    chosen, values = {}, {}
    for name in THRESHOLD_METRICS:
        curve = np.array([point[name] for point in curves])
        if np.isnan(curve).all():
            chosen[name], values[name] = fallback, math.nan
        else:
            best = int(np.nanargmax(curve))
            chosen[name], values[name] = float(cuts[best]), float(curve[best])
    return chosen, values
