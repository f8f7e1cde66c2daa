"""Probes against scikit-learn, against plain loops, and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.neighbors import KNeighborsClassifier

from jaxmlcl.evaluation import average_precision, knn_scores, ridge_scores


def draw(seed: int, rows: int, width: int = 8, num_labels: int = 5) -> tuple[Any, Any]:
    """Embeddings, and labels that depend on them linearly."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, width)) * 3.0 + 1.0
    weights = np.random.default_rng(0).normal(size=(width, num_labels))
    return x, (x @ weights + 3 * rng.normal(size=(rows, num_labels)) > 4).astype(np.uint8)


TRAIN, LABELS = draw(1, 90)
VALIDATION, VALIDATION_LABELS = draw(2, 40)
TEST, _ = draw(3, 30)
CHOICE: dict[str, Any] = {
    "validation_embeddings": VALIDATION,
    "validation_labels": VALIDATION_LABELS,
}


def mean_precision(scores: np.ndarray, labels: np.ndarray, mask: Any = None) -> float:
    return float(np.nanmean(average_precision(scores, labels, label_mask=mask)))


@pytest.mark.parametrize("temperature", [None, 0.07, 1.0])
def test_knn_is_scikit_learns(temperature: float | None) -> None:
    def weigh(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / (temperature or 1))

    model = KNeighborsClassifier(
        7, metric="cosine", algorithm="brute", weights="uniform" if temperature is None else weigh
    )
    chances = model.fit(TRAIN, LABELS).predict_proba(TEST)
    want = np.stack([label[:, 1] for label in chances], axis=1)
    got = knn_scores(TRAIN, LABELS, TEST, neighbours=7, temperature=temperature)
    assert got.scores == pytest.approx(want, abs=1e-5)
    assert got.scores.dtype == np.float32
    assert (got.chosen, got.tried, got.validation_scores) == (7, {}, None)


def test_knn_by_hand() -> None:
    train = [[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]
    got = knn_scores(train, [[1], [0], [1]], [[5.0, 0.0]], neighbours=2, temperature=0.5)
    # cosines 1 and 0: weights 1 and exp(-2)
    assert got.scores[0, 0] == pytest.approx(1 / (1 + math.exp(-2)))
    # Every training row is its own nearest neighbour: nothing is left out.
    assert knn_scores(train, [[1], [0], [1]], train, neighbours=1).scores.tolist() == [
        [1.0],
        [0.0],
        [1.0],
    ]
    # More neighbours than rows are all rows; a row of zeros is at right angles to everything.
    zero = knn_scores(train, [[1], [0], [1]], [[0.0, 0.0]], neighbours=9, temperature=None)
    assert (zero.scores[0, 0], zero.chosen) == (pytest.approx(2 / 3), 3)


def test_knn_chooses_on_validation() -> None:
    sizes = (1, 3, 9, 30, 500)
    got = knn_scores(TRAIN, LABELS, TEST, neighbours=sizes, **CHOICE)
    want = {
        min(k, 90): mean_precision(
            knn_scores(TRAIN, LABELS, VALIDATION, neighbours=k).scores, VALIDATION_LABELS
        )
        for k in sizes
    }
    assert got.tried == pytest.approx(want)
    assert got.chosen == max(want, key=want.__getitem__)
    alone = knn_scores(TRAIN, LABELS, TEST, neighbours=int(got.chosen))
    assert got.scores.tolist() == alone.scores.tolist()
    checked = knn_scores(TRAIN, LABELS, VALIDATION, neighbours=int(got.chosen))
    assert got.validation_scores is not None
    assert got.validation_scores.tolist() == checked.scores.tolist()


def test_knn_without_validation_leaves_training_rows_out() -> None:
    got = knn_scores(TRAIN, LABELS, TEST, neighbours=(1, 5, 20))
    for k, found in got.tried.items():
        scores = np.concatenate(
            [
                knn_scores(
                    np.delete(TRAIN, i, 0), np.delete(LABELS, i, 0), TRAIN[[i]], neighbours=int(k)
                ).scores
                for i in range(len(TRAIN))
            ]
        )
        assert found == pytest.approx(mean_precision(scores, LABELS), abs=1e-6)
    assert got.chosen == max(got.tried, key=got.tried.__getitem__)
    assert got.validation_scores is None


def test_knn_asks_only_rows_that_know() -> None:
    mask = np.random.default_rng(4).random(LABELS.shape) < 0.5
    mask[:, 2] = False
    mask[:3, 2] = True
    hidden = np.where(mask, LABELS, 1)
    got = knn_scores(TRAIN, hidden, TEST, neighbours=6, temperature=None, label_mask=mask)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (TEST, TRAIN)]
    nearest = np.argsort(-(unit[0] @ unit[1].T), axis=1)[:, :6]
    for i, rows in enumerate(nearest):
        for j in range(LABELS.shape[1]):
            votes = LABELS[rows[mask[rows, j]], j]
            want = votes.mean() if votes.size else LABELS[mask[:, j], j].mean()
            assert got.scores[i, j] == pytest.approx(want, abs=1e-6)
    part = np.random.default_rng(5).random(VALIDATION_LABELS.shape) < 0.5
    found = knn_scores(
        TRAIN, LABELS, TEST, neighbours=(1, 9), label_mask=mask, validation_mask=part, **CHOICE
    )
    scores = knn_scores(TRAIN, LABELS, VALIDATION, neighbours=9, label_mask=mask).scores
    assert found.tried[9] == pytest.approx(mean_precision(scores, VALIDATION_LABELS, part))


