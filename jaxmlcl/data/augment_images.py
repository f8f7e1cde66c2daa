"""Augmentation of photographs on the device, as torchvision defines it, on values from 0 to 1.

All operations take [B, H, W, 3] in any floating type and keep it. Only the random crop is made
elsewhere, while images are read, where an image still has all its pixels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxmlcl.data.augment import Augmentation
from jaxmlcl.errors import ConfigError
from jaxmlcl.random import Rows, bernoulli, uniform

# Weights of red, green and blue in the grey value (ITU-R 601, as torchvision rounds them).
_GREY = (0.2989, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(Augmentation):
    """Shows a random part of a photograph, cut while it is read and resized to `images.size`.

    Example:
      >>> RandomResizedCrop().scale
      (0.08, 1.0)
    """

    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height."""
    on_host: ClassVar[bool] = True

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ConfigError(
                f"augmentation: RandomResizedCrop: scale must rise within 0 (left out) and 1, not "
                f"{self.scale}"
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(
                f"augmentation: RandomResizedCrop: ratio must rise above 0, not {self.ratio}"
            )

    def apply(self, inputs: jax.Array, words: Rows) -> jax.Array:
        """The inputs, which have been cut already."""
        del words
        return inputs


@dataclasses.dataclass(frozen=True)
class HorizontalFlip(Augmentation):
    """Mirrors images at their vertical axis.

    Example:
      >>> from jaxmlcl.random import row_words
      >>> words = row_words(jax.random.key(0), jnp.arange(1))
      >>> x = jnp.arange(6.0).reshape(1, 1, 2, 3)
      >>> HorizontalFlip(1.0).apply(x, words)[0, 0, 0].tolist()
      [3.0, 4.0, 5.0]
    """

    probability: float = 0.5
    """Probability that an image is mirrored."""

    def __post_init__(self) -> None:
        _check_probability(self, self.probability)

    def apply(self, inputs: jax.Array, words: Rows) -> jax.Array:
        """Images [B, H, W, C], some of them mirrored."""
        return _sometimes(words, self.probability, inputs[:, :, ::-1], inputs)


@dataclasses.dataclass(frozen=True)
class ColorJitter(Augmentation):
    """Changes brightness, contrast, saturation and hue of colour images, in random order.

    Factors are uniform in [max(0, 1 - v), 1 + v], the hue's turn in [-v, v] (of a whole turn).

    Example:
      >>> from jaxmlcl.random import row_words
      >>> words = row_words(jax.random.key(0), jnp.arange(2))
      >>> x = jnp.full((2, 4, 4, 3), 0.5)
      >>> bool(jnp.allclose(ColorJitter(0.0, 0.0, 0.0, 0.0).apply(x, words), x))
      True
    """

    brightness: float = 0.4
    """Largest relative change of brightness."""
    contrast: float = 0.4
    """Largest relative change of contrast."""
    saturation: float = 0.4
    """Largest relative change of saturation."""
    hue: float = 0.1
    """Largest turn of the hue (fraction of a whole turn)."""
    probability: float = 0.8
    """Probability that an image is changed at all."""

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            _check_at_least_0(self, name)
        if not 0 <= self.hue <= 0.5:
            raise ConfigError(
                f"augmentation: ColorJitter: hue must be between 0 and 0.5, not {self.hue}"
            )
        _check_probability(self, self.probability)

    def apply(self, inputs: jax.Array, words: Rows) -> jax.Array:
        """Images [B, H, W, 3] with other colours."""
        _check_colour(self, inputs)
        draws = uniform(words, 9)
        reach = (self.brightness, self.contrast, self.saturation)
        low = jnp.array([max(0.0, 1.0 - v) for v in reach])
        high = jnp.array([1.0 + v for v in reach])
        factors = low + (high - low) * draws[:, :3]
        turn = (2.0 * draws[:, 3] - 1.0) * self.hue
        x = color_jitter(inputs, factors, turn, draws[:, 4:8])
        return _where(draws[:, 8] < self.probability, x, inputs)


@dataclasses.dataclass(frozen=True)
class Grayscale(Augmentation):
    """Takes the colour from images, which keep three channels.

    Example:
      >>> from jaxmlcl.random import row_words
      >>> words = row_words(jax.random.key(0), jnp.arange(1))
      >>> x = jnp.array([[[[1.0, 0.0, 0.0]]]])
      >>> [round(v, 4) for v in Grayscale(1.0).apply(x, words)[0, 0, 0].tolist()]
      [0.2989, 0.2989, 0.2989]
    """

    probability: float = 0.2
    """Probability that an image loses its colour."""

    def __post_init__(self) -> None:
        _check_probability(self, self.probability)

    def apply(self, inputs: jax.Array, words: Rows) -> jax.Array:
        """Images [B, H, W, 3], some of them grey."""
        _check_colour(self, inputs)
        return _sometimes(
            words, self.probability, jnp.broadcast_to(grey(inputs), inputs.shape), inputs
        )


@dataclasses.dataclass(frozen=True)
class GaussianBlur(Augmentation):
    """Blurs images with a Gaussian of a random width; edges are mirrored.

    Example:
      >>> from jaxmlcl.random import row_words
      >>> words = row_words(jax.random.key(0), jnp.arange(1))
      >>> x = jnp.ones((1, 8, 8, 3))
      >>> bool(jnp.allclose(GaussianBlur(probability=1.0, kernel=3).apply(x, words), 1.0))
      True
    """

    sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation (pixels)."""
    kernel: int = 23
    """Width of the kernel (pixels), odd; a tenth of the image's side is usual."""
    probability: float = 0.5
    """Probability that an image is blurred."""

    def __post_init__(self) -> None:
        _check_probability(self, self.probability)
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ConfigError(
                f"augmentation: GaussianBlur: kernel must be odd and positive, not {self.kernel}"
            )
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ConfigError(
                f"augmentation: GaussianBlur: sigma must rise above 0, not {self.sigma}"
            )

    def apply(self, inputs: jax.Array, words: Rows) -> jax.Array:
        """Images [B, H, W, C], some of them blurred."""
        if self.kernel // 2 >= min(inputs.shape[1:3]):
            raise ConfigError(
                f"augmentation: GaussianBlur: a kernel of {self.kernel} is too wide for images of "
                f"{inputs.shape[1]} x {inputs.shape[2]}"
            )
        draws = uniform(words, 2)
        sigma = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * draws[:, 0]
        return _where(draws[:, 1] < self.probability, blur(inputs, sigma, self.kernel), inputs)


@dataclasses.dataclass(frozen=True)
class RandAugment(Augmentation):
    """Some of 14 operations in turn, each drawn anew, of one magnitude (Cubuk et al. 2020).

    Identity, shear and translation along x and y, rotation, brightness, colour, contrast,
    sharpness, posterise, solarise, automatic contrast and equalisation, with torchvision's ranges;
    moved images are read at the nearest pixel, and what they do not cover is black.

    Example:
      >>> from jaxmlcl.random import row_words
      >>> words = row_words(jax.random.key(0), jnp.arange(2))
      >>> RandAugment().apply(jnp.ones((2, 8, 8, 3)), words).shape
      (2, 8, 8, 3)
    """

    operations: int = 2
    """How many operations in turn (count)."""
    magnitude: int = 9
    """How strong they are: the bin, from 0."""
    bins: int = 31
    """How many magnitudes there are (count)."""

    def __post_init__(self) -> None:
        if self.operations < 0 or self.bins < 2 or not 0 <= self.magnitude < self.bins:
            raise ConfigError(
                f"augmentation: RandAugment: operations ({self.operations}) must be at least 0 and "
                f"magnitude ({self.magnitude}) below bins ({self.bins})"
            )

    def apply(self, inputs: jax.Array, words: Rows) -> jax.Array:
        """Images [B, H, W, 3], each changed by operations of its own."""
        _check_colour(self, inputs)
        draws = uniform(words, 2 * self.operations)
        x = inputs
        for turn in range(self.operations):
            chosen = jnp.floor(draws[:, 2 * turn] * len(OPERATIONS)).astype(jnp.int32)
            negative = draws[:, 2 * turn + 1] < 0.5
            x = rand_augment(x, chosen, negative, self.magnitude / (self.bins - 1))
        return x


Strategy = Literal["simclr", "simple", "randaugment", "eval"]


def strategy(name: Strategy) -> tuple[Augmentation, ...]:
    """The augmentation of a stage by name.

    - simclr: random crop, flip, colour jitter, grey (MulSupCon's pretraining; its authors have no
      blur)
    - simple: random crop and flip
    - randaugment: crop of at least .875 of the area, flip, RandAugment (MulCon's first stage)
    - eval: nothing: the central crop

    Raises:
      ConfigError: another name.

    Example:
      >>> [type(operation).__name__ for operation in strategy("simple")]
      ['RandomResizedCrop', 'HorizontalFlip']
    """
    known: dict[str, tuple[Augmentation, ...]] = {
        "simclr": (RandomResizedCrop(), HorizontalFlip(), ColorJitter(), Grayscale()),
        "simple": (RandomResizedCrop(), HorizontalFlip()),
        "randaugment": (RandomResizedCrop(scale=(0.875, 1.0)), HorizontalFlip(), RandAugment()),
        "eval": (),
    }
    if name not in known:
        raise ConfigError(f"augmentation: no strategy {name!r}; there are {', '.join(known)}")
    return known[name]


def normalize(inputs: jax.Array, mean: jax.Array, deviation: jax.Array) -> jax.Array:
    """(x - mean) / deviation per channel, computed in at least float32.

    Args:
      inputs: [..., C].
      mean, deviation: [C].

    Example:
      >>> normalize(jnp.ones((1, 3)), jnp.full(3, 0.5), jnp.full(3, 0.25)).tolist()
      [[2.0, 2.0, 2.0]]
    """
    wide = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    return ((wide - mean) / deviation).astype(inputs.dtype)


def grey(x: jax.Array) -> jax.Array:
    """Grey value of colour images [..., 3], [..., 1].

    Example:
      >>> round(float(grey(jnp.ones(3))[0]), 4)
      0.9999
    """
    r, g, b = x[..., :1], x[..., 1:2], x[..., 2:]
    return _GREY[0] * r + _GREY[1] * g + _GREY[2] * b


def color_jitter(x: jax.Array, factors: jax.Array, turn: jax.Array, keys: jax.Array) -> jax.Array:
    """Brightness, contrast, saturation and hue, in the order of keys.

    Three of the four blend with a reference and differ in it only; the turn of the hue, the dear
    one, stands once between what comes before and what comes after it, instead of at each of four
    places.

    Args:
      x: [B, H, W, 3], values from 0 to 1.
      factors: [B, 3] of brightness, contrast and saturation.
      turn: [B], how far the hue is turned (fraction of a whole turn).
      keys: [B, 4] of brightness, contrast, saturation and hue; the smallest is first.

    Example:
      >>> x = jnp.full((1, 1, 1, 3), 0.25)
      >>> factors = jnp.array([[2.0, 1.0, 1.0]])
      >>> color_jitter(x, factors, jnp.zeros(1), jnp.arange(4.0)[None])[0, 0, 0].tolist()
      [0.5, 0.5, 0.5]
    """
    order = jnp.argsort(keys[:, :3], axis=1)
    before = (keys[:, :3] < keys[:, 3:]).sum(axis=1)
    for place in range(3):
        x = _where(place < before, _blend_one(x, factors, order[:, place]), x)
    x = turn_hue(x, turn)
    for place in range(3):
        x = _where(place >= before, _blend_one(x, factors, order[:, place]), x)
    return x


def turn_hue(x: jax.Array, turn: jax.Array) -> jax.Array:
    """Images [B, H, W, 3] with the hue turned by a fraction [B] of a whole turn.

    Example:
      >>> red = jnp.array([[[[1.0, 0.0, 0.0]]]])
      >>> [round(v, 5) for v in turn_hue(red, jnp.array([1 / 3]))[0, 0, 0].tolist()]
      [0.0, 1.0, 0.0]
    """
    kind = x.dtype
    x = x.astype(jnp.promote_types(kind, jnp.float32))
    r, g, b = x[..., 0], x[..., 1], x[..., 2]
    high, low = x.max(-1), x.min(-1)
    spread = high - low
    divisor = jnp.where(spread == 0, 1.0, spread)
    # Sixths of a turn from red.
    hue = jnp.where(
        high == r,
        (g - b) / divisor,
        jnp.where(high == g, 2.0 + (b - r) / divisor, 4.0 + (r - g) / divisor),
    )
    hue = jnp.mod(hue / 6.0 + turn[:, None, None], 1.0) * 6.0
    # Channel n of a colour of that hue: high less the spread times a trapezoid of the hue.
    channels = [jnp.mod(n + hue, 6.0) for n in (5.0, 3.0, 1.0)]
    turned = [high - spread * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0) for k in channels]
    return jnp.stack(turned, axis=-1).astype(kind)


