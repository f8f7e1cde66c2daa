"""One way to plan, run and write every kind of study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from jaxmlcl.studies._curves import ConvergenceStudy, SensitivityStudy
from jaxmlcl.studies._enhancement import EnhancementStudy
from jaxmlcl.studies._runner import cells, run_study
from jaxmlcl.studies._study import Study
from jaxmlcl.studies._tables import write_tables

AnyStudy = Study | EnhancementStudy | SensitivityStudy | ConvergenceStudy


def plan(study: AnyStudy, folder: Path, only: Sequence[str] = ()) -> dict[str, str]:
    """The name of every cell, with what it will do.

    Raises:
      UserError: nothing is called like one of `only`.
    """
    if isinstance(study, Study):
        return {
            cell.name: f"{len(cell.method.trials)} trials, {len(cell.seeds)} seeds"
            for cell in cells(study, folder, only)
        }
    return study.plan(only)


def finished(study: AnyStudy, folder: Path, only: Sequence[str] = ()) -> bool:
    """Whether anything can be written of it."""
    if isinstance(study, Study):
        return any(cell.results() for cell in cells(study, folder, only))
    return study.finished(folder, only)


def run(
    study: AnyStudy,
    folder: Path,
    *,
    only: Sequence[str] = (),
    keep: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> None:
    """Run every cell that is not finished; `keep` concerns the networks of runs."""
    if isinstance(study, Study):
        run_study(study, folder, only=only, keep=keep, report=report)
    else:
        study.run(folder, only, report)


def write(
    study: AnyStudy, name: str, folder: Path, document: Path, only: Sequence[str] = ()
) -> list[Path]:
    """Write what is known of a study into its part of a Markdown file, and the files beside it."""
    if isinstance(study, Study):
        return write_tables(study, name, folder, document, only)
    return study.write(name, folder, document, only)
