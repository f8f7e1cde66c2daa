"""The mass of a row's labels, told from how many labels the rows have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxmlcl.enhancement._mass import expected_mass


def logical(degrees: np.ndarray) -> np.ndarray:
    """Labels in descending order until they sum to more than one half."""
    labels = np.zeros_like(degrees)
    for row, target in zip(degrees, labels, strict=True):
        total = 0.0
        for j in np.argsort(-row, kind="stable"):
            target[j] = 1
            total += row[j]
            if total > 0.5:
                break
    return labels


@pytest.mark.parametrize(
    ("num_labels", "concentration"),
    [(3, 5.0), (4, 40.0), (5, 1.0), (6, 0.3), (18, 30.0), (60, 0.1)],
)
def test_the_mass_of_rows_that_follow_the_model_is_found(
    num_labels: int, concentration: float
) -> None:
    random = np.random.default_rng(num_labels)
    degrees = random.dirichlet(np.full(num_labels, concentration), 1500)
    labels = logical(degrees)
    true = (degrees * labels).sum(1).mean()
    # The number of labels tells the spread; where hardly any row differs, it tells a bound only.
    assert expected_mass(labels) == pytest.approx(true, abs=0.02)


def test_labels_that_differ_between_rows_are_found_too() -> None:
    # Some labels are always more likely than others, which the model does not know.
    random = np.random.default_rng(0)
    degrees = random.dirichlet([4.0, 3.0, 2.0, 1.0, 1.0], 1500)
    labels = logical(degrees)
    assert expected_mass(labels) == pytest.approx((degrees * labels).sum(1).mean(), abs=0.02)


def test_edges() -> None:
    assert expected_mass(np.ones((3, 4))) == 1.0
    assert expected_mass(np.ones((3, 1))) == 1.0
    some = np.array([[1, 1, 0, 0]] * 30 + [[1, 0, 0, 0]] * 30)
    empty = np.zeros((7, 4), int)
    assert expected_mass(np.concatenate([some, empty])) == expected_mass(some)
    full = np.ones((60, 4), int)
    assert expected_mass(np.concatenate([some, full])) == pytest.approx(
        (1 + expected_mass(some)) / 2
    )
    # Nine labels of ten can never be the least that sum to more than one half.
    assert expected_mass(np.arange(10)[None] < np.full((20, 1), 9)) == pytest.approx(0.9)
    with pytest.raises(ValueError, match="no row has a label"):
        expected_mass(empty)


def test_rows_and_columns_may_stand_in_any_order() -> None:
    random = np.random.default_rng(1)
    labels = logical(random.dirichlet(np.ones(6), 200))
    shuffled = random.permutation(random.permutation(labels), axis=1)
    assert expected_mass(shuffled) == expected_mass(labels)


@pytest.mark.parametrize("name", ["SJAFFE", "Yeast_cold", "Yeast_spo5"])
def test_the_mass_of_the_sets_the_rule_was_developed_on(shared_data: Path, name: str) -> None:
    from scipy.io import loadmat

    degrees = loadmat(shared_data / "distributions" / f"{name}.mat")["labels"]
    labels = logical(degrees)
    assert expected_mass(labels) == pytest.approx((degrees * labels).sum(1).mean(), abs=0.015)
