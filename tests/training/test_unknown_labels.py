"""Unknown labels from a CSV file to the evaluation, and rows that serve two purposes."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pytest

from jaxmlcl.config import to_json
from jaxmlcl.data import open_source
from jaxmlcl.data.pipeline import GlobalOrder, Indices, Records
from jaxmlcl.errors import DataError
from jaxmlcl.evaluation import choose_thresholds, evaluate_scores, multilabel_metrics
from jaxmlcl.losses import binary_cross_entropy
from jaxmlcl.methods import Classification
from jaxmlcl.sharding import MeshSpec, batch_sharding
from jaxmlcl.training import scoring
from jaxmlcl.training.duration import steps
from jaxmlcl.training.evaluate import evaluate_run
from jaxmlcl.training.experiment import Data, Experiment
from jaxmlcl.training.optimizers import Optimizer
from jaxmlcl.training.population import train_population
from jaxmlcl.training.probes import Probe, _Network, _open, probe_run
from jaxmlcl.training.program import build_stage, device_constants
from jaxmlcl.training.scoring import score_splits, score_stages
from jaxmlcl.training.splits import check_apart, fit_preparation, open_split
from jaxmlcl.training.stage import Stage
from jaxmlcl.training.trainer import train
from tests.training.conftest import SMALL_MLP, partly_known, small_experiment

OPTIONS = "?labels=label*&id=id&unknown=mask"


def write(path: Path, rows: int, seed: int, first_id: int = 0) -> None:
    arrays = partly_known(rows, seed).arrays()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *(f"x{i}" for i in range(12)), *(f"label {i}" for i in range(4))])
        for row in range(rows):
            pairs = zip(arrays["labels"][row], arrays["label_mask"][row], strict=True)
            cells = [label if known else "" for label, known in pairs]
            writer.writerow([first_id + row, *arrays["inputs"][row].tolist(), *cells])


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run on tables with unknown labels, evaluated, which tests read and do not change."""

    experiment: Experiment
    workdir: Path
    document: dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("unknown")
    for name, rows, seed in (("train", 96, 0), ("validation", 48, 1), ("test", 64, 2)):
        write(folder / f"{name}.csv", rows, seed, 1000 * seed)
    small = small_experiment(folder / "run")
    names = ("train", "validation", "test")
    data = Data(*(f"{name}.csv{OPTIONS}" for name in names), root=str(folder))
    stages = {
        "pretrain": dataclasses.replace(small.stages["pretrain"], duration=steps(10)),
        "bce": dataclasses.replace(small.stages["bce"], select="map", starts_from="pretrain"),
    }
    experiment = dataclasses.replace(small, data=data, stages=stages)
    train(experiment, to_json(experiment), devices=jax.devices()[:1])
    workdir = Path(str(experiment.workdir))
    return Finished(experiment, workdir, evaluate_run(experiment, workdir, "test"))


def test_what_is_learnt_and_written(finished: Finished) -> None:
    rows = [json.loads(line) for line in (finished.workdir / "metrics.jsonl").open()]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert {row["stage"] for row in rows if row["kind"] == "train"} == {"pretrain", "bce"}
    test = open_split(finished.experiment.data, "test").arrays()
    with np.load(finished.workdir / "evaluation" / "bce-test.npz") as file:
        written = dict(file)
    np.testing.assert_array_equal(written["label_mask"], test["label_mask"])
    np.testing.assert_array_equal(written["labels"], test["labels"])
    np.testing.assert_array_equal(written["ids"], 2000 + np.arange(64))


def test_the_measures_are_those_of_the_known_labels(finished: Finished) -> None:
    splits = score_splits(
        finished.experiment, finished.workdir, ["test", "validation"], devices=jax.devices()[:1]
    )
    test, validation = splits["test"], splits["validation"]
    scores = test.stages["bce"].scores
    assert test.label_mask is not None
    expected = multilabel_metrics(scores, test.labels, label_mask=test.label_mask)
    taken_for_zero = multilabel_metrics(scores, test.labels)
    result = finished.document["stages"]["bce"]
    for group, name in (("threshold_free", "map"), ("threshold_free", "lrap")):
        assert result[group][name] == pytest.approx(expected[name])
        assert result[group][name] != pytest.approx(taken_for_zero[name])
    fixed = result["protocols"]["fixed_0.5"]
    assert fixed["hamming_accuracy"] == pytest.approx(expected["hamming_accuracy"])
    chosen = choose_thresholds(
        validation.stages["bce"].scores, validation.labels, label_mask=validation.label_mask
    )
    assert result["protocols"]["best_on_val"]["thresholds"] == chosen
    for column, row in enumerate(result["per_label"]):
        assert row["positives"] == test.labels[:, column].sum()


