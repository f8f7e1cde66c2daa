"""Vision transformers as encoders: patches, a class token, blocks with normalisation in front."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxmlcl.errors import ConfigError
from jaxmlcl.models.encoders import Encoder, check_rank
from jaxmlcl.models.layers import Dropout, check_dropout

_small = nn.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class ViT(Encoder):
    """Vision transformer (Dosovitskiy et al. 2021), normalisation first, exact GELU.

    Its representation is the class token behind the last normalisation, as in torchvision and timm.
    Linear layers start from a truncated normal of deviation 0.02 and bias 0. `vit("S")`, "B" and
    "L" are the sizes of the paper.
    """

    patch: int = 16
    """Side of a patch (pixels); images divide by it."""
    units: int = 384
    """Width of the tokens (units), which is that of the representation."""
    depth: int = 12
    """Blocks (count)."""
    heads: int = 6
    """Heads of the attention (count); the width divides by it."""
    dropout: float = 0.0
    """Probability that a unit is dropped in training, behind attention and in the MLP."""
    remat: Literal["none", "blocks"] = "none"
    """What the backward pass computes again instead of keeping it: nothing, or whole blocks."""

    def __post_init__(self) -> None:
        check_dropout("encoder: dropout", self.dropout)
        if min(self.patch, self.units, self.depth, self.heads) < 1:
            raise ConfigError("encoder: patch, units, depth and heads must be at least 1")
        if self.units % self.heads:
            raise ConfigError(f"encoder: units ({self.units}) must divide by heads ({self.heads})")

    def build(self, dtype: Any) -> nn.Module:
        """The Flax module."""
        return _ViT(self.patch, self.units, self.depth, self.heads, self.dropout, self.remat, dtype)

    @property
    def width(self) -> int:
        """Width of the representation (units)."""
        return self.units


def vit(size: Literal["S", "B", "L"], patch: int = 16) -> ViT:
    """A vision transformer of one of the usual sizes.

    Raises:
      ConfigError: another size.

    Example:
      >>> vit("B").units, vit("L").depth
      (768, 24)
    """
    sizes = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}
    if size not in sizes:
        raise ConfigError(f"encoder: no ViT {size!r}; there are {', '.join(sizes)}")
    units, depth, heads = sizes[size]
    return ViT(patch, units, depth, heads)


class _ViT(nn.Module):
    patch: int
    units: int
    depth: int
    heads: int
    dropout: float
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        check_rank("ViT", "images", inputs, 4)
        batch, height, width, _ = inputs.shape
        if height % self.patch or width % self.patch:
            raise ConfigError(
                f"encoder: images of {height} x {width} do not divide into patches of {self.patch}"
            )
        kind = jnp.promote_types(self.dtype, jnp.float32)
        x = nn.Conv(
            self.units,
            (self.patch, self.patch),
            strides=self.patch,
            padding="VALID",
            kernel_init=_small,
            dtype=self.dtype,
            param_dtype=kind,
            name="patches",
        )(inputs.astype(self.dtype)).reshape(batch, -1, self.units)
        token = self.param("token", nn.initializers.zeros, (1, 1, self.units), kind)
        places = self.param("positions", _small, (1, x.shape[1] + 1, self.units), kind)
        token = jnp.broadcast_to(token, (batch, 1, self.units)).astype(self.dtype)
        x = jnp.concatenate([token, x], axis=1) + places.astype(self.dtype)
        block: Any = _Block
        if self.remat == "blocks":
            block = nn.remat(_Block, static_argnums=(2,))
        for index in range(self.depth):
            name = f"block_{index}"
            x = block(self.units, self.heads, self.dropout, self.dtype, name=name)(x, train)
        return _norm(self.dtype, "norm")(x)[:, 0].astype(kind)


class _Block(nn.Module):
    units: int
    heads: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        batch, tokens, _ = x.shape
        y = _linear(3 * self.units, self.dtype, "qkv")(_norm(self.dtype, "norm_1")(x))
        y = y.reshape(batch, tokens, 3, self.heads, -1)
        # JAX's attention computes the softmax in float32 whatever the type, Flax's in the type.
        double = y.dtype == jnp.float64
        attention = nn.dot_product_attention if double else jax.nn.dot_product_attention
        y = attention(y[:, :, 0], y[:, :, 1], y[:, :, 2])
        y = _linear(self.units, self.dtype, "out")(y.reshape(batch, tokens, self.units))
        x = x + Dropout(self.dropout, name="dropout_1")(y, train)
        y = _linear(4 * self.units, self.dtype, "up")(_norm(self.dtype, "norm_2")(x))
        y = Dropout(self.dropout, name="dropout_2")(nn.gelu(y, approximate=False), train)
        y = _linear(self.units, self.dtype, "down")(y)
        return x + Dropout(self.dropout, name="dropout_3")(y, train)


def _linear(outputs: int, dtype: Any, name: str) -> nn.Dense:
    kind = jnp.promote_types(dtype, jnp.float32)
    return nn.Dense(outputs, kernel_init=_small, dtype=dtype, param_dtype=kind, name=name)


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
    kind = jnp.promote_types(dtype, jnp.float32)
    return nn.LayerNorm(1e-6, dtype=dtype, param_dtype=kind, name=name)
