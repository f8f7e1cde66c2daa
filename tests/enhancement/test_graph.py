"""Distances and neighbour graphs against loops."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmlcl.enhancement import _graph
from jaxmlcl.enhancement._graph import affinity, gaussian, laplacian, mean_distance


def test_mean_distance_is_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3)) + 1000.0
    pairs = [np.linalg.norm(a - b) for i, a in enumerate(x) for b in x[:i]]
    assert mean_distance(x) == pytest.approx(np.mean(pairs), rel=1e-9)
    # In blocks of one row.
    monkeypatch.setattr(_graph, "_HELD", 1)
    assert mean_distance(x) == pytest.approx(np.mean(pairs), rel=1e-9)
    assert mean_distance(x[:1]) == 0.0


def test_mean_distance_of_many_rows_is_that_of_some(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(1).normal(size=(600, 4))
    exact = mean_distance(x)
    monkeypatch.setattr(_graph, "SAMPLED", 300)
    assert mean_distance(x) != exact
    assert mean_distance(x) == pytest.approx(exact, rel=0.05)
    assert mean_distance(x) == mean_distance(x)


def test_gaussian_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(2).normal(size=(9, 2))
    expected = [[np.exp(-((a - b) ** 2).sum() / (2 * 1.5**2)) for b in x[:4]] for a in x]
    monkeypatch.setattr(_graph, "_HELD", 8)
    np.testing.assert_allclose(gaussian(x, x[:4], 1.5), expected, rtol=1e-12)
    np.testing.assert_array_equal(gaussian(x, x, 0.0), np.ones((9, 9)))


def test_graph_joins_rows_that_are_near_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_graph, "_HELD", 16)
    x = np.random.default_rng(3).normal(size=(25, 3))
    squares = ((x[:, None] - x) ** 2).sum(2)
    expected = np.zeros((25, 25))
    for i in range(25):
        for j in sorted(set(range(25)) - {i}, key=lambda other: squares[i, other])[:4]:
            expected[i, j] = expected[j, i] = np.exp(-squares[i, j] / (2 * 0.7**2))
    graph = affinity(x, 4, 0.7)
    np.testing.assert_allclose(graph.toarray(), expected, rtol=1e-6)
    np.testing.assert_allclose(
        laplacian(graph).toarray(), np.diag(expected.sum(1)) - expected, atol=1e-9
    )


def test_fewer_rows_than_neighbours() -> None:
    assert affinity(np.zeros((3, 2)), 20, 1.0).toarray().tolist() == [
        [0.0, 1.0, 1.0],
        [1.0, 0.0, 1.0],
        [1.0, 1.0, 0.0],
    ]
    assert affinity(np.zeros((1, 2)), 20, 1.0).shape == (1, 1)
    assert affinity(np.zeros((1, 2)), 20, 1.0).nnz == 0
