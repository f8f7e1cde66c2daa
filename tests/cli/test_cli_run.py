"""The commands one after the other on a real, tiny run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from jaxmlcl.cli.report import sample_images
from jaxmlcl.config import load
from jaxmlcl.data import open_source
from jaxmlcl.errors import UserError
from jaxmlcl.evaluation import evaluate_scores

Run = Callable[..., Any]


@pytest.fixture(scope="session")
def _evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from jaxmlcl.cli import main

    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained, workdir)
    assert main(["evaluate", str(workdir)]) == 0
    return workdir


@pytest.fixture
def evaluated(_evaluated: Path, tmp_path: Path) -> Path:
    """An evaluated run that a test may change."""
    return Path(shutil.copytree(_evaluated, tmp_path / "run"))


def test_train_leaves_a_run_that_trains_no_further(run: Run, trained: Path) -> None:
    assert load(trained / "experiment.json").workdir == str(trained)
    metrics = (trained / "metrics.jsonl").read_bytes()
    result = run("train", trained / "experiment.json")
    assert result.code == 0
    assert "bce: finished before, at step 2" in result.err
    assert (trained / "metrics.jsonl").read_bytes() == metrics


def test_evaluate_writes_what_it_prints(run: Run, trained: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(trained, tmp_path / "run")
    code, out, err = run("evaluate", workdir, "--json")
    assert (code, err) == (0, "")
    assert (workdir / "evaluation" / "test.json").read_text() == out
    document = json.loads(out)
    assert list(document["stages"]) == ["probe", "bce"]
    assert document["data"] == {
        "source": "digits:test?size=24",
        "fingerprint": open_source("digits:test?size=24").metadata.fingerprint,
        "num_rows": 24,
        "num_labels": 10,
        "label_names": list("0123456789"),
    }
    # The last stage that gives scores is the run's main result.
    for field in ("threshold_free", "protocols", "per_label", "run"):
        assert document[field] == document["stages"]["bce"][field]
    assert document["run"].pop("gflop") > 0
    assert document["run"] == {"stage": "bce", "step": 2, "seed": 5, "checkpoint": "000000002"}
    assert list(document["protocols"]) == [
        *("best_on_val", "per_label", "cardinality", "top_k"),
        *("fixed_0.5", "paper"),
    ]
    assert sorted(path.name for path in (workdir / "evaluation").iterdir()) == [
        "bce-test-representations.npz",
        "bce-test.npz",
        "probe-test-representations.npz",
        "probe-test.npz",
        "test.json",
    ]


def test_evaluate_keeps_scores_that_give_its_figures(evaluated: Path, run: Run) -> None:
    document = json.loads((evaluated / "evaluation" / "test.json").read_text())
    assert run("evaluate", evaluated, "--split", "validation", "--json").code == 0
    test = np.load(evaluated / "evaluation" / "bce-test.npz", allow_pickle=False)
    validation = np.load(evaluated / "evaluation" / "bce-validation.npz", allow_pickle=False)
    assert test["scores"].shape == (24, 10)
    assert test["scores"].dtype == np.float32
    assert test["labels"].dtype == np.uint8
    assert test["ids"].tolist() == list(range(24))
    source = open_source("digits:test?size=24")
    assert all((test["labels"][i] == source[i]["labels"]).all() for i in range(24))
    expected = evaluate_scores(
        test["scores"],
        test["labels"],
        label_names=test["label_names"].tolist(),
        validation_scores=validation["scores"],
        validation_labels=validation["labels"],
    )
    assert document["stages"]["bce"]["protocols"] == expected["protocols"]
    assert document["stages"]["bce"]["threshold_free"] == expected["threshold_free"]


def test_evaluate_prints_an_aligned_table(run: Run, evaluated: Path) -> None:
    code, out, err = run("evaluate", evaluated)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "test: digits:test?size=24, 24 rows, 10 labels"
    columns = ["stage", "objective", "mAP", "P@1", "HA", "ex-F1", "mi-F1", "ma-F1", "GFLOP"]
    assert lines[1].split() == columns
    assert [line.split()[0] for line in lines[2:4]] == ["probe", "bce"]
    assert len({len(line) for line in lines[1:4]}) == 1
    assert "best on validation" in lines[4]
    assert lines[5] == f"written: {evaluated}/evaluation/test.json"
    assert lines[6] == f"next: jaxmlcl report {evaluated}"
    document = json.loads((evaluated / "evaluation" / "test.json").read_text())
    figure = document["stages"]["probe"]["protocols"]["best_on_val"]["micro_f1"]
    assert f"{figure:.3f}" in lines[2]


def test_the_table_counts_the_stages_a_stage_starts_from(evaluated: Path, run: Run) -> None:
    stages = {"pretrain": {"gflop_total": 100.25}, "probe": {"gflop_total": 20}, "bce": {}}
    (evaluated / "stages.json").write_text(json.dumps(stages))
    rows = [line.split() for line in run("evaluate", evaluated).out.splitlines()[2:4]]
    assert [row[-1] for row in rows] == ["120.2", "-"]


def test_no_thresholds_are_chosen_on_the_rows_that_are_scored(run: Run, evaluated: Path) -> None:
    result = run("evaluate", evaluated, "--split", "validation")
    assert result.code == 0
    assert "no best_on_val" in result.out
    saved = json.loads((evaluated / "evaluation" / "validation.json").read_text())
    assert set(saved["protocols"]) == {"fixed_0.5", "paper"}

    path = evaluated / "experiment.json"
    path.write_text(path.read_text().replace("digits:test?size=24", "digits:validation?size=40"))
    result = run("evaluate", evaluated)
    assert result.code == 2
    assert "data.test: 40 of its 40 rows are rows of data.validation" in result.err


def test_evaluate_of_one_stage(run: Run, evaluated: Path) -> None:
    document = json.loads(run("evaluate", evaluated, "--stage", "probe", "--json").out)
    assert list(document["stages"]) == ["probe"]
    assert document["run"]["stage"] == "probe"
    result = run("evaluate", evaluated, "--stage", "pretrain")
    assert result.code == 2
    assert 'stage "pretrain" gives no label scores; those that do: probe, bce' in result.err


@pytest.mark.parametrize("damage", ["unfinished", "split", "json"])
def test_what_cannot_be_evaluated_gets_one_line(run: Run, evaluated: Path, damage: str) -> None:
    path = evaluated / "experiment.json"
    if damage == "unfinished":
        shutil.rmtree(evaluated / "checkpoints" / "bce")
        said = "stage bce: no intact finished checkpoint"
    elif damage == "split":
        path.write_text(path.read_text().replace('"digits:test?size=24"', "null"))
        said = "data.test: the experiment names no test split"
    else:
        path.write_text(path.read_text()[:100])
        said = f"{path}, line "
    code, out, err = run("evaluate", evaluated)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_report_shows_sample_images(run: Run, evaluated: Path) -> None:
    result = run("report", evaluated)
    assert result == (0, f"report: {evaluated}/report.html\n", "")
    assert "data:image/png" in (evaluated / "report.html").read_text()
    samples = sample_images(evaluated)
    assert samples["inputs"].shape == (24, 48, 48, 1)
    source = open_source("digits:test?size=24")
    assert (samples["inputs"][23] == source[23]["inputs"]).all()


def test_report_before_evaluation_has_no_samples(run: Run, trained: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(trained, tmp_path / "run")
    assert sample_images(workdir) is None
    assert run("report", workdir).code == 0


def test_report_says_that_the_data_are_gone_or_changed(run: Run, evaluated: Path) -> None:
    path = evaluated / "evaluation" / "test.json"
    path.write_text(path.read_text().replace("digits:test?size=24", "gone.hdf5"))
    code, out, err = run("report", evaluated)
    assert (code, out) == (0, f"report: {evaluated}/report.html\n")
    assert err.startswith("the report has no sample images: gone.hdf5: no such file; tried ")
    path.write_text(path.read_text().replace("gone.hdf5", "digits:test?size=25"))
    with pytest.raises(UserError, match="the data are not those that were evaluated"):
        sample_images(evaluated)


def test_a_run_on_vectors_whose_data_move(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    for split in ("train", "test"):
        with h5py.File(old / f"{split}.h5", "w") as file:
            file["feature"] = rng.normal(size=(20, 5))
            file["target"] = rng.integers(0, 2, (20, 3))
    config = tmp_path / "vectors.py"
    config.write_text(
        "from jaxmlcl.config import *\n"
        "stage = Stage(Classification(encoder=MLP((4,))), steps(2), batch_size=8)\n"
        'experiment = Experiment("v", Data("train.h5", test="test.h5"), {"bce": stage})\n'
    )
    workdir = tmp_path / "run"
    flags = ("--workdir", workdir, "--precision", "float64")
    assert "train.h5: no such file" in run("train", config, *flags).err
    assert run("train", config, *flags, "--data.root", old).code == 0
    old.rename(new)
    code, out, err = run("evaluate", workdir)
    assert (code, out) == (2, "")
    assert f"{old}: data.root is not a folder" in err
    code, out, err = run("evaluate", workdir, "--data.root", new)
    assert (code, err) == (0, "")
    assert "no best_on_val" in out
    assert f"the report has no sample images: {old}: data.root" in run("report", workdir).err
    assert run("report", workdir, "--data.root", new).err == ""
    assert sample_images(workdir, str(new)) is None
