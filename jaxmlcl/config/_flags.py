"""Dotted flags that replace fields, their help, and where each value comes from."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from jaxmlcl.config._fields import Leaf, expected, leaves, nearest, unlike
from jaxmlcl.config._json import from_json, plain, to_json
from jaxmlcl.errors import ConfigError
from jaxmlcl.training.duration import Duration
from jaxmlcl.training.experiment import Experiment


def override(experiment: Experiment, flags: Sequence[str]) -> Experiment:
    """The experiment with fields replaced by dotted flags, such as --stages.bce.batch-size 32.

    Args:
      experiment: where values that no flag names come from.
      flags: the words of the command line.

    Raises:
      ConfigError: an unknown flag (the nearest valid one is named), a value of a wrong type, or
        fields that do not fit together.

    Example:
      >>> from jaxmlcl.config import Classification, Data, Experiment, Stage, steps
      >>> experiment = Experiment(
      ...     "tiny", Data("digits:train"), {"bce": Stage(Classification(), steps(5))})
      >>> override(experiment, ["--stages.bce.batch-size", "8"]).stages["bce"].batch_size
      8
      >>> override(experiment, ["--sed", "8"])
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.ConfigError: unknown flag --sed; did you mean --seed?
    """
    given = _given(experiment, flags)
    words = [_words(leaf, values) for leaf, values in given]
    try:
        changed = _parse(experiment, [word for group in words for word in group])
    except ConfigError as error:
        place = _place(experiment, given, words, str(error))
        raise ConfigError(f"{place}{error}") from None
    if changed is None:
        for (leaf, values), group in zip(given, words, strict=True):
            if _refused(experiment, group):
                raise ConfigError(_bad_value(leaf, values))
        raise ConfigError(f"cannot read the flags {' '.join(flags)}")
    return from_json(to_json(changed, where="command line"), where="command line")


def help_text(experiment: Experiment, prog: str, description: str) -> str:
    """Every field as a flag, with its unit and its value in this experiment.

    Args:
      experiment: where the defaults come from.
      prog: the command.
      description: what stands between the usage and the fields.

    Example:
      >>> from jaxmlcl.config import Classification, Data, Experiment, Stage, steps
      >>> experiment = Experiment(
      ...     "tiny", Data("digits:train"), {"bce": Stage(Classification(), steps(5))})
      >>> "--stages.bce.batch-size" in help_text(experiment, "jaxmlcl train tiny.py", "")
      True
    """
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        _tyro(experiment, ["--help"], prog)
    text = "\n".join(line.rstrip() for line in output.getvalue().splitlines())
    usage, _, fields = text.partition("\n\n")
    return f"{usage}\n\n{description}\n{fields}\n"


def _given(experiment: Experiment, flags: Sequence[str]) -> list[tuple[Leaf, list[str]]]:
    """The fields that flags name, each with its words."""
    known = {flag(leaf.path): leaf for leaf in leaves(experiment)}
    given: list[tuple[Leaf, list[str]]] = []
    for word in flags:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            leaf = known.get(name.replace("_", "-"))
            if leaf is None:
                raise ConfigError(f"unknown flag {name}{near_flags(name, known)}")
            if leaf.kind is None:
                raise ConfigError(
                    f"{name} names a class, which only the configuration file chooses"
                )
            given.append((leaf, [value] if equals else []))
        elif given:
            given[-1][1].append(word)
        else:
            raise ConfigError(f'"{word}" is not a flag; write --FIELD VALUE')
    return given


def near_flags(name: str, known: Iterable[str]) -> str:
    """What to say after an unknown flag: the known ones that end like it, or the nearest."""
    ending = f".{name.lstrip('-').replace('_', '-')}"
    whole = [other for other in known if other.endswith(ending)][:3]
    return f"; did you mean {' or '.join(whole)}?" if whole else nearest(name, known)


def flag(path: str) -> str:
    """The flag that sets the field with this dotted path."""
    return f"--{path.replace('_', '-')}"


def _words(leaf: Leaf, values: list[str]) -> list[str]:
    """The field's flag and its values, as tyro wants them."""
    if Duration in (leaf.kind, *get_args(leaf.kind)):
        values = [" ".join(values)] if values else []
    if len(values) == 1:
        return [f"{flag(leaf.path)}={values[0]}"]
    return [flag(leaf.path), *values]


