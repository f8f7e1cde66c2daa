"""From one number of shards to another: the keys held and the order in which they go stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from ._layout import in_order, interleaved
from ._queue import Queue, check_shards
from ._sums import class_sums, sums_of


def slot_order(queue: Queue) -> Queue:
    """The same queue with one shard, whose arrays stand in slot order.

    Args:
        queue: a queue of any number of shards.

    Returns:
        A queue of one shard; class sums are added up over the shards.

    Example:
        >>> from jaxmlcl.queue import enqueue, init
        >>> queue = init(4, 1, 1, shards=2)
        >>> queue = enqueue(queue, [[1.0], [1.0]], [[1], [1]], [7, 8])
        >>> queue.ids, slot_order(queue).ids
        (Array([ 7, -1,  8, -1], dtype=int32), Array([ 7,  8, -1, -1], dtype=int32))
    """
    if queue.shards == 1:
        return queue
    one = _reordered(queue, lambda rows: in_order(rows, queue.shards), 1)
    if queue.sums is None:
        return one
    sums, counts = class_sums(queue)
    return dataclasses.replace(one, sums=sums[None], counts=counts[None])


def shard(queue: Queue, n: int) -> Queue:
    """The same queue with n shards.

    Args:
        queue: a queue of any number of shards, to which a multiple of n keys was added.
        n: number of shards; it divides Q.

    Returns:
        A queue of n shards; class sums are made anew.

    Raises:
        ValueError: n does not divide Q, or the number of keys added (which under jit nobody can
            check: other numbers would give another order of eviction).

    Example:
        >>> from jaxmlcl.queue import enqueue, init
        >>> queue = enqueue(init(4, 1, 1), [[1.0], [1.0]], [[1], [1]], [7, 8])
        >>> shard(queue, 2).ids
        Array([ 7, -1,  8, -1], dtype=int32)
    """
    return queue if queue.shards == n else placed(slot_order(queue), n)


def portable(queue: Queue) -> Queue:
    """What a checkpoint holds: slot order, with the class sums of each shard as they are.

    The sums are kept apart so that the same number of shards goes on with the same bits; `placed`
    makes the others anew. Nothing is added to a queue in this form.

    Args:
        queue: a queue of n shards.

    Returns:
        Arrays in slot order; sums [n, L, D] and counts [n, L].

    Example:
        >>> from jaxmlcl.queue import init
        >>> portable(init(4, 2, 3, shards=2, class_sums=True)).sums.shape
        (2, 3, 2)
    """
    return _reordered(queue, lambda rows: in_order(rows, queue.shards), 1)


def placed(queue: Queue, n: int) -> Queue:
    """The queue with n shards that a `portable` one stands for.

    Args:
        queue: arrays in slot order; sums of any number of shards.
        n: number of shards; it divides Q and the number of keys added.

    Returns:
        A queue of n shards.

    Raises:
        ValueError: as `shard` does.

    Example:
        >>> from jaxmlcl.queue import init
        >>> placed(portable(init(4, 2, 3, shards=2, class_sums=True)), 4).sums.shape
        (4, 3, 2)
    """
    check_shards(n, queue.capacity)
    count = queue.count
    known = not isinstance(count, jax.core.Tracer) and count.is_fully_addressable
    if known and int(jax.device_get(count)) % n:
        raise ValueError(f"shards is {n}; expected a divisor of count = {int(count)}")
    many = _reordered(queue, lambda rows: interleaved(rows, n), n)
    if many.sums is None or many.sums.shape[0] == n:
        return many
    parts = [x.reshape(n, -1, x.shape[-1]) for x in (many.keys, many.labels)]
    sums, counts = sums_of(parts[0], parts[1])
    return dataclasses.replace(many, sums=sums, counts=counts)


def _reordered(queue: Queue, order: Callable[[jax.Array], jax.Array], shards: int) -> Queue:
    arrays = {name: order(getattr(queue, name)) for name in ("keys", "labels", "ids")}
    return dataclasses.replace(queue, **arrays, shards=shards)
