"""Integer counts at given thresholds, and the measures that follow from them.

Counts of two batches add up to the counts of both, exactly, in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import reduce
from operator import add
from typing import Any, Literal, TypedDict, get_args, get_type_hints

import numpy as np

from jaxmlcl.evaluation._inputs import BLOCK_CELLS, Inputs, in_blocks

THRESHOLD_METRICS = (
    "hamming_accuracy",
    "example_f1",
    "micro_f1",
    "macro_f1",
    "cp",
    "cr",
    "cf1",
    "op",
    "or",
    "of1",
    "subset_accuracy",
)


class Conventions(TypedDict, total=False):
    """What the measures do in the cases on which papers and programs differ.

    Attributes:
        empty_rows: rows with neither labels nor predictions leave example-F1 (`drop`, default),
            or count `one` or `zero`.
        macro_f1_absent: labels neither present nor predicted count `zero` (default), are left out
            (`drop`), or the denominators get 1e-6 added as in the MulSupCon program (`authors`).
        map_absent: labels without positives are left out (`drop`, default) or count `zero`.
        cr_absent: the same for the mean recall `cr` (and with it `cf1`).
        op_form: overall precision from pooled counts (`pooled`, default), or with 1 added to the
            number of predictions for every label never predicted, as in the MulCon program
            (`authors`); changes `op` and `of1`.
    """

    empty_rows: Literal["drop", "one", "zero"]
    macro_f1_absent: Literal["zero", "drop", "authors"]
    map_absent: Literal["drop", "zero"]
    cr_absent: Literal["drop", "zero"]
    op_form: Literal["pooled", "authors"]


# The first choice of each field is the default.
_CHOICES = {name: get_args(kind) for name, kind in get_type_hints(Conventions).items()}


def resolve(conventions: Conventions) -> Conventions:
    """Fill in defaults and refuse unknown names and values."""
    given: dict[str, Any] = dict(conventions)
    for name, value in given.items():
        if name not in _CHOICES:
            raise ValueError(f"unknown argument {name!r}, expected one of {sorted(_CHOICES)}")
        if value not in _CHOICES[name]:
            raise ValueError(f"{name} is {value!r}, expected one of {list(_CHOICES[name])}")
    full: Any = {name: given.get(name, choices[0]) for name, choices in _CHOICES.items()}
    return full


@dataclass(frozen=True)
class Counts:
    """Counts over known entries, at T thresholds, for L labels; all int64.

    Attributes:
        rows: rows with at least one known entry, [].
        known: known entries per label, [L].
        positives: true labels, [L].
        predicted: scores at or above the threshold, [T, L].
        hits: predicted and true, [T, L].
        overlap: sum over rows of hits, by the row's (true + predicted) labels, [T, 2L + 1]; with
            it the sum over rows of 2 hits / (true + predicted) needs no floating point.
        empty: rows with nothing true and nothing predicted, [T].
        exact: rows predicted without a mistake, [T].
    """

    rows: np.ndarray
    known: np.ndarray
    positives: np.ndarray
    predicted: np.ndarray
    hits: np.ndarray
    overlap: np.ndarray
    empty: np.ndarray
    exact: np.ndarray

    @classmethod
    def zeros(cls, num_thresholds: int, num_labels: int) -> Counts:
        """The counts of no rows."""
        per_label, both = (num_labels,), (num_thresholds, num_labels)
        by_size, per_threshold = (num_thresholds, 2 * num_labels + 1), (num_thresholds,)
        shapes = ((), per_label, per_label, both, both, by_size, per_threshold, per_threshold)
        return cls(*(np.zeros(shape, np.int64) for shape in shapes))

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            *(np.add(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        )


def count(inputs: Inputs, thresholds: np.ndarray) -> Counts:
    """Counts at `thresholds` [T, 1] or [T, L]; a score equal to its threshold is predicted.

    The comparison is made in the scores' own precision, so that a float32 score of 0.7 reaches
    the threshold 0.7.
    """
    num_rows, num_labels = inputs.scores.shape
    cuts = thresholds.astype(inputs.scores.dtype)

    def block(rows: slice) -> Counts:
        part = inputs.select(rows)
        counts = Counts.zeros(len(cuts), num_labels)
        live = part.known.any(axis=1)
        counts.rows[()] = live.sum()
        counts.known[:] = part.known.sum(axis=0)
        counts.positives[:] = part.labels.sum(axis=0)
        true_in_row = part.labels.sum(axis=1)
        for i, cut in enumerate(cuts):
            predicted = part.scores >= cut
            if part.mask is not None:
                predicted &= part.mask
            hits = predicted & part.labels
            hits_in_row = hits.sum(axis=1)
            predicted_in_row = predicted.sum(axis=1)
            size = true_in_row + predicted_in_row
            counts.predicted[i] = predicted.sum(axis=0)
            counts.hits[i] = hits.sum(axis=0)
            np.add.at(counts.overlap[i], size, hits_in_row)
            counts.empty[i] = (live & (size == 0)).sum()
            counts.exact[i] = (live & (size == 2 * hits_in_row)).sum()
        return counts

    blocks = in_blocks(block, num_rows, max(1, BLOCK_CELLS // num_labels)) if num_rows else []
    return reduce(add, blocks, Counts.zeros(len(cuts), num_labels))


def count_top(inputs: Inputs, most: int) -> Counts:
    """Counts when the k known labels with the highest scores of each row are predicted.

    Index k - 1 of the result is for k, from 1 to `most`. Of equal scores the label that comes
    first is predicted; rows with fewer than k known labels have them all predicted.
    """
    num_rows, num_labels = inputs.scores.shape
    most = min(most, num_labels)

    def block(rows: slice) -> Counts:
        part = inputs.select(rows)
        counts = Counts.zeros(most, num_labels)
        known = part.known.sum(axis=1)
        counts.rows[()] = (known > 0).sum()
        counts.known[:] = part.known.sum(axis=0)
        counts.positives[:] = part.labels.sum(axis=0)
        true_in_row = part.labels.sum(axis=1)
        ranked = label_order(part)[:, :most]
        truth = np.take_along_axis(part.labels, ranked, axis=1)
        hits_in_row = np.zeros(len(known), np.int64)
        for i in range(most):
            predicted, hit = ranked[known > i, i], ranked[truth[:, i], i]
            counts.predicted[i:] += np.bincount(predicted, minlength=num_labels)
            counts.hits[i:] += np.bincount(hit, minlength=num_labels)
            hits_in_row += truth[:, i]
            size = true_in_row + np.minimum(i + 1, known)
            np.add.at(counts.overlap[i], size, hits_in_row)
            counts.exact[i] = ((known > 0) & (size == 2 * hits_in_row)).sum()
        return counts

    blocks = in_blocks(block, num_rows, max(1, BLOCK_CELLS // num_labels)) if num_rows else []
    return reduce(add, blocks, Counts.zeros(most, num_labels))


def label_order(inputs: Inputs) -> np.ndarray:
    """Labels of each row, highest score first [n, L]; ties in their order, unknown ones last."""
    scores = inputs.scores
    if inputs.mask is not None:
        # Unknown labels go behind all known ones, where no measure looks.
        scores = np.where(inputs.mask, scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")


def ratio(above: Any, below: Any, otherwise: float = 0.0) -> np.ndarray:
    """`above / below` in float64, and `otherwise` where `below` is 0."""
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return np.where(below == 0, otherwise, above / np.where(below == 0, 1.0, below))


def mean(values: np.ndarray) -> float:
    """Mean of the entries that are not NaN; NaN if there is none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else math.nan


