"""The counter-based random bits: uniform, independent, and the same however they are computed."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.stats import chi2

from jaxmlcl.models.layers import Dropout
from jaxmlcl.random import Generator, RowWords, bernoulli, bits, make_key, row_words, uniform

ROWS, UNITS = 512, 256
SIGMAS = 5.0
generators = pytest.mark.parametrize("generator", ["hash", "threefry"])


def raw_key(first: int, second: int) -> jax.Array:
    return jnp.array([first, second], jnp.uint32)


def table(key: jax.Array, *coordinates: jax.Array | int, units: int = UNITS) -> np.ndarray:
    """Words [B, units] of the rows that the coordinates name."""
    return np.asarray(bits(row_words(key, *coordinates), units))


@pytest.fixture(scope="module")
def words() -> np.ndarray:
    """One epoch's words for consecutive sample ids, as augmentation and dropout ask for them."""
    return table(jax.random.key(3), 0, jnp.arange(ROWS), 0, 0)


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """How far the share of equal bits is from one half, in standard deviations."""
    different = int(np.bitwise_count(a ^ b).sum())
    total = 32 * a.size
    return abs(different / total - 0.5) / (0.5 / math.sqrt(total))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the words as numbers, in standard deviations."""
    a, b = (x.ravel().astype(np.float64) for x in (a, b))
    return abs(np.corrcoef(a, b)[0, 1]) * math.sqrt(a.size)


def test_exact_values() -> None:
    # Pinned: a run that is continued by a later version must draw the same numbers.
    key = raw_key(0x12345678, 0x9ABCDEF0)
    np.testing.assert_array_equal(
        table(key, jnp.arange(2), units=3),
        [[4217875248, 970736903, 357151592], [1310073963, 1538648733, 1514165432]],
    )
    np.testing.assert_array_equal(
        table(key, 7, jnp.array([41]), 1, units=2), [[3516519122, 2977301450]]
    )
    np.testing.assert_array_equal(
        table(jax.random.key(0), jnp.arange(1), units=2), [[3592546125, 1169873671]]
    )


def test_the_words_are_two_rounds_of_lowbias32() -> None:
    def mix(x: int) -> int:
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            x = ((x ^ (x >> shift)) * factor) % 2**32
        return x

    words = row_words(raw_key(5, 6), jnp.array([9, 11]), 2)
    first = mix(mix(5 ^ mix((9 + 0x9E3779B9) % 2**32)) ^ mix((2 + 0x9E3779B9) % 2**32))
    assert int(words.first[0]) == first
    second = mix((6 + mix(9 ^ 0x85EBCA6B)) % 2**32)
    second = mix((second + mix(2 ^ 0x85EBCA6B)) % 2**32)
    assert int(words.second[0]) == second
    for unit in (0, 1, 200):
        inner = mix((unit * 0x9E3779B9) % 2**32 ^ first)
        assert int(bits(words, 256)[0, unit]) == mix((inner + second) % 2**32)


@pytest.mark.parametrize("part", range(4))
def test_bytes_are_uniform(words: np.ndarray, part: int) -> None:
    values = (words >> np.uint32(8 * part)) & np.uint32(255)
    counts = np.bincount(values.ravel(), minlength=256)
    expected = words.size / 256
    statistic = ((counts - expected) ** 2 / expected).sum()
    # Too even would be as wrong as too uneven.
    assert chi2.ppf(1e-5, 255) < statistic < chi2.ppf(1 - 1e-5, 255)


def test_every_bit_is_fair_in_all_rows_and_in_all_units(words: np.ndarray) -> None:
    ones = (words[..., None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
    for axes, size in (((0, 1), ROWS * UNITS), ((0,), ROWS), ((1,), UNITS)):
        counts = ones.sum(axis=axes, dtype=np.int64)
        statistic = ((counts - size / 2) ** 2 / (size / 4)).sum()
        assert statistic < chi2.ppf(1 - 1e-5, counts.size)


def test_pairs_of_neighbouring_bytes_are_uniform() -> None:
    words = table(jax.random.key(4), jnp.arange(2048), units=513)
    low = words & np.uint32(255)
    for a, b in ((low[:, :-1], low[:, 1:]), (low[:-1], low[1:])):
        counts = np.bincount((a.astype(np.int64) * 256 + b).ravel(), minlength=65536)
        expected = a.size / 65536
        assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(1 - 1e-5, 65535)


def test_no_row_repeats_another(words: np.ndarray) -> None:
    assert len(np.unique(words)) > words.size - 2 * words.size**2 / 2**32 - 10
    # Nor is any a shift of another: with 2^17 words of 32 bits, two equal ones are expected.
    following = np.lib.stride_tricks.sliding_window_view(words, 2, axis=1).reshape(-1, 2)
    assert len(np.unique(following, axis=0)) == len(following)


def neighbours() -> dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]]:
    key = jax.random.key(11)
    ids = jnp.arange(ROWS)

    def row(epoch: int, view: int, operation: int, ids: jax.Array = ids) -> np.ndarray:
        return table(key, epoch, ids, view, operation)

    def keys(a: jax.Array, b: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        return table(a, ids), table(b, ids)

    return {
        "rows": lambda: (row(0, 0, 0)[:-1], row(0, 0, 0)[1:]),
        "rows 256 apart": lambda: (row(0, 0, 0), row(0, 0, 0, ids + 256)),
        "rows 2^16 apart": lambda: (row(0, 0, 0), row(0, 0, 0, ids + 2**16)),
        "units": lambda: (row(0, 0, 0)[:, :-1], row(0, 0, 0)[:, 1:]),
        "units 48 apart": lambda: (row(0, 0, 0)[:, :-48], row(0, 0, 0)[:, 48:]),
        "epochs": lambda: (row(0, 0, 0), row(1, 0, 0)),
        "views": lambda: (row(0, 0, 0), row(0, 1, 0)),
        "operations": lambda: (row(0, 0, 0), row(0, 0, 1)),
        "epoch and view swapped": lambda: (row(1, 0, 0), row(0, 1, 0)),
        "seeds": lambda: keys(jax.random.key(0), jax.random.key(1)),
        "steps": lambda: keys(
            jax.random.fold_in(jax.random.key(0), 1), jax.random.fold_in(jax.random.key(0), 2)
        ),
        "raw keys one bit apart": lambda: keys(raw_key(0, 0), raw_key(0, 1)),
        "key words swapped": lambda: keys(raw_key(1, 2), raw_key(2, 1)),
        "row and unit swapped": lambda: (row(0, 0, 0)[:UNITS], row(0, 0, 0)[:UNITS].T),
    }


@pytest.mark.parametrize("name", neighbours())
def test_neighbours_are_independent(name: str) -> None:
    a, b = neighbours()[name]()
    if name == "row and unit swapped":
        off = ~np.eye(len(a), dtype=bool)
        a, b = a[off], b[off]
        # Each pair is there twice, so the standard deviation is larger.
        assert agreement(a, b) < SIGMAS * math.sqrt(2)
        assert correlation(a, b) < SIGMAS * math.sqrt(2)
        return
    assert agreement(a, b) < SIGMAS
    assert correlation(a, b) < SIGMAS
    # Of a mask's bits only the highest matter.
    assert correlation(a >> 31, b >> 31) < SIGMAS


def test_pairs_of_rows_agree_in_half_of_their_bits(words: np.ndarray) -> None:
    signs = np.unpackbits(words.view(np.uint8), axis=1).astype(np.float32) * 2 - 1
    products = signs @ signs.T / math.sqrt(signs.shape[1])
    upper = products[np.triu_indices(ROWS, 1)]
    # 130 816 pairs: the largest of as many normal numbers is below 5.5 all but once in 200.
    assert np.abs(upper).max() < 5.5
    assert abs(upper.std() - 1.0) < 0.02


def test_every_input_bit_changes_every_output_bit_half_the_time() -> None:
    ids = jnp.arange(1024)
    base = table(raw_key(77, 78), 5, ids, 0, units=4)
    changed = [table(raw_key(77 ^ (1 << bit), 78), 5, ids, 0, units=4) for bit in range(32)]
    changed += [table(raw_key(77, 78 ^ (1 << bit)), 5, ids, 0, units=4) for bit in range(32)]
    changed += [table(raw_key(77, 78), 5 ^ (1 << bit), ids, 0, units=4) for bit in range(31)]
    changed += [table(raw_key(77, 78), 5, ids ^ (1 << bit), 0, units=4) for bit in range(31)]
    flips = np.stack(changed) ^ base
    share = ((flips[..., None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)).mean(axis=(1, 2))
    # 4096 words for each of 126 x 32 pairs of an input bit and an output bit.
    assert np.abs(share - 0.5).max() < SIGMAS * 0.5 / math.sqrt(4096)


def test_every_coordinate_and_their_order_matter() -> None:
    key = jax.random.key(0)
    rows = [(), (0,), (0, 0), (1,), (0, 1), (1, 0), (2**31 - 1,), (-1,)]
    drawn = [table(key, *row, jnp.arange(1), units=4).tobytes() for row in rows]
    assert len(set(drawn)) == len(rows)


def test_typed_and_raw_keys_are_the_same_key() -> None:
    key = jax.random.fold_in(jax.random.key(8), 3)
    np.testing.assert_array_equal(
        table(key, jnp.arange(3)), table(jax.random.key_data(key), jnp.arange(3))
    )


@generators
def test_eight_devices_draw_what_one_draws(generator: Generator) -> None:
    devices = jax.devices()[:8]
    assert len(devices) == 8
    mesh = Mesh(np.array(devices), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    ids = jnp.arange(64) * 7

    def draw(ids: jax.Array) -> tuple[jax.Array, ...]:
        words = row_words(make_key(2, generator), 3, ids, 1)
        return bits(words, 33), bernoulli(words, 33, 0.3), uniform(words, 33, -1.0, 1.0)

    many = jax.jit(draw, in_shardings=split, out_shardings=split)(jax.device_put(ids, split))
    assert len(many[0].addressable_shards) == 8
    for one, sharded in zip(jax.jit(draw)(ids), many, strict=True):
        np.testing.assert_array_equal(np.asarray(sharded), np.asarray(one))
    # A row depends on nothing but its own coordinates: neither on the others nor on the width.
    few = bits(row_words(make_key(2, generator), 3, ids[5:6], 1), 7)
    np.testing.assert_array_equal(np.asarray(many[0])[5:6, :7], few)


@generators
@pytest.mark.parametrize("probability", [0.001, 0.2, 0.5, 0.9])
def test_bernoulli_keeps_its_rate(probability: float, generator: Generator) -> None:
    words = row_words(make_key(21, generator), jnp.arange(1024))
    drawn = np.asarray(bernoulli(words, 300, probability))
    assert drawn.dtype == bool
    deviation = math.sqrt(probability * (1 - probability) / drawn.size)
    assert abs(drawn.mean() - probability) < SIGMAS * deviation
    by_row = (drawn.mean(1) - probability) / math.sqrt(probability * (1 - probability) / 300)
    assert (by_row**2).sum() < chi2.ppf(1 - 1e-5, 1024)


def test_bernoulli_at_the_ends() -> None:
    words = RowWords(jnp.zeros(2, jnp.uint32), jnp.zeros(2, jnp.uint32))
    assert not bernoulli(words, 8, 0.0).any()
    assert bernoulli(words, 8, 1.0).all()
    # The word 0 is among the possible ones, and is below any positive probability.
    assert int(bits(words, 1)[0, 0]) == 0
    assert bool(bernoulli(words, 1, 1e-9)[0, 0])


@generators
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-4.0, 5.0), (100.0, 101.0), (-0.1, 0.1)])
def test_uniform_stays_in_its_range(low: float, high: float, generator: Generator) -> None:
    words = row_words(make_key(22, generator), jnp.arange(2048))
    x = np.asarray(uniform(words, 512, low, high))
    assert x.dtype == np.float32
    assert x.min() >= np.float32(low)
    assert x.max() < np.float32(high)
    x = (x.astype(np.float64) - low) / (high - low)
    assert abs(x.mean() - 0.5) < SIGMAS * math.sqrt(1 / 12 / x.size)
    assert abs(x.var() - 1 / 12) < SIGMAS * math.sqrt(1 / 180 / x.size)
    counts = np.histogram(x, 64, (0, 1))[0]
    if high < 100:
        expected = x.size / 64
        assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(1 - 1e-5, 63)


def test_threefry_draws_what_jax_draws() -> None:
    key = make_key(5, "threefry")
    found = table(jax.random.fold_in(key, 2), 3, jnp.arange(4), 1, units=6)
    plain = jax.random.fold_in(jax.random.key(5), 2)
    for row in range(4):
        own = plain
        for coordinate in (3, row, 1):
            own = jax.random.fold_in(own, coordinate)
        np.testing.assert_array_equal(found[row], jax.random.bits(own, (6,), jnp.uint32))


def test_the_choice_changes_rows_and_nothing_else() -> None:
    hashed, threefry = make_key(9), make_key(9, "threefry")
    assert hashed.dtype == jax.random.key(9).dtype
    for draw in (
        lambda key: jax.random.normal(key, (5,)),
        lambda key: jax.random.key_data(jax.random.split(key, 3)),
        lambda key: jax.random.key_data(jax.random.fold_in(key, 7)),
    ):
        np.testing.assert_array_equal(draw(hashed), draw(threefry))
    a, b = table(hashed, jnp.arange(ROWS)), table(threefry, jnp.arange(ROWS))
    assert agreement(a, b) < SIGMAS
    assert correlation(a, b) < SIGMAS


def test_rows_of_threefry_are_independent() -> None:
    key = make_key(11, "threefry")
    ids = jnp.arange(ROWS)
    first = table(key, 0, ids, 0)
    rows = [first[1:], table(key, 1, ids, 0), table(key, 0, ids, 1), table(key, 1, ids, 1)]
    for other in rows:
        assert agreement(first[: len(other)], other) < SIGMAS
        assert correlation(first[: len(other)], other) < SIGMAS


@generators
def test_dropout_is_drawn_by_the_keys_generator(generator: Generator) -> None:
    key, x = make_key(4, generator), jnp.ones((64, 300))
    drawn = np.asarray(Dropout(0.3).apply({}, x, True, rngs={"dropout": key}))
    np.testing.assert_allclose(np.unique(drawn), [0.0, 1 / 0.7], rtol=1e-6)
    kept = (drawn > 0).mean()
    assert abs(kept - 0.7) < SIGMAS * math.sqrt(0.3 * 0.7 / x.size)
    other = Dropout(0.3).apply({}, x, True, rngs={"dropout": jax.random.key(4)})
    assert bool((drawn == np.asarray(other)).all()) == (generator == "hash")


def test_uniform_never_reaches_its_upper_end() -> None:
    # The largest of the 2^24 fractions rounds to the end of a range far from zero.
    wanted = np.uint32(0xFFFFFFFF)
    second = unmix(int(wanted))
    words = RowWords(jnp.zeros(1, jnp.uint32), jnp.array([second], jnp.uint32))
    assert int(bits(words, 1)[0, 0]) == wanted
    assert float(uniform(words, 1)[0, 0]) == 1 - 2.0**-24
    assert float(uniform(words, 1, 100.0, 101.0)[0, 0]) < 101.0


def unmix(y: int) -> int:
    """The word that one round of the finaliser turns into y."""
    for shift, factor in ((16, 1), (15, 0x846CA68B), (16, 0x7FEB352D)):
        y = y * pow(factor, -1, 2**32) % 2**32
        x = y
        for _ in range(32 // shift):
            x = y ^ (x >> shift)
        y = x
    return y


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_a_traced_probability_draws_the_same(x64: None, probability: float) -> None:
    words = row_words(jax.random.key(3), jnp.arange(64))
    traced = jax.jit(lambda p: bernoulli(words, 100, p))(probability)
    np.testing.assert_array_equal(traced, bernoulli(words, 100, probability))
    single = jax.jit(lambda p: bernoulli(words, 100, p))(np.float32(probability))
    np.testing.assert_array_equal(single, traced)