def _bad_value(leaf: Leaf, values: list[str]) -> str:
    if not values:
        return f"{flag(leaf.path)} needs a value: {expected(leaf.kind)}"
    return f"{flag(leaf.path)}: {unlike(' '.join(values), leaf.kind)}"


def _refused(experiment: Experiment, words: list[str]) -> bool:
    try:
        return _parse(experiment, words) is None
    except ConfigError:
        # Fields that fit only together with others are not at fault.
        return False


def _place(
    experiment: Experiment, given: list[tuple[Leaf, list[str]]], words: list[list[str]], said: str
) -> str:
    """The stage whose flags alone lead to this message, unless the message names its field."""
    named = {field.name for field in dataclasses.fields(Experiment)} | {"experiment"}
    if re.split("[.:]", said)[0] in named:
        return ""
    stages: dict[str, list[str]] = {}
    for (leaf, _), group in zip(given, words, strict=True):
        if leaf.path.startswith("stages."):
            stages.setdefault(".".join(leaf.path.split(".")[:2]), []).extend(group)
    for stage, group in stages.items():
        try:
            _parse(experiment, group)
        except ConfigError as error:
            if str(error) == said:
                return f"{stage}: "
    return ""


def _parse(experiment: Experiment, words: list[str]) -> Experiment | None:
    """What tyro makes of the words; None if a value is refused (its box of text is not shown)."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return _tyro(experiment, words)
    except SystemExit:
        return None


def _tyro(experiment: Experiment, words: list[str], prog: str = "") -> Experiment:
    def duration(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Duration | None] | None:
        kinds = get_args(info.type) or (info.type,)
        if Duration not in kinds:
            return None
        optional = type(None) in kinds

        def parse(words: list[str]) -> Duration | None:
            if optional and words == ["None"]:
                return None
            try:
                return Duration.parse(words[0])
            except ConfigError as error:
                # What tyro takes for a refused value.
                raise ValueError(str(error)) from None

        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="{None}|DURATION" if optional else "DURATION",
            instance_from_str=parse,
            is_instance=lambda value: isinstance(value, kinds),
            str_from_instance=lambda value: [str(value)],
        )

    registry = ConstructorRegistry()
    registry.primitive_rule(duration)
    # Each field keeps the class it has in the configuration; flags change fields, not classes.
    markers = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    with registry:
        return tyro.cli(
            Experiment,
            default=experiment,
            args=words,
            prog=prog,
            description="",
            config=markers,
        )


class Row(NamedTuple):
    """One field of a resolved experiment."""

    path: str
    value: str
    source: str


def provenance(
    experiment: Experiment, path: str | os.PathLike[str], flags: Sequence[str]
) -> list[Row]:
    """Every field of an experiment, its value, and where the value comes from.

    Args:
      experiment: as `override` returned it.
      path: the configuration file.
      flags: the flags it was overridden with.

    Returns:
      One row per field, in order. The source is the file, the flag, "JAXMLCL_DATA", or "file or
      default": an experiment does not tell whether a value equal to the default was written.

    Example:
      >>> from jaxmlcl.config import Classification, Data, Experiment, Stage, steps
      >>> experiment = Experiment(
      ...     "tiny", Data("digits:train"), {"bce": Stage(Classification(), steps(5))})
      >>> {row.path: row.source for row in provenance(experiment, "tiny.py", [])}["name"]
      'tiny.py'
    """
    given = {leaf.path for leaf, _ in _given(experiment, flags)}
    rows = []
    for leaf in leaves(experiment):
        value, source = leaf.value, str(path)
        if leaf.path in given:
            source = flag(leaf.path)
        elif leaf.path == "data.root" and value is None and os.environ.get("JAXMLCL_DATA"):
            value, source = os.environ["JAXMLCL_DATA"], "JAXMLCL_DATA"
        elif value == leaf.default:
            source = "file or default"
        shown = plain(value, leaf.path)
        text = json.dumps(shown) if isinstance(shown, list) else str(shown)
        rows.append(Row(leaf.path, text, source))
    return rows
