"""All multi-label measures of one set of scores, and the same label by label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from jaxmlcl.evaluation._counts import Conventions, count, ratio, resolve, threshold_measures
from jaxmlcl.evaluation._inputs import Inputs, check, check_rows, check_thresholds
from jaxmlcl.evaluation._ranking import label_rankings, threshold_free_measures

METRICS = (
    "hamming_accuracy",
    "example_f1",
    "micro_f1",
    "macro_f1",
    "precision_at_1",
    "map",
    "cp",
    "cr",
    "cf1",
    "op",
    "or",
    "of1",
    "subset_accuracy",
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


def multilabel_metrics(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    threshold: ArrayLike = 0.5,
    label_mask: ArrayLike | None = None,
    empty_rows: Literal["drop", "one", "zero"] = "drop",
    macro_f1_absent: Literal["zero", "drop", "authors"] = "zero",
    map_absent: Literal["drop", "zero"] = "drop",
    cr_absent: Literal["drop", "zero"] = "drop",
    op_form: Literal["pooled", "authors"] = "pooled",
) -> dict[str, float]:
    r"""All measures of a multi-label classifier, by name.

    With predictions `yhat = scores >= threshold` and, per label, `hits` (predicted and true),
    `predicted` and `positives`:

    - `hamming_accuracy`: cells with `yhat = y`, over all cells. `subset_accuracy`: rows without a
      mistake, over rows.
    - `example_f1`: mean over rows of `2 |y & yhat| / (|y| + |yhat|)`; `empty_rows` says what
      becomes of 0/0.
    - `micro_f1`: `2 sum(hits) / (sum(positives) + sum(predicted))`. `macro_f1`: the mean over
      labels of the same without the sums; `macro_f1_absent` says what becomes of 0/0.
    - `op`, `or`, `of1`: `sum(hits) / sum(predicted)`, `sum(hits) / sum(positives)` and their
      harmonic mean. `cp`, `cr`: means over labels of `hits / predicted` (0 if never predicted) and
      `hits / positives` (left out without positives); `cf1`: harmonic mean of these two means.
    - `map`: mean of `average_precision` over labels with a positive. `auc_macro`: mean area under
      the ROC curve over labels with positives and negatives. `auc_micro`: the area over all cells.
    - `precision_at_k`: true labels among the k with the highest scores, over k (over L if L < k);
      ties go to the label that comes first; unlabelled rows count 0. `one_error`:
      1 - `precision_at_1`.
    - `ranking_loss`: (true, false) pairs of a row in the wrong order, ties included, over all pairs
      of the row. `coverage`: how far down the ranking the last true label is (1 = on top).
      `lrap`: mean over true labels of the precision at their rank. `ndcg_at_5`: discounted gain of
      the first five over the best possible, ties sharing their places. In rows where these are
      undefined they are 0, 0, 1 and 0 as in scikit-learn.
    - `brier`: mean over cells of `(score - y)^2`. `ece`: with the cells in 15 equal bins of [0, 1],
      `sum |sum(y) - sum(score)|` over the number of cells. NaN if a score is outside [0, 1].

    A ratio of pooled counts is 0 where its denominator is 0; a mean over nothing is NaN.

    Args:
        scores: [n, L], finite, higher means more likely; probabilities for thresholds in (0, 1),
            `brier` and `ece`. Thresholds are applied in the precision of the scores.
        labels: [n, L], 0/1 (or bool).
        threshold: a number, or one per label [L]. A score equal to it is predicted.
        label_mask: [n, L], True where the label is known; None: everywhere. Unknown entries leave
            every count, ranking and mean.
        empty_rows: rows with neither labels nor predictions in `example_f1`.
        macro_f1_absent: labels neither present nor predicted in `macro_f1`; `authors` adds 1e-6 to
            each denominator, as the MulSupCon program does.
        map_absent: labels without positives in `map`.
        cr_absent: labels without positives in `cr`.
        op_form: `authors` adds 1 to the predictions for each label never predicted, as the MulCon
            program does.

    Returns:
        A dict of floats with the names above, in the order of `METRICS`.

    Raises:
        ValueError: shapes differ; a score is not finite; a known label is not 0/1; nothing known.

    Example:
        >>> scores = [[0.9, 0.2, 0.4], [0.8, 0.5, 0.1]]
        >>> labels = [[1, 0, 1], [0, 1, 0]]
        >>> measures = multilabel_metrics(scores, labels)
        >>> round(measures["micro_f1"], 4), measures["precision_at_1"]
        (0.6667, 0.5)

    Source: MulSupCon (AAAI 2024) and MulCon (2021), evaluation sections and programs.
    """
    conventions = resolve(
        {
            "empty_rows": empty_rows,
            "macro_f1_absent": macro_f1_absent,
            "map_absent": map_absent,
            "cr_absent": cr_absent,
            "op_form": op_form,
        }
    )
    inputs = check_rows(check(scores, labels, label_mask))
    return all_measures(inputs, check_thresholds(threshold, inputs.scores.shape[1]), conventions)


def all_measures(
    inputs: Inputs, threshold: np.ndarray, conventions: Conventions
) -> dict[str, float]:
    """The measures named in METRICS, of checked arrays; `threshold` is [1] or [L]."""
    values = threshold_measures(count(inputs, threshold[None]), 0, conventions)
    values |= threshold_free_measures(inputs, conventions)
    return {name: values[name] for name in METRICS}


def per_label_table(
    scores: ArrayLike,
    labels: ArrayLike,
    label_names: Sequence[str],
    *,
    thresholds: ArrayLike = 0.5,
    label_mask: ArrayLike | None = None,
) -> list[dict[str, Any]]:
    """Measures of every label, one dict each, ready for JSON (None where undefined).

    Args:
        scores: [n, L], finite.
        labels: [n, L], 0/1.
        label_names: L names.
        thresholds: a number, or one per label [L].
        label_mask: [n, L], True where the label is known; None: everywhere.

    Returns:
        L dicts with label, positives, average_precision, precision, recall, f1, threshold.
        Undefined are precision without predictions, recall and average precision without
        positives, F1 without either.

    Raises:
        ValueError: as `multilabel_metrics`, and if there are not L names.

    Example:
        >>> per_label_table([[0.9], [0.2]], [[1], [1]], ["cat"])  # doctest: +NORMALIZE_WHITESPACE
        [{'label': 'cat', 'positives': 2, 'average_precision': 1.0, 'precision': 1.0,
          'recall': 0.5, 'f1': 0.6666666666666666, 'threshold': 0.5}]

    Source: the definitions of `multilabel_metrics`, without the means over labels.
    """
    inputs = check_rows(check(scores, labels, label_mask))
    num_labels = inputs.scores.shape[1]
    if len(label_names) != num_labels:
        raise ValueError(f"label_names has {len(label_names)} names, expected {num_labels}")
    cuts = check_thresholds(thresholds, num_labels)
    counts = count(inputs, cuts[None])
    hits, predicted, positives = counts.hits[0], counts.predicted[0], counts.positives
    columns = {
        "average_precision": label_rankings(inputs, areas=False)[0],
        "precision": ratio(hits, predicted, math.nan),
        "recall": ratio(hits, positives, math.nan),
        "f1": ratio(2 * hits, positives + predicted, math.nan),
        "threshold": np.broadcast_to(cuts, (num_labels,)),
    }
    return [
        {"label": str(name), "positives": int(positives[j])}
        | {column: number_or_none(values[j]) for column, values in columns.items()}
        for j, name in enumerate(label_names)
    ]


def number_or_none(value: float) -> float | None:
    """A float that JSON can hold: None for NaN."""
    return None if math.isnan(value) else float(value)
