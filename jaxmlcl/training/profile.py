"""A trace of some steps, for a profile viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax


class Profile:
    """A trace of some steps, for a profile viewer."""

    def __init__(self, span: tuple[int, int] | None, workdir: Path) -> None:
        self._span = span
        self._folder = workdir / "profile"
        self._running = False

    def before(self, step: int) -> None:
        """Begin at the first step of the span."""
        if self._span is not None and step == self._span[0]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, state: Any) -> None:
        """End after the last step of the span, once its work is done."""
        if self._running and self._span is not None and step == self._span[1]:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """End the trace if one is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
