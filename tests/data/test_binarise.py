"""0/1 labels from label distributions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat

from jaxmlcl.data import logical_labels


def test_golden(golden: dict[str, Any]) -> None:
    entry = golden["le_binarise"]
    found = logical_labels(entry["inputs"]["D"])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, entry["value"]["strict"])


def test_published_labels(shared_data: Path) -> None:
    """Every published file whose distributions are at hand, with no row that differs."""
    folder = shared_data / "distributions"
    sets = sorted(path.stem for path in folder.glob("*.mat"))
    assert len(sets) == 10
    for name in sets:
        published = loadmat(folder / "logical_labels" / f"{name}_binary.mat")["logicalLabel"]
        found = logical_labels(loadmat(folder / f"{name}.mat")["labels"])
        np.testing.assert_array_equal(found, published, err_msg=name)


def test_cumulative_by_loops() -> None:
    degrees = np.random.default_rng(1).dirichlet(np.full(6, 0.8), 50).round(2)
    for threshold in (0.0, 0.3, 0.5, 0.9, 1.0):
        found = logical_labels(degrees, threshold=threshold)
        for row, labels in zip(degrees.tolist(), found, strict=True):
            left, total, expected = list(range(6)), 0.0, [0] * 6
            while left and total <= threshold:
                best = max(left, key=lambda j: (row[j], -j))
                left.remove(best)
                expected[best], total = 1, total + row[best]
            assert labels.tolist() == expected


def test_other_rules_and_ties() -> None:
    degrees = [[0.25, 0.25, 0.25, 0.25], [0.1, 0.5, 0.2, 0.2]]
    by_threshold = logical_labels(degrees, rule="threshold", threshold=0.2)
    np.testing.assert_array_equal(by_threshold, [[1, 1, 1, 1], [0, 1, 0, 0]])
    np.testing.assert_array_equal(
        logical_labels(degrees, rule="top-k", k=2), [[1, 1, 0, 0], [0, 1, 1, 0]]
    )
    # Two quarters are exactly a half, which is not more than a half.
    np.testing.assert_array_equal(logical_labels(degrees)[0], [1, 1, 1, 0])
    assert logical_labels(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize(
    ("degrees", "options", "message"),
    [
        ([0.5, 0.5], {}, r"distributions is float64 of shape \(2,\); expected numbers \[n, L\]"),
        ([["a"]], {}, r"distributions is <U1"),
        ([[0.5, -0.5]], {}, r"distributions\[0, 1\] is -0.5"),
        ([[0.5, np.nan]], {}, r"distributions\[0, 1\] is nan"),
        ([[1.0]], {"rule": "cumulativ"}, "did you mean 'cumulative'"),
        ([[1.0]], {"threshold": 1.5}, r"threshold is 1.5; expected a number from 0 to 1"),
        ([[1.0]], {"rule": "top-k"}, r"k is None with the rule 'top-k'"),
        ([[1.0]], {"k": 1}, r"k is 1 with the rule 'cumulative'"),
        ([[1.0]], {"rule": "top-k", "k": 2}, r"k is 2; expected a whole number from 1 to 1"),
    ],
)
def test_bad_arguments(degrees: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        logical_labels(degrees, **options)
