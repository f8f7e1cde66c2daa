"""The experiment as JSON, and back."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import cattrs
from cattrs.gen import make_dict_structure_fn

from jaxmlcl.config._fields import (
    BASES,
    LEAVES,
    expected,
    fits,
    is_spec,
    nearest,
    show,
    unlike,
)
from jaxmlcl.config._python import CODE, run_code
from jaxmlcl.errors import ConfigError
from jaxmlcl.methods import OBJECTIVES
from jaxmlcl.training.duration import Duration
from jaxmlcl.training.experiment import Experiment
from jaxmlcl.training.objective import Objective


class Mistake(ValueError):
    """What is wrong with a value; the path of its field is put before it."""


def to_json(experiment: Experiment, *, where: str = "experiment") -> str:
    """The experiment as JSON: the same text for equal experiments, read back by `from_json`.

    Objectives, encoders, augmentations and schedules carry their class as "type"; durations are
    text such as "500 steps".

    Args:
      experiment: what to write.
      where: what messages call it.

    Raises:
      ConfigError: a field holds something that JSON cannot, such as infinity or a function.

    Example:
      >>> from jaxmlcl.config import Classification, Data, Experiment, Stage, steps
      >>> experiment = Experiment(
      ...     "tiny", Data("digits:train"), {"bce": Stage(Classification(), steps(5))})
      >>> json.loads(to_json(experiment))["stages"]["bce"]["objective"]["type"]
      'Classification'
    """
    try:
        return json.dumps(plain(experiment, ""), indent=2, allow_nan=False) + "\n"
    except Mistake as mistake:
        raise ConfigError(f"{where}: {mistake}") from None


def plain(value: Any, path: str) -> Any:
    """A value as JSON knows it; `path` is the dotted name of its field, for messages."""
    if isinstance(value, Duration):
        return str(value)
    if is_spec(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        named = {"type": _name_of(type(value), path)} if isinstance(value, BASES) else {}
        return named | plain(fields, path)
    if isinstance(value, dict):
        return {name: plain(item, f"{path}.{name}".lstrip(".")) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item, f"{path}.{index}") for index, item in enumerate(value)]
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    what = "a finite number" if isinstance(value, float) else "a value that JSON can hold"
    raise Mistake(f"{path}: {show(value)} is not {what}")


def from_json(text: str, *, where: str = "experiment") -> Experiment:
    """The experiment that `to_json` wrote; every field's type is checked, nothing is converted.

    Args:
      text: the JSON text.
      where: what messages call it, such as its file.

    Raises:
      ConfigError: not JSON, an unknown or missing field, or a value of a wrong type; the message
        names the field by its dotted path.

    Example:
      >>> from jaxmlcl.config import Classification, Data, Experiment, Stage, steps
      >>> experiment = Experiment(
      ...     "tiny", Data("digits:train"), {"bce": Stage(Classification(), steps(5))})
      >>> from_json(to_json(experiment)) == experiment
      True
      >>> from_json(to_json(experiment).replace('"batch_size": 64', '"batch_size": 3.7'))
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.ConfigError: experiment: stages.bce.batch_size: 3.7 is not a whole number
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}, line {error.lineno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON ({error})") from None
    try:
        return _converter().structure(content, Experiment)
    except (cattrs.BaseValidationError, Mistake) as error:
        raise ConfigError(f"{where}: {_explain(error)}") from error


@functools.cache
def _converter() -> cattrs.Converter:
    """Decodes JSON values by annotated types, and refuses whatever does not fit exactly."""
    converter = cattrs.Converter(forbid_extra_keys=True)

    def item(value: Any, kind: Any, step: int | str) -> Any:
        try:
            return converter.structure(value, kind)
        except Exception as error:
            error.add_note(cattrs.IterableValidationNote("", step, kind))
            raise

    @functools.cache
    def fields_of(kind: Any) -> Any:
        return make_dict_structure_fn(kind, converter)

    def spec(value: Any, kind: Any) -> Any:
        fields = dict(_object(value))
        for base in BASES:
            if issubclass(kind, base):
                named = _class_named(fields.pop("type", None), base)
                if not issubclass(named, kind):
                    raise Mistake(f"{named.__name__} is not {expected(kind)}")
                kind = named
        return fields_of(kind)(fields, kind)

    def mapping(value: Any, kind: Any) -> Any:
        return {name: item(v, get_args(kind)[1], name) for name, v in _object(value).items()}

    def sequence(value: Any, kind: Any) -> Any:
        kinds = get_args(kind)
        if isinstance(value, list) and kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if not isinstance(value, list) or len(value) != len(kinds):
            raise Mistake(unlike(value, kind))
        return tuple(item(v, k, i) for i, (v, k) in enumerate(zip(value, kinds, strict=True)))

    def leaf(value: Any, kind: Any) -> Any:
        if not fits(value, kind):
            raise Mistake(unlike(value, kind))
        if kind is Duration:
            return Duration.parse(value)
        return float(value) if kind is float else value

    converter.register_structure_hook_func(
        lambda kind: kind in BASES or dataclasses.is_dataclass(kind), spec
    )
    converter.register_structure_hook_func(lambda kind: get_origin(kind) is dict, mapping)
    converter.register_structure_hook_func(lambda kind: get_origin(kind) is tuple, sequence)
    converter.register_structure_hook_func(lambda kind: get_origin(kind) is Literal, leaf)
    for kind in LEAVES:
        converter.register_structure_hook(kind, leaf)
    return converter


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Mistake(f"{show(value)} is not an object")
    return value


def _class_named(name: Any, base: type) -> type:
    known = _known_classes(base)
    if name not in known and name is not None and base is not Objective and run_code():
        known = _known_classes(base)
    if name is None:
        raise Mistake(f'has no "type"; it is one of {", ".join(sorted(known))}')
    if not isinstance(name, str) or name not in known:
        choice = nearest(str(name), known) or f"; known are {', '.join(sorted(known))}"
        own = "" if base is Objective else f"; {CODE}=FILE.py names a file with classes of your own"
        raise Mistake(f"unknown {base.__name__.lower()} type {show(name)}{choice}{own}")
    return known[name]


def _name_of(kind: type, path: str) -> str:
    """The name by which a class is found again."""
    for base in BASES:
        for other in _subclasses(base):
            if (
                other is not kind
                and other.__name__ == kind.__name__
                and other.__module__.startswith("jaxmlcl.")
            ):
                raise Mistake(
                    f"{path}: the class {kind.__name__} of your own has the name of one of "
                    "jaxmlcl, which a saved run would find in its place; call it otherwise"
                )
    return kind.__name__


def _known_classes(base: type) -> dict[Any, type]:
    classes = OBJECTIVES if base is Objective else _subclasses(base)
    # Classes that others inherit from, and can be no value, are no choice.
    return {cls.__name__: cls for cls in classes if not cls.__name__.startswith("_")}


def _subclasses(base: type[Any]) -> Iterator[type[Any]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)


def _explain(error: BaseException, path: tuple[str, ...] = ()) -> str:
    """The first mistake of a nested report, with the dotted path of its field."""
    if isinstance(error, cattrs.BaseValidationError):
        # A misspelt field is both unknown and missing: the unknown name tells more.
        first = min(
            error.exceptions, key=lambda e: not isinstance(e, cattrs.ForbiddenExtraKeysError)
        )
        # The innermost place was noted first.
        notes = reversed(getattr(first, "__notes__", []))
        steps = tuple(str(getattr(note, "name", getattr(note, "index", ""))) for note in notes)
        return _explain(first, path + steps)
    dotted = ".".join(path)
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        name = min(error.extra_fields)
        fields = [field.name for field in dataclasses.fields(error.cl)]
        return f"{'.'.join((*path, name))}: no such field{nearest(name, fields)}"
    if isinstance(error, KeyError):
        return f"{dotted}: is missing"
    return f"{dotted}: {error}" if dotted else str(error)
