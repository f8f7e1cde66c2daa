"""Argument checks and masked reductions that every loss shares."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

HIGHEST = jax.lax.Precision.HIGHEST


def concrete(x: Any) -> np.ndarray | None:
    """The values of `x` on the host, or None where tracing or another process hides them."""
    if isinstance(x, jax.core.Tracer):
        return None
    if isinstance(x, jax.Array):
        return np.asarray(jax.device_get(x)) if x.is_fully_addressable else None
    return np.asarray(x)


def check_choice(argument: str, value: str, options: Iterable[str]) -> None:
    """Refuse a name that is not among `options`, naming the nearest ones."""
    names = list(options)
    if value in names:
        return
    near = difflib.get_close_matches(str(value), names, n=2)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(f"{argument} is {value!r}; expected one of {', '.join(names)}{hint}")


def check_shape(argument: str, shape: tuple[int, ...], expected: dict[str, int | None]) -> None:
    """Refuse a shape that is not `expected`: letters in order, None for any size.

    Example:
        >>> check_shape("keys", (5, 3), {"K": None, "D": 2})
        Traceback (most recent call last):
        ValueError: keys has shape [5, 3]; expected [K, D] with D = 2
    """
    sizes = list(expected.values())
    fits = len(shape) == len(sizes) and all(
        want is None or have == want for have, want in zip(shape, sizes, strict=True)
    )
    if fits:
        return
    known = [f"{letter} = {size}" for letter, size in expected.items() if size is not None]
    given = f" with {', '.join(known)}" if known else ""
    raise ValueError(f"{argument} has shape {list(shape)}; expected [{', '.join(expected)}]{given}")


def check_floating(argument: str, array: jax.Array) -> None:
    """Refuse integers where embeddings or logits are expected."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{argument} is {array.dtype} {list(array.shape)}; expected floating point"
        )


def check_labels(
    argument: str, labels: ArrayLike, known: ArrayLike | None = None, *, binary: bool = False
) -> None:
    """Refuse known labels outside [0, 1]; values that are being traced cannot be checked."""
    values = concrete(labels)
    mask = None if known is None else concrete(known)
    if values is None or (known is not None and mask is None):
        return
    if mask is not None:
        values = np.where(mask, values, 0)
    good = (values == 0) | (values == 1) if binary else (values >= 0) & (values <= 1)
    if not good.all():
        place = [int(i) for i in np.argwhere(~good)[0]]
        wanted = "0 or 1" if binary else "values in [0, 1]"
        raise ValueError(
            f"{argument} {list(values.shape)} has {values[tuple(place)]} at {place}; "
            f"expected {wanted}"
        )


def check_number(
    argument: str,
    value: ArrayLike,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    strict: bool = False,
) -> None:
    """Refuse anything but a scalar in the range; NaN is never in it."""
    check_shape(argument, np.shape(value), {})
    number = concrete(value)
    if number is None:
        return
    above = number > minimum if strict else number >= minimum
    if not (above and number <= maximum):
        lower = f"{'above' if strict else 'at least'} {minimum:g}"
        upper = "" if maximum == math.inf else f" and at most {maximum:g}"
        raise ValueError(f"{argument} is {number}; expected a number {lower}{upper}")


def accumulation_dtype(*arrays: jax.Array) -> jnp.dtype:
    """The dtype of the arrays together, but never less than float32."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product without the reduced precision that accelerators take for float32."""
    return jnp.matmul(a, b, precision=HIGHEST)


def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Quotient, the numerator itself where the denominator is zero.

    Where nothing was added up both are zero; a NaN in the numerator still shows.
    """
    return numerator / jnp.where(denominator == 0, 1, denominator)
