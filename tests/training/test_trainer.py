"""The trainer in one process: what it writes, what it refuses, and that it compiles once."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxmlcl.config import to_json
from jaxmlcl.data.source import ArraySource, register_source
from jaxmlcl.errors import CheckpointError, ConfigError, NonFiniteError, Preempted, UserError
from jaxmlcl.methods import Classification
from jaxmlcl.models import MLP
from jaxmlcl.sharding import MeshSpec
from jaxmlcl.training import trainer as trainer_module
from jaxmlcl.training.console import Silent
from jaxmlcl.training.duration import flops_of, steps
from jaxmlcl.training.experiment import Experiment
from jaxmlcl.training.optimizers import Optimizer, Plateau
from jaxmlcl.training.scoring import score_stages
from jaxmlcl.training.trainer import train
from tests.training.conftest import SMALL_MLP, SMALL_RESNET, small_experiment, vectors

TIMES = ("samples_per_second",)


class Lines(Silent):
    """Keeps what the trainer says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def run(experiment: Experiment, console: Any = None) -> Path:
    return train(experiment, to_json(experiment), console=console, devices=jax.devices()[:1])


def rows(workdir: Path) -> list[dict[str, Any]]:
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def untimed(workdir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows(workdir)]


def arrays_of(experiment: Experiment, workdir: Path) -> dict[str, np.ndarray]:
    scored = score_stages(experiment, workdir, "test", devices=jax.devices()[:1])
    return {name: stage.scores for name, stage in scored.stages.items()}


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run to its end, never interrupted, that tests read and do not change."""

    experiment: Experiment
    workdir: Path
    lines: list[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    experiment = small_experiment(tmp_path_factory.mktemp("finished") / "run")
    console = Lines()
    return Finished(experiment, run(experiment, console), console.lines)


def test_a_run_writes_what_it_promises(finished: Finished) -> None:
    workdir = finished.workdir
    log = rows(workdir)
    assert json.loads((workdir / "experiment.json").read_text())["name"] == "small"
    train_rows = [row for row in log if row["kind"] == "train"]
    assert [row["step"] for row in train_rows if row["stage"] == "pretrain"] == list(
        range(5, 61, 5)
    )
    for name in (
        "loss",
        "learning_rate",
        "gradient_norm",
        "parameter_norm",
        "update_norm",
        "samples_per_second",
        "queue_fill",
        "positives_per_anchor",
        "valid_anchor_fraction",
    ):
        assert name in train_rows[0], name
    assert train_rows[0]["queue_fill"] == 1.0  # 4 batches of 16 before step 5, 48 slots
    validations = [row for row in log if row["kind"] == "validation"]
    assert {row["stage"] for row in validations} == {"probe", "bce"}
    assert all(0 <= row["map"] <= 1 for row in validations)
    summary = json.loads((workdir / "stages.json").read_text())
    assert list(summary) == ["pretrain", "probe", "bce"]
    assert summary["pretrain"]["bytes"]["queue"] == 48 * (16 * 4 + 4 + 4) + 4
    assert any("compiled in" in line and "queue" in line for line in finished.lines)
    scores = arrays_of(finished.experiment, workdir)
    assert set(scores) == {"probe", "bce"}
    assert scores["probe"].shape == (64, 4)


def test_training_learns(finished: Finished) -> None:
    workdir = finished.workdir
    losses = [
        row["loss"] for row in rows(workdir) if row["stage"] == "bce" and row["kind"] == "train"
    ]
    assert losses[-1] < losses[0]


def test_a_frozen_encoder_does_not_move(finished: Finished) -> None:
    workdir = finished.workdir
    stores = {
        name: trainer_module.CheckpointStore(trainer_module.stage_folder(workdir, name))
        for name in ("pretrain", "probe")
    }
    kernels = []
    for store in stores.values():
        saved = store.latest_valid(report=print, where=lambda found: found.finished)
        assert saved is not None
        kernels.append(store.restore_numpy(saved)["params"]["encoder"]["Dense_0"]["kernel"])
    np.testing.assert_array_equal(*kernels)


def test_the_second_run_of_a_finished_experiment_changes_nothing(finished: Finished) -> None:
    workdir = finished.workdir
    before = (workdir / "metrics.jsonl").read_bytes()
    console = Lines()
    run(finished.experiment, console)
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert sum("finished before" in line for line in console.lines) == 3


class Stop(Silent):
    """Sends a signal, or raises, at a step of a stage."""

    def __init__(self, stage: str, step: int, action: Any) -> None:
        self.wanted, self.at, self.action, self.stage = stage, step, action, ""

    def start(self, stage: str, step: int, total: int, batch_size: int) -> None:
        self.stage = stage

    def progress(self, step: int, loss: float | None) -> None:
        if (self.stage, step) == (self.wanted, self.at):
            self.action()


@pytest.mark.parametrize(("stage", "step"), [("pretrain", 13), ("probe", 20)])
def test_sigterm_saves_and_the_run_continues_to_the_same_bits(
    experiment: Experiment, finished: Finished, stage: str, step: int
) -> None:
    console = Stop(stage, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted, match="run the same command again"):
        run(experiment, console)
    console = Lines()
    parts = run(experiment, console)
    assert f"{stage}: continuing after step {step + 1}" in console.lines
    assert untimed(parts) == untimed(finished.workdir)
    ours = arrays_of(experiment, parts)
    theirs = arrays_of(finished.experiment, finished.workdir)
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_signal_between_stages_starts_no_other(experiment: Experiment) -> None:
    console = Stop("pretrain", 60, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted, match="stopped by signal SIGTERM before probe began"):
        run(experiment, console)


def test_an_interrupted_run_forgets_what_it_logged_after_the_checkpoint(
    experiment: Experiment, finished: Finished
) -> None:
    def fail() -> None:
        raise RuntimeError("lost power")

    with pytest.raises(RuntimeError):
        run(experiment, Stop("pretrain", 41, fail))
    assert rows(Path(str(experiment.workdir)))[-1]["step"] == 40
    console = Lines()
    parts = run(experiment, console)
    assert "pretrain: continuing after step 35" in console.lines
    assert untimed(parts) == untimed(finished.workdir)


def test_every_stage_compiles_once(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxmlcl.training.step import Program

    traced: list[str] = []
    original = Program.step

    def counting(self: Program, *arguments: Any) -> Any:
        traced.append(self.stage.objective.describe())
        return original(self, *arguments)

    monkeypatch.setattr(Program, "step", counting)
    with pytest.raises(Preempted):
        run(experiment, Stop("pretrain", 2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert traced == ["mulsupcon"]
    run(experiment)
    # The queue filled, the checkpoint was restored and every last batch ran in one program each.
    assert traced == ["mulsupcon", "mulsupcon", "linear probe", "bce"]


def test_bce_can_have_the_flops_of_other_stages(experiment: Experiment) -> None:
    stages = dict(experiment.stages)
    stages["bce"] = dataclasses.replace(stages["bce"], duration=flops_of("pretrain", "probe"))
    workdir = run(dataclasses.replace(experiment, stages=stages))
    summary = json.loads((workdir / "stages.json").read_text())
    budget = summary["pretrain"]["gflop_total"] + summary["probe"]["gflop_total"]
    assert summary["bce"]["gflop_total"] == pytest.approx(budget, rel=0.02)


def test_a_changed_configuration_is_refused_by_field(finished: Finished) -> None:
    changed = dataclasses.replace(finished.experiment, seed=5)
    with pytest.raises(ConfigError, match=r"seed \(0 there, 5 now\)"):
        run(changed)


def test_other_data_are_refused(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Preempted):
        run(experiment, Stop("pretrain", 2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    register_source("synthetic", lambda body, options, places: vectors(96, 7))
    try:
        with pytest.raises(CheckpointError, match="trained on other data"):
            run(experiment)
    finally:
        from tests.training import conftest

        register_source("synthetic", lambda body, options, places: vectors(*conftest._SPLITS[body]))


def test_a_refused_run_leaves_the_finished_one_as_it_was(
    finished: Finished, tmp_path: Path
) -> None:
    workdir = Path(shutil.copytree(finished.workdir, tmp_path / "copy"))
    files = [workdir / name for name in ("experiment.json", "preparation.npz", "metrics.jsonl")]
    before = [file.read_bytes() for file in files]
    again = dataclasses.replace(finished.experiment, workdir=str(workdir))
    register_source("synthetic", lambda body, options, places: vectors(96, 7))
    try:
        with pytest.raises(CheckpointError, match="trained on other data"):
            run(again)
        with pytest.raises(CheckpointError, match="trained on other data"):
            score_stages(again, workdir, "validation", devices=jax.devices()[:1])
    finally:
        from tests.training import conftest

        register_source("synthetic", lambda body, options, places: vectors(*conftest._SPLITS[body]))
    mesh = dataclasses.replace(again, mesh=MeshSpec(fsdp=3))
    with pytest.raises(ConfigError, match="does not cover"):
        run(mesh)
    assert [file.read_bytes() for file in files] == before
    (workdir / "experiment.json").unlink()
    with pytest.raises(ConfigError, match=r"its experiment\.json is gone"):
        run(dataclasses.replace(again, seed=5))


def test_labels_in_another_order_are_not_evaluated(finished: Finished) -> None:
    source = vectors(64, 2)
    arrays, names = source.arrays(), source.metadata.label_names
    register_source(
        "reversed",
        lambda body, options, places: ArraySource(
            arrays["inputs"], arrays["labels"][:, ::-1], label_names=names[::-1], name="reversed"
        ),
    )
    data = dataclasses.replace(finished.experiment.data, test="reversed:test")
    other = dataclasses.replace(finished.experiment, data=data)
    with pytest.raises(CheckpointError, match=r"data\.test: its labels are not those"):
        score_stages(other, finished.workdir, "test", devices=jax.devices()[:1])


def test_a_stage_whose_start_is_trained_again_is_trained_again(
    finished: Finished, tmp_path: Path
) -> None:
    workdir = Path(shutil.copytree(finished.workdir, tmp_path / "copy"))
    again = dataclasses.replace(finished.experiment, workdir=str(workdir))
    newest = sorted((workdir / "checkpoints" / "pretrain").iterdir())[-1]
    (newest / "manifest.json").unlink()
    console = Stop("pretrain", 59, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted):
        run(again, console)
    lines = Lines()
    assert untimed(run(again, lines)) == untimed(finished.workdir)
    ours = arrays_of(again, workdir)
    for name, scores in arrays_of(finished.experiment, finished.workdir).items():
        np.testing.assert_array_equal(ours[name], scores)


def test_control_c_saves_once_and_leaves_at_the_second(experiment: Experiment) -> None:
    once = Stop("pretrain", 12, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Preempted, match="SIGINT after saving step 13"):
        run(experiment, once)

    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(experiment, Stop("pretrain", 20, twice))


def test_nan_names_the_step_the_terms_and_the_samples(experiment: Experiment) -> None:
    stages = {
        "bce": dataclasses.replace(
            experiment.stages["bce"],
            optimizer=dataclasses.replace(experiment.stages["bce"].optimizer, learning_rate=1e30),
            duration=steps(40),
        )
    }
    bad = dataclasses.replace(experiment, stages=stages)
    with pytest.raises(
        NonFiniteError, match=r"bce: the parameters are not finite at step 1: loss .*; sample ids"
    ):
        run(bad)
    workdir = Path(str(bad.workdir))
    assert all(row["loss"] is not None for row in rows(workdir) if row["kind"] == "train")


def test_a_damaged_checkpoint_is_passed_over(
    experiment: Experiment, finished: Finished, tmp_path: Path
) -> None:
    with pytest.raises(Preempted):
        run(experiment, Stop("pretrain", 40, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    # The signal came after step 40 was counted, so step 41 is the one that is saved.
    folder = tmp_path / "run" / "checkpoints" / "pretrain"
    newest = sorted(folder.iterdir())[-1]
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    console = Lines()
    parts = run(experiment, console)
    assert any("is damaged" in line for line in console.lines)
    assert "pretrain: continuing after step 35" in console.lines
    assert untimed(parts) == untimed(finished.workdir)


def test_two_runs_in_one_workdir_are_refused(experiment: Experiment) -> None:
    def second() -> None:
        with pytest.raises(UserError, match="another process is training"):
            run(experiment)

    run(experiment, Stop("pretrain", 3, second))


def test_a_workdir_that_cannot_be_written(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    bad = dataclasses.replace(experiment, workdir=str(tmp_path / "file" / "run"))
    with pytest.raises(UserError, match="cannot write to the workdir"):
        run(bad)


def flat(body: str) -> ArraySource:
    """Inputs that say nothing about the labels; other rows for each body."""
    labels = np.roll(np.eye(32, 4, dtype=np.uint8), ord(body), axis=0)
    return ArraySource(np.zeros((32, 3), np.float32), labels, name="flat")


def test_patience_ends_a_stage(experiment: Experiment) -> None:
    register_source("flat", lambda body, options, places: flat(body))
    data = dataclasses.replace(experiment.data, train="flat:a", validation="flat:b")
    stage = dataclasses.replace(
        experiment.stages["bce"],
        objective=Classification(encoder=SMALL_MLP),
        duration=steps(400),
        select="map",
        patience=2,
        validate_every=steps(5),
    )
    workdir = run(dataclasses.replace(experiment, data=data, stages={"bce": stage}))
    summary = json.loads((workdir / "stages.json").read_text())
    # Constant inputs rank all rows alike: the first validation is the best.
    assert summary["bce"]["best_step"] == 5
    assert summary["bce"]["steps"] == 15


def test_misfits_are_told_before_the_first_stage_trains(experiment: Experiment) -> None:
    stages = dict(experiment.stages)
    other = Classification(encoder=MLP(hidden=(16, 64)), encoder_mode="eval")
    stages["probe"] = dataclasses.replace(stages["probe"], objective=other)
    with pytest.raises(ConfigError, match=r"stages\.probe: its encoder is not that of pretrain"):
        run(dataclasses.replace(experiment, stages=stages))
    stages["probe"] = dataclasses.replace(experiment.stages["probe"], frozen=("^backbone/",))
    with pytest.raises(ConfigError, match=r'"\^backbone/" matches no parameter'):
        run(dataclasses.replace(experiment, stages=stages))
    stages = {"bce": dataclasses.replace(experiment.stages["bce"])}
    stages["bce"] = dataclasses.replace(stages["bce"], objective=Classification(SMALL_RESNET))
    with pytest.raises(ConfigError, match="ResNet takes images"):
        run(dataclasses.replace(experiment, stages=stages))
    assert (Path(str(experiment.workdir)) / "metrics.jsonl").read_text() == ""


def test_a_profile_is_written(experiment: Experiment) -> None:
    stages = {"pretrain": dataclasses.replace(experiment.stages["pretrain"], duration=steps(8))}
    workdir = run(dataclasses.replace(experiment, stages=stages, profile="2:5"))
    assert list((workdir / "profile").rglob("*.xplane.pb"))


def test_tensorboard_has_the_same_figures(experiment: Experiment) -> None:
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    stages = {"pretrain": dataclasses.replace(experiment.stages["pretrain"], duration=steps(10))}
    logging = dataclasses.replace(experiment.logging, tensorboard=True)
    workdir = run(dataclasses.replace(experiment, stages=stages, logging=logging))
    events = list((workdir / "tensorboard" / "pretrain").glob("events*"))
    assert len(events) == 1
    content = events[0].read_bytes()
    assert all(f"train/{name}".encode() in content for name in ("loss", "queue_fill"))


def test_tensorboard_without_the_extra_is_told_in_a_line(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    logging = dataclasses.replace(experiment.logging, tensorboard=True)
    with pytest.raises(UserError, match=r'pip install "jaxmlcl\[tensorboard\]"'):
        run(dataclasses.replace(experiment, logging=logging))


@pytest.mark.parametrize("count", [1, 8])
def test_a_plateau_lowers_the_rate_on_any_mesh(experiment: Experiment, count: int) -> None:
    register_source("flat", lambda body, options, places: flat(body))
    data = dataclasses.replace(experiment.data, train="flat:a", validation="flat:b")
    schedule = Plateau(factor=0.1, patience=0, cooldown=0, threshold=0.5)
    stage = dataclasses.replace(
        experiment.stages["bce"],
        optimizer=Optimizer("sgd", 1e-3, schedule=schedule),
        duration=steps(15),
        validate_every=steps(5),
    )
    flat_run = dataclasses.replace(experiment, data=data, stages={"bce": stage})
    workdir = train(flat_run, to_json(flat_run), devices=jax.devices()[:count])
    rates = [row["learning_rate"] for row in rows(workdir) if row["kind"] == "train"]
    # Steps 5, 10 and 15; the second validation is the first without a large improvement.
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 1e-4], rtol=1e-6)
