"""Splits of an experiment's data: opened, checked against each other, and prepared."""

from __future__ import annotations

import dataclasses
import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlcl.data.source import Source, open_source, row_origin
from jaxmlcl.errors import ConfigError, DataError, UserError
from jaxmlcl.training.experiment import Data
from jaxmlcl.training.workdir import write_file

# In-memory sources up to this size live on the device, and the pipeline carries indices only.
RESIDENT_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What turns stored inputs into network inputs: (x - shift) * scale."""

    shift: np.ndarray
    scale: np.ndarray

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        buffer = io.BytesIO()
        np.savez(buffer, shift=self.shift, scale=self.scale)
        write_file(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Preparation:
        """Read what `save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                return cls(stored["shift"], stored["scale"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            raise UserError(
                f"{path}: missing or not readable; run the training command again to rewrite it"
            ) from None


def open_split(data: Data, name: str) -> Source:
    """Open one split of the data.

    Raises:
      ConfigError: the experiment does not name that split.
      DataError: it cannot be read.
    """
    uri = getattr(data, name)
    if uri is None:
        raise ConfigError(f"data.{name}: the experiment names no {name} split; give --data.{name}")
    return open_source(uri, root=data.root)


def check_same_labels(first: Source, second: Source, names: tuple[str, str]) -> None:
    """Refuse two splits whose labels or inputs do not correspond."""
    a, b = first.metadata, second.metadata
    if a.label_names != b.label_names:
        raise DataError(
            f"data.{names[0]} and data.{names[1]} have different labels "
            f"({len(a.label_names)} and {len(b.label_names)}); use splits of one data set"
        )
    if a.input_shape != b.input_shape:
        raise DataError(
            f"data.{names[0]} has inputs of shape {a.input_shape}, data.{names[1]} of "
            f"{b.input_shape}; use splits of one data set"
        )


def check_apart(data: Data, scored: str, other: str, first: Source, second: Source) -> None:
    """Refuse to choose or report on rows that something else has already been fitted to.

    Told by the content of the whole split and, for splits of one file, by the rows' ids; not by
    the content of single rows, which may rightly occur more than once.

    Args:
      data: where the splits are.
      scored: the split on which something would be chosen or reported.
      other: the split that must have no row of it.
      first: the source of `scored`.
      second: the source of `other`.

    Raises:
      DataError: they have rows in common.
    """
    common = len(first)
    if first.metadata.fingerprint != second.metadata.fingerprint:
        if not share_origin(data, scored, other):
            return
        common = len(np.intersect1d(source_ids(first), source_ids(second)))
    if common:
        raise DataError(
            f"data.{scored}: {common} of its {len(first)} rows are rows of data.{other}; selecting "
            "and scoring need rows of their own: name another split, or take parts with "
            "'?part=rest' and '?part=held-out'"
        )


def share_origin(data: Data, first: str, second: str) -> bool:
    """Whether two splits are taken from one file, so that equal ids mean equal rows."""
    try:
        one, other = (row_origin(getattr(data, split), root=data.root) for split in (first, second))
    except DataError:
        # A file that is no longer there is not the one that is.
        return False
    return one == other


def source_ids(source: Source) -> np.ndarray:
    """The ids of a whole source, int32 [n]."""
    arrays: Any = getattr(source, "arrays", None)
    if arrays is not None:
        return arrays()["ids"]
    return np.asarray([source[index]["id"] for index in range(len(source))], np.int32)


def fit_preparation(data: Data, train: Source) -> Preparation:
    """The preparation that the experiment asks for, fitted on the training split only."""
    if data.inputs == "raw":
        return Preparation(np.zeros(()), np.ones(()))
    if data.inputs == "unit":
        return Preparation(np.zeros(()), np.asarray(1.0 / 255.0))
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
