"""Baselines by hand, against loops, against scikit-learn, and on the real sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression as SkLogisticRegression
from sklearn.svm import SVC

from jaxmlcl.baselines import (
    Baseline,
    KernelSVM,
    LabelFrequencies,
    LogisticRegression,
    MLkNN,
)
from jaxmlcl.data.source import open_source
from jaxmlcl.errors import ConfigError
from jaxmlcl.evaluation import multilabel_metrics

ALL = (LabelFrequencies(), MLkNN(neighbours=3), LogisticRegression(), KernelSVM())


def made(rows: int, seed: int = 0, labels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 4))
    planes = np.random.default_rng(7).normal(size=(4, labels))
    return x, (x @ planes + generator.normal(size=(rows, labels)) > 0.5).astype(np.uint8)


def by_loops(
    x: np.ndarray, y: np.ndarray, known: np.ndarray, queries: np.ndarray, k: int, s: float
) -> np.ndarray:
    """ML-kNN as its paper writes it, one row and label after the other."""
    n, labels = y.shape

    def around(query: np.ndarray, without: int | None) -> list[int]:
        order = sorted((((row - query) ** 2).sum(), i) for i, row in enumerate(x))
        return [i for _, i in order if i != without][:k]

    near = [around(x[i], i) for i in range(n)]
    scores = np.zeros((len(queries), labels))
    for j in range(labels):
        present, absent = [0] * (k + 1), [0] * (k + 1)
        for i in range(n):
            if known[i, j]:
                count = sum(int(y[p, j]) for p in near[i] if known[p, j])
                (present if y[i, j] else absent)[count] += 1
        prior = (s + sum(present)) / (2 * s + sum(present) + sum(absent))
        for row, query in enumerate(queries):
            count = sum(int(y[p, j]) for p in around(query, None) if known[p, j])
            yes = prior * (s + present[count]) / (s * (k + 1) + sum(present))
            no = (1 - prior) * (s + absent[count]) / (s * (k + 1) + sum(absent))
            scores[row, j] = yes / (yes + no)
    return scores


@pytest.mark.parametrize("masked", [False, True])
def test_ml_knn_is_what_loops_give(masked: bool) -> None:
    x, y = made(40)
    queries, _ = made(15, seed=1)
    known = np.random.default_rng(2).random(y.shape) < 0.7 if masked else np.ones(y.shape, bool)
    predictor = MLkNN(neighbours=4, smoothing=0.5).fit(x, y, known if masked else None)
    np.testing.assert_allclose(
        predictor.scores(queries), by_loops(x, y, known, queries, 4, 0.5), rtol=1e-6
    )


def test_ml_knn_by_hand() -> None:
    # Neighbours, self left out, of equals the lower: 0 -> 1, 1 -> 0, 3 -> 1, 10 -> 3.
    predictor = MLkNN(neighbours=1).fit([[0.0], [1.0], [3.0], [10.0]], [[1], [1], [1], [0]])
    # Prior (1 + 3) / (2 + 4) = 2/3. With the label: all three beside one, P(1|H) = 4/5, P(0|H) =
    # 1/5; without: one beside one, P(1|not H) = 2/3, P(0|not H) = 1/3.
    beside = (2 / 3 * 4 / 5) / (2 / 3 * 4 / 5 + 1 / 3 * 2 / 3)
    away = (2 / 3 * 1 / 5) / (2 / 3 * 1 / 5 + 1 / 3 * 1 / 3)
    assert predictor.scores([[2.0], [9.0]]).ravel() == pytest.approx([beside, away])


def test_cosine_is_the_angle() -> None:
    x, y = made(60)
    queries, _ = made(20, seed=1)
    scale = np.random.default_rng(3).uniform(0.1, 9, size=(60, 1))
    angles = MLkNN(neighbours=5, metric="cosine")
    expected = MLkNN(neighbours=5).fit(x / np.linalg.norm(x, axis=1, keepdims=True), y)
    np.testing.assert_allclose(
        angles.fit(x * scale, y).scores(7 * queries),
        expected.scores(queries / np.linalg.norm(queries, axis=1, keepdims=True)),
    )
    # A row of zeros has no angle; it is as far from all others.
    assert np.isfinite(angles.fit(x, y).scores(np.zeros((1, 4)))).all()


def test_classifiers_are_those_of_scikit_learn() -> None:
    x, y = made(80)
    queries, _ = made(30, seed=1)
    logistic = LogisticRegression(C=0.3).fit(x, y).scores(queries)
    kernel = KernelSVM(C=2.0).fit(x, y).scores(queries)
    narrow = KernelSVM(C=2.0, gamma=0.7).fit(x, y).scores(queries)
    for j in range(3):
        model = SkLogisticRegression(C=0.3, max_iter=1000).fit(x, y[:, j])
        np.testing.assert_allclose(logistic[:, j], model.predict_proba(queries)[:, 1], atol=1e-4)
        for scores, gamma in ((kernel, "scale"), (narrow, 0.7)):
            machine = SVC(C=2.0, gamma=gamma).fit(x, y[:, j])
            decision = machine.decision_function(queries)
            np.testing.assert_allclose(scores[:, j], 1 / (1 + np.exp(-decision)), atol=1e-3)
            clear = np.abs(decision) > 1e-2
            np.testing.assert_array_equal(scores[clear, j] >= 0.5, machine.predict(queries)[clear])


@pytest.mark.parametrize("baseline", [LogisticRegression(), KernelSVM()], ids=str)
def test_unknown_labels_are_left_out_of_training(baseline: Baseline) -> None:
    x, y = made(80)
    known = np.random.default_rng(5).random(y.shape) < 0.6
    hidden = np.where(known, y, 1 - y)
    found = baseline.fit(x, hidden, known).scores(x)
    # KernelSVM's gamma comes from all inputs, so it is given to both.
    if isinstance(baseline, KernelSVM):
        baseline = KernelSVM(gamma=1 / (4 * x.var()))
    for j in range(3):
        rows = known[:, j]
        alone = baseline.fit(x[rows], y[rows, j : j + 1]).scores(x)
        np.testing.assert_allclose(found[:, j], alone[:, 0], atol=1e-4)


@pytest.mark.parametrize("baseline", ALL, ids=str)
def test_labels_that_never_vary(baseline: Baseline) -> None:
    x, y = made(50)
    y[:, 0], y[:, 1] = 0, 1
    predictor = baseline.fit(x, y)
    scores = predictor.scores(x)
    assert scores.dtype == np.float32
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert predictor.seconds > 0
    if isinstance(baseline, MLkNN):
        assert (scores[:, 0] < 0.1).all()
        assert (scores[:, 1] > 0.9).all()
    else:
        assert (scores[:, 0] == 0).all()
        assert (scores[:, 1] == 1).all()
    nothing = np.ones(y.shape, bool)
    nothing[:, 2] = False
    assert (baseline.fit(x, y, nothing).scores(x)[:, 2] <= 0.5).all()


def test_frequencies_are_of_known_labels() -> None:
    predictor = LabelFrequencies().fit(
        np.zeros((4, 1)), [[1, 0], [1, 5], [0, 1], [1, 0]], [[1, 1], [1, 0], [1, 1], [0, 0]]
    )
    np.testing.assert_allclose(predictor.scores(np.ones((2, 1))), [[2 / 3, 1 / 2]] * 2)


@pytest.mark.parametrize("baseline", ALL, ids=str)
def test_misuse_is_refused(baseline: Baseline) -> None:
    x, y = made(20)
    two = y.copy()
    two[0, 1] = 2
    for arguments, said in (
        ((x[0], y), r"inputs has shape \(4,\)"),
        ((x, y[:5]), r"labels has shape \(5, 3\); expected \[20, L\]"),
        ((x, two), r"labels\[0, 1\] is 2"),
        ((x, y, y[:, :1]), r"label_mask has shape \(20, 1\); expected \(20, 3\)"),
        ((np.where(x == x[3, 2], np.nan, x), y), r"inputs\[3, 2\] is nan"),
    ):
        with pytest.raises(ValueError, match=said):
            baseline.fit(*arguments)
    with pytest.raises(ValueError, match=r"inputs has shape \(20, 3\); expected \[m, 4\]"):
        baseline.fit(x, y).scores(x[:, :3])


def test_settings_that_cannot_work_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for make, said in (
        (lambda: MLkNN(neighbours=0), "neighbours must be at least 1, not 0"),
        (lambda: MLkNN(smoothing=0.0), "smoothing must be positive, not 0.0"),
        (lambda: MLkNN(metric="angle"), "metric must be euclidean or cosine"),  # type: ignore[arg-type]
        (lambda: LogisticRegression(C=-1.0), "LogisticRegression: C must be positive, not -1.0"),
        (lambda: LogisticRegression(iterations=0), "iterations must be at least 1"),
        (lambda: KernelSVM(C=0.0), "KernelSVM: C must be positive"),
        (lambda: KernelSVM(gamma=0.0), "KernelSVM: gamma must be positive"),
        (lambda: MLkNN().fit(*made(10)), "10 neighbours need at least 11 training rows, not 10"),
    ):
        with pytest.raises(ConfigError, match=said):
            make()
    monkeypatch.setattr("os.sysconf", lambda name: 2)
    with pytest.raises(ConfigError, match="kernel of 10 training rows takes 0 GiB"):
        KernelSVM().fit(*made(10))


# ------------------------------------------------------------------------------- real sets


def standardized(root: Path, *uris: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs by the first source's mean and deviation, and labels, of each source."""
    arrays = [open_source(uri, root=root).arrays() for uri in uris]  # type: ignore[attr-defined]
    x = arrays[0]["inputs"].astype(np.float64)
    deviation = x.std(0)
    scale = 1 / np.where(deviation > 0, deviation, 1)
    return [((part["inputs"] - x.mean(0)) * scale, part["labels"]) for part in arrays]


