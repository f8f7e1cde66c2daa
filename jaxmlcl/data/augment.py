"""Augmentation on the device: cheap per-element operations inside the training step.

Every random number is keyed by (stage, epoch, sample id, view, operation), so that it depends
neither on the number of devices or workers nor on where in a batch a sample stands.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxmlcl.errors import ConfigError
from jaxmlcl.random import Rows, bernoulli, row_words, uniform


@dataclasses.dataclass(frozen=True)
class Augmentation(abc.ABC):
    """One random operation on a batch of inputs."""

    on_host: ClassVar[bool] = False
    """Whether it is done while inputs are read, instead of on the device."""

    @abc.abstractmethod
    def apply(self, inputs: jax.Array, words: Rows) -> jax.Array:
        """The operation on inputs [B, ...] with one row of random numbers per sample."""


@dataclasses.dataclass(frozen=True)
class ZeroMask(Augmentation):
    """Sets each entry of a vector to zero independently, without rescaling (MulSupCon section 5).

    Example:
      >>> words = row_words(jax.random.key(0), jnp.arange(2))
      >>> float(ZeroMask(probability=1.0).apply(jnp.ones((2, 3)), words).sum())
      0.0
    """

    probability: float = 0.5
    """Probability that an entry is set to zero."""

    def __post_init__(self) -> None:
        _check_range(self, "probability", 1.0)

    def apply(self, inputs: jax.Array, words: Rows) -> jax.Array:
        """Inputs [B, ...] with entries set to zero."""
        keep = bernoulli(words, math.prod(inputs.shape[1:]), 1.0 - self.probability)
        return jnp.where(keep.reshape(inputs.shape), inputs, jnp.zeros((), inputs.dtype))


@dataclasses.dataclass(frozen=True)
class Shift(Augmentation):
    """Moves an image by a whole number of pixels in each direction; edges are repeated.

    Example:
      >>> words = row_words(jax.random.key(0), jnp.arange(2))
      >>> Shift(pixels=1).apply(jnp.ones((2, 4, 4, 1)), words).shape
      (2, 4, 4, 1)
    """

    pixels: int = 4
    """Largest displacement along each axis (pixels)."""

    def __post_init__(self) -> None:
        _check_range(self, "pixels")

    def apply(self, inputs: jax.Array, words: Rows) -> jax.Array:
        """Images [B, H, W, C], each moved by its own displacement."""
        _check_images(self, inputs)
        _, height, width, _ = inputs.shape
        draw = uniform(words, 2, -self.pixels, self.pixels + 1)
        moves = jnp.clip(jnp.floor(draw).astype(jnp.int32), -self.pixels, self.pixels)
        # Repeating the edge is reading at a clipped index: no padded copy is made.
        rows = jnp.clip(jnp.arange(height)[None] + moves[:, :1], 0, height - 1)
        columns = jnp.clip(jnp.arange(width)[None] + moves[:, 1:], 0, width - 1)
        x = jnp.take_along_axis(inputs, rows[:, :, None, None], axis=1)
        return jnp.take_along_axis(x, columns[:, None, :, None], axis=2)


@dataclasses.dataclass(frozen=True)
class Intensity(Augmentation):
    """Scales and offsets an image's values: brightness and contrast around its mean.

    Example:
      >>> words = row_words(jax.random.key(0), jnp.arange(2))
      >>> x = jnp.ones((2, 4, 4, 1))
      >>> bool(jnp.allclose(Intensity(0.0, 0.0).apply(x, words), x))
      True
    """

    brightness: float = 0.2
    """Largest offset (fraction of the value range)."""
    contrast: float = 0.4
    """Largest relative change of the distance from the mean."""

    def __post_init__(self) -> None:
        _check_range(self, "brightness")
        _check_range(self, "contrast")

    def apply(self, inputs: jax.Array, words: Rows) -> jax.Array:
        """Images [B, H, W, C] with changed brightness and contrast."""
        _check_images(self, inputs)
        draw = uniform(words, 2, -1.0, 1.0).astype(inputs.dtype)
        scale = 1.0 + self.contrast * draw[:, 0, None, None, None]
        offset = self.brightness * draw[:, 1, None, None, None]
        mean = inputs.mean(axis=(1, 2, 3), keepdims=True)
        return (inputs - mean) * scale + mean + offset


@dataclasses.dataclass(frozen=True)
class Noise(Augmentation):
    """Adds independent uniform noise of a standard deviation to every pixel.

    Example:
      >>> words = row_words(jax.random.key(0), jnp.arange(2))
      >>> x = Noise(0.1).apply(jnp.zeros((2, 8, 8, 1)), words)
      >>> bool(0.08 < x.std() < 0.12)
      True
    """

    deviation: float = 0.05
    """Standard deviation (fraction of the value range)."""

    def __post_init__(self) -> None:
        _check_range(self, "deviation")

    def apply(self, inputs: jax.Array, words: Rows) -> jax.Array:
        """Inputs [B, ...] with noise added."""
        reach = self.deviation * math.sqrt(3.0)
        noise = uniform(words, math.prod(inputs.shape[1:]), -reach, reach)
        return inputs + noise.reshape(inputs.shape).astype(inputs.dtype)


def augment(
    inputs: jax.Array,
    operations: tuple[Augmentation, ...],
    key: jax.Array,
    epochs: jax.Array,
    ids: jax.Array,
    views: int,
    *,
    viewed: bool = False,
) -> jax.Array:
    """Augmented views of a batch.

    Args:
      inputs: [B, ...].
      operations: applied in order.
      key: the stage's random key.
      epochs: [B] the pass over the data in which each sample is seen.
      ids: [B] sample ids.
      views: how many independent views, V.
      viewed: whether the inputs are views already, [B, V, ...].

    Returns:
      [B, ...] for one view, [B, V, ...] for more.

    Example:
      >>> x = jnp.ones((2, 3))
      >>> key, zero = jax.random.key(0), jnp.zeros(2, int)
      >>> augment(x, (ZeroMask(),), key, zero, jnp.arange(2), views=2).shape
      (2, 2, 3)
    """
    results = []
    for view in range(views):
        x = inputs[:, view] if viewed else inputs
        for position, operation in enumerate(operations):
            if operation.on_host:
                continue
            x = operation.apply(x, row_words(key, epochs, ids, view, position))
        results.append(x)
    return results[0] if views == 1 else jnp.stack(results, axis=1)


def _check_range(operation: Augmentation, field: str, maximum: float = math.inf) -> None:
    value = getattr(operation, field)
    # What is no number is left to the experiment's check, which knows the field's path.
    if isinstance(value, int | float) and not (0 <= value <= maximum and math.isfinite(value)):
        wanted = "finite and at least 0" if maximum == math.inf else f"between 0 and {maximum:g}"
        name = type(operation).__name__
        raise ConfigError(f"augmentation: {name}: {field} must be {wanted}, not {value}")


def _check_images(operation: Augmentation, inputs: jax.Array) -> None:
    if inputs.ndim != 4:
        raise ConfigError(
            f"augmentation: {type(operation).__name__} takes images, not inputs of shape "
            f"{inputs.shape[1:]}"
        )
