"""Sides of a comparison in processes of their own, and what a call takes of a process's memory."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from jaxmlcl.errors import UserError

# From <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class SideError(RuntimeError):
    """A call failed in the other process, or the process ended; `reason` is one line."""

    def __init__(self, call: str, reason: str, details: str = "") -> None:
        super().__init__(f"{call} failed: {reason}\n{details}".rstrip())
        self.reason = reason


@contextlib.contextmanager
def side(module: str, name: str, *arguments: Any) -> Iterator[Callable[..., Any]]:
    """A process with an instance of module.name, made at the first call.

    Args:
      module: the module's full name.
      name: a class in it.
      arguments: what its instance is made with.

    Yields:
      A function that calls a method by name: `call("method", *values)`. It raises SideError where
      the method fails, and a UserError as it is.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, module, name, arguments))
    process.start()
    there.close()

    def call(method: str, *values: Any) -> Any:
        what = f"{module}.{name}.{method}"
        try:
            here.send((method, values))
            error, result, details = here.recv()
        except (EOFError, OSError):
            process.join()
            reason = f"its process ended with {process.exitcode} (out of memory?)"
            raise SideError(what, reason) from None
        if error is None:
            return result
        if error is UserError:
            raise UserError(result)
        raise SideError(what, result, details)

    try:
        yield call
    finally:
        with contextlib.suppress(OSError):
            here.send(None)
        process.join()
        here.close()


def _serve(connection: Connection, module: str, name: str, arguments: tuple[Any, ...]) -> None:
    """Answer calls until there are no more."""
    instance: Any = None
    # The other end closes when the program is stopped.
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while (request := connection.recv()) is not None:
            method, values = request
            try:
                if instance is None:
                    instance = getattr(importlib.import_module(module), name)(*arguments)
                connection.send((None, getattr(instance, method)(*values), ""))
            except UserError as error:
                connection.send((UserError, str(error), ""))
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                connection.send((SideError, reason, traceback.format_exc()))


def give_memory_back() -> None:
    """From now on freed arrays go back to the system at once, so that what is resident is used.

    Costs time, so a process that is asked for its memory is asked for nothing else.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 1 << 16)
        library.mallopt(_M_TRIM_THRESHOLD, 1 << 16)


def resident_peak(call: Callable[[], Any]) -> int:
    """Bytes by which this process's resident memory exceeds what it was before, at most.

    Where the system cannot forget an earlier maximum (it can on Linux), a call that stays below it
    counts as 0.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _wait_for_frees()
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        earlier = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        call()
        return unit * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - earlier)


def _wait_for_frees() -> None:
    """Until nothing has been given back for a while: XLA frees after it has said it is done."""
    least, quiet = _status("VmRSS"), 0
    while quiet < 15:
        time.sleep(0.02)
        now = _status("VmRSS")
        quiet = 0 if now < least - (1 << 16) else quiet + 1
        least = min(least, now)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def available_memory() -> int | None:
    """Bytes that this process may still take; None where the system does not tell."""
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        found.append(1024 * int(line.split()[1]))
    group = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        # "max" where there is no limit.
        with contextlib.suppress(OSError, ValueError):
            found.append(int((group / limit).read_text()) - int((group / used).read_text()))
    return min(found, default=None)
