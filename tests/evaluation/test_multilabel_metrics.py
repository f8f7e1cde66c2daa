"""Every measure by hand, against the golden vectors, and against scikit-learn."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk

from jaxmlcl.evaluation import (
    METRICS,
    THRESHOLD_FREE_METRICS,
    THRESHOLD_METRICS,
    average_precision,
    multilabel_metrics,
    per_label_table,
)


def example(seed: int, n: int, num_labels: int, density: float = 0.35, ties: bool = False) -> Any:
    """Random scores in [0, 1] and labels; with ties on a grid of six values."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, num_labels)) < density).astype(np.uint8)
    scores = np.clip(0.3 * labels + 0.7 * rng.random((n, num_labels)), 0, 1)
    return (np.round(scores * 5) / 5 if ties else scores), labels


CASES = {
    "plain": example(0, 60, 7),
    "ties": example(1, 60, 7, ties=True),
    "float32": (example(2, 50, 9)[0].astype(np.float32), example(2, 50, 9)[1]),
    "one label": example(3, 30, 1),
    "two labels": example(4, 30, 2, ties=True),
    "one row": example(5, 1, 6),
    "sparse": example(6, 40, 12, density=0.05, ties=True),
    "dense": example(7, 40, 5, density=0.95),
    "all positive": (example(8, 10, 4)[0], np.ones((10, 4), np.uint8)),
    "all negative": (example(9, 10, 4)[0], np.zeros((10, 4), np.uint8)),
    "constant scores": (np.full((12, 5), 0.5), example(10, 12, 5)[1]),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    return CASES[request.param]


def test_golden_mlc_metrics(golden: dict[str, Any]) -> None:
    entry = golden["mlc_metrics"]
    want, given = entry["value"], entry["inputs"]

    def measure(name: str, **conventions: Any) -> float:
        return multilabel_metrics(
            given["P"], given["Y"], threshold=given["threshold"], **conventions
        )[name]

    got = {
        "HA": measure("hamming_accuracy"),
        "example_f1_drop_empty": measure("example_f1"),
        "example_f1_empty_as_1": measure("example_f1", empty_rows="one"),
        "example_f1_empty_as_0": measure("example_f1", empty_rows="zero"),
        "micro_f1": measure("micro_f1"),
        "macro_f1_absent_as_0": measure("macro_f1"),
        "macro_f1_drop_absent": measure("macro_f1", macro_f1_absent="drop"),
        "macro_f1_authors_eps1e6": measure("macro_f1", macro_f1_absent="authors"),
        "precision_at_1": measure("precision_at_1"),
        "map_drop_absent": measure("map"),
        "map_absent_as_0": measure("map", map_absent="zero"),
        "subset_accuracy": measure("subset_accuracy"),
        "OP": measure("op"),
        "OR": measure("or"),
        "OF1": measure("of1"),
        "CP": measure("cp"),
        "CR_drop_absent": measure("cr"),
        "CR_absent_as_0": measure("cr", cr_absent="zero"),
        "CF1_drop_absent_recall": measure("cf1"),
        "CF1_absent_as_0": measure("cf1", cr_absent="zero"),
        "OP_authors": measure("op", op_form="authors"),
        "OF1_authors": measure("of1", op_form="authors"),
    }
    # micro_f1_misprint is what a misprinted formula gives: half of micro-F1, no measure of ours.
    assert set(got) == set(want) - {"ap_per_class", "micro_f1_misprint"}
    for name, value in got.items():
        assert value == pytest.approx(want[name], abs=1e-12), name
    assert want["micro_f1_misprint"] == pytest.approx(got["micro_f1"] / 2)
    per_label = np.array(want["ap_per_class"], dtype=float)
    np.testing.assert_allclose(average_precision(given["P"], given["Y"]), per_label, atol=1e-12)


def test_names_and_types(case: tuple[np.ndarray, np.ndarray]) -> None:
    values = multilabel_metrics(*case)
    assert tuple(values) == METRICS
    assert set(METRICS) == {*THRESHOLD_METRICS, *THRESHOLD_FREE_METRICS}
    assert all(type(value) is float for value in values.values())


def test_small_case_by_hand() -> None:
    scores = [[0.9, 0.6, 0.2], [0.3, 0.8, 0.7]]
    labels = [[1, 0, 1], [0, 0, 1]]
    # predictions: [1, 1, 0] and [0, 1, 1]; hits 1 and 1; label counts hits/predicted/positives:
    # 1/1/1, 0/2/0, 1/1/2
    want = {
        "hamming_accuracy": 1 - 3 / 6,
        "example_f1": (2 / 4 + 2 / 3) / 2,
        "micro_f1": 2 * 2 / (3 + 4),
        "macro_f1": (1 + 0 + 2 / 3) / 3,
        "precision_at_1": 1 / 2,
        "map": (1 + (1 + 2 / 2) / 2) / 2,  # label 1 has no positives
        "cp": (1 + 0 + 1) / 3,
        "cr": (1 + 1 / 2) / 2,
        "cf1": 2 * (2 / 3) * (3 / 4) / (2 / 3 + 3 / 4),
        "op": 2 / 4,
        "or": 2 / 3,
        "of1": 4 / 7,
        "subset_accuracy": 0.0,
        "ranking_loss": (1 / 2 + 1 / 2) / 2,
        "coverage": (3 + 2) / 2,
        "one_error": 1 / 2,
        "lrap": ((1 + 2 / 3) / 2 + 1 / 2) / 2,
        "auc_macro": 1.0,  # label 0; label 2 is always true, label 1 never
        "auc_micro": (3 + 0 + 2) / 9,  # wins of .9, .2 and .7 over .6, .3 and .8
        "precision_at_3": (2 / 3 + 1 / 3) / 2,
        "precision_at_5": (2 / 3 + 1 / 3) / 2,
        "ndcg_at_5": ((1 + 1 / 2) / (1 + 1 / math.log2(3)) + 1 / math.log2(3)) / 2,
        "brier": (0.01 + 0.36 + 0.64 + 0.09 + 0.64 + 0.09) / 6,
        "ece": (0.1 + 0.6 + 0.8 + 0.3 + 0.8 + 0.3) / 6,  # each score is alone in its bin
    }
    assert multilabel_metrics(scores, labels) == pytest.approx(want, abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_threshold_measures_equal_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    predictions = (scores >= 0.5).astype(int)
    got = multilabel_metrics(scores, labels, empty_rows="one")
    # scikit-learn takes a single column for a binary problem, so columns are scored one by one.
    columns = [
        sk.precision_recall_fscore_support(
            labels[:, j], predictions[:, j], average="binary", zero_division=0
        )[:3]
        for j in range(labels.shape[1])
    ]
    flat = (labels.ravel(), predictions.ravel())
    recalls = [r for (_, r, _), some in zip(columns, labels.any(axis=0), strict=True) if some]
    want = {
        "hamming_accuracy": 1 - sk.hamming_loss(*flat),
        "micro_f1": sk.f1_score(*flat, zero_division=0),
        "op": sk.precision_score(*flat, zero_division=0),
        "or": sk.recall_score(*flat, zero_division=0),
        "of1": sk.f1_score(*flat, zero_division=0),
        "macro_f1": np.mean([f1 for _, _, f1 in columns]),
        "cp": np.mean([precision for precision, _, _ in columns]),
        "cr": np.mean(recalls) if recalls else math.nan,
        "subset_accuracy": np.mean((labels == predictions).all(axis=1)),
        "example_f1": np.mean(
            [
                sk.f1_score(truth, row, zero_division=1)
                for truth, row in zip(labels, predictions, strict=True)
            ]
        ),
    }
    for name, value in want.items():
        assert got[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name


@pytest.mark.filterwarnings("ignore")
def test_multilabel_f1_equals_scikit_learn() -> None:
    scores, labels = CASES["sparse"]
    predictions = scores >= 0.9
    got = multilabel_metrics(scores, labels, threshold=0.9, empty_rows="zero")
    for ours, average in (("micro_f1", "micro"), ("macro_f1", "macro"), ("example_f1", "samples")):
        want = sk.f1_score(labels, predictions, average=average, zero_division=0)
        assert got[ours] == pytest.approx(want, abs=1e-12)
    assert got["subset_accuracy"] == pytest.approx(sk.accuracy_score(labels, predictions))
    dropped = multilabel_metrics(scores, labels, threshold=0.9, macro_f1_absent="drop")
    want = sk.f1_score(labels, predictions, average="macro", zero_division=np.nan)
    assert dropped["macro_f1"] == pytest.approx(want, abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_rankings_equal_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    got = multilabel_metrics(scores, labels)
    assert got["brier"] == pytest.approx(sk.brier_score_loss(labels.ravel(), scores.ravel()))
    both = [j for j in range(labels.shape[1]) if 0 < labels[:, j].sum() < len(labels)]
    areas = [sk.roc_auc_score(labels[:, j], scores[:, j]) for j in both]
    assert got["auc_macro"] == pytest.approx(np.mean(areas) if both else math.nan, nan_ok=True)
    if 0 < labels.sum() < labels.size:
        area = sk.roc_auc_score(labels.ravel(), scores.ravel())
        assert got["auc_micro"] == pytest.approx(area, abs=1e-12)
    else:
        assert math.isnan(got["auc_micro"])
    some = labels.any(axis=0)
    precisions = [
        sk.average_precision_score(labels[:, j], scores[:, j]) for j in np.flatnonzero(some)
    ]
    want = np.full(labels.shape[1], np.nan)
    want[some] = precisions
    np.testing.assert_allclose(average_precision(scores, labels), want, atol=1e-12)
    assert got["map"] == pytest.approx(np.mean(precisions) if precisions else math.nan, nan_ok=True)
    if labels.shape[1] > 1:
        multilabel = (labels, scores)
        lrap = sk.label_ranking_average_precision_score(*multilabel)
        assert got["lrap"] == pytest.approx(lrap, abs=1e-12)
        assert got["coverage"] == pytest.approx(sk.coverage_error(*multilabel), abs=1e-12)
        assert got["ranking_loss"] == pytest.approx(sk.label_ranking_loss(*multilabel), abs=1e-12)
        assert got["ndcg_at_5"] == pytest.approx(sk.ndcg_score(*multilabel, k=5), abs=1e-12)


@pytest.mark.slow
def test_calibration_error_equals_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    scores, labels = example(11, 400, 5)
    want = torchmetrics.binary_calibration_error(
        torch.tensor(scores.ravel()), torch.tensor(labels.ravel().astype(np.int64)), n_bins=15
    )
    assert multilabel_metrics(scores, labels)["ece"] == pytest.approx(float(want), abs=1e-6)


def test_calibration_by_hand() -> None:
    # Bin 7 holds .5 and .52 (gap |1 - 1.02|), bin 14 holds .95 and 1.0 (gap |2 - 1.95|).
    got = multilabel_metrics([[0.5, 0.52], [0.95, 1.0]], [[1, 0], [1, 1]])
    assert got["ece"] == pytest.approx((0.02 + 0.05) / 4)
    # The edges of the bins belong to the upper bin: .2 and .25 are together.
    got = multilabel_metrics([[0.2], [0.25]], [[1], [0]])
    assert got["ece"] == pytest.approx((1 - 0.45) / 2)


def test_scores_that_are_not_probabilities_have_no_calibration() -> None:
    scores, labels = CASES["plain"]
    plain, logits = multilabel_metrics(scores, labels), multilabel_metrics(8 * scores - 4, labels)
    assert math.isnan(logits["brier"])
    assert math.isnan(logits["ece"])
    for name in set(THRESHOLD_FREE_METRICS) - {"brier", "ece"}:
        assert logits[name] == plain[name], name


def test_precision_at_k_with_ties_takes_the_first_labels() -> None:
    scores = [[0.5, 0.9, 0.9, 0.9], [0.1, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1]]
    labels = [[0, 0, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]]
    got = multilabel_metrics(scores, labels)
    assert got["precision_at_1"] == pytest.approx((0 + 1 + 0) / 3)
    assert got["one_error"] == pytest.approx(2 / 3)
    assert got["precision_at_3"] == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert got["precision_at_5"] == pytest.approx((2 / 4 + 2 / 4 + 0) / 3)


def test_thresholds_per_label() -> None:
    scores, labels = CASES["plain"]
    cuts = np.linspace(0.2, 0.8, scores.shape[1])
    shifted = scores - cuts
    got = multilabel_metrics(scores, labels, threshold=cuts)
    want = multilabel_metrics(shifted, labels, threshold=0.0)
    for name in THRESHOLD_METRICS:
        assert got[name] == want[name], name


def test_a_score_equal_to_the_threshold_is_predicted_in_the_precision_of_the_scores() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        scores = np.array([[0.7]], dtype)
        got = multilabel_metrics(scores, [[1]], threshold=float(scores[0, 0]))
        assert got["subset_accuracy"] == 1.0
    assert multilabel_metrics(np.float32([[0.7]]), [[1]], threshold=0.7)["micro_f1"] == 1.0


def test_integer_and_low_precision_scores() -> None:
    scores, labels = CASES["ties"]
    integers = np.round(scores * 5).astype(np.int32)
    want = multilabel_metrics(integers.astype(np.float64), labels, threshold=3)
    assert multilabel_metrics(integers, labels, threshold=3) == pytest.approx(want, nan_ok=True)
    half = scores.astype(np.float16)
    assert multilabel_metrics(half, labels) == multilabel_metrics(half.astype(np.float32), labels)


def test_device_arrays_of_any_precision() -> None:
    scores, labels = CASES["ties"]
    want = multilabel_metrics(scores.astype(np.float32), labels)
    assert multilabel_metrics(jnp.asarray(scores, jnp.float32), jnp.asarray(labels)) == want
    coarse = jnp.asarray(scores, jnp.bfloat16)
    want = multilabel_metrics(np.asarray(coarse.astype(jnp.float32)), labels)
    assert multilabel_metrics(coarse, jnp.asarray(labels, jnp.bfloat16)) == want


def test_only_empty_rows_and_nothing_predicted() -> None:
    got = multilabel_metrics(np.full((3, 2), 0.1), np.zeros((3, 2)))
    assert math.isnan(got["example_f1"])
    assert math.isnan(got["map"])
    assert math.isnan(got["cr"])
    assert math.isnan(got["auc_macro"])
    ones = {"hamming_accuracy", "subset_accuracy", "lrap", "one_error"}
    zeros = {"micro_f1", "macro_f1", "op", "or", "of1", "cp", "precision_at_1", "ranking_loss"}
    assert all(got[name] == 1.0 for name in ones)
    assert all(got[name] == 0.0 for name in zeros | {"coverage", "ndcg_at_5", "precision_at_5"})


def test_masking_rows_or_labels_is_dropping_them() -> None:
    scores, labels = example(12, 40, 8, ties=True)
    rng = np.random.default_rng(0)
    rows, columns = rng.random(40) < 0.7, np.array([1, 1, 0, 1, 0, 1, 1, 1], bool)
    mask = rows[:, None] & columns
    noise = np.where(mask, labels, 7)
    want = multilabel_metrics(scores[rows][:, columns], labels[rows][:, columns])
    # The cells are summed in another order, so the last bit of brier and ece may move.
    assert multilabel_metrics(scores, noise, label_mask=mask) == pytest.approx(want, abs=1e-12)
    for conventions in (
        {"empty_rows": "one", "macro_f1_absent": "drop", "map_absent": "zero"},
        {"cr_absent": "zero", "op_form": "authors", "macro_f1_absent": "authors"},
    ):
        few = multilabel_metrics(scores[rows][:, columns], labels[rows][:, columns], **conventions)
        got = multilabel_metrics(scores, labels, label_mask=mask, **conventions)
        assert got == pytest.approx(few, abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_scattered_mask_against_loops() -> None:
    scores, labels = example(13, 50, 9, ties=True)
    mask = np.random.default_rng(1).random(scores.shape) < 0.6
    mask[3], mask[:, 4] = False, False
    got = multilabel_metrics(scores, labels, label_mask=mask, empty_rows="one")
    predictions = scores >= 0.5
    rows = [(labels[i][m], scores[i][m], predictions[i][m]) for i, m in enumerate(mask) if m.any()]
    columns = [
        (labels[m, j], scores[m, j], predictions[m, j]) for j, m in enumerate(mask.T) if m.any()
    ]
    cells = (labels[mask], scores[mask], predictions[mask])
    assert len(rows) == 49
    assert min(len(truth) for truth, _, _ in rows) < 5
    assert len(columns) == 8

    def loss(truth: np.ndarray, score: np.ndarray) -> float:
        pairs = [(a, b) for a in score[truth == 1] for b in score[truth == 0]]
        return sum(a <= b for a, b in pairs) / len(pairs) if pairs else 0.0

    def lrap(truth: np.ndarray, score: np.ndarray) -> float:
        if truth.all() or not truth.any():
            return 1.0
        above = [score >= s for s in score[truth == 1]]
        return np.mean([truth[up].sum() / up.sum() for up in above])

    def coverage(truth: np.ndarray, score: np.ndarray) -> int:
        return int((score >= score[truth == 1].min()).sum()) if truth.any() else 0

    want = {
        "hamming_accuracy": np.mean(cells[0] == cells[2]),
        "subset_accuracy": np.mean([(t == p).all() for t, _, p in rows]),
        "example_f1": np.mean([sk.f1_score(t, p, zero_division=1) for t, _, p in rows]),
        "micro_f1": sk.f1_score(cells[0], cells[2]),
        "macro_f1": np.mean([sk.f1_score(t, p, zero_division=0) for t, _, p in columns]),
        "cp": np.mean([sk.precision_score(t, p, zero_division=0) for t, _, p in columns]),
        "cr": np.mean([sk.recall_score(t, p) for t, _, p in columns if t.any()]),
        "map": np.mean([sk.average_precision_score(t, s) for t, s, _ in columns if t.any()]),
        "auc_macro": np.mean(
            [sk.roc_auc_score(t, s) for t, s, _ in columns if t.any() and not t.all()]
        ),
        "auc_micro": sk.roc_auc_score(cells[0], cells[1]),
        "brier": sk.brier_score_loss(cells[0], cells[1]),
        "precision_at_1": np.mean([t[np.argmax(s)] for t, s, _ in rows]),
        "precision_at_5": np.mean(
            [t[np.argsort(-s, kind="stable")[:5]].sum() / min(5, len(t)) for t, s, _ in rows]
        ),
        "ranking_loss": np.mean([loss(t, s) for t, s, _ in rows]),
        "lrap": np.mean([lrap(t, s) for t, s, _ in rows]),
        "coverage": np.mean([coverage(t, s) for t, s, _ in rows]),
        "ndcg_at_5": np.mean(
            [
                sk.ndcg_score(t[None], s[None], k=5) if len(t) > 1 else float(t[0])
                for t, s, _ in rows
            ]
        ),
    }
    for name, value in want.items():
        assert got[name] == pytest.approx(value, abs=1e-12), name


def test_blocks_of_rows_and_labels_are_invisible() -> None:
    # More rows than one block holds, so that several threads take part.
    scores, labels = example(14, 4000, 150, density=0.03, ties=True)
    got = multilabel_metrics(scores, labels)
    assert got["lrap"] == pytest.approx(sk.label_ranking_average_precision_score(labels, scores))
    assert got["micro_f1"] == pytest.approx(sk.f1_score(labels, scores >= 0.5, average="micro"))
    assert got["map"] == pytest.approx(
        sk.average_precision_score(labels, scores, average="macro"), abs=1e-12
    )
    order = np.random.default_rng(0).permutation(len(scores))
    assert multilabel_metrics(scores[order], labels[order]) == got


def test_per_label_table_by_hand() -> None:
    scores = [[0.9, 0.6, 0.2, 0.1], [0.3, 0.8, 0.7, 0.2]]
    labels = [[1, 0, 1, 0], [0, 0, 1, 0]]
    table = per_label_table(scores, labels, ["a", "b", "c", "d"], thresholds=[0.5, 0.5, 0.6, 0.5])
    keys = ["label", "positives", "average_precision", "precision", "recall", "f1", "threshold"]
    rows = [
        ["a", 1, 1.0, 1.0, 1.0, 1.0, 0.5],
        ["b", 0, None, 0.0, None, 0.0, 0.5],
        ["c", 2, 1.0, 1.0, 0.5, pytest.approx(2 / 3), 0.6],
        ["d", 0, None, None, None, None, 0.5],
    ]
    assert table == [dict(zip(keys, row, strict=True)) for row in rows]
    assert [list(row) for row in table] == [keys] * 4
    mask = [[1, 1, 1, 1], [1, 1, 0, 1]]
    masked = per_label_table(scores, labels, "abcd", label_mask=mask)
    assert masked[2]["positives"] == 1
    assert masked[2]["recall"] == 0.0
    with pytest.raises(ValueError, match="label_names has 3 names, expected 4"):
        per_label_table(scores, labels, ["a", "b", "c"])


def test_import_is_light() -> None:
    program = (
        "import sys, jaxmlcl.evaluation\n"
        "heavy = {'jax', 'flax', 'sklearn', 'grain', 'matplotlib', 'tyro', 'cattrs', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "[]", "")
