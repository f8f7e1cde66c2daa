"""The class sums that a queue carries are those of the keys it holds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmlcl import losses, queue
from jaxmlcl.queue import _sums

DIM, NUM_LABELS = 5, 4
ADD = jax.jit(queue.enqueue, donate_argnums=0)


def rows(seed: int, size: int, soft: bool = False) -> tuple[np.ndarray, ...]:
    """Unit keys, labels and ids, and which labels are known."""
    generator = np.random.default_rng(seed)
    keys = generator.normal(size=(size, DIM))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    labels = generator.random((size, NUM_LABELS))
    labels = labels.astype(np.float32) if soft else (labels < 0.4).astype(np.uint8)
    ids = np.arange(size, dtype=np.int32) + seed * size
    return keys.astype(np.float32), labels, ids, generator.random((size, NUM_LABELS)) < 0.8


def plain(q: queue.Queue, valid: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts from the arrays, in float64."""
    keys = np.asarray(q.keys.astype(jnp.float32), np.float64)
    labels = np.where(queue.known_labels(q), q.labels, 0).astype(np.float64)
    if valid is not None:
        labels = labels * np.asarray(valid)[:, None]
    return labels.T @ keys, labels.sum(0)


def check(found: Any, expected: Any, atol: float = 1e-5) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(16, 8, 1), (24, 16, 4), (40, 24, 8), (8, 8, 2)]),
    st.integers(0, 12),
    st.sampled_from(["logical", "unknown", "distribution"]),
)
def test_sums_are_those_of_what_is_visible(shape: Any, steps: int, kind: str) -> None:
    capacity, size, n = shape
    soft = kind == "distribution"
    q = queue.init(
        capacity,
        DIM,
        NUM_LABELS,
        shards=n,
        class_sums=True,
        label_dtype=jnp.float32 if soft else jnp.uint8,
    )
    for step in range(steps):
        *arrays, known = rows(step, size, soft)
        q = ADD(q, *arrays, *([known] if kind == "unknown" else []))
    check(queue.class_sums(q), plain(q))
    for fill in queue.FILLS:
        keys, labels, _, valid = queue.visible(q, size, fill=fill)
        labels = jnp.where(queue.known_labels(q), labels, 0)
        found = queue.visible_class_sums(q, size, fill=fill)
        check(found, plain(q, valid))
        check(found, losses.class_sums(keys, labels, key_valid=valid))
        assert found[0].dtype == found[1].dtype == jnp.float32


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("soft", [False, True])
def test_rounding_does_not_pile_up(kind: str, soft: bool) -> None:
    """Of the thousands of enqueues only those since the queue was last full count."""
    q = queue.init(
        48,
        DIM,
        NUM_LABELS,
        dtype=kind,
        shards=2,
        class_sums=True,
        label_dtype=jnp.float32 if soft else jnp.uint8,
    )
    keys, labels, ids, _ = rows(0, 400, soft)

    @jax.jit
    def many(q: queue.Queue, first: jax.Array) -> queue.Queue:
        def one(i: jax.Array, q: queue.Queue) -> queue.Queue:
            start = (first + i) * 10 % 390
            part = [jax.lax.dynamic_slice_in_dim(x, start, 10) for x in (keys, labels, ids)]
            return queue.enqueue(q, *part)

        return jax.lax.fori_loop(0, 1000, one, q)

    for thousand in range(4):
        q = many(q, jnp.int32(thousand * 1000 + thousand))
        q = ADD(q, keys[:10], labels[:10], ids[:10])
        check(queue.class_sums(q), plain(q))


def test_sums_are_made_anew_at_the_end_of_a_revolution() -> None:
    q = queue.init(12, DIM, NUM_LABELS, class_sums=True)
    assert q.sums is not None
    assert q.counts is not None
    wrong = queue.Queue(q.keys, q.labels, q.ids, q.count, q.sums + 1, q.counts + 1)
    for step in range(3):
        *arrays, _ = rows(step, 5)
        wrong = ADD(wrong, *arrays)
        off = np.asarray(queue.class_sums(wrong)[1]) - plain(wrong)[1]
        np.testing.assert_allclose(off, 0.0 if step == 2 else 1.0, atol=1e-6)
    check(queue.class_sums(wrong), plain(wrong))


