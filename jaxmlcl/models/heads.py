"""Heads: what stands on top of an encoder."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxmlcl.errors import ConfigError
from jaxmlcl.models.layers import Dropout, Statistics, batch_norm, check_dropout, dense


@dataclasses.dataclass(frozen=True)
class Projection:
    """Linear-BatchNorm-ReLU-Dropout blocks, then a linear layer (MulSupCon, authors' program)."""

    width: int = 256
    """Embedding width D (units)."""
    hidden_layers: int = 1
    """Hidden blocks before the last linear layer."""
    dropout: float = 0.1
    """Probability that a hidden unit is dropped in training."""
    statistics: Statistics = "global"
    """Batch normalisation by the mean and variance of the whole batch, or of each device's rows."""

    def __post_init__(self) -> None:
        check_dropout("head: dropout", self.dropout)
        if self.width < 1 or self.hidden_layers < 0:
            raise ConfigError(
                f"head: width {self.width} must be at least 1, hidden_layers {self.hidden_layers} "
                "at least 0"
            )

    def build(self, dtype: Any) -> nn.Module:
        """The Flax module; its output is not normalised."""
        return _Projection(self.width, self.hidden_layers, self.dropout, self.statistics, dtype)


class _Projection(nn.Module):
    width: int
    hidden_layers: int
    dropout: float
    statistics: Statistics
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        # The authors halve the width where the input is wide enough, else they use the output's.
        inputs = x.shape[-1]
        hidden = inputs // 2 if inputs >= 2 * self.width else self.width
        for _ in range(self.hidden_layers):
            # The authors' layer has a bias, which the normalisation after it cancels: its gradient
            # is rounding, and Adam would turn that into a walk that differs on every mesh.
            x = dense(x.shape[-1], hidden, self.dtype, use_bias=False)(x)
            x = batch_norm(train, self.dtype, self.statistics)(x)
            x = Dropout(self.dropout)(nn.relu(x), train)
        return dense(x.shape[-1], self.width, self.dtype)(x)


class Classifier(nn.Module):
    """One linear layer from the representation to the logits of L labels."""

    labels: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [B, L] of representations [B, width], in at least float32."""
        kind = jnp.promote_types(self.dtype, jnp.float32)
        return dense(x.shape[-1], self.labels, kind)(x.astype(kind))
