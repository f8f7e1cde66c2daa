"""The command line: one file per command; here the first word is read and errors become exit codes.

Exit codes: 0 done; 2 the user can mend it (one line on stderr); 75 stopped before the end, on a
signal after saving or because another process of the run died; 130 interrupted; 1 a bug. Nothing
heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import NoReturn

from jaxmlcl import __version__
from jaxmlcl.errors import Preempted, UserError

COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "embed",
    "export",
    "labels",
    "enhance",
    "compare",
    "report",
    "config",
    "data",
    "sweep",
    "reproduce",
    "bench",
)

_HELP = """\
usage: jaxmlcl COMMAND ...

Multi-label contrastive learning in JAX: training, evaluation and reports.

commands:
  train CONFIG [--FIELD VALUE ...]   train the experiment of a configuration file, or continue it
  evaluate WORKDIR                   score a split with a run's networks; a table, JSON and scores
  predict WORKDIR INPUT -o FILE      score new rows; CSV, JSON lines or NPZ
  embed WORKDIR [INPUT] -o FILE      write the representations of a split or of new rows
  export WORKDIR -o FILE             write a network as one file: scores of rows, or weights
  labels WORKDIR -o FILE             inner products of label embeddings, as table or picture
  enhance SOURCE --method NAME -o FILE
                                     label distributions from 0/1 labels, written and measured
  compare RUN_A RUN_B                differences of two evaluated runs, with intervals and p values
  report WORKDIR                     write a run's report, one HTML page
  config CONFIG [--FIELD VALUE ...]  print the resolved experiment and where each value is from
  sweep CONFIG --grid FIELD=A,B ...  train variants, judged on validation; a table and the best
  reproduce NAME                     run a named study and write its tables (--list: their names)
  data inspect SOURCE ...            describe a data set's splits: labels, duplicates, problems
  data pack SOURCE -o DIR            write images and their labels into shards
  bench loss [--FIELD VALUE ...]     time and memory of the loss here, beside its peers
  bench input CONFIG|SOURCE          images per second of each stage of the input, and what bounds

options:
  -h, --help  this text; after a command, that command's; after CONFIG, every field of it
  --version   print the version
  --debug     show the traceback of an error

environment:
  JAXMLCL_DATA  folder in which relative paths of data are sought (or: --data.root FOLDER)

exit codes:
  0 done; 2 you can mend it; 75 stopped on a signal after saving, or because another process of the
  run died (run the same command again); 1 a bug
"""

# Whether this call of `main` shows tracebacks.
_debug = False

# Errors of the system that no program can prevent and every user can mend.
_MENDABLE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      arguments: the words after the program's name; those of this process by default.

    Returns:
      The exit code.

    Example:
      >>> main(["--version"]) == 0
      jaxmlcl ...
      True
    """
    global _debug
    words = list(sys.argv[1:] if arguments is None else arguments)
    _debug = "--debug" in words
    try:
        _run([word for word in words if word != "--debug"])
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        # The reader has seen enough. Python would complain once more when it closes stdout.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except (Exception, KeyboardInterrupt) as error:
        message, code = explain(error)
        fail(message, error)
        if isinstance(error, KeyboardInterrupt) and arguments is None:
            # At once: JAX may crash when it is taken down while a program of its own runs.
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(code)
        return code


def explain(error: BaseException) -> tuple[str, int]:
    """The line that a person reads of an error, and the exit code."""
    if isinstance(error, (UserError, Preempted)):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, OSError) and error.errno in _MENDABLE:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}; free the disk or use another folder", 2
    reason = " ".join(str(error).split())[:300]
    return (
        f"internal error ({type(error).__name__}: {reason}); this is a bug: run again with "
        "--debug for the traceback and report it",
        1,
    )


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(_HELP, end="")
    elif words[0] == "--version":
        print(f"jaxmlcl {__version__}")
    elif words[0] in COMMANDS:
        importlib.import_module(f"jaxmlcl.cli.{words[0]}").run(words[1:])
    else:
        known = (*COMMANDS, "--help", "--version", "--debug")
        raise UserError(f'unknown command "{words[0]}"{near(words[0], known)}; see jaxmlcl --help')


def fail(message: str, error: BaseException) -> None:
    """Tell a person what went wrong, with the traceback if --debug asks for it."""
    if _debug:
        traceback.print_exception(error)
    with contextlib.suppress(OSError):
        print(f"jaxmlcl: {message}", file=sys.stderr, flush=True)


def near(name: str, names: Iterable[str]) -> str:
    """What to say after an unknown name: the known one that is most like it, if any is.

    Example:
      >>> near("trian", COMMANDS)
      '; did you mean train?'
    """
    found = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {found[0]}?" if found else ""


class Parser(argparse.ArgumentParser):
    """Arguments of a command; whatever is wrong with them becomes one line."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def read(self, words: list[str]) -> argparse.Namespace:
        """The arguments; an unknown one is refused with the nearest valid name.

        Raises:
          UserError: something is unknown, missing or ill-typed.
        """
        options, unknown = self.parse_known_args(words)
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            name = unknown[0].partition("=")[0]
            raise UserError(f'unknown argument "{name}"{near(name, known)}; see {self.prog} --help')
        return options

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UserError(f"{message}; see {self.prog} --help")