def test_validation_while_training_is_over_known_labels(finished: Finished) -> None:
    rows = [json.loads(line) for line in (finished.workdir / "metrics.jsonl").open()]
    scored = score_stages(
        finished.experiment, finished.workdir, "validation", devices=jax.devices()[:1]
    )
    found, known = scored.stages["bce"], scored.label_mask
    (row,) = (row for row in rows if row["kind"] == "validation" and row["step"] == found.step)
    p = found.scores.astype(np.float64)
    right = np.where(scored.labels > 0, p, 1 - p)
    assert row["loss"] == pytest.approx(-np.log(right[known]).mean(), rel=1e-5)
    measured = multilabel_metrics(found.scores, scored.labels, label_mask=known)
    assert row["map"] == pytest.approx(measured["map"], abs=1e-6)


def test_a_step_descends_the_loss_computed_by_hand() -> None:
    source = partly_known()
    stage = Stage(
        Classification(dataclasses.replace(SMALL_MLP, dropout=0.0)),
        steps(4),
        batch_size=16,
        optimizer=Optimizer("sgd", 0.1),
    )
    data = Data("unused")
    experiment = Experiment("x", data, {"bce": stage})
    mesh = MeshSpec().build(jax.devices()[:1])
    preparation = fit_preparation(data, source)
    program = build_stage(experiment, "bce", mesh, source, {})
    order = GlobalOrder(len(source), 16, 0)
    arrays, rows = source.arrays(), order[0]
    known = arrays["label_mask"][rows]
    assert not known.all()
    state = program.initial(None)
    x = (arrays["inputs"][rows] - preparation.shift) * preparation.scale

    def by_hand(params: Any) -> jax.Array:
        h = x.astype(np.float32)
        for name in ("Dense_0", "Dense_1"):
            layer = params["encoder"][name]
            h = jax.nn.relu(h @ layer["kernel"] + layer["bias"])
        layer = params["classifier"]["Dense_0"]
        logits = h @ layer["kernel"] + layer["bias"]
        cells = binary_cross_entropy(
            logits.reshape(-1)[known.reshape(-1)][None],
            arrays["labels"][rows].reshape(-1)[known.reshape(-1)][None],
        )
        return cells

    loss, gradient = jax.value_and_grad(by_hand)(state.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, gradient)
    expected = jax.device_get(expected)
    # The data on the device and the data as records are the same step.
    for steps_of, resident in ((Indices(order), source), (Records(source, order), None)):
        constants = device_constants(preparation, resident, mesh, "float32")
        step, _ = program.compile(steps_of[0], constants)
        host = jax.device_put(steps_of[0], batch_sharding(mesh))
        after, measured = step(program.initial(None), host, constants)
        assert float(measured["loss"]) == pytest.approx(float(loss), rel=1e-5)
        for a, b in zip(
            jax.tree.leaves(jax.device_get(after.params)), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_each_stage_is_restored_once(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[str] = []
    load = scoring.load_stage

    def counting(store: Any, program: Any, report: Any) -> Any:
        restored.append(program.name)
        return load(store, program, report)

    monkeypatch.setattr(scoring, "load_stage", counting)
    assert evaluate_run(finished.experiment, finished.workdir, "test") == finished.document
    assert restored == ["bce"]


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_probes_learn_from_known_labels_and_are_measured_on_them(
    finished: Finished, tmp_path: Path, kind: Literal["knn", "linear"]
) -> None:
    workdir = Path(shutil.copytree(finished.workdir, tmp_path / "run"))
    probe = Probe(kind)
    document = probe_run(finished.experiment, workdir, "test", probe, "pretrain")
    train, test, validation = _open(finished.experiment.data, "test")
    assert validation is not None
    masks = [split.label_mask for split in (train, test, validation)]
    assert all(mask is not None for mask in masks)
    network = _Network(finished.experiment, workdir, "pretrain", train.source, lambda _: None)
    embedded = [network.embed(split, probe) for split in (train, test, validation)]
    found = probe.scores(
        embedded[0],
        train.labels,
        embedded[1],
        label_mask=masks[0],
        validation_embeddings=embedded[2],
        validation_labels=validation.labels,
        validation_mask=masks[2],
    )
    result = evaluate_scores(
        found.scores,
        test.labels,
        label_names=test.source.metadata.label_names,
        validation_scores=found.validation_scores,
        validation_labels=validation.labels,
        label_mask=masks[1],
        validation_mask=masks[2],
    )
    for group in ("threshold_free", "protocols", "per_label"):
        assert document[group] == result[group]
    with np.load(workdir / "evaluation" / kind / "pretrain-test.npz") as file:
        np.testing.assert_array_equal(file["label_mask"], masks[1])
        np.testing.assert_array_equal(file["scores"], found.scores)


@pytest.mark.parametrize("other", ["train", "validation"])
def test_probes_choose_and_score_on_rows_of_their_own(finished: Finished, other: str) -> None:
    uri = getattr(finished.experiment.data, other)
    again = with_data(finished.experiment, test=f"{uri}&part=held-out")
    with pytest.raises(DataError, match=rf"data\.test: .* rows of data\.{other}"):
        probe_run(again, finished.workdir, "test", Probe("knn"))


def with_data(experiment: Experiment, **data: str) -> Experiment:
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **data))


