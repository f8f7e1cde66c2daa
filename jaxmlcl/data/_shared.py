"""Batches from one process to another through memory that both see, and that is used again.

A new segment for each batch would have all of its pages made and unmade: 14 ms for 19 MB, of which
copying is one. So a segment is kept, and its first byte says whether it may be written to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Mapping
from multiprocessing import util
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import numpy as np

_LINE = 64  # bytes of a cache line, on which every array begins; the first is the flag's
_FREE, _FULL = 0, 1


class Sent(NamedTuple):
    """Where arrays lie that another process has written."""

    segment: str
    layout: tuple[tuple[str, tuple[int, ...], str, int], ...]
    """Name, shape, type and first byte of each."""


class Full(NamedTuple):
    """There is no room for a batch."""

    needed: int
    """Bytes."""


def _bytes(segment: SharedMemory) -> memoryview:
    found: Any = segment.buf
    view: memoryview = found
    return view


class Outbox:
    """The side that writes. Segments are made when all are full, and end with the process."""

    def __init__(self) -> None:
        self._segments: list[SharedMemory] = []
        self._lock = threading.Lock()
        self._closed = False
        # Processes of multiprocessing run no handlers of atexit.
        util.Finalize(None, self.close, exitpriority=10)

    def put(self, arrays: Mapping[str, np.ndarray]) -> Sent | Full:
        """Write arrays where the other side finds them."""
        layout, size = [], _LINE
        for name, array in arrays.items():
            layout.append((name, array.shape, array.dtype.str, size))
            size += -(-array.nbytes // _LINE) * _LINE
        with self._lock:
            # Threads may still read ahead when the process ends.
            segment = None if self._closed else self._free(size)
            if segment is None:
                return Full(size)
            _bytes(segment)[0] = _FULL
        for (_, shape, kind, start), array in zip(layout, arrays.values(), strict=True):
            np.ndarray(shape, kind, buffer=segment.buf, offset=start)[...] = array
        return Sent(segment.name, tuple(layout))

    def _free(self, size: int) -> SharedMemory | None:
        for segment in self._segments:
            if segment.size >= size and _bytes(segment)[0] == _FREE:
                return segment
        segment = SharedMemory(create=True, size=size)
        try:
            # Else the process would be killed at the first page for which there is no room.
            os.posix_fallocate(segment._fd, 0, size)  # type: ignore[attr-defined]
        except AttributeError:
            pass
        except OSError as error:
            if error.errno == errno.ENOSPC:
                segment.close()
                segment.unlink()
                return None
        self._segments.append(segment)
        return segment

    def close(self) -> None:
        """Give all segments back."""
        with self._lock:
            self._closed = True
            for segment in self._segments:
                with contextlib.suppress(BufferError):
                    # A thread may be writing to it; the name is given back all the same.
                    segment.close()
                segment.unlink()
            self._segments.clear()


class Inbox:
    """The side that reads."""

    def __init__(self) -> None:
        self._segments: dict[str, SharedMemory] = {}

    def take(self, sent: Sent) -> dict[str, np.ndarray]:
        """The arrays, as this process's own; their segment may be used again."""
        if sent.segment not in self._segments:
            self._segments[sent.segment] = SharedMemory(sent.segment)
        segment = self._segments[sent.segment]
        found: dict[str, Any] = {
            name: np.ndarray(shape, kind, buffer=segment.buf, offset=start).copy()
            for name, shape, kind, start in sent.layout
        }
        _bytes(segment)[0] = _FREE
        return found

    def close(self) -> None:
        """Look at no segment any more."""
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()