def _harmonic(a: float, b: float) -> float:
    return float(ratio(2 * a * b, a + b))


def threshold_measures(counts: Counts, index: int, conventions: Conventions) -> dict[str, float]:
    """The measures named in THRESHOLD_METRICS at threshold number `index`."""
    seen = counts.known > 0
    positives, predicted, hits = (
        array[seen] for array in (counts.positives, counts.predicted[index], counts.hits[index])
    )
    total_positives, total_predicted, total_hits = (
        int(array.sum()) for array in (positives, predicted, hits)
    )
    wrong = total_positives + total_predicted - 2 * total_hits
    rows, empty = int(counts.rows), int(counts.empty[index])

    size = np.arange(1, counts.overlap.shape[1])
    row_f1 = math.fsum(ratio(2 * counts.overlap[index, 1:], size).tolist())
    row_f1 += empty if conventions["empty_rows"] == "one" else 0
    scored = rows - empty if conventions["empty_rows"] == "drop" else rows

    absent = conventions["macro_f1_absent"]
    extra = 1e-6 if absent == "authors" else 0.0
    label_f1 = ratio(2 * hits, positives + predicted + extra, math.nan if absent == "drop" else 0.0)
    label_recall = ratio(hits, positives, math.nan if conventions["cr_absent"] == "drop" else 0.0)
    cp, cr = mean(ratio(hits, predicted)), mean(label_recall)

    micro_f1 = float(ratio(2 * total_hits, total_positives + total_predicted))
    overall_recall = float(ratio(total_hits, total_positives))
    if conventions["op_form"] == "authors":
        overall_precision = float(ratio(total_hits, total_predicted + (predicted == 0).sum()))
        of1 = _harmonic(overall_precision, overall_recall)
    else:
        overall_precision, of1 = float(ratio(total_hits, total_predicted)), micro_f1
    return {
        "hamming_accuracy": float(1 - ratio(wrong, counts.known.sum(), math.nan)),
        "example_f1": float(ratio(row_f1, scored, math.nan)),
        "micro_f1": micro_f1,
        "macro_f1": mean(label_f1),
        "cp": cp,
        "cr": cr,
        "cf1": _harmonic(cp, cr),
        "op": overall_precision,
        "or": overall_recall,
        "of1": of1,
        "subset_accuracy": float(ratio(counts.exact[index], rows, math.nan)),
    }
