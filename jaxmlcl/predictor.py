"""A trained network as one file: written once, and applied without the run or what trained it.

The file is a ZIP archive, stored, of two entries. `predictor.bin` is a function of `jax.export`
from inputs [b, ...], any b, to label scores [b, L], with its numbers and the preparation of the
inputs inside. `predictor.json` says what it takes and gives, and where it is from. Nothing is
unpickled, and nothing but JAX and NumPy is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np

from jaxmlcl import __version__
from jaxmlcl.errors import ConfigError, DataError
from jaxmlcl.io import UNREADABLE_ARCHIVE, writing

ENDING = ".zip"
FUNCTION, DOCUMENT = "predictor.bin", "predictor.json"
_FORMAT = 1


class Origin(NamedTuple):
    """Where a network is from."""

    experiment: str
    stage: str
    step: int
    """Optimiser steps that it was trained for."""
    checkpoint: str
    """SHA-256 over the names, sizes and checksums of the checkpoint's files."""


class Thresholds(NamedTuple):
    """From which score on a label is predicted; both were chosen on the validation split."""

    all: float
    """One threshold for all labels."""
    label: tuple[float, ...]
    """One for each label, [L]."""


@dataclass(frozen=True)
class Description:
    """What a predictor takes and gives, and where it is from.

    Args:
      origin: the run's experiment, the stage, and its checkpoint.
      label_names: the `L` labels that are scored.
      input_shape: the shape of one input, as the data of training had them.
      input_dtype: the NumPy name of the inputs' type.
      platforms: where it can be computed, as JAX calls them: cpu, cuda, rocm, tpu.
      rows: rows that are scored at a time.
      feature_names: the names of the columns of vectors, [d], if they are known.
      thresholds: from which scores on labels are predicted, if they were chosen.
      jaxmlcl: the version that wrote it.
      jax: the version of JAX that wrote it.
    """

    origin: Origin
    label_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    input_dtype: str
    platforms: tuple[str, ...]
    rows: int
    feature_names: tuple[str, ...] | None = None
    thresholds: Thresholds | None = None
    jaxmlcl: str = __version__
    jax: str = jax.__version__

    def to_json(self) -> str:
        """Its JSON, which `from_json` reads.

        Example:
          >>> origin = Origin("birds", "bce", 30, "0" * 64)
          >>> birds = Description(origin, ("wren",), (20,), "float32", ("cpu",), 512)
          >>> Description.from_json(birds.to_json()) == birds
          True
        """
        document: dict[str, Any] = {"format": _FORMAT, **asdict(self)}
        document["origin"] = self.origin._asdict()
        if self.thresholds is not None:
            document["thresholds"] = self.thresholds._asdict()
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Description:
        """What `to_json` wrote.

        Raises:
          ValueError, KeyError, TypeError, AttributeError: the text is another.
        """
        found = json.loads(text)
        if not isinstance(found["format"], int) or found["format"] > _FORMAT:
            raise ValueError(f"its format is {found['format']}, which a newer jaxmlcl wrote")
        origin, thresholds, features = found["origin"], found["thresholds"], found["feature_names"]
        names = tuple(map(str, found["label_names"]))
        chosen = None
        if thresholds is not None:
            chosen = Thresholds(float(thresholds["all"]), tuple(map(float, thresholds["label"])))
            if len(chosen.label) != len(names):
                raise ValueError(f"{len(chosen.label)} thresholds for {len(names)} labels")
        return cls(
            Origin(
                str(origin["experiment"]),
                str(origin["stage"]),
                int(origin["step"]),
                str(origin["checkpoint"]),
            ),
            names,
            tuple(map(int, found["input_shape"])),
            np.dtype(found["input_dtype"]).name,
            tuple(map(str, found["platforms"])),
            max(1, int(found["rows"])),
            None if features is None else tuple(map(str, features)),
            chosen,
            str(found["jaxmlcl"]),
            str(found["jax"]),
        )


