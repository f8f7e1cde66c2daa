"""The queue's arrays: an empty one, and what is in one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ._layout import interleaved

FILLS = ("authors", "after_full", "partial")

# Stands in the labels of the queue for one that is not known; no label or degree has this value.
UNKNOWN = 2

# Beyond this, `enqueue` takes a multiple of the capacity off the count: slots, order and fullness
# stay, and the 32-bit counter never overflows.
COUNT_LIMIT = 2**30

# The largest Q: with a larger one no multiple of it could be taken off in time.
CAPACITY_LIMIT = COUNT_LIMIT // 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queue:
    """Keys, labels and ids in storage order, and how many keys were ever added.

    Storage order is slot order where `shards` is 1.
    """

    keys: jax.Array
    """[Q, D]; slots that were never written hold random unit vectors."""
    labels: jax.Array
    """[Q, L]; zeros in slots that were never written; UNKNOWN where the label is not known."""
    ids: jax.Array
    """[Q] int32; -1 in slots that were never written."""
    count: jax.Array
    """Scalar int32, the sequence number of the next key. From 2^30 on it is kept below by taking
    off multiples of Q, which changes neither slots nor order."""
    sums: jax.Array | None = None
    """[n, L, D], each shard's sum of its keys of each label; None where they are not carried."""
    counts: jax.Array | None = None
    """[n, L], each shard's number of keys of each label, of the type of `sums`."""
    shards: int = dataclasses.field(default=1, metadata={"static": True})
    """n, the parts the arrays can be split into; it divides Q."""

    @property
    def capacity(self) -> int:
        """Q, the number of slots."""
        return self.keys.shape[0]


def init(
    capacity: int,
    dim: int,
    num_labels: int,
    *,
    dtype: DTypeLike = jnp.float32,
    label_dtype: DTypeLike = jnp.uint8,
    key: jax.Array | None = None,
    shards: int = 1,
    class_sums: bool = False,
) -> Queue:
    """An empty queue: random unit vectors, no labels, ids -1, count 0.

    Args:
        capacity: Q, number of slots, 1 to 2^29.
        dim: D, width of the keys, >= 1.
        num_labels: L, >= 1.
        dtype: floating dtype the keys are stored in; keys of another one are rounded to it.
        label_dtype: uint8 for 0/1 labels; a floating dtype for label distributions.
        key: random key of the unit vectors; None for a fixed one. A slot's vector does not depend
            on the shards.
        shards: n, parts the arrays can be split into; it divides Q.
        class_sums: carry the sums of the keys of each label, in at least float32.

    Returns:
        The queue.

    Raises:
        ValueError: a size below 1, a capacity above 2^29, shards that do not divide it, or a dtype
            that cannot hold keys or labels.

    Example:
        >>> queue = init(capacity=4, dim=2, num_labels=3)
        >>> queue.keys.shape, queue.labels.dtype, int(queue.count)
        ((4, 2), dtype('uint8'), 0)

    Source: MulSupCon (AAAI 2024), initialisation as in the authors' code.
    """
    for argument, size in (("capacity", capacity), ("dim", dim), ("num_labels", num_labels)):
        if size < 1:
            raise ValueError(f"{argument} is {size}; expected at least 1")
    if capacity > CAPACITY_LIMIT:
        raise ValueError(f"capacity is {capacity}; expected at most {CAPACITY_LIMIT}")
    check_shards(shards, capacity)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype is {jnp.dtype(dtype)}; expected floating point")
    if not (jnp.issubdtype(label_dtype, jnp.floating) or is_integer(label_dtype)):
        raise ValueError(
            f"label_dtype is {jnp.dtype(label_dtype)}; expected an integer or floating dtype"
        )
    vectors = jax.random.normal(
        jax.random.key(0) if key is None else key, (capacity, dim), jnp.float32
    )
    vectors = vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    wide = jnp.promote_types(dtype, jnp.float32)
    return Queue(
        keys=interleaved(vectors.astype(dtype), shards),
        labels=jnp.zeros((capacity, num_labels), label_dtype),
        ids=jnp.full(capacity, -1, jnp.int32),
        count=jnp.zeros((), jnp.int32),
        sums=jnp.zeros((shards, num_labels, dim), wide) if class_sums else None,
        counts=jnp.zeros((shards, num_labels), wide) if class_sums else None,
        shards=shards,
    )


