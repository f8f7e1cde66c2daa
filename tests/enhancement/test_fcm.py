"""FCM: its fixed point, its composition, and clusters that are plain to see."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmlcl.enhancement import FCM
from jaxmlcl.enhancement.fcm import _max_product


def made() -> np.ndarray:
    generator = np.random.default_rng(0)
    return np.concatenate([generator.normal(size=(15, 2)) + centre for centre in ((0, 0), (9, 3))])


@pytest.mark.parametrize("fuzziness", [1.5, 2.0])
def test_memberships_are_a_fixed_point(fuzziness: float) -> None:
    x = made()
    u = FCM(clusters=3, fuzziness=fuzziness, tolerance=1e-13)._memberships(x, 0)
    np.testing.assert_allclose(u.sum(1), 1.0, atol=1e-12)
    assert (u >= 0).all()
    weights = u**fuzziness
    centres = [(weights[:, k, None] * x).sum(0) / weights[:, k].sum() for k in range(3)]
    for i, row in enumerate(x):
        distance = [np.linalg.norm(row - centre) for centre in centres]
        for k in range(3):
            ratios = [(distance[k] / other) ** (2 / (fuzziness - 1)) for other in distance]
            assert u[i, k] == pytest.approx(1 / sum(ratios), abs=1e-9)


def test_composition_is_max_product() -> None:
    table = np.array([[1.0, 0.5], [0.2, 3.0], [0.0, 0.0]])
    u = np.array([[0.9, 0.1], [0.25, 0.75]])
    np.testing.assert_allclose(_max_product(table, u), [[0.9, 0.3, 0.0], [0.375, 2.25, 0.0]])


def test_rows_of_a_cluster_share_its_labels() -> None:
    x = made()
    y = np.zeros((30, 3), int)
    y[:15, 0] = y[:5, 1] = y[15:, 2] = 1
    # A row without labels is like its neighbours.
    y[0] = 0
    found = FCM(clusters=2).fit_transform(x, y)
    assert (found[:15].argmax(1) == 0).all()
    assert (found[15:].argmax(1) == 2).all()
    np.testing.assert_allclose(found[0], found[1], atol=0.1)
    # Fourteen rows of the first cluster have the first label, four the second.
    np.testing.assert_allclose(found[:15, 1] / found[:15, 0], 4 / 14, atol=0.05)


def test_a_row_that_is_a_centre_belongs_to_it() -> None:
    shares = FCM()._shares(np.array([[0.0], [1.0]]), np.array([[0.0], [2.0], [0.0]]))
    np.testing.assert_allclose(shares, [[0.5, 0.0, 0.5], [1 / 3] * 3])


def test_no_more_clusters_than_rows() -> None:
    assert FCM(clusters=50)._memberships(np.array([[0.0], [1.0], [5.0]]), 0).shape == (3, 3)
