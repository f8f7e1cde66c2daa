"""Layers and initial values that the field's reference programs use and Flax does not have."""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxmlcl.errors import ConfigError
from jaxmlcl.layout import batch_devices, stream_rows
from jaxmlcl.random import bernoulli, row_words

kaiming_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def check_dropout(field: str, rate: float) -> None:
    """Refuse a rate at which nothing would be kept: the others are scaled by 1 / (1 - rate).

    Example:
      >>> check_dropout("encoder: dropout", 1.0)
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.ConfigError: encoder: dropout must be at least 0 and below 1, not 1.0
    """
    if not 0.0 <= rate < 1.0:
        raise ConfigError(f"{field} must be at least 0 and below 1, not {rate}")


def dense(
    inputs: int, outputs: int, dtype: Any, use_bias: bool = True, name: str | None = None
) -> nn.Dense:
    """A linear layer that starts as PyTorch's does: weight and bias uniform in ±1/sqrt(inputs).

    Args:
      inputs: width of the input (units).
      outputs: width of the output (units).
      dtype: type of the computation; parameters are kept in at least float32.
      use_bias: whether there is a bias.
      name: the layer's name among the parameters; Flax's own if absent.

    Returns:
      The Flax module.

    Example:
      >>> layer = dense(4, 2, jnp.float32)
      >>> layer.init(jax.random.key(0), jnp.ones((3, 4)))["params"]["bias"].shape
      (2,)
    """
    bound = 1.0 / math.sqrt(inputs)

    def uniform(key: jax.Array, shape: Any, kind: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, kind, -bound, bound)

    return nn.Dense(
        outputs,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=jnp.promote_types(dtype, jnp.float32),
        kernel_init=uniform,
        bias_init=uniform,
        name=name,
    )


Statistics = Literal["global", "per_device"]


class BatchNorm(nn.BatchNorm):
    """Batch normalisation, of the global batch or of each device's share of it.

    Under jit the mean over a batch that is split over devices is that of the whole batch. With
    `per_device` each device normalises its own rows by their own mean and variance, as programs
    with one process per device do: nothing travels but the running statistics, which move towards
    the mean over the devices. What is learnt then depends on the number of devices.
    """

    per_device: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, **options: Any
    ) -> jax.Array:
        """Apply to x [B, ..., C]."""
        devices = batch_devices(x.shape[0])
        if not self.per_device or self.use_running_average or devices == 1:
            return super().__call__(x, use_running_average, **options)
        kind = jnp.promote_types(x.dtype, jnp.float32)
        channels = (x.shape[-1],)
        mean_then = self.variable("batch_stats", "mean", jnp.zeros, channels, kind)
        variance_then = self.variable("batch_stats", "var", jnp.ones, channels, kind)
        # Block d of the rows lives on device d; see jaxmlcl.layout.
        blocks = x.reshape(devices, -1, *x.shape[1:]).astype(kind)
        axes = tuple(range(1, blocks.ndim - 1))
        mean = blocks.mean(axes, keepdims=True)
        variance = blocks.var(axes, keepdims=True)
        if not self.is_initializing():
            for then, now in ((mean_then, mean), (variance_then, variance)):
                moved = self.momentum * then.value + (1 - self.momentum) * now.reshape(
                    devices, -1
                ).mean(0)
                then.value = moved.astype(then.value.dtype)
        scale = self.param("scale", self.scale_init, channels, self.param_dtype)
        bias = self.param("bias", self.bias_init, channels, self.param_dtype)
        y = (blocks - mean) * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias
        return y.reshape(x.shape).astype(self.dtype or x.dtype)


def batch_norm(train: bool, dtype: Any, statistics: Statistics) -> nn.Module:
    """Batch normalisation as PyTorch has it: its momentum 0.1 is 0.9 here.

    Args:
      train: whether the batch's own statistics are used, and remembered.
      dtype: type of the computation; parameters are kept in at least float32.
      statistics: of the global batch, or of each device's share.

    Returns:
      The Flax module.

    Example:
      >>> layer = batch_norm(True, jnp.float32, "global")
      >>> sorted(layer.init(jax.random.key(0), jnp.ones((4, 3))))
      ['batch_stats', 'params']
    """
    return BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        param_dtype=jnp.promote_types(dtype, jnp.float32),
        per_device=statistics == "per_device",
    )


class Dropout(nn.Module):
    """Sets a unit to zero with probability `rate`, and scales the others by 1 / (1 - rate).

    The mask comes from `jaxmlcl.random`, keyed by the stream "dropout", the sample's place in the
    step and the unit; the key says which generator draws it.
    """

    rate: float
    samples: bool = True
    """Whether rows are samples, dealt out over devices; other rows are numbered as they stand."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Apply to x [B, ...]; the identity unless `train`."""
        # A rate that is traced, in a program for several, cannot be looked at.
        none = not isinstance(self.rate, jax.Array) and self.rate == 0.0
        if not train or none:
            return x
        rows = stream_rows(x.shape[0]) if self.samples else jnp.arange(x.shape[0])
        words = row_words(self.make_rng("dropout"), rows)
        units = math.prod(x.shape[1:])
        keep = bernoulli(words, units, 1.0 - self.rate).reshape(x.shape)
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros((), x.dtype))
