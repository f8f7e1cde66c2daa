"""Sharding: the device mesh, the placement of the state, and the contrastive loss over a mesh."""

from jaxmlcl.sharding.contrast import STRATEGIES, multi_positive_infonce, strategy_bytes
from jaxmlcl.sharding.mesh import (
    BATCH,
    MeshSpec,
    batch_sharding,
    own_blocks,
    place_rows,
    place_whole,
    replicated,
)

__all__ = [
    "BATCH",
    "STRATEGIES",
    "MeshSpec",
    "batch_sharding",
    "multi_positive_infonce",
    "own_blocks",
    "place_rows",
    "place_whole",
    "replicated",
    "strategy_bytes",
]
