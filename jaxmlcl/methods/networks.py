"""How methods run Flax modules: pure calls with explicit parameters and statistics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxmlcl.models import Classifier

PyTree = Any


def init_module(
    module: nn.Module, key: jax.Array, inputs: jax.Array, *options: Any
) -> tuple[PyTree, PyTree]:
    """Parameters and batch statistics of a module for inputs of this shape and type."""
    variables = module.init(key, inputs, *options)
    # Flax starts statistics in float32 and lets them become float64 at the first update, which
    # would compile the step twice.
    kind = jnp.promote_types(inputs.dtype, jnp.float32)
    stats = jax.tree.map(lambda x: x.astype(kind), variables.get("batch_stats", {}))
    return variables.get("params", {}), stats


def run_module(
    module: nn.Module,
    params: PyTree,
    stats: PyTree,
    inputs: jax.Array,
    *,
    train: bool,
    key: jax.Array | None = None,
) -> tuple[jax.Array, PyTree]:
    """Output and new batch statistics; in evaluation mode the statistics are used and kept."""
    variables = {"params": params, "batch_stats": stats}
    rngs = {} if key is None else {"dropout": key}
    output: Any
    if not train:
        output = module.apply(variables, inputs, False)
        return output, stats
    output, changed = module.apply(variables, inputs, True, mutable=["batch_stats"], rngs=rngs)
    return output, changed.get("batch_stats", stats)


def init_classifier(labels: int, key: jax.Array, features: jax.Array) -> PyTree:
    """Parameters of a linear classifier of `labels` labels on representations like `features`."""
    return init_module(Classifier(labels, features.dtype), key, features)[0]


def run_classifier(params: PyTree, features: jax.Array, dtype: Any) -> jax.Array:
    """Logits [B, L] of representations [B, width]; `dtype` is the type of the computation."""
    labels = params["Dense_0"]["bias"].shape[-1]
    logits: Any = Classifier(labels, dtype).apply({"params": params}, features)
    return logits
