"""The measures of rows that count several times or not at all, for many weightings at once.

Measures are sums over rows, or rankings of the rows. Sums become matrix products with the weights;
a ranking is sorted once, and a weighting only changes the counts along it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmlcl.evaluation._counts import Conventions, ratio
from jaxmlcl.evaluation._inputs import BLOCK_CELLS, Inputs, in_blocks
from jaxmlcl.evaluation._ranking import ECE_BINS, ROW_RANKINGS, row_rankings_of_rows

_OF_LABELS = ("macro_f1", "cp", "cr", "cf1")
_LABEL_BLOCK = 32


class RowRatio(NamedTuple):
    """A measure that is sum(numerator) / sum(denominator) over rows; both [n] float64."""

    numerator: np.ndarray
    denominator: np.ndarray
    otherwise: float


def weighted_measures(
    inputs: Inputs,
    names: Sequence[str],
    threshold: np.ndarray,
    conventions: Conventions,
    weights: Sequence[np.ndarray],
) -> dict[str, np.ndarray]:
    """Measures by name, one value for each column of the weights.

    Equal to the measures of the rows repeated as often as the weights say.

    Args:
        inputs: checked scores, labels and mask [n, L].
        names: measures, of METRICS.
        threshold: [1] or [L].
        conventions: resolved.
        weights: blocks [n, r] of small whole numbers as float32, in which sums up to 2^24 are
            exact.
    """
    values: dict[str, np.ndarray] = {}
    ratios = row_ratios(inputs, names, threshold, conventions)
    if ratios:
        rows = np.stack([array for found in ratios.values() for array in found[:2]])
        sums = np.concatenate([rows @ block.astype(np.float64) for block in weights], axis=1)
        for i, (name, found) in enumerate(ratios.items()):
            values[name] = ratio(sums[2 * i], sums[2 * i + 1], found.otherwise)
    by_label = [*_OF_LABELS, *(("op", "of1") if conventions["op_form"] == "authors" else ())]
    if any(name in by_label for name in names):
        values |= _of_labels(inputs, threshold, conventions, weights)
    if "map" in names or "auc_macro" in names:
        values |= _of_rankings(inputs, conventions, weights, areas="auc_macro" in names)
    if "auc_micro" in names:
        row = np.broadcast_to(np.arange(len(inputs.scores))[:, None], inputs.scores.shape)
        cells = (array[inputs.known] for array in (inputs.scores, inputs.labels, row))
        values["auc_micro"] = _Curve(*cells).measure(weights, areas=True)[1]
    if "ece" in names:
        values["ece"] = _calibration_error(inputs, weights)
    return {name: values[name] for name in names}


def row_ratios(
    inputs: Inputs, names: Sequence[str], threshold: np.ndarray, conventions: Conventions
) -> dict[str, RowRatio]:
    """Those of the measures that are a ratio of sums over rows."""
    found: dict[str, RowRatio] = {}
    known = inputs.known.sum(axis=1).astype(np.float64)
    live = (known > 0).astype(np.float64)
    predicted, hits = _predictions(inputs, threshold)
    true, hit = inputs.labels.sum(axis=1), hits.sum(axis=1)
    size = true + predicted.sum(axis=1)

    def keep(name: str, numerator: np.ndarray, denominator: np.ndarray, otherwise: float) -> None:
        if name in names:
            above, below = (np.asarray(a, np.float64) for a in (numerator, denominator))
            found[name] = RowRatio(above, below, otherwise)

    empty = conventions["empty_rows"]
    row_f1 = ratio(2 * hit, size, 1.0 if empty == "one" else 0.0)
    keep("hamming_accuracy", known - size + 2 * hit, known, np.nan)
    keep("example_f1", row_f1 * live, live * (size > 0) if empty == "drop" else live, np.nan)
    keep("micro_f1", 2 * hit, size, 0.0)
    keep("or", hit, true, 0.0)
    keep("subset_accuracy", live * (size == 2 * hit), live, np.nan)
    if conventions["op_form"] == "pooled":
        keep("op", hit, size - true, 0.0)
        keep("of1", 2 * hit, size, 0.0)
    if any(name in ROW_RANKINGS for name in names):
        for name, values in row_rankings_of_rows(inputs).items():
            keep(name, values * live, live, np.nan)
    if "brier" in names:
        errors = np.where(inputs.known, inputs.labels - inputs.scores.astype(np.float64), 0.0)
        keep("brier", np.square(errors).sum(axis=1) + _outside(inputs), known, np.nan)
    return found


def _predictions(inputs: Inputs, threshold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted = inputs.scores >= threshold.astype(inputs.scores.dtype)
    if inputs.mask is not None:
        predicted &= inputs.mask
    return predicted, predicted & inputs.labels


def _outside(inputs: Inputs) -> float:
    """NaN if a known score is not in [0, 1], else 0."""
    scores = inputs.scores[inputs.known]
    return np.nan if scores.size and (scores.min() < 0 or scores.max() > 1) else 0.0


def _of_labels(
    inputs: Inputs, threshold: np.ndarray, conventions: Conventions, weights: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Measures made of counts per label, which are [R, L]."""
    predicted, hits = _predictions(inputs, threshold)

    def count(cells: np.ndarray) -> np.ndarray:
        def block(part: slice) -> np.ndarray:
            columns = np.ascontiguousarray(cells[:, part].T, np.float32)
            return np.concatenate([columns @ block for block in weights], axis=1)

        parts = in_blocks(block, cells.shape[1], _LABEL_BLOCK)
        return np.concatenate(parts).T.astype(np.float64)

    hit, said, true = count(hits), count(predicted), count(inputs.labels)
    seen = count(inputs.mask) > 0 if inputs.mask is not None else np.ones(hit.shape, np.bool_)

    def mean(values: np.ndarray) -> np.ndarray:
        kept = seen & ~np.isnan(values)
        return ratio(np.where(kept, values, 0.0).sum(axis=1), kept.sum(axis=1), np.nan)

    absent = conventions["macro_f1_absent"]
    extra, otherwise = 1e-6 if absent == "authors" else 0.0, np.nan if absent == "drop" else 0.0
    cp = mean(ratio(hit, said))
    cr = mean(ratio(hit, true, np.nan if conventions["cr_absent"] == "drop" else 0.0))
    values = {
        "macro_f1": mean(ratio(2 * hit, true + said + extra, otherwise)),
        "cp": cp,
        "cr": cr,
        "cf1": ratio(2 * cp * cr, cp + cr),
    }
    if conventions["op_form"] == "authors":
        never = (seen & (said == 0)).sum(axis=1)
        values["op"] = ratio(hit.sum(axis=1), said.sum(axis=1) + never)
        recall = ratio(hit.sum(axis=1), true.sum(axis=1))
        values["of1"] = ratio(2 * values["op"] * recall, values["op"] + recall)
    return values


