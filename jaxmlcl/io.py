"""Files are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

# What damaged archives make zipfile raise.
UNREADABLE_ARCHIVE = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
)

# Temporary files of writers that are not done.
_unfinished: set[str] = set()


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write bytes to, which takes the name `path` when the block ends, or never.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and take the
    final name by a rename, which is atomic on one file system. What was there before stays if the
    block raises.

    Args:
      path: the file to write; its folder is created.

    Raises:
      OSError: the folder or the disk refuses; it names `path`, not the temporary file.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a" / "b.txt"
      >>> with writing(path) as file:
      ...     _ = file.write(b"whole")
      ...     path.exists()
      False
      >>> path.read_text()
      'whole'
    """
    path = Path(path)
    temporary: str | None = None
    try:
        _make_folder(path.parent)
        descriptor, temporary = _temporary(path)
        _unfinished.add(temporary)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private to the user; results are meant to be shared.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        # A full disk is reported without a name, a failed rename with that of the temporary file.
        if isinstance(error, OSError) and error.errno and error.filename in (None, temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        _unfinished.discard(temporary or "")
    sync_folder(path.parent)


def abandon() -> None:
    """Take away what is half written, before the process is ended from another thread."""
    for temporary in list(_unfinished):
        Path(temporary).unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write `data` to `path` whole or not at all; see `writing`.

    Args:
      path: the file to write; its folder is created.
      data: its content; text is encoded as UTF-8.

    Example:
      >>> import tempfile, pathlib
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> write_atomic(folder / "a" / "b.txt", "whole")
      >>> (folder / "a" / "b.txt").read_text()
      'whole'
    """
    with writing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def lock_folder(folder: Path) -> IO[str] | None:
    """Make a folder and hold it for this process, until the file is closed.

    Returns:
      The open lock; None if another process holds the folder.

    Raises:
      OSError: it cannot be made or written.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> with lock_folder(folder):
      ...     lock_folder(folder) is None
      True
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / ".lock", "w")  # noqa: SIM115 - held by the caller
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        # A file stands where the folder should.
        code = errno.ENOTDIR
        raise NotADirectoryError(code, os.strerror(code), str(error.filename)) from error


def _temporary(path: Path) -> tuple[int, str]:
    try:
        return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
