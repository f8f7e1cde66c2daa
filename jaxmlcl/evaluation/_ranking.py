"""Measures that need no threshold: rankings of labels, rankings of rows, calibration.

Every sum is either of integers, of sorted values, or exact (`math.fsum`), so that the figures do
not depend on the order of the rows.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from jaxmlcl.evaluation._counts import Conventions, label_order, mean, ratio
from jaxmlcl.evaluation._inputs import BLOCK_CELLS, Inputs, check, in_blocks

THRESHOLD_FREE_METRICS = (
    "precision_at_1",
    "map",
    "ranking_loss",
    "coverage",
    "one_error",
    "lrap",
    "auc_macro",
    "auc_micro",
    "precision_at_3",
    "precision_at_5",
    "ndcg_at_5",
    "brier",
    "ece",
)
ROW_RANKINGS = (
    "precision_at_1",
    "ranking_loss",
    "coverage",
    "one_error",
    "lrap",
    "precision_at_3",
    "precision_at_5",
    "ndcg_at_5",
)
ECE_BINS = 15
_LABEL_BLOCK = 8


def average_precision(
    scores: ArrayLike, labels: ArrayLike, *, label_mask: ArrayLike | None = None
) -> np.ndarray:
    """Average precision of every label: the mean over its positives of the precision at their rank.

    ap_j = mean over rows i with y_ij = 1 of #{y_kj = 1, s_kj >= s_ij} / #{s_kj >= s_ij}

    Rows with equal scores share a rank, as in scikit-learn's `average_precision_score`.

    Args:
        scores: [n, L], finite; higher means more likely. Any monotone scale.
        labels: [n, L], 0/1.
        label_mask: [n, L], True where the label is known; None: everywhere.

    Returns:
        [L] float64; NaN for labels without a known positive.

    Raises:
        ValueError: shapes differ, scores are not finite, or labels are not 0/1.

    Example:
        >>> average_precision([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], [[1, 0], [0, 0], [1, 0]])
        array([0.83333333,        nan])

    Source: MulSupCon (AAAI 2024), experiments; ties as scikit-learn.
    """
    return label_rankings(check(scores, labels, label_mask), areas=False)[0]


def label_rankings(inputs: Inputs, *, areas: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Average precision [L] and area under the ROC curve [L] (NaN where undefined)."""
    num_labels = inputs.scores.shape[1]
    precisions, roc = np.full(num_labels, np.nan), np.full(num_labels, np.nan)

    def block(part: slice) -> None:
        # One contiguous copy of a few columns is cheaper than strided access to each.
        scores = np.ascontiguousarray(inputs.scores[:, part].T)
        labels = np.ascontiguousarray(inputs.labels[:, part].T)
        others = ~labels
        if inputs.mask is not None:
            others &= inputs.mask[:, part].T
        for i, j in enumerate(range(part.start, part.stop)):
            positives, negatives = np.sort(scores[i, labels[i]]), np.sort(scores[i, others[i]])
            if positives.size:
                precisions[j] = _precision(positives, negatives)
            if areas:
                roc[j] = _area(positives, negatives)

    in_blocks(block, num_labels, _LABEL_BLOCK)
    return precisions, roc


def _precision(positives: np.ndarray, negatives: np.ndarray) -> float:
    # Sorting positives and negatives apart keeps the scores' full precision and makes the larger
    # of the two sorts the only large one; scores and labels need not be packed together.
    size = positives.size
    first = np.ones(size, np.bool_)
    np.not_equal(positives[1:], positives[:-1], out=first[1:])
    start = np.maximum.accumulate(np.where(first, np.arange(size), 0))
    positives_above = size - start
    negatives_above = negatives.size - np.searchsorted(negatives, positives, "left")
    return float((positives_above / (positives_above + negatives_above)).sum() / size)


def _area(positives: np.ndarray, negatives: np.ndarray) -> float:
    pairs = positives.size * negatives.size
    if pairs == 0:
        return math.nan
    below = np.searchsorted(negatives, positives, "left").sum(dtype=np.int64)
    not_above = np.searchsorted(negatives, positives, "right").sum(dtype=np.int64)
    return (int(below) + int(not_above)) / (2 * pairs)


