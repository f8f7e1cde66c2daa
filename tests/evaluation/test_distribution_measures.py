"""Measures of label distributions: by hand, against SciPy, and the golden values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.spatial import distance
from scipy.special import rel_entr

from jaxmlcl.evaluation import DISTRIBUTION_MEASURES, LARGER_IS_BETTER, distribution_measures

RNG = np.random.default_rng(3)


def test_golden(golden: dict[str, Any]) -> None:
    entry = golden["le_metrics"]
    found = distribution_measures(entry["inputs"]["D_pred"], entry["inputs"]["D_true"])
    assert tuple(found) == DISTRIBUTION_MEASURES
    names = {"kl_true_recovered": "kl", "kl_recovered_true": "kl_pred_true_drop_inf"}
    for name, value in found.items():
        np.testing.assert_allclose(value, entry["value"][names.get(name, name)], atol=1e-9)


def test_by_hand() -> None:
    """R = (1/2, 1/2, 0), T = (1/4, 1/4, 1/2)."""
    found = distribution_measures([[0.5, 0.5, 0]], [[0.25, 0.25, 0.5]])
    third = 1 / 3
    expected = {
        "kl_true_recovered": -0.5 * math.log(2) + 0.5 * math.log(0.5 / np.finfo(float).eps),
        "kl_recovered_true": math.log(2),
        "chebyshev": 0.5,
        "clark": math.sqrt(2 * third**2 + 1),
        "canberra": 2 * third + 1,
        "cosine": 0.25 / (math.sqrt(0.5) * math.sqrt(0.375)),
        "intersection": 0.5,
    }
    assert found == pytest.approx(expected, rel=1e-12)


def test_rows_against_scipy() -> None:
    recovered, true = RNG.dirichlet(np.full(5, 0.7), (2, 40))
    rows = distribution_measures(recovered, true, reduce=False)
    pairs = list(zip(recovered, true, strict=True))
    expected = {
        "kl_true_recovered": rel_entr(true, recovered).sum(1),
        "kl_recovered_true": rel_entr(recovered, true).sum(1),
        "chebyshev": [distance.chebyshev(r, t) for r, t in pairs],
        "canberra": [distance.canberra(r, t) for r, t in pairs],
        "cosine": [1 - distance.cosine(r, t) for r, t in pairs],
        "intersection": [1 - distance.cityblock(r, t) / 2 for r, t in pairs],
        "clark": [
            math.sqrt(sum(distance.canberra([a], [b]) ** 2 for a, b in zip(r, t, strict=True)))
            for r, t in pairs
        ],
    }
    assert set(expected) == set(rows)
    for name, values in expected.items():
        np.testing.assert_allclose(rows[name], values, rtol=1e-9, err_msg=name)
    means = distribution_measures(recovered, true)
    for name, values in rows.items():
        assert means[name] == pytest.approx(np.mean(values), rel=1e-12)


def test_zeros() -> None:
    """Infinite rows leave one mean only; degrees that are both 0 add nothing."""
    recovered = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])
    true = np.array([[1.0, 0.0, 0.0], [0.6, 0.4, 0.0]])
    rows = distribution_measures(recovered, true, reduce=False)
    assert rows["kl_recovered_true"][0] == math.inf
    assert np.isfinite(rows["kl_true_recovered"]).all()
    finite = 0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.4)
    found = distribution_measures(recovered, true)
    assert found["kl_recovered_true"] == pytest.approx(finite, rel=1e-12)
    without = distribution_measures(recovered[:, :2], true[:, :2])
    assert found == pytest.approx(without, rel=1e-12)
    assert math.isnan(distribution_measures(recovered[:1], true[:1])["kl_recovered_true"])


def test_best_values_are_those_of_equal_distributions() -> None:
    recovered, true = RNG.dirichlet(np.ones(4), (2, 30))
    same, other = (distribution_measures(x, true) for x in (true, recovered))
    for name in DISTRIBUTION_MEASURES:
        best = 1.0 if name in LARGER_IS_BETTER else 0.0
        assert same[name] == pytest.approx(best, abs=1e-12)
        assert abs(other[name] - best) > 0.01


def test_published_rows_of_the_linear_reference(shared_data: Any) -> None:
    """L / |L| on Yeast-cold and -spo5, whose divergence is the published row of KM."""
    from scipy.io import loadmat

    folder = shared_data / "distributions"
    for name, expected in (("cold", 0.5857), ("spo", 0.5631), ("spo5", 0.3348)):
        true = loadmat(folder / f"Yeast_{name}.mat")["labels"]
        marks = loadmat(folder / "logical_labels" / f"Yeast_{name}_binary.mat")["logicalLabel"]
        found = distribution_measures(marks / marks.sum(1, keepdims=True), true)
        assert found["kl_recovered_true"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("recovered", "true", "message"),
    [
        ([[0.5, 0.5]], [[0.5, 0.3, 0.2]], r"recovered has shape \(1, 2\) and true \(1, 3\)"),
        ([0.5, 0.5], [[0.5, 0.5]], r"recovered is float64 of shape \(2,\)"),
        ([["a", "b"]], [[0.5, 0.5]], r"recovered is <U1 of shape"),
        ([[0.5, 0.5]], [[1.5, -0.5]], r"true\[0, 1\] is -0.5: degrees must be finite"),
        ([[0.5, np.nan]], [[0.5, 0.5]], r"recovered\[0, 1\] is nan"),
        ([[1.0, 1.0]], [[0.5, 0.5]], r"recovered\[0\] sums to 2: .* must sum to 1"),
    ],
)
def test_bad_arrays(recovered: Any, true: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distribution_measures(recovered, true)
