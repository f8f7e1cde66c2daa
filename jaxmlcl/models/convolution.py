"""Convolution, written so that it is fast on the device it is compiled for.

On accelerators it is `lax.conv_general_dilated`. XLA's CPU backend is good at wide kernels over
wide images, and five to twenty times slower than its own matrix product at the others: 1 x 1
kernels (their gradient), images of a few pixels, as the last groups of a network have them, and the
few channels of a first layer. There the same sum is written as a product of patches and kernel,

    y[n, o] = sum_j patch[n, j] kernel[j, o],

whose gradients are products too. Parameters and results are the same, up to rounding.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

# Measured on two cores of x86 by `python -m benchmarks.convolution`.
_SMALL_IMAGE = 49  # positions of the output, up to which patches win
_FEW_CHANNELS = 8  # of the input, below which they do,
_NARROW = 64  # if the output has fewer channels than this


class Conv(nn.Module):
    """Convolution of images [B, H, W, C] without bias, by a square kernel; parameters as Flax's."""

    features: int
    size: int
    stride: int
    kernel_init: Any
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply to x [B, H, W, C]; [B, H', W', features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """y[b, i, j] = sum_uvc x[b, s i + u - p, s j + v - p, c] kernel[u, v, c], with p = k // 2.

    Args:
      x: images [B, H, W, C].
      kernel: [k, k, C, O].
      stride: s, in pixels.

    Returns:
      [B, H', W', O], of the type of the arguments, H' = (H + 2 p - k) // s + 1.

    Example:
      >>> convolve(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)))[0, :2, :, 0]
      Array([[4., 6., 6., 4.],
             [6., 9., 9., 6.]], dtype=float32)
    """
    patches = by_patches(x.shape, kernel.shape, stride) and not _counted.get()
    return (of_patches if patches else of_xla)(x, kernel, stride)


_counted = contextvars.ContextVar("counted", default=False)


@contextlib.contextmanager
def as_convolutions() -> Iterator[None]:
    """While tracing in here, every convolution is XLA's.

    For counting operations: patches differ between platforms, and a product of them also multiplies
    the zeros around an image, which XLA's count of a convolution leaves out.
    """
    token = _counted.set(True)
    try:
        yield
    finally:
        _counted.reset(token)


def by_patches(images: tuple[int, ...], kernel: tuple[int, ...], stride: int = 1) -> bool:
    """Whether `convolve` multiplies patches, for arrays of these shapes on this machine.

    Example:
      >>> by_patches((8, 56, 56, 64), (3, 3, 64, 64))
      False
    """
    size, _, channels, features = kernel
    height, width = ((n + 2 * (size // 2) - size) // stride + 1 for n in images[1:3])
    return jax.default_backend() == "cpu" and (
        size == 1
        or height * width <= _SMALL_IMAGE
        or (channels < _FEW_CHANNELS and features < _NARROW)
    )


def of_xla(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`convolve` as XLA has it."""
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@partial(jax.checkpoint, static_argnums=2)
def of_patches(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`convolve` by patches, which are k^2 times as large as x: made again for the gradient."""
    size, _, channels, features = kernel.shape
    pad = size // 2
    height, width = ((n + 2 * pad - size) // stride + 1 for n in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))) if pad else x
    columns = jnp.concatenate(
        [
            padded[
                :,
                row : row + stride * (height - 1) + 1 : stride,
                column : column + stride * (width - 1) + 1 : stride,
            ]
            for row in range(size)
            for column in range(size)
        ],
        axis=-1,
    )
    return columns @ kernel.reshape(size * size * channels, features)
