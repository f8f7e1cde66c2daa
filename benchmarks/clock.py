"""The clock of `benchmarks.vectors`, the same for both sides."""

from __future__ import annotations

import os
import time

# Set by --processor-time, and inherited by the processes of both sides.
PROCESSOR_TIME = "JAXMLCL_BENCHMARK_PROCESSOR_TIME"


def now() -> float:
    """Seconds: of the wall, or of this process's work on its one core."""
    return time.process_time() if PROCESSOR_TIME in os.environ else time.perf_counter()