def _row_block(inputs: Inputs) -> np.ndarray:
    """Per-row lrap, ranking loss, coverage, ndcg@5, precision@1, @3, @5: [7, n]."""
    scores, labels, num_labels = inputs.scores, inputs.labels, inputs.scores.shape[1]
    known = inputs.known.sum(axis=1)
    order = label_order(inputs)
    if inputs.mask is not None:
        scores = np.where(inputs.mask, scores, -np.inf)
    ranked = np.take_along_axis(scores, order, axis=1)
    truth = np.take_along_axis(labels, order, axis=1)

    # start and end (exclusive) of every place's group of equal scores
    place = np.arange(num_labels)
    change = ranked[:, 1:] != ranked[:, :-1]
    edge = np.ones((len(scores), 1), np.bool_)
    start = np.maximum.accumulate(np.where(np.hstack([edge, change]), place, 0), axis=1)
    end = np.where(np.hstack([change, edge]), place + 1, num_labels)
    end = np.minimum.accumulate(end[:, ::-1], axis=1)[:, ::-1]

    positives = truth.sum(axis=1)
    negatives = known - positives
    positives_above = np.take_along_axis(np.cumsum(truth, axis=1), end - 1, axis=1)
    precision = np.where(truth, positives_above / end, 0.0).sum(axis=1)
    lrap = np.where(negatives == 0, 1.0, ratio(precision, positives, 1.0))
    misordered = np.where(truth, end - positives_above, 0).sum(axis=1)
    coverage = np.where(truth, end, 0).max(axis=1)

    discounts = 1 / np.log2(np.arange(min(5, num_labels)) + 2)
    gain = np.concatenate([[0.0], np.cumsum(discounts)])
    gain = gain[np.minimum(np.arange(num_labels + 1), 5)] if num_labels > 5 else gain
    shared = (gain[end] - gain[start]) / (end - start)
    ndcg = ratio(np.where(truth, shared, 0.0).sum(axis=1), gain[positives])
    top = [truth[:, :k].sum(axis=1) / np.maximum(1, np.minimum(k, known)) for k in (1, 3, 5)]
    return np.stack([lrap, ratio(misordered, positives * negatives), coverage, ndcg, *top])


def row_rankings_of_rows(inputs: Inputs) -> dict[str, np.ndarray]:
    """The measures that rank a row's labels, for every row [n]."""
    num_rows, num_labels = inputs.scores.shape
    step = max(1, BLOCK_CELLS // num_labels)
    blocks = in_blocks(lambda rows: _row_block(inputs.select(rows)), num_rows, step)
    lrap, loss, coverage, ndcg, first, third, fifth = np.concatenate(blocks, axis=1)
    values = (first, loss, coverage, 1 - first, lrap, third, fifth, ndcg)
    return dict(zip(ROW_RANKINGS, values, strict=True))


def row_rankings(inputs: Inputs) -> dict[str, float]:
    """Means over rows with a known entry of the measures that rank a row's labels."""
    live = inputs.known.any(axis=1)
    return {
        name: math.fsum(values[live].tolist()) / int(live.sum())
        for name, values in row_rankings_of_rows(inputs).items()
    }


def pooled_measures(inputs: Inputs) -> dict[str, float]:
    """Over all known cells together: ROC area, Brier score, calibration error."""
    positives = np.sort(inputs.scores[inputs.labels])
    negatives = np.sort(inputs.scores[inputs.known & ~inputs.labels])
    brier, ece = _calibration(positives, negatives)
    return {"auc_micro": _area(positives, negatives), "brier": brier, "ece": ece}


def _calibration(positives: np.ndarray, negatives: np.ndarray) -> tuple[float, float]:
    groups = [group for group in (positives, negatives) if group.size]
    if min(group[0] for group in groups) < 0 or max(group[-1] for group in groups) > 1:
        return math.nan, math.nan
    total = positives.size + negatives.size
    # Bins are closed below and open above, the last one closed on both sides.
    inner = np.linspace(0, 1, ECE_BINS + 1)[1:-1].astype(positives.dtype)
    squares, gaps = 0.0, np.zeros(ECE_BINS)
    for group, truth in ((positives, 1.0), (negatives, 0.0)):
        errors = truth - group.astype(np.float64)
        squares += float(np.square(errors).sum())
        cuts = np.searchsorted(group, inner)
        gaps += [part.sum() for part in np.split(errors, cuts)]
    return squares / total, math.fsum(np.abs(gaps).tolist()) / total


def threshold_free_measures(inputs: Inputs, conventions: Conventions) -> dict[str, float]:
    """The measures named in THRESHOLD_FREE_METRICS."""
    precisions, areas = label_rankings(inputs)
    if conventions["map_absent"] == "zero":
        seen = inputs.known.any(axis=0)
        precisions = np.where(np.isnan(precisions) & seen, 0.0, precisions)
    values = row_rankings(inputs) | pooled_measures(inputs)
    values |= {"map": mean(precisions), "auc_macro": mean(areas)}
    return {name: values[name] for name in THRESHOLD_FREE_METRICS}
