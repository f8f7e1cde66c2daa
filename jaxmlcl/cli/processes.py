"""The processes of a run on the command line: the --distributed flags, joining, and ending."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from jaxmlcl.cli import Parser, explain, fail
from jaxmlcl.distributed import (
    Group,
    Lost,
    Settings,
    check_devices,
    describe_devices,
    group,
    join,
)
from jaxmlcl.errors import Preempted, UserError
from jaxmlcl.io import abandon

_PREFIX = "--distributed."
ABOUT = """\
One run may have many processes, one a host or one a device. They find each other where a launcher
started them (Cloud TPU, SLURM, Open MPI, Kubernetes), or by --distributed.coordinator HOST:PORT,
--distributed.num-processes and --distributed.process-id, given to each. Further:
--distributed.devices TOTAL refuses another number of devices, --distributed.start-timeout (300 s)
and --distributed.timeout (60 s) bound the wait for a process that does not come or falls silent,
--distributed.launcher none looks for no launcher. docs/scale.md says more.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags that say which process of how many this is."""
    flags = parser.add_argument_group("processes", "docs/scale.md says when they are needed")
    for name, kind, metavar, about in (
        ("coordinator", str, "HOST:PORT", "address of process 0, and a free port there"),
        ("num-processes", int, "COUNT", "processes of the run"),
        ("process-id", int, "INDEX", "which of them this is, from 0"),
        ("devices", int, "TOTAL", "refuse to run with another number of devices in all"),
        ("start-timeout", float, "SECONDS", "time in which all must have come (default: 300)"),
        ("timeout", float, "SECONDS", "silence after which one counts as gone (default: 60)"),
    ):
        flags.add_argument(_PREFIX + name, type=kind, metavar=metavar, help=about)
    flags.add_argument(
        f"{_PREFIX}launcher",
        choices=("auto", "none"),
        help="whether to look for a launcher (default: auto)",
    )


def settings_of(options: argparse.Namespace) -> Settings:
    """What these flags say."""
    given = {
        name.removeprefix("distributed.").replace("-", "_"): value
        for name, value in vars(options).items()
        if name.startswith("distributed.") and value is not None
    }
    return Settings(**given)


def take(words: Sequence[str]) -> tuple[Settings, list[str]]:
    """The flags among these words, and the other words.

    Raises:
      UserError: one of them is unknown or has no fitting value.
    """
    ours: list[str] = []
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith(_PREFIX):
            others.append(word)
            continue
        ours.append(word)
        if "=" not in word and (value := next(rest, None)) is not None:
            ours.append(value)
    parser = Parser("jaxmlcl train", "")
    add_options(parser)
    return settings_of(parser.read(ours)), others


def tell(line: str) -> None:
    """Tell what is no result, once for all processes."""
    if group().primary:
        print(line, file=sys.stderr)


@contextlib.contextmanager
def joined(settings: Settings) -> Iterator[Group]:
    """The run's processes; an error in one of them ends them all, and is told by name.

    Raises:
      UserError: somebody is missing, or the devices are not those that were asked for.
    """
    with join(settings, _end) as processes:
        if processes.count == 1:
            if processes.launched or settings.devices is not None:
                check_devices(processes, settings)
                print(describe_devices(), file=sys.stderr, flush=True)
            yield processes
            return
        with _quiet_output():
            try:
                check_devices(processes, settings)
                if processes.primary:
                    print(describe_devices(), file=sys.stderr, flush=True)
                yield processes
            except Preempted as error:
                # All leave together; each says so, since each may have a log of its own.
                raise Preempted(_as_told(processes, str(error))) from None
            except BaseException as error:
                _leave(processes, error)


def check_same_options(processes: Group, options: argparse.Namespace) -> None:
    """Refuse options that are not those of process 0; where files are may differ by machine.

    Raises:
      UserError: naming the process and the options.
    """
    given = {
        name: str(value)
        for name, value in vars(options).items()
        if name not in ("root", "output", "debug") and not name.startswith("distributed.")
    }

    def difference(first: dict[str, str], own: dict[str, str]) -> str:
        names = [name for name in first if own.get(name) != first[name]]
        return ", ".join(f"{n} ({first[n]} in process 0, {own.get(n)} there)" for n in names)

    processes.compare(given, difference, "start all processes with the same words")


def _leave(processes: Group, error: BaseException) -> NoReturn:
    """End this process and with it the others; does not return."""
    if isinstance(error, BrokenPipeError):
        # The reader of the results has seen enough.
        processes.end(0, "")
        os._exit(0)
    mistake = isinstance(error, UserError) and not isinstance(error.__cause__, Exception)
    if not mistake and not isinstance(error, KeyboardInterrupt):
        # Where another process died the channel knows better, and ends this one.
        processes.wait_for_word(3.0)
    message, code = explain(error)
    processes.end(code, message)
    fail(_as_told(processes, message), error)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    # At once: taking JAX down in good order would wait for the other processes.
    os._exit(code)


def _as_told(processes: Group, message: str) -> str:
    return message if processes.primary else f"{processes.name}: {message}"


def _end(lost: Lost) -> None:
    """End this process because another is gone: in its words, or so that it is started again."""
    code = Preempted.exit_code if lost.code is None else lost.code
    again = "; run the same command again" if lost.code is None else ""
    abandon()
    if code:
        with contextlib.suppress(OSError):
            os.write(2, f"jaxmlcl: {lost.who} {lost.how}{again}\n".encode())
    os._exit(code)


@contextlib.contextmanager
def _quiet_output() -> Iterator[None]:
    """Keep standard output for results: what libraries write there, as Gloo does, is dropped."""
    try:
        kept = os.dup(1)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    except OSError:
        yield
        return
    before: Any = sys.stdout
    sys.stdout = os.fdopen(kept, "w", encoding="utf-8", buffering=1)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            os.dup2(kept, 1)
            sys.stdout.close()
        sys.stdout = before