@dataclass(frozen=True, eq=False)
class Predictor:
    """A network read from a file; see `load_predictor`."""

    description: Description
    """What it takes and gives, and where it is from."""
    where: str = field(repr=False)
    """What messages call it: its file."""
    function: Callable[[np.ndarray], jax.Array] = field(repr=False)
    """From inputs [b, ...] to scores [b, L], compiled for every b that it meets."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels that are scored, [L]."""
        return self.description.label_names

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """The columns of vectors in the order in which they are taken, [d], if they are known."""
        return self.description.feature_names

    @property
    def thresholds(self) -> Thresholds | None:
        """From which scores on labels are predicted, if they were chosen before the export."""
        return self.description.thresholds

    def scores(self, inputs: Any) -> np.ndarray:
        """Label scores in [0, 1].

        Rows are scored some at a time and padded to a power of two, so that few sizes are compiled.

        Args:
          inputs: [n, ...] as the data of training held them, neither standardised nor scaled:
            vectors of numbers, or pixels as uint8. n may be 0.

        Returns:
          [n, L] float32.

        Raises:
          DataError: shape or type are others, or an input or a score is not finite.
        """
        array = self._checked(inputs)
        rows, parts = self.description.rows, []
        for start in range(0, len(array), rows):
            part = array[start : start + rows]
            size = min(rows, 1 << (len(part) - 1).bit_length())
            padding = [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1)
            found = np.asarray(self.function(np.pad(part, padding)))[: len(part)]
            self._check_finite(found, start, "score is not finite; look at the values of this row")
            parts.append(found)
        return np.concatenate([np.zeros((0, len(self.label_names)), np.float32), *parts])

    def _checked(self, inputs: Any) -> np.ndarray:
        shape, kind = self.description.input_shape, np.dtype(self.description.input_dtype)
        try:
            array = np.asarray(inputs)
        except ValueError:
            raise DataError(f"{self.where}: inputs are rows of different lengths") from None
        if array.shape[1:] != shape or not array.ndim:
            wanted = ", ".join(map(str, ("n", *shape)))
            advice = "; give one row as [1, ...]" if array.shape == shape else ""
            raise DataError(
                f"{self.where}: inputs have shape {list(array.shape)}; it takes [{wanted}]{advice}"
            )
        # Numbers become those of training, as they do when a file is read; pixels are not guessed.
        fits = array.dtype.kind in "biuf" if kind.kind == "f" else array.dtype == kind
        if not fits:
            wanted = "numbers" if kind.kind == "f" else str(kind)
            raise DataError(f"{self.where}: inputs have type {array.dtype}; it takes {wanted}")
        with np.errstate(over="ignore"):  # what does not fit becomes infinite
            array = array.astype(kind, copy=False)
        self._check_finite(array, 0, "inputs are not all finite")
        return array

    def _check_finite(self, array: np.ndarray, start: int, what: str) -> None:
        if array.dtype.kind != "f":
            return
        good = np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
        if not good.all():
            row = start + int(np.argmin(good))
            raise DataError(f"{self.where}, row {row} (counted from 0): its {what}")


def write_predictor(
    path: str | os.PathLike[str], exported: jax.export.Exported, description: Description
) -> None:
    """Write a predictor, whole or not at all.

    Args:
      path: the file, .zip; its folder is created.
      exported: from inputs [b, ...] to scores [b, L], with b symbolic.
      description: what it takes and gives.

    Raises:
      ConfigError: the ending is another, or flatbuffers is not installed.
      OSError: it cannot be written.

    Example:
      >>> write_predictor("birds.pkl", None, None)
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.ConfigError: birds.pkl: a predictor's file ends in .zip
    """
    path = Path(path)
    if path.suffix.lower() != ENDING:
        raise ConfigError(f"{path}: a predictor's file ends in {ENDING}")
    with _flatbuffers():
        content = bytes(exported.serialize())
    entries = {DOCUMENT: description.to_json().encode(), FUNCTION: content}
    with writing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            # Without the time, so that the same network gives the same bytes.
            archive.writestr(zipfile.ZipInfo(name), data)


def load_predictor(path: str | os.PathLike[str]) -> Predictor:
    """Read what `jaxmlcl export` wrote; neither the run nor its data are needed.

    Args:
      path: the file.

    Raises:
      DataError: there is no such file, or it is damaged or another.
      ConfigError: it was not exported for where JAX computes here, or flatbuffers is not installed.

    Example:
      >>> load_predictor("nowhere/birds.zip")
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.DataError: nowhere/birds.zip: no such file
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            text, content = archive.read(DOCUMENT), archive.read(FUNCTION)
        description = Description.from_json(text)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (PermissionError, IsADirectoryError) as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (*UNREADABLE_ARCHIVE, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: damaged, or not written by jaxmlcl export ({error}); export it again"
        ) from None
    with _flatbuffers():
        try:
            exported = jax.export.deserialize(bytearray(content))
        except ImportError:
            raise
        except Exception as error:
            raise DataError(
                f"{path}: JAX {jax.__version__} cannot read the function that {description.jax} "
                f"wrote ({error}); export it again"
            ) from None
    _check_function(path, exported, description)
    here = jax.export.default_export_platform()
    if here not in exported.platforms:
        raise ConfigError(
            f"{path}: it was exported for {', '.join(exported.platforms)}, and JAX computes on "
            f"{here} here; export it again with --platforms {here}"
        )
    function = jax.jit(exported.call)
    return Predictor(description, str(path), function)


def _check_function(path: Path, exported: jax.export.Exported, description: Description) -> None:
    """Refuse a function that is not the one that is described."""
    found = [(a.shape[1:], a.dtype) for a in (*exported.in_avals, *exported.out_avals)]
    wanted = [
        (description.input_shape, np.dtype(description.input_dtype)),
        ((len(description.label_names),), np.dtype(np.float32)),
    ]
    if found != wanted:
        raise DataError(f"{path}: its function is not the one that it describes; export it again")


@contextlib.contextmanager
def _flatbuffers() -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise ConfigError(
            "a predictor's file needs flatbuffers, which is not installed: run pip install "
            '"jaxmlcl[export]"'
        ) from None
