"""Augmentation: random numbers belong to the sample, and the operations are what they say."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmlcl.data.augment import Augmentation, Intensity, Noise, Shift, ZeroMask, augment
from jaxmlcl.errors import ConfigError
from jaxmlcl.random import bits, row_words, uniform

KEY = jax.random.key(5)
ROWS = 16
IMAGES: tuple[Augmentation, ...] = (Shift(2), Intensity(0.3, 0.5), Noise(0.1))


@functools.cache
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (ROWS, 6, 5, 2)).astype(np.float32)


IDS = np.arange(ROWS, dtype=np.int32) * 3 + 1
EPOCHS = np.arange(ROWS, dtype=np.int32) // 10


@functools.partial(jax.jit, static_argnames=("operations", "views"))
def _augment(x: Any, operations: Any, key: Any, epochs: Any, ids: Any, views: int) -> jax.Array:
    return augment(x, operations, key, epochs, ids, views)


def run(
    x: Any = None,
    operations: tuple[Augmentation, ...] = IMAGES,
    key: jax.Array = KEY,
    epochs: Any = EPOCHS,
    ids: Any = IDS,
    views: int = 2,
) -> np.ndarray:
    return np.asarray(_augment(images() if x is None else x, operations, key, epochs, ids, views))


def test_random_numbers_belong_to_the_sample_not_to_its_place() -> None:
    order = np.random.default_rng(1).permutation(ROWS)
    whole = run()
    assert whole.shape == (ROWS, 2, 6, 5, 2)
    permuted = run(images()[order], epochs=EPOCHS[order], ids=IDS[order])
    np.testing.assert_array_equal(permuted, whole[order])
    # The same sample twice in a batch gets the same numbers.
    twice = run(images()[[3] * ROWS], epochs=EPOCHS[[3] * ROWS], ids=IDS[[3] * ROWS])
    np.testing.assert_array_equal(twice, whole[[3] * ROWS])


def test_views_epochs_samples_and_keys_differ() -> None:
    same = np.broadcast_to(images()[:1], images().shape)
    zero = np.zeros(ROWS, np.int32)
    base = run(same, epochs=zero)
    assert (base[:, 0] != base[:, 1]).any((1, 2, 3)).all()
    assert len(np.unique(base.reshape(2 * ROWS, -1), axis=0)) == 2 * ROWS
    assert (run(same, epochs=zero + 1) != base).any((2, 3, 4)).all()
    assert (run(same, epochs=zero, key=jax.random.key(6)) != base).any((2, 3, 4)).all()


def test_one_view_is_the_first_of_two() -> None:
    np.testing.assert_array_equal(run(views=1), run()[:, 0])


def test_operations_draw_for_themselves() -> None:
    # Twice the same operation is not the same mask twice.
    x = np.ones((ROWS, 4000), np.float32)
    once = run(x, (ZeroMask(0.5),), views=1)
    again = run(x, (ZeroMask(0.5), ZeroMask(0.5)), views=1)
    assert abs(again.mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / x.size)
    assert (again <= once).all()


@pytest.mark.parametrize("kind", ["images", "vectors"])
def test_eight_devices_draw_what_one_draws(kind: str) -> None:
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = images() if kind == "images" else images().reshape(ROWS, -1)
    operations: tuple[Augmentation, ...] = IMAGES[::2] if kind == "images" else (ZeroMask(0.4),)
    split = [jax.device_put(array, rows) for array in (x, EPOCHS, IDS)]
    many = run(split[0], operations, epochs=split[1], ids=split[2])
    np.testing.assert_array_equal(many, run(x, operations))


def words(position: int, view: int = 0) -> Any:
    return row_words(KEY, EPOCHS, IDS, view, position)


def alone(operation: Augmentation, x: np.ndarray) -> np.ndarray:
    """One operation, in the first position, on the first view."""
    return run(x, (operation,), views=1)


def test_zero_mask() -> None:
    x = np.random.default_rng(2).normal(size=(ROWS, 50)).astype(np.float32)
    keep = np.asarray(bits(words(0), 50)) < np.uint32(0.7 * 2**32)
    # What is kept is not rescaled.
    np.testing.assert_array_equal(alone(ZeroMask(0.3), x), np.where(keep, x, 0))
    np.testing.assert_array_equal(alone(ZeroMask(0.0), x), x)
    assert not alone(ZeroMask(1.0), x).any()
    assert alone(ZeroMask(0.3), x.astype(np.float16)).dtype == np.float16


def test_shift_repeats_the_edge() -> None:
    x, pixels = images(), 2
    draw = np.floor(np.asarray(uniform(words(0), 2, -pixels, pixels + 1))).astype(int)
    padded = np.pad(x, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode="edge")
    expected = np.stack(
        [
            image[pixels + down : pixels + down + 6, pixels + right : pixels + right + 5]
            for image, (down, right) in zip(padded, draw, strict=True)
        ]
    )
    np.testing.assert_array_equal(alone(Shift(pixels), x), expected)
    np.testing.assert_array_equal(alone(Shift(0), x), x)
    # Further than the image is wide, one edge is all there is.
    assert np.isin(alone(Shift(1000), x), x).all()


def test_shifts_are_equally_likely() -> None:
    rows = 2500
    x = np.zeros((rows, 7, 7, 1), np.float32)
    x[:, 3, 3] = 1
    moved = run(x, (Shift(2),), epochs=np.zeros(rows, int), ids=np.arange(rows), views=1)
    counts = moved.sum(0)[..., 0]
    assert counts.sum() == rows
    assert counts[1:6, 1:6].sum() == rows
    expected = rows / 25
    # Chi-square with 24 degrees of freedom: 61 is passed once in 20 000 draws.
    assert ((counts[1:6, 1:6] - expected) ** 2 / expected).sum() < 61


def test_intensity() -> None:
    x = images().astype(np.float64)
    draw = np.asarray(uniform(words(0), 2, -1.0, 1.0), np.float64)
    scale = (1 + 0.5 * draw[:, 0])[:, None, None, None]
    offset = (0.3 * draw[:, 1])[:, None, None, None]
    mean = x.mean((1, 2, 3), keepdims=True)
    expected = (x - mean) * scale + mean + offset
    np.testing.assert_allclose(alone(Intensity(0.3, 0.5), images()), expected, atol=1e-6)
    np.testing.assert_allclose(alone(Intensity(0.0, 0.0), images()), x, atol=1e-6)


def test_noise() -> None:
    x = images()
    reach = 0.1 * math.sqrt(3)
    noise = np.asarray(uniform(words(0), 60, -reach, reach)).reshape(x.shape)
    np.testing.assert_allclose(alone(Noise(0.1), x), x + noise, atol=1e-7)
    big = alone(Noise(0.1), np.zeros((ROWS, 64, 64, 3), np.float32))
    assert abs(big).max() <= reach * (1 + 1e-6)
    assert abs(big.mean()) < 5 * 0.1 / math.sqrt(big.size)
    assert big.std() == pytest.approx(0.1, rel=0.01)


def test_operations_follow_each_other() -> None:
    x = images()
    noise = uniform(words(2, view=1), 60, -0.1 * math.sqrt(3), 0.1 * math.sqrt(3))
    first = Shift(2).apply(jnp.asarray(x), words(0, view=1))
    second = Intensity(0.3, 0.5).apply(first, words(1, view=1))
    expected = np.asarray(second) + np.asarray(noise).reshape(x.shape)
    np.testing.assert_allclose(run()[:, 1], expected, atol=1e-6)


def test_no_operation_is_the_identity() -> None:
    np.testing.assert_array_equal(run(operations=(), views=1), images())
    np.testing.assert_array_equal(run(operations=()), np.stack([images()] * 2, 1))


@pytest.mark.parametrize("operation", [*IMAGES, ZeroMask()])
def test_the_type_of_the_inputs_is_kept(operation: Augmentation) -> None:
    x = jax.ShapeDtypeStruct((ROWS, 6, 5, 2), jnp.bfloat16)
    done = jax.eval_shape(lambda x: operation.apply(x, words(0)), x)
    assert (done.shape, done.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (ZeroMask, {"probability": 2.0}, "ZeroMask: probability must be between 0 and 1, not 2.0"),
        (ZeroMask, {"probability": -1}, "ZeroMask: probability must be between 0 and 1, not -1"),
        (ZeroMask, {"probability": math.nan}, "ZeroMask: probability must be between 0 and 1"),
        (Shift, {"pixels": -1}, "Shift: pixels must be finite and at least 0, not -1"),
        (Intensity, {"brightness": -0.1}, "Intensity: brightness must be finite and at least 0"),
        (Intensity, {"contrast": math.inf}, "Intensity: contrast must be finite and at least 0"),
        (Noise, {"deviation": -0.5}, "Noise: deviation must be finite and at least 0, not -0.5"),
    ],
)
def test_values_out_of_range_are_refused(kind: Any, values: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^augmentation: {said}"):
        kind(**values)


@pytest.mark.parametrize("operation", [Shift(), Intensity()])
def test_image_operations_refuse_vectors(operation: Augmentation) -> None:
    with pytest.raises(ConfigError) as caught:
        operation.apply(jnp.ones((ROWS, 12)), words(0))
    name = type(operation).__name__
    assert str(caught.value) == (f"augmentation: {name} takes images, not inputs of shape (12,)")


@pytest.mark.parametrize(("probability", "kept"), [(0, 1.0), (1, 0.0)])
def test_zero_mask_at_its_bounds(probability: float, kept: float) -> None:
    np.testing.assert_array_equal(alone(ZeroMask(probability), images()), images() * kept)