def contents(queue: Queue) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Everything in storage order, and which slots have been written.

    Args:
        queue: the queue.

    Returns:
        keys [Q, D], labels [Q, L], ids [Q], valid [Q] (bool).

    Example:
        >>> from jaxmlcl.queue import enqueue
        >>> queue = enqueue(init(3, 2, 1), [[1.0, 0.0]], [[1]], [5])
        >>> contents(queue)[3]
        Array([ True, False, False], dtype=bool)
    """
    return queue.keys, queue.labels, queue.ids, _slots(queue) < queue.count


def known_labels(queue: Queue) -> jax.Array:
    """Which labels of the keys are known, in storage order: the loss's `key_label_mask`.

    Only a queue that was given a `label_mask` needs it. `contents` and `visible` give labels as
    they are stored, so that nothing is computed where everything is known.

    Args:
        queue: the queue.

    Returns:
        [Q, L] bool; True in slots that were never written, whose keys are without labels.

    Example:
        >>> from jaxmlcl.queue import enqueue
        >>> queue = enqueue(init(2, 1, 3), [[1.0]], [[1, 0, 1]], [7], label_mask=[[1, 1, 0]])
        >>> known_labels(queue)
        Array([[ True,  True, False],
               [ True,  True,  True]], dtype=bool)
    """
    return queue.labels != UNKNOWN


def sequence_numbers(queue: Queue) -> jax.Array:
    """The number of the key in each row of the storage: the larger, the more recent.

    Args:
        queue: the queue.

    Returns:
        [Q] int32; -1 for slots that were never written.

    Example:
        >>> from jaxmlcl.queue import enqueue
        >>> queue = init(3, 1, 1)
        >>> for _ in range(2):
        ...     queue = enqueue(queue, [[1.0], [1.0]], [[1], [1]], [0, 1])
        >>> sequence_numbers(queue)
        Array([3, 1, 2], dtype=int32)
    """
    slots = _slots(queue)
    last = queue.count - 1
    return jnp.where(slots < queue.count, last - (last - slots) % queue.capacity, -1)


def visible(
    queue: Queue, incoming: int, *, fill: str = "authors"
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """What a step that is about to enqueue may compare its anchors with.

    Call it before `enqueue`, so that the batch's own keys are not in it twice. The queue is full
    from count >= Q on. What `fill` does until then:

    - `authors`: all Q slots from the step that completes the first fill on (count + incoming >= Q),
      none before. At that one step the slots about to be written are visible as random negatives
      without labels, as in the authors' code.
    - `after_full`: all slots once the queue is full, none before: one step later.
    - `partial`: the slots that have been written.

    Args:
        queue: the queue before the step's keys are added.
        incoming: number of keys the step will add, 0 to Q.
        fill: `authors`, `after_full` or `partial`.

    Returns:
        keys [Q, D], labels [Q, L], ids [Q], valid [Q] (bool): keys that may be compared with.

    Raises:
        ValueError: an unknown `fill`, or `incoming` outside 0 to Q.

    Example:
        >>> from jaxmlcl.queue import enqueue
        >>> queue = enqueue(init(4, 1, 1), [[1.0], [1.0]], [[1], [1]], [0, 1])
        >>> [int(visible(queue, 2, fill=fill)[3].sum()) for fill in FILLS]
        [4, 0, 2]

    Source: MulSupCon (AAAI 2024); `authors` is the order of operations in their code.
    """
    whole = all_visible(queue, incoming, fill)
    keys, labels, ids, valid = contents(queue)
    return keys, labels, ids, valid if whole is None else jnp.broadcast_to(whole, valid.shape)


def fill_fraction(queue: Queue) -> jax.Array:
    """Share of the slots that have been written, 0 to 1.

    Args:
        queue: the queue.

    Returns:
        Float32 scalar.

    Example:
        >>> from jaxmlcl.queue import enqueue
        >>> float(fill_fraction(enqueue(init(4, 1, 1), [[1.0]], [[1]], [0])))
        0.25
    """
    return jnp.minimum(queue.count, queue.capacity).astype(jnp.float32) / queue.capacity


def all_visible(queue: Queue, incoming: int, fill: str) -> jax.Array | None:
    """Whether all slots or none are visible (bool scalar); None: those that have been written."""
    if fill not in FILLS:
        raise ValueError(f"fill is {fill!r}; expected one of {', '.join(FILLS)}")
    if not 0 <= incoming <= queue.capacity:
        raise ValueError(f"incoming is {incoming}; expected 0 to Q = {queue.capacity}")
    if fill == "partial":
        return None
    return queue.count >= queue.capacity - (incoming if fill == "authors" else 0)


def check_shards(shards: int, capacity: int) -> None:
    """Refuse a number of parts that does not divide the capacity."""
    if shards < 1 or capacity % shards:
        raise ValueError(f"shards is {shards}; expected a divisor of Q = {capacity}")


def is_integer(dtype: Any) -> bool:
    """Whether labels or ids of this dtype are whole numbers or booleans."""
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)


def _slots(queue: Queue) -> jax.Array:
    """The slot in each row of the storage, [Q] int32."""
    return interleaved(jnp.arange(queue.capacity, dtype=jnp.int32), queue.shards)
