"""Heat maps of class similarity and maps of rows in the report."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps, image
from matplotlib.axes import Axes

from jaxmlcl.errors import UserError
from jaxmlcl.report import build_report, class_similarity, similarity_map
from jaxmlcl.report._representations import neighbour_map


def write(run: Path, stage: str, spread: float, seed: int = 0) -> None:
    """Representations of ten classes, of which the last has no row of its own."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(10, 16))
    labels = np.eye(10, dtype=np.uint8)[np.arange(120) % 9]
    labels[::5, 9] = 1
    representation = labels @ centres + spread * rng.normal(size=(120, 16))
    alone = labels.sum(axis=1) == 1
    counts = labels[alone].sum(axis=0)
    means = labels[alone].T @ representation[alone] / np.maximum(counts, 1)[:, None]
    np.savez(
        run / "evaluation" / f"{stage}-test-representations.npz",
        class_means=means,
        class_counts=counts,
        ids=np.arange(120),
        labels=labels,
        alone=labels.sum(axis=1) == 1,
        representation=representation,
        label_names=np.array([f"digit {i}" for i in range(10)]),
    )


def test_similarity_by_hand() -> None:
    means = np.array([[3.0, 0.0], [1.0, 1.0], [0.0, -2.0]])
    cosine = np.array([[1, 0.5**0.5, 0], [0.5**0.5, 1, -(0.5**0.5)], [0, -(0.5**0.5), 1]])
    expected = np.exp(cosine) / np.exp(cosine).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(class_similarity(means), expected, rtol=1e-12)
    # Rows are normalised one by one, so the matrix is not symmetric.
    assert not np.allclose(expected, expected.T)


def test_a_mean_of_zero_is_as_like_every_class() -> None:
    similarity = class_similarity(np.array([[1.0, 2.0], [0.0, 0.0], [-1.0, 0.0]]))
    np.testing.assert_allclose(similarity[1], 1 / 3)
    np.testing.assert_allclose(similarity.sum(axis=1), 1)


@pytest.mark.parametrize("limits", [None, (0.0, 1.0)])
def test_the_most_alike_is_darkest(
    limits: tuple[float, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    imshow = Axes.imshow

    def kept(axes: Axes, *words: Any, **settings: Any) -> Any:
        drawn.append(imshow(axes, *words, **settings))
        return drawn[-1]

    monkeypatch.setattr(Axes, "imshow", kept)
    values = np.array([[0.9, 0.1], [0.5, 0.7]])
    picture = similarity_map(values, ["a", "b"], limits)
    assert image.imread(io.BytesIO(picture)).ndim == 3
    (cells,) = drawn
    np.testing.assert_array_equal(cells.get_array(), values)
    light = cells.to_rgba(values)[..., :3].sum(axis=-1)
    assert np.argsort(light, axis=None).tolist() == [0, 3, 2, 1]
    # The ends of the scale are the ends of the colours, so that maps under one scale compare.
    ends = cells.to_rgba(np.array(limits or (0.1, 0.9)))
    np.testing.assert_allclose(ends, colormaps["Blues"](np.array([0.0, 1.0])))


def test_both_stages_stand_beside_each_other(scored_run: Path) -> None:
    write(scored_run, "probe", 0.1)
    write(scored_run, "bce", 2.0)
    page = build_report(scored_run)
    assert page == build_report(scored_run)
    assert page.count('alt="Heat map of class similarities') == 2
    assert "Of 9 labels" in page
    assert "1 label without such a row is left out" in page
    cosines = [float(x) for x in re.findall(r"mean cosine of two labels (-?[\d.]+)", page)]
    assert len(cosines) == 2
    assert cosines[0] != cosines[1]
    assert page.count('by t-SNE"') == 2
    # Five labels have a colour on each map; the one without rows of its own is none of them.
    legend = re.findall(r'class="key block k[1-5]">(digit \d)</span>', page)
    assert len(legend) == 2 * 5
    assert "digit 9" not in legend


def test_without_representations_there_is_no_such_part(scored_run: Path) -> None:
    assert "Class similarity" not in build_report(scored_run)
    write(scored_run, "bce", 1.0)
    page = build_report(scored_run)
    assert page.count('alt="Heat map of class similarities') == 1


def test_neighbours_stay_together() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 40)
    centres = np.array([[10.0] + [0.0] * 7, [0.0] * 7 + [10.0]])
    rows = centres[groups] + 0.1 * rng.normal(size=(80, 8))
    places = neighbour_map(rows)
    assert places is not None
    middles = np.stack([places[groups == group].mean(axis=0) for group in (0, 1)])
    nearest = np.linalg.norm(places[:, None] - middles, axis=-1).argmin(axis=1)
    np.testing.assert_array_equal(nearest, groups)
    np.testing.assert_array_equal(places, np.asarray(neighbour_map(rows)))


@pytest.mark.parametrize("rows", [np.ones((40, 3)), np.zeros((30, 1)), np.eye(19)])
def test_rows_that_hardly_differ_have_no_map(rows: np.ndarray) -> None:
    assert neighbour_map(rows) is None


@pytest.mark.parametrize("rows", [np.eye(25), np.repeat(np.eye(25), 3, axis=0)])
def test_equal_rows_have_one_place(rows: np.ndarray) -> None:
    places = neighbour_map(rows)
    assert places is not None
    assert np.isfinite(places).all()
    assert len(np.unique(places, axis=0)) == 25


@pytest.mark.parametrize("damage", ["cut", "shape", "nan", "pickle"])
def test_a_damaged_file_is_told_in_one_line(scored_run: Path, damage: str) -> None:
    write(scored_run, "bce", 1.0)
    path = scored_run / "evaluation" / "bce-test-representations.npz"
    with np.load(path) as file:
        arrays = dict(file)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:500])
    else:
        if damage == "shape":
            arrays["class_counts"] = arrays["class_counts"][1:]
        elif damage == "nan":
            arrays["representation"][3, 3] = np.nan
        else:
            arrays["labels"] = arrays["labels"].astype(object)
        np.savez(path, **arrays)
    with pytest.raises(UserError, match=r"bce-test-representations.npz: damaged .*evaluate"):
        build_report(scored_run)
