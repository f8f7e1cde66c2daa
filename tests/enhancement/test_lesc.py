"""LESC: the low-rank representation against the plain algorithm, its objective, and the grid."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmlcl.enhancement import GRID, LESC, lesc_grid
from jaxmlcl.enhancement._base import softmax, standardize
from jaxmlcl.enhancement.lesc import low_rank
from jaxmlcl.errors import ConfigError


def made(n: int = 25, q: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    # Two directions carry the rows, but for some noise and two rows that lie elsewhere.
    x = generator.normal(size=(n, 2)) @ generator.normal(size=(2, q))
    x += 0.05 * generator.normal(size=(n, q))
    x[:2] = 3 * generator.normal(size=(2, q))
    return standardize(x), generator.integers(0, 2, (n, 3)).astype(float)


def plainly(features: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """C and E by the inexact augmented Lagrangian, with the features as they are."""
    data = features.T
    left, values, _ = np.linalg.svd(features, full_matrices=False)
    basis = left[:, values > 1e-10]
    dictionary = data @ basis
    r, n = basis.shape[1], len(features)
    z, e = np.zeros((r, n)), np.zeros_like(data)
    y1, y2, mu = np.zeros_like(data), np.zeros((r, n)), 1e-6
    inverse = np.linalg.inv(dictionary.T @ dictionary + np.eye(r))
    for _ in range(2000):
        u, s, v = np.linalg.svd(z + y2 / mu, full_matrices=False)
        j = (u * np.maximum(s - 1 / mu, 0)) @ v
        z = inverse @ (dictionary.T @ (data - e + y1 / mu) + j - y2 / mu)
        rest = data - dictionary @ z
        e = rest + y1 / mu
        for i in range(n):
            length = np.linalg.norm(e[:, i])
            e[:, i] *= max(length - beta / mu, 0) / length
        if max(np.abs(rest - e).max(), np.abs(z - j).max()) < 1e-8:
            return basis @ z, e
        y1, y2, mu = y1 + mu * (rest - e), y2 + mu * (z - j), min(1.1 * mu, 1e10)
    raise AssertionError("the plain algorithm did not end")


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_representation_is_that_of_the_plain_algorithm(beta: float) -> None:
    x, _ = made()
    c, e = plainly(x, beta)
    found = low_rank(x, beta)
    np.testing.assert_allclose(found.basis @ found.coefficients, c, atol=1e-6)
    np.testing.assert_allclose(
        np.linalg.norm(found.errors, axis=0), np.linalg.norm(e, axis=0), atol=1e-5
    )


@pytest.mark.parametrize("beta", [0.05, 0.3])
def test_constraint_holds_and_no_neighbour_is_better(beta: float) -> None:
    x, _ = made()
    found = low_rank(x, beta)
    c = found.basis @ found.coefficients
    errors = x.T - x.T @ c
    np.testing.assert_allclose(
        np.linalg.norm(errors, axis=0), np.linalg.norm(found.errors, axis=0), atol=1e-6
    )
    assert found.iterations > 50

    def value(candidate: np.ndarray) -> float:
        rest = x.T - x.T @ candidate
        return np.linalg.norm(candidate, "nuc") + beta * np.linalg.norm(rest, axis=0).sum()

    # The problem is convex: a minimum is one if it is one nearby.
    least = value(c)
    generator = np.random.default_rng(1)
    for size in (1e-3, 1e-1):
        for _ in range(50):
            step = found.basis @ generator.normal(size=found.coefficients.shape)
            assert value(c + size * step) > least - 1e-6
    assert least < value(np.zeros_like(c))
    assert least < value(np.eye(len(x)))


def test_large_beta_represents_rows_without_error() -> None:
    # The projection on the rows' span has least nuclear norm.
    x, _ = made()
    found = low_rank(x, 1000.0)
    np.testing.assert_allclose(found.basis @ found.coefficients, x @ np.linalg.pinv(x), atol=1e-6)


def test_penalty_is_the_matrix_that_is_never_formed() -> None:
    x, y = made()
    found = low_rank(x, 0.1)
    left = np.eye(len(x)) - found.basis @ found.coefficients
    np.testing.assert_allclose(found.penalty(y), left.T @ left @ y, atol=1e-10)


def test_minimum_solves_the_linear_system() -> None:
    x, y = made()
    found = low_rank(standardize(x), 0.1)
    left = np.eye(len(x)) - found.basis @ found.coefficients
    fitted = np.linalg.solve(np.eye(len(x)) + 10.0 * left.T @ left, y)
    reached = LESC(beta=0.1, lam=10.0, max_iterations=None).fit_transform(x, y)
    np.testing.assert_allclose(reached, softmax(fitted), atol=1e-7)


def test_grid_gives_what_single_fits_give() -> None:
    x, y = made()
    assert len(GRID) == len(set(GRID)) == 64
    assert {1e-4, 1e3} <= {beta for beta, _ in GRID}
    pairs = [(0.01, 0.1), (0.01, 10.0), (1.0, 0.1)]
    found = list(lesc_grid(x, y, pairs=pairs, seeds=(0, 3), max_iterations=20))
    assert [pair for pair, _ in found] == pairs
    for (beta, lam), runs in found:
        for seed, run in zip((0, 3), runs, strict=True):
            alone = LESC(beta, lam, max_iterations=20, random_state=seed)
            np.testing.assert_array_equal(run, alone.fit_transform(x, y))


def test_constant_features_have_no_representation() -> None:
    found = LESC().fit_transform(np.ones((4, 2)), np.eye(4, 3))
    np.testing.assert_allclose(found.sum(1), 1)


def test_misuse_is_refused() -> None:
    x, y = made()
    with pytest.raises(ConfigError, match="LESC: beta must be a number above 0, not 0"):
        LESC(beta=0).fit(x, y)
    with pytest.raises(ConfigError, match="LESC: lam must be a number of at least 0, not -1"):
        next(lesc_grid(x, y, pairs=[(0.1, -1)]))
    with pytest.raises(ValueError, match="logical labels are 0 or 1"):
        next(lesc_grid(x, y + 5))
