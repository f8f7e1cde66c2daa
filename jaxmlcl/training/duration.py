"""Durations: how long a stage trains, and how often something happens in it."""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

from jaxmlcl.errors import ConfigError

UNITS = ("steps", "epochs", "examples")
_FLOPS_OF = "flops of "
# The exponent needs its digits: in "3epochs" the e belongs to the unit.
_AMOUNT = re.compile(r"([+-]?[0-9_]*\.?[0-9_]*(?:[eE][+-]?[0-9]+)?)\s*([a-z]+)")


@dataclasses.dataclass(frozen=True)
class Duration:
    """An amount of training: a count of steps, epochs or examples, or the FLOPs of other stages.

    Example:
      >>> Duration.parse("1.5 epochs").steps(batch_size=4, examples=10)
      4
      >>> str(Duration.parse("flops of pretrain + probe"))
      'flops of pretrain + probe'
    """

    count: float
    """How many of `unit`."""
    unit: str
    """steps, epochs, examples, or "flops of STAGE + STAGE ..."."""

    def __post_init__(self) -> None:
        if self.unit not in UNITS and not self.unit.startswith(_FLOPS_OF):
            raise ConfigError(
                f'duration: unknown unit "{self.unit}"; use one of {", ".join(UNITS)} '
                'or "flops of STAGE"'
            )
        if isinstance(self.count, bool) or not isinstance(self.count, numbers.Real):
            raise ConfigError(f"duration: the count must be a number, not {self.count!r}")
        if not (math.isfinite(self.count) and self.count > 0):
            raise ConfigError(f"duration: the count must be positive, not {self.count:g}")
        # One spelling for one duration, so that text and value say the same.
        object.__setattr__(self, "count", float(self.count))
        if self.flops_of:
            if self.count != 1 or not all(self.flops_of):
                raise ConfigError(
                    f'duration: "{self.count:g} x {self.unit}" is neither "flops of STAGE" nor '
                    '"flops of STAGE + STAGE"'
                )
            object.__setattr__(self, "unit", _FLOPS_OF + " + ".join(self.flops_of))

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read "24000 steps", "1.5 epochs", "1e6 examples" or "flops of pretrain + probe".

        Raises:
          ConfigError: the text is none of these.
        """
        text = " ".join(text.split())
        if text.startswith(_FLOPS_OF):
            return cls(1.0, text)
        match = _AMOUNT.fullmatch(text)
        try:
            count = float(match[1]) if match else math.nan
        except ValueError:
            count = math.nan
        if match is None or math.isnan(count):
            raise ConfigError(
                f'duration: cannot read "{text}"; write for instance "500 steps", "10 epochs", '
                '"1e6 examples" or "flops of STAGE"'
            )
        unit = match[2] if match[2].endswith("s") else match[2] + "s"
        return cls(count, unit)

    def __str__(self) -> str:
        """The text that `parse` reads back as exactly this duration."""
        if self.flops_of:
            return self.unit
        whole = self.count.is_integer() and self.count < 1e15
        return f"{int(self.count) if whole else self.count!r} {self.unit}"

    @property
    def flops_of(self) -> tuple[str, ...]:
        """Names of the stages whose counted FLOPs this duration equals; empty for plain counts."""
        if not self.unit.startswith(_FLOPS_OF):
            return ()
        return tuple(name.strip() for name in self.unit[len(_FLOPS_OF) :].split("+"))

    def steps(
        self,
        *,
        batch_size: int,
        examples: int,
        flops_per_step: float | None = None,
        flops_of_stages: Mapping[str, float] | None = None,
    ) -> int:
        """The duration in optimiser steps: rounded to the nearest, at least one.

        Args:
          batch_size: samples per step.
          examples: samples in the training set.
          flops_per_step: FLOPs of one step of this stage; needed for "flops of".
          flops_of_stages: FLOPs that each earlier stage took; needed for "flops of".

        Raises:
          ConfigError: a "flops of" duration names a stage that has not run before.
        """
        if self.unit == "steps":
            return max(1, round(self.count))
        if self.unit == "epochs":
            return max(1, round(self.count * examples / batch_size))
        if self.unit == "examples":
            return max(1, round(self.count / batch_size))
        known = flops_of_stages or {}
        missing = [name for name in self.flops_of if name not in known]
        if missing or not flops_per_step:
            raise ConfigError(
                f'duration "{self}": stage "{(missing or self.flops_of)[0]}" must come earlier in '
                "the experiment"
            )
        return max(1, round(sum(known[name] for name in self.flops_of) / flops_per_step))


def check_duration(field: str, value: Any, *, in_flops: bool = False) -> None:
    """Refuse a plain number or text where a duration is wanted: its unit must be said.

    Only the length of a stage may be "flops of STAGE" (`in_flops`).

    Example:
      >>> check_duration("stage: duration", 5)
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.ConfigError: stage: duration is 5, without a unit; write steps(5) or epochs(5)
    """
    if isinstance(value, Duration):
        if value.flops_of and not in_flops:
            raise ConfigError(
                f'{field} is "{value}", but only the duration of a stage may be in FLOPs; write '
                "for instance steps(500) or epochs(10)"
            )
        return
    if isinstance(value, int | float):
        raise ConfigError(
            f"{field} is {value!r}, without a unit; write steps({value!r}) or epochs({value!r})"
        )
    raise ConfigError(
        f"{field} is {value!r}, not a duration; write for instance steps(500) or epochs(10)"
    )


def steps(count: float) -> Duration:
    """That many optimiser steps.

    Example:
      >>> str(steps(500))
      '500 steps'
    """
    return Duration(count, "steps")


def epochs(count: float) -> Duration:
    """That many passes over the training set.

    Example:
      >>> epochs(2).steps(batch_size=32, examples=320)
      20
    """
    return Duration(count, "epochs")


def examples(count: float) -> Duration:
    """That many samples.

    Example:
      >>> examples(1e6).steps(batch_size=100, examples=50)
      10000
    """
    return Duration(count, "examples")


def flops_of(*stages: str) -> Duration:
    """As many steps as take the same counted FLOPs as other stages, forward and backward.

    Example:
      >>> flops_of("pretrain").steps(
      ...     batch_size=1, examples=1, flops_per_step=2.0, flops_of_stages={"pretrain": 9.0})
      4
    """
    return Duration(1.0, _FLOPS_OF + " + ".join(stages))
