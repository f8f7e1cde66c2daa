"""The order of labels by resemblance."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmlcl.evaluation import clustered_order


def test_groups_stand_together_however_they_are_numbered() -> None:
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(4), 5)
    centers = generator.normal(size=(4, 16)) * 3
    embeddings = centers[group] + 0.3 * generator.normal(size=(20, 16))
    for seed in range(3):
        mixed = np.random.default_rng(seed).permutation(20)
        products = embeddings[mixed] @ embeddings[mixed].T
        order = clustered_order(products)
        assert sorted(order) == list(range(20))
        found = group[mixed][order]
        assert (found[1:] != found[:-1]).sum() == 3


def test_what_two_labels_have_with_themselves_and_each_other_is_no_difference() -> None:
    """Labels 0 and 2 are alike to all others; only their lengths differ."""
    products = np.array(
        [
            [9.0, 1.0, 0.0, -1.0],
            [1.0, 1.0, 1.0, 0.5],
            [0.0, 1.0, 1.0, -1.0],
            [-1.0, 0.5, -1.0, 1.0],
        ]
    )
    order = clustered_order(products).tolist()
    assert abs(order.index(0) - order.index(2)) == 1


@pytest.mark.parametrize("count", [1, 2])
def test_few_labels_stay_as_they_are(count: int) -> None:
    assert clustered_order(np.ones((count, count))).tolist() == list(range(count))


@pytest.mark.parametrize("values", [np.ones((2, 3)), np.ones(3), np.full((3, 3), np.nan)])
def test_no_square_matrix_of_numbers_is_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected a square matrix of finite numbers"):
        clustered_order(values)