def _of_rankings(
    inputs: Inputs, conventions: Conventions, weights: Sequence[np.ndarray], *, areas: bool
) -> dict[str, np.ndarray]:
    """Means over labels of average precision, and of the area under the ROC curve if asked for."""
    zero = conventions["map_absent"] == "zero"

    def block(part: slice) -> list[np.ndarray]:
        # Sums over this block's labels, and how many labels they are over.
        total = np.zeros((4, sum(columns.shape[1] for columns in weights)))
        for j in range(part.start, part.stop):
            rows = np.arange(len(inputs.scores))
            rows = rows if inputs.mask is None else rows[inputs.mask[:, j]]
            curve = _Curve(inputs.scores[rows, j], inputs.labels[rows, j], rows)
            precision, area = curve.measure(weights, areas=areas)
            if zero:
                seen = np.concatenate([columns[rows].sum(axis=0) > 0 for columns in weights])
                precision = np.where(np.isnan(precision) & seen, 0.0, precision)
            for i, values in enumerate((precision, area)):
                total[2 * i] += np.nan_to_num(values)
                total[2 * i + 1] += ~np.isnan(values)
        return list(total)

    # Blocks come back in the order of the labels, so that threads do not change the sums.
    parts = in_blocks(block, inputs.scores.shape[1], 4)
    precision, of, area, of_areas = np.sum(parts, axis=0)
    values = {"map": ratio(precision, of, np.nan)}
    return values | ({"auc_macro": ratio(area, of_areas, np.nan)} if areas else {})


