"""Errors that a person reads: one line that says what is wrong, where, and what to do."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend; the command line prints its one line and exits with 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class DataError(UserError):
    """A source, record or label that cannot be used as it is."""


class ConfigError(UserError):
    """An experiment that does not fit together, or a flag that does not exist."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read or does not belong to the experiment."""


class NonFiniteError(UserError):
    """Training met NaN or infinity; the last good checkpoint is kept."""


class Preempted(Exception):
    """The run was asked to stop and has saved its state; the same command continues it."""

    exit_code = 75
