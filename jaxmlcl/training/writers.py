"""Where measurements go: metrics.jsonl always, TensorBoard event files on request."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxmlcl.errors import UserError


class MetricsLog:
    """metrics.jsonl: one JSON object a line, cut back to a checkpoint's offset on resume.

    Example:
      >>> import tempfile
      >>> log = MetricsLog(Path(tempfile.mkdtemp()))
      >>> log.write({"kind": "train", "step": 1, "loss": float("nan")})
      >>> log.path.read_text()
      '{"kind": "train", "step": 1, "loss": null}\\n'
      >>> log.close()
    """

    def __init__(self, workdir: Path) -> None:
        self.path = workdir / "metrics.jsonl"
        with self._explained():
            # Unbuffered: what a full disk refused must not be tried again when the file is closed.
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - open for the whole run

    @property
    def offset(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; NaN and infinity become null.

        Raises:
          UserError: the disk is full, or the file cannot be written.
        """
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        line = json.dumps(clean, allow_nan=False).encode() + b"\n"
        with self._explained():
            while line:
                line = line[self._file.write(line) :]

    def cut(self, offset: int) -> None:
        """Forget what was written after an offset: those steps will be taken again."""
        if offset > self.offset:
            raise UserError(
                f"{self.path}: it is shorter ({self.offset} bytes) than the checkpoint says "
                f"({offset}); restore the file, or start in a new workdir"
            )
        with self._explained():
            self._file.truncate(offset)
            self._file.seek(offset)

    def sync(self) -> None:
        """Put what was written on the disk, before a checkpoint refers to it."""
        with self._explained():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        with self._explained():
            self._file.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); free the disk and run the "
                "same command again, or choose another workdir"
            ) from error


class NoLog:
    """The log of a process that leaves writing to process 0."""

    offset = 0

    def write(self, row: Mapping[str, Any]) -> None:
        """Ignored."""

    def cut(self, offset: int) -> None:
        """Ignored."""

    def sync(self) -> None:
        """Ignored."""

    def close(self) -> None:
        """Ignored."""


class TensorBoard:
    """The same rows as TensorBoard scalars, one event folder per stage."""

    def __init__(self, workdir: Path) -> None:
        try:
            import tensorboardX
        except ImportError:
            raise UserError(
                "logging.tensorboard needs an extra that is not installed: "
                'run pip install "jaxmlcl[tensorboard]"'
            ) from None
        self._open = tensorboardX.SummaryWriter
        self._folder = workdir / "tensorboard"
        self._writers: dict[str, Any] = {}

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row's numbers under its stage and kind."""
        stage = row["stage"]
        if stage not in self._writers:
            self._writers[stage] = self._open(str(self._folder / stage))
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                tag = f"{row['kind']}/{name}"
                self._writers[stage].add_scalar(tag, value, row["step"])

    def close(self) -> None:
        """Flush and close the event files."""
        for writer in self._writers.values():
            writer.close()