class _Curve:
    """One ranking of rows, sorted once: average precision and ROC area under any weights."""

    def __init__(self, scores: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> None:
        order = np.argsort(-scores, kind="stable")
        scores, labels, self.rows = scores[order], labels[order], rows[order]
        # Equal scores are one group; only groups with a positive matter, by where they end.
        # Without any row, as for a label that is nowhere known, there is no group either.
        group = np.concatenate([[0], np.cumsum(scores[1:] != scores[:-1])])[: len(scores)]
        groups = np.unique(group[labels])
        self.start = np.searchsorted(group, groups)
        self.end = np.searchsorted(group, groups, "right")
        self.positives = self.rows[labels]
        self.first = np.searchsorted(group[labels], groups)
        inside = np.isin(group, groups)
        self.members = self.rows[inside]
        self.first_member = np.searchsorted(group[inside], groups)

    def measure(
        self, weights: Sequence[np.ndarray], *, areas: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Average precision and area [R]; the areas are NaN unless asked for."""
        parts = []
        for block in weights:
            # Few columns at a time, or the gathered rows would not stay in the cache.
            width = max(1, min(block.shape[1], 16 * BLOCK_CELLS // max(1, len(self.rows))))
            for start in range(0, block.shape[1], width):
                parts.append(self._measure(block[:, start : start + width], areas))
        precision, area = np.concatenate(parts, axis=1)
        return precision, area

    def _measure(self, weights: np.ndarray, areas: bool) -> np.ndarray:
        result = np.full((2, weights.shape[1]), np.nan)
        if self.positives.size == 0:
            return result
        last = self.end[-1]
        segments = np.concatenate([[0], self.end[:-1]])
        above = np.add.reduceat(weights[self.rows[:last]], segments, axis=0).cumsum(axis=0)
        here = np.add.reduceat(weights[self.positives], self.first, axis=0)
        positives_above = here.cumsum(axis=0)
        total = positives_above[-1].astype(np.float64)
        # Weights are whole numbers: where nothing is above, nothing is here either.
        precision = np.divide(positives_above, np.maximum(above, 1), dtype=np.float64)
        result[0] = ratio(np.einsum("kr,kr->r", here, precision), total, np.nan)
        if areas:
            members = np.add.reduceat(weights[self.members], self.first_member, axis=0)
            negatives = above[-1] + weights[self.rows[last:]].sum(axis=0) - positives_above[-1]
            below = negatives - (above - positives_above) + (members - here) / 2
            pairs = (here.astype(np.float64) * below).sum(axis=0)
            result[1] = ratio(pairs, total * negatives, np.nan)
        return result


def _calibration_error(inputs: Inputs, weights: Sequence[np.ndarray]) -> np.ndarray:
    row, label = np.nonzero(inputs.known)
    scores = inputs.scores[row, label]
    inner = np.linspace(0, 1, ECE_BINS + 1)[1:-1].astype(scores.dtype)
    place = row * ECE_BINS + np.searchsorted(inner, scores, "right")
    errors = inputs.labels[row, label] - scores.astype(np.float64)
    size = len(inputs.scores) * ECE_BINS
    gaps = np.bincount(place, errors, minlength=size).reshape(-1, ECE_BINS).T
    known = inputs.known.sum(axis=1).astype(np.float64)
    parts = []
    for block in weights:
        columns = block.astype(np.float64)
        parts.append(ratio(np.abs(gaps @ columns).sum(axis=0), known @ columns, np.nan))
    return np.concatenate(parts) + _outside(inputs)
