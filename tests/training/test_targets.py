"""Stages that learn enhanced labels: what the losses see, and what is measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlcl.config import to_json
from jaxmlcl.data.pipeline import GlobalOrder, Records
from jaxmlcl.errors import ConfigError, DataError
from jaxmlcl.evaluation import multilabel_metrics
from jaxmlcl.losses import binary_cross_entropy
from jaxmlcl.methods import Classification
from jaxmlcl.sharding import MeshSpec
from jaxmlcl.training.checkpoint import CheckpointStore
from jaxmlcl.training.duration import steps
from jaxmlcl.training.evaluate import evaluate_run
from jaxmlcl.training.experiment import Data, Experiment
from jaxmlcl.training.kept import stage_folder
from jaxmlcl.training.optimizers import Optimizer
from jaxmlcl.training.program import build_stage, device_constants
from jaxmlcl.training.scoring import score_stages
from jaxmlcl.training.splits import check_apart, fit_preparation, open_split
from jaxmlcl.training.stage import Stage
from jaxmlcl.training.trainer import train
from tests.training.conftest import SMALL_MLP, small_experiment, vectors


def degrees_of(rows: int, seed: int) -> np.ndarray:
    """Something that enhanced labels could be."""
    logits = vectors(rows, seed).arrays()["labels"] + np.random.default_rng(seed).normal(
        size=(rows, 4)
    )
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return shares.astype(np.float32)


def enhanced(folder: Path) -> Experiment:
    np.savez(folder / "enhanced.npz", distributions=degrees_of(96, 0))
    small = small_experiment(folder / "run")
    data = Data(
        "synthetic:train?targets=enhanced.npz",
        "synthetic:validation",
        "synthetic:test",
        root=str(folder),
    )
    stages = {
        "pretrain": dataclasses.replace(small.stages["pretrain"], duration=steps(10)),
        "bce": dataclasses.replace(
            small.stages["bce"], select="map", starts_from="pretrain", duration=steps(20)
        ),
    }
    return dataclasses.replace(small, data=data, stages=stages)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A contrastive stage and a classifier trained on degrees."""
    experiment = enhanced(tmp_path_factory.mktemp("targets"))
    train(experiment, to_json(experiment), devices=jax.devices()[:1])
    return experiment


@pytest.mark.slow
def test_both_stages_learn_and_are_evaluated_on_labels(finished: Experiment) -> None:
    workdir = Path(str(finished.workdir))
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert np.isfinite(losses).all()
    validation = open_split(finished.data, "validation").arrays()  # type: ignore[attr-defined]
    scored = score_stages(finished, workdir, "validation", devices=jax.devices()[:1])
    np.testing.assert_array_equal(scored.labels, validation["labels"])
    found = scored.stages["bce"]
    (row,) = (row for row in rows if row["kind"] == "validation" and row["step"] == found.step)
    measured = multilabel_metrics(found.scores, validation["labels"])
    assert row["map"] == pytest.approx(measured["map"], abs=1e-6)
    document = evaluate_run(finished, workdir, "test")
    test = open_split(finished.data, "test").arrays()  # type: ignore[attr-defined]
    positives = [label["positives"] for label in document["stages"]["bce"]["per_label"]]
    assert positives == test["labels"].sum(0).tolist()


@pytest.mark.slow
def test_the_queue_holds_the_degrees(finished: Experiment) -> None:
    source = open_split(finished.data, "train")
    mesh = MeshSpec().build(jax.devices()[:1])
    stage = build_stage(finished, "pretrain", mesh, source, {})
    folder = stage_folder(Path(str(finished.workdir)), "pretrain", finished.checkpoint.folder)
    store = CheckpointStore(folder)
    queue = stage.restore(store, store.checkpoints()[-1]).objective["queue"]
    assert queue.labels.dtype == jnp.float32
    ids = np.asarray(queue.ids)
    assert (ids >= 0).all()
    np.testing.assert_array_equal(np.asarray(queue.labels), degrees_of(96, 0)[ids])


@pytest.mark.parametrize("resident", [True, False])
def test_a_step_descends_the_loss_of_the_degrees(tmp_path: Path, resident: bool) -> None:
    """By hand: logits of the batch's inputs, cross-entropy with the degrees."""
    experiment = enhanced(tmp_path)
    stage = Stage(
        Classification(dataclasses.replace(SMALL_MLP, dropout=0.0)),
        steps(4),
        batch_size=16,
        optimizer=Optimizer("sgd", 0.1),
    )
    experiment = dataclasses.replace(experiment, stages={"bce": stage})
    source = open_split(experiment.data, "train")
    mesh = MeshSpec().build(jax.devices()[:1])
    built = build_stage(experiment, "bce", mesh, source, {})
    preparation = fit_preparation(experiment.data, source)
    order = GlobalOrder(len(source), 16, 0)
    constants = device_constants(preparation, source, mesh, experiment.precision)
    host = {"index": jnp.asarray(order[0])}
    if not resident:
        del constants["resident"]
        host = {name: jnp.asarray(x) for name, x in Records(source, order)[0].items()}
    state = jax.jit(lambda: built.program.init(None))()
    with jax.set_mesh(mesh):
        batch = jax.jit(built.program.batch)(state.step, host, constants)
        _, measured = jax.jit(built.program.step)(state, host, constants)
    degrees = degrees_of(96, 0)[order[0]]
    np.testing.assert_array_equal(batch.labels, degrees)
    x = (source.arrays()["inputs"][order[0]] - preparation.shift) * preparation.scale  # type: ignore[attr-defined]
    scores = stage.objective.scores(state.params, state.objective, jnp.asarray(x, jnp.float32))
    p = np.asarray(scores, np.float64)
    by_hand = -(degrees * np.log(p) + (1 - degrees) * np.log(1 - p)).mean()
    assert binary_cross_entropy(np.log(p / (1 - p)), degrees) == pytest.approx(by_hand, rel=1e-5)
    assert measured["loss"] == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("weighting", ["all", "any", "jaccard"])
def test_weightings_of_label_sets_are_refused(tmp_path: Path, weighting: str) -> None:
    experiment = enhanced(tmp_path)
    pretrain = experiment.stages["pretrain"]
    objective = dataclasses.replace(pretrain.objective, weighting=weighting)  # type: ignore[type-var]
    stages = {"pretrain": dataclasses.replace(pretrain, objective=objective)}
    experiment = dataclasses.replace(experiment, stages=stages)
    with pytest.raises(ConfigError, match=f'weighting "{weighting}" compares sets of labels'):
        train(experiment, to_json(experiment), devices=jax.devices()[:1])


def test_rows_that_are_learnt_from_are_not_selected_on(tmp_path: Path) -> None:
    """Their targets do not make them other rows."""
    np.savez(tmp_path / "enhanced.npz", distributions=degrees_of(96, 0))
    arrays = vectors().arrays()
    np.savez(
        tmp_path / "copy.npz",
        features=arrays["inputs"],
        labels=arrays["labels"],
        label_names=[f"label {i}" for i in range(4)],
    )
    data = Data("synthetic:train?targets=enhanced.npz", "copy.npz", root=str(tmp_path))
    first, second = open_split(data, "validation"), open_split(data, "train")
    with pytest.raises(DataError, match=r"96 of its 96 rows are rows of data\.train"):
        check_apart(data, "validation", "train", first, second)
