"""Runs are compared by what their evaluation wrote, and only on the same rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmlcl.errors import UserError
from jaxmlcl.evaluation import (
    bootstrap_replicates,
    evaluate_scores,
    multilabel_metrics,
    paired_comparison,
    paired_test,
)
from jaxmlcl.training.compare import MEASURES, compare_runs, read_evaluated

Write = Callable[..., Path]
RNG = np.random.default_rng(0)
LABELS = (RNG.random((60, 4)) < 0.4).astype(np.uint8)
VALIDATION = (RNG.random((50, 4)) < 0.4).astype(np.uint8)


def score(labels: np.ndarray, skill: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).random(labels.shape)
    return (skill * labels + (1 - skill) * noise).astype(np.float32)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes what `evaluate` writes of a run with one stage."""

    def call(
        name: str,
        skill: float = 0.3,
        seed: int = 0,
        labels: np.ndarray = LABELS,
        ids: Sequence[int] = range(60),
        names: str = "abcd",
        mask: np.ndarray | None = None,
    ) -> Path:
        folder = tmp_path / name / "evaluation"
        folder.mkdir(parents=True)
        scores = score(labels, skill, seed + 10)
        result = evaluate_scores(
            scores,
            labels,
            label_names=names,
            validation_scores=score(VALIDATION, skill, seed + 99),
            validation_labels=VALIDATION,
            label_mask=mask,
            run={"stage": "probe", "seed": seed},
        )
        document = {"split": "test", **result, "stages": {"probe": result}}
        (folder / "test.json").write_text(json.dumps(document))
        arrays: dict[str, Any] = {"ids": np.array(ids), "scores": scores, "labels": labels}
        if mask is not None:
            arrays["label_mask"] = mask
        np.savez(folder / "probe-test.npz", label_names=np.array(list(names)), **arrays)
        return tmp_path / name

    return call


def test_two_runs(write: Write) -> None:
    a, b = read_evaluated(write("a", 0.5)), read_evaluated(write("b", 0.3, seed=7))
    found = compare_runs([a], [b], replicates=200, seed=3)
    cuts = [run.protocols["best_on_val"]["thresholds"] for run in (a, b)]
    want = paired_comparison(
        a.scores,
        b.scores,
        LABELS,
        measures=MEASURES,
        thresholds_a=cuts[0],
        thresholds_b=cuts[1],
        replicates=200,
        seed=3,
    )
    assert tuple(found["measures"]) == MEASURES
    for name, values in found["measures"].items():
        stored = a.protocols["best_on_val"].get(name)
        assert stored is None or values["a"] == pytest.approx(stored, abs=1e-12)
        assert values["low"] == want[name].low
        assert values["p_bootstrap"] == want[name].p_bootstrap
        assert values["seeds"] is None
    assert found["measures"]["map"]["p_permutation"] is None
    assert found["measures"]["map"]["p_bootstrap"] < 0.05
    assert (found["protocol"], found["num_rows"]) == ("best_on_val", 60)
    assert found["a"] == [{"workdir": str(a.workdir), "stage": "probe", "seed": 0}]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("protocol", ["per_label", "cardinality", "fixed_0.5", "paper"])
def test_each_run_has_the_thresholds_of_the_protocol(write: Write, protocol: str) -> None:
    a, b = read_evaluated(write("a", 0.5)), read_evaluated(write("b"))
    measures = ["micro_f1", "macro_f1", "hamming_accuracy"]
    found = compare_runs([a], [b], protocol=protocol, measures=measures, replicates=10)
    for side, run in (("a", a), ("b", b)):
        for name in measures:
            want = run.protocols[protocol][name]
            assert found["measures"][name][side] == pytest.approx(want, abs=1e-12)


def test_without_validation_the_threshold_is_a_half(write: Write) -> None:
    a, b = read_evaluated(write("a")), read_evaluated(write("b", 0.5))
    del a.protocols["best_on_val"]
    found = compare_runs([a], [b], measures=["micro_f1"], replicates=10)
    assert found["protocol"] == "fixed_0.5"
    want = multilabel_metrics(b.scores, LABELS)["micro_f1"]
    assert found["measures"]["micro_f1"]["b"] == pytest.approx(want)
    with pytest.raises(UserError, match="the evaluation of probe has no protocol best_on_val"):
        compare_runs([a], [b], protocol="best_on_val")


