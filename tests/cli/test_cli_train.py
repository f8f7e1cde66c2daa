"""`train` and `config`: what reaches the trainer, and what is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxmlcl.config import Experiment, from_json, load, steps
from jaxmlcl.errors import NonFiniteError, Preempted
from jaxmlcl.training import trainer
from jaxmlcl.training.console import Console

Run = Callable[..., Any]


class Trainer:
    """Stands in for the trainer: remembers what it is given."""

    error: Exception | None = None

    def __call__(self, experiment: Experiment, resolved: str, *, console: Console) -> Path:
        self.experiment, self.resolved, self.console = experiment, resolved, console
        self.x64 = jax.config.jax_enable_x64
        if self.error is not None:
            raise self.error
        return Path(experiment.workdir or f"runs/{experiment.name}")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer_ = Trainer()
    monkeypatch.setattr(trainer, "train", trainer_)
    return trainer_


def test_train_hands_over_the_resolved_experiment(run: Run, tiny: Path, stand_in: Trainer) -> None:
    result = run("train", tiny, "--stages.bce.duration", "7 steps", "--workdir", "a b")
    assert (result.code, result.err) == (0, "")
    assert stand_in.experiment.stages["bce"].duration == steps(7)
    assert stand_in.experiment.stages["probe"] == load(tiny).stages["probe"]
    assert from_json(stand_in.resolved) == stand_in.experiment
    assert result.out == "run: a b\nnext: jaxmlcl evaluate 'a b'\nnext: jaxmlcl report 'a b'\n"
    assert not stand_in.x64


def test_train_writes_to_runs_name_by_default(run: Run, tiny: Path, stand_in: Trainer) -> None:
    assert run("train", tiny, "--name", "other").out.startswith("run: runs/other\n")


def test_a_run_can_be_repeated_from_its_json(run: Run, tiny: Path, stand_in: Trainer) -> None:
    run("train", tiny, "--seed", "9")
    first = stand_in.resolved
    saved = tiny.parent / "experiment.json"
    saved.write_text(first)
    run("train", saved)
    assert stand_in.resolved == first


def test_double_precision_is_allowed_before_training(
    run: Run, tiny: Path, stand_in: Trainer
) -> None:
    assert run("train", tiny, "--precision", "float64").code == 0
    assert stand_in.x64


def test_nothing_to_evaluate_is_not_offered(run: Run, tmp_path: Path, stand_in: Trainer) -> None:
    path = tmp_path / "only.py"
    path.write_text(
        "from jaxmlcl.config import *\n"
        'experiment = Experiment("x", Data("digits:train"), {"a": Stage(MulSupCon(), steps(1))})\n'
    )
    assert run("train", path).out == "run: runs/x\nnext: jaxmlcl report runs/x\n"


@pytest.mark.parametrize(
    ("error", "code"), [(Preempted("saved step 3"), 75), (NonFiniteError("NaN at step 3"), 2)]
)
def test_what_the_trainer_raises_is_told(
    run: Run, tiny: Path, stand_in: Trainer, error: Exception, code: int
) -> None:
    stand_in.error = error
    assert run("train", tiny) == (code, "", f"jaxmlcl: {error}\n")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--stages.bce.batchsize", "3"], "did you mean --stages.bce.batch-size?"),
        (["--stages.bce.batch-size", "many"], '--stages.bce.batch-size: "many" is not a whole'),
        (["--stages.bce.accumulate", "3"], "batch_size 8 is not a multiple of accumulate 3"),
    ],
)
def test_wrong_flags_never_reach_the_trainer(
    run: Run, tiny: Path, stand_in: Trainer, flags: list[str], said: str
) -> None:
    code, out, err = run("train", tiny, *flags)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not hasattr(stand_in, "experiment")


def test_config_prints_paths_values_and_sources(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXMLCL_DATA", "/data")
    code, out, err = run("config", tiny, "--stages.bce.batch_size", "4")
    assert (code, err) == (0, "")
    rows = {}
    for line in out.splitlines():
        path, rest = line.split(" = ", 1)
        value, source = rest.rsplit("  (", 1)
        rows[path.strip()] = (value.strip(), source.rstrip(")"))
    assert rows["seed"] == ("5", str(tiny))
    assert rows["stages.bce.batch_size"] == ("4", "--stages.bce.batch-size")
    assert rows["stages.bce.objective"] == ("Classification", str(tiny))
    assert rows["stages.bce.optimizer.learning_rate"] == ("0.0004", "file or default")
    assert rows["data.root"] == ("/data", "JAXMLCL_DATA")
    assert len({line.index(" = ") for line in out.splitlines()}) == 1


def test_config_json_is_a_config(run: Run, tiny: Path) -> None:
    code, out, err = run("config", tiny, "--json", "--seed", "8")
    assert (code, err) == (0, "")
    assert json.loads(out)["seed"] == 8
    again = tiny.parent / "again.json"
    again.write_text(out)
    assert load(again).seed == 8
    assert run("config", again, "--json").out == out
