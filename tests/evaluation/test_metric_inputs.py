"""What the measures refuse, and how they say so."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from jaxmlcl.evaluation import (
    MetricState,
    average_precision,
    choose_thresholds,
    multilabel_metrics,
    per_label_table,
    protocol_metrics,
)

SCORES = np.full((4, 3), 0.5)
LABELS = np.zeros((4, 3), int)


def changed(array: np.ndarray, row: int, label: int, value: Any) -> np.ndarray:
    """A copy with one entry replaced, and a later one too."""
    copy = array.astype(type(value))
    copy[row, label] = copy[-1, -1] = value
    return copy


@pytest.mark.parametrize(
    "function",
    [
        multilabel_metrics,
        average_precision,
        choose_thresholds,
        protocol_metrics,
        lambda s, y: per_label_table(s, y, "abc"),
        MetricState.empty(3).update,
    ],
)
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (changed(SCORES, 1, 2, np.nan), LABELS, "scores[1, 2] is nan: scores must be finite"),
        (changed(SCORES, 2, 0, -np.inf), LABELS, "scores[2, 0] is -inf: scores must be finite"),
        (SCORES, changed(LABELS, 1, 1, 2), "labels[1, 1] is 2: labels must be 0 or 1"),
        (SCORES, changed(LABELS, 0, 2, -1), "labels[0, 2] is -1: labels must be 0 or 1"),
        (SCORES, changed(LABELS, 3, 0, 0.5), "labels[3, 0] is 0.5: labels must be 0 or 1"),
        (SCORES, changed(LABELS, 3, 0, np.nan), "labels[3, 0] is nan: labels must be 0 or 1"),
        (SCORES, LABELS[:3], "labels has shape (3, 3), expected (4, 3) as scores"),
        (SCORES, LABELS[:, :2], "labels has shape (4, 2), expected (4, 3) as scores"),
        (SCORES[0], LABELS[0], "scores has shape (3,), expected [n, L] with L >= 1"),
        (SCORES[:, :0], LABELS[:, :0], "scores has shape (4, 0), expected [n, L] with L >= 1"),
    ],
)
def test_bad_arrays(function: Any, scores: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        function(scores, labels)


def test_unknown_labels_may_hold_anything() -> None:
    mask = np.ones((4, 3), bool)
    mask[1, 1] = False
    odd = LABELS.astype(float)
    odd[1, 1] = np.nan
    got = multilabel_metrics(SCORES, odd, label_mask=mask)
    assert got["hamming_accuracy"] == 0.0
    with pytest.raises(ValueError, match=re.escape("labels[1, 1] is nan")):
        multilabel_metrics(SCORES, odd)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_mask": np.ones((4, 2), bool)}, "label_mask has shape (4, 2), expected (4, 3)"),
        ({"label_mask": np.full((4, 3), 3)}, "label_mask[0, 0] is 3: label_mask must be 0 or 1"),
        ({"label_mask": np.zeros((4, 3), bool)}, "no known entry"),
        ({"threshold": [0.5, 0.5]}, "threshold has shape (2,), expected a number or one per label"),
        ({"threshold": np.nan}, "thresholds must be finite"),
        ({"empty_rows": "keep"}, "empty_rows is 'keep', expected one of ['drop', 'one', 'zero']"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        multilabel_metrics(SCORES, LABELS, **options)


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="no known entry to measure"):
        multilabel_metrics(SCORES[:0], LABELS[:0])


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="per is 'row'"):
        choose_thresholds(SCORES, LABELS, per="row")  # type: ignore[arg-type]  # the refused value
    with pytest.raises(ValueError, match="grid is"):
        choose_thresholds(SCORES, LABELS, grid=[])
    with pytest.raises(ValueError, match="unknown argument 'treshold'"):
        choose_thresholds(SCORES, LABELS, treshold=0.5)  # type: ignore[call-arg]  # misspelt
