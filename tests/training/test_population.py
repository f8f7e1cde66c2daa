"""Many variants at once: each member's figures are the trainer's, and nothing but them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxmlcl.config import to_json
from jaxmlcl.errors import ConfigError, UserError
from jaxmlcl.methods import Classification, MulSupCon
from jaxmlcl.models import MLP
from jaxmlcl.training import population as population_module
from jaxmlcl.training import splits as splits_module
from jaxmlcl.training._members import differing_numbers, spec_leaves, with_values
from jaxmlcl.training.console import Silent
from jaxmlcl.training.duration import flops_of, steps
from jaxmlcl.training.experiment import Data, Experiment
from jaxmlcl.training.optimizers import Cosine, Optimizer, Plateau
from jaxmlcl.training.population import Trial, main_stage, train_population
from jaxmlcl.training.scoring import score_stages
from jaxmlcl.training.splits import open_split
from jaxmlcl.training.stage import Stage
from jaxmlcl.training.trainer import train
from tests.training.conftest import SMALL_MLP, pretrain, small_experiment


class Lines(Silent):
    """Keeps what the population says of every program that it runs."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        if text.endswith("at once"):
            self.lines.append(text)


def with_fields(experiment: Experiment, **values: Any) -> Experiment:
    """The experiment with fields replaced; `probe__optimizer__momentum` is a path in a stage."""
    stages = dict(experiment.stages)
    others = {}
    for name, value in values.items():
        if "__" not in name:
            others[name] = value
            continue
        stage, *path = name.split("__")
        stages[stage] = with_values(
            stages[stage], {tuple(int(part) if part.isdigit() else part for part in path): value}
        )
    return dataclasses.replace(experiment, stages=stages, **others)


def selecting(workdir: Path) -> Experiment:
    """Every way to select: least loss with patience, a plateau, the last; lengths in FLOPs."""
    base = small_experiment(workdir)
    bce = Stage(
        Classification(encoder=SMALL_MLP),
        flops_of("probe"),
        batch_size=16,
        optimizer=Optimizer(
            "sgd", 0.5, schedule=Plateau(patience=0, cooldown=0, threshold=0.5), clip_norm=1.0
        ),
        validate_every=steps(4),
    )
    optimizer = Optimizer("adam", 1e-2, rates=(("^classifier/", 0.5),))
    stages = {
        "pretrain": pretrain("vectors", Optimizer("adam", 1e-3, schedule=Cosine())),
        "probe": dataclasses.replace(
            base.stages["probe"],
            validate_every=steps(3),
            select="loss",
            patience=2,
            optimizer=optimizer,
        ),
        "bce": bce,
    }
    return dataclasses.replace(base, stages=stages)