@pytest.mark.parametrize("other", ["train", "validation"])
def test_rows_trained_or_selected_on_are_not_reported_on(finished: Finished, other: str) -> None:
    uri = getattr(finished.experiment.data, other)
    rows = len(open_split(finished.experiment.data, other))
    again = with_data(finished.experiment, test=uri)
    with pytest.raises(DataError, match=rf"data\.test: {rows} of its {rows} rows are rows of data"):
        evaluate_run(again, finished.workdir, "test")
    # A part of the file is another content, but the same rows.
    part = with_data(finished.experiment, test=f"{uri}&part=held-out")
    with pytest.raises(DataError, match=rf"rows of data\.{other}"):
        evaluate_run(part, finished.workdir, "test")


def test_a_copy_of_the_rows_under_another_name_is_found(finished: Finished) -> None:
    folder = Path(str(finished.experiment.data.root))
    (folder / "copy.csv").write_bytes((folder / "train.csv").read_bytes())
    again = with_data(finished.experiment, test=f"copy.csv{OPTIONS}")
    with pytest.raises(DataError, match=r"data\.test: 96 of its 96 rows are rows of data\.train"):
        evaluate_run(again, finished.workdir, "test")


@pytest.mark.parametrize("validation", ["train.csv", "train.csv&part=held-out"])
def test_nothing_is_selected_on_training_rows(
    finished: Finished, tmp_path: Path, validation: str
) -> None:
    path, _, part = validation.partition("&")
    uri = f"{path}{OPTIONS}" + (f"&{part}" if part else "")
    other = with_data(finished.experiment, validation=uri)
    other = dataclasses.replace(other, workdir=str(tmp_path / "run"))
    with pytest.raises(DataError, match=r"data\.validation: \d+ of its \d+ rows are rows of data"):
        train(other, to_json(other), devices=jax.devices()[:1])
    assert not (tmp_path / "run" / "experiment.json").exists()
    # Where nothing is selected, validation on training rows is a curve like any other.
    stages = {"bce": dataclasses.replace(other.stages["bce"], select="last", starts_from=None)}
    stages["bce"] = dataclasses.replace(stages["bce"], duration=steps(1))
    shown = dataclasses.replace(other, stages=stages, workdir=str(tmp_path / "shown"))
    if not part:
        workdir = train(shown, to_json(shown), devices=jax.devices()[:1])
        # But no threshold is chosen by it.
        said: list[str] = []
        document = evaluate_run(shown, workdir, "test", report=said.append)
        assert "best_on_val" not in document["protocols"]
        assert not (workdir / "thresholds.json").exists()
        assert any("its rows are training rows" in line for line in said)


def test_parts_of_one_file_are_apart(finished: Finished) -> None:
    data = finished.experiment.data
    split = f"{data.train}&part="
    whole = open_source(data.train, root=data.root)
    parts = [open_source(f"{split}{part}", root=data.root) for part in ("rest", "held-out")]
    assert sum(map(len, parts)) == len(whole)
    apart = dataclasses.replace(data, train=f"{split}rest", validation=f"{split}held-out")
    check_apart(apart, "validation", "train", parts[1], parts[0])
    with pytest.raises(DataError, match="rows are rows of"):
        check_apart(data, "validation", "train", parts[1], parts[1])


def test_a_population_validates_over_known_labels(finished: Finished) -> None:
    experiment = finished.experiment
    bce = dataclasses.replace(experiment.stages["bce"], duration=steps(10), starts_from=None)
    alone = dataclasses.replace(
        experiment, stages={"bce": bce}, workdir=str(finished.workdir.parent / "alone")
    )
    (trial,) = train_population([alone])
    train(alone, to_json(alone), devices=jax.devices()[:1])
    log = Path(str(alone.workdir)) / "metrics.jsonl"
    rows = [json.loads(line) for line in log.open()]
    (row,) = (row for row in rows if row["kind"] == "validation")
    assert trial.stages["bce"].validation["loss"] == pytest.approx(row["loss"], rel=1e-4)
