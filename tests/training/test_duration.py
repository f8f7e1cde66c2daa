"""Durations are read exactly, written exactly, and turned into steps by one rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmlcl.config import from_json, to_json
from jaxmlcl.errors import ConfigError
from jaxmlcl.methods import Classification
from jaxmlcl.training.duration import UNITS, Duration, epochs, examples, flops_of, steps
from jaxmlcl.training.experiment import Data, Experiment
from jaxmlcl.training.stage import Stage


@pytest.mark.parametrize(
    ("text", "count", "unit"),
    [
        ("24000 steps", 24000, "steps"),
        ("1 step", 1, "steps"),
        ("3epochs", 3, "epochs"),
        ("10examples", 10, "examples"),
        ("1e6examples", 1e6, "examples"),
        ("1e6 examples", 1e6, "examples"),
        ("2.5e-1 epochs", 0.25, "epochs"),
        ("1E+3epochs", 1000, "epochs"),
        (".5 epoch", 0.5, "epochs"),
        ("2.epochs", 2, "epochs"),
        ("+7 steps", 7, "steps"),
        ("1_000 steps", 1000, "steps"),
        ("  1.5   epochs ", 1.5, "epochs"),
    ],
)
def test_reading(text: str, count: float, unit: str) -> None:
    assert Duration.parse(text) == Duration(count, unit)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot read"),
        ("500", "cannot read"),
        ("steps", "cannot read"),
        ("five steps", "cannot read"),
        ("1.2.3 steps", "cannot read"),
        ("1e steps", "cannot read"),
        ("e5 steps", "cannot read"),
        ("1__0 steps", "cannot read"),
        ("nan steps", "cannot read"),
        ("flops of", "cannot read"),
        ("10 minutes", 'unknown unit "minutes"'),
        ("0 steps", "must be positive, not 0"),
        ("-3 epochs", "must be positive, not -3"),
        ("1e999 steps", "must be positive, not inf"),
        ("flops of pretrain + ", 'neither "flops of STAGE" nor'),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Duration.parse(text)
    assert "\n" not in str(caught.value)


counts = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)


@given(counts | st.integers(1, 2**53).map(float), st.sampled_from(UNITS))
def test_text_gives_back_exactly_the_duration(count: float, unit: str) -> None:
    duration = Duration(count, unit)
    assert Duration.parse(str(duration)) == duration
    assert Duration.parse(str(duration).replace(" ", "")) == duration


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (steps(24000), "24000 steps"),
        (examples(1234567), "1234567 examples"),
        (epochs(1 / 3), "0.3333333333333333 epochs"),
        (epochs(np.float64(0.1)), "0.1 epochs"),
        (steps(np.int64(7)), "7 steps"),
        (examples(1e20), "1e+20 examples"),
        (flops_of("pretrain", "probe"), "flops of pretrain + probe"),
    ],
)
def test_text(duration: Duration, text: str) -> None:
    assert str(duration) == text
    assert Duration.parse(text) == duration


def test_one_spelling_of_a_sum_of_stages() -> None:
    assert Duration.parse("flops of a+b") == Duration(1, "flops of  a  +b") == flops_of("a", "b")
    assert flops_of("a", "b").flops_of == ("a", "b")
    assert steps(3).flops_of == ()
    for bad in (lambda: flops_of(), lambda: Duration(0.5, "flops of a")):
        with pytest.raises(ConfigError, match="neither"):
            bad()


@pytest.mark.parametrize("count", [True, "5", None])
def test_counts_are_numbers(count: object) -> None:
    with pytest.raises(ConfigError, match="count must be a number"):
        Duration(count, "steps")  # type: ignore[arg-type]  # what a configuration may hold


def test_durations_survive_json_exactly() -> None:
    stage = Stage(Classification(), epochs(1 / 3), validate_every=examples(1234567))
    experiment = Experiment("x", Data("digits:train"), {"bce": stage})
    assert '"1234567 examples"' in to_json(experiment)
    assert from_json(to_json(experiment)) == experiment


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (steps(7), 7),
        (steps(0.2), 1),
        (steps(2.6), 3),
        (epochs(1), 2),  # 150 of 64: 2.34 batches
        (epochs(10), 23),
        (epochs(0.001), 1),
        (examples(150), 2),
        (examples(6400), 100),
        (flops_of("a", "b"), 6),  # (10 + 8) / 3
    ],
)
def test_steps(duration: Duration, expected: int) -> None:
    found = duration.steps(
        batch_size=64, examples=150, flops_per_step=3.0, flops_of_stages={"a": 10.0, "b": 8.0}
    )
    assert found == expected


def test_flops_of_a_stage_that_has_not_run() -> None:
    with pytest.raises(ConfigError, match='stage "c" must come earlier'):
        flops_of("a", "c").steps(
            batch_size=1, examples=1, flops_per_step=3.0, flops_of_stages={"a": 1.0}
        )
    with pytest.raises(ConfigError, match='stage "a" must come earlier'):
        flops_of("a").steps(batch_size=1, examples=1)
