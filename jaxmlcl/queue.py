"""The momentum queue: the most recent keys with their labels and sample ids, first in, first out.

A queue is a plain pytree of arrays. Every key has a sequence number, counted from 0, and lives in
slot (number mod capacity); `Queue.count` is the number of the next key. All functions are pure,
work under `jax.jit` with donation, and compile once: how full the queue is lives in `count`, not
in a shape. Shapes: Q capacity, D embedding width, L labels, B keys added at a time.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

FILLS = ("authors", "after_full", "partial")

# Stands in the labels of the queue for one that is not known; no label or degree has this value.
UNKNOWN = 2

# Beyond this, `enqueue` takes a multiple of the capacity off the count: slots, order and fullness
# stay, and the 32-bit counter never overflows.
_COUNT_LIMIT = 2**30

# The largest Q: with a larger one no multiple of it could be taken off in time.
CAPACITY_LIMIT = _COUNT_LIMIT // 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queue:
    """Keys, labels and ids in slot order, and how many keys were ever added."""

    keys: jax.Array
    """[Q, D]; slots that were never written hold random unit vectors."""
    labels: jax.Array
    """[Q, L]; zeros in slots that were never written; UNKNOWN where the label is not known."""
    ids: jax.Array
    """[Q] int32; -1 in slots that were never written."""
    count: jax.Array
    """Scalar int32, the sequence number of the next key. From 2^30 on it is kept below by taking
    off multiples of Q, which changes neither slots nor order."""

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
) -> Queue:
    """An empty queue: random unit vectors, no labels, ids -1, count 0.

    Args:
        capacity: Q, number of slots, 1 to 2^29.
        dim: D, width of the keys, >= 1.
        num_labels: L, >= 1.
        dtype: floating dtype the keys are stored in; keys of another one are rounded to it.
        label_dtype: uint8 for 0/1 labels; a floating dtype for label distributions.
        key: random key of the unit vectors; None for a fixed one.

    Returns:
        The queue.

    Raises:
        ValueError: a size below 1, a capacity above 2^29, or a dtype that cannot hold keys or
            labels.

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
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype is {jnp.dtype(dtype)}; expected floating point")
    if not (jnp.issubdtype(label_dtype, jnp.floating) or _is_integer(label_dtype)):
        raise ValueError(
            f"label_dtype is {jnp.dtype(label_dtype)}; expected an integer or floating dtype"
        )
    vectors = jax.random.normal(
        jax.random.key(0) if key is None else key, (capacity, dim), jnp.float32
    )
    return Queue(
        keys=(vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)).astype(dtype),
        labels=jnp.zeros((capacity, num_labels), label_dtype),
        ids=jnp.full(capacity, -1, jnp.int32),
        count=jnp.zeros((), jnp.int32),
    )


