"""`jaxmlcl predict WORKDIR INPUT -o FILE`: label scores of new rows."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmlcl.cli import Parser
from jaxmlcl.cli.evaluate import run_experiment
from jaxmlcl.cli.processes import add_options, check_same_options, joined, settings_of, tell
from jaxmlcl.cli.train import use_precision
from jaxmlcl.errors import UserError

if TYPE_CHECKING:
    from jaxmlcl.config import Experiment
    from jaxmlcl.distributed import Group

_ABOUT = """\
Score the rows of INPUT with the network that a stage of a run ended with. The run's folder is
enough; its data are not needed. FILE is written whole or not at all; one that is there is replaced.
"""
_INPUT = """\
rows to score: a CSV, ARFF, NPZ, NPY or HDF5 file with or without labels, a source such as
"digits:test", or - for CSV from standard input; for a network of photographs a source of these, an
image file, or a folder of image files
"""
_THRESHOLD = """\
from which score on a label is predicted: per-all (one threshold, chosen on the validation split),
per-label (one per label, chosen likewise), or a number (default: per-all)
"""


def run(words: list[str]) -> None:
    """Predict, write the file, and say where it is."""
    parser = Parser("jaxmlcl predict", _ABOUT)
    parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="folder of the run")
    parser.add_argument("input", metavar="INPUT", help=_INPUT)
    parser.add_argument(
        "-o",
        dest="output",
        metavar="FILE",
        required=True,
        help="file to write, .csv, .jsonl or .npz; - prints CSV",
    )
    parser.add_argument(
        "--labels",
        action="store_true",
        help="tell predicted labels too (.jsonl always does)",
    )
    parser.add_argument("--threshold", metavar="RULE", help=_THRESHOLD)
    parser.add_argument(
        "--top", type=int, metavar="COUNT", help="predict the COUNT labels with the highest scores"
    )
    parser.add_argument(
        "--stage", metavar="NAME", help="the network (default: the run's main stage, or the last)"
    )
    add_input_options(parser)
    add_options(parser)
    options = parser.read(words)
    if options.threshold is not None and options.top is not None:
        parser.error("--threshold and --top exclude each other")
    number = _number(parser, options.threshold)
    path = None if options.output == "-" else Path(options.output)
    # Imported here, so that a mistake in the arguments is told at once.
    from jaxmlcl.training.tables import ENDINGS, by_rank, by_threshold, check_ending

    if path is not None:
        check_ending(path, ENDINGS)
        check_not_input(path, options)
    experiment = opened_run(options)
    import numpy as np

    from jaxmlcl.training.predict import open_network
    from jaxmlcl.training.tables import ScoreWriter, score_csv, score_file
    from jaxmlcl.training.thresholds import recall_thresholds

    with joined(settings_of(options)) as processes:
        check_stdin(options, processes)
        check_same_options(processes, options)
        network = open_network(experiment, options.workdir, options.stage, report=tell)
        features = open_input(options, network.expected)
        names = network.label_names
        decide = None
        if options.top is not None:
            if not 1 <= options.top <= len(names):
                parser.error(f"argument --top: {options.top} is not from 1 to {len(names)}")
            decide = by_rank(options.top)
        elif number is not None:
            decide = by_threshold(np.full(len(names), number))
        elif options.threshold or options.labels or (path and path.suffix.lower() == ".jsonl"):
            per: Any = "label" if options.threshold == "per-label" else "all"
            decide = by_threshold(
                recall_thresholds(experiment, options.workdir, network, per, report=tell)
            )
        rows = 0
        with terminable(), contextlib.ExitStack() as files:
            if not processes.primary:
                write: ScoreWriter = nothing
            elif path is None:
                write = score_csv(sys.stdout, names, decide)
            else:
                write = files.enter_context(score_file(path, names, decide))
            for part, scores in network.scores(features, options.batch):
                write(part.ids, scores)
                rows += len(scores)
        if path is not None and processes.primary:
            step = network.checkpoint.step
            print(f"{network.stage}, step {step}: {rows} rows, {len(names)} labels")
            print(f"written: {path}")


def nothing(*_: Any) -> None:
    """What a process does with rows that process 0 writes."""


def check_stdin(options: argparse.Namespace, processes: Group) -> None:
    """Refuse rows from standard input where several processes would have to read them.

    Raises:
      UserError: INPUT is -.
    """
    if options.input == "-" and processes.count > 1:
        raise UserError(
            f"INPUT is standard input, which {processes.count} processes cannot all read; give a "
            "file that all of them see"
        )


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """Options that say how INPUT is read."""
    parser.add_argument(
        "--id", metavar="COLUMN", help="column of a CSV file that names its rows (default: id)"
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="ROWS",
        help="rows at a time; fewer take less memory (default: 512, as evaluate)",
    )
    parser.add_argument(
        "--data.root",
        dest="root",
        metavar="FOLDER",
        help="folder that relative paths start from (default: JAXMLCL_DATA, then here)",
    )


def opened_run(options: argparse.Namespace) -> Experiment:
    """The experiment of WORKDIR, its data sought where the options say."""
    import dataclasses

    if options.batch is not None and options.batch < 1:
        raise UserError(f"argument --batch: {options.batch} is not at least 1")
    experiment = run_experiment(options.workdir)
    if options.root is not None:
        data = dataclasses.replace(experiment.data, root=options.root)
        experiment = dataclasses.replace(experiment, data=data)
    use_precision(experiment)
    return experiment


def open_input(options: argparse.Namespace, expected: Any) -> Any:
    """The rows of INPUT."""
    from jaxmlcl.data.features import open_features

    return open_features(
        options.input,
        expected,
        root=options.root,
        id_column=options.id,
        stdin=sys.stdin.buffer,
    )


def check_not_input(path: Path, options: argparse.Namespace) -> None:
    """Refuse to replace INPUT, or a folder.

    Raises:
      UserError: FILE is one of them.
    """
    check_not_folder(path)
    if options.input is not None and path.exists():
        with contextlib.suppress(OSError):
            if os.path.samefile(path, options.input):
                raise UserError(f"{path}: is INPUT itself; write to another file")


def check_not_folder(path: Path) -> None:
    """Refuse to replace a folder.

    Raises:
      UserError: FILE is one.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; -o wants the name of a file")


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the program as Ctrl-C does, so that half a file is taken away."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _number(parser: Parser, rule: str | None) -> float | None:
    if rule in (None, "per-all", "per-label"):
        return None
    try:
        number = float(str(rule))
    except ValueError:
        number = float("nan")
    if not 0 <= number <= 1:
        parser.error(f'argument --threshold: "{rule}" is not per-all, per-label or from 0 to 1')
    return number
