"""Average precision: ties, masks, types and speed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmlcl.evaluation import average_precision


def slow_average_precision(scores: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The definition, positive by positive."""
    values = np.full(scores.shape[1], np.nan)
    for j, known in enumerate(mask.T):
        s, y = scores[known, j], labels[known, j]
        if y.any():
            values[j] = np.mean([y[s >= cut].sum() / (s >= cut).sum() for cut in s[y == 1]])
    return values


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 25), num_labels=st.integers(1, 20))
def test_equals_the_definition(seed: int, n: int, num_labels: int) -> None:
    rng = np.random.default_rng(seed)
    levels = rng.integers(1, 30)
    scores = rng.integers(-levels, levels + 1, (n, num_labels)) / levels
    labels = rng.random((n, num_labels)) < rng.random()
    mask = rng.random((n, num_labels)) < 0.8
    got = average_precision(scores, labels, label_mask=mask)
    np.testing.assert_allclose(got, slow_average_precision(scores, labels, mask), atol=1e-12)
    whole = slow_average_precision(scores, labels, np.ones_like(mask))
    np.testing.assert_allclose(average_precision(scores, labels), whole, atol=1e-12)


def test_ties_share_a_rank() -> None:
    # All four are tied: each positive sees precision 2/4, whatever the order of the rows.
    assert average_precision(np.zeros((4, 1)), [[1], [0], [1], [0]])[0] == 0.5
    assert average_precision([[0.0], [-0.0]], [[1], [0]])[0] == 0.5


def test_doubles_that_differ_in_the_last_bit_are_not_ties() -> None:
    above, below = 0.5, np.nextafter(0.5, 0)
    assert average_precision([[above], [below]], [[1], [0]])[0] == 1.0
    assert average_precision([[above], [below]], [[0], [1]])[0] == 0.5


def test_scale_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(40, 5)), rng.random((40, 5)) < 0.3
    want = average_precision(scores, labels)
    np.testing.assert_array_equal(average_precision(np.exp(scores), labels), want)
    np.testing.assert_array_equal(average_precision(scores * 1e300, labels), want)


@pytest.mark.slow
def test_a_large_set() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((80_000, 365)) < 0.016
    scores = rng.random((80_000, 365), np.float32)
    values = average_precision(scores, labels)
    assert np.abs(values - 0.016).max() < 0.01
