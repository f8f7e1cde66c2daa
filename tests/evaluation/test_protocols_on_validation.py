"""Protocols that choose on validation rows: per label, matched cardinality, top k."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from jaxmlcl.evaluation import (
    THRESHOLD_METRICS,
    choose_thresholds,
    choose_top_k,
    evaluate_scores,
    multilabel_metrics,
    protocol_metrics,
)


def draw(seed: int, n: int = 60, num_labels: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and labels."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, num_labels)) < 0.3).astype(np.uint8)
    scores = 0.25 * labels + 0.6 * rng.random((n, num_labels))
    return scores.round(1), labels


TEST, TEST_LABELS = draw(0)
VALIDATION, VALIDATION_LABELS = draw(1, n=50)


def top(scores: np.ndarray, k: int, mask: np.ndarray | None = None) -> np.ndarray:
    """1.0 at the k known labels of each row that a loop finds, the first of equals first."""
    predicted = np.zeros(scores.shape)
    for i, row in enumerate(scores):
        known = range(len(row)) if mask is None else np.flatnonzero(mask[i])
        predicted[i, sorted(known, key=lambda j: -row[j])[:k]] = 1.0
    return predicted


def best_k(scores: np.ndarray, labels: np.ndarray, name: str, **options: Any) -> int:
    best, value = 1, -math.inf
    for k in range(1, int(labels.sum(axis=1).max()) + 1):
        predicted = top(scores, k, options.get("label_mask"))
        new = multilabel_metrics(predicted, labels, **options)[name]
        if new > value:
            best, value = k, new
    return best


def test_cardinality_is_matched_over_all_distinct_scores() -> None:
    # Four true labels: three scores are at least .6, five are at least .5.
    scores = [[0.9, 0.6, 0.5], [0.6, 0.5, 0.1]]
    labels = [[1, 1, 0], [1, 1, 0]]
    assert choose_thresholds(scores, labels, per="cardinality") == 0.5  # of equals the smaller
    assert choose_thresholds(scores, [[1, 1, 0], [1, 0, 0]], per="cardinality") == 0.6
    assert choose_thresholds(scores, np.ones((2, 3)), per="cardinality") == 0.1
    # One true label, and the only choices are all and none: none is as near with one of two.
    assert choose_thresholds([[0.5, 0.5]], [[1, 0]], per="cardinality") == 0.5
    none = choose_thresholds([[0.5, 0.5, 0.5]], [[1, 0, 0]], per="cardinality")
    assert 0.5 < none < 0.5 + 1e-12
    assert choose_thresholds([[0.5, 0.5]], [[0, 0]], per="cardinality") > 0.5


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_cardinality_is_the_loop(kind: type, masked: bool) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scores = rng.random((7, 4)).round(seed % 3 + 1).astype(kind)
        labels = rng.random((7, 4)) < rng.random()
        mask = rng.random((7, 4)) < 0.7 if masked else np.ones((7, 4), bool)
        gaps = {
            cut: abs(int((scores >= cut)[mask].sum()) - int(labels[mask].sum()))
            for cut in [*np.unique(scores[mask]), np.nextafter(scores[mask].max(), kind(9))]
        }
        want = min(gaps, key=lambda cut: (gaps[cut], cut))
        got = choose_thresholds(scores, labels, per="cardinality", label_mask=mask)
        assert type(got) is float
        assert got == float(want)


@pytest.mark.parametrize("options", [{}, {"empty_rows": "one", "op_form": "authors"}])
def test_top_k_is_the_loop(options: dict[str, Any]) -> None:
    chosen = choose_top_k(VALIDATION, VALIDATION_LABELS, **options)
    assert tuple(chosen) == THRESHOLD_METRICS
    assert len(set(chosen.values())) > 1
    for name, k in chosen.items():
        assert k == best_k(VALIDATION, VALIDATION_LABELS, name, **options), name


def test_top_k_of_unknown_labels_and_of_unlabelled_rows() -> None:
    mask = np.random.default_rng(3).random(VALIDATION.shape) < 0.4
    mask[:3] = False
    chosen = choose_top_k(VALIDATION, VALIDATION_LABELS, label_mask=mask)
    known = VALIDATION_LABELS * mask
    for name, k in chosen.items():
        assert k == best_k(VALIDATION, known, name, label_mask=mask), name
    assert set(choose_top_k(VALIDATION, np.zeros_like(VALIDATION_LABELS)).values()) == {1}


@pytest.mark.parametrize("masked", [False, True])
def test_protocols_apply_what_validation_chose(masked: bool) -> None:
    rng = np.random.default_rng(4)
    masks: dict[str, Any] = {"test_mask": None, "validation_mask": None}
    if masked:
        masks = {
            "test_mask": rng.random(TEST.shape) < 0.7,
            "validation_mask": rng.random(VALIDATION.shape) < 0.7,
        }
    result = protocol_metrics(
        TEST,
        TEST_LABELS,
        validation_scores=VALIDATION,
        validation_labels=VALIDATION_LABELS,
        **masks,
    )
    chosen = {"label_mask": masks["validation_mask"]}
    applied = {"label_mask": masks["test_mask"]}

    per_label = result["per_label"]
    cuts = choose_thresholds(VALIDATION, VALIDATION_LABELS, per="label", **chosen)
    assert per_label["label_thresholds"] == cuts.tolist()
    want = multilabel_metrics(TEST, TEST_LABELS, threshold=cuts, **applied)
    assert {name: per_label[name] for name in THRESHOLD_METRICS}.items() <= want.items()

    matched = result["cardinality"]
    cut = choose_thresholds(VALIDATION, VALIDATION_LABELS, per="cardinality", **chosen)
    assert matched["threshold"] == cut
    want = multilabel_metrics(TEST, TEST_LABELS, threshold=cut, **applied)
    assert {name: matched[name] for name in THRESHOLD_METRICS}.items() <= want.items()

    ranked = result["top_k"]
    assert ranked["k"] == choose_top_k(VALIDATION, VALIDATION_LABELS, **chosen)
    for name, k in ranked["k"].items():
        predicted = top(TEST, k, masks["test_mask"])
        assert ranked[name] == multilabel_metrics(predicted, TEST_LABELS, **applied)[name], name


def test_one_label_and_one_row_are_enough() -> None:
    result = protocol_metrics(
        [[0.4]], [[1]], validation_scores=[[0.3]], validation_labels=[[1]], empty_rows="one"
    )
    assert result["per_label"]["label_thresholds"] == [0.1]
    assert result["cardinality"]["threshold"] == 0.3
    assert result["top_k"]["k"]["micro_f1"] == 1
    assert result["top_k"]["example_f1"] == result["cardinality"]["example_f1"] == 1.0


def test_constant_scores_and_labels_without_positives() -> None:
    labels = np.array([[1, 0, 0], [1, 1, 0]])
    result = protocol_metrics(
        np.full((2, 3), 0.5),
        labels,
        validation_scores=np.full((2, 3), 0.25),
        validation_labels=labels,
    )
    # Equal scores: the first labels are predicted, and half of all cells are true.
    assert result["top_k"]["k"]["micro_f1"] == 2
    assert result["top_k"]["micro_f1"] == pytest.approx(6 / 7)
    assert result["cardinality"]["threshold"] == 0.25
    assert result["per_label"]["label_thresholds"] == [0.1, 0.1, 0.5]


def test_evaluate_scores_holds_them_as_json() -> None:
    result = evaluate_scores(
        TEST,
        TEST_LABELS,
        label_names="abcdef",
        validation_scores=VALIDATION,
        validation_labels=VALIDATION_LABELS,
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result["protocols"]) == [
        "best_on_val",
        "per_label",
        "cardinality",
        "top_k",
        "fixed_0.5",
        "paper",
    ]
    without = evaluate_scores(TEST, TEST_LABELS, label_names="abcdef")
    assert list(without["protocols"]) == ["fixed_0.5", "paper"]
