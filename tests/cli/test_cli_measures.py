"""Protocols, probes and comparisons on the command line, on a real, tiny run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmlcl.cli.compare import workdirs
from jaxmlcl.cli.evaluate import table
from jaxmlcl.config import load
from jaxmlcl.evaluation import knn_scores, multilabel_metrics

Run = Callable[..., Any]


@pytest.fixture(scope="session")
def measured(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from jaxmlcl.cli import main

    workdir = tmp_path_factory.mktemp("measured") / "run"
    shutil.copytree(trained, workdir)
    assert main(["evaluate", str(workdir)]) == 0
    assert main(["evaluate", str(workdir), "--probe", "knn"]) == 0
    return workdir


@pytest.fixture
def evaluated(measured: Path, tmp_path: Path) -> Path:
    """An evaluated run that a test may change."""
    return Path(shutil.copytree(measured, tmp_path / "run"))


@pytest.mark.parametrize(
    ("protocol", "said"),
    [
        ("per_label", "a threshold per label"),
        ("cardinality", "predicts as many labels as are true"),
        ("top_k", "as many as are best on validation"),
        ("fixed_0.5", "threshold 0.5;"),
        ("paper", "on the scored rows themselves"),
    ],
)
def test_the_table_shows_the_protocol_asked_for(measured: Path, protocol: str, said: str) -> None:
    results = json.loads((measured / "evaluation" / "test.json").read_text())["stages"]
    lines = table(load(measured / "experiment.json"), results, protocol)
    figure = results["probe"]["protocols"][protocol]["macro_f1"]
    assert lines[1].split()[-2] == f"{figure:.3f}"
    assert said in lines[3]


def test_a_protocol_that_validation_lacks(run: Run, evaluated: Path) -> None:
    assert "each row, as many" in run("evaluate", evaluated, "--protocol", "top_k").out
    code, out, err = run("evaluate", evaluated, "--split", "validation", "--protocol", "top_k")
    assert (code, out) == (2, "")
    assert "there is no top_k: it is chosen on validation rows" in err
    assert err.count("\n") == 1


def test_probes_score_every_stage(run: Run, evaluated: Path) -> None:
    before = (evaluated / "evaluation" / "test.json").read_bytes()
    code, out, err = run("evaluate", evaluated, "--probe", "linear", "--json")
    assert (code, err) == (0, "")
    folder = evaluated / "evaluation" / "linear"
    assert (folder / "test.json").read_text() == out
    assert (evaluated / "evaluation" / "test.json").read_bytes() == before
    document = json.loads(out)
    assert list(document["stages"]) == ["pretrain", "probe", "bce"]
    assert document["run"]["stage"] == "bce"
    probe = document["stages"]["pretrain"]["run"]["probe"]
    assert (probe["kind"], probe["representation"]) == ("linear", "representation")
    assert probe["chosen_by"] == "map on validation"
    best = max(probe["tried"], key=lambda name: probe["tried"][name])
    assert float(best) == probe["penalty"]
    assert "top_k" in document["protocols"]
    arrays = np.load(folder / "pretrain-test.npz", allow_pickle=False)
    measured = multilabel_metrics(arrays["scores"], arrays["labels"])
    assert document["stages"]["pretrain"]["threshold_free"]["map"] == measured["map"]
    # A frozen encoder: the probe's representation is that of the stage it started from.
    other = np.load(folder / "probe-test.npz", allow_pickle=False)
    assert arrays["scores"] == pytest.approx(other["scores"], abs=1e-6)


def test_a_probe_has_its_table_and_its_options(run: Run, evaluated: Path) -> None:
    flags = ("--probe", "knn", "--stage", "pretrain", "--representation", "embedding")
    code, out, err = run("evaluate", evaluated, *flags, "--temperature", "0")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    found = json.loads((evaluated / "evaluation" / "knn" / "test.json").read_text())["run"]["probe"]
    assert (found["representation"], found["temperature"]) == ("embedding", None)
    assert set(found["tried"]) == {"5", "10", "20", "32"}  # no more than there are rows
    assert f"mulsupcon + kNN of {found['neighbours']}" in lines[2]
    assert lines[-1] == f"written: {evaluated}/evaluation/knn/test.json"


def test_a_probe_of_validation_chooses_among_training_rows(run: Run, evaluated: Path) -> None:
    out = run("evaluate", evaluated, "--probe", "knn", "--split", "validation", "--json").out
    document = json.loads(out)
    assert document["run"]["probe"]["chosen_by"] == "training rows left out"
    assert "best_on_val" not in document["protocols"]


def test_a_probe_is_what_its_embeddings_give(evaluated: Path) -> None:
    """Scores of the written file, from embeddings worked out one stage further down."""
    from jaxmlcl.training.probes import Probe, _Network, _open

    experiment = load(evaluated / "experiment.json")
    train, test, validation = _open(experiment.data, "test")
    assert validation is not None
    network = _Network(experiment, evaluated, "pretrain", train.source, lambda _: None)
    embedded = [network.embed(rows, Probe("knn")) for rows in (train, test, validation)]
    assert [len(array) for array in embedded] == [32, 24, 40]
    document = json.loads((evaluated / "evaluation" / "knn" / "test.json").read_text())
    chosen = document["stages"]["pretrain"]["run"]["probe"]["neighbours"]
    want = knn_scores(embedded[0], train.labels, embedded[1], neighbours=chosen).scores
    arrays = np.load(evaluated / "evaluation" / "knn" / "pretrain-test.npz", allow_pickle=False)
    assert arrays["scores"] == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--probe", "knn", "--split", "train"), "the probe is fitted to these rows"),
        (("--probe", "knn", "--stage", "none"), 'no stage "none"; the stages: pretrain, probe'),
        (("--probe", "linear", "--representation", "x"), "it has: embedding, representation"),
        (("--representation", "embedding"), "--representation belongs to --probe"),
        (("--probe", "linear", "--temperature", "1"), "--temperature belongs to --probe knn"),
        (("--probe", "knn", "--temperature", "-1"), "-1.0 is not 0 or positive"),
    ],
)
def test_probes_that_cannot_be_get_one_line(
    run: Run, evaluated: Path, flags: tuple[str, ...], said: str
) -> None:
    code, out, err = run("evaluate", evaluated, *flags)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_compare_two_stages_of_a_run(run: Run, evaluated: Path) -> None:
    words = ("compare", evaluated, evaluated, "--stage", "probe", "bce", "--replicates", "50")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "test: 24 rows, 10 labels; thresholds of each run: best_on_val"
    assert lines[1:3] == [
        f"A: {evaluated}, stage probe, seed 5",
        f"B: {evaluated}, stage bce, seed 5",
    ]
    columns = ["measure", "A", "B", "A - B", "95 % interval", "p (rows)", "p (exchange)"]
    assert lines[3].split() == " ".join(columns).split()
    assert len({len(line) for line in lines[3:10]}) == 1
    document = json.loads(run(*words, "--json").out)
    stored = json.loads((evaluated / "evaluation" / "test.json").read_text())["stages"]
    assert document["measures"]["map"]["a"] == pytest.approx(
        stored["probe"]["threshold_free"]["map"]
    )
    assert document["measures"]["micro_f1"]["b"] == pytest.approx(
        stored["bce"]["protocols"]["best_on_val"]["micro_f1"]
    )
    assert f"{document['measures']['map']['difference']:+.3f}" in lines[4]
    assert lines[4].endswith(" -")


def test_compare_groups_of_seeds(run: Run, evaluated: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        copy = shutil.copytree(evaluated, tmp_path / f"other-{seed}")
        path = copy / "evaluation" / "test.json"
        path.write_text(path.read_text().replace('"seed": 5', f'"seed": {seed}'))
    pattern = f"{tmp_path}/other-*"
    both = f"{tmp_path}/other-1,{tmp_path}/other-0"
    assert workdirs(both) == workdirs(pattern)[::-1]
    code, out, err = run("compare", pattern, both, "--measure", "map", "--replicates", "20")
    assert (code, err) == (0, "")
    assert "stage bce, seeds 0, 1" in out
    header, row = out.splitlines()[3:5]
    assert header.endswith("p (t)  p (signs)")
    assert row.split()[3:] == ["+0.000", "+0.000", "..", "+0.000", "1.000", "1.000", "1.000"]
    code, out, err = run("compare", pattern, evaluated)
    assert (code, out) == (2, "")
    assert "the runs have seeds 0, 1 and 5; several runs are paired by their seeds" in err


def test_compare_what_probes_gave(run: Run, evaluated: Path) -> None:
    words = ("compare", evaluated, evaluated, "--stage", "pretrain", "bce", "--measure", "map")
    assert run(*words, "--probe", "knn", "--replicates", "5").code == 0
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert 'no stage "pretrain", only probe, bce; run: jaxmlcl evaluate' in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--measure", "macro_f2"), 'unknown measure "macro_f2"; did you mean macro_f1?'),
        (("--protocol", "best_on_va"), "did you mean best_on_val?"),
        (("--replicates", "0"), "--replicates: 0 is not positive"),
        (("--confidence", "95"), "--confidence: 95.0 is not between 0 and 1"),
        (("--seed", "-1"), "--seed: -1 is negative"),
        (("--stage", "a", "b", "c"), "--stage: one or two names, not 3"),
        (("--split", "validation"), "run: jaxmlcl evaluate"),
    ],
)
def test_comparisons_that_cannot_be_get_one_line(
    run: Run, evaluated: Path, flags: tuple[str, ...], said: str
) -> None:
    code, out, err = run("compare", evaluated, evaluated, *flags)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_compare_says_which_folder_is_missing(run: Run, evaluated: Path) -> None:
    code, out, err = run("compare", f"{evaluated},nowhere", evaluated)
    assert (code, out) == (2, "")
    assert '"nowhere": no such folder' in err