def in_order_of_the_file(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean average precision where equal scores are ranked by row number, as some programs do."""
    values = []
    for j in range(labels.shape[1]):
        hits = labels[np.argsort(-scores[:, j], kind="stable"), j]
        precision = hits.cumsum() / np.arange(1, len(hits) + 1)
        values.append(precision[hits > 0].mean())
    return float(np.mean(values))


def test_on_yeast(shared_data: Path) -> None:
    names = [f"vectors/yeast/yeast_official_{split}.hdf5" for split in ("train", "test")]
    (x, y), (test, truth) = standardized(shared_data, *names)

    def measured(baseline: Baseline) -> tuple[np.ndarray, dict[str, float]]:
        scores = baseline.fit(x, y).scores(test)
        return scores, multilabel_metrics(scores, truth)

    scores, found = measured(LabelFrequencies())
    assert in_order_of_the_file(scores, truth) == pytest.approx(0.310, abs=5e-4)
    # With equal scores at one rank, a constant score gets the share of positives.
    assert found["map"] == pytest.approx(truth.mean(), rel=1e-6)
    assert found["precision_at_1"] == pytest.approx(0.750, abs=1e-3)
    scores, found = measured(MLkNN())
    assert in_order_of_the_file(scores, truth) == pytest.approx(0.470, abs=0.006)
    assert found["precision_at_1"] == pytest.approx(0.751, abs=0.005)
    assert found["hamming_accuracy"] == pytest.approx(0.799, abs=0.002)
    _, found = measured(KernelSVM())
    assert found["map"] == pytest.approx(0.512, abs=0.002)
    assert found["precision_at_1"] == pytest.approx(0.771, abs=0.005)
    assert found["hamming_accuracy"] == pytest.approx(0.811, abs=0.002)
    _, found = measured(LogisticRegression(C=0.1))
    assert 0.43 < found["map"] < 0.48


def test_on_scene(shared_data: Path) -> None:
    (x, y), (test, truth) = standardized(
        shared_data, "vectors/scene/scene-train.arff?part=rest", "vectors/scene/scene-test.arff"
    )
    found = multilabel_metrics(KernelSVM(C=3.0).fit(x, y).scores(test), truth)
    assert found["map"] == pytest.approx(0.846, abs=0.01)
    assert found["hamming_accuracy"] == pytest.approx(0.921, abs=0.006)
    scores = MLkNN().fit(x, y).scores(test)
    found = multilabel_metrics(scores, truth)
    assert in_order_of_the_file(scores, truth) == pytest.approx(0.766, abs=0.01)
    assert found["precision_at_1"] == pytest.approx(0.739, abs=0.01)