def blur(x: jax.Array, sigma: jax.Array, kernel: int) -> jax.Array:
    """Images [B, H, W, C] blurred by Gaussians of deviations [B] cut to `kernel` pixels.

    Each axis is one matrix product with the kernel as a band, mirrored at the edges: accelerators
    are made for it, and every image has a kernel of its own.

    Example:
      >>> blur(jnp.ones((1, 4, 4, 1)), jnp.ones(1), 3).shape
      (1, 4, 4, 1)
    """
    reach = kernel // 2
    offsets = jnp.arange(-reach, reach + 1)
    weights = jnp.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    weights = weights / weights.sum(axis=1, keepdims=True)

    def band(size: int) -> jax.Array:
        source = jnp.abs(jnp.arange(size)[:, None] + offsets)
        source = jnp.minimum(source, 2 * (size - 1) - source)
        ones = jax.nn.one_hot(source, size, dtype=weights.dtype)
        return jnp.einsum("bk,ikj->bij", weights, ones)

    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    exact = jax.lax.Precision.HIGHEST
    rows = jnp.einsum("bij,bjwc->biwc", band(x.shape[1]), wide, precision=exact)
    return jnp.einsum("bij,bhjc->bhic", band(x.shape[2]), rows, precision=exact).astype(x.dtype)


