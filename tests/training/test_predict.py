"""A finished run applied to new rows: the bits of evaluation, and nothing but the run's folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmlcl.config import to_json
from jaxmlcl.data.features import Expected, Features, source_features
from jaxmlcl.data.source import open_source
from jaxmlcl.errors import CheckpointError, ConfigError, DataError, UserError
from jaxmlcl.evaluation import choose_thresholds
from jaxmlcl.training.evaluate import evaluate_run
from jaxmlcl.training.experiment import Checkpoint, Data, Experiment
from jaxmlcl.training.predict import Network, open_network
from jaxmlcl.training.scoring import score_stages, scoring_mesh
from jaxmlcl.training.thresholds import recall_thresholds
from jaxmlcl.training.trained_on import load_trained_on
from jaxmlcl.training.trainer import train
from tests.training.conftest import small_experiment


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A run to its end that tests do not change."""
    experiment = small_experiment(tmp_path_factory.mktemp("finished") / "run")
    experiment = dataclasses.replace(experiment, checkpoint=Checkpoint())
    train(experiment, to_json(experiment), devices=jax.devices()[:1])
    return experiment


def folder(experiment: Experiment) -> Path:
    assert experiment.workdir is not None
    return Path(experiment.workdir)


@pytest.fixture
def run(finished: Experiment, tmp_path: Path) -> Experiment:
    """A copy that a test may change."""
    place = shutil.copytree(folder(finished), tmp_path / "run")
    return dataclasses.replace(finished, workdir=str(place))


def opened(experiment: Experiment, stage: str | None = None, devices: int = 1) -> Network:
    found = jax.devices()[:devices]
    return open_network(experiment, folder(experiment), stage, devices=found)


def rows(network: Network, uri: str = "synthetic:test") -> Features:
    return source_features(open_source(uri), uri, network.trained_on.expected)


def scores(network: Network, features: Features, batch: int = 512) -> np.ndarray:
    return np.concatenate([found for _, found in network.scores(features, batch)])


@pytest.mark.parametrize("stage", ["probe", "bce"])
def test_scores_have_the_bits_of_evaluation(finished: Experiment, stage: str) -> None:
    expected = score_stages(finished, folder(finished), "test", devices=jax.devices()[:1])
    network = opened(finished, stage)
    assert network.label_names == tuple(f"label {i}" for i in range(4))
    found = list(network.scores(rows(network)))
    assert np.concatenate([part.ids for part, _ in found]).tolist() == list(range(64))
    assert (found[0][1] == expected.stages[stage].scores).all()
    assert found[0][1].dtype == np.float32


def test_scores_do_not_depend_on_devices_and_batches(finished: Experiment) -> None:
    network = opened(finished, "bce")
    expected = scores(network, rows(network))
    for devices, batch in ((8, 512), (1, 7), (8, 9)):
        other = opened(finished, "bce", devices)
        found = scores(other, rows(other), batch)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    evaluated = score_stages(finished, folder(finished), "test", devices=jax.devices()[:8])
    eight = opened(finished, "bce", 8)
    assert (scores(eight, rows(eight)) == evaluated.stages["bce"].scores).all()


def test_devices_over_which_no_batch_divides_score_all_the_same(finished: Experiment) -> None:
    assert scoring_mesh(finished, jax.devices()[:3]).size == 3
    network = opened(finished, "bce", 3)
    assert scores(network, rows(network)).shape == (64, 4)


def test_the_stage_is_the_main_one_or_the_last(finished: Experiment) -> None:
    assert opened(finished).stage == "bce"
    assert opened(dataclasses.replace(finished, main="probe")).stage == "probe"
    with pytest.raises(
        ConfigError, match=r'"pretrain" is no stage that gives label scores; .* bce'
    ):
        opened(finished, "pretrain")


def test_every_stage_gives_representations(finished: Experiment) -> None:
    network = open_network(
        finished,
        folder(finished),
        "pretrain",
        gives_scores=False,
        devices=jax.devices()[:1],
    )
    ((part, found),) = network.embeddings(rows(network))
    assert {name: array.shape for name, array in found.items()} == {
        "representation": (64, 64),
        "embedding": (64, 16),
    }
    assert all(array.dtype == np.float32 for array in found.values())
    np.testing.assert_allclose(np.linalg.norm(found["embedding"], axis=1), 1, rtol=1e-5)
    assert (part.labels == open_source("synthetic:test").arrays()["labels"]).all()
    # The probe's frozen encoder is the pretrained one.
    ((_, probe),) = opened(finished, "probe").embeddings(rows(network))
    np.testing.assert_allclose(probe["representation"], found["representation"], rtol=1e-5)


def test_nothing_but_the_folder_is_needed(finished: Experiment) -> None:
    gone = dataclasses.replace(finished, data=Data("gone.h5", "gone.h5", "gone.h5", root="/gone"))
    network = opened(gone, "bce")
    assert (scores(network, rows(network)) == scores(opened(finished), rows(network))).all()


def test_a_score_that_is_not_finite_names_its_row(finished: Experiment) -> None:
    network = opened(finished)
    large = open_source("synthetic:test").arrays()["inputs"].copy()
    large[9] = 3e38
    source = open_source("synthetic:test")
    features = Features(
        "x.npy",
        lambda batch: iter(
            part._replace(inputs=large)
            for part in source_features(source, "x", network.trained_on.expected).read(batch)
        ),
    )
    with pytest.raises(DataError, match=r"x\.npy, id 9: the score that bce gives is not finite"):
        scores(network, features)


# -------------------------------------------------------------------------- what a run remembers


