"""Signals that ask a run to stop: remembered, and acted on between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that holds the signal that asked this process to stop, once one has."""
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and number in received:
            # Asked twice from the keyboard: at once, without saving.
            raise KeyboardInterrupt
        received.append(number)

    try:
        wanted = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, remember) for number in wanted}
    except ValueError:
        # Not the main thread: the embedding program decides about signals.
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped_by(received: list[int]) -> str:
    """Which signal it was, for a message."""
    return f"stopped by signal {signal.Signals(received[0]).name}"
