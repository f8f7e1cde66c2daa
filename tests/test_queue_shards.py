"""A queue of n shards holds, and evicts, what a queue of one does."""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jaxmlcl import queue
from jaxmlcl.sharding import BATCH, MeshSpec

DIM, NUM_LABELS = 3, 4
# (Q, B): B that divides Q, B that does not, B = Q.
SHAPES = [(16, 8), (40, 24), (8, 8)]
ADD = jax.jit(queue.enqueue, donate_argnums=0)
COLLECTIVES = re.compile(
    r"all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter|collective-broadcast"
)


def stream(first: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, labels and ids that tell the sequence number, in order."""
    numbers = np.arange(first, first + size)
    keys = np.random.default_rng(first).normal(size=(size, DIM)).astype(np.float32)
    labels = (numbers[:, None] >> np.arange(NUM_LABELS) & 1).astype(np.uint8)
    return keys, labels, (1000 + numbers).astype(np.int32)


def laid_out(arrays: Any, n: int) -> Any:
    """Row block d holds rows d, d + n, ..."""
    return jax.tree.map(lambda x: np.concatenate([x[d::n] for d in range(n)]), arrays)


def equal(a: queue.Queue, b: queue.Queue) -> None:
    assert a.shards == b.shards
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SHAPES), st.sampled_from([1, 2, 4, 8]), st.integers(0, 12))
def test_holds_and_evicts_what_one_device_does(shape: Any, n: int, steps: int) -> None:
    capacity, size = shape
    held: deque[int] = deque(maxlen=capacity)
    one = queue.init(capacity, DIM, NUM_LABELS)
    many = queue.init(capacity, DIM, NUM_LABELS, shards=n)
    for step in range(steps):
        rows = stream(step * size, size)
        one, many = ADD(one, *rows), ADD(many, *laid_out(rows, n))
        held.extend(rows[2].tolist())
    _, _, ids, valid = (np.asarray(x) for x in queue.contents(many))
    numbers = np.asarray(queue.sequence_numbers(many))
    assert ids[valid][np.argsort(numbers[valid])].tolist() == list(held)
    assert (numbers[~valid] == -1).all()
    # Every row is on the device that owns its slot, which is the one the sample came to.
    devices = np.repeat(np.arange(n), capacity // n)
    assert (numbers[valid] % n == devices[valid]).all()
    equal(queue.slot_order(many), one)
    equal(queue.shard(one, n), many)
    for fill in queue.FILLS:
        seen = [queue.visible(q, size, fill=fill)[3].sum() for q in (one, many)]
        assert int(seen[0]) == int(seen[1])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=8), st.integers(0, 7))
def test_batches_of_several_sizes(sizes: list[int], moves: int) -> None:
    """Multiples of n up to Q, with a change of the number of shards on the way."""
    one, many = queue.init(24, DIM, NUM_LABELS), queue.init(24, DIM, NUM_LABELS, shards=4)
    count = 0
    for step, size in enumerate(4 * s for s in sizes):
        rows = stream(count, size)
        one, many = ADD(one, *rows), ADD(many, *laid_out(rows, many.shards))
        if step == moves:
            many = queue.shard(many, 2)
        count += size
    equal(queue.slot_order(many), one)


@pytest.mark.parametrize(("n", "over"), [(1, 4), (4, 1), (2, 8), (4, 4)])
def test_rows_may_lie_in_another_order(n: int, over: int) -> None:
    one, many = queue.init(24, DIM, NUM_LABELS), queue.init(24, DIM, NUM_LABELS, shards=n)
    mask = np.arange(16 * NUM_LABELS).reshape(16, NUM_LABELS) % 3 > 0
    add = jax.jit(queue.enqueue, static_argnames="interleaved_over")
    for step in range(4):
        rows = (*stream(step * 16, 16), mask)
        one, many = add(one, *rows), add(many, *laid_out(rows, over), interleaved_over=over)
    equal(queue.slot_order(many), one)
    known = queue.known_labels(many)
    np.testing.assert_array_equal(known, laid_out(np.asarray(queue.known_labels(one)), n))


@pytest.mark.parametrize("class_sums", [False, True])
@pytest.mark.parametrize("capacity", [48, 64])
def test_eight_devices_hold_what_one_does_and_do_not_speak(capacity: int, class_sums: bool) -> None:
    size = 32
    mesh = MeshSpec(4, 2).build(jax.devices()[:8])
    rows, whole = NamedSharding(mesh, BATCH), NamedSharding(mesh, PartitionSpec())
    one = queue.init(capacity, DIM, NUM_LABELS, class_sums=class_sums)
    start = queue.init(capacity, DIM, NUM_LABELS, shards=8, class_sums=class_sums)
    places = jax.tree.map(lambda x: whole if x.ndim == 0 else rows, start)
    many = jax.device_put(start, places)
    batch = jax.device_put(laid_out(stream(0, size), 8), rows)
    add = (
        jax.jit(lambda *a: queue.enqueue(*a), donate_argnums=0, out_shardings=places)
        .lower(many, *batch)
        .compile()
    )
    assert not COLLECTIVES.findall(str(add.as_text()))
    for step in range(7):
        batch = stream(step * size, size)
        one = ADD(one, *batch)
        before = many.keys
        many = add(many, *jax.device_put(laid_out(batch, 8), rows))
        assert before.is_deleted()
    assert many.keys.sharding.is_equivalent_to(rows, 2)
    assert {shard.data.shape for shard in many.keys.addressable_shards} == {(capacity // 8, DIM)}
    back = jax.jit(queue.slot_order, out_shardings=whole)(many)
    if class_sums:
        for a, b in zip(queue.class_sums(back), queue.class_sums(one), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        back, one = (dataclasses.replace(q, sums=None, counts=None) for q in (back, one))
    equal(back, one)


@pytest.mark.parametrize(("n", "class_sums"), [(1, False), (8, False), (1, True)])
def test_enqueueing_makes_no_copy_of_a_donated_queue(n: int, class_sums: bool) -> None:
    q = queue.init(2**16, 64, 8, shards=n, class_sums=class_sums)
    rows = jnp.zeros((64, 64)), jnp.zeros((64, 8), jnp.uint8), jnp.zeros(64, jnp.int32)
    memory = jax.jit(queue.enqueue, donate_argnums=0).lower(q, *rows).compile().memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes >= q.keys.nbytes + q.labels.nbytes
    # Of 17 MB; with sums there are a chunk's keys and labels.
    assert memory.temp_size_in_bytes < (2.5e6 if class_sums else 1e5)


def test_the_count_never_overflows_in_shards() -> None:
    start = 2**30 - 8
    one = dataclasses.replace(queue.init(24, DIM, NUM_LABELS), count=jnp.int32(start))
    many = jax.tree.map(jnp.copy, queue.shard(one, 4))
    for step in range(4):
        rows = stream(step * 8, 8)
        one, many = ADD(one, *rows), ADD(many, *laid_out(rows, 4))
    assert int(many.count) < 2**29
    equal(queue.slot_order(many), one)


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="shards is 3; expected a divisor of Q = 8"):
        queue.init(8, DIM, NUM_LABELS, shards=3)
    with pytest.raises(ValueError, match="shards is 0; expected a divisor of Q = 8"):
        queue.init(8, DIM, NUM_LABELS, shards=0)
    four, one = queue.init(8, DIM, NUM_LABELS, shards=4), queue.init(8, DIM, NUM_LABELS)
    with pytest.raises(ValueError, match=r"keys has shape \[6, 3\]; .* over the queue's 4 shards"):
        queue.enqueue(four, *stream(0, 6))
    with pytest.raises(ValueError, match=r"keys has shape \[12, 3\]; expected B <= Q, and Q = 8"):
        queue.enqueue(four, *stream(0, 12))
    with pytest.raises(ValueError, match="interleaved_over is 3; expected a divisor of B = 8"):
        queue.enqueue(one, *stream(0, 8), interleaved_over=3)
    with pytest.raises(ValueError, match="shards is 3; expected a divisor of Q = 8"):
        queue.shard(four, 3)
    with pytest.raises(ValueError, match="shards is 4; expected a divisor of count = 6"):
        queue.shard(queue.enqueue(one, *stream(0, 6)), 4)
