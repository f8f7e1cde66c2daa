"""GLLE: gradient, graph and minimum against plain NumPy; landmarks; the published row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat

from jaxmlcl.enhancement import GLLE, _kernel
from jaxmlcl.enhancement._base import softmax, standardize
from jaxmlcl.enhancement._graph import affinity, laplacian
from jaxmlcl.enhancement._kernel import kernel_columns, objective
from jaxmlcl.evaluation import distribution_measures


def made(n: int = 30, labels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(n, 4)), generator.integers(0, 2, (n, labels)).astype(float)


def plain(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F and G as the paper and its program write them."""
    x = (x - x.mean(0)) / x.std(0, ddof=1)
    n = len(x)
    distance = np.linalg.norm(x[:, None] - x, axis=2)
    width = distance[np.triu_indices(n, 1)].mean()
    columns = np.hstack([np.exp(-(distance**2) / (2 * width**2)), np.ones((n, 1))])
    near = np.zeros((n, n), bool)
    for i in range(n):
        near[i, np.argsort(distance[i])[:20]] = True
    a = np.exp(-(distance**2) / 200) * (near | near.T)
    np.fill_diagonal(a, 0)
    return columns, np.diag(a.sum(1)) - a


def test_kernel_and_graph_are_the_papers() -> None:
    x, _ = made()
    columns, graph = plain(x)
    scaled = standardize(x)
    np.testing.assert_allclose(kernel_columns(scaled, None), columns, atol=1e-12)
    np.testing.assert_allclose(laplacian(affinity(scaled, 19, 10.0)).toarray(), graph, atol=1e-9)


def test_gradient_against_finite_differences() -> None:
    x, y = made(12)
    columns, graph = plain(x)
    weights = np.random.default_rng(1).random((13, 3))

    def value(w: np.ndarray) -> float:
        z = columns @ w
        return ((z - y) ** 2).sum() + 0.3 * np.trace(z.T @ graph @ z)

    found, gradient = objective(weights, columns, y, lambda z: graph @ z, 0.3)
    assert found == pytest.approx(value(weights), rel=1e-12)
    for index in np.ndindex(weights.shape):
        step = np.zeros_like(weights)
        step[index] = 1e-5
        numeric = (value(weights + step) - value(weights - step)) / 2e-5
        assert gradient[index] == pytest.approx(numeric, rel=1e-6, abs=1e-6)


def test_minimum_solves_the_linear_system() -> None:
    x, y = made()
    _, graph = plain(x)
    fitted = np.linalg.solve(np.eye(30) + 0.01 * graph, y)
    found = GLLE(max_iterations=None).fit_transform(x, y)
    np.testing.assert_allclose(found, softmax(fitted), atol=1e-8)
    # No seed moves it.
    again = GLLE(max_iterations=None).fit_many(x, y, [np.arange(30)] * 2, [5, 6])
    np.testing.assert_array_equal(again[0], again[1])


def test_equal_rows_get_equal_distributions_at_the_minimum() -> None:
    x, y = made()
    x[7] = x[3]
    columns, graph = plain(x)
    found = GLLE(max_iterations=None, lam=0.5).fit_transform(x, y)
    np.testing.assert_allclose(found[7], found[3], atol=1e-12)
    # The normal equations of W itself, which have many solutions but one F W.
    normal = columns.T @ (columns + 0.5 * graph @ columns)
    fitted = columns @ np.linalg.lstsq(normal, columns.T @ y, rcond=1e-14)[0]
    np.testing.assert_allclose(found, softmax(fitted), atol=1e-5)


def test_few_unknowns_are_minimised_to_the_end() -> None:
    # 31 x 3 unknowns: BFGS.
    x, y = made()
    reached = GLLE(max_iterations=5000).fit_transform(x, y)
    minimum = GLLE(max_iterations=None).fit_transform(x, y)
    np.testing.assert_allclose(reached, minimum, atol=1e-3)


