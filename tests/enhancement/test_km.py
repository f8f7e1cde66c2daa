"""KM by hand and against loops."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmlcl.enhancement import KM, _graph
from jaxmlcl.enhancement._base import normalized


def by_loops(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    n, labels = y.shape
    distances = [np.linalg.norm(x[i] - x[j]) for i in range(n) for j in range(i)]
    width = np.mean(distances)

    def kernel(i: int, j: int) -> float:
        return float(np.exp(-((x[i] - x[j]) ** 2).sum() / (2 * width**2)))

    memberships = np.zeros((n, labels))
    for label in range(labels):
        members = [i for i in range(n) if y[i, label]]
        own = np.mean([[kernel(i, j) for j in members] for i in members])
        squares = {i: 1 - 2 * np.mean([kernel(i, j) for j in members]) + own for i in members}
        for i in members:
            memberships[i, label] = 1 - np.sqrt(squares[i] / max(squares.values()))
    return memberships


def test_memberships_are_those_of_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(30, 3)), generator.integers(0, 2, (30, 4))
    expected = by_loops(x, y)
    full = expected.sum(1) > 0
    monkeypatch.setattr(_graph, "_HELD", 100)
    np.testing.assert_allclose(
        KM().fit_transform(x, y)[full], normalized(expected[full]), atol=1e-9
    )
    exponentials = np.exp(expected)
    np.testing.assert_allclose(
        KM("softmax").fit_transform(x, y),
        exponentials / exponentials.sum(1, keepdims=True),
        atol=1e-9,
    )


def test_hand_case() -> None:
    # Distances 1, 2, 1: width 4 / 3. Label 0 is on all rows. Two rows as far from the centre as
    # any have no membership and share their mass equally.
    a, b = np.exp(-9 / 32), np.exp(-36 / 32)
    own = (3 + 4 * a + 2 * b) / 9
    middle = 1 - 2 * (1 + 2 * a) / 3 + own
    ends = 1 - 2 * (1 + a + b) / 3 + own
    first = 1 - np.sqrt(middle / ends)
    # Label 1 is on rows 0 and 1, which lie as far from their centre as each other.
    found = KM().fit_transform([[0.0], [1.0], [2.0]], [[1, 1, 0], [1, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(found, [[0.5, 0.5, 0], [1, 0, 0], [1, 0, 0]], atol=1e-12)
    soft = KM("softmax").fit_transform([[0.0], [1.0], [2.0]], [[1, 1, 0], [1, 1, 0], [1, 0, 0]])
    assert soft[1, 0] / soft[1, 1] == pytest.approx(np.exp(first), rel=1e-9)


def test_labels_that_a_row_lacks_get_nothing() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(50, 3)), generator.integers(0, 2, (50, 5))
    y[:, 0] = 1
    found = KM().fit_transform(x, y)
    assert (found[y == 0] == 0).all()


def test_a_label_of_one_row_and_equal_rows() -> None:
    # One row is its label's centre: all of it belongs to the label.
    assert KM().fit_transform([[0.0], [1.0]], [[1, 0], [0, 1]]).tolist() == [[1, 0], [0, 1]]
    found = KM().fit_transform([[2.0], [2.0]], [[1, 1], [1, 0]])
    np.testing.assert_allclose(found, [[0.5, 0.5], [1.0, 0.0]])
