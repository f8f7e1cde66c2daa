"""Thresholds are chosen where they may be, and reported under the right name."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from jaxmlcl.evaluation import (
    THRESHOLD_FREE_METRICS,
    THRESHOLD_GRID,
    THRESHOLD_METRICS,
    choose_thresholds,
    evaluate_scores,
    multilabel_metrics,
    per_label_table,
    protocol_metrics,
)


def draw(seed: int, n: int = 80, num_labels: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, num_labels)) < 0.3).astype(np.uint8)
    return np.clip(0.25 * labels + 0.6 * rng.random((n, num_labels)), 0, 1), labels


TEST, TEST_LABELS = draw(0)
VALIDATION, VALIDATION_LABELS = draw(1, n=50)


def argmax_by_loop(scores: np.ndarray, labels: np.ndarray, name: str, **options: Any) -> Any:
    """The first threshold that is strictly better than those before it, and its value."""
    best, value = 0.5, -math.inf
    for cut in THRESHOLD_GRID:
        new = multilabel_metrics(scores, labels, threshold=cut, **options)[name]
        if new > value:
            best, value = cut, new
    return best, value


@pytest.mark.parametrize("options", [{}, {"empty_rows": "one", "macro_f1_absent": "drop"}])
def test_per_metric_is_the_loop(options: dict[str, Any]) -> None:
    chosen = choose_thresholds(TEST, TEST_LABELS, **options)
    assert tuple(chosen) == THRESHOLD_METRICS
    for name, cut in chosen.items():
        assert cut == argmax_by_loop(TEST, TEST_LABELS, name, **options)[0], name
    assert chosen["op"] > chosen["or"] == 0.1


def test_per_all_maximises_micro_f1() -> None:
    cut = choose_thresholds(TEST, TEST_LABELS, per="all")
    assert type(cut) is float
    assert cut == argmax_by_loop(TEST, TEST_LABELS, "micro_f1")[0]


def test_per_label_maximises_each_f1() -> None:
    scores, labels = TEST.copy(), TEST_LABELS.copy()
    labels[:, 2] = 0
    cuts = choose_thresholds(scores, labels, per="label")
    want = []
    for j in range(labels.shape[1]):
        one = (scores[:, [j]], labels[:, [j]])
        want.append(0.5 if j == 2 else argmax_by_loop(*one, "micro_f1")[0])
    assert cuts.tolist() == want
    assert len(set(want)) > 1
    shared = multilabel_metrics(scores, labels, threshold=choose_thresholds(scores, labels)["cf1"])
    assert multilabel_metrics(scores, labels, threshold=cuts)["macro_f1"] >= shared["macro_f1"]


def test_ties_go_to_the_smallest_and_grids_are_free() -> None:
    scores, labels = [[0.8], [0.05]], [[1], [0]]  # every threshold of .1 to .8 is perfect
    assert choose_thresholds(scores, labels, per="all") == 0.1
    assert choose_thresholds(scores, labels, per="all", grid=[0.9, 0.7, 0.6]) == 0.6
    assert choose_thresholds(scores, labels, per="label", grid=[0.3]).tolist() == [0.3]


def test_masked_rows_do_not_choose() -> None:
    mask = np.ones(TEST.shape, bool)
    mask[40:] = False
    got = choose_thresholds(TEST, TEST_LABELS, label_mask=mask)
    assert got == choose_thresholds(TEST[:40], TEST_LABELS[:40])


def test_nothing_to_choose_by_is_a_half() -> None:
    chosen = choose_thresholds(np.full((3, 2), 0.05), np.zeros((3, 2)))
    assert chosen["cr"] == chosen["example_f1"] == 0.5
    assert chosen["hamming_accuracy"] == 0.1


def test_protocols() -> None:
    result = protocol_metrics(
        TEST, TEST_LABELS, validation_scores=VALIDATION, validation_labels=VALIDATION_LABELS
    )
    assert {"best_on_val", "fixed_0.5", "paper"} < set(result)
    fixed = multilabel_metrics(TEST, TEST_LABELS)
    assert result["fixed_0.5"] == {name: fixed[name] for name in THRESHOLD_METRICS}
    on_validation, oracle = result["best_on_val"], result["paper"]
    assert on_validation["thresholds"] == choose_thresholds(VALIDATION, VALIDATION_LABELS)
    assert on_validation["thresholds"] != oracle["thresholds"]
    for name in THRESHOLD_METRICS:
        cut, best = argmax_by_loop(TEST, TEST_LABELS, name)
        assert (oracle["thresholds"][name], oracle[name]) == (cut, best)
        cut = on_validation["thresholds"][name]
        want = multilabel_metrics(TEST, TEST_LABELS, threshold=cut)[name]
        assert on_validation[name] == want
        assert oracle[name] >= max(on_validation[name], fixed[name])


def test_without_validation_there_is_no_best_on_val() -> None:
    assert list(protocol_metrics(TEST, TEST_LABELS)) == ["fixed_0.5", "paper"]


def test_validation_must_be_other_rows() -> None:
    with pytest.raises(ValueError, match="the `paper` protocol, not `best_on_val`"):
        protocol_metrics(
            TEST, TEST_LABELS, validation_scores=TEST.copy(), validation_labels=TEST_LABELS.copy()
        )
    with pytest.raises(ValueError, match="give both or neither"):
        protocol_metrics(TEST, TEST_LABELS, validation_scores=VALIDATION)
    with pytest.raises(ValueError, match=r"validation_scores has shape \(50, 5\), expected \[m, 6"):
        protocol_metrics(
            TEST,
            TEST_LABELS,
            validation_scores=VALIDATION[:, :5],
            validation_labels=VALIDATION_LABELS[:, :5],
        )


def test_evaluate_scores_is_json_and_complete() -> None:
    labels = TEST_LABELS.copy()
    labels[:, 5] = 0
    names = [f"label {j}" for j in range(6)]
    run = {"stage": "probe", "step": 100, "seed": 0}
    result = evaluate_scores(
        TEST,
        labels,
        label_names=names,
        validation_scores=VALIDATION,
        validation_labels=VALIDATION_LABELS,
        run=run,
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result) == ["threshold_free", "protocols", "per_label", "run"]
    everything = multilabel_metrics(TEST, labels)
    assert result["threshold_free"] == {k: everything[k] for k in THRESHOLD_FREE_METRICS}
    assert result["protocols"] == protocol_metrics(
        TEST, labels, validation_scores=VALIDATION, validation_labels=VALIDATION_LABELS
    )
    cut = result["protocols"]["best_on_val"]["thresholds"]["micro_f1"]
    assert cut == choose_thresholds(VALIDATION, VALIDATION_LABELS, per="all")
    assert result["per_label"] == per_label_table(TEST, labels, names, thresholds=cut)
    assert result["per_label"][5]["average_precision"] is None
    assert result["run"] == run


def test_evaluate_scores_says_none_for_what_is_undefined() -> None:
    result = evaluate_scores(np.full((3, 2), -1.0), np.zeros((3, 2)), label_names=["a", "b"])
    json.dumps(result, allow_nan=False)
    assert "run" not in result
    free = result["threshold_free"]
    assert free["map"] is free["auc_micro"] is free["brier"] is None
    assert result["protocols"]["paper"]["cr"] is None
    assert result["protocols"]["paper"]["thresholds"]["cr"] == 0.5
    assert [row["threshold"] for row in result["per_label"]] == [0.5, 0.5]


def test_masks_and_conventions_reach_every_part() -> None:
    mask = np.random.default_rng(5).random(TEST.shape) < 0.7
    validation_mask = np.random.default_rng(6).random(VALIDATION.shape) < 0.7
    result = evaluate_scores(
        TEST,
        TEST_LABELS,
        label_names="abcdef",
        validation_scores=VALIDATION,
        validation_labels=VALIDATION_LABELS,
        label_mask=mask,
        validation_mask=validation_mask,
        empty_rows="one",
    )
    cuts = choose_thresholds(
        VALIDATION, VALIDATION_LABELS, label_mask=validation_mask, empty_rows="one"
    )
    assert result["protocols"]["best_on_val"]["thresholds"] == cuts
    want = multilabel_metrics(TEST, TEST_LABELS, label_mask=mask, empty_rows="one")
    assert result["protocols"]["fixed_0.5"]["example_f1"] == want["example_f1"]
    assert result["threshold_free"]["lrap"] == want["lrap"]
    positives = (TEST_LABELS & mask).sum(axis=0).tolist()
    assert [row["positives"] for row in result["per_label"]] == positives
