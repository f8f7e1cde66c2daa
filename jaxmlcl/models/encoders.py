"""Encoders: networks that turn inputs into representations."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxmlcl.errors import ConfigError
from jaxmlcl.models.convolution import Conv
from jaxmlcl.models.layers import (
    Dropout,
    Statistics,
    batch_norm,
    check_dropout,
    dense,
    kaiming_fan_out,
)


@dataclasses.dataclass(frozen=True)
class Encoder(abc.ABC):
    """What an encoder is made of; `build` gives the Flax module that computes it."""

    @abc.abstractmethod
    def build(self, dtype: Any) -> nn.Module:
        """The Flax module: `apply(variables, inputs, train)` gives representations [B, width]."""

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Width of the representation (units)."""


@dataclasses.dataclass(frozen=True)
class MLP(Encoder):
    """Linear-ReLU-Dropout blocks for vectors (MulSupCon section 5; C-GMVAE appendix)."""

    hidden: tuple[int, ...] = (256, 512, 256)
    """Widths of the layers (units); the last one is the representation."""
    dropout: float = 0.2
    """Probability that a unit is dropped in training."""

    def __post_init__(self) -> None:
        check_dropout("encoder: dropout", self.dropout)
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"encoder: hidden must hold widths of at least 1, not {self.hidden}")

    def build(self, dtype: Any) -> nn.Module:
        """The Flax module."""
        return _MLP(self.hidden, self.dropout, dtype)

    @property
    def width(self) -> int:
        """Width of the representation (units)."""
        return self.hidden[-1]


class _MLP(nn.Module):
    hidden: tuple[int, ...]
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        check_rank("MLP", "vectors", inputs, 2)
        x = inputs.astype(self.dtype)
        for width in self.hidden:
            x = dense(x.shape[-1], width, self.dtype)(x)
            x = Dropout(self.dropout)(nn.relu(x), train)
        return x


@dataclasses.dataclass(frozen=True)
class ResNet(Encoder):
    """Residual network, v1.5 layout (stride in the 3x3), NHWC, global average pool, no classifier.

    Convolutions start from Kaiming normal (fan out); batch normalisation from weight 1, bias 0,
    the last one of a block included (He et al. 2016; torchvision's v1.5).
    """

    depths: tuple[int, ...] = (2, 2, 2, 2)
    """Blocks per group."""
    channels: int = 64
    """Channels of the first group (channels); doubled in each later group."""
    block: Literal["basic", "bottleneck"] = "basic"
    """Two 3x3 convolutions, or 1x1-3x3-1x1 with four times the channels at the end."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """7x7 stride 2 with max pooling, or one 3x3 for small images."""
    norm: Literal["batch", "group"] = "batch"
    """Batch normalisation, or group normalisation (32 groups, fewer where they do not divide the
    channels), which does not look at other samples."""
    statistics: Statistics = "global"
    """Batch normalisation by the mean and variance of the whole batch, or of each device's rows."""
    remat: Literal["none", "convolutions", "blocks"] = "none"
    """What the backward pass computes again instead of keeping it: nothing, all of a block but its
    convolutions, or whole blocks, of which only the inputs are kept."""

    def __post_init__(self) -> None:
        if not self.depths or min(self.depths) < 1 or self.channels < 1:
            raise ConfigError(
                f"encoder: depths {self.depths} and channels {self.channels} must be at least 1"
            )

    def build(self, dtype: Any) -> nn.Module:
        """The Flax module."""
        return _ResNet(
            self.depths,
            self.channels,
            self.block,
            self.stem,
            self.norm,
            self.statistics,
            self.remat,
            dtype,
        )

    @property
    def width(self) -> int:
        """Width of the representation (units)."""
        return (
            self.channels * 2 ** (len(self.depths) - 1) * (4 if self.block == "bottleneck" else 1)
        )


class _ResNet(nn.Module):
    depths: tuple[int, ...]
    channels: int
    block: str
    stem: str
    norm: str
    statistics: Statistics
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        check_rank("ResNet", "images", inputs, 4)
        x = inputs.astype(self.dtype)
        if self.stem == "imagenet":
            x = _conv(self.channels, 7, 2, self.dtype)(x)
            x = nn.relu(_norm(self, train)(x))
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        else:
            x = _conv(self.channels, 3, 1, self.dtype)(x)
            x = nn.relu(_norm(self, train)(x))
        block: Any = _Block
        if self.remat != "none":
            policy = _keep_convolutions if self.remat == "convolutions" else None
            block = nn.remat(_Block, static_argnums=(2,), policy=policy)
        for index, (group, position) in enumerate(
            (group, position)
            for group, depth in enumerate(self.depths)
            for position in range(depth)
        ):
            stride = 2 if group > 0 and position == 0 else 1
            # Named as Flax would, so that parameters have the same names with and without remat.
            x = block(
                self.channels * 2**group,
                stride,
                self.block,
                self.norm,
                self.statistics,
                self.dtype,
                name=f"_Block_{index}",
            )(x, train)
        return x.mean(axis=(1, 2), dtype=jnp.promote_types(self.dtype, jnp.float32))


class _Block(nn.Module):
    channels: int
    stride: int
    block: str
    norm: str
    statistics: Statistics
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.block == "basic":
            plan = [(self.channels, 3, self.stride), (self.channels, 3, 1)]
        else:
            plan = [
                (self.channels, 1, 1),
                (self.channels, 3, self.stride),
                (4 * self.channels, 1, 1),
            ]
        y = x
        for position, (channels, size, stride) in enumerate(plan):
            y = _conv(channels, size, stride, self.dtype)(y)
            y = _norm(self, train)(y)
            if position < len(plan) - 1:
                y = nn.relu(y)
        if x.shape != y.shape:
            x = _conv(plan[-1][0], 1, self.stride, self.dtype)(x)
            x = _norm(self, train)(x)
        return nn.relu(x + y)


def _norm(of: Any, train: bool) -> nn.Module:
    """The normalisation that a network or block is made with."""
    if of.norm == "batch":
        return batch_norm(train, of.dtype, of.statistics)
    return GroupNorm(dtype=of.dtype, param_dtype=jnp.promote_types(of.dtype, jnp.float32))


class GroupNorm(nn.Module):
    """Group normalisation in 32 groups, or as many as divide both 32 and the channels."""

    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply to x [B, ..., C]."""
        groups = math.gcd(32, x.shape[-1])
        norm = nn.GroupNorm(groups, epsilon=1e-5, dtype=self.dtype, param_dtype=self.param_dtype)
        return norm(x)


def _keep_convolutions(primitive: Any, *_: Any, **__: Any) -> bool:
    """What is kept for the backward pass: what is dear to compute again."""
    return primitive.name in ("conv_general_dilated", "dot_general")


def check_rank(name: str, kind: str, inputs: jax.Array, rank: int) -> None:
    """Refuse inputs that an encoder is not for.

    Raises:
      ConfigError: naming both.

    Example:
      >>> check_rank("MLP", "vectors", jnp.ones((2, 3)), 2)
    """
    if inputs.ndim != rank:
        raise ConfigError(
            f"encoder: {name} takes {kind}, not inputs of shape {inputs.shape[1:]}; choose the "
            "encoder that fits the data"
        )


def _conv(channels: int, size: int, stride: int, dtype: Any) -> nn.Module:
    kind = jnp.promote_types(dtype, jnp.float32)
    return Conv(channels, size, stride, kaiming_fan_out, dtype, kind)
