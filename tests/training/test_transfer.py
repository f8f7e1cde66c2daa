"""A stage on data of its own: what it starts from, what it is prepared, scored and resumed with."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxmlcl.config import to_json
from jaxmlcl.data.features import source_features
from jaxmlcl.data.source import ArraySource, register_source
from jaxmlcl.errors import CheckpointError, ConfigError, DataError, Preempted
from jaxmlcl.methods import Classification
from jaxmlcl.report import write_report
from jaxmlcl.training.duration import epochs, steps
from jaxmlcl.training.evaluate import evaluate_run
from jaxmlcl.training.experiment import Data, Experiment
from jaxmlcl.training.kept import stage_folder
from jaxmlcl.training.optimizers import Optimizer
from jaxmlcl.training.population import train_population
from jaxmlcl.training.predict import open_network
from jaxmlcl.training.probes import Probe, probe_run
from jaxmlcl.training.scoring import score_stages
from jaxmlcl.training.splits import Preparation, open_split
from jaxmlcl.training.stage import Stage
from jaxmlcl.training.thresholds import recall_thresholds
from jaxmlcl.training.trainer import CheckpointStore, train
from tests.training.conftest import SMALL_RESNET, pictures, pretrain, small_experiment
from tests.training.test_trainer import Lines, Stop, untimed


def others(rows: int, seed: int, width: int = 12) -> ArraySource:
    """Other inputs, on another scale, with three labels instead of four."""
    generator = np.random.default_rng(1000 + seed)
    x = (50.0 + 9.0 * generator.normal(size=(rows, width))).astype(np.float32)
    y = (x[:, :3] > 50.0).astype(np.uint8)
    y[0], y[1] = 0, 1
    return ArraySource(x, y, label_names=["a", "b", "c"], name="others")


SPLITS = {"train": (80, 0), "validation": (40, 1), "test": (30, 2), "wide": (80, 3, 20)}
register_source("others", lambda body, options, places: others(*SPLITS[body]))
OTHERS = Data("others:train", "others:validation", "others:test")


def with_transfer(workdir: Path, **changes: Any) -> Experiment:
    """The small experiment, and a second probe on other data after the first."""
    small = small_experiment(workdir)
    fields = {"data": OTHERS, "duration": epochs(4), "validate_every": epochs(1), **changes}
    stages = {
        "pretrain": small.stages["pretrain"],
        "transfer": dataclasses.replace(small.stages["probe"], **fields),
        "probe": small.stages["probe"],
    }
    return dataclasses.replace(small, stages=stages)


def run(experiment: Experiment, console: Any = None) -> Path:
    return train(experiment, to_json(experiment), console=console, devices=jax.devices()[:1])


@dataclasses.dataclass(frozen=True)
class Finished:
    experiment: Experiment
    workdir: Path
    lines: list[str]
    evaluation: dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    experiment = with_transfer(tmp_path_factory.mktemp("transfer") / "run")
    console = Lines()
    workdir = run(experiment, console)
    return Finished(experiment, workdir, console.lines, evaluate_run(experiment, workdir, "test"))


def last_params(workdir: Path, stage: str) -> dict[str, Any]:
    store = CheckpointStore(stage_folder(workdir, stage))
    saved = store.latest_valid(report=print, where=lambda found: found.finished)
    assert saved is not None
    return store.restore_numpy(saved)["params"]


def test_it_starts_from_the_encoder_and_has_labels_of_its_own(finished: Finished) -> None:
    start, probe = (last_params(finished.workdir, name) for name in ("pretrain", "transfer"))
    for layer in ("Dense_0", "Dense_1"):
        kernels = [params["encoder"][layer]["kernel"] for params in (start, probe)]
        np.testing.assert_array_equal(*kernels)
    assert probe["classifier"]["Dense_0"]["bias"].shape == (3,)
    summary = json.loads((finished.workdir / "stages.json").read_text())
    # 4 epochs of 80 samples in batches of 16; the first probe's steps are of 96 samples.
    assert (summary["transfer"]["steps"], summary["transfer"]["epochs"]) == (20, 4.0)
    assert summary["probe"]["epochs"] == 40 * 16 / 96
    assert "transfer: data of its own, 80 training samples, 3 labels" in finished.lines


def test_its_inputs_are_standardized_by_its_own_training_rows(finished: Finished) -> None:
    own = Preparation.load(finished.workdir / "preparation-transfer.npz")
    x = others(80, 0).arrays()["inputs"].astype(np.float64)
    np.testing.assert_allclose(own.shift, x.mean(axis=0))
    np.testing.assert_allclose(own.scale, 1 / x.std(axis=0))
    assert abs(Preparation.load(finished.workdir / "preparation.npz").shift).max() < 1
    assert not (finished.workdir / "preparation-probe.npz").exists()


def test_it_learns_what_it_could_not_know_before(finished: Finished) -> None:
    free = finished.evaluation["stages"]["transfer"]["threshold_free"]
    assert free["map"] > others(30, 2).arrays()["labels"].mean() + 0.1


def test_each_stage_is_scored_on_its_own_data(finished: Finished) -> None:
    document = finished.evaluation
    assert list(document["stages"]) == ["transfer", "probe"]
    # The probe is the last, hence the main one: its data are the run's.
    assert document["data"]["source"] == "synthetic:test"
    assert "data" not in document["stages"]["probe"]
    own = document["stages"]["transfer"]["data"]
    assert (own["source"], own["num_rows"], own["num_labels"]) == ("others:test", 30, 3)
    assert own["label_names"] == ["a", "b", "c"]
    assert own["fingerprint"] == others(30, 2).metadata.fingerprint
    assert len(document["stages"]["transfer"]["per_label"]) == 3
    assert "best_on_val" in document["stages"]["transfer"]["protocols"]
    scores = np.load(finished.workdir / "evaluation" / "transfer-test.npz")
    assert scores["scores"].shape == (30, 3)
    np.testing.assert_array_equal(scores["labels"], others(30, 2).arrays()["labels"])


def test_a_main_stage_with_data_of_its_own_stands_for_the_run(finished: Finished) -> None:
    main = dataclasses.replace(finished.experiment, main="transfer")
    document = evaluate_run(main, finished.workdir, "test")
    assert document["data"]["source"] == "others:test"
    assert document["run"]["stage"] == "transfer"
    assert "data" not in document["stages"]["transfer"]
    assert document["stages"]["probe"]["data"]["source"] == "synthetic:test"


def test_a_stage_whose_data_lack_the_split_is_left_out(finished: Finished) -> None:
    stages = dict(finished.experiment.stages)
    stages["transfer"] = dataclasses.replace(
        stages["transfer"], data=dataclasses.replace(OTHERS, test=None)
    )
    less = dataclasses.replace(finished.experiment, stages=stages)
    said: list[str] = []
    document = evaluate_run(less, finished.workdir, "test", report=said.append)
    assert list(document["stages"]) == ["probe"]
    assert said == ["transfer: not scored, its data name no test split"]
    with pytest.raises(ConfigError, match=r"data\.test: the experiment names no test split"):
        evaluate_run(less, finished.workdir, "test", "transfer")


def test_stages_on_different_data_are_not_scored_together(finished: Finished) -> None:
    with pytest.raises(ConfigError, match="stages transfer and probe have different data"):
        score_stages(finished.experiment, finished.workdir, "test")


def test_the_report_keeps_the_data_apart(finished: Finished) -> None:
    path = finished.workdir / "evaluation" / "test.json"
    path.write_text(json.dumps(finished.evaluation))
    page = write_report(finished.workdir).read_text()
    assert "mulsupcon → linear probe, on others:test: 30 rows, 3 labels" in page
    assert "<h3>transfer <small>others:test: 30 rows, 3 labels</small></h3>" in page
    # One stage on each data set: nothing to be the best of, and samples of the main one only.
    assert "best of its column" not in page
    samples = page.partition('<section aria-labelledby="samples">')[2]
    assert "transfer" not in samples.partition('<h2 id="configuration">')[0]


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        pytest.param("pretrain", 58, marks=pytest.mark.slow),
        ("transfer", 9),
        pytest.param("probe", 20, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_continues_to_the_same_bits(
    finished: Finished, tmp_path: Path, stage: str, step: int
) -> None:
    again = with_transfer(tmp_path / "run")
    with pytest.raises(Preempted):
        run(again, Stop(stage, step, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    workdir = run(again)
    assert untimed(workdir) == untimed(finished.workdir)
    for name in finished.experiment.stages:
        found, expected = (last_params(folder, name) for folder in (workdir, finished.workdir))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_changed_data_of_a_stage_are_refused(finished: Finished) -> None:
    try:
        register_source("others", lambda body, options, places: others(80, 7))
        with pytest.raises(CheckpointError, match=r"transfer/\d+: it was trained on other data"):
            run(finished.experiment)
    finally:
        register_source("others", lambda body, options, places: others(*SPLITS[body]))
    moved = dataclasses.replace(OTHERS, root="/elsewhere")
    stages = dict(finished.experiment.stages)
    stages["transfer"] = dataclasses.replace(stages["transfer"], data=moved)
    # The folder of the data may change, what they are may not.
    run(dataclasses.replace(finished.experiment, stages=stages))
    stages["transfer"] = dataclasses.replace(
        stages["transfer"], data=dataclasses.replace(OTHERS, inputs="raw")
    )
    with pytest.raises(
        ConfigError, match=r"stages\.transfer\.data\.inputs \(standardize there, ra"
    ):
        run(dataclasses.replace(finished.experiment, stages=stages))


def test_the_preparation_may_be_inherited(tmp_path: Path) -> None:
    inherited = dataclasses.replace(OTHERS, inputs="inherit")
    workdir = run(with_transfer(tmp_path / "run", data=inherited, duration=steps(3)))
    files = [workdir / name for name in ("preparation.npz", "preparation-transfer.npz")]
    first, second = map(Preparation.load, files)
    np.testing.assert_array_equal(first.shift, second.shift)
    np.testing.assert_array_equal(first.scale, second.scale)


def test_inputs_that_do_not_fit_name_both(tmp_path: Path) -> None:
    wide = with_transfer(tmp_path / "run", data=Data("others:wide"), select="last")
    said = (
        r"stages\.transfer: its data have inputs of shape \(20,\), those of pretrain, from which "
        r"it starts, \(12,\)"
    )
    with pytest.raises(ConfigError, match=said):
        run(wide)
    inherited = Data("others:wide", inputs="inherit")
    said = r"stages\.transfer\.data\.inputs: the preparation to inherit is for inputs of shape \(12"
    with pytest.raises(ConfigError, match=said):
        run(with_transfer(tmp_path / "run", data=inherited, select="last"))
    mixed = Data("others:train", "synthetic:validation")
    said = r"stages\.transfer\.data\.train and stages\.transfer\.data\.validation have different la"
    with pytest.raises(DataError, match=said):
        run(with_transfer(tmp_path / "run", data=mixed))


def test_probes_read_each_stage_on_its_own_data(finished: Finished) -> None:
    document = probe_run(finished.experiment, finished.workdir, "test", Probe("ridge"))
    assert list(document["stages"]) == ["pretrain", "transfer", "probe"]
    assert document["stages"]["transfer"]["data"]["source"] == "others:test"
    assert len(document["stages"]["transfer"]["per_label"]) == 3
    assert "data" not in document["stages"]["pretrain"]


def test_it_is_applied_to_new_rows_like_its_own(finished: Finished) -> None:
    network = open_network(
        finished.experiment, finished.workdir, "transfer", devices=jax.devices()[:1]
    )
    assert network.label_names == ("a", "b", "c")
    rows = source_features(others(30, 2), "others", network.trained_on.expected)
    ((_, found),) = network.scores(rows)
    expected = score_stages(
        finished.experiment, finished.workdir, "test", ["transfer"], devices=jax.devices()[:1]
    )
    np.testing.assert_array_equal(found, expected.stages["transfer"].scores)
    chosen = recall_thresholds(finished.experiment, finished.workdir, network, "label")
    assert chosen.shape == (3,)


@pytest.mark.slow
@pytest.mark.parametrize("inputs", ["standardize", "inherit"])
def test_a_population_trains_it_as_the_trainer_does(x64: None, tmp_path: Path, inputs: Any) -> None:
    # Averages and threefry's masks are the same too.
    member = with_transfer(
        tmp_path / "run", data=dataclasses.replace(OTHERS, inputs=inputs), ema=0.9
    )
    stages = dict(member.stages)
    stages["pretrain"] = dataclasses.replace(stages["pretrain"], ema=0.8, duration=steps(10))
    member = dataclasses.replace(member, stages=stages, random="threefry", precision="float64")
    (trial,) = train_population([member], keep_networks=True)
    workdir = run(member)
    for name in ("transfer", "probe"):
        logged = [
            row for row in untimed(workdir) if (row["kind"], row["stage"]) == ("validation", name)
        ]
        history = trial.stages[name].history
        assert [row["step"] for row in logged] == [step for step, _ in history]
        for row, (_, measures) in zip(logged, history, strict=True):
            assert {key: row[key] for key in measures} == pytest.approx(measures, rel=1e-6)
    source = open_split(member.data_of("transfer"), "test")
    scored = score_stages(member, workdir, "test", ["transfer"], devices=jax.devices()[:1])
    np.testing.assert_allclose(
        trial.scores(source, "transfer"), scored.stages["transfer"].scores, rtol=1e-6
    )


def test_rows_that_the_encoder_was_trained_on_are_not_scored(tmp_path: Path) -> None:
    # The transfer's validation and test rows are among those of the pretraining.
    table = tmp_path / "all.csv"
    arrays = others(60, 5).arrays()
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([f"x{i}" for i in range(12)] + ["a", "b", "c"])
        for x, y in zip(arrays["inputs"], arrays["labels"], strict=True):
            writer.writerow([*map(float, x), *map(int, y)])
    uri = f"{table}?labels=a,b,c"
    own = Data(f"{uri}&part=rest", validation=f"{uri}&part=held-out")
    experiment = with_transfer(tmp_path / "run", data=own, duration=steps(3))
    stages = {name: experiment.stages[name] for name in ("pretrain", "transfer")}
    stages["pretrain"] = dataclasses.replace(stages["pretrain"], duration=steps(3))
    experiment = dataclasses.replace(experiment, data=Data(uri), stages=stages)
    said = r"stages\.transfer\.data\.validation: \d+ of its \d+ rows are rows of data\.train"
    with pytest.raises(DataError, match=said):
        run(experiment)
    # Where nothing is selected on them it may train, but not be scored on them.
    own = Data(f"{uri}&part=rest", test=f"{uri}&part=held-out")
    stages["transfer"] = dataclasses.replace(stages["transfer"], data=own, select="last")
    experiment = dataclasses.replace(experiment, stages=stages)
    workdir = run(experiment)
    said = r"stages\.transfer\.data\.test: \d+ of its \d+ rows are rows of data\.train"
    with pytest.raises(DataError, match=said):
        evaluate_run(experiment, workdir, "test")
    with pytest.raises(DataError, match=said):
        probe_run(experiment, workdir, "test", Probe("knn"), "transfer")


def test_pictures_of_another_size_fit_a_convolutional_encoder(tmp_path: Path) -> None:
    probe = Classification(encoder=SMALL_RESNET, encoder_mode="eval")
    optimizer = Optimizer("adam", 1e-2)
    experiment = Experiment(
        "digits",
        Data("digits:train?size=64", inputs="unit"),
        {
            "pretrain": pretrain("pictures", optimizer, duration=steps(4)),
            "probe": Stage(
                probe,
                steps(4),
                batch_size=16,
                optimizer=optimizer,
                starts_from="pretrain",
                frozen=("^encoder/",),
                data=Data("quarters:train", inputs="unit"),
            ),
        },
        workdir=str(tmp_path / "run"),
    )
    register_source("quarters", lambda body, options, places: pictures(48))
    workdir = run(experiment)
    assert last_params(workdir, "probe")["classifier"]["Dense_0"]["bias"].shape == (4,)
    shapes = [
        open_split(experiment.data_of(name), "train").metadata.input_shape
        for name in experiment.stages
    ]
    assert shapes == [(48, 48, 1), (16, 16, 1)]


def test_from_vectors_to_a_table(tmp_path: Path) -> None:
    rows = others(60, 5).arrays()
    names = [f"x{i}" for i in range(12)] + ["a", "b", "c"]
    for split, part in {"train": slice(0, 40), "test": slice(40, 60)}.items():
        with open(tmp_path / f"{split}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            writer.writerows(
                [*map(float, x), *map(int, y)]
                for x, y in zip(rows["inputs"][part], rows["labels"][part], strict=True)
            )
    table = Data("train.csv?labels=a,b,c", test="test.csv?labels=a,b,c")
    experiment = with_transfer(
        tmp_path / "run", data=table, select="last", duration=steps(10), patience=None
    )
    data = dataclasses.replace(experiment.data, root=str(tmp_path))
    experiment = dataclasses.replace(experiment, data=data)
    # The root of the experiment is that of its stages.
    assert experiment.data_of("transfer").root == str(tmp_path)
    workdir = run(experiment)
    document = evaluate_run(experiment, workdir, "test")
    assert document["stages"]["transfer"]["data"]["num_rows"] == 20
    assert "best_on_val" not in document["stages"]["transfer"]["protocols"]
