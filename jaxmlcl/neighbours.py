"""Exact nearest neighbours on the device, in blocks, so that memory does not grow with rows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Pair = tuple[jax.Array, jax.Array]

# Distances held at once: 1024 x 4096 of them are 16 MiB.
_QUERIES, _KEYS = 1024, 4096
# Candidates beyond the k that are wanted; their distances are computed anew, without cancellation.
_SPARE = 16
# Numbers of candidates' features held at once while doing so.
_GATHERED = 1 << 22


def nearest(
    queries: ArrayLike, keys: ArrayLike, count: int, *, leave_self_out: bool = False
) -> np.ndarray:
    """Row numbers of the nearest keys by Euclidean distance, nearest first.

        argsort_i (|q - k_i|^2, i) [: count]

    Of equal distances the lower row comes first. Blocks of |q|^2 - 2 q.k + |k|^2 (by matrix
    multiplication, about the mean of the keys) find `count + 16` candidates; their distances are
    then summed anew from the differences, which orders near rows well and makes duplicates equal
    to the bit. A candidate can be missed only where more than 16 keys lie within rounding of the
    last one, some 1e-6 of the squared distance from the mean.

    Args:
      queries: [m, d].
      keys: [n, d].
      count: neighbours wanted, at least 1.
      leave_self_out: queries are the keys themselves, and row i is no neighbour of query i.

    Returns:
      [m, count] int32.

    Raises:
      ValueError: shapes that do not fit, or fewer keys than neighbours.

    Example:
      >>> nearest([[0.0], [5.0]], [[4.0], [1.0], [6.0], [1.0]], 2).tolist()
      [[1, 3], [0, 2]]
      >>> nearest([[0.0], [1.0], [3.0]], [[0.0], [1.0], [3.0]], 1, leave_self_out=True).tolist()
      [[1], [0], [1]]
    """
    q, k = jnp.asarray(queries), jnp.asarray(keys)
    if q.ndim != 2 or k.ndim != 2 or q.shape[1] != k.shape[1]:
        raise ValueError(f"queries {q.shape} and keys {k.shape}: expected [m, d] and [n, d]")
    if leave_self_out and q.shape != k.shape:
        raise ValueError(f"leave_self_out: queries {q.shape} are not the keys {k.shape}")
    most = k.shape[0] - leave_self_out
    if not 1 <= count <= most:
        raise ValueError(f"count is {count}; with these keys it must be from 1 to {most}")
    kind = jnp.promote_types(jnp.result_type(q, k), jnp.float32)
    found = _search(
        q.astype(kind), k.astype(kind), count, min(count + _SPARE, most), leave_self_out
    )
    return np.asarray(found)


@functools.partial(jax.jit, static_argnames=("count", "candidates", "leave_self_out"))
def _search(
    queries: jax.Array, keys: jax.Array, count: int, candidates: int, leave_self_out: bool
) -> jax.Array:
    m, n = queries.shape[0], keys.shape[0]
    # Distances do not change, and less cancels in the expanded square.
    centre = keys.mean(0)
    queries, keys = queries - centre, keys - centre
    width = max(candidates, min(_KEYS, n))
    blocks = -(-n // width)
    padded = jnp.pad(keys, ((0, blocks * width - n), (0, 0)))
    squares = jnp.sum(padded * padded, axis=1)

    def candidates_of(block: Pair) -> jax.Array:
        rows, own = block

        def merge(best: Pair, first: jax.Array) -> tuple[Pair, None]:
            part = jax.lax.dynamic_slice_in_dim(padded, first, width)
            square = jax.lax.dynamic_slice_in_dim(squares, first, width)
            dots = jnp.matmul(rows, part.T, precision=jax.lax.Precision.HIGHEST)
            index = first + jnp.arange(width)
            out = index >= n
            if leave_self_out:
                out = out | (index == own[:, None])
            # |q|^2 is the same for all keys and is left out.
            values, places = jax.lax.top_k(jnp.where(out, -jnp.inf, 2 * dots - square), candidates)
            # Earlier blocks stand first, and top_k keeps the first of equal values.
            values = jnp.concatenate([best[0], values], axis=1)
            places = jnp.concatenate([best[1], first + places], axis=1)
            values, order = jax.lax.top_k(values, candidates)
            return (values, jnp.take_along_axis(places, order, axis=1)), None

        shape = (rows.shape[0], candidates)
        start = (jnp.full(shape, -jnp.inf, rows.dtype), jnp.zeros(shape, jnp.int32))
        (_, places), _ = jax.lax.scan(merge, start, jnp.arange(blocks) * width)
        return places

    def closest(row: Pair) -> jax.Array:
        query, places = row
        places = jnp.sort(places)
        difference = keys[places] - query
        _, order = jax.lax.top_k(-jnp.sum(difference * difference, axis=1), count)
        return places[order]

    own = jnp.arange(m, dtype=jnp.int32)
    found = _in_blocks(candidates_of, (queries, own), _QUERIES)
    held = max(1, _GATHERED // (candidates * keys.shape[1]))
    return jax.lax.map(closest, (queries, found), batch_size=min(held, m))


def _in_blocks(
    function: Callable[[Any], jax.Array], arrays: tuple[jax.Array, ...], size: int
) -> jax.Array:
    """function(arrays), some rows at a time; the last block is filled with zeros."""
    m = arrays[0].shape[0]
    size = min(size, m)
    count = -(-m // size)

    def cut(array: jax.Array) -> jax.Array:
        widths = [(0, count * size - m)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, widths).reshape(count, size, *array.shape[1:])

    found = jax.lax.map(function, tuple(cut(array) for array in arrays))
    return found.reshape(count * size, *found.shape[2:])[:m]