# torchvision's names and order; what moves an image stands at 1 to 5.
OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)


def rand_augment(
    x: jax.Array, chosen: jax.Array, negative: jax.Array, strength: float
) -> jax.Array:
    """One of RandAugment's operations for each image.

    Images are rows of one program, so all operations are computed; those of a kind share what is
    dear: one reading of moved pixels, one blend, one table.

    Args:
      x: [B, H, W, 3], values from 0 to 1.
      chosen: [B], which of `OPERATIONS`.
      negative: [B] bool, whether a signed magnitude is negative.
      strength: from 0 to 1, of the largest magnitude.

    Example:
      >>> x = jnp.full((1, 2, 2, 3), 0.25)
      >>> solarize = jnp.array([OPERATIONS.index("Solarize")])
      >>> round(255 * float(rand_augment(x, solarize, jnp.array([False]), 1.0)[0, 0, 0, 0]))
      191
    """
    kind = x.dtype
    x = x.astype(jnp.promote_types(kind, jnp.float32))
    sign = jnp.where(negative, -1.0, 1.0)
    moved = _moved(x, chosen, sign, strength)
    blended = _blended(x, chosen - OPERATIONS.index("Brightness"), 1.0 + 0.9 * strength * sign)
    looked_up = _looked_up(x, chosen - OPERATIONS.index("Posterize"), strength)
    moves = (chosen >= 1) & (chosen < OPERATIONS.index("Brightness"))
    blends = (chosen >= OPERATIONS.index("Brightness")) & (chosen < OPERATIONS.index("Posterize"))
    looks = chosen >= OPERATIONS.index("Posterize")
    result = _where(moves, moved, _where(blends, blended, _where(looks, looked_up, x)))
    return result.astype(kind)