def test_blocks_are_invisible(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = knn_scores(TRAIN, LABELS, TEST, neighbours=(3, 9), **CHOICE)
    alone = knn_scores(TRAIN, LABELS, TEST, neighbours=(3, 9))
    monkeypatch.setattr("jaxmlcl.evaluation._probes._BLOCK", 400)
    for found, options in ((whole, CHOICE), (alone, {})):
        again = knn_scores(TRAIN, LABELS, TEST, neighbours=(3, 9), **options)
        assert again.scores == pytest.approx(found.scores, abs=1e-6)
        assert again.tried == pytest.approx(found.tried, abs=1e-6)


@pytest.mark.parametrize("width", [8, 200], ids=["rows", "features"])
def test_ridge_is_scikit_learns(width: int) -> None:
    x, y = draw(1, 90, width)
    queries = draw(3, 30, width)[0]
    unit = np.square(x - x.mean(axis=0)).sum() / width
    for penalty in (1e-4, 0.1, 20.0):
        want = Ridge(alpha=penalty * unit).fit(x, y).predict(queries)
        got = ridge_scores(x, y, queries, penalties=penalty)
        assert got.scores == pytest.approx(want, abs=1e-5)
        assert (got.chosen, got.tried, got.validation_scores) == (penalty, {}, None)


@pytest.mark.parametrize("width", [8, 200], ids=["rows", "features"])
def test_ridge_leaves_one_out_as_scikit_learn(width: int) -> None:
    x, y = draw(1, 90, width)
    penalties = [1e-3, 0.1, 1.0, 30.0]
    unit = np.square(x - x.mean(axis=0)).sum() / width
    model = RidgeCV([p * unit for p in penalties], store_cv_results=True).fit(x, y)
    got = ridge_scores(x, y, x, penalties=penalties)
    want = model.cv_results_.mean(axis=(0, 1))
    assert list(got.tried.values()) == pytest.approx(want, rel=1e-6)
    assert got.chosen == pytest.approx(model.alpha_ / unit)


def test_ridge_chooses_on_validation() -> None:
    got = ridge_scores(TRAIN, LABELS, TEST, **CHOICE)
    assert len(got.tried) == 10
    for penalty, found in got.tried.items():
        scores = ridge_scores(TRAIN, LABELS, VALIDATION, penalties=penalty).scores
        assert found == mean_precision(scores, VALIDATION_LABELS)
    assert got.chosen == max(got.tried, key=got.tried.__getitem__)
    alone = ridge_scores(TRAIN, LABELS, TEST, penalties=got.chosen)
    assert got.scores.tolist() == alone.scores.tolist()
    assert got.validation_scores is not None
    assert mean_precision(got.validation_scores, VALIDATION_LABELS) == max(got.tried.values())


def test_ridge_does_not_know_the_scale_of_the_embeddings() -> None:
    small = ridge_scores(TRAIN, LABELS, TEST, penalties=0.3)
    large = ridge_scores(TRAIN * 1e4 + 7, LABELS, TEST * 1e4 + 7, penalties=0.3)
    assert large.scores == pytest.approx(small.scores, abs=1e-5)


def test_ridge_fits_each_label_to_the_rows_that_know_it() -> None:
    mask = np.ones(LABELS.shape, bool)
    mask[:30, 1] = mask[:30, 3] = mask[50:, 2] = mask[:, 4] = False
    hidden = np.where(mask, LABELS, 1)
    got = ridge_scores(TRAIN, hidden, TEST, penalties=0.1, label_mask=mask)
    for j in range(4):
        rows = mask[:, j]
        want = ridge_scores(TRAIN[rows], LABELS[rows][:, [j]], TEST, penalties=0.1)
        assert got.scores[:, [j]] == pytest.approx(want.scores, abs=1e-6)
    assert not got.scores[:, 4].any()
    left_out = ridge_scores(TRAIN, hidden, TEST, penalties=[0.1, 1.0], label_mask=mask).tried[0.1]
    squares = 0.0
    for i, j in np.argwhere(mask):
        rows = mask[:, j] & (np.arange(len(TRAIN)) != i)
        # The unit of the penalty is that of all rows, as in the closed form.
        x = TRAIN[mask[:, j]]
        alpha = 0.1 * np.square(x - x.mean(axis=0)).sum() / x.shape[1]
        model = Ridge(alpha=alpha).fit(TRAIN[rows], LABELS[rows, j])
        squares += (LABELS[i, j] - model.predict(TRAIN[[i]])[0]) ** 2
    assert left_out == pytest.approx(squares / mask.sum())


@pytest.mark.parametrize("probe", [knn_scores, ridge_scores])
def test_edges(probe: Any) -> None:
    one = probe([[1.0, 2.0]], [[1, 0]], [[0.5, 0.5]])
    assert one.scores.tolist() == [[1.0, 0.0]]
    same = probe(np.ones((4, 2)), [[1], [0], [1], [0]], np.ones((2, 2)))
    assert same.scores == pytest.approx(np.full((2, 1), 0.5))
    nothing = probe(TRAIN, np.zeros_like(LABELS), TEST, **CHOICE)
    assert not nothing.scores.any()
    # No label of the validation rows has a positive: there is nothing to choose by.
    blind = {**CHOICE, "validation_labels": np.zeros_like(VALIDATION_LABELS)}
    found = probe(TRAIN, LABELS, TEST, **blind)
    assert found.chosen == min(found.tried)
    assert np.isnan(list(found.tried.values())).all()


@pytest.mark.parametrize("probe", [knn_scores, ridge_scores])
def test_misuse_is_named(probe: Any) -> None:
    with pytest.raises(ValueError, match=r"embeddings has shape \(30, 7\), expected \[rows, 8\]"):
        probe(TRAIN, LABELS, TEST[:, :7])
    with pytest.raises(ValueError, match=r"train_labels has shape \(89, 5\), expected \[90, L\]"):
        probe(TRAIN, LABELS[1:], TEST)
    with pytest.raises(ValueError, match=r"train_labels\[0, 0\] is 2: train_labels must be 0 or 1"):
        probe(TRAIN, np.full_like(LABELS, 2), TEST)
    with pytest.raises(ValueError, match="train_embeddings must be finite"):
        probe(np.full_like(TRAIN, np.nan), LABELS, TEST)
    with pytest.raises(ValueError, match="train_embeddings has no row"):
        probe(TRAIN[:0], LABELS[:0], TEST)
    with pytest.raises(ValueError, match="give both or neither"):
        probe(TRAIN, LABELS, TEST, validation_labels=VALIDATION_LABELS)
    with pytest.raises(ValueError, match=r"validation_labels has shape \(40, 4\), expected \[v, 5"):
        probe(TRAIN, LABELS, TEST, **{**CHOICE, "validation_labels": VALIDATION_LABELS[:, 1:]})


def test_misuse_of_one() -> None:
    with pytest.raises(ValueError, match="neighbours is 0, expected numbers of at least 1"):
        knn_scores(TRAIN, LABELS, TEST, neighbours=0)
    with pytest.raises(ValueError, match="temperature is 0, expected a positive number or None"):
        knn_scores(TRAIN, LABELS, TEST, temperature=0)
    with pytest.raises(ValueError, match=r"penalties is 0.0, expected positive numbers"):
        ridge_scores(TRAIN, LABELS, TEST, penalties=0.0)
