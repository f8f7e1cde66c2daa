"""Bootstrap intervals and paired tests: exact replicates, hand-computed p values, scipy."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from jaxmlcl.evaluation import (
    METRICS,
    THRESHOLD_METRICS,
    bootstrap_interval,
    bootstrap_replicates,
    multilabel_metrics,
    paired_comparison,
    paired_test,
    replicate_p,
)
from jaxmlcl.evaluation._paired import _student, _student_quantile

CUTS = np.array([0.3, 0.4, 0.5, 0.6, 0.7])
OTHERWISE = {
    "empty_rows": "one",
    "macro_f1_absent": "authors",
    "map_absent": "zero",
    "cr_absent": "zero",
    "op_form": "authors",
}
ROW_SUMS = {
    *("hamming_accuracy", "example_f1", "micro_f1", "precision_at_1", "op", "or", "of1"),
    *("subset_accuracy", "ranking_loss", "coverage", "one_error", "lrap"),
    *("precision_at_3", "precision_at_5", "ndcg_at_5", "brier"),
}


def draw(seed: int, n: int = 40, num_labels: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and labels of which one has no positive."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n, num_labels)) < 0.3
    labels[:, -1] = False
    return (0.7 * rng.random((n, num_labels)) + 0.3 * labels).round(1), labels


def drawn_rows(n: int, replicate: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, replicate]).integers(0, n, n)


@pytest.mark.parametrize("options", [{}, OTHERWISE, {"empty_rows": "zero"}], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_replicates_are_the_measures_of_the_drawn_rows(
    options: dict[str, Any], masked: bool
) -> None:
    scores, labels = draw(0)
    mask = np.random.default_rng(1).random(labels.shape) < 0.6 if masked else None
    got = bootstrap_replicates(
        scores,
        labels,
        measures=METRICS,
        thresholds=CUTS,
        label_mask=mask,
        replicates=20,
        seed=3,
        **options,
    )
    assert tuple(got) == METRICS
    for b in range(20):
        rows = drawn_rows(len(scores), b, 3)
        part = None if mask is None else mask[rows]
        want = multilabel_metrics(
            scores[rows], labels[rows], threshold=CUTS, label_mask=part, **options
        )
        values = {name: got[name][b] for name in METRICS}
        assert values == pytest.approx(want, abs=1e-12, nan_ok=True)


def test_replicates_depend_on_seed_and_number_alone() -> None:
    scores, labels = draw(0)
    few = bootstrap_replicates(scores, labels, replicates=3, seed=7)["map"]
    many = bootstrap_replicates(scores, labels, replicates=50, seed=7)["map"]
    assert few.tolist() == many[:3].tolist()
    assert many.tolist() != bootstrap_replicates(scores, labels, replicates=50)["map"].tolist()


def test_a_threshold_for_each_measure() -> None:
    scores, labels = draw(0)
    cuts = dict(zip(THRESHOLD_METRICS, itertools.cycle([0.3, 0.6]), strict=False))
    names = ("map", "macro_f1", "micro_f1", "example_f1")
    got = bootstrap_replicates(scores, labels, measures=names, thresholds=cuts, replicates=4)
    assert tuple(got) == names
    for name in names:
        want = bootstrap_replicates(
            scores, labels, measures=name, thresholds=cuts.get(name, 0.5), replicates=4
        )
        assert got[name].tolist() == want[name].tolist()


def test_interval_is_made_of_shifted_quantiles() -> None:
    scores, labels = draw(0)
    drawn = bootstrap_replicates(scores, labels, measures=["map", "brier"], replicates=200)
    found = bootstrap_interval(
        scores, labels, measures=["map", "brier"], replicates=200, confidence=0.8
    )
    for name, (value, low, high) in found.items():
        assert value == pytest.approx(multilabel_metrics(scores, labels)[name], abs=1e-12)
        shift = value - drawn[name].mean()
        assert low == pytest.approx(np.quantile(drawn[name], 0.1) + shift)
        assert high == pytest.approx(np.quantile(drawn[name], 0.9) + shift)


def test_interval_of_a_mean_is_the_textbook_one() -> None:
    """Subset accuracy of one label is a mean of coin throws."""
    rng = np.random.default_rng(0)
    labels = rng.random((2000, 1)) < 0.5
    scores = np.where(rng.random((2000, 1)) < 0.8, labels, ~labels).astype(float)
    found = bootstrap_interval(scores, labels, measures="subset_accuracy", replicates=2000)
    value, low, high = found["subset_accuracy"]
    width = stats.norm.ppf(0.975) * math.sqrt(value * (1 - value) / 2000)
    assert (high - low) / 2 == pytest.approx(width, rel=0.08)
    assert low < 0.8 < high


def test_interval_of_rare_labels_holds_its_value() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((300, 200)) < 0.02
    scores = rng.random(labels.shape)
    value, low, high = bootstrap_interval(scores, labels, replicates=200)["map"]
    drawn = bootstrap_replicates(scores, labels, replicates=200)["map"]
    assert value < np.nanquantile(drawn, 0.025)  # the plain quantiles miss it
    assert low < value < high


@pytest.mark.parametrize("n", [1, 30])
def test_constant_measures_have_no_width(n: int) -> None:
    found = bootstrap_interval(np.full((n, 2), 0.9), np.ones((n, 2)), measures=METRICS)
    assert found["map"] == pytest.approx((1.0, 1.0, 1.0))
    assert found["ranking_loss"] == (0.0, 0.0, 0.0)
    assert found["brier"] == pytest.approx((0.01, 0.01, 0.01))
    assert np.isnan(found["auc_macro"]).all()


def test_undefined_replicates_are_left_out() -> None:
    scores, labels = [[0.9], [0.1], [0.4]], [[1], [0], [0]]
    drawn = bootstrap_replicates(scores, labels, replicates=100)["map"]
    assert 0 < np.isnan(drawn).sum() < 100
    assert bootstrap_interval(scores, labels, replicates=100)["map"] == pytest.approx((1, 1, 1))
    nothing = bootstrap_interval(scores, np.zeros((3, 1)), measures=["map", "micro_f1"])
    assert np.isnan(nothing["map"]).all()
    assert nothing["micro_f1"] == (0.0, 0.0, 0.0)
    outside = bootstrap_interval([[1.5], [0.1]], [[1], [0]], measures=["ece", "brier"])
    assert np.isnan([*outside["ece"], *outside["brier"]]).all()


def test_a_label_that_is_nowhere_known_is_left_out() -> None:
    scores, labels = draw(3)
    known = np.ones(labels.shape, bool)
    known[:, 2] = False
    rest = [0, 1, 3, 4]
    names = ["map", "auc_macro", "auc_micro", "macro_f1", "ece"]
    found = bootstrap_replicates(scores, labels, measures=names, label_mask=known, replicates=20)
    wanted = bootstrap_replicates(scores[:, rest], labels[:, rest], measures=names, replicates=20)
    for name in names:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-12)


def test_comparison_of_equal_and_of_different_scores() -> None:
    scores, labels = draw(0, n=200)
    same = paired_comparison(scores, scores, labels, measures=METRICS, replicates=100)
    for name, found in same.items():
        assert (found.difference, found.low, found.high, found.p_bootstrap) == (0, 0, 0, 1), name
        assert math.isnan(found.p_permutation) == (name not in ROW_SUMS), name
        assert name not in ROW_SUMS or found.p_permutation == 1.0
    noise = np.random.default_rng(9).random(scores.shape)
    better = paired_comparison(
        scores, noise, labels, measures=("map", "micro_f1"), replicates=199, thresholds_b=0.6
    )
    assert better["map"].first == pytest.approx(multilabel_metrics(scores, labels)["map"])
    at = multilabel_metrics(noise, labels, threshold=0.6)
    assert better["micro_f1"].second == pytest.approx(at["micro_f1"])
    assert better["map"].low > 0
    assert better["map"].p_bootstrap == 2 / 200
    assert better["micro_f1"].p_permutation == 1 / 200


def test_both_are_resampled_alike() -> None:
    (first, labels), (second, _) = draw(0), draw(5)
    found = paired_comparison(first, second, labels, replicates=300, seed=4)["map"]
    a, b = (
        bootstrap_replicates(scores, labels, replicates=300, seed=4)["map"]
        for scores in (first, second)
    )
    shifted = a - b - (a - b).mean() + found.difference
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(shifted, [0.025, 0.975])))
    count = min((shifted <= 0).sum(), (shifted >= 0).sum())
    assert found.p_bootstrap == pytest.approx(min(1, 2 * (1 + count) / 301))


def test_replicate_p_by_hand() -> None:
    drawn = np.array([-1.0, 0.0, 1.0, 2.0, np.nan, 3.0])
    # No shift: the mean is the value. At or below 0 there are 2, at or above 4, of 5.
    assert replicate_p(1.0, drawn) == min(1, 2 * 3 / 6)
    assert replicate_p(3.0, drawn) == 2 * 1 / 6  # shifted by 2: 1, 2, 3, 4, 5
    assert math.isnan(replicate_p(math.nan, drawn))


@pytest.mark.parametrize("name", ["hamming_accuracy", "micro_f1", "example_f1", "brier", "lrap"])
def test_exact_exchange_of_rows_is_the_enumeration(name: str) -> None:
    (first, labels), (second, _) = draw(2, n=8), draw(3, n=8)
    mask = np.random.default_rng(1).random(labels.shape) < 0.8
    found = paired_comparison(first, second, labels, measures=name, label_mask=mask, replicates=10)
    gaps = []
    for swaps in itertools.product([False, True], repeat=8):
        swap = np.array(swaps)[:, None]
        one, other = (
            multilabel_metrics(scores, labels, label_mask=mask)[name]
            for scores in (np.where(swap, second, first), np.where(swap, first, second))
        )
        gaps.append(abs(one - other))
    assert found[name].p_permutation == np.mean(np.array(gaps) >= gaps[0] - 1e-12)


def test_drawn_exchange_agrees_with_scipy() -> None:
    (first, labels), (second, _) = draw(2, n=60), draw(3, n=60)
    second = second + 0.15 * labels
    found = paired_comparison(first, second, labels, measures="ranking_loss", replicates=4000)
    rows = []
    for scores in (first, second):
        one = [slice(i, i + 1) for i in range(60)]
        rows.append([multilabel_metrics(scores[i], labels[i])["ranking_loss"] for i in one])
    want = stats.permutation_test(
        rows,
        lambda a, b: np.mean(a - b),
        permutation_type="samples",
        n_resamples=4000,
        rng=np.random.default_rng(0),
    )
    assert found["ranking_loss"].difference == pytest.approx(want.statistic)
    assert 0.005 < want.pvalue < 0.9
    error = math.sqrt(want.pvalue * (1 - want.pvalue) / 2000)
    assert found["ranking_loss"].p_permutation == pytest.approx(want.pvalue, abs=5 * error)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
def test_paired_test_is_scipys(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.5, 0.02, n), rng.normal(0.48, 0.02, n)
    found = paired_test(a, b, confidence=0.9)
    want = stats.ttest_rel(a, b)
    assert found.p_t == pytest.approx(want.pvalue, abs=1e-12)
    low, high = want.confidence_interval(0.9)
    assert (found.difference, found.low, found.high) == pytest.approx(((a - b).mean(), low, high))
    if n <= 10:
        flipped = stats.permutation_test(
            (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
        )
        assert found.p_permutation == pytest.approx(flipped.pvalue)


def test_paired_test_by_hand_and_at_its_edges() -> None:
    assert paired_test([3, 2, 2, 1], [1, 1, 1, 1]).p_permutation == 4 / 16
    one = paired_test([0.5], [0.4])
    assert (one.difference, one.p_permutation) == (pytest.approx(0.1), 1.0)
    assert np.isnan([one.low, one.high, one.p_t]).all()
    assert paired_test([0.3, 0.5], [0.3, 0.5]) == (0, 0, 0, 1, 1)
    always = paired_test([0.3, 0.5, 0.9], [0.2, 0.4, 0.8])
    assert (always.p_t, always.p_permutation) == (0.0, 0.25)
    for a, b in (([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]])):
        with pytest.raises(ValueError, match=r"values_a has shape .* expected \[n\] each"):
            paired_test(a, b)
    with pytest.raises(ValueError, match="must be finite"):
        paired_test([1.0, math.nan], [1.0, 1.0])


def test_students_distribution() -> None:
    for freedom in (*range(1, 30), 99, 100):
        for t in (0.0, 0.01, 0.5, 2.0, 7.0):
            want = 1 - 2 * stats.t.sf(t, freedom)
            assert _student(t, freedom) == pytest.approx(want, abs=1e-13)
        want = stats.t.ppf(0.975, freedom)
        assert _student_quantile(0.95, freedom) == pytest.approx(want, rel=1e-10)


def test_misuse_is_named() -> None:
    scores, labels = draw(0)
    with pytest.raises(ValueError, match="measures: 'mAP' is unknown, expected one of"):
        bootstrap_interval(scores, labels, measures="mAP")
    with pytest.raises(ValueError, match="measures is empty"):
        bootstrap_interval(scores, labels, measures=())
    with pytest.raises(ValueError, match="replicates is 0, expected at least 1"):
        paired_comparison(scores, scores, labels, replicates=0)
    with pytest.raises(ValueError, match=r"confidence is 95, expected a number between 0 and 1"):
        bootstrap_interval(scores, labels, confidence=95)
    with pytest.raises(ValueError, match=r"thresholds has none for 'op': \['micro_f1'\]"):
        bootstrap_interval(scores, labels, measures="op", thresholds={"micro_f1": 0.2})
    with pytest.raises(ValueError, match="labels has shape"):
        paired_comparison(scores, scores[:9], labels)


def test_intervals_stay_where_the_measure_can_be() -> None:
    scores, labels = [[0.9], [0.8], [0.3], [0.1]], [[1], [0], [1], [0]]
    drawn = bootstrap_replicates(scores, labels, measures="micro_f1")["micro_f1"]
    assert np.quantile(drawn, 0.975) + 0.5 - drawn.mean() > 1
    assert bootstrap_interval(scores, labels, measures="micro_f1")["micro_f1"].high == 1.0
    deep = bootstrap_interval(np.eye(4), np.eye(4)[::-1], measures="coverage")["coverage"]
    assert deep.low > 1.0
