"""`jaxmlcl embed WORKDIR [INPUT] -o FILE.npz`: what a network makes of rows."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmlcl.cli import Parser
from jaxmlcl.cli.predict import (
    add_input_options,
    check_not_input,
    check_stdin,
    nothing,
    open_input,
    opened_run,
    terminable,
)
from jaxmlcl.cli.processes import add_options, check_same_options, joined, settings_of, tell
from jaxmlcl.errors import DataError

if TYPE_CHECKING:
    import argparse

_ABOUT = """\
Write the representations that a stage's network makes of rows: those of a split of the run, or of
INPUT. FILE holds ids, representation [n, width], embedding [n, D] (normalised, of contrastive
stages), labels [n, L] and label_names where they are known (label_mask where some labels are not),
and is written whole or not at all.
"""


def run(words: list[str]) -> None:
    """Embed, write the file, and say what is in it."""
    parser = Parser("jaxmlcl embed", _ABOUT)
    parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="folder of the run")
    parser.add_argument(
        "input",
        metavar="INPUT",
        nargs="?",
        help="rows to embed, as `jaxmlcl predict` takes them (default: a split of the run)",
    )
    parser.add_argument(
        "-o", dest="output", metavar="FILE", type=Path, required=True, help="file to write, .npz"
    )
    parser.add_argument(
        "--split", choices=("train", "validation", "test"), help="rows to embed (default: test)"
    )
    parser.add_argument(
        "--stage", metavar="NAME", help="any stage (default: the run's main stage, or the last)"
    )
    add_input_options(parser)
    add_options(parser)
    options = parser.read(words)
    if options.split and options.input:
        parser.error("--split and INPUT exclude each other")
    # Imported here, so that a mistake in the arguments is told at once.
    from jaxmlcl.training.tables import array_file, check_ending

    check_ending(options.output, (".npz",))
    check_not_input(options.output, options)
    experiment = opened_run(options)
    import numpy as np

    from jaxmlcl.data.features import source_features
    from jaxmlcl.training.predict import open_network
    from jaxmlcl.training.splits import open_split

    with joined(settings_of(options)) as processes:
        check_stdin(options, processes)
        check_same_options(processes, options)
        network = open_network(
            experiment, options.workdir, options.stage, gives_scores=False, report=tell
        )
        expected = network.expected
        if options.input is None:
            split = options.split or "test"
            source = open_split(experiment.data_of(network.stage), split)
            features = source_features(source, f"data.{split}", expected)
        else:
            features = _labelled(options, expected)
        fixed: dict[str, Any] = {}
        if features.label_names is not None:
            fixed["label_names"] = np.array(features.label_names, np.str_)
        rows, widths = 0, ""
        with terminable(), contextlib.ExitStack() as files:
            add: Any = nothing
            if processes.primary:
                add = files.enter_context(array_file(options.output, fixed))
            for part, found in network.embeddings(features, options.batch):
                known = {"labels": part.labels, "label_mask": part.label_mask}
                labels = {name: array for name, array in known.items() if array is not None}
                add({"ids": part.ids, **found, **labels})
                rows += len(part.ids)
                widths = ", ".join(
                    f"{name} [{rows}, {array.shape[1]}]" for name, array in found.items()
                )
        if processes.primary:
            print(f"{network.stage}, step {network.checkpoint.step}: {widths}")
            print(f"written: {options.output}")


def _labelled(options: argparse.Namespace, expected: Any) -> Any:
    # A file may be a source, with labels, or inputs alone.
    from jaxmlcl.data.features import STDIN, source_features
    from jaxmlcl.data.source import open_source

    if options.input != STDIN and options.id is None:
        try:
            source = open_source(options.input, root=options.root)
        except DataError:
            return open_input(options, expected)
        return source_features(source, options.input, expected)
    return open_input(options, expected)
