"""`sweep`: what it trains, how it ranks, and that it goes on where it was stopped."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from jaxmlcl.config import Experiment, load, override, parse_axis
from jaxmlcl.errors import ConfigError
from jaxmlcl.training import population
from jaxmlcl.training.population import StageOutcome, Trial

Run = Callable[..., Any]


class Population:
    """Stands in for the training: a measure that the learning rate and the seed decide."""

    def __init__(self) -> None:
        self.calls: list[list[Experiment]] = []
        self.stop_after: int | None = None

    def __call__(self, experiments: Sequence[Experiment], **options: Any) -> list[Trial]:
        self.calls.append(list(experiments))
        self.at_once = options["at_once"]
        for position, experiment in enumerate(experiments):
            if position == self.stop_after:
                raise KeyboardInterrupt
            rate = experiment.stages["probe"].optimizer.learning_rate
            value = rate + experiment.seed / 1000
            measures = {"map": value, "loss": -value}
            outcome = StageOutcome(2, 2, 0.5, measures, ((2, measures),), 1.0)
            error = "probe: not finite at step 1" if rate == 9 else None
            options["done"](position, Trial(experiment, {"probe": outcome}, error))
        return []


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Population:
    population_ = Population()
    monkeypatch.setattr(population, "train_population", population_)
    return population_


@pytest.fixture
def probed(tiny: Path) -> Path:
    """The small configuration with the probe as its main stage."""
    text = tiny.read_text().replace("seed=5", 'seed=5, main="probe"')
    tiny.write_text(text)
    return tiny


def test_trials_are_ranked_and_kept(run: Run, probed: Path, stand_in: Population) -> None:
    folder = probed.parent / "sweep"
    words = [
        "sweep",
        probed,
        *("--grid", "stages.probe.optimizer.learning_rate=0.1,0.3,0.2,9"),
        *("--seeds", "0,2", "--stages.probe.batch-size", "4", "-o", folder),
    ]
    stand_in.stop_after = 3
    stopped = run(*words)
    assert stopped.code == 130
    assert stopped.out.startswith(
        "sweep: 4 trials x 2 seeds, by validation map of probe; 0 of 8 runs known\n"
    )
    assert not (folder / "sweep.json").exists()
    # The line that was being written when the process was killed is written again.
    with open(folder / "trials.jsonl", "a") as file:
        file.write('{"key": "half')
    stand_in.stop_after = None
    result = run(*words)
    assert result.code == 0
    assert [len(call) for call in stand_in.calls] == [8, 5]
    # What the probe does not need is not trained.
    assert list(stand_in.calls[0][0].stages) == ["pretrain", "probe"]
    assert stand_in.calls[0][0].stages["probe"].batch_size == 4
    assert stand_in.at_once is None
    lines = result.out.splitlines()
    assert lines[0].endswith("; 3 of 8 runs known")
    assert lines[1:6] == [
        "   learning_rate  map (mean ± std of 2)",
        "1  0.3            0.3010 ± 0.0014",
        "2  0.2            0.2010 ± 0.0014",
        "3  0.1            0.1010 ± 0.0014",
        "4  9              failed: probe: not finite at step 1",
    ]
    document = json.loads((folder / "sweep.json").read_text())
    assert document["trials"][0]["by_seed"] == {"0": 0.3, "2": 0.302}
    assert document["trials"][0]["choice"] == {"stages.probe.optimizer.learning_rate": "0.3"}
    assert set(document["data"]["probe"]) == {"train", "validation"}
    # The command that is printed trains what was best.
    command = shlex.split(lines[-1].removeprefix("best: "))
    assert command[:3] == ["jaxmlcl", "train", str(probed)]
    best = override(load(probed), command[3:])
    assert best.stages["probe"].optimizer.learning_rate == 0.3
    assert best.stages["probe"].batch_size == 4

    # Nothing is trained again, and other measures need no training either.
    again = run(*words, "--measure", "loss")
    assert len(stand_in.calls) == 2
    assert again.out.splitlines()[2] == "1  0.3            -0.3010 ± 0.0014"
    assert run(*words, "--stages.pretrain.batch-size", "4").code == 0
    assert len(stand_in.calls[2]) == 8


def test_fields_of_several_stages_take_one_value(
    run: Run, probed: Path, stand_in: Population
) -> None:
    words = (
        *("sweep", probed, "-o", probed.parent / "s", "--at-once", "3", "--trials", "3"),
        *("--grid", "stages.*.objective.encoder.depths=(1,),(2,1)"),
        *("--grid", "stages.probe.optimizer.learning_rate=log(1e-4,1e-1)"),
    )
    assert run(*words).code == 0
    assert stand_in.at_once == 3
    (call,) = stand_in.calls
    for experiment in call:
        probe, pretrain = experiment.stages["probe"], experiment.stages["pretrain"]
        assert probe.objective.encoder == pretrain.objective.encoder  # type: ignore[attr-defined]
        assert 1e-4 <= probe.optimizer.learning_rate <= 1e-1
    assert len(call) == 3
    # More trials begin with the same ones.
    assert run(*words, "--trials", "5").out.splitlines()[0].endswith("3 of 5 runs known")


def test_seeds_alone_are_a_sweep_of_one_trial(run: Run, probed: Path, stand_in: Population) -> None:
    result = run("sweep", probed, "--seeds", "0,1,2", "-o", probed.parent / "s")
    assert result.out.splitlines()[:3] == [
        "sweep: 1 trial x 3 seeds, by validation map of probe; 0 of 3 runs known",
        "   map (mean ± std of 3)",
        "1  0.0014 ± 0.0010",
    ]


def test_all_failed_is_an_error(run: Run, probed: Path, stand_in: Population) -> None:
    grid = "stages.probe.optimizer.learning_rate=9"
    result = run("sweep", probed, "--grid", grid, "-o", probed.parent / "s")
    assert result.code == 2
    assert result.err.endswith("every trial failed; the first: probe: not finite at step 1\n")


RATE = "stages.probe.optimizer.learning_rate"
REFUSED: dict[str, tuple[list[str], str]] = {
    "nothing to vary": ([], "give --grid FIELD=A,B or --seeds 0,1: there is nothing to vary"),
    "an unknown field": (
        ["--grid", "stages.probe.optimizer.learning_rat=1"],
        "unknown flag --stages.probe.optimizer.learning-rat; did you mean "
        "--stages.probe.optimizer.learning-rate?",
    ),
    "an unknown flag": (["--grid", f"{RATE}=1", "--sed", "1"], "unknown flag --sed"),
    "a class": (["--grid", "stages.probe.objective=a,b"], "names a class"),
    "a bad value": (["--grid", f"{RATE}=fast,1"], '"fast" is not a number'),
    "a value out of range": (
        ["--grid", f"{RATE}=-1,1"],
        "stages.probe: optimizer: learning_rate must be at least 0, not -1.0",
    ),
    "no value": (["--grid", f"{RATE}="], "write FIELD=VALUE,VALUE"),
    "a value twice": (["--grid", f"{RATE}=1,1"], "a value is empty or given twice"),
    "a range without an end": (["--grid", f"{RATE}=log(1e-4,1)"], "give --trials N"),
    "an upside-down range": (["--grid", f"{RATE}=uniform(2,1)"], "LOW < HIGH"),
    "a range from zero": (["--grid", f"{RATE}=log(0,1)"], "0 < LOW < HIGH"),
    "more than there is": (
        ["--grid", "stages.probe.batch_size=uniform(4,6)", "--trials", "9"],
        "hold only 3 or few more distinct trials",
    ),
    "no trials": (["--grid", f"{RATE}=1", "--trials", "0"], "--trials must be at least 1, not 0"),
    "no members": (["--grid", f"{RATE}=1", "--at-once", "0"], "--at-once must be at least 1"),
    "swept and set": (
        ["--grid", f"{RATE}=1,2", "--stages.probe.optimizer.learning-rate", "3"],
        "--stages.probe.optimizer.learning-rate is set more than once",
    ),
    "the seed as a field": (["--grid", "seed=1,2"], "write --seeds 0,1"),
    "seeds that are none": (["--seeds", "a,b"], '"a,b" is not a list such as 0,1,2'),
    "a seed twice": (["--seeds", "1,1"], "names a seed twice"),
    "a stage without scores": (
        ["--seeds", "1", "--stage", "pretrain"],
        'stage "pretrain" gives no label scores; those that do: probe, bce',
    ),
    "a field that does not matter": (
        ["--grid", "stages.bce.batch_size=4,8"],
        "--grid stages.bce.batch_size: stage probe does not depend on it",
    ),
    "no validation split": (["--seeds", "1", "--data.validation", "None"], "data.validation"),
    "validation rows that are trained on": (
        ["--seeds", "1", "--data.validation", "digits:train?size=32"],
        "32 of its 32 rows are rows of data.train",
    ),
}


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(
    run: Run, probed: Path, stand_in: Population, words: list[str], message: str
) -> None:
    result = run("sweep", probed, *words, "-o", probed.parent / "s")
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert stand_in.calls == []


def test_a_line_that_lacks_its_end_is_kept_apart(
    run: Run, probed: Path, stand_in: Population
) -> None:
    words = ("sweep", probed, "-o", probed.parent / "s", "--seeds")
    run(*words, "1")
    rows = probed.parent / "s" / "trials.jsonl"
    rows.write_text(rows.read_text().removesuffix("\n"))
    assert run(*words, "1,2").code == 0
    assert [json.loads(line)["seed"] for line in rows.read_text().splitlines()] == [1, 2]
    assert [len(call) for call in stand_in.calls] == [1, 1]


def test_a_folder_is_one_sweeps(run: Run, probed: Path, stand_in: Population) -> None:
    words = ("sweep", probed, "--seeds", "1,2", "-o", probed.parent / "s")
    run(*words)
    rows = probed.parent / "s" / "trials.jsonl"
    rows.write_text("{}\n" + rows.read_text())
    result = run(*words)
    assert (result.code, result.err) == (
        2,
        f"jaxmlcl: {rows}, line 1: not a finished run; remove the line, or choose another folder "
        "with -o\n",
    )
    assert run("sweep", "--help").out.startswith("usage: jaxmlcl sweep CONFIG")


def test_values_keep_their_commas() -> None:
    from tests.training.conftest import small_experiment

    experiment = small_experiment(Path("x"))
    axis = parse_axis(experiment, "stages.bce.optimizer.rates=(^encoder/(a,b),0.1),()")
    assert axis.values == ("(^encoder/(a,b),0.1)", "()")
    assert axis.flags(axis.values[0])[1:] == ["^encoder/(a,b)", "0.1"]
    joined = parse_axis(experiment, "stages.bce.batch_size+stages.probe.batch-size=4")
    assert joined.flags("4") == ["--stages.bce.batch-size", "4", "--stages.probe.batch-size", "4"]
    durations = parse_axis(experiment, "stages.*.duration=5 steps,2 epochs")
    assert len(durations.fields) == 3
    assert durations.values == ("5 steps", "2 epochs")
    with pytest.raises(ConfigError, match="unknown flag"):
        parse_axis(experiment, "stages.*.nothing=1")


@pytest.mark.slow
def test_a_sweep_from_end_to_end(run: Run, probed: Path) -> None:
    result = run(
        *("sweep", probed, "--grid", f"{RATE}=1e-3,1e-1", "--seeds", "0,1"),
        *("-o", probed.parent / "s"),
    )
    assert result.code == 0, result.err
    assert "pretrain: 2 to train for 4 members, 1 program\n" in result.err
    assert "probe: 4 to train for 4 members, 1 program\n" in result.err
    document = json.loads((probed.parent / "s" / "sweep.json").read_text())
    means = [trial["mean"] for trial in document["trials"]]
    assert means == sorted(means, reverse=True)
    assert 0 < means[1] <= means[0] < 1
