"""Sharding: the device mesh and the placement of the state."""

from jaxmlcl.sharding.mesh import BATCH, MeshSpec, batch_sharding, replicated

__all__ = ["BATCH", "MeshSpec", "batch_sharding", "replicated"]
