"""What a stage and an experiment refuse, before anything is opened or compiled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest

from jaxmlcl.errors import ConfigError
from jaxmlcl.methods import Classification, MulSupCon
from jaxmlcl.sharding import MeshSpec
from jaxmlcl.training.duration import epochs, flops_of, steps
from jaxmlcl.training.experiment import Checkpoint, Data, Experiment, Logging, parse_profile
from jaxmlcl.training.optimizers import Cosine, OneCycle, Optimizer, Plateau, WarmRestarts
from jaxmlcl.training.progress import Progress
from jaxmlcl.training.stage import Stage


def stage(objective: Any = None, duration: Any = None, **fields: Any) -> Stage:
    return Stage(objective or Classification(), duration or steps(5), **fields)


def experiment(stages: dict[str, Stage] | None = None, **fields: Any) -> Experiment:
    data = fields.pop("data", Data("digits:train"))
    return Experiment("x", data, {"bce": stage()} if stages is None else stages, **fields)


def optimizer(schedule: Any) -> Optimizer:
    return Optimizer(schedule=schedule)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a number for a duration": (
        lambda: Stage(Classification(), 5),  # type: ignore[arg-type]
        r"stage: duration is 5, without a unit; write steps\(5\) or epochs\(5\)",
    ),
    "a fraction for a duration": (lambda: stage(duration=1.5), r"write steps\(1.5\) or epochs\(1"),
    "text for a duration": (
        lambda: stage(duration="abc"),
        r"duration is 'abc', not a duration; write for instance steps\(500\)",
    ),
    "a number for validate_every": (lambda: stage(validate_every=2), "stage: validate_every is 2"),
    "a number for checkpoint.every": (lambda: Checkpoint(10), "checkpoint: every is 10"),  # type: ignore[arg-type]
    "a number for logging.every": (lambda: Logging(10), "logging: every is 10"),  # type: ignore[arg-type]
    "a number for warm-up": (lambda: Cosine(warmup=10), "schedule: warmup is 10"),  # type: ignore[arg-type]
    "a number for a period": (lambda: WarmRestarts(10), "schedule: period is 10"),  # type: ignore[arg-type]
    **{
        f"the name {name!r}": (
            lambda name=name: Experiment(name, Data("digits:train"), {"bce": stage()}),
            "^name: .* cannot be the name of a folder",
        )
        for name in ("", " ", "..", "../x", "a/b", "a\\b", "a\nb", "a\0b")
    },
    "batch size 0": (lambda: stage(batch_size=0), r"batch_size \(0\)"),
    "accumulate 0": (lambda: stage(accumulate=0), r"accumulate \(0\)"),
    "a ragged micro-batch": (
        lambda: stage(batch_size=64, accumulate=5),
        "batch_size 64 is not a multiple of accumulate 5",
    ),
    "selection without scores": (
        lambda: stage(MulSupCon(), select="map"),
        'mulsupcon gives no label scores, so neither select="map"',
    ),
    "patience without scores": (
        lambda: stage(MulSupCon(), patience=3),
        "mulsupcon gives no label scores",
    ),
    "a plateau without scores": (
        lambda: stage(MulSupCon(), optimizer=optimizer(Plateau())),
        "mulsupcon gives no label scores",
    ),
    "patience without selection": (lambda: stage(patience=3), "patience needs select"),
    "patience 0": (lambda: stage(patience=0, select="loss"), "patience must be at least 1, not 0"),
    "a bad frozen pattern": (
        lambda: stage(frozen=("^enc(",)),
        r'stage: frozen: "\^enc\(" is not a regular expression: missing \)',
    ),
    "a bad rates pattern": (
        lambda: Optimizer(rates=(("[", 0.1),)),
        r'optimizer: rates: "\[" is not a regular expression',
    ),
    "a negative rate": (lambda: Optimizer(learning_rate=-1.0), "learning_rate must be at least 0"),
    "momentum 1": (lambda: Optimizer(momentum=1.0), "momentum must be at least 0, below 1"),
    "negative decay": (lambda: Optimizer(weight_decay=-0.1), "weight_decay must be at least 0"),
    "clipping to 0": (lambda: Optimizer(clip_norm=0.0), "clip_norm must be positive, not 0.0"),
    "plateau factor 1": (lambda: Plateau(factor=1.0), "factor must be between 0 and 1"),
    "plateau patience": (lambda: Plateau(patience=-1), "patience must be at least 0"),
    "plateau cooldown": (lambda: Plateau(cooldown=-1), "cooldown must be at least 0"),
    "plateau threshold": (lambda: Plateau(threshold=0.0), "threshold must be above 0"),
    "shrinking cycles": (
        lambda: WarmRestarts(steps(3), multiplier=0.5),
        "multiplier must be at least 1, not 0.5",
    ),
    "keep 0": (lambda: Checkpoint(keep=0), "keep must be at least 1"),
    "a negative seed": (lambda: experiment(seed=-1), "seed: it must be at least 0 and below"),
    "a seed of 33 bits": (lambda: experiment(seed=2**32), "not 4294967296"),
    "no stages": (lambda: experiment({}), "no stages"),
    "a stage name": (lambda: experiment({"a/b": stage()}), 'stage name "a/b"'),
    "a start that is not there": (
        lambda: experiment({"probe": stage(starts_from="pretrain")}),
        'stages.probe: "pretrain" is not an earlier stage; the earlier ones are none',
    ),
    "flops of itself": (
        lambda: experiment({"a": stage(), "b": stage(duration=flops_of("b"))}),
        'stages.b: "b" is not an earlier stage; the earlier ones are a',
    ),
    "selection without validation": (
        lambda: experiment({"bce": stage(select="map")}),
        "stages.bce: it chooses by validation, but data.validation is not given",
    ),
    "selection without validation of its own": (
        lambda: experiment(
            {"bce": stage(select="map", data=Data("digits:train"))},
            data=Data("digits:train", "digits:validation"),
        ),
        "stages.bce: it chooses by validation, but its data.validation is not given",
    ),
    "a preparation inherited from nothing": (
        lambda: experiment(data=Data("digits:train", inputs="inherit")),
        'data.inputs: "inherit" is for the own data of a stage that starts from another',
    ),
    "a preparation inherited without a start": (
        lambda: stage(data=Data("digits:train", inputs="inherit")),
        'stage: data.inputs: "inherit" needs starts_from',
    ),
    "an average that keeps all": (
        lambda: stage(ema=1.0),
        r"stage: ema must be above 0 and below 1, not 1\.0",
    ),
    "no rise at all": (lambda: OneCycle(rise=-0.1), "rise must be at least 0, below 1, not -0.1"),
    "a start above the peak": (lambda: OneCycle(start=0.5), "start must be at least 1, not 0.5"),
    "an end of 0": (lambda: OneCycle(end=0.0), "schedule: end must be positive, not 0.0"),
    "no trust": (lambda: Optimizer(trust=0.0), "optimizer: trust must be positive, not 0.0"),
    "a profile": (lambda: experiment(profile="20:10"), 'profile: "20:10" is not START:STOP'),
    "a profile in words": (lambda: parse_profile("all"), "is not START:STOP"),
    "a tactic": (lambda: MeshSpec(rules=((".*", "split"),)), 'unknown tactic "split"'),
    "a mesh rule": (lambda: MeshSpec(rules=(("(", "fsdp"),)), "is not a regular expression"),
    "a mesh that does not fit": (
        lambda: MeshSpec(3, 5).build(),
        "data=3 x fsdp=5 does not cover 8",
    ),
    "two free axes": (lambda: MeshSpec(-1, -1).build(), "give sizes whose product"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str) -> None:
    make, said = REFUSED[name]
    with pytest.raises(ConfigError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_what_is_accepted() -> None:
    data = Data("digits:train", "digits:validation")
    probe = stage(starts_from="pre-train_1", frozen=("^encoder/",), select="map", patience=2)
    accepted = experiment(
        {
            "pre-train_1": stage(MulSupCon()),
            "probe": probe,
            "bce": stage(duration=flops_of("pre-train_1", "probe"), optimizer=optimizer(Plateau())),
        },
        data=data,
        profile="3:5",
    )
    assert probe.validates
    assert accepted.stages["bce"].validates
    assert not stage(validate_every=epochs(2)).validates
    with pytest.raises(dataclasses.FrozenInstanceError):
        accepted.seed = 3  # type: ignore[misc]


def test_the_best_validation_is_never_nan_nor_a_tie() -> None:
    for select, values, best in (
        ("map", [math.nan, 0.5, 0.4, 0.5, math.nan, 0.7], [1, 5]),
        ("loss", [0.5, 0.6, math.nan, 0.5, 0.3], [0, 4]),
        ("last", [0.5, 0.6], []),
        ("macro_f1", [math.nan, math.nan], []),
    ):
        progress = Progress()
        found = []
        for step, value in enumerate(values):
            progress.step = step
            if progress.judge(select, {select: value}):
                found.append(step)
        assert found == best, select
        assert progress.best_step == (best[-1] if best else 0)
        since = len(values) - 1 - best[-1] if best else len(values)
        assert progress.validations_since_best == (0 if select == "last" else since)


def test_meshes_take_what_is_left() -> None:
    assert dict(MeshSpec().build().shape) == {"data": 8, "fsdp": 1}
    assert dict(MeshSpec(-1, 4).build().shape) == {"data": 2, "fsdp": 4}
    assert dict(MeshSpec(2, -1).build().shape) == {"data": 2, "fsdp": 4}
