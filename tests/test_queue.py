"""The momentum queue against a plain deque, the authors' trace, and what it refuses."""

from __future__ import annotations

from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmlcl import queue
from jaxmlcl.errors import ConfigError
from jaxmlcl.methods import MulSupCon

CAPACITY, DIM, NUM_LABELS = 5, 2, 3
ADD = jax.jit(queue.enqueue, donate_argnums=0)


def batch(first: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, labels and ids that tell the sequence number."""
    numbers = np.arange(first, first + size)
    return (
        np.stack([numbers, -numbers], 1).astype(np.float32),
        (numbers[:, None] >> np.arange(NUM_LABELS) & 1).astype(np.uint8),
        (1000 + numbers).astype(np.int32),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, CAPACITY), max_size=12))
def test_holds_what_a_deque_holds(sizes: list[int]) -> None:
    held: deque[int] = deque(maxlen=CAPACITY)
    q = queue.init(CAPACITY, DIM, NUM_LABELS)
    count = 0
    for size in sizes:
        q = ADD(q, *batch(count, size))
        held.extend(range(count, count + size))
        count += size
    keys, labels, ids, valid = (np.asarray(x) for x in queue.contents(q))
    numbers = np.asarray(queue.sequence_numbers(q))
    assert int(q.count) == count
    assert sorted(numbers[valid]) == list(held)
    assert (numbers[~valid] == -1).all()
    assert (numbers[valid] % CAPACITY == np.flatnonzero(valid)).all()
    assert float(queue.fill_fraction(q)) == pytest.approx(len(held) / CAPACITY)
    for slot in np.flatnonzero(valid):
        expected = batch(int(numbers[slot]), 1)
        np.testing.assert_array_equal(keys[slot], expected[0][0])
        np.testing.assert_array_equal(labels[slot], expected[1][0])
        assert ids[slot] == expected[2][0]
    assert (ids[~valid] == -1).all()
    assert not labels[~valid].any()


def seen(fill: str, steps: int) -> list[list[int]]:
    """Label rows that each step sees with capacity 4 and batches of 2: step number, 0 for none."""
    q = queue.init(4, 1, 3)
    rows = []
    for step in range(1, steps + 1):
        one_hot = np.eye(3, dtype=np.uint8)[[step % 3] * 2]
        _, labels, ids, valid = queue.visible(q, 2, fill=fill)
        stored = [0 if i < 0 else int(i) for i in np.asarray(ids)[np.asarray(valid)]]
        for step_of_row, row in zip(stored, np.asarray(labels)[np.asarray(valid)], strict=True):
            expected = np.eye(3)[step_of_row % 3] if step_of_row else np.zeros(3)
            np.testing.assert_array_equal(row, expected)
        rows.append([step, step, *stored])
        q = queue.enqueue(q, np.ones((2, 1)), one_hot, np.array([step, step]))
    return rows


def test_authors_trace() -> None:
    assert seen("authors", 4) == [
        [1, 1],
        [2, 2, 1, 1, 0, 0],
        [3, 3, 1, 1, 2, 2],
        [4, 4, 3, 3, 2, 2],
    ]


def test_clean_traces() -> None:
    assert seen("after_full", 4) == [[1, 1], [2, 2], [3, 3, 1, 1, 2, 2], [4, 4, 3, 3, 2, 2]]
    assert seen("partial", 3) == [[1, 1], [2, 2, 1, 1], [3, 3, 1, 1, 2, 2]]


def test_visible_when_the_batch_does_not_divide_the_capacity() -> None:
    counts = {fill: [] for fill in queue.FILLS}
    q = queue.init(CAPACITY, DIM, NUM_LABELS)
    for step in range(4):
        for fill in queue.FILLS:
            counts[fill].append(int(queue.visible(q, 2, fill=fill)[3].sum()))
        q = ADD(q, *batch(2 * step, 2))
    assert counts == {
        "authors": [0, 0, 5, 5],
        "after_full": [0, 0, 0, 5],
        "partial": [0, 2, 4, 5],
    }


def test_initial_negatives_are_fixed_unit_vectors() -> None:
    q = queue.init(64, 8, 2)
    np.testing.assert_allclose(np.linalg.norm(q.keys, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(q.keys, queue.init(64, 8, 2).keys)
    assert not np.array_equal(q.keys, queue.init(64, 8, 2, key=jax.random.key(1)).keys)
    # 64 directions on the sphere: their mean is short, about 1 / 8.
    assert np.linalg.norm(np.mean(q.keys, axis=0)) < 0.4
    assert (q.capacity, q.labels.dtype, q.ids.dtype, q.count.dtype) == (
        64,
        "uint8",
        "int32",
        "int32",
    )
    assert queue.init(4, 2, 2, dtype=jnp.bfloat16).keys.dtype == jnp.bfloat16


def test_compiles_once_donates_and_keeps_dtypes() -> None:
    # A function of its own: jit shares its cache between wrappers of the same one.
    add = jax.jit(lambda *a: queue.enqueue(*a), donate_argnums=0)
    look = jax.jit(lambda q: queue.visible(q, 2, fill="authors"))
    q = queue.init(CAPACITY, DIM, NUM_LABELS)
    before = q.keys
    for step in range(6):
        look(q)
        q = add(q, *batch(2 * step, 2))
    assert before.is_deleted()
    assert add._cache_size() == 1
    assert look._cache_size() == 1
    fresh = queue.init(CAPACITY, DIM, NUM_LABELS)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), q) == jax.tree.map(
        lambda x: (x.shape, x.dtype), fresh
    )


def test_vmap_over_queues() -> None:
    one, two = queue.init(4, DIM, NUM_LABELS), queue.init(4, DIM, NUM_LABELS)
    two = queue.enqueue(two, *batch(0, 3))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), one, two)
    batches = [jnp.stack(x) for x in zip(batch(0, 2), batch(3, 2), strict=True)]
    both = jax.vmap(queue.enqueue)(stacked, *batches)
    np.testing.assert_array_equal(both.ids, [[1000, 1001, -1, -1], [1004, 1001, 1002, 1003]])


def test_the_count_never_overflows() -> None:
    """At 2^30 a multiple of the capacity comes off; slots, order and fullness stay."""
    start = 2**30 - 3
    q = queue.Queue(
        keys=jnp.zeros((CAPACITY, DIM)),
        labels=jnp.zeros((CAPACITY, NUM_LABELS), jnp.uint8),
        ids=jnp.zeros(CAPACITY, jnp.int32),
        count=jnp.asarray(start, jnp.int32),
    )
    expected = np.zeros(CAPACITY, int)
    for step in range(4):
        numbers = start + 2 * step + np.arange(2)
        q = ADD(q, np.zeros((2, DIM), np.float32), np.zeros((2, 3), np.uint8), numbers % 1000)
        expected[numbers % CAPACITY] = numbers % 1000
        np.testing.assert_array_equal(q.ids, expected)
        order = np.argsort(queue.sequence_numbers(q))[-2:]
        np.testing.assert_array_equal(q.ids[order], numbers % 1000)
        assert float(queue.fill_fraction(q)) == 1
    assert CAPACITY <= int(q.count) < 2**29
    assert int(q.count) % CAPACITY == (start + 8) % CAPACITY


def test_label_dtypes() -> None:
    q = queue.init(4, DIM, NUM_LABELS)
    keys, labels, ids = batch(1, 2)
    for given_labels in (labels.astype(bool), labels.astype(np.float32), labels.astype(np.int64)):
        stored = queue.enqueue(q, keys, given_labels, ids).labels
        assert stored.dtype == jnp.uint8
        np.testing.assert_array_equal(stored[:2], labels)
    degrees = np.array([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]], np.float32)
    soft = queue.init(4, DIM, NUM_LABELS, label_dtype=jnp.float32)
    np.testing.assert_array_equal(queue.enqueue(soft, keys, degrees, ids).labels[:2], degrees)
    with pytest.raises(
        ValueError, match=r"labels \[2, 3\] float32 are not all 0 or 1, and the queue"
    ):
        queue.enqueue(q, keys, degrees, ids)
    for whole in (np.array([[256, 2, -1], [1, 0, 1]]), np.array([[2**32, 0, 0], [1, 0, 1]])):
        with pytest.raises(
            ValueError, match=r"labels \[2, 3\] int64 are not all 0 or 1, .*labels$"
        ):
            queue.enqueue(q, keys, whole, ids)
    with pytest.raises(ValueError, match=r"labels \[2, 3\] uint8 are not all 0 or 1"):
        queue.enqueue(q, keys, jnp.full((2, 3), 2, jnp.uint8), ids)
    traced = jax.jit(queue.enqueue)(q, keys, np.array([[0, 2, 1], [1, 0, 1]], np.int32), ids)
    assert np.isnan(traced.keys[0]).all()
    np.testing.assert_array_equal(traced.keys[1], keys[1])
    # While tracing nobody can look: the offending row shows as NaN, the other is stored.
    traced = jax.jit(queue.enqueue)(q, keys, degrees, ids)
    assert np.isnan(traced.keys[0]).all()
    np.testing.assert_array_equal(traced.keys[1], keys[1])
    np.testing.assert_array_equal(traced.labels[1], degrees[1])
    good = jax.jit(queue.enqueue)(q, keys, labels.astype(np.float32), ids)
    np.testing.assert_array_equal(good.keys[:2], keys)
    np.testing.assert_array_equal(good.labels[:2], labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": np.ones((6, DIM))}, r"keys has shape \[6, 2\]; expected B <= Q, and Q = 5"),
        ({"keys": np.ones((2, 3))}, r"keys has shape \[2, 3\]; expected \[B, D\] with D = 2"),
        ({"keys": np.ones(2)}, r"keys has shape \[2\]; expected \[B, D\] with D = 2"),
        ({"labels": np.ones((2, 2), int)}, r"labels has shape \[2, 2\]; .* B = 2, L = 3"),
        ({"ids": np.ones(3, int)}, r"ids has shape \[3\]; expected \[B\] with B = 2"),
        ({"ids": np.ones(2)}, r"ids is float\d+ \[2\]; expected integers"),
        ({"ids": np.array([1, 2**31])}, r"ids \[2\] go from 1 to 2147483648; expected"),
    ],
)
def test_enqueue_refuses(change: dict[str, Any], message: str) -> None:
    arguments = dict(zip(("keys", "labels", "ids"), batch(0, 2), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        queue.enqueue(queue.init(CAPACITY, DIM, NUM_LABELS), **arguments)


def test_init_and_visible_refuse() -> None:
    with pytest.raises(ValueError, match="capacity is 0; expected at least 1"):
        queue.init(0, 2, 3)
    with pytest.raises(ValueError, match=f"capacity is {2**29 + 1}; expected at most {2**29}"):
        queue.init(2**29 + 1, 2, 3)
    with pytest.raises(ConfigError, match=f"queue_capacity must be at most {2**29}, not {2**30}"):
        MulSupCon(queue_capacity=2**30)
    with pytest.raises(ValueError, match="dtype is int32; expected floating point"):
        queue.init(4, 2, 3, dtype=jnp.int32)
    with pytest.raises(ValueError, match="label_dtype is complex64; expected an integer or"):
        queue.init(4, 2, 3, label_dtype=jnp.complex64)
    q = queue.init(4, 2, 3)
    with pytest.raises(ValueError, match="fill is 'never'; expected one of authors, after_full"):
        queue.visible(q, 2, fill="never")
    with pytest.raises(ValueError, match="incoming is 5; expected 0 to Q = 4"):
        queue.visible(q, 5)


@pytest.mark.parametrize("label_dtype", [np.uint8, np.int32, np.float32])
def test_unknown_labels_are_told_from_absent_ones(label_dtype: Any) -> None:
    keys, _, ids = batch(0, 3)
    labels = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 0]], np.float32)
    mask = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0]], bool)
    anything = np.where(mask, labels, np.nan)
    q = queue.init(4, DIM, NUM_LABELS, label_dtype=label_dtype)
    assert queue.known_labels(q).all()
    for add in (queue.enqueue, jax.jit(queue.enqueue)):
        held = add(q, keys, anything, ids, mask)
        held_keys, held_labels, _, _ = queue.contents(held)
        np.testing.assert_array_equal(held_labels[:3], np.where(mask, labels, queue.UNKNOWN))
        assert held_labels.dtype == label_dtype
        np.testing.assert_array_equal(held_keys[:3], keys)
        # A slot that was never written is known to have no labels.
        np.testing.assert_array_equal(queue.known_labels(held), [*mask, [True] * 3])
        # A key that comes without a mask is known.
        over = queue.enqueue(held, *batch(3, 2))
        expected = [[True] * 3, *mask[1:], [True] * 3]
        np.testing.assert_array_equal(queue.known_labels(over), expected)


def test_bad_masks_are_refused() -> None:
    keys, labels, ids = batch(0, 3)
    q = queue.init(4, DIM, NUM_LABELS)
    with pytest.raises(ValueError, match=r"label_mask has shape \[3, 2\]; expected \[B, L\]"):
        queue.enqueue(q, keys, labels, ids, np.ones((3, 2)))
    with pytest.raises(ValueError, match="are not all 0 or 1"):
        queue.enqueue(q, keys, np.full((3, 3), 2), ids, np.eye(3))
    flags = queue.init(4, DIM, NUM_LABELS, label_dtype=bool)
    with pytest.raises(ValueError, match="a queue of bool labels, which cannot hold unknown"):
        queue.enqueue(flags, keys, labels, ids, np.eye(3))
