"""The clock of the benchmarks, the same for both sides."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

# Set by --processor-time, and inherited by the processes of both sides.
PROCESSOR_TIME = "JAXMLCL_BENCHMARK_PROCESSOR_TIME"


def now() -> float:
    """Seconds: of the wall, or of this process's work on its one core."""
    return time.process_time() if PROCESSOR_TIME in os.environ else time.perf_counter()


def per_second(iterator: Iterator[object], warm: int, seconds: float) -> float:
    """How many elements an endless iterator gives in a second.

    Args:
      iterator: what is measured.
      warm: elements taken before; what was read ahead while nobody waited does not count.
      seconds: how long it is watched.
    """
    for _ in range(warm):
        next(iterator)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        next(iterator)
        count += 1
    return count / (time.perf_counter() - started)
