"""LP by hand, against its own iteration, and what published tables print."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat

from jaxmlcl.enhancement import LP, lp
from jaxmlcl.enhancement._base import normalized
from jaxmlcl.evaluation import distribution_measures


def made(n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(n, 3)), generator.integers(0, 2, (n, 4))


def by_loops(x: np.ndarray, y: np.ndarray, alpha: float, diagonal: float, steps: int) -> np.ndarray:
    n = len(x)
    a = [
        [diagonal if i == j else np.exp(-((x[i] - x[j]) ** 2).sum() / 2) for j in range(n)]
        for i in range(n)
    ]
    degree = [sum(row) for row in a]
    p = np.array([[a[i][j] / np.sqrt(degree[i] * degree[j]) for j in range(n)] for i in range(n)])
    f = y.astype(float)
    for _ in range(steps):
        f = alpha * p @ f + (1 - alpha) * y
    return f


@pytest.mark.parametrize("zero_diagonal", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_closed_form_is_the_limit_of_the_iteration(alpha: float, zero_diagonal: bool) -> None:
    x, y = made()
    limit = by_loops(x, y, alpha, 1.0 - zero_diagonal, 500)
    closed = LP(alpha, zero_diagonal=zero_diagonal)
    np.testing.assert_allclose(closed.fit_transform(x, y), normalized(limit), atol=1e-10)
    iterated = LP(alpha, "iterate", zero_diagonal=zero_diagonal)
    np.testing.assert_allclose(iterated.fit_transform(x, y), normalized(limit), atol=1e-10)
    # A graph of all neighbours is all pairs.
    sparse = LP(alpha, zero_diagonal=zero_diagonal, neighbours=39)
    np.testing.assert_allclose(sparse.fit_transform(x, y), normalized(limit), atol=1e-9)


def test_few_iterations_are_that_many() -> None:
    x, y = made()
    found = LP(solver="iterate", iterations=3).fit_transform(x, y)
    np.testing.assert_allclose(found, normalized(by_loops(x, y, 0.5, 0.0, 3)), atol=1e-12)


def test_softmax_output() -> None:
    x, y = made()
    exponentials = np.exp(by_loops(x, y, 0.5, 0.0, 500))
    np.testing.assert_allclose(
        LP(output="softmax").fit_transform(x, y),
        exponentials / exponentials.sum(1, keepdims=True),
        atol=1e-10,
    )


def test_rows_far_from_all_others_keep_their_labels() -> None:
    # exp(-d^2 / 2) is zero between them.
    found = LP().fit_transform([[0.0], [100.0], [200.0]], [[1, 1, 0], [0, 0, 1], [0, 0, 0]])
    np.testing.assert_allclose(found, [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [1 / 3] * 3])


def test_many_rows_get_a_graph_of_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = made(60)
    dense = LP().fit_transform(x, y)
    monkeypatch.setattr(lp, "DENSE", 59)
    np.testing.assert_array_equal(LP().fit_transform(x, y), LP(neighbours=20).fit_transform(x, y))
    assert np.abs(LP().fit_transform(x, y) - dense).max() > 1e-3


def test_printed_row_of_yeast_alpha(shared_data: Path) -> None:
    # The tables of later papers (KL with the recovered distribution first).
    folder = shared_data / "distributions"
    data = loadmat(folder / "Yeast_alpha.mat")
    labels = loadmat(folder / "logical_labels" / "Yeast_alpha_binary.mat")["logicalLabel"]
    found = distribution_measures(LP().fit_transform(data["features"], labels), data["labels"])
    for name, printed in {
        "kl_recovered_true": 0.121,
        "chebyshev": 0.040,
        "clark": 1.185,
        "canberra": 4.544,
        "cosine": 0.911,
        "intersection": 0.774,
    }.items():
        assert found[name] == pytest.approx(printed, abs=6e-4)
