"""The run's folder: one run at a time, one experiment for good."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from jaxmlcl.distributed import group
from jaxmlcl.errors import ConfigError, UserError
from jaxmlcl.io import lock_folder, write_atomic
from jaxmlcl.training._storage import explained, is_remote, reach
from jaxmlcl.training.experiment import PLACES, VOLATILE

# Network file systems may show a new file late.
_VISIBLE_SECONDS = 15.0


@contextlib.contextmanager
def open_workdir(path: Path, resolved: str) -> Iterator[Path]:
    """Create or re-enter a run's folder, and hold it for this process; process 0 for all.

    Args:
      path: the folder.
      resolved: the resolved experiment as JSON text.

    Raises:
      UserError: the folder cannot be written, or another process trains in it.
      ConfigError: it belongs to an experiment that differs; the fields are named.
    """
    held: list[IO[str]] = []

    def enter() -> None:
        held.append(_lock(path))
        saved = path / "experiment.json"
        if _begun(path):
            if not saved.exists():
                raise ConfigError(
                    f"{path}: there is a run in this workdir, but its experiment.json is gone, so "
                    "it cannot be told whether it is the same experiment; restore the file, or "
                    "choose another with --workdir"
                )
            _compare(saved, resolved)

    try:
        group().once(enter)
        check_shared(path)
        yield path
    finally:
        for lock in held:
            lock.close()


def check_shared(folder: Path) -> None:
    """Refuse a folder of that name which is not the one of process 0, as on a disk of each host.

    Raises:
      UserError: naming the process.
    """
    if group().count == 1 or is_remote(folder):
        return
    sign = folder / ".shared"

    def put() -> str:
        token = secrets.token_hex(8)
        write_file(sign, token)
        return token

    token = group().once(put)
    seen, deadline = "", time.monotonic() + _VISIBLE_SECONDS
    while seen != token and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            seen = sign.read_text()
        if seen != token:
            time.sleep(0.2)

    def difference(first: str, own: str) -> str:
        return (
            "" if own == first else f"it does not see the files that process 0 writes in {folder}"
        )

    group().compare(seen, difference, "give all processes a folder that they share")
    if group().primary:
        sign.unlink(missing_ok=True)


def _lock(path: Path) -> IO[str]:
    try:
        lock = lock_folder(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot write to the workdir ({error.strerror}); choose another with --workdir"
        ) from None
    if lock is None:
        raise UserError(
            f"{path}: another process is training in this workdir; wait for it, or choose "
            "another with --workdir"
        )
    return lock


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file of the run, whole or not at all; process 0 does it for all.

    Raises:
      UserError: the store refuses, the disk is full, or the folder cannot be written.
    """
    if not group().primary:
        return
    if is_remote(path):
        with explained(path):
            path.write_bytes(data.encode() if isinstance(data, str) else data)
        return
    try:
        write_atomic(path, data)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free the disk and run the same command "
            "again, or choose another workdir with --workdir"
        ) from error


def _begun(path: Path) -> bool:
    """Whether a step was logged or saved; an experiment refused before that leaves no claim."""
    log = path / "metrics.jsonl"
    return (log.exists() and log.stat().st_size > 0) or any((path / "checkpoints").glob("*/*"))


def folder_before(path: Path, folder: str | None) -> str | None:
    """The `checkpoint.folder` that the run in this workdir had; `folder` if there is no run."""
    try:
        saved = json.loads((path / "experiment.json").read_text())
        return saved["checkpoint"].get("folder")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return folder


def check_folder(folder: Path, resolved: str) -> None:
    """Refuse a folder with the checkpoints of another experiment: one would continue the other.

    Args:
      folder: the run's `checkpoint.folder`.
      resolved: the resolved experiment as JSON text.

    Raises:
      ConfigError: it belongs to an experiment that differs; the fields are named.
      CheckpointError: the store does not answer, or refuses.
    """
    if is_remote(folder):
        reach(folder)
    saved = folder / "experiment.json"
    with explained(folder):
        if saved.exists():
            _compare(saved, resolved, "folder of checkpoints", "--checkpoint.folder")


def _compare(saved: Path, resolved: str, what: str = "workdir", choice: str = "--workdir") -> None:
    try:
        old = _flatten(json.loads(saved.read_text()))
    except (ValueError, UnicodeDecodeError):
        raise ConfigError(
            f"{saved}: not readable as JSON, so it cannot be told whether the run is the same "
            f"experiment; restore the file, or start in a new {what}"
        ) from None
    differing = _differing(old, _flatten(json.loads(resolved)), VOLATILE, ("there", "now"))
    if differing:
        raise ConfigError(
            f"{saved.parent}: the {what} belongs to a different experiment: {differing}. "
            f"Use the same configuration to continue it, or another {choice}"
        )


def check_same_everywhere(resolved: str) -> None:
    """Refuse an experiment that is not that of process 0; where data are may differ by machine.

    Args:
      resolved: the resolved experiment as JSON text.

    Raises:
      UserError: naming the process and the fields.
    """
    group().compare(
        _flatten(json.loads(resolved)),
        lambda first, own: _differing(first, own, PLACES, ("in process 0", "there")),
        "start all processes with the same configuration and flags",
    )


def _differing(
    old: dict[str, Any], new: dict[str, Any], ignored: Sequence[str], whens: tuple[str, str]
) -> str:
    """The fields in which two flat experiments differ, in words; empty if there are none."""
    fields = [
        f"{name} ({old.get(name, 'absent')} {whens[0]}, {new.get(name, 'absent')} {whens[1]})"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
        and not any(
            fnmatch.fnmatchcase(name, pattern)
            for field in ignored
            for pattern in (field, f"{field}.*")
        )
    ]
    return f"{'; '.join(fields[:8])}{'; ...' if len(fields) > 8 else ''}"


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        items = list(value.items())
    elif isinstance(value, list) and value:
        items = [(str(position), item) for position, item in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, item in items:
        flat.update(_flatten(item, f"{prefix}.{name}" if prefix else name))
    return flat
