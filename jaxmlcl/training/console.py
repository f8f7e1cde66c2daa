"""What the trainer tells while it works; the command line shows it, tests and programs need not."""

from __future__ import annotations

from typing import Protocol


class Console(Protocol):
    """Receives a run's messages and progress."""

    def line(self, text: str) -> None:
        """One line for a person."""

    def start(self, stage: str, step: int, total: int, batch_size: int) -> None:
        """A stage of `total` steps begins, or goes on after `step` steps."""

    def progress(self, step: int, loss: float | None) -> None:
        """`step` steps of the stage are dispatched; the loss is given when it is known."""

    def stop(self) -> None:
        """The stage has ended."""


class Silent:
    """A console that shows nothing."""

    def line(self, text: str) -> None:
        """Ignored."""

    def start(self, stage: str, step: int, total: int, batch_size: int) -> None:
        """Ignored."""

    def progress(self, step: int, loss: float | None) -> None:
        """Ignored."""

    def stop(self) -> None:
        """Ignored."""
