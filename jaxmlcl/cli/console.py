"""What a run shows while it works: a progress bar on a terminal, plain lines elsewhere; on stderr.

A reader that goes away (a closed pipe, a lost terminal) silences the console; training goes on.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from tqdm import tqdm

from jaxmlcl.training.console import Console

_LEAST = 5.0  # seconds between two plain lines of progress
_MOST = 60.0  # seconds after which a plain line comes even if little has happened


def make_console(stream: TextIO | None = None) -> Console:
    """The console that suits a stream (stderr by default): a bar on a terminal that has a size."""
    stream = sys.stderr if stream is None else stream
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return Lines(stream)
    return Bar(stream) if size.columns > 0 and size.lines > 0 else Lines(stream)


class Lines:
    """Plain lines: at every tenth of a stage, or once a minute, but not more often than every 5 s.

    Example:
      >>> console = Lines(sys.stdout, clock=iter([0.0, 1.0, 11.0]).__next__)
      >>> console.start("probe", 0, total=40, batch_size=8)
      >>> console.progress(1, 0.9)
      >>> console.progress(11, 0.5)
      probe: step 11/40 (27 %), loss 0.5, 8 samples/s, 29 s left
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._running = False

    def line(self, text: str) -> None:
        """One line for a person."""
        _write(self._stream, text)

    def start(self, stage: str, step: int, total: int, batch_size: int) -> None:
        """A stage begins or goes on; the first step is left out of the rate, it waits for data."""
        self._stage, self._total, self._batch_size = stage, total, batch_size
        self._step = self._told = step
        self._loss: float | None = None
        self._first: tuple[int, float] | None = None
        self._began = self._last_line = self._clock()
        self._running = True

    def progress(self, step: int, loss: float | None) -> None:
        """Write a line if it is time for one."""
        now = self._clock()
        self._step = step
        self._loss = self._loss if loss is None else loss
        self._first = self._first or (step, now)
        tenth = step * 10 // self._total > self._told * 10 // self._total
        waited = now - self._last_line
        if (tenth and waited >= _LEAST) or waited >= _MOST:
            self._tell(now)

    def stop(self) -> None:
        """The last step, unless its line is there already."""
        if self._running and self._step > self._told:
            self._tell(self._clock())
        self._running = False

    def _tell(self, now: float) -> None:
        self._told, self._last_line = self._step, now
        parts = [f"step {self._step}/{self._total} ({100 * self._step // self._total} %)"]
        if self._loss is not None:
            parts.append(f"loss {self._loss:.4g}")
        first, since = self._first or (self._step, now)
        if self._step > first and now > since:
            rate = (self._step - first) / (now - since)
            parts.append(f"{rate * self._batch_size:.4g} samples/s")
            left = (self._total - self._step) / rate
            parts.append(f"{_time(left)} left" if left else f"{_time(now - self._began)} in all")
        self.line(f"{self._stage}: {', '.join(parts)}")


class Bar:
    """A progress bar with stage, step, loss, samples/s and time left; lines go above it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: tqdm | None = None

    def line(self, text: str) -> None:
        """One line for a person."""
        if self._bar is None:
            _write(self._stream, text)
            return
        with _unless_closed():
            self._bar.clear()
            print(text, file=self._stream, flush=True)
            self._bar.refresh()

    def start(self, stage: str, step: int, total: int, batch_size: int) -> None:
        """A bar for the stage, from where it stands."""
        with _unless_closed():
            self._bar = _SampleBar(
                batch_size, desc=stage, initial=step, total=total, file=self._stream
            )

    def progress(self, step: int, loss: float | None) -> None:
        """Move the bar; tqdm draws it ten times a second at most."""
        if self._bar is None:
            return
        with _unless_closed():
            if loss is not None:
                self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
            self._bar.update(step - self._bar.n)

    def stop(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            with _unless_closed():
                self._bar.close()
            self._bar = None


class _SampleBar(tqdm):
    """A bar that counts steps and shows the rate in samples."""

    def __init__(self, batch_size: int, **options: object) -> None:
        self._batch_size = batch_size
        layout = (
            "{desc} {percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}, {samples}, "
            "{remaining} left"
        )
        super().__init__(**options, bar_format=layout, dynamic_ncols=True, leave=True)

    @property
    def format_dict(self) -> dict[str, object]:
        """What the layout may name; the rate in samples beside tqdm's own fields."""
        fields = super().format_dict
        rate = fields["rate"]
        if rate is None and fields["elapsed"]:
            rate = (fields["n"] - fields["initial"]) / fields["elapsed"]
        return {**fields, "samples": f"{(rate or 0.0) * self._batch_size:.4g} samples/s"}


def _write(stream: TextIO, text: str) -> None:
    with _unless_closed():
        print(text, file=stream, flush=True)


@contextlib.contextmanager
def _unless_closed() -> Iterator[None]:
    # A closed pipe raises OSError; a closed file object raises ValueError.
    with contextlib.suppress(OSError, ValueError):
        yield


def _time(seconds: float) -> str:
    """A length of time in words.

    Example:
      >>> _time(12.3), _time(130), _time(7300)
      ('12 s', '2 min 10 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
