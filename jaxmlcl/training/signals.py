"""Signals that ask a run to stop: remembered, and acted on between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jaxmlcl.distributed import Group


class Stop:
    """Whether the run was asked to stop; with several processes, all stop at the same place."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._received: list[int] = []

    def remember(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals."""
        del frame
        if number == signal.SIGINT and number in self._received:
            # Asked twice from the keyboard: at once, without saving.
            raise KeyboardInterrupt
        self._received.append(number)
        self._group.ask_to_stop(f"signal {signal.Signals(number).name}")

    def reached(self) -> str | None:
        """One more place where the run could stop; by what it was asked, if it is this one."""
        if self._group.count > 1:
            return self._group.reached()
        return f"signal {signal.Signals(self._received[0]).name}" if self._received else None


@contextmanager
def stop_signals(group: Group) -> Iterator[Stop]:
    """Remember SIGTERM and SIGINT, to this process or to another of its run."""
    stop = Stop(group)
    try:
        wanted = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, stop.remember) for number in wanted}
    except ValueError:
        # Not the main thread: the embedding program decides about signals.
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
