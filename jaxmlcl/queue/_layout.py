"""Interleaved rows: row d * (N / n) + r of the one order is row r * n + d of the other."""

from __future__ import annotations

import jax


def interleaved(rows: jax.Array, parts: int) -> jax.Array:
    """Rows [N, ...] so that part d of `parts` equal ones has the rows d, d + parts, ...

    Example:
        >>> interleaved(jax.numpy.arange(6), 2)
        Array([0, 2, 4, 1, 3, 5], dtype=int32)
    """
    if parts == 1:
        return rows
    turned = rows.reshape(rows.shape[0] // parts, parts, *rows.shape[1:]).swapaxes(0, 1)
    return turned.reshape(rows.shape)


def in_order(rows: jax.Array, parts: int) -> jax.Array:
    """What `interleaved` got.

    Example:
        >>> in_order(jax.numpy.array([0, 2, 4, 1, 3, 5]), 2)
        Array([0, 1, 2, 3, 4, 5], dtype=int32)
    """
    if parts == 1:
        return rows
    turned = rows.reshape(parts, rows.shape[0] // parts, *rows.shape[1:]).swapaxes(0, 1)
    return turned.reshape(rows.shape)