@pytest.mark.parametrize("elements", [9, 30, 64, 10**6])
def test_chunks_make_no_difference(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sums, "_CHUNK_ELEMENTS", elements)
    keys, labels, _, _ = rows(3, 14)
    found = _sums.sums_of(
        jnp.asarray(keys).reshape(2, 7, DIM), jnp.asarray(labels).reshape(2, 7, NUM_LABELS)
    )
    check(found[0], [labels[:7].T @ keys[:7], labels[7:].T @ keys[7:]])
    check(found[1], [labels[:7].sum(0), labels[7:].sum(0)])


def test_from_one_number_of_shards_to_another() -> None:
    q = queue.init(24, DIM, NUM_LABELS, shards=4, class_sums=True)
    for step in range(5):
        *arrays, _ = rows(step, 16)
        q = ADD(q, *arrays)
    saved = queue.portable(q)
    again = queue.placed(saved, 4)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(q), strict=True):
        np.testing.assert_array_equal(a, b)
    for n in (1, 2, 8):
        other = jax.jit(queue.placed, static_argnums=1)(saved, n)
        assert other.sums is not None
        assert other.sums.shape == (n, NUM_LABELS, DIM)
        check(queue.class_sums(other), plain(q))
        np.testing.assert_array_equal(queue.slot_order(other).ids, saved.ids)
        np.testing.assert_array_equal(queue.slot_order(other).keys, saved.keys)
    check(queue.class_sums(queue.slot_order(q)), plain(q))
    check(queue.class_sums(queue.shard(q, 2)), plain(q))


def test_types_and_refusals() -> None:
    half = queue.init(8, DIM, NUM_LABELS, dtype=jnp.bfloat16, class_sums=True)
    assert half.keys.dtype == jnp.bfloat16
    assert half.sums is not None
    assert half.sums.dtype == jnp.float32
    bare = queue.init(8, DIM, NUM_LABELS)
    assert bare.sums is bare.counts is None
    with pytest.raises(ValueError, match=r"queue has no class sums; expected one of init\(..., cl"):
        queue.class_sums(bare)
    with pytest.raises(ValueError, match="fill is 'never'; expected one of authors"):
        queue.visible_class_sums(half, 2, fill="never")
    with pytest.raises(ValueError, match="incoming is 9; expected 0 to Q = 8"):
        queue.visible_class_sums(half, 9)


@pytest.mark.usefixtures("x64")
def test_sums_of_double_precision() -> None:
    q = queue.init(8, DIM, NUM_LABELS, dtype=jnp.float64, class_sums=True)
    for step in range(5):
        *arrays, _ = rows(step, 5)
        q = queue.enqueue(q, *arrays)
    assert queue.class_sums(q)[0].dtype == jnp.float64
    keys, labels = np.asarray(q.keys), np.asarray(q.labels, np.float64)
    check(queue.class_sums(q), (labels.T @ keys, labels.sum(0)), 1e-14)


def test_a_label_that_no_key_carries_any_more_is_exactly_zero() -> None:
    """Degrees that are added and subtracted leave rounding; its mean would be anything."""
    q = queue.init(64, 2, 2, label_dtype=jnp.float32, class_sums=True)
    degrees = np.array([[0.1, 0.7], [0.2, 0.1], [0.7, 0.2]], np.float32)
    keys = np.array([[0.6, 0.8], [0.8, 0.6], [1.0, 0.0]], np.float32)
    step = jax.jit(queue.enqueue)
    # Past the 64th key, where sums are made anew, 63 keys with the first label leave by threes.
    for number in range(22):
        q = step(q, keys, degrees, np.arange(3) + 3 * number)
    for number in range(21):
        q = step(q, keys, degrees * [[0, 1]], np.arange(3) + 3 * number)
    q = step(q, keys[:1], degrees[:1] * [[0, 1]], np.arange(1))
    assert not (np.asarray(q.labels)[:, 0] > 0).any()
    sums, counts = queue.class_sums(q)
    assert counts[0] == 0
    np.testing.assert_array_equal(sums[0], 0)
    assert counts[1] > 0
