"""`jaxmlcl reproduce NAME`: run a named study and write its tables."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from jaxmlcl.cli import Parser
from jaxmlcl.errors import UserError

_ABOUT = """\
Run a named study: every method of its tables on every data set, trials chosen by validation, then
every seed scored on the test rows, once. What is finished is kept, so the same command goes on
where it was stopped. The tables are written to FILE (Markdown; only the part of this study is
replaced) and, beside it, as CSV and LaTeX.
"""


def run(words: list[str]) -> None:
    """Run a study, or list the ones that exist."""
    parser = Parser("jaxmlcl reproduce", _ABOUT)
    parser.add_argument("name", metavar="NAME", nargs="?", help="a study's name, or its file")
    parser.add_argument("--list", action="store_true", help="list the studies and leave")
    parser.add_argument("--plan", action="store_true", help="list the cells and leave")
    parser.add_argument(
        "--only",
        metavar="TABLE/SET/METHOD",
        action="append",
        default=[],
        help="only what is called so (--plan tells; label enhancement: SET/METHOD); later parts "
        "may be left out, * stands for any one of them",
    )
    parser.add_argument(
        "--folder",
        metavar="FOLDER",
        type=Path,
        help="where trials and results are kept (default: runs/reproduce/NAME)",
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=int,
        default=1,
        help="processes at a time, each with its share of the CPU cores (default: 1)",
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the runs of the seeds that are reported"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="where the tables go (default: docs/results.md; with --only FOLDER/results.md)",
    )
    parser.add_argument("--no-tables", action="store_true", help="write no tables")
    parser.add_argument(
        "--tables", action="store_true", help="write the tables of what is finished, run nothing"
    )
    parser.add_argument(
        "--data.root",
        dest="root",
        metavar="FOLDER",
        help="folder that relative paths of data start from",
    )
    options = parser.read(words)
    # Imported here, so that a mistake in the arguments is told at once.
    from jaxmlcl import studies

    if options.list:
        for name, (path, text) in studies.list_studies().items():
            print(f"{name}  ({path}): {text}")
        return
    if options.name is None:
        raise UserError("NAME comes first: jaxmlcl reproduce NAME, or jaxmlcl reproduce --list")
    if options.jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {options.jobs}")
    if options.root is not None:
        os.environ["JAXMLCL_DATA"] = os.path.abspath(options.root)
    path = studies.find_study(options.name)
    study = studies.load_study(path)
    name = studies.study_name(str(path))
    folder = options.folder or Path("runs") / "reproduce" / name
    if options.plan:
        for cell, told in studies.plan(study, folder, options.only).items():
            print(f"{cell}: {told}")
        return
    # A part of a study must not put "not run" over a whole one's figures.
    output = options.output or (
        folder / "results.md" if options.only else Path("docs") / "results.md"
    )
    if output.is_dir():
        raise UserError(f"{output}: is a folder; -o wants the name of a file")
    if not options.tables:
        if options.jobs > 1:
            words = ["--keep"] if options.keep else []
            studies.run_in_processes(path, study, folder, words, options.jobs, options.only)
        else:
            studies.run(study, folder, only=options.only, keep=options.keep, report=_tell)
    if not options.no_tables:
        if not studies.finished(study, folder, options.only):
            raise UserError(
                f"reproduce: nothing is finished in {folder}, so {output} is left as it is"
            )
        for file in studies.write(study, options.name, folder, output, options.only):
            print(f"written: {file}")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
