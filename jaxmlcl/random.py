"""Counter-based random bits: cheap, keyed by (key, row, unit), the same on any number of devices.

Dropout and input masks need one random number per element, and a cryptographic-strength generator
(threefry, JAX's default) then takes most of a small network's step. A bit is here a pure function
of the key, the row and the unit: two rounds of a 32-bit finaliser (`lowbias32`, whose avalanche
bias is below 0.2 %), the first keyed by one word of the row, the second by another. Rows therefore
have 64 bits of identity, and no two of them are shifts of one another.

Who would rather have threefry makes the key with `make_key(seed, "threefry")`: such a key splits
and folds as any other, and rows drawn under it, or under a key that comes from it, are threefry's.
The choice travels with the key: nothing between experiment and dropout layer has to know it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np

Generator = Literal["hash", "threefry"]

_GOLDEN = 0x9E3779B9
# JAX's own generator under another name: same seeds, splits and draws.
_THREEFRY = jax.extend.random.define_prng_impl(
    **{
        part: getattr(jax.extend.random.threefry_prng_impl, part)
        for part in ("key_shape", "seed", "split", "random_bits", "fold_in")
    },
    name="threefry_rows",
    tag="rows",
)


def make_key(seed: int, generator: Generator = "hash") -> jax.Array:
    """A random key, and what generates the rows that are drawn under it.

    Everything else is the same for both generators: initial values do not depend on the choice.

    Args:
      seed: at least 0, below 2^32.
      generator: "hash", the counter hash of this module, or "threefry", JAX's default.

    Example:
      >>> bool(jax.random.uniform(make_key(3)) == jax.random.uniform(make_key(3, "threefry")))
      True
    """
    if generator == "threefry":
        return jax.random.key(seed, impl=_THREEFRY)
    return jax.random.key(seed)


class RowWords(NamedTuple):
    """Two 32-bit words [B] that identify a row of random numbers."""

    first: jax.Array
    second: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """[B]."""
        return self.first.shape


class RowKeys(NamedTuple):
    """A random key [B] for each row of threefry's numbers."""

    keys: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """[B]."""
        return self.keys.shape


Rows = RowWords | RowKeys


def _mix(x: jax.Array) -> jax.Array:
    x = x ^ (x >> 16)
    x = x * jnp.uint32(0x7FEB352D)
    x = x ^ (x >> 15)
    x = x * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def row_words(key: jax.Array, *coordinates: jax.Array | int) -> Rows:
    """What identifies the rows named by integer coordinates under a key.

    Args:
      key: a JAX random key (typed or raw).
      *coordinates: integers, or arrays of one common shape [B], for instance epoch, sample id
        and view. Every coordinate matters, and so does their order.

    Returns:
      `RowWords` of shape [B]; `RowKeys` for keys of `make_key(seed, "threefry")`.

    Example:
      >>> key = jax.random.key(0)
      >>> words = row_words(key, 3, jnp.arange(4))
      >>> words.shape
      (4,)
    """
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if typed and jax.random.key_impl(key) == _THREEFRY:
        return _row_keys(key, coordinates)
    data = jax.random.key_data(key) if typed else key
    first, second = data.reshape(-1)[0], data.reshape(-1)[-1]
    for coordinate in coordinates:
        word = jnp.asarray(coordinate).astype(jnp.uint32)
        first = _mix(first ^ _mix(word + jnp.uint32(_GOLDEN)))
        second = _mix(second + _mix(word ^ jnp.uint32(0x85EBCA6B)))
    return RowWords(first, second)


def _row_keys(key: jax.Array, coordinates: tuple[jax.Array | int, ...]) -> RowKeys:
    shape = jnp.broadcast_shapes(*(jnp.shape(coordinate) for coordinate in coordinates))
    keys = jnp.broadcast_to(key, shape).reshape(-1)
    for coordinate in coordinates:
        words = jnp.broadcast_to(jnp.asarray(coordinate).astype(jnp.uint32), shape)
        keys = jax.vmap(jax.random.fold_in)(keys, words.reshape(-1))
    return RowKeys(keys.reshape(shape))


def bits(words: Rows, units: int) -> jax.Array:
    """Random 32-bit words [B, units].

    Example:
      >>> bits(row_words(jax.random.key(0), jnp.arange(2)), 3).dtype
      dtype('uint32')
    """
    if isinstance(words, RowKeys):
        drawn = jax.vmap(lambda key: jax.random.bits(key, (units,), jnp.uint32))(
            words.keys.reshape(-1)
        )
        return drawn.reshape(*words.shape, units)
    unit = jnp.arange(units, dtype=jnp.uint32) * jnp.uint32(_GOLDEN)
    return _mix(_mix(unit ^ words.first[..., None]) + words.second[..., None])


def bernoulli(words: Rows, units: int, probability: float | jax.Array) -> jax.Array:
    """True with a probability, [B, units]; the probability is kept to 2^-32.

    One that is an array, as where variants are trained together, is kept to its own type's digits.

    Example:
      >>> bool(bernoulli(row_words(jax.random.key(0), jnp.arange(2)), 5, 1.0).all())
      True
    """
    if isinstance(probability, jax.Array):
        limit = (probability * 2.0**32).astype(jnp.uint32)
        return (probability >= 1.0) | (bits(words, units) < limit)
    if probability >= 1.0:
        return jnp.ones((*words.shape, units), bool)
    return bits(words, units) < jnp.uint32(int(probability * 2**32))


def uniform(words: Rows, units: int, low: float = 0.0, high: float = 1.0) -> jax.Array:
    """Uniform float32 numbers in [low, high), [B, units], in steps of 2^-24 of the range.

    Example:
      >>> x = uniform(row_words(jax.random.key(0), jnp.arange(2)), 5, -1.0, 1.0)
      >>> bool((x >= -1).all() & (x < 1).all())
      True
    """
    fraction = (bits(words, units) >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)
    # Rounding may reach the upper end.
    return jnp.minimum(
        low + (high - low) * fraction, np.nextafter(np.float32(high), np.float32(low))
    )