def check_against_trainer(member: Experiment, trial: Trial, folder: Path, tolerance: float) -> None:
    member = dataclasses.replace(member, workdir=str(folder))
    train(member, to_json(member), devices=jax.devices()[:1])
    text = (folder / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    summary = json.loads((folder / "stages.json").read_text())
    scored = score_stages(member, folder, "test", devices=jax.devices()[:1])
    source = open_split(member.data, "test")
    for name, outcome in trial.stages.items():
        mine = [row for row in rows if row["stage"] == name]
        assert outcome.steps == summary[name]["steps"]
        last = [row for row in mine if row["kind"] == "train"][-1]
        # A stage that its patience ends is not logged once more.
        assert outcome.loss == pytest.approx(last["loss"], rel=tolerance) or (
            last["step"] < outcome.steps
        )
        validated = [row for row in mine if row["kind"] == "validation"]
        assert [row["step"] for row in validated] == [step for step, _ in outcome.history]
        for row, (_, measures) in zip(validated, outcome.history, strict=True):
            for measure, value in measures.items():
                assert value == pytest.approx(row[measure], rel=tolerance, abs=1e-12), measure
        if name in scored.stages:
            found = scored.stages[name]
            assert outcome.best_step == found.step
            assert outcome.validation == dict(outcome.history)[found.step]
            np.testing.assert_allclose(
                trial.scores(source, name), found.scores, rtol=max(tolerance, 1e-6)
            )


@pytest.mark.slow
def test_members_are_the_trainers_runs(x64: None, tmp_path: Path) -> None:
    base = dataclasses.replace(selecting(tmp_path), precision="float64")
    members = [
        base,
        with_fields(
            base,
            seed=2**32 - 1,
            pretrain__objective__temperature=0.3,
            pretrain__objective__momentum=0.9,
            pretrain__objective__head__dropout=0.0,
            pretrain__optimizer__weight_decay=1e-2,
            pretrain__augmentation__0__probability=0.5,
            probe__optimizer__learning_rate=3.0,
            probe__optimizer__rates=(("^classifier/", 0.1),),
            bce__optimizer__momentum=0.0,
            bce__optimizer__clip_norm=0.1,
        ),
    ]
    console = Lines()
    trials = train_population(members, keep_networks=True, console=console)
    assert [trial.error for trial in trials] == [None, None]
    # One program for both, except where the length of a stage follows that of another.
    assert [line.rpartition(", ")[2] for line in console.lines[:2]] == ["2 members at once"] * 2
    # One member's probe ends early; the length of its BCE stage follows.
    taken = [trial.stages["probe"].steps for trial in trials]
    assert min(taken) < 40
    for position, (member, trial) in enumerate(zip(members, trials, strict=True)):
        check_against_trainer(member, trial, tmp_path / str(position), 1e-9)


@pytest.mark.slow
def test_members_in_single_precision_are_close(tmp_path: Path) -> None:
    base = small_experiment(tmp_path)
    members = [base, with_fields(base, seed=7, pretrain__objective__temperature=0.2)]
    trials = train_population(members, keep_networks=True)
    check_against_trainer(members[1], trials[1], tmp_path / "run", 1e-4)


def bce(tmp_path: Path, **changes: Any) -> Experiment:
    """One short stage."""
    base = small_experiment(tmp_path)
    stage = dataclasses.replace(base.stages["bce"], duration=steps(6), validate_every=steps(2))
    return dataclasses.replace(base, stages={"bce": dataclasses.replace(stage, **changes)})


def test_the_test_split_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def noted(data: Data, name: str) -> Any:
        opened.append(name)
        return splits_module.open_split(data, name)

    monkeypatch.setattr(population_module, "open_split", noted)
    experiment = bce(tmp_path)
    missing = dataclasses.replace(experiment.data, test="no/such/file.arff")
    (trial,) = train_population([dataclasses.replace(experiment, data=missing)])
    assert opened == ["train", "validation"]
    assert [step for step, _ in trial.stages["bce"].history] == [2, 4, 6]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_member_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    experiment = bce(tmp_path)
    rates = (1e-3, 1e30, 1e-2)
    members = [with_fields(experiment, bce__optimizer__learning_rate=rate) for rate in rates]
    finished: list[int] = []
    trials = train_population(members, done=lambda position, _: finished.append(position))
    assert trials[1].error is not None
    assert "bce: the loss or the parameters are not finite at step" in trials[1].error
    assert trials[1].stages == {}
    (alone,) = train_population([members[2]], keep_networks=True)
    assert trials[2].stages["bce"].loss == pytest.approx(alone.stages["bce"].loss, rel=1e-5)
    assert trials[0].stages["bce"].loss != trials[2].stages["bce"].loss
    assert sorted(finished) == [0, 1, 2]
    source = open_split(experiment.data, "validation")
    with pytest.raises(UserError, match="a member that failed has no scores"):
        trials[1].scores(source)
    with pytest.raises(UserError, match=r'no network of stage "bce" was kept'):
        trials[0].scores(source)
    assert alone.scores(source).shape == (48, 4)


@pytest.mark.slow
def test_common_stages_are_trained_once_and_shapes_apart(tmp_path: Path) -> None:
    base = small_experiment(tmp_path)
    stages = {
        "pretrain": dataclasses.replace(base.stages["pretrain"], duration=steps(4)),
        "probe": dataclasses.replace(base.stages["probe"], duration=steps(4)),
    }
    base = dataclasses.replace(base, stages=stages)
    wide = MLP(hidden=(8,), dropout=0.2)
    members = [
        with_fields(base, probe__optimizer__learning_rate=1e-1),
        with_fields(base, probe__optimizer__learning_rate=1e-2),
        with_fields(base, probe__optimizer__learning_rate=1e-3),
        with_fields(base, pretrain__objective__encoder=wide, probe__objective__encoder=wide),
    ]
    console = Lines()
    trials = train_population(members, at_once=2, console=console)
    said = [line.partition(":")[0] + line.rpartition(",")[2] for line in console.lines]
    assert said == [
        "pretrain 1 member at once",
        "probe 2 members at once",
        "probe 1 member at once",
        "pretrain 1 member at once",
        "probe 1 member at once",
    ]
    losses = [trial.stages["probe"].loss for trial in trials]
    assert len(set(losses)) == 4
    assert len({trial.stages["pretrain"].loss for trial in trials}) == 2


@pytest.mark.slow
def test_numbers_that_python_must_know_are_kept_apart(tmp_path: Path) -> None:
    base = small_experiment(tmp_path)
    base = dataclasses.replace(base, stages={"pretrain": pretrain("vectors", Optimizer("adam"))})
    base = with_fields(base, pretrain__duration=steps(2))
    members = [
        with_fields(base, pretrain__optimizer__rates=((".*", 0.5), ("^head/", 1.0))),
        with_fields(base, pretrain__optimizer__rates=((".*", 0.7), ("^head/", 1.0))),
        with_fields(base, pretrain__optimizer__clip_norm=1.0),
        with_fields(base, pretrain__optimizer__clip_norm=2.0),
        with_fields(base, pretrain__objective__queue_capacity=64),
        with_fields(base, pretrain__objective__weighting="any"),
    ]
    console = Lines()
    trials = train_population(members, console=console)
    assert [line.rpartition(",")[2] for line in console.lines] == [
        " 2 members at once",
        " 2 members at once",
        " 1 member at once",
        " 1 member at once",
    ]
    assert all(np.isfinite(trial.stages["pretrain"].loss) for trial in trials)
    assert trials[0].stages["pretrain"].validation == {}
    with pytest.raises(ConfigError, match="no stage gives label scores"):
        main_stage(base)


def test_what_the_trainer_refuses_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = small_experiment(tmp_path)
    other = with_fields(base, probe__objective__encoder=MLP(hidden=(5,)))
    with pytest.raises(ConfigError, match=r"stages\.probe: its encoder is not that of pretrain"):
        train_population([base, other])
    monkeypatch.setattr(splits_module, "RESIDENT_BYTES", 10)
    data = dataclasses.replace(base.data, inputs="raw")
    with pytest.raises(ConfigError, match=r"data\.train: synthetic:train does not fit"):
        train_population([dataclasses.replace(bce(tmp_path), data=data)])


def test_fields_are_found_and_replaced_without_checks() -> None:
    stage = Stage(MulSupCon(), steps(3), optimizer=Optimizer(rates=(("a", 0.5), ("b", 1.0))))
    leaves = dict(spec_leaves(stage))
    assert leaves["objective", "temperature"] == 0.1
    assert leaves["optimizer", "rates", 1, 1] == 1.0
    assert leaves["objective", "encoder"] is MLP
    assert leaves["duration",] == steps(3)
    changed = with_values(
        stage, {("objective", "temperature"): -1.0, ("optimizer", "rates", 1, 1): 2.0}
    )
    assert changed.objective.temperature == -1.0
    assert changed.optimizer.rates == (("a", 0.5), ("b", 2.0))
    assert stage.objective.temperature == 0.1
    assert differing_numbers([stage, changed]) == (
        ("objective", "temperature"),
        ("optimizer", "rates", 1, 1),
    )
    whole = dataclasses.replace(stage, duration=steps(4), batch_size=32, accumulate=2)
    assert differing_numbers([stage, whole]) == ()