@pytest.mark.parametrize("dense", [0, 3000])
def test_both_optimisers_go_down(monkeypatch: pytest.MonkeyPatch, dense: int) -> None:
    monkeypatch.setattr(_kernel, "_DENSE", dense)
    x, y = made()
    columns, graph = plain(x)

    def value(z: np.ndarray) -> float:
        return ((z - y) ** 2).sum() + 0.01 * np.trace(z.T @ graph @ z)

    least = value(np.linalg.solve(np.eye(30) + 0.01 * graph, y))
    reached = []
    for most in (1, 30, 400):
        z = _kernel.descend(
            columns,
            y,
            lambda v: graph @ v,
            0.01,
            seed=0,
            max_iterations=most,
            tolerance=1e-6,
            memory=20,
        )
        reached.append(value(z))
    assert reached[0] > reached[1] > reached[2] >= least - 1e-9
    # No model at all has the squares of the labels.
    assert reached[2] < 0.4 * (y**2).sum()


def test_a_large_tolerance_stops_at_once() -> None:
    x, y = made()
    columns = kernel_columns(standardize(x), None)
    start = columns @ np.random.default_rng(3).random((31, 3))
    found = GLLE(tolerance=1e6, random_state=3).fit_transform(x, y)
    np.testing.assert_allclose(found, softmax(start), atol=1e-9)


def test_minimum_with_landmarks_is_the_least_squares_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = made(60)
    _, graph = plain(x)
    chosen = _kernel.landmark_rows(60, 9, seed=4)
    assert chosen is not None
    assert len(set(chosen)) == 9
    columns = kernel_columns(standardize(x), chosen)
    normal = columns.T @ (columns + 0.2 * graph @ columns)
    fitted = columns @ np.linalg.solve(normal, columns.T @ y)
    asked = GLLE(lam=0.2, landmarks=9, max_iterations=None, random_state=4)
    np.testing.assert_allclose(asked.fit_transform(x, y), softmax(fitted), atol=1e-7)
    # Above some number of rows they are taken unasked.
    monkeypatch.setattr(_kernel, "ALL", 59)
    monkeypatch.setattr(_kernel, "LANDMARKS", 9)
    unasked = GLLE(lam=0.2, max_iterations=None, random_state=4)
    np.testing.assert_array_equal(unasked.fit_transform(x, y), asked.fit_transform(x, y))


def test_products_made_once_are_the_same_objective() -> None:
    x, y = made(60)
    columns, graph = plain(x)
    columns = columns[:, -8:]
    weights = np.random.default_rng(1).random((8, 3))
    value, gradient = objective(weights, columns, y, lambda z: graph @ z, 0.3)
    found = _kernel._gathered(columns, y, lambda z: graph @ z, 0.3)(weights)
    assert found[0] == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-10)


@pytest.mark.parametrize("unknowns", [0, 3000])
def test_few_columns_take_the_same_first_steps(
    monkeypatch: pytest.MonkeyPatch, unknowns: int
) -> None:
    monkeypatch.setattr(_kernel, "_DENSE", unknowns)
    x, y = made(60)
    # Later ones differ: each step makes differences of rounding some forty times as large.
    asked = GLLE(landmarks=8, max_iterations=5)
    found = asked.fit_transform(x, y)
    monkeypatch.setattr(_kernel, "_FEW", 1000)
    np.testing.assert_allclose(found, asked.fit_transform(x, y), atol=1e-6)


def test_landmarks_for_all_rows_change_nothing() -> None:
    x, y = made()
    np.testing.assert_array_equal(
        GLLE(landmarks=30).fit_transform(x, y), GLLE().fit_transform(x, y)
    )


@pytest.mark.slow
def test_printed_row_of_yeast_alpha(shared_data: Path) -> None:
    folder = shared_data / "distributions"
    data = loadmat(folder / "Yeast_alpha.mat")
    labels = loadmat(folder / "logical_labels" / "Yeast_alpha_binary.mat")["logicalLabel"]
    everything = np.arange(len(labels))
    runs = GLLE().fit_many(data["features"], labels.astype(float), [everything] * 2, [0, 1])
    found = [distribution_measures(run, data["labels"]) for run in runs]
    for name, printed in {
        "kl_recovered_true": 0.013,
        "chebyshev": 0.020,
        "clark": 0.337,
        "canberra": 1.134,
        "cosine": 0.987,
        "intersection": 0.938,
    }.items():
        mean = np.mean([one[name] for one in found])
        assert mean == pytest.approx(printed, abs=max(0.001, 0.03 * printed)), name
