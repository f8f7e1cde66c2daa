"""Augmentation of photographs: against Pillow and torchvision on real photographs, and keyed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from jaxmlcl.data.augment import Augmentation, augment
from jaxmlcl.data.augment_images import (
    OPERATIONS,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    RandAugment,
    RandomResizedCrop,
    blur,
    color_jitter,
    grey,
    normalize,
    rand_augment,
    strategy,
    turn_hue,
)
from jaxmlcl.errors import ConfigError
from jaxmlcl.random import row_words

LEVEL = 1.0 / 255.0


@functools.cache
def photographs() -> np.ndarray:
    """Four parts of the photographs that come with scikit-learn, uint8 [4, 96, 128, 3]."""
    return np.stack(
        [
            image[at : at + 96, at : at + 128]
            for image in load_sample_images().images
            for at in (90, 200)
        ]
    )


def unit() -> jax.Array:
    return jnp.asarray(photographs() / 255.0, jnp.float32)


def levels(x: Any) -> np.ndarray:
    """Values from 0 to 1 as levels from 0 to 255, not rounded."""
    return np.asarray(x, np.float64) * 255.0


def pillow(function: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(function(Image.fromarray(x))) for x in photographs()]).astype(float)


def jittered(
    brightness: float = 1,
    contrast: float = 1,
    saturation: float = 1,
    hue: float = 0,
    order: tuple[int, ...] = (0, 1, 2, 3),
) -> np.ndarray:
    x = unit()
    factors = jnp.tile(jnp.array([[brightness, contrast, saturation]]), (len(x), 1))
    keys = jnp.tile(jnp.argsort(jnp.array([order]), axis=1), (len(x), 1)).astype(float)
    return levels(color_jitter(x, factors, jnp.full(len(x), hue), keys))


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours_are_those_of_pillow(name: str, factor: float) -> None:
    enhance = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }[name]
    expected = pillow(lambda image: enhance(image).enhance(factor))
    # Pillow works on whole levels: the grey value is rounded, and the result.
    assert abs(jittered(**{name: factor}) - expected).max() <= 1.6


def test_grey_is_that_of_pillow() -> None:
    expected = pillow(lambda image: image.convert("L").convert("RGB"))
    found = Grayscale(1.0).apply(unit(), row_words(jax.random.key(0), jnp.arange(4)))
    assert abs(levels(found) - expected).max() <= 1.0


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.03, 0.25])
def test_hue_is_that_of_matplotlib(turn: float) -> None:
    colors = pytest.importorskip("matplotlib.colors")
    hsv = colors.rgb_to_hsv(photographs() / 255.0)
    hsv[..., 0] = np.mod(hsv[..., 0] + turn, 1.0)
    found = turn_hue(unit(), jnp.full(4, turn))
    np.testing.assert_allclose(found, colors.hsv_to_rgb(hsv), atol=2e-5)


def test_the_order_of_colours_is_the_one_asked_for() -> None:
    values = {"brightness": 1.4, "contrast": 0.6, "saturation": 1.3, "hue": 0.2}
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)):
        x = unit()
        for which in order:
            name = list(values)[which]
            one = {**dict.fromkeys(values, 1.0), "hue": 0.0, name: values[name]}
            factors = jnp.array([[one["brightness"], one["contrast"], one["saturation"]]] * 4)
            x = color_jitter(x, factors, jnp.full(4, one["hue"]), jnp.tile(jnp.arange(4.0), (4, 1)))
        np.testing.assert_allclose(jittered(**values, order=order), levels(x), atol=2e-3)


def test_jitter_draws_within_its_reach() -> None:
    n = 4000
    words = row_words(jax.random.key(1), jnp.arange(n))
    flat = jnp.full((n, 1, 1, 3), 0.5)
    changed = ColorJitter(0.4, 0.0, 0.0, 0.0, probability=0.8).apply(flat, words)[:, 0, 0, 0]
    moved = np.asarray(changed != 0.5)
    assert abs(moved.mean() - 0.8) < 0.03
    assert 0.3 <= float(changed.min()) < 0.31
    assert 0.69 < float(changed.max()) <= 0.7
    assert abs(np.asarray(changed)[moved].mean() - 0.5) < 0.01


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("negative", [False, True])
def test_rand_augment_is_that_of_pillow(name: str, negative: bool) -> None:
    strength, (height, width) = 0.3, photographs().shape[1:3]
    sign = -1.0 if negative else 1.0
    factor = 1.0 + 0.9 * strength * sign

    def moved(*matrix: float) -> Callable[[Image.Image], Image.Image]:
        return lambda image: image.transform(
            image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST
        )

    shear = 0.3 * strength * sign
    along = sign * int(150 / 331 * width * strength)
    down = sign * int(150 / 331 * height * strength)
    references: dict[str, tuple[Callable[[Image.Image], Image.Image], float]] = {
        "Identity": (lambda image: image, 1e-3),
        "ShearX": (moved(1, shear, 0, 0, 1, 0), 1e-3),
        "ShearY": (moved(1, 0, 0, shear, 1, 0), 1e-3),
        "TranslateX": (moved(1, 0, -along, 0, 1, 0), 1e-3),
        "TranslateY": (moved(1, 0, 0, 0, 1, -down), 1e-3),
        "Rotate": (lambda image: image.rotate(30 * strength * sign), 1e-3),
        "Brightness": (lambda image: ImageEnhance.Brightness(image).enhance(factor), 1.01),
        "Color": (lambda image: ImageEnhance.Color(image).enhance(factor), 1.6),
        "Contrast": (lambda image: ImageEnhance.Contrast(image).enhance(factor), 1.6),
        "Sharpness": (lambda image: ImageEnhance.Sharpness(image).enhance(factor), 1.6),
        "Posterize": (lambda image: ImageOps.posterize(image, 8 - round(4 * strength)), 1e-3),
        "Solarize": (lambda image: ImageOps.solarize(image, int(255 * (1 - strength)) + 1), 1e-3),
        "AutoContrast": (ImageOps.autocontrast, 1.0 + 1e-3),
        "Equalize": (ImageOps.equalize, 1e-3),
    }
    reference, tolerance = references[name]
    expected = pillow(reference)
    chosen = jnp.full(4, OPERATIONS.index(name))
    found = levels(rand_augment(unit(), chosen, jnp.full(4, negative), strength))
    wrong = abs(found - expected).max(axis=-1) > tolerance
    # Rounding of coordinates may choose the neighbour where a pixel's edge is met exactly.
    assert wrong.mean() <= (0.002 if name in ("ShearX", "ShearY", "Rotate") else 0.0)
    assert name == "Identity" or (expected != photographs()).any()


def test_rand_augment_draws_operations_and_signs_equally() -> None:
    n = 1400
    words = row_words(jax.random.key(3), jnp.arange(n))
    x = jnp.tile(unit()[:1, :20, :20], (n, 1, 1, 1))
    found = np.asarray(RandAugment(operations=1).apply(x, words))
    same = (abs(found - np.asarray(x)) < 1e-6).all(axis=(1, 2, 3))
    black = (found == 0).all(axis=-1)
    # Translated by 2 of 20 pixels to the right or the left.
    right = (black[:, :, :2].all(axis=(1, 2)) & ~black[:, :, 2:].any(axis=(1, 2))).mean()
    left = (black[:, :, -2:].all(axis=(1, 2)) & ~black[:, :, :-2].any(axis=(1, 2))).mean()
    assert abs(same.mean() - 1 / 14) < 0.025
    assert abs(right - 1 / 28) < 0.02
    assert abs(left - 1 / 28) < 0.02
    none = RandAugment(operations=0).apply(x[:2], words=row_words(jax.random.key(3), jnp.arange(2)))
    np.testing.assert_array_equal(none, x[:2])


def test_blur_is_that_of_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    sigma, kernel = [0.4, 1.0, 1.7, 2.0], 9
    found = np.asarray(blur(unit(), jnp.array(sigma), kernel))
    for image, deviation, result in zip(photographs() / 255.0, sigma, found, strict=True):
        offsets = np.arange(kernel) - kernel // 2
        weights = np.exp(-0.5 * (offsets / deviation) ** 2)
        weights /= weights.sum()
        expected = image
        for axis in (0, 1):
            expected = ndimage.correlate1d(expected, weights, axis=axis, mode="mirror")
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_normalization() -> None:
    mean, deviation = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.1])
    found = normalize(unit(), jnp.asarray(mean), jnp.asarray(deviation))
    np.testing.assert_allclose(found, (photographs() / 255.0 - mean) / deviation, atol=1e-5)
    assert normalize(unit().astype(jnp.bfloat16), mean, deviation).dtype == jnp.bfloat16


EVERY: list[Augmentation] = [
    HorizontalFlip(),
    ColorJitter(),
    Grayscale(),
    GaussianBlur(kernel=5),
    RandAugment(),
]


@pytest.mark.parametrize("operation", EVERY, ids=lambda one: type(one).__name__)
def test_each_sample_is_changed_as_if_alone(operation: Augmentation) -> None:
    x, key = unit(), jax.random.key(4)
    epochs, ids = jnp.array([0, 0, 1, 1]), jnp.array([5, 6, 7, 8])
    whole = augment(x, (operation,), key, epochs, ids, 2)
    assert whole.shape == (4, 2, *x.shape[1:])
    assert (whole[:, 0] != whole[:, 1]).any()
    one = augment(x[2:3], (operation,), key, epochs[2:3], ids[2:3], 2)
    np.testing.assert_allclose(one[0], whole[2], atol=1e-6)
    assert float(whole.min()) >= 0.0
    assert float(whole.max()) <= 1.0 + 1e-6


@pytest.mark.parametrize("operation", EVERY, ids=lambda one: type(one).__name__)
def test_bfloat16_stays_and_is_near(operation: Augmentation) -> None:
    x, words = unit(), row_words(jax.random.key(0), jnp.arange(4))
    low = operation.apply(x.astype(jnp.bfloat16), words)
    assert low.dtype == jnp.bfloat16
    # A value in bfloat16 is known to a level or so, which moves entries of tables by some.
    error = abs(np.asarray(low, np.float32) - np.asarray(operation.apply(x, words)))
    assert error.mean() < 2 * LEVEL


def test_views_that_are_crops_are_augmented_one_by_one() -> None:
    x, key = unit(), jax.random.key(4)
    ids = jnp.arange(2)
    two = jnp.stack([x[:2], x[2:]], axis=1)
    operations = (RandomResizedCrop(), HorizontalFlip(), ColorJitter())
    found = augment(two, operations, key, ids * 0, ids, 2, viewed=True)
    for view in range(2):
        alone = augment(two[:, view], operations, key, ids * 0, ids, 2)
        np.testing.assert_allclose(found[:, view], alone[:, view], atol=1e-6)


def test_strategies() -> None:
    kinds = {name: [type(one) for one in strategy(name)] for name in ("simclr", "simple", "eval")}
    assert kinds == {
        "simclr": [RandomResizedCrop, HorizontalFlip, ColorJitter, Grayscale],
        "simple": [RandomResizedCrop, HorizontalFlip],
        "eval": [],
    }
    assert isinstance(strategy("randaugment")[-1], RandAugment)
    with pytest.raises(ConfigError, match="no strategy 'moco'; there are simclr"):
        strategy("moco")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HorizontalFlip(1.5), "probability must be between 0 and 1"),
        (lambda: Grayscale(-0.1), "probability must be between 0 and 1"),
        (lambda: ColorJitter(brightness=-1), "brightness must be finite"),
        (lambda: ColorJitter(hue=0.6), "hue must be between 0 and 0.5"),
        (lambda: GaussianBlur(kernel=4), "kernel must be odd"),
        (lambda: GaussianBlur(sigma=(2.0, 1.0)), "sigma must rise"),
        (lambda: RandAugment(magnitude=31), "magnitude"),
        (lambda: RandomResizedCrop(scale=(0.0, 1.0)), "scale must rise"),
        (lambda: RandomResizedCrop(ratio=(2.0, 1.0)), "ratio must rise"),
        (lambda: Grayscale(1.0).apply(jnp.ones((2, 4, 4, 1)), None), "takes colour images"),
        (lambda: GaussianBlur().apply(jnp.ones((2, 8, 8, 3)), None), "too wide for images of 8"),
    ],
)
def test_wrong_settings_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def tensors() -> Any:
    torch = pytest.importorskip("torch", reason="torchvision is not installed")
    return torch.from_numpy(photographs().transpose(0, 3, 1, 2).copy())


def from_torch(tensor: Any) -> np.ndarray:
    found: np.ndarray = tensor.numpy().transpose(0, 2, 3, 1).astype(float)
    return found


def test_colours_are_those_of_torchvision() -> None:
    tv = pytest.importorskip(
        "torchvision.transforms.functional", reason="torchvision is not installed"
    )
    x = tensors().float() / 255.0
    for found, expected in (
        (jittered(brightness=1.3), tv.adjust_brightness(x, 1.3)),
        (jittered(contrast=0.7), tv.adjust_contrast(x, 0.7)),
        (jittered(saturation=1.4), tv.adjust_saturation(x, 1.4)),
        (jittered(hue=-0.1), tv.adjust_hue(x, -0.1)),
        (levels(grey(unit())), tv.rgb_to_grayscale(x)),
        (levels(blur(unit(), jnp.full(4, 1.3), 9)), tv.gaussian_blur(x, 9, 1.3)),
    ):
        assert abs(found / 255.0 - from_torch(expected)).max() < 2e-5


@pytest.mark.parametrize("name", OPERATIONS)
def test_rand_augment_is_that_of_torchvision(name: str) -> None:
    tv = pytest.importorskip(
        "torchvision.transforms.autoaugment", reason="torchvision is not installed"
    )
    functional = pytest.importorskip("torchvision.transforms.functional")
    x = tensors()
    space = tv.RandAugment()._augmentation_space(31, x.shape[-2:])
    magnitudes, signed = space[name]
    magnitude = float(magnitudes[9]) if magnitudes.ndim else 0.0
    chosen = jnp.full(4, OPERATIONS.index(name))
    for negative in (False, True) if signed else (False,):
        nearest = functional.InterpolationMode.NEAREST
        value = -magnitude if negative else magnitude
        expected = from_torch(tv._apply_op(x, name, value, nearest, None))
        found = levels(rand_augment(unit(), chosen, jnp.full(4, negative), 9 / 30))
        # torchvision cuts what lies between two levels, of the reference and of the result.
        wrong = abs(found - expected).max(axis=-1) > 1.9
        assert wrong.mean() <= (0.002 if name in ("ShearX", "ShearY", "Rotate") else 0.0), name
