"""Grids and ranges of field values, and the trials that are drawn from them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmlcl.config._fields import Leaf, leaves
from jaxmlcl.config._flags import flag, near_flags
from jaxmlcl.errors import ConfigError
from jaxmlcl.training.experiment import Experiment

_RANGE = re.compile(r"(uniform|log)\((.*),(.*)\)", re.DOTALL)
_PAIRS = {"(": ")", "[": "]", "{": "}"}
# Draws that may repeat earlier ones before a sweep is taken for exhausted.
_PATIENCE = 10_000


class Range(NamedTuple):
    """Numbers from `low` to `high`, evenly or on a logarithmic scale."""

    kind: str
    low: float
    high: float


class Axis(NamedTuple):
    """Fields that take the same value in a trial, and the values they may take."""

    name: str
    """As it was written."""
    fields: tuple[Leaf, ...]
    values: tuple[str, ...]
    """The texts of the values; empty for a range."""
    range: Range | None = None

    def flags(self, value: str) -> list[str]:
        """The words that set the fields to a value."""
        words = split_value(value)
        return [word for leaf in self.fields for word in (flag(leaf.path), *words)]


def parse_axis(experiment: Experiment, text: str) -> Axis:
    """Read FIELD=a,b or FIELD=uniform(low,high) or FIELD=log(low,high).

    FIELD is a dotted path, several of them joined by +, or one with * for any one part of it.
    Commas in parentheses belong to a value: hidden=(256,),(512,256).

    Args:
      experiment: the one whose fields are meant.
      text: what is read.

    Raises:
      ConfigError: there is no such field, no value, or not a range.

    Example:
      >>> from jaxmlcl.config import Classification, Data, Stage, steps
      >>> experiment = Experiment(
      ...     "tiny", Data("digits:train"), {"bce": Stage(Classification(), steps(5))})
      >>> axis = parse_axis(experiment, "stages.*.objective.encoder.hidden=(256,),(512,256)")
      >>> axis.values
      ('(256,)', '(512,256)')
      >>> axis.flags("(512,256)")
      ['--stages.bce.objective.encoder.hidden', '512', '256']
    """
    name, equals, body = text.partition("=")
    name, body = name.strip(), body.strip()
    if not equals or not name or not body:
        raise ConfigError(f'--grid "{text}": write FIELD=VALUE,VALUE or FIELD=uniform(LOW,HIGH)')
    fields = tuple(leaf for part in name.split("+") for leaf in _fields(experiment, part.strip()))
    found = _RANGE.fullmatch(body)
    if found is None:
        values = tuple(value.strip() for value in _split(body))
        if not all(values) or len(set(values)) < len(values):
            raise ConfigError(f'--grid "{text}": a value is empty or given twice')
        return Axis(name, fields, values)
    try:
        low, high = float(found[2]), float(found[3])
    except ValueError:
        low = high = math.nan
    least = 0.0 if found[1] == "log" else -math.inf
    if not (least < low < high < math.inf):
        rule = "0 < LOW < HIGH" if found[1] == "log" else "LOW < HIGH"
        raise ConfigError(f'--grid "{text}": write {found[1]}(LOW,HIGH) with numbers, {rule}')
    return Axis(name, fields, (), Range(found[1], low, high))


def draw_trials(axes: Sequence[Axis], trials: int | None, seed: int) -> list[tuple[str, ...]]:
    """The values of each trial, one for each axis.

    All combinations, or so many distinct random ones: with the same seed, more trials begin with
    the same ones.

    Args:
      axes: what is varied.
      trials: how many; all combinations if absent.
      seed: seed of the draws.

    Raises:
      ConfigError: a range without a number of trials, or fewer distinct trials than wanted.

    Example:
      >>> rate = Axis("rate", (), (), Range("log", 1e-4, 1e-2))
      >>> width = Axis("width", (), ("128", "256"))
      >>> draw_trials([width], None, seed=0)
      [('128',), ('256',)]
      >>> len(set(draw_trials([rate, width], 5, seed=0)))
      5
    """
    if trials is not None and trials < 1:
        raise ConfigError(f"--trials must be at least 1, not {trials}")
    ranges = [axis.name for axis in axes if axis.range is not None]
    if not ranges:
        count = math.prod(len(axis.values) for axis in axes)
        if trials is None or trials >= count:
            return list(itertools.product(*(axis.values for axis in axes)))
    elif trials is None:
        raise ConfigError(f"--grid {ranges[0]}: a range has no end of values; give --trials N")
    generator = np.random.Generator(np.random.Philox(key=seed))
    # A dictionary is a set in the order of the draws.
    found: dict[tuple[str, ...], None] = {}
    repeated = 0
    while len(found) < trials:
        trial = tuple(_drawn(axis, generator.random()) for axis in axes)
        repeated = repeated + 1 if trial in found else 0
        if repeated > _PATIENCE:
            raise ConfigError(
                f"--trials {trials}: the ranges hold only {len(found)} or few more distinct trials"
            )
        found[trial] = None
    return list(found)


def split_value(text: str) -> list[str]:
    """A value as the words of a flag: the items of (a, b), or the value itself.

    Example:
      >>> split_value("(256, 512)"), split_value("(256,)"), split_value("500 steps")
      (['256', '512'], ['256'], ['500 steps'])
    """
    if not (text.startswith("(") and text.endswith(")")):
        return [text]
    items = [item.strip() for item in _split(text[1:-1])]
    return items[:-1] if items[-1] == "" else items


def _drawn(axis: Axis, fraction: float) -> str:
    if axis.range is None:
        return axis.values[int(fraction * len(axis.values))]
    kind, low, high = axis.range
    if kind == "log":
        value = math.exp(math.log(low) + fraction * (math.log(high) - math.log(low)))
    else:
        value = low + fraction * (high - low)
    if all(leaf.kind is int for leaf in axis.fields) and axis.fields:
        return str(round(value))
    return f"{value:.4g}"


def _fields(experiment: Experiment, name: str) -> list[Leaf]:
    """The fields that a dotted path with stars names."""
    known = {flag(leaf.path): leaf for leaf in leaves(experiment)}
    wanted = flag(name.removeprefix("--"))
    parts = wanted.split(".")
    found = [
        leaf
        for path, leaf in known.items()
        if len(path.split(".")) == len(parts)
        and all(
            part == "*" or part == other for part, other in zip(parts, path.split("."), strict=True)
        )
    ]
    if not found:
        raise ConfigError(f"unknown flag {wanted}{near_flags(wanted, known)}")
    fields = [leaf for leaf in found if leaf.kind is not None]
    if not fields:
        raise ConfigError(f"{wanted} names a class, which only the configuration file chooses")
    return fields


def _split(text: str) -> list[str]:
    """The parts of a text between commas that stand in no brackets."""
    parts, closing = [""], ""
    for character in text:
        if character == "," and not closing:
            parts.append("")
            continue
        if character in _PAIRS:
            closing += _PAIRS[character]
        elif closing and character == closing[-1]:
            closing = closing[:-1]
        parts[-1] += character
    return parts
