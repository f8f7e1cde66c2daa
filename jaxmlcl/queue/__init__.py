"""The momentum queue: the most recent keys with their labels and sample ids, first in, first out.

A queue is a plain pytree of arrays. Every key has a sequence number, counted from 0, and lives in
slot (number mod capacity); `Queue.count` is the number of the next key. All functions are pure,
work under `jax.jit` with donation, and compile once: how full the queue is lives in `count`, not
in a shape. Shapes: Q capacity, D embedding width, L labels, B keys added at a time, n shards.

A queue of n shards can live on n devices, slot s on device s mod n: its arrays stand in storage
order, in which row d * (Q / n) + r holds slot r * n + d. Where the rows of a batch lie in the same
way, enqueueing needs no communication, and what is held is what one device would hold.

- `init`, `enqueue`: an empty queue, and one with more keys
- `contents`, `visible`, `known_labels`, `sequence_numbers`, `fill_fraction`: what is in it
- `class_sums`, `visible_class_sums`: sums of the keys of each label, if the queue carries them
- `slot_order`, `shard`, `portable`, `placed`: from one number of shards to another
"""

from ._enqueue import enqueue
from ._order import placed, portable, shard, slot_order
from ._queue import (
    CAPACITY_LIMIT,
    FILLS,
    UNKNOWN,
    Queue,
    contents,
    fill_fraction,
    init,
    known_labels,
    sequence_numbers,
    visible,
)
from ._sums import class_sums, visible_class_sums

__all__ = [
    "CAPACITY_LIMIT",
    "FILLS",
    "UNKNOWN",
    "Queue",
    "class_sums",
    "contents",
    "enqueue",
    "fill_fraction",
    "init",
    "known_labels",
    "placed",
    "portable",
    "sequence_numbers",
    "shard",
    "slot_order",
    "visible",
    "visible_class_sums",
]
