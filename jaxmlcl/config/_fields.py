"""The fields of an experiment: their types, and what is said about values that do not fit."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import typing
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

from jaxmlcl.data.augment import Augmentation
from jaxmlcl.errors import ConfigError
from jaxmlcl.models import Encoder
from jaxmlcl.training.duration import Duration
from jaxmlcl.training.objective import Objective
from jaxmlcl.training.optimizers import Schedule

# Fields of these types hold one of several classes; in JSON they carry a "type".
BASES = (Objective, Encoder, Augmentation, Schedule)

LEAVES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    Duration: 'a duration such as "500 steps", "10 epochs" or "1e6 examples"',
}


def is_spec(value: Any) -> bool:
    """Whether a value has fields of its own; a duration is a single value."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type | Duration)


def fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a leaf's type as it stands."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if kind is not Duration:
        return type(value) is kind
    try:
        return isinstance(value, str) and Duration.parse(value) is not None
    except ConfigError:
        return False


def expected(kind: Any) -> str:
    """What a field of this type takes, in words."""
    items = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, items))}"
    if get_origin(kind) is tuple and items[-1] is Ellipsis:
        return f"a list, each item {expected(items[0])}"
    if get_origin(kind) is tuple:
        return f"{len(items)} values ({', '.join(map(expected, items))})"
    if items:
        return " or ".join("None" if item is type(None) else expected(item) for item in items)
    return LEAVES.get(kind, getattr(kind, "__name__", str(kind)))


def unlike(value: Any, kind: Any) -> str:
    """That a value is not of this type, and what it should be."""
    if isinstance(value, str) and Duration in (kind, *get_args(kind)):
        try:
            Duration.parse(value)
        except ConfigError as error:
            return str(error).removeprefix("duration: ")
    near = nearest(str(value), get_args(kind)) if get_origin(kind) is Literal else ""
    return f"{show(value)} is not {expected(kind)}{near}"


def show(value: Any) -> str:
    """A value for a message, not too long."""
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def nearest(name: str, names: Iterable[str]) -> str:
    """What to say after an unknown name: the known one that is most like it, if any is.

    Example:
      >>> nearest("micro_fl", ("micro_f1", "map"))
      '; did you mean micro_f1?'
    """
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""


class Leaf(NamedTuple):
    """One field of an experiment that has no fields of its own, or the name of a class."""

    path: str
    value: Any
    kind: Any
    """Annotated type; None for a line that names a class or an empty list of them."""
    default: Any


def leaves(spec: Any, prefix: str = "") -> Iterator[Leaf]:
    """Every field below a dataclass, in order, with its dotted path."""
    hints = typing.get_type_hints(type(spec))
    for field in dataclasses.fields(spec):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        path = f"{prefix}{field.name}"
        yield from _branch(path, getattr(spec, field.name), hints[field.name], default)


def _branch(path: str, value: Any, kind: Any, default: Any) -> Iterator[Leaf]:
    if is_spec(value):
        if isinstance(value, BASES):
            yield Leaf(path, type(value).__name__, None, type(default).__name__)
        yield from leaves(value, f"{path}.")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _branch(f"{path}.{name}", item, None, dataclasses.MISSING)
    elif any(base in get_args(kind) for base in BASES):
        if not value:
            yield Leaf(path, value, None, default)
        for index, item in enumerate(value):
            yield from _branch(f"{path}.{index}", item, None, dataclasses.MISSING)
    elif value is None and any(
        dataclasses.is_dataclass(item) and item is not Duration for item in get_args(kind)
    ):
        # Absent, and with fields of its own where it is present.
        yield Leaf(path, value, None, default)
    else:
        yield Leaf(path, value, kind, default)
