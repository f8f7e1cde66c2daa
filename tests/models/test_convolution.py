"""Both forms of convolution compute the same, and parameters are those of Flax's layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxmlcl.models.convolution import Conv, convolve
from jaxmlcl.models.layers import kaiming_fan_out

# (height, width, channels, features, size, stride): 1 x 1, small, few channels, and XLA's own.
SHAPES = [
    (9, 7, 5, 6, 1, 1),
    (9, 7, 5, 6, 1, 2),
    (2, 2, 4, 3, 3, 1),
    (1, 1, 4, 3, 3, 1),
    (5, 6, 9, 8, 3, 2),
    (13, 11, 3, 8, 7, 2),
    (16, 16, 3, 8, 3, 1),
    (12, 10, 8, 70, 3, 1),
    (15, 15, 3, 64, 7, 2),
]


def plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """XLA's convolution."""
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def has_convolution(shape: tuple[int, ...]) -> bool:
    height, width, channels, features, size, stride = shape
    x = jnp.ones((2, height, width, channels))
    kernel = jnp.ones((size, size, channels, features))
    jaxpr = str(jax.make_jaxpr(lambda x, k: convolve(x, k, stride))(x, kernel))
    return "conv_general_dilated" in jaxpr


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_xla(shape: tuple[int, ...]) -> None:
    height, width, channels, features, size, stride = shape
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, height, width, channels)))
    kernel = jnp.asarray(rng.normal(size=(size, size, channels, features)))

    def sides(function: object) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        value, backward = jax.vjp(lambda x, k: function(x, k, stride), x, kernel)  # type: ignore[operator]
        along = jnp.asarray(np.random.default_rng(1).normal(size=value.shape))
        return value, backward(along)

    ours, theirs = sides(convolve), sides(plain)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-11)


def test_each_form_is_taken_where_it_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [has_convolution(shape) for shape in SHAPES] == [False] * 7 + [True] * 2
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert all(has_convolution(shape) for shape in SHAPES)


@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[7]], ids=str)
def test_parameters_and_types_are_those_of_flax(shape: tuple[int, ...]) -> None:
    height, width, channels, features, size, stride = shape

    class Ours(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return Conv(features, size, stride, kaiming_fan_out, jnp.bfloat16, jnp.float32)(x)

    class Flax(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Conv(
                features,
                (size, size),
                strides=stride,
                padding=((size // 2, size // 2),) * 2,
                use_bias=False,
                kernel_init=kaiming_fan_out,
                dtype=jnp.bfloat16,
                param_dtype=jnp.float32,
            )(x)

    x = jax.random.normal(jax.random.key(0), (2, height, width, channels))
    ours, theirs = (module.init(jax.random.key(1), x) for module in (Ours(), Flax()))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    one, other = Ours().apply(ours, x), Flax().apply(theirs, x)
    assert one.dtype == other.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(one, np.float32), np.asarray(other, np.float32), rtol=2e-2, atol=2e-2
    )
