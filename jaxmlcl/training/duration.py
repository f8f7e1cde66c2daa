"""Durations: how long a stage trains, and how often something happens in it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from jaxmlcl.errors import ConfigError

UNITS = ("steps", "epochs", "examples")
_FLOPS_OF = "flops of "


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
        if not (math.isfinite(self.count) and self.count > 0):
            raise ConfigError(f"duration: the count must be positive, not {self.count:g}")

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read "24000 steps", "1.5 epochs", "1e6 examples" or "flops of pretrain + probe".

        Raises:
          ConfigError: the text is none of these.
        """
        text = " ".join(text.split())
        if text.startswith(_FLOPS_OF):
            return cls(1.0, text)
        match = re.fullmatch(r"([0-9.eE+_-]+)\s*([a-z]+)", text)
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
        return self.unit if self.flops_of else f"{self.count:g} {self.unit}"

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