def test_a_run_remembers_what_it_was_trained_on(finished: Experiment) -> None:
    source = open_source("synthetic:train")
    for stage in finished.stages:
        found = load_trained_on(folder(finished), stage)
        assert found.metadata == source.metadata
        assert len(found) == 96
        assert found.feature_names == tuple(f"feature_{i}" for i in range(12))
        assert isinstance(found.expected, Expected)


@pytest.mark.parametrize("name", ["data.json", "preparation.npz"])
def test_a_run_without_its_description_is_mended_by_training_again(
    run: Experiment, name: str
) -> None:
    path = folder(run) / name
    before = path.read_bytes()
    for damage in (None, b"", before[: len(before) // 2], b"[]"):
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        with pytest.raises(UserError, match=f"{name}: missing or not readable; run the training"):
            opened(run)
        path.touch()
    train(run, to_json(run), devices=jax.devices()[:1])
    assert path.read_bytes()[:200] == before[:200]
    assert scores(opened(run), rows(opened(run))).shape == (64, 4)


def test_the_description_of_another_run_is_refused(run: Experiment) -> None:
    path = folder(run) / "data.json"
    path.write_text(path.read_text().replace("label 0", "label 9"))
    with pytest.raises(CheckpointError, match=r"data\.json: it describes other data"):
        opened(run)
    shutil.rmtree(folder(run) / "checkpoints" / "bce")
    path.write_text(path.read_text().replace("label 9", "label 0"))
    with pytest.raises(UserError, match="stage bce: no intact finished checkpoint"):
        opened(run)


def test_thresholds_are_chosen_once_and_remembered(run: Experiment) -> None:
    network = opened(run)
    workdir = folder(run)
    found = {
        per: recall_thresholds(run, workdir, network, per)  # type: ignore[arg-type]  # both words
        for per in ("all", "label")
    }
    scored = score_stages(run, workdir, "validation", ["bce"])
    values, labels = scored.stages["bce"].scores, scored.labels
    assert found["all"].tolist() == [choose_thresholds(values, labels, per="all")] * 4
    assert found["label"].tolist() == choose_thresholds(values, labels, per="label").tolist()
    gone = dataclasses.replace(run, data=Data("gone.h5", "gone.h5", root="/gone"))
    assert (recall_thresholds(gone, workdir, network, "label") == found["label"]).all()
    # Those of another checkpoint, or damaged ones, are as good as none.
    path = workdir / "thresholds.json"
    known = json.loads(path.read_text())
    for damage in ({**known["bce"], "checkpoint": "0" * 64}, {**known["bce"], "label": [0.5]}, 3):
        path.write_text(json.dumps({"bce": damage}))
        with pytest.raises(UserError, match=r"no thresholds are remembered, .* --threshold 0\.5"):
            recall_thresholds(gone, workdir, network, "all")
    path.write_text("{")
    assert (recall_thresholds(run, workdir, network, "all") == found["all"]).all()
    assert json.loads(path.read_text()) == {"bce": known["bce"]}


def test_evaluation_remembers_thresholds_of_every_stage(run: Experiment) -> None:
    workdir = folder(run)
    document = evaluate_run(run, workdir, "test")
    known = json.loads((workdir / "thresholds.json").read_text())
    assert set(known) == {"probe", "bce"}
    gone = dataclasses.replace(run, data=Data("gone.h5", "gone.h5", root="/gone"))
    for stage in known:
        chosen = document["stages"][stage]["protocols"]["best_on_val"]["thresholds"]["micro_f1"]
        thresholds = recall_thresholds(gone, workdir, opened(run, stage), "all")
        assert thresholds.tolist() == [chosen] * 4


def test_without_a_validation_split_a_threshold_must_be_given(run: Experiment) -> None:
    data = dataclasses.replace(run.data, validation=None)
    stages = {name: dataclasses.replace(stage, select="last") for name, stage in run.stages.items()}
    blind = dataclasses.replace(run, data=data, stages=stages)
    with pytest.raises(ConfigError, match="no validation split to choose thresholds on; or say"):
        recall_thresholds(blind, folder(run), opened(run), "all")


def test_a_stage_on_data_of_its_own_is_applied_with_its_own_inputs_and_labels(
    tmp_path: Path,
) -> None:
    generator = np.random.default_rng(5)
    x = (50 + 9 * generator.normal(size=(40, 12))).astype(np.float32)
    for split in ("train", "validation", "test"):
        names = ["a", "b", "c"]
        np.savez(
            tmp_path / f"{split}.npz",
            features=x + generator.normal(size=x.shape),
            labels=(x[:, :3] > 50).astype(int),
            label_names=names,
        )
    small = small_experiment(tmp_path / "run")
    own = dataclasses.replace(
        small.stages["bce"],
        data=Data("train.npz", "validation.npz", "test.npz", root=str(tmp_path)),
        ema=0.9,
    )
    stages = {"bce": small.stages["bce"], "own": own}
    experiment = dataclasses.replace(small, stages=stages, checkpoint=Checkpoint())
    workdir = train(experiment, to_json(experiment), devices=jax.devices()[:1])
    expected = {
        stage: score_stages(experiment, workdir, "test", [stage], devices=jax.devices()[:1])
        for stage in stages
    }
    (tmp_path / "train.npz").unlink()
    for stage, uri in (("bce", "synthetic:test"), ("own", str(tmp_path / "test.npz"))):
        network = opened(experiment, stage)
        assert (scores(network, rows(network, uri)) == expected[stage].stages[stage].scores).all()
    assert network.label_names == ("a", "b", "c")
