"""What needs no method: by hand, and against figures measured elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat

from jaxmlcl.enhancement import REFERENCES, r1, r2, softmax_of_normalized
from jaxmlcl.evaluation import distribution_measures

NAMES = (
    "kl_recovered_true",
    "chebyshev",
    "clark",
    "canberra",
    "cosine",
    "intersection",
)


def test_by_hand() -> None:
    labels = [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
    np.testing.assert_allclose(r1(labels)[0], [0.8 / 3 + 0.1, 0.8 / 3 + 0.1, 0.8 / 3])
    np.testing.assert_allclose(r1(labels)[1:], 1 / 3)
    half = np.exp(0.5)
    np.testing.assert_allclose(
        softmax_of_normalized(labels)[0], np.array([half, half, 1]) / (2 * half + 1)
    )
    np.testing.assert_allclose(softmax_of_normalized(labels)[1:], 1 / 3)


def test_r2_asks_the_twenty_nearest() -> None:
    generator = np.random.default_rng(0)
    # The second feature counts as much as the first only if both are standardised.
    x = generator.normal(size=(50, 2)) * [1, 1000]
    y = generator.integers(0, 2, (50, 4))
    scaled = (x - x.mean(0)) / x.std(0)
    own = np.array([row / row.sum() if row.sum() else np.full(4, 0.25) for row in y])
    for i in range(50):
        distances = ((scaled - scaled[i]) ** 2).sum(1)
        distances[i] = np.inf
        around = own[np.argsort(distances)[:20]].mean(0)
        np.testing.assert_allclose(r2(x, y)[i], 0.2 + 0.1 * own[i] + 0.1 * around)


def test_every_reference_gives_distributions() -> None:
    x, y = np.array([[0.0], [1.0], [2.0]]), np.array([[1, 0], [0, 0], [1, 1]])
    assert set(REFERENCES) == {"uniform", "normalized", "softmax_of_normalized", "r1", "r2"}
    for function in REFERENCES.values():
        found = function(x, y)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found.sum(1), 1)
        np.testing.assert_allclose(function(x[:1], y[:1]).sum(1), 1)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match=r"labels\[0, 1\] is 2"):
        r1([[1, 2]])
    with pytest.raises(ValueError, match="labels has shape"):
        r1([1, 0])
    with pytest.raises(ValueError, match="labels has shape"):
        r2([[1.0]], [[1, 0], [0, 1]])


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (
            "SJAFFE",
            {
                "uniform": (0.071, 0.120, 0.429, 0.900, 0.930, 0.847),
                "softmax_of_normalized": (0.034, 0.085, 0.294, 0.587, 0.967, 0.900),
                "r1": (0.031, 0.080, 0.283, 0.565, 0.969, 0.903),
                "r2": (0.041, 0.094, 0.322, 0.651, 0.960, 0.889),
            },
        ),
        (
            "Yeast_spo5",
            {
                "uniform": (0.032, 0.092, 0.185, 0.285, 0.974, 0.908),
                "softmax_of_normalized": (0.014, 0.067, 0.143, 0.217, 0.988, 0.933),
                "r1": (0.013, 0.061, 0.127, 0.192, 0.989, 0.939),
                "r2": (0.019, 0.069, 0.141, 0.215, 0.985, 0.931),
            },
        ),
    ],
)
def test_figures_of_real_sets(
    shared_data: Path, name: str, rows: dict[str, tuple[float, ...]]
) -> None:
    folder = shared_data / "distributions"
    data = loadmat(folder / f"{name}.mat")
    labels = loadmat(folder / "logical_labels" / f"{name}_binary.mat")["logicalLabel"]
    for reference, figures in rows.items():
        recovered = REFERENCES[reference](data["features"], labels)
        found = distribution_measures(recovered, data["labels"])
        np.testing.assert_allclose([found[key] for key in NAMES], figures, atol=7e-4)