def _moved(x: jax.Array, chosen: jax.Array, sign: jax.Array, strength: float) -> jax.Array:
    """Sheared, translated or rotated: each pixel read where the inverse map points."""
    _, height, width, _ = x.shape
    shear, angle = 0.3 * strength * sign, math.radians(30.0 * strength) * sign
    # Whole pixels, as torchvision rounds them; towards 0.
    along = sign * math.floor(150.0 / 331.0 * width * strength)
    down = sign * math.floor(150.0 / 331.0 * height * strength)
    one, zero = jnp.ones_like(sign), jnp.zeros_like(sign)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # Rows of the map of (x, y, 1), seen from the upper left corner; rotation is about the centre.
    middle = (width / 2.0, height / 2.0)
    maps = [
        [[one, shear, zero], [zero, one, zero]],
        [[one, zero, zero], [shear, one, zero]],
        [[one, zero, -along], [zero, one, zero]],
        [[one, zero, zero], [zero, one, -down]],
        [
            [cos, -sin, middle[0] * (1.0 - cos) + middle[1] * sin],
            [sin, cos, middle[1] * (1.0 - cos) - middle[0] * sin],
        ],
    ]
    table = jnp.stack([jnp.stack([jnp.stack(row, -1) for row in one], -2) for one in maps])
    which = jnp.clip(chosen - 1, 0, len(maps) - 1)
    matrix = table[which, jnp.arange(len(which))]
    # Pixels are squares: their middles lie at halves.
    columns, rows = jnp.arange(width) + 0.5, jnp.arange(height) + 0.5
    grid = jnp.stack(jnp.broadcast_arrays(columns[None, :], rows[:, None], 1.0), -1)
    exact = jax.lax.Precision.HIGHEST
    source = jnp.einsum("bij,hwj->bhwi", matrix, grid, precision=exact)
    u, v = jnp.floor(source[..., 0]).astype(jnp.int32), jnp.floor(source[..., 1]).astype(jnp.int32)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    place = jnp.clip(v, 0, height - 1) * width + jnp.clip(u, 0, width - 1)
    flat = x.reshape(x.shape[0], height * width, 3)
    read = jnp.take_along_axis(flat, place.reshape(len(flat), -1, 1), axis=1).reshape(x.shape)
    return jnp.where(inside[..., None], read, 0.0)


