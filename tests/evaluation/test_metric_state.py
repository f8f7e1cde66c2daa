"""Batches, padding and merging change no bit of any figure."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmlcl.evaluation import THRESHOLD_METRICS, MetricState, multilabel_metrics


def same(a: dict[str, float], b: dict[str, float]) -> None:
    assert list(a) == list(b)
    np.testing.assert_array_equal(list(a.values()), list(b.values()))


def draw_case(seed: int, n: int, num_labels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, num_labels)) < rng.random()).astype(np.uint8)
    scores = rng.random((n, num_labels)).astype(rng.choice([np.float32, np.float64]))
    if rng.random() < 0.5:
        scores = np.round(scores, 1)
    mask = rng.random((n, num_labels)) < rng.choice([0.7, 1.0])
    mask[0, 0] = True
    return scores, labels, mask


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    num_labels=st.integers(1, 9),
    batch=st.integers(1, 41),
)
def test_batch_size_is_invisible(seed: int, n: int, num_labels: int, batch: int) -> None:
    scores, labels, mask = draw_case(seed, n, num_labels)
    state = MetricState.empty(num_labels)
    for start in range(0, n, batch):
        rows = slice(start, start + batch)
        size = len(scores[rows])
        padding = ((0, batch - size), (0, 0))
        state = state.update(
            np.pad(scores[rows], padding, constant_values=np.nan),
            np.pad(labels[rows], padding, constant_values=9),
            where=np.arange(batch) < size,
            label_mask=np.pad(mask[rows], padding, constant_values=True),
        )
    want = multilabel_metrics(scores, labels, label_mask=mask)
    same(state.compute(), want)
    counts_only = MetricState.empty(num_labels, keep_scores=False)
    counts_only = counts_only.update(scores, labels, label_mask=mask)
    same(counts_only.compute(), {name: want[name] for name in THRESHOLD_METRICS})


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), num_labels=st.integers(1, 9))
def test_order_of_rows_and_of_merging_is_invisible(seed: int, n: int, num_labels: int) -> None:
    scores, labels, mask = draw_case(seed, n, num_labels)
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, 4, n)  # rows go to four hosts, some of which may get none
    parts = [
        MetricState.empty(num_labels).update(scores, labels, where=owner == host, label_mask=mask)
        for host in range(4)
    ]
    want = multilabel_metrics(scores, labels, label_mask=mask)
    forward = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    nested = parts[2].merge(parts[0]).merge(parts[3].merge(parts[1]))
    same(forward.compute(), want)
    same(nested.compute(), want)
    order = rng.permutation(n)
    same(multilabel_metrics(scores[order], labels[order], label_mask=mask[order]), want)
    for field in ("rows", "known", "positives", "predicted", "hits", "overlap", "empty", "exact"):
        np.testing.assert_array_equal(getattr(forward.counts, field), getattr(nested.counts, field))


def test_empty_is_neutral() -> None:
    empty = MetricState.empty(2)
    state = empty.update([[0.9, 0.2], [0.4, 0.6]], [[1, 0], [1, 1]])
    same(empty.merge(state).compute(), state.compute())
    same(state.merge(empty).compute(), state.compute())
    same(state.update(np.zeros((0, 2)), np.zeros((0, 2))).compute(), state.compute())
    assert empty.merge(empty).num_rows == 0
    assert empty.arrays().scores.shape == (0, 2)
    with pytest.raises(ValueError, match="no known entry"):
        empty.compute()
    with pytest.raises(ValueError, match="no row has been seen"):
        MetricState.empty(2, keep_scores=False).compute()


def test_state_does_not_change_and_does_not_share_buffers() -> None:
    first = MetricState.empty(1).update([[0.9]], [[1]])
    before = first.compute()
    scores, labels = np.array([[0.8], [0.1]]), np.array([[True], [False]])
    mask = np.array([[True], [False]])
    second = first.update(scores, labels)
    third = first.update(scores, labels, label_mask=mask)
    after = second.compute(), third.compute()
    scores[:], labels[:], mask[:] = 0.0, False, True
    same(first.compute(), before)
    same(second.compute(), after[0])
    same(third.compute(), after[1])
    assert (first.num_rows, second.num_rows, third.num_rows) == (1, 3, 2)
    kept = third.arrays().mask
    assert kept is not None
    assert kept.tolist() == [[True], [True], [False]]


def test_counts_by_hand() -> None:
    state = MetricState.empty(2, thresholds=[0.5, 0.25])
    state = state.update([[0.3, 0.6], [0.1, 0.2], [0.5, 0.9]], [[1, 1], [0, 0], [0, 1]])
    counts = state.counts
    assert state.thresholds.tolist() == [0.25, 0.5]
    assert counts.rows == 3
    assert counts.known.tolist() == [3, 3]
    assert counts.positives.tolist() == [1, 2]
    assert counts.predicted.tolist() == [[2, 2], [1, 2]]
    assert counts.hits.tolist() == [[1, 2], [0, 2]]
    assert counts.overlap.tolist() == [[0, 0, 0, 1, 2], [0, 0, 0, 2, 0]]
    assert counts.empty.tolist() == [1, 1]
    assert counts.exact.tolist() == [2, 1]


def test_conventions_and_thresholds_reach_the_measures() -> None:
    scores, labels, _ = draw_case(3, 20, 4)
    labels[0], scores[0] = 0, 0.0
    state = MetricState.empty(4).update(scores, labels)
    cuts = [0.2, 0.4, 0.6, 0.8]
    for options in ({"threshold": 0.3}, {"threshold": cuts}, {"empty_rows": "one"}):
        arguments: Any = options
        same(state.compute(**arguments), multilabel_metrics(scores, labels, **arguments))
    counts_only = MetricState.empty(4, keep_scores=False).update(scores, labels)
    want = multilabel_metrics(scores, labels, threshold=0.3, empty_rows="one")
    assert counts_only.compute(threshold=0.3, empty_rows="one")["example_f1"] == want["example_f1"]


def test_refusals() -> None:
    state = MetricState.empty(2)
    other: Any
    for other in (
        MetricState.empty(3),
        MetricState.empty(2, keep_scores=False),
        MetricState.empty(2, thresholds=[0.5]),
    ):
        with pytest.raises(ValueError, match="states differ in num_labels, thresholds"):
            state.merge(other)
    with pytest.raises(ValueError, match=re.escape("scores has shape (1, 3), expected [b, 2]")):
        state.update(np.zeros((1, 3)), np.zeros((1, 3)))
    with pytest.raises(ValueError, match=re.escape("where has shape (3,)")):
        state.update(np.zeros((2, 2)), np.zeros((2, 2)), where=[True, True, False])
    counts_only = MetricState.empty(2, keep_scores=False).update([[0.5, 0.5]], [[1, 0]])
    with pytest.raises(ValueError, match="holds counts only"):
        counts_only.arrays()
    for threshold in (0.55, [0.5, 0.5]):
        with pytest.raises(ValueError, match="without kept scores, expected one of"):
            counts_only.compute(threshold=threshold)