def enqueue(
    queue: Queue,
    keys: ArrayLike,
    labels: ArrayLike,
    ids: ArrayLike,
    label_mask: ArrayLike | None = None,
) -> Queue:
    """Add keys, in order, over the oldest ones.

    Labels go into a floating queue as they are. An integer queue takes 0/1 labels of any dtype.
    Labels under jit cannot be checked beforehand: a row that is not 0/1 is then stored with a NaN
    key, so that the next loss is NaN and not quietly that of other labels.

    Args:
        queue: the queue; donate it under jit to update it in place.
        keys: [B, D], B <= Q.
        labels: [B, L], in [0, 1].
        ids: [B] sample ids >= 0 that fit int32, or -1 for keys without one.
        label_mask: [B, L], False for unknown labels, whatever stands in them: UNKNOWN is stored,
            and `known_labels` tells them. None: all are known.

    Returns:
        The queue with the keys in slots count, ..., count + B - 1 (mod Q).

    Raises:
        ValueError: B > Q, shapes that do not fit the queue or each other, labels other than 0 and
            1 for an integer queue, ids that are no integers, a mask for a queue of bool labels.

    Example:
        >>> queue = init(capacity=4, dim=2, num_labels=3)
        >>> queue = enqueue(queue, [[0.6, 0.8]], [[1, 0, 1]], [7])
        >>> queue.ids
        Array([ 7, -1, -1, -1], dtype=int32)
    """
    (capacity, dim), num_labels = queue.keys.shape, queue.labels.shape[1]
    shape, label_shape, id_shape = np.shape(keys), np.shape(labels), np.shape(ids)
    if len(shape) != 2 or shape[1] != dim:
        raise ValueError(f"keys has shape {list(shape)}; expected [B, D] with D = {dim}")
    size = shape[0]
    if size > capacity:
        raise ValueError(f"keys has shape {list(shape)}; expected B <= Q, and Q = {capacity}")
    if label_shape != (size, num_labels):
        raise ValueError(
            f"labels has shape {list(label_shape)}; expected [B, L] with B = {size}, "
            f"L = {num_labels}"
        )
    if id_shape != (size,):
        raise ValueError(f"ids has shape {list(id_shape)}; expected [B] with B = {size}")
    rows = jnp.asarray(keys).astype(queue.keys.dtype)
    if label_mask is not None:
        labels = _masked(labels, label_mask, queue.labels.dtype)
    new_labels, storable = _storable(labels, queue.labels.dtype)
    if label_mask is not None:
        unknown = jnp.asarray(UNKNOWN, new_labels.dtype)
        new_labels = jnp.where(jnp.asarray(label_mask, bool), new_labels, unknown)
    if storable is not None:
        rows = jnp.where(storable[:, None], rows, jnp.nan)
    slots = (queue.count + jnp.arange(size, dtype=jnp.int32)) % capacity
    count = queue.count + size
    surplus = (_COUNT_LIMIT // capacity - 1) * capacity
    return Queue(
        keys=queue.keys.at[slots].set(rows, unique_indices=True),
        labels=queue.labels.at[slots].set(new_labels, unique_indices=True),
        ids=queue.ids.at[slots].set(_int32(ids), unique_indices=True),
        count=jnp.where(count >= _COUNT_LIMIT, count - surplus, count),
    )


def contents(queue: Queue) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Everything in slot order, and which slots have been written.

    Args:
        queue: the queue.

    Returns:
        keys [Q, D], labels [Q, L], ids [Q], valid [Q] (bool).

    Example:
        >>> queue = enqueue(init(3, 2, 1), [[1.0, 0.0]], [[1]], [5])
        >>> contents(queue)[3]
        Array([ True, False, False], dtype=bool)
    """
    return queue.keys, queue.labels, queue.ids, jnp.arange(queue.capacity) < queue.count


def known_labels(queue: Queue) -> jax.Array:
    """Which labels of the keys are known, in slot order: the loss's `key_label_mask`.

    Only a queue that was given a `label_mask` needs it. `contents` and `visible` give labels as
    they are stored, so that nothing is computed where everything is known.

    Args:
        queue: the queue.

    Returns:
        [Q, L] bool; True in slots that were never written, whose keys are without labels.

    Example:
        >>> queue = enqueue(init(2, 1, 3), [[1.0]], [[1, 0, 1]], [7], label_mask=[[1, 1, 0]])
        >>> known_labels(queue)
        Array([[ True,  True, False],
               [ True,  True,  True]], dtype=bool)
    """
    return queue.labels != UNKNOWN


def sequence_numbers(queue: Queue) -> jax.Array:
    """The number of the key in each slot: the larger, the more recent.

    Args:
        queue: the queue.

    Returns:
        [Q] int32; -1 for slots that were never written.

    Example:
        >>> queue = init(3, 1, 1)
        >>> for _ in range(2):
        ...     queue = enqueue(queue, [[1.0], [1.0]], [[1], [1]], [0, 1])
        >>> sequence_numbers(queue)
        Array([3, 1, 2], dtype=int32)
    """
    slots = jnp.arange(queue.capacity, dtype=jnp.int32)
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
        >>> queue = enqueue(init(4, 1, 1), [[1.0], [1.0]], [[1], [1]], [0, 1])
        >>> [int(visible(queue, 2, fill=fill)[3].sum()) for fill in FILLS]
        [4, 0, 2]

    Source: MulSupCon (AAAI 2024); `authors` is the order of operations in their code.
    """
    if fill not in FILLS:
        raise ValueError(f"fill is {fill!r}; expected one of {', '.join(FILLS)}")
    if not 0 <= incoming <= queue.capacity:
        raise ValueError(f"incoming is {incoming}; expected 0 to Q = {queue.capacity}")
    keys, labels, ids, valid = contents(queue)
    if fill == "authors":
        valid = jnp.broadcast_to(queue.count >= queue.capacity - incoming, valid.shape)
    elif fill == "after_full":
        valid = jnp.broadcast_to(queue.count >= queue.capacity, valid.shape)
    return keys, labels, ids, valid


def fill_fraction(queue: Queue) -> jax.Array:
    """Share of the slots that have been written, 0 to 1.

    Args:
        queue: the queue.

    Returns:
        Float32 scalar.

    Example:
        >>> float(fill_fraction(enqueue(init(4, 1, 1), [[1.0]], [[1]], [0])))
        0.25
    """
    return jnp.minimum(queue.count, queue.capacity).astype(jnp.float32) / queue.capacity


def _is_integer(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)


def _masked(labels: ArrayLike, label_mask: ArrayLike, dtype: Any) -> ArrayLike:
    """Labels with 0 where the mask says that they are unknown."""
    if np.shape(label_mask) != np.shape(labels):
        raise ValueError(
            f"label_mask has shape {list(np.shape(label_mask))}; expected [B, L] = "
            f"{list(np.shape(labels))} as labels"
        )
    if jnp.issubdtype(dtype, jnp.bool_):
        raise ValueError(
            "label_mask is given for a queue of bool labels, which cannot hold unknown ones; "
            "expected init(..., label_dtype=uint8)"
        )
    # On the host where both are there, so that the labels that are known can be checked.
    if isinstance(labels, jax.Array) or isinstance(label_mask, jax.Array):
        return jnp.where(jnp.asarray(label_mask, bool), labels, 0)
    return np.where(np.asarray(label_mask, bool), labels, 0)


def _storable(labels: ArrayLike, dtype: Any) -> tuple[jax.Array, jax.Array | None]:
    """Labels in the queue's dtype, and which rows [B] survive that unless all are known to."""
    # NumPy's 64 bits are looked at before JAX cuts them to 32.
    array = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    if not _is_integer(dtype) or array.dtype == bool:
        return jnp.asarray(array).astype(dtype), None
    logical = (array == 0) | (array == 1)
    if isinstance(logical, jax.core.Tracer) or not (
        isinstance(logical, np.ndarray) or logical.is_fully_addressable
    ):
        return (jnp.asarray(array) == 1).astype(dtype), logical.all(-1)
    if not bool(jax.device_get(logical.all())):
        other = "" if _is_integer(array.dtype) else f", or init(..., label_dtype={array.dtype})"
        raise ValueError(
            f"labels {list(array.shape)} {array.dtype} are not all 0 or 1, and the queue stores "
            f"{jnp.dtype(dtype)}; expected 0/1 labels{other}"
        )
    return jnp.asarray(array).astype(dtype), None


def _int32(ids: ArrayLike) -> jax.Array:
    if not isinstance(ids, jax.Array):
        ids = np.asarray(ids)
        if ids.size and (ids.max() > np.iinfo(np.int32).max or ids.min() < -1):
            raise ValueError(
                f"ids {list(ids.shape)} go from {ids.min()} to {ids.max()}; expected -1 to 2^31 - 1"
            )
    array = jnp.asarray(ids)
    if not _is_integer(array.dtype) and array.size:
        raise ValueError(f"ids is {array.dtype} {list(array.shape)}; expected integers")
    return array.astype(jnp.int32)
