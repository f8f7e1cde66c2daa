"""Nearest neighbours in blocks against plain sorting."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlcl.neighbours import _search, nearest


def plain(queries: np.ndarray, keys: np.ndarray, count: int, leave_self_out: bool) -> np.ndarray:
    """Row by row, in double precision; a stable sort keeps the lower row of equals."""
    found = []
    for i, query in enumerate(queries.astype(np.float64)):
        distances = ((keys - query) ** 2).sum(1)
        if leave_self_out:
            distances[i] = np.inf
        found.append(np.argsort(distances, kind="stable")[:count])
    return np.array(found)


@pytest.mark.parametrize("count", [1, 7])
def test_many_blocks_with_many_ties(count: int) -> None:
    # 64 different points among 9000 keys, three blocks of them: each query has some 140 equals.
    generator = np.random.default_rng(0)
    keys = generator.integers(0, 4, size=(9000, 3)).astype(np.float32)
    queries = generator.integers(0, 4, size=(1100, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        nearest(queries, keys, count), plain(queries, keys, count, leave_self_out=False)
    )


def test_rows_are_not_their_own_neighbours() -> None:
    generator = np.random.default_rng(1)
    keys = generator.normal(size=(1300, 5)).astype(np.float32)
    keys[700] = keys[3]
    found = nearest(keys, keys, 4, leave_self_out=True)
    np.testing.assert_array_equal(found, plain(keys, keys, 4, leave_self_out=True))
    assert found[700, 0] == 3
    assert found[3, 0] == 700
    assert not (found == np.arange(1300)[:, None]).any()


def test_an_offset_of_all_rows_does_not_cancel() -> None:
    # Steps of 1/16 beside an offset of 4096: the expanded square has no digit left for them.
    generator = np.random.default_rng(2)
    keys = (generator.integers(0, 50, size=(400, 2)) / 16 + 4096).astype(np.float32)
    np.testing.assert_array_equal(
        nearest(keys[:50], keys, 5), plain(keys[:50], keys, 5, leave_self_out=False)
    )


def test_all_keys_may_be_wanted() -> None:
    keys = np.array([[3.0], [1.0], [2.0]])
    assert nearest([[0.0]], keys, 3).tolist() == [[1, 2, 0]]
    assert nearest(keys, keys, 2, leave_self_out=True).tolist() == [[2, 1], [2, 0], [0, 1]]


def test_memory_does_not_grow_with_the_square_of_the_rows() -> None:
    rows = 100_000
    shape = jax.ShapeDtypeStruct((rows, 16), jnp.float32)
    compiled = _search.lower(shape, shape, 10, 26, True).compile()
    # All distances at once would take 40 GB.
    assert compiled.memory_analysis().temp_size_in_bytes < 256 * 2**20


def test_misuse_is_refused() -> None:
    for arguments, said in (
        (([[1.0]], [[1.0, 2.0]], 1), r"queries \(1, 1\) and keys \(1, 2\)"),
        (([[1.0]], [[1.0], [2.0]], 3), "count is 3; with these keys it must be from 1 to 2"),
        (([[1.0]], [[1.0], [2.0]], 0), "count is 0"),
    ):
        with pytest.raises(ValueError, match=said):
            nearest(*arguments)
    with pytest.raises(ValueError, match="are not the keys"):
        nearest([[1.0]], [[1.0], [2.0]], 1, leave_self_out=True)
    with pytest.raises(ValueError, match="from 1 to 1"):
        nearest([[1.0], [2.0]], [[1.0], [2.0]], 2, leave_self_out=True)
