"""Methods over data sets: average ranks, Friedman, Nemenyi, Wilcoxon with Holm."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from jaxmlcl.evaluation import (
    average_ranks,
    friedman_test,
    nemenyi_critical_difference,
    wilcoxon_signed_rank,
)
from jaxmlcl.evaluation._ranks import holm

RNG = np.random.default_rng(8)
# AUC of C4.5 and three variants on fourteen sets: table 6 of Demsar (2006). Its ranks are of
# values with more digits, which tell apart the last two of 0.975 in the last row but one.
AUC = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.97501, 0.975],
        [0.957, 0.978, 0.946, 0.970],
    ]
)


def test_a_published_example() -> None:
    ranks = average_ranks(AUC, higher_is_better=True)
    np.testing.assert_allclose(ranks, [3.143, 2.000, 2.893, 1.964], atol=5e-4)
    test = friedman_test(AUC)
    # The text does not correct for ties, here three pairs and a set where all four are equal.
    raw = 12 * 14 / (4 * 5) * (np.square(ranks).sum() - 4 * 25 / 4)
    assert raw == pytest.approx(9.28, abs=0.01)
    assert test.statistic == pytest.approx(raw / (1 - (3 * 6 + 60) / (14 * 60)))
    assert test.f_p < test.p < 0.05
    assert nemenyi_critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert nemenyi_critical_difference(4, 14, alpha=0.1) == pytest.approx(1.12, abs=0.005)


@pytest.mark.parametrize(
    ("alpha", "quantiles"),
    [(0.05, {2: 1.960, 3: 2.343, 5: 2.728, 10: 3.164}), (0.10, {2: 1.645, 3: 2.052, 10: 2.920})],
)
def test_critical_values_of_the_table(alpha: float, quantiles: dict[int, float]) -> None:
    for methods, quantile in quantiles.items():
        found = nemenyi_critical_difference(methods, 1, alpha) / math.sqrt(
            methods * (methods + 1) / 6
        )
        assert found == pytest.approx(quantile, abs=1e-3)


def test_ranks_by_counting() -> None:
    values = RNG.integers(0, 4, (20, 5))
    for higher in (True, False):
        sign = -1 if higher else 1
        expected = [
            np.mean(
                [
                    1
                    + sum(sign * other < sign * row[j] for other in row)
                    + (sum(other == row[j] for other in row) - 1) / 2
                    for row in values
                ]
            )
            for j in range(5)
        ]
        np.testing.assert_allclose(average_ranks(values, higher), expected)


def test_friedman_by_its_formula_and_extremes() -> None:
    values = RNG.normal(size=(9, 4)) + np.array([0, 0.5, 1, 1.5])
    ranks = average_ranks(values, higher_is_better=False)
    chi2 = 12 * 9 / (4 * 5) * (np.square(ranks).sum() - 4 * 25 / 4)
    ratio = 8 * chi2 / (9 * 3 - chi2)
    found = friedman_test(values)
    assert found == pytest.approx(
        (chi2, stats.chi2.sf(chi2, 3), ratio, stats.f.sf(ratio, 3, 24)), rel=1e-9
    )
    assert friedman_test(-values) == pytest.approx(found, rel=1e-9)
    same_order = friedman_test(np.arange(3) + np.arange(5)[:, None])
    assert same_order.f_statistic == math.inf
    assert same_order.f_p == 0
    assert friedman_test(np.ones((4, 3))) == (0, 1, 0, 1)


def test_wilcoxon_is_all_signs_of_the_ranks() -> None:
    """The exact p value: of all 2^N ways to sign the ranks, those at least as far out."""
    values = RNG.normal(size=(8, 3))
    values[:, 2] += 2
    tests = wilcoxon_signed_rank(values)
    assert [(test.first, test.second) for test in tests] == [(0, 1), (0, 2), (1, 2)]
    for test in tests:
        differences = values[:, test.first] - values[:, test.second]
        ranks = np.argsort(np.argsort(np.abs(differences))) + 1
        seen = min(ranks[differences > 0].sum(), ranks[differences < 0].sum())
        ways = [
            sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
            for signs in itertools.product([False, True], repeat=8)
        ]
        assert test.statistic == seen
        assert test.p == pytest.approx(min(1, 2 * np.mean(np.array(ways) <= seen)))
        assert test.difference == pytest.approx(np.median(differences))
    np.testing.assert_allclose([t.p_holm for t in tests], holm(np.array([t.p for t in tests])))
    assert any(test.p_holm > test.p for test in tests)
    against = wilcoxon_signed_rank(values, against=2)
    assert [(test.first, test.second) for test in against] == [(2, 0), (2, 1)]
    assert against[0].p == tests[1].p
    assert against[0].difference == -tests[1].difference


def test_equal_methods_and_ties() -> None:
    values = np.array([[1, 1, 2], [2, 2, 2], [3, 3, 1], [4, 4, 9], [5, 5, 9]])
    equal, other, _ = wilcoxon_signed_rank(values)
    assert (equal.p, equal.p_holm, equal.difference) == (1, 1, 0)
    assert 0 < other.p <= 1


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(
        holm(np.array([0.02, 0.001, 0.03, 0.9])), [0.06, 0.004, 0.06, 0.9], rtol=1e-12
    )
    np.testing.assert_allclose(holm(np.array([0.6, 0.7])), [1, 1])


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"values has shape \(3,\); expected \[sets, methods\]"):
        average_ranks([1, 2, 3], True)
    with pytest.raises(ValueError, match=r"values\[0, 1\] is nan: leave out sets"):
        average_ranks([[1, np.nan]], True)
    with pytest.raises(ValueError, match=r"values has shape \(4, 2\): expected at least two sets"):
        friedman_test(np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"alpha is 1, expected"):
        nemenyi_critical_difference(3, 4, 1)
    with pytest.raises(ValueError, match=r"methods is 1 and sets 4"):
        nemenyi_critical_difference(1, 4)
    with pytest.raises(ValueError, match=r"against is 3; expected a column from 0 to 2"):
        wilcoxon_signed_rank(np.ones((4, 3)), against=3)
    with pytest.raises(ValueError, match=r"values has shape \(4, 1\): expected at least two"):
        wilcoxon_signed_rank(np.ones((4, 1)))
