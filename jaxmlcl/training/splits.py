"""Splits of an experiment's data: opened, checked against each other, and prepared."""

from __future__ import annotations

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlcl.data.images import EncodedSource, Photographs
from jaxmlcl.data.images.photographs import STATISTICS
from jaxmlcl.data.source import Source, open_source, row_origin
from jaxmlcl.distributed import group
from jaxmlcl.errors import ConfigError, DataError, UserError
from jaxmlcl.training.experiment import Data, Experiment
from jaxmlcl.training.workdir import write_file

# In-memory sources up to this size live on the device, and the pipeline carries indices only.
RESIDENT_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What turns stored inputs into network inputs: (x - shift) * scale, then, behind augmentation,
    (x - mean) / deviation."""

    shift: np.ndarray
    scale: np.ndarray
    mean: np.ndarray | None = None
    """[C], of photographs; nothing is subtracted if absent."""
    deviation: np.ndarray | None = None
    """[C]; absent where the mean is."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Its arrays by name, without the absent ones."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: array for name, array in found.items() if array is not None}

    def check(self, source: Source, where: str) -> None:
        """Refuse inputs of another shape than those that it was fitted to.

        Raises:
          ConfigError: naming both shapes.
        """
        shape = source.metadata.input_shape
        if self.shift.shape not in ((), shape):
            raise ConfigError(
                f"{where}.inputs: the preparation to inherit is for inputs of shape "
                f"{self.shift.shape}, not {shape}; use another value"
            )

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **self.arrays())
        write_file(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Preparation:
        """Read what `save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                known = [field.name for field in dataclasses.fields(cls)]
                arrays = {name: stored[name] for name in known if name in stored}
                return cls(arrays.pop("shift"), arrays.pop("scale"), **arrays)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            raise UserError(
                f"{path}: missing or not readable; run the training command again to rewrite it"
            ) from None


@dataclasses.dataclass(frozen=True)
class StageData:
    """What a stage is trained on and validated with."""

    train: Source
    validation: Source | None
    preparation: Preparation
    file: str
    """Name of the preparation in the run's folder."""


def open_data(experiment: Experiment) -> dict[str, StageData]:
    """The data of every stage, opened and prepared; those of the experiment once for all.

    Raises:
      UserError: a split cannot be read, or the splits do not fit together.
    """
    found: dict[str, StageData] = {}
    shared: StageData | None = None
    for name, stage in experiment.stages.items():
        if stage.data is not None:
            start = found[stage.starts_from].preparation if stage.starts_from else None
            found[name] = _open_data(
                experiment.data_of(name),
                start,
                preparation_file(experiment, name),
                f"stages.{name}.",
            )
            continue
        if shared is None:
            shared = _open_data(experiment.data, None, preparation_file(experiment, name), "")
        found[name] = shared
    return found


def data_field(experiment: Experiment, stage: str) -> str:
    """What messages call the data of a stage."""
    return "data" if experiment.stages[stage].data is None else f"stages.{stage}.data"


def other_starts(experiment: Experiment, stages: Iterable[str]) -> dict[str, Data]:
    """The stages that these start from, directly or not, and whose data are others."""
    found: dict[str, Data] = {}
    for stage in stages:
        start = experiment.stages[stage].starts_from
        while start is not None:
            if experiment.data_of(start) != experiment.data_of(stage):
                found[start] = experiment.data_of(start)
            start = experiment.stages[start].starts_from
    return found


def check_selection(
    experiment: Experiment,
    opened: Mapping[str, tuple[Source, Source | None]],
    judged: str | None = None,
) -> None:
    """Refuse stages that would select on rows that they, or those they start from, train on.

    Args:
      experiment: the experiment.
      opened: training and validation split of every stage.
      judged: a stage by whose validation something else is selected, as in a sweep.

    Raises:
      DataError: naming both splits.
    """
    for name, stage in experiment.stages.items():
        train, validation = opened[name]
        if validation is None or not (stage.validates or name == judged):
            continue
        data, where = experiment.data_of(name), data_field(experiment, name)
        check_apart(data, "validation", "train", validation, train, where=where)
        for start, earlier in other_starts(experiment, [name]).items():
            of = (data_field(experiment, start), earlier)
            others = opened[start][0]
            check_apart(data, "validation", "train", validation, others, where=where, of=of)


def preparation_file(experiment: Experiment, stage: str) -> str:
    """Name of the file in the run's folder that holds the preparation of a stage's inputs."""
    own = experiment.stages[stage].data is not None
    return f"preparation-{stage}.npz" if own else "preparation.npz"


def _open_data(data: Data, start: Preparation | None, file: str, prefix: str) -> StageData:
    train = open_split(data, "train")
    validation = open_split(data, "validation") if data.validation else None
    if validation is not None:
        check_same_labels(train, validation, ("train", "validation"), prefix)
    if data.inputs != "inherit" or start is None:
        return StageData(train, validation, fit_preparation(data, train), file)
    start.check(train, f"{prefix}data")
    return StageData(train, validation, start, file)


def open_split(data: Data, name: str) -> Source:
    """Open one split of the data.

    Raises:
      ConfigError: the experiment does not name that split.
      DataError: it cannot be read.
    """
    uri = getattr(data, name)
    if uri is None:
        raise ConfigError(f"data.{name}: the experiment names no {name} split; give --data.{name}")
    source = open_source(uri, root=data.root)
    return Photographs(source, data.images) if isinstance(source, EncodedSource) else source


def check_same_labels(
    first: Source, second: Source, names: tuple[str, str], prefix: str = ""
) -> None:
    """Refuse two splits whose labels or inputs do not correspond."""
    a, b = first.metadata, second.metadata
    if a.label_names != b.label_names:
        raise DataError(
            f"{prefix}data.{names[0]} and {prefix}data.{names[1]} have different labels "
            f"({len(a.label_names)} and {len(b.label_names)}); use splits of one data set"
        )
    if a.input_shape != b.input_shape:
        raise DataError(
            f"{prefix}data.{names[0]} has inputs of shape {a.input_shape}, "
            f"{prefix}data.{names[1]} of "
            f"{b.input_shape}; use splits of one data set"
        )


def check_apart(
    data: Data,
    scored: str,
    other: str,
    first: Source,
    second: Source,
    *,
    where: str = "data",
    of: tuple[str, Data] | None = None,
) -> None:
    """Refuse to choose or report on rows that something else has already been fitted to.

    Told by the content of the whole split and, for splits of one file, by the rows' ids; not by
    the content of single rows, which may rightly occur more than once.

    Args:
      data: where the splits are.
      scored: the split on which something would be chosen or reported.
      other: the split that must have no row of it.
      first: the source of `scored`.
      second: the source of `other`.
      where: what messages call the data.
      of: what messages call the data of `other`, and these; the same data by default.

    Raises:
      DataError: they have rows in common.
    """
    there, others = of or (where, data)
    common = len(first)
    if first.metadata.fingerprint_of_rows != second.metadata.fingerprint_of_rows:
        if not share_origin(data, scored, other, others):
            return
        common = len(np.intersect1d(source_ids(first), source_ids(second)))
    if common:
        raise DataError(
            f"{where}.{scored}: {common} of its {len(first)} rows are rows of {there}.{other}; "
            "selecting and scoring need rows of their own: name another split, or take parts with "
            "'?part=rest' and '?part=held-out'"
        )


def check_same_data(sources: Mapping[str, Source | None]) -> None:
    """Refuse data that are not those of process 0.

    Args:
      sources: by what messages call them; None where there is none.

    Raises:
      UserError: naming the process and the fingerprints.
    """

    def difference(first: dict[str, str], other: dict[str, str]) -> str:
        differing = [
            f"{name} has fingerprint {first[name][:12]} in process 0, "
            f"{other.get(name, 'none')[:12]} there"
            for name in first
            if other.get(name) != first[name]
        ]
        return ", ".join(differing[:3])

    fingerprints = {
        name: source.metadata.fingerprint for name, source in sources.items() if source is not None
    }
    group().compare(fingerprints, difference, "give all processes the same data")


def share_origin(data: Data, first: str, second: str, of: Data | None = None) -> bool:
    """Whether two splits are taken from one file, so that equal ids mean equal rows.

    Args:
      data: what the first split is of.
      first: the first split.
      second: the second split.
      of: what the second split is of; `data` by default.
    """
    try:
        one, other = (
            row_origin(getattr(one, split), root=one.root)
            for one, split in ((data, first), (of or data, second))
        )
    except DataError:
        # A file that is no longer there is not the one that is.
        return False
    return one == other


def source_ids(source: Source) -> np.ndarray:
    """The ids of a whole source, int32 [n]."""
    return source_annotations(source)["ids"]


def fit_preparation(data: Data, train: Source) -> Preparation:
    """The preparation that the experiment asks for, fitted on the training split only."""
    if data.inputs == "raw":
        return Preparation(np.zeros(()), np.ones(()))
    if data.inputs == "unit":
        return Preparation(np.zeros(()), np.asarray(1.0 / 255.0))
    if isinstance(train, Photographs):
        statistics = STATISTICS[data.images.statistics]
        mean, deviation = (np.array(found, np.float64) for found in statistics)
        return Preparation(np.zeros(()), np.asarray(1.0 / 255.0), mean, deviation)
    arrays = source_arrays(train)
    if arrays is None:
        raise ConfigError(
            'data.inputs: "standardize" needs a source that fits in memory; use "unit" or "raw"'
        )
    x = arrays["inputs"].astype(np.float64)
    deviation = x.std(axis=0)
    # A constant feature carries nothing: it becomes zero, and is not divided by zero.
    return Preparation(x.mean(axis=0), 1.0 / np.where(deviation > 0, deviation, 1.0))


def source_arrays(source: Source) -> dict[str, np.ndarray] | None:
    """Inputs, labels and ids of a source that fits on the device, or None."""
    arrays: Any = getattr(source, "arrays", None)
    if arrays is None:
        return None
    found = arrays()
    return found if sum(array.nbytes for array in found.values()) <= RESIDENT_BYTES else None


def source_annotations(source: Source, rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Labels [n, L], ids [n] and, where labels are unknown, label_mask of some rows, or of all.

    Photographs are not read for it.
    """
    chosen = np.arange(len(source)) if rows is None else np.asarray(rows)
    if isinstance(source, Photographs):
        return source.annotations(chosen)
    names = ("labels", "ids", *(("label_mask",) if source.metadata.unknown_labels else ()))
    arrays = source_arrays(source)
    if arrays is not None:
        return {name: arrays[name] if rows is None else arrays[name][chosen] for name in names}
    records = [source[int(row)] for row in chosen]
    found = {name: np.stack([one[name] for one in records]) for name in names if name != "ids"}
    return {**found, "ids": np.asarray([record["id"] for record in records], np.int32)}