def test_several_seeds_are_paired(write: Write) -> None:
    first = [read_evaluated(write(f"a{seed}", 0.4, seed)) for seed in (2, 0, 1)]
    second = [read_evaluated(write(f"b{seed}", 0.35, seed)) for seed in (0, 1, 2)]
    found = compare_runs(first, second, measures=["map", "micro_f1"], replicates=50)
    assert [run["seed"] for run in found["a"]] == [run["seed"] for run in found["b"]] == [0, 1, 2]
    values = found["measures"]["map"]
    by_seed = {
        side: [
            multilabel_metrics(run.scores, LABELS)["map"]
            for run in sorted(runs, key=lambda run: run.seed or 0)
        ]
        for side, runs in (("a", first), ("b", second))
    }
    assert values["seeds"]["a"] == pytest.approx(by_seed["a"])
    assert values["seeds"]["b"] == pytest.approx(by_seed["b"])
    test = paired_test(by_seed["a"], by_seed["b"])
    assert values["seeds"]["p_t"] == pytest.approx(test.p_t)
    assert values["seeds"]["p_permutation"] == test.p_permutation
    assert values["difference"] == pytest.approx(test.difference)
    drawn = [
        np.mean(
            [bootstrap_replicates(run.scores, LABELS, replicates=50)["map"] for run in runs], axis=0
        )
        for runs in (first, second)
    ]
    gaps = drawn[0] - drawn[1]
    low = np.quantile(gaps, 0.025) + values["difference"] - gaps.mean()
    assert values["low"] == pytest.approx(low)
    assert values["p_permutation"] is None


def test_masks_are_honoured(write: Write) -> None:
    mask = RNG.random(LABELS.shape) < 0.7
    a, b = (
        read_evaluated(write(name, skill, mask=mask)) for name, skill in (("a", 0.5), ("b", 0.3))
    )
    values = compare_runs([a], [b], measures=["map"], replicates=10)["measures"]["map"]
    assert values["a"] == pytest.approx(
        multilabel_metrics(a.scores, LABELS, label_mask=mask)["map"]
    )
    whole = read_evaluated(write("whole"))
    with pytest.raises(UserError, match="same ids and other labels"):
        compare_runs([a], [whole])


def test_other_rows_are_refused(write: Write) -> None:
    one = read_evaluated(write("one"))
    others = {
        "scored different labels": write("names", names="abcx"),
        "scored different rows": write("ids", ids=range(1, 61)),
        "same ids and other labels": write("labels", labels=1 - LABELS),
    }
    for message, workdir in others.items():
        with pytest.raises(UserError, match=message):
            compare_runs([one], [read_evaluated(workdir)])
    with pytest.raises(UserError, match=r"different rows \(60 and 50, by their ids\)"):
        compare_runs([one], [read_evaluated(write("fewer", labels=LABELS[:50], ids=range(50)))])


def test_seeds_that_do_not_pair_are_refused(write: Write) -> None:
    runs = [read_evaluated(write(f"r{i}", seed=i)) for i in range(3)]
    with pytest.raises(UserError, match="the runs have seeds 0, 1 and 1, 2; several runs are pai"):
        compare_runs(runs[:2], runs[1:])
    with pytest.raises(UserError, match="the runs have seeds 0 and 1, 2"):
        compare_runs(runs[:1], runs[1:])
    with pytest.raises(UserError, match="need seeds of their own, and these have 0, 0"):
        compare_runs([runs[0], runs[0]], runs[1:])
    # One run of each seed needs no pairing.
    assert compare_runs(runs[:1], runs[1:2], measures=["map"], replicates=5)["num_rows"] == 60


def test_what_was_not_evaluated_is_told_with_the_command(write: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"test.json: no such file; run: jaxmlcl evaluate .*/none"):
        read_evaluated(tmp_path / "none")
    workdir = write("run")
    with pytest.raises(UserError, match=r"run: jaxmlcl evaluate .* --split test --probe knn$"):
        read_evaluated(workdir, probe="knn")
    with pytest.raises(UserError, match='has no stage "bce", only probe; run: '):
        read_evaluated(workdir, stage="bce")
    scores = workdir / "evaluation" / "probe-test.npz"
    scores.write_bytes(scores.read_bytes()[:200])
    with pytest.raises(UserError, match=r"probe-test\.npz: missing or not readable; run: "):
        read_evaluated(workdir)
    (workdir / "evaluation" / "test.json").write_text('{"run": {"stage": "probe"}}')
    with pytest.raises(UserError, match=r"test\.json: not what evaluate writes; run: "):
        read_evaluated(workdir)
