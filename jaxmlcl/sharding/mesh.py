"""The device mesh and where each array of the state lives on it."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmlcl.errors import ConfigError

AXES = ("data", "fsdp")
BATCH = PartitionSpec(AXES)
# Arrays below this many elements are cheaper to keep whole than to gather.
_SMALLEST_SHARDED = 1024
_TACTICS = ("replicate", "fsdp", "interleave")


@dataclasses.dataclass(frozen=True)
class MeshSpec:
    """Sizes of the mesh axes, and rules that place the state on it."""

    data: int = -1
    """Devices along which only the batch is split (devices); -1 takes what is left."""
    fsdp: int = 1
    """Devices along which batch and parameters are split (devices); -1 takes what is left."""
    rules: tuple[tuple[str, str], ...] = ()
    """(regular expression over the state's path, tactic): the first match places the array; where
    none matches, `split` and `queue` do.
    replicate: whole on every device; fsdp: split along its largest axis that divides over the
    devices of `fsdp`; interleave: split along its first axis over all devices, the slots of a
    queue dealt out in turn."""
    split: Literal["state", "optimizer"] = "state"
    """What is split along `fsdp`: parameters, key encoder and optimiser state alike, or only the
    optimiser's state (ZeRO-1), which leaves forward and backward pass as with `data`."""
    queue: Literal["replicate", "interleave"] = "replicate"
    """Whether every device holds the whole queue, or its slots are dealt out over all devices."""

    def __post_init__(self) -> None:
        for pattern, tactic in self.rules:
            if tactic not in _TACTICS:
                raise ConfigError(
                    f'mesh.rules: unknown tactic "{tactic}" for "{pattern}"; '
                    f"use {', '.join(_TACTICS[:-1])} or {_TACTICS[-1]}"
                )
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(
                    f'mesh.rules: "{pattern}" is not a regular expression: {error}'
                ) from None

    def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh over these devices (all of them by default).

        Raises:
          ConfigError: the sizes do not multiply to the number of devices.

        Example:
          >>> dict(MeshSpec().build(jax.devices()[:1]).shape)
          {'data': 1, 'fsdp': 1}
        """
        try:
            devices = jax.devices() if devices is None else devices
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(
                f"JAX finds no device ({error or 'none of the platforms that were asked for'}); "
                "look at JAX_PLATFORMS and at how JAX is installed"
            ) from None
        sizes = [self.data, self.fsdp]
        known = math.prod(size for size in sizes if size != -1)
        if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
            sizes[sizes.index(-1)] = len(devices) // known
        if min(sizes) < 1 or math.prod(sizes) != len(devices):
            raise ConfigError(
                f"mesh: data={self.data} x fsdp={self.fsdp} does not cover {len(devices)} devices; "
                "give sizes whose product is that number, or one of them as -1"
            )
        # Auto: under Explicit axes a batch-sharded product of anchors and keys is a type error.
        return Mesh(
            np.asarray(devices, dtype=object).reshape(sizes),
            AXES,
            axis_types=(AxisType.Auto,) * len(AXES),
        )

    def tactic(self, path: str) -> str:
        """What the first rule that matches says of an array, those of `split` and `queue` last.

        Example:
          >>> MeshSpec(queue="interleave").tactic("objective/queue/keys")
          'interleave'
          >>> zero1 = MeshSpec(fsdp=8, split="optimizer")
          >>> zero1.tactic("params/encoder/kernel"), zero1.tactic("optimizer/0/mu/encoder/kernel")
          ('replicate', 'fsdp')
        """
        split = "^optimizer/" if self.split == "optimizer" else ""
        rules = (*self.rules, ("queue", self.queue), (split, "fsdp"))
        found = (tactic for pattern, tactic in rules if re.search(pattern, path))
        return next(found, "replicate")

    def place(self, mesh: Mesh, tree: Any) -> Any:
        """Shardings for a pytree of arrays or shapes: the first rule that matches its path.

        Example:
          >>> spec = MeshSpec()
          >>> state = {"queue": jax.ShapeDtypeStruct((4, 2), "float32")}
          >>> spec.place(spec.build(jax.devices()[:1]), state)["queue"].is_fully_replicated
          True
        """

        def one(path: Any, leaf: Any) -> NamedSharding:
            tactic = self.tactic(jax.tree_util.keystr(path, simple=True, separator="/"))
            if tactic == "fsdp":
                return NamedSharding(mesh, _largest_axis(leaf.shape, mesh.shape["fsdp"]))
            if tactic == "interleave" and leaf.ndim and leaf.shape[0] % mesh.size == 0:
                return NamedSharding(mesh, BATCH)
            return NamedSharding(mesh, PartitionSpec())

        return jax.tree_util.tree_map_with_path(one, tree)


def _largest_axis(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    fitting = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or not fitting or math.prod(shape) < _SMALLEST_SHARDED:
        return PartitionSpec()
    axis = max(fitting, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * axis, "fsdp")


@functools.lru_cache(maxsize=16)
def own_blocks(mesh: Mesh) -> tuple[int, ...] | None:
    """The places in the mesh of this process's devices; None where they are all of it."""
    here = jax.process_index()
    blocks = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == here]
    return None if len(blocks) == mesh.size else tuple(blocks)


def place_rows(rows: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays [B, ...], split by rows, of this process's rows of them.

    Args:
      rows: for each array the rows of `own_blocks`, in that order.
      mesh: the devices.
    """
    sharding, blocks = batch_sharding(mesh), own_blocks(mesh)
    if blocks is None:
        return jax.device_put(dict(rows), sharding)
    devices = [mesh.devices.flat[block] for block in blocks]

    def one(array: np.ndarray) -> jax.Array:
        parts = array.reshape(len(blocks), -1, *array.shape[1:])
        size = parts.shape[1] * mesh.size
        pieces = [jax.device_put(part, device) for part, device in zip(parts, devices, strict=True)]
        shape = (size, *array.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, pieces)

    return {name: one(array) for name, array in rows.items()}


def place_whole(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays that every process holds whole, with a sharding."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def one(array: Any) -> jax.Array:
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(one, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Where a batch lives: its first axis over all devices."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())