def _blended(x: jax.Array, which: jax.Array, factor: jax.Array) -> jax.Array:
    """Brightness, colour, contrast or sharpness."""
    light = grey(x)
    nine = jax.lax.reduce_window(
        x, jnp.zeros((), x.dtype), jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "VALID"
    )
    inner = (nine + 4.0 * x[:, 1:-1, 1:-1]) / 13.0
    smooth = x.at[:, 1:-1, 1:-1].set(inner)
    reference = _where(which == 1, jnp.broadcast_to(light, x.shape), jnp.zeros_like(x))
    mean = light.mean(axis=(1, 2, 3), keepdims=True)
    reference = _where(which == 2, jnp.broadcast_to(mean, x.shape), reference)
    reference = _where(which == 3, smooth, reference)
    return _blend(x, reference, factor)


def _looked_up(x: jax.Array, which: jax.Array, strength: float) -> jax.Array:
    """Posterise, solarise, automatic contrast or equalise: a table of 256 values per channel."""
    rows = len(x)
    levels = jnp.clip(jnp.round(x * 255.0), 0, 255).astype(jnp.int32)
    value = jnp.arange(256)
    bits = 8 - round(4.0 * strength)
    shape = (rows, 3, 256)
    posterize = jnp.broadcast_to((value >> (8 - bits)) << (8 - bits), shape)
    solarize = jnp.broadcast_to(
        jnp.where(value >= 255.0 * (1.0 - strength), 255 - value, value), shape
    )
    low, high = levels.min(axis=(1, 2))[..., None], levels.max(axis=(1, 2))[..., None]
    # The same fraction for whole numbers, without a scale that would be rounded first.
    stretched = jnp.clip((value - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    autocontrast = jnp.where(high > low, stretched, value)
    counts = jnp.zeros((rows, 3, 256), jnp.int32)
    place = (jnp.arange(rows)[:, None, None, None], jnp.arange(3), levels)
    counts = counts.at[place].add(1)
    filled = jnp.cumsum(counts, axis=-1)
    last = jnp.take_along_axis(counts, high, axis=-1)
    step = (filled[..., -1:] - last) // 255
    table = (filled - counts + step // 2) // jnp.maximum(step, 1)
    equalize = jnp.where(step > 0, jnp.clip(table, 0, 255), value)
    tables = jnp.stack([posterize, solarize, autocontrast, equalize])
    table = tables[jnp.clip(which, 0, 3), jnp.arange(rows)]
    found = table[jnp.arange(rows)[:, None, None, None], jnp.arange(3), levels]
    return found.astype(x.dtype) / 255.0


def _blend_one(x: jax.Array, factors: jax.Array, which: jax.Array) -> jax.Array:
    """Brightness, contrast or saturation, as each image's number says."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    light = grey(wide)
    mean = light.mean(axis=(1, 2, 3), keepdims=True)
    reference = _where(which == 1, mean, jnp.zeros_like(mean))
    reference = _where(which == 2, light, jnp.broadcast_to(reference, light.shape))
    factor = jnp.take_along_axis(factors, which[:, None], axis=1)[:, 0]
    return _blend(wide, reference, factor).astype(x.dtype)


def _blend(x: jax.Array, reference: jax.Array, factor: jax.Array) -> jax.Array:
    f = factor[:, None, None, None].astype(x.dtype)
    return jnp.clip(f * x + (1.0 - f) * reference, 0.0, 1.0)


def _sometimes(words: Rows, probability: float, changed: jax.Array, kept: jax.Array) -> jax.Array:
    return _where(bernoulli(words, 1, probability)[:, 0], changed, kept)


def _where(which: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    """Whole images [B, ...] chosen by [B]."""
    return jnp.where(which[:, None, None, None], yes, no)


def _check_colour(operation: Augmentation, inputs: jax.Array) -> None:
    if inputs.ndim != 4 or inputs.shape[-1] != 3:
        raise ConfigError(
            f"augmentation: {type(operation).__name__} takes colour images, not inputs of shape "
            f"{inputs.shape[1:]}"
        )


def _check_probability(operation: Augmentation, value: float) -> None:
    if isinstance(value, int | float) and not 0 <= value <= 1:
        raise ConfigError(
            f"augmentation: {type(operation).__name__}: probability must be between 0 and 1, not "
            f"{value}"
        )


def _check_at_least_0(operation: Augmentation, name: str) -> None:
    value = getattr(operation, name)
    if isinstance(value, int | float) and not (value >= 0 and math.isfinite(value)):
        raise ConfigError(
            f"augmentation: {type(operation).__name__}: {name} must be finite and at least 0, not "
            f"{value}"
        )
