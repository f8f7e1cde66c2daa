"""What a study is: tables of methods on data sets, with what each method may choose."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxmlcl.errors import ConfigError
from jaxmlcl.training.experiment import Data, Experiment

Choice = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One data set of a table, with the splits that every method gets."""

    name: str
    """Name in tables and on the command line."""
    data: Data
    """Training, validation and test split."""
    note: str = ""
    """What a reader of its figures has to know."""
    unseen: bool = False
    """Whether there is a second table without the test rows whose inputs occur in training."""


@dataclasses.dataclass(frozen=True)
class Networks:
    """A network of one choice: the experiment that trains it, and the stage that scores."""

    experiment: Experiment
    stage: str
    """Stage whose scores are the method's; validation chooses by it."""
    also: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Other stages of the same run that get rows of their own: stage to name of the row."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A baseline of one choice, with `fit(inputs, labels)` that returns what has `scores`.

    One whose `looks_at_inputs` is False gets zeros; data whose inputs are not in memory will do.
    """

    baseline: Any
    data: Data


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of a table: what it builds, and the trials among which validation chooses.

    Every trial is trained with the first seed; the one with the highest mAP on the validation
    rows is trained with the other seeds too, and these runs alone are scored on the test rows.
    """

    name: str
    """Name of the row."""
    build: Callable[[DataSet, Choice, int], Networks | Fitted]
    """(data set, choice, seed) -> what to train."""
    trials: tuple[Choice, ...] = ({},)
    """The choices; one, if nothing is chosen."""
    seeded: bool = True
    """Whether anything depends on the seed; what does not is run once."""
    leaves_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Data sets on which it is not run, and why."""
    baseline: bool = False
    """Whether it counts among the baselines with which the others are compared."""

    def __post_init__(self) -> None:
        if not self.trials:
            raise ConfigError(f'study: method "{self.name}" has no trials; give at least one')


@dataclasses.dataclass(frozen=True)
class Reference:
    """Figures from elsewhere, printed beside ours: by measure, with their source."""

    name: str
    data: str
    """Name of the data set they belong to."""
    values: Mapping[str, float]
    """Measure, or "PROTOCOL/MEASURE", to value."""
    source: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Methods on data sets, under the same seeds and numbers of trials."""

    name: str
    """Short name, for files and the command line."""
    title: str
    text: str
    """What the table compares, in a sentence or two."""
    sets: tuple[DataSet, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    references: tuple[Reference, ...] = ()
    protocols: tuple[str, ...] = ("best_on_val", "paper")
    """Protocols whose measures are printed."""

    def __post_init__(self) -> None:
        where = f"study: table {self.name}"
        _check_names(where, "data set", [one.name for one in self.sets])
        _check_names(where, "method", [one.name for one in self.methods], key=slug)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"study: table {self.name} needs seeds, each of them once")


@dataclasses.dataclass(frozen=True)
class Study:
    """Tables that belong together."""

    title: str
    text: str
    """What was asked, before the tables."""
    tables: tuple[Table, ...]

    def __post_init__(self) -> None:
        _check_names("study", "table", [table.name for table in self.tables])


def slug(name: str) -> str:
    """A method's name as a file name.

    Example:
      >>> slug("BCE + mask")
      'bce-mask'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _check_names(
    where: str, kind: str, names: Iterable[str], key: Callable[[str], str] = str
) -> None:
    # Names are folders, and parts of TABLE/SET/METHOD.
    seen: dict[str, str] = {}
    for name in names:
        if not key(name) or name in (".", "..") or set(name) & set("/*"):
            raise ConfigError(f'{where}: "{name}" cannot be the name of a {kind}')
        if key(name) in seen:
            other = seen[key(name)]
            told = f'"{name}" twice' if name == other else f'"{other}" and "{name}", too much alike'
            raise ConfigError(f"{where} names {kind} {told}")
        seen[key(name)] = name
