"""`jaxmlcl train CONFIG`: train an experiment, or continue it from its last checkpoint."""

from __future__ import annotations

import dataclasses
import os
import shlex
from typing import TYPE_CHECKING, NamedTuple

from jaxmlcl.cli.processes import ABOUT, joined, take
from jaxmlcl.errors import UserError

if TYPE_CHECKING:
    from jaxmlcl.config import Data, Experiment

_ABOUT = """\
Every field of the experiment is a flag. A DURATION is text such as "500 steps", "10 epochs",
"1e6 examples" or "flops of STAGE + STAGE". Lists take several values. --debug shows tracebacks.
"""

_TRAIN = """\
Train the experiment of CONFIG, a Python file or a run's experiment.json, or continue it: a run
that was stopped goes on from its last checkpoint when the same command is given again. The run is
written to --workdir FOLDER, runs/NAME by default.

"""

_GENERAL = """\
The fields below are those of one MulSupCon stage called STAGE. Objective, encoder, schedule and
augmentation depend on CONFIG: `jaxmlcl {command} CONFIG --help` lists its fields and values.

"""


class Resolved(NamedTuple):
    """An experiment and where it comes from."""

    experiment: Experiment
    path: str
    flags: list[str]


def run(words: list[str]) -> None:
    """Train, then say where the run is and what can be done with it."""
    settings, words = take(words)
    resolved = resolve("train", words, f"{_TRAIN}{ABOUT}\n")
    if resolved is None:
        return
    experiment = with_absolute_root(resolved.experiment)
    use_precision(experiment)
    # Imported here, so that a mistake in the configuration is told at once.
    from jaxmlcl.cli.console import make_console
    from jaxmlcl.config import to_json
    from jaxmlcl.training import trainer

    with joined(settings) as group:
        console = make_console() if group.primary else None
        workdir = trainer.train(experiment, to_json(experiment), console=console)
    if not group.primary:
        return
    place = shlex.quote(str(workdir))
    print(f"run: {workdir}")
    if any(stage.objective.gives_scores for stage in experiment.stages.values()):
        print(f"next: jaxmlcl evaluate {place}")
    print(f"next: jaxmlcl report {place}")


def resolve(command: str, words: list[str], about: str) -> Resolved | None:
    """The experiment that CONFIG and flags describe; None if help was wanted and is printed.

    Raises:
      UserError: CONFIG is missing, or something in it or in the flags is wrong.
    """
    rest = [word for word in words if word not in ("-h", "--help")]
    wants_help = len(rest) < len(words)
    if (not rest or rest[0].startswith("-")) and not wants_help:
        raise UserError(f"CONFIG comes first: jaxmlcl {command} CONFIG [--FIELD VALUE ...]")
    from jaxmlcl import config

    if not rest or rest[0].startswith("-"):
        stage = config.Stage(config.MulSupCon(), config.epochs(1))
        example = config.Experiment("NAME", config.Data("SOURCE"), {"STAGE": stage})
        text = about + _GENERAL.format(command=command) + _ABOUT
        print(config.help_text(example, f"jaxmlcl {command} CONFIG", text), end="")
        return None
    path, *flags = rest
    experiment = config.load(path)
    if wants_help:
        print(config.help_text(experiment, f"jaxmlcl {command} {path}", about + _ABOUT), end="")
        return None
    return Resolved(config.override(experiment, flags), path, flags)


def with_absolute_root(experiment: Experiment) -> Experiment:
    """The folder of the data as it is now, so that the run can be repeated from anywhere."""

    def absolute(data: Data, root: str | None) -> Data:
        return dataclasses.replace(data, root=os.path.abspath(root) if root else None)

    stages = {
        name: dataclasses.replace(stage, data=absolute(stage.data, stage.data.root))
        if stage.data
        else stage
        for name, stage in experiment.stages.items()
    }
    data = absolute(experiment.data, experiment.data.root or os.environ.get("JAXMLCL_DATA"))
    return dataclasses.replace(experiment, data=data, stages=stages)


def use_precision(experiment: Experiment) -> None:
    """Allow 64-bit arrays if the experiment computes in them; before any array is made."""
    if experiment.precision == "float64":
        import jax

        jax.config.update("jax_enable_x64", True)
