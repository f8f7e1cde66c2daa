"""Adding keys, in place and without communication."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ._layout import in_order, interleaved
from ._queue import COUNT_LIMIT, UNKNOWN, Queue, is_integer
from ._sums import moved, sums_of


def enqueue(
    queue: Queue,
    keys: ArrayLike,
    labels: ArrayLike,
    ids: ArrayLike,
    label_mask: ArrayLike | None = None,
    *,
    interleaved_over: int | None = None,
) -> Queue:
    """Add keys, in order, over the oldest ones.

    The rows lie as the queue's do, row d * (B / n) + r being the (r * n + d)-th key: then every
    shard gets keys of its own, and nothing passes between devices that hold a part each.

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
        interleaved_over: the n of the rows' order where it is not the queue's number of shards; 1
            for keys in order. Such rows are put into the queue's order first.

    Returns:
        The queue with the keys in slots count, ..., count + B - 1 (mod Q).

    Raises:
        ValueError: B > Q, a B that does not divide over the shards, shapes that do not fit the
            queue or each other, labels other than 0 and 1 for an integer queue, ids that are no
            integers, a mask for a queue of bool labels.

    Example:
        >>> from jaxmlcl.queue import init
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
    n = queue.shards
    lies = n if interleaved_over is None else interleaved_over
    if size % n:
        raise ValueError(
            f"keys has shape {list(shape)}; expected a B that divides over the queue's {n} shards"
        )
    if lies < 1 or size % lies:
        raise ValueError(f"interleaved_over is {lies}; expected a divisor of B = {size}")
    rows = jnp.asarray(keys).astype(queue.keys.dtype)
    if label_mask is not None:
        labels = _masked(labels, label_mask, queue.labels.dtype)
    new_labels, storable = _storable(labels, queue.labels.dtype)
    if label_mask is not None:
        unknown = jnp.asarray(UNKNOWN, new_labels.dtype)
        new_labels = jnp.where(jnp.asarray(label_mask, bool), new_labels, unknown)
    if storable is not None:
        rows = jnp.where(storable[:, None], rows, jnp.nan)

    def incoming(array: jax.Array) -> jax.Array:
        return _split(array if lies == n else interleaved(in_order(array, lies), n), n)

    # Q and B divide by n, so the keys of all shards go to the same rows of their parts.
    start = queue.count // n % (capacity // n)
    rows, new_labels, new_ids = incoming(rows), incoming(new_labels), incoming(_int32(ids))
    all_keys, old_keys = _write(_split(queue.keys, n), rows, start)
    all_labels, old_labels = _write(_split(queue.labels, n), new_labels, start)
    all_ids, _ = _write(_split(queue.ids, n), new_ids, start)
    sums, counts = queue.sums, queue.counts
    if sums is not None and counts is not None:
        carried = sums, counts
        # Once per revolution, where the last slot is written.
        sums, counts = jax.lax.cond(
            queue.count % capacity + size >= capacity,
            lambda: sums_of(all_keys, all_labels),
            lambda: moved(carried, (rows, new_labels), (old_keys, old_labels)),
        )
    count = queue.count + size
    surplus = (COUNT_LIMIT // capacity - 1) * capacity
    return Queue(
        keys=all_keys.reshape(queue.keys.shape),
        labels=all_labels.reshape(queue.labels.shape),
        ids=all_ids.reshape(capacity),
        count=jnp.where(count >= COUNT_LIMIT, count - surplus, count),
        sums=sums,
        counts=counts,
        shards=n,
    )


def _split(rows: jax.Array, parts: int) -> jax.Array:
    return rows.reshape(parts, rows.shape[0] // parts, *rows.shape[1:])


def _write(held: jax.Array, new: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What is held [n, R, ...] with new rows [n, b, ...] from `start` on, and what they replace.

    What is replaced comes in some order. Rows beyond the end go to the beginning, in a second
    round. Scattering the rows would be shorter, but TPUs are slow at it, and XLA on CPUs makes a
    float32 copy of a whole bfloat16 array for it.
    """
    size = new.shape[1]
    first = jnp.minimum(start, held.shape[1] - size)
    # As many rows are beyond the end.
    beyond = start - first
    turned = jnp.roll(new, beyond, axis=1)
    inside = (jnp.arange(size) >= beyond).reshape(1, size, *[1] * (new.ndim - 2))

    def window(i: jax.Array, carried: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        held, old = carried
        at, mine = jnp.where(i == 0, first, 0), inside == (i == 0)
        # Gathered, and needed for what is written: so XLA reads first and writes in place.
        there = held[:, at + jnp.arange(size)]
        rows = jnp.where(mine, turned, there)
        held = jax.lax.dynamic_update_slice_in_dim(held, rows, at, axis=1)
        return held, jnp.where(mine, there, old)

    return jax.lax.fori_loop(0, 2, window, (held, jnp.zeros_like(new)))


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
    if not is_integer(dtype) or array.dtype == bool:
        return jnp.asarray(array).astype(dtype), None
    logical = (array == 0) | (array == 1)
    if isinstance(logical, jax.core.Tracer) or not (
        isinstance(logical, np.ndarray) or logical.is_fully_addressable
    ):
        return (jnp.asarray(array) == 1).astype(dtype), logical.all(-1)
    if not bool(jax.device_get(logical.all())):
        other = "" if is_integer(array.dtype) else f", or init(..., label_dtype={array.dtype})"
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
    if not is_integer(array.dtype) and array.size:
        raise ValueError(f"ids is {array.dtype} {list(array.shape)}; expected integers")
    return array.astype(jnp.int32)
