"""Files of scores and representations: CSV, JSON lines and NPZ, written as the rows come."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from jaxmlcl.errors import UserError
from jaxmlcl.io import writing

ENDINGS = (".csv", ".jsonl", ".npz")


# Which labels are predicted from scores [n, L]: uint8 [n, L].
Decision = Callable[[np.ndarray], np.ndarray]
# Takes ids [n] and scores [n, L] of some more rows.
ScoreWriter = Callable[[np.ndarray, np.ndarray], None]


def by_threshold(thresholds: np.ndarray) -> Decision:
    """Predict the labels whose score reaches their threshold, of [L].

    The comparison is made in the scores' own precision, as when thresholds are chosen.

    Example:
      >>> by_threshold(np.array([0.7, 0.2]))(np.array([[0.7, 0.1]], np.float32))
      array([[1, 0]], dtype=uint8)
    """
    return lambda scores: (scores >= thresholds.astype(scores.dtype)).astype(np.uint8)


def by_rank(top: int) -> Decision:
    """Predict the labels with the highest scores; of equal ones the first.

    Example:
      >>> by_rank(2)(np.array([[0.1, 0.5, 0.5, 0.9]]))
      array([[0, 1, 0, 1]], dtype=uint8)
    """

    def decide(scores: np.ndarray) -> np.ndarray:
        predicted = np.zeros(scores.shape, np.uint8)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        np.put_along_axis(predicted, best, 1, axis=1)
        return predicted

    return decide


@contextlib.contextmanager
def score_file(
    path: Path, label_names: Sequence[str], decide: Decision | None
) -> Iterator[ScoreWriter]:
    """A file of scores, whole when the block ends, or as it was before.

    `.csv`: `id`, a column of scores for each label and, with `decide`, a column
    `predicted:LABEL` of 0 or 1 for each. `.jsonl`: an object a line with `id`, `scores` by label
    and, with `decide`, `labels`, the predicted ones, the highest score first. `.npz`: `ids`,
    `scores` float32 [n, L], `label_names` and, with `decide`, `predicted` uint8 [n, L]. Numbers in
    text have as many digits as float32 needs to come back with the same bits.

    Args:
      path: the file; its folder is created.
      label_names: the labels, [L].
      decide: which labels are predicted; None to leave this out.

    Raises:
      UserError: the file's ending is another.
      OSError: it cannot be written.

    Example:
      >>> path = Path(tempfile.mkdtemp()) / "scores.jsonl"
      >>> with score_file(path, ["sea", "sky"], by_rank(1)) as write:
      ...     write(np.array([7]), np.array([[0.25, 0.1]], np.float32))
      >>> path.read_text()
      '{"id": 7, "scores": {"sea": 0.25, "sky": 0.1}, "labels": ["sea"]}\\n'
    """
    check_ending(path, ENDINGS)
    ending = path.suffix.lower()
    with writing(path) as file:
        if ending == ".npz":
            with _npz(file, path.parent, {"label_names": _texts(label_names)}) as add:

                def write(ids: np.ndarray, scores: np.ndarray) -> None:
                    arrays = {"ids": ids, "scores": scores}
                    add(arrays if decide is None else {**arrays, "predicted": decide(scores)})

                yield write
            return
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        make = score_csv if ending == ".csv" else score_lines
        yield make(text, label_names, decide)
        text.flush()
        text.detach()


def check_ending(path: Path, endings: Sequence[str]) -> None:
    """Refuse a file whose ending names none of the forms.

    Raises:
      UserError: it is another.
    """
    if path.suffix.lower() not in endings:
        raise UserError(f"{path}: its form is told by its ending: {', '.join(endings)}")


def score_csv(file: TextIO, label_names: Sequence[str], decide: Decision | None) -> ScoreWriter:
    """Write scores as CSV, the header at once; see `score_file`."""
    table = csv.writer(file, lineterminator="\n")
    predicted = [] if decide is None else [f"predicted:{name}" for name in label_names]
    table.writerow(["id", *label_names, *predicted])

    def write(ids: np.ndarray, scores: np.ndarray) -> None:
        cells = _digits(scores)
        if decide is not None:
            cells = np.hstack([cells, decide(scores).astype(cells.dtype)])
        table.writerows([i, *row] for i, row in zip(ids.tolist(), cells.tolist(), strict=True))

    return write


def score_lines(file: TextIO, label_names: Sequence[str], decide: Decision | None) -> ScoreWriter:
    """Write scores as JSON lines; see `score_file`."""
    keys = [json.dumps(name, ensure_ascii=False) for name in label_names]

    def write(ids: np.ndarray, scores: np.ndarray) -> None:
        chosen = None if decide is None else decide(scores)
        order = np.argsort(-scores, axis=1, kind="stable")
        for row, (identity, cells) in enumerate(
            zip(ids.tolist(), _digits(scores).tolist(), strict=True)
        ):
            pairs = ", ".join(f"{key}: {cell}" for key, cell in zip(keys, cells, strict=True))
            line = f'{{"id": {json.dumps(identity, ensure_ascii=False)}, "scores": {{{pairs}}}'
            if chosen is not None:
                labels = ", ".join(keys[label] for label in order[row] if chosen[row, label])
                line += f', "labels": [{labels}]'
            file.write(line + "}\n")

    return write


@contextlib.contextmanager
def array_file(
    path: Path, fixed: Mapping[str, np.ndarray]
) -> Iterator[Callable[[Mapping[str, np.ndarray]], None]]:
    """An NPZ file of arrays that grow by rows, whole when the block ends, or as it was before.

    Args:
      path: the file; its folder is created.
      fixed: arrays that do not grow.

    Yields:
      A function that takes some more rows of each array.

    Raises:
      UserError: the file's ending is another.
      OSError: it cannot be written.

    Example:
      >>> path = Path(tempfile.mkdtemp()) / "a.npz"
      >>> with array_file(path, {"names": np.array(["x"])}) as add:
      ...     add({"ids": np.array([3]), "z": np.ones((1, 2))})
      ...     add({"ids": np.array([5]), "z": np.zeros((1, 2))})
      >>> np.load(path)["z"].tolist(), np.load(path)["ids"].tolist()
      ([[1.0, 1.0], [0.0, 0.0]], [3, 5])
    """
    check_ending(path, (".npz",))
    with writing(path) as file, _npz(file, path.parent, fixed) as add:
        yield add


@contextlib.contextmanager
def _npz(
    file: BinaryIO, folder: Path, fixed: Mapping[str, np.ndarray]
) -> Iterator[Callable[[Mapping[str, np.ndarray]], None]]:
    # A header says how many rows follow, so rows wait in files without names until all are there.
    waiting: dict[str, Any] = {}
    kinds: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    texts: list[np.ndarray] = []
    rows = 0

    def add(arrays: Mapping[str, np.ndarray]) -> None:
        nonlocal rows
        for name, array in arrays.items():
            if array.dtype.kind == "U":
                # The longest decides the type.
                texts.append(array)
                continue
            if name not in waiting:
                spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `files`
                waiting[name] = files.enter_context(spool)
                kinds[name] = array.dtype, array.shape[1:]
            waiting[name].write(np.ascontiguousarray(array, kinds[name][0]).data)
        rows += len(next(iter(arrays.values())))

    with contextlib.ExitStack() as files:
        yield add
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            if texts:
                fixed = {"ids": _ids(np.concatenate(texts)), **fixed}
            for name, array in fixed.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            for name, spool in waiting.items():
                dtype, shape = kinds[name]
                header = {
                    "descr": np.lib.format.dtype_to_descr(dtype),
                    "fortran_order": False,
                    "shape": (rows, *shape),
                }
                info = zipfile.ZipInfo(f"{name}.npy")
                with archive.open(info, "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    spool.seek(0)
                    shutil.copyfileobj(spool, member, 2**20)


def _ids(texts: np.ndarray) -> np.ndarray:
    # Whole numbers, where every id is one, so that they can be compared with those of evaluation.
    with contextlib.suppress(ValueError, OverflowError):
        numbers = texts.astype(np.int64)
        if (numbers.astype(texts.dtype) == texts).all():
            return numbers
    return texts


def _texts(names: Sequence[str]) -> np.ndarray:
    return np.array(list(names), np.str_)


def _digits(scores: np.ndarray) -> np.ndarray:
    # The shortest texts that come back as the same float32.
    return scores.astype(np.float32).astype("U16")
