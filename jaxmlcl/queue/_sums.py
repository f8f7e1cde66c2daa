"""Sums of the keys of each label, carried along with the queue.

The new keys are added, those they replace subtracted; where the last slot is written, the sums are
made anew from what is held, so that rounding does not pile up. Each shard has sums of its own,
which nothing but their reader adds up.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ._queue import UNKNOWN, Queue, all_visible

# Elements of keys and labels that are widened at a time while sums are made anew.
_CHUNK_ELEMENTS = 2**19

Sums = tuple[jax.Array, jax.Array]


def class_sums(queue: Queue) -> Sums:
    """Sum of the keys, and number of keys, of each label: the loss's `class_sums` of what is held.

    Unknown labels count as 0.

    Args:
        queue: a queue made with `class_sums=True`.

    Returns:
        sums [L, D] and counts [L], in at least float32.

    Raises:
        ValueError: the queue carries no sums.

    Example:
        >>> from jaxmlcl.queue import enqueue, init
        >>> queue = init(4, 2, 2, class_sums=True)
        >>> queue = enqueue(queue, [[1.0, 0.0], [0.0, 1.0]], [[1, 0], [1, 1]], [0, 1])
        >>> class_sums(queue)[0]
        Array([[1., 1.],
               [0., 1.]], dtype=float32)
    """
    if queue.sums is None or queue.counts is None:
        raise ValueError("queue has no class sums; expected one of init(..., class_sums=True)")
    sums, counts = queue.sums.sum(0), queue.counts.sum(0)
    if not jnp.issubdtype(queue.labels.dtype, jnp.floating):
        return sums, counts
    # What degrees added and subtracted leave of a label that no key carries any more is rounding,
    # and a mean of it would be anything.
    carried = ((queue.labels > 0) & (queue.labels != UNKNOWN)).any(0)
    return jnp.where(carried[:, None], sums, 0), jnp.where(carried, counts, 0)


def visible_class_sums(queue: Queue, incoming: int, *, fill: str = "authors") -> Sums:
    """`class_sums` of the keys that `visible` shows: zero where it shows none.

    Args:
        queue: a queue made with `class_sums=True`, before the step's keys are added.
        incoming: number of keys the step will add, 0 to Q.
        fill: `authors`, `after_full` or `partial`.

    Returns:
        sums [L, D] and counts [L], in at least float32.

    Raises:
        ValueError: the queue carries no sums; an unknown `fill`, or `incoming` outside 0 to Q.

    Example:
        >>> from jaxmlcl.queue import enqueue, init
        >>> queue = init(4, 1, 1, class_sums=True)
        >>> queue = enqueue(queue, [[0.5], [1.0]], [[1], [1]], [0, 1])
        >>> [float(visible_class_sums(queue, 1, fill=f)[0][0, 0]) for f in ("partial", "authors")]
        [1.5, 0.0]
    """
    sums, counts = class_sums(queue)
    whole = all_visible(queue, incoming, fill)
    if whole is None:
        return sums, counts
    # Slots that were never written have no labels: the sums are right with and without them.
    return jnp.where(whole, sums, 0), jnp.where(whole, counts, 0)


def moved(sums: Sums, new: Sums, old: Sums) -> Sums:
    """Sums of n shards with new keys [n, b, D] and labels [n, b, L] in the place of old ones."""
    kind = sums[0].dtype
    plus, minus = _sum(*new, kind), _sum(*old, kind)
    return sums[0] + (plus[0] - minus[0]), sums[1] + (plus[1] - minus[1])


def sums_of(keys: jax.Array, labels: jax.Array) -> Sums:
    """Sums [n, L, D] and counts [n, L] of keys [n, R, D] with labels [n, R, L], chunk by chunk."""
    kind = jnp.promote_types(keys.dtype, jnp.float32)
    shards, rows, dim = keys.shape
    num_labels = labels.shape[-1]
    chunk = min(rows, max(1, _CHUNK_ELEMENTS // (dim + num_labels)))

    def add(start: Any, size: int, total: Sums) -> Sums:
        part = [jax.lax.dynamic_slice_in_dim(x, start, size, axis=1) for x in (keys, labels)]
        more = _sum(part[0], part[1], kind)
        return total[0] + more[0], total[1] + more[1]

    total = jnp.zeros((shards, num_labels, dim), kind), jnp.zeros((shards, num_labels), kind)
    whole = rows // chunk
    total = jax.lax.fori_loop(0, whole, lambda i, total: add(i * chunk, chunk, total), total)
    return add(whole * chunk, rows % chunk, total) if rows % chunk else total


def _sum(keys: jax.Array, labels: jax.Array, kind: Any) -> Sums:
    known = jnp.where(labels == UNKNOWN, 0, labels).astype(kind)
    sums = jnp.einsum("nbl,nbd->nld", known, keys.astype(kind), precision=jax.lax.Precision.HIGHEST)
    return sums, known.sum(1)
