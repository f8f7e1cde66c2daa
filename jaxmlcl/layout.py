"""The layout of a training batch: which sample of the stream each row holds.

On a mesh of n devices, block d of a batch's rows, which lives on device d, holds samples d, d + n,
d + 2 n, ... of the step. So a queue whose slots are dealt out in turn gets every key where it
belongs, whatever the batch size. What depends on a sample's place in the step asks here.

The mesh is the one in the context, `jax.set_mesh(mesh)`, in which a step is traced; without one n
is 1 and rows are in order. Batches that are scored are always in order.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def batch_devices(rows: int) -> int:
    """n, over how many devices so many rows are dealt out; 1 if they do not divide.

    Example:
      >>> batch_devices(6)
      1
    """
    devices = jax.sharding.get_abstract_mesh().size
    return devices if devices > 0 and rows % devices == 0 else 1


def stream_rows(rows: int) -> jax.Array:
    """The place in the step of the sample in each row of a batch, [rows] int32.

    Example:
      >>> stream_rows(4)
      Array([0, 1, 2, 3], dtype=int32)
    """
    row, n = jnp.arange(rows, dtype=jnp.int32), batch_devices(rows)
    if n == 1:
        return row
    share = rows // n
    return row % share * n + row // share


def deal(samples: np.ndarray, devices: int) -> np.ndarray:
    """Samples [B, ...] in the order of the stream, as the rows of a batch for so many devices.

    Raises:
      ValueError: B does not divide over the devices.

    Example:
      >>> deal(np.array([10, 11, 12, 13, 14, 15]), 3)
      array([10, 13, 11, 14, 12, 15])
    """
    if len(samples) % devices:
        raise ValueError(
            f"samples has shape {list(samples.shape)}; expected a B that divides over {devices} "
            "devices"
        )
    if devices == 1:
        return samples
    dealt = samples.reshape(-1, devices, *samples.shape[1:]).swapaxes(0, 1)
    return dealt.reshape(samples.shape)


def micro_batches(batch: PyTree, parts: int) -> PyTree:
    """Arrays [B, ...] as [parts, B / parts, ...]: part m is the m-th block of the stream.

    Every device keeps its rows: it has an equal share of each part.

    Example:
      >>> micro_batches(jnp.arange(4), 2).tolist()
      [[0, 1], [2, 3]]
    """

    def split(rows: jax.Array) -> jax.Array:
        size, rest = rows.shape[0], rows.shape[1:]
        n = batch_devices(size)
        dealt = rows.reshape(n, parts, size // (n * parts), *rest)
        return dealt.swapaxes(0, 1).reshape(parts, size // parts, *rest)

    return jax.tree.map(split, batch)


def joined(parts: PyTree) -> PyTree:
    """Arrays [parts, B / parts, ...] of micro-batches as those [B, ...] of the whole step.

    Example:
      >>> joined(micro_batches(jnp.arange(4), 2)).tolist()
      [0, 1, 2, 3]
    """

    def join(rows: jax.Array) -> jax.Array:
        count, size, *rest = rows.shape
        n = batch_devices(size)
        dealt = rows.reshape(count, n, size // n, *rest)
        return dealt.swapaxes(0, 1).reshape(count * size, *rest)

    return jax.tree.map(join, parts)
