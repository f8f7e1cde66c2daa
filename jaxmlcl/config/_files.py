"""Configuration files: Python that builds an experiment, or the JSON of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jaxmlcl.config._json import from_json, to_json
from jaxmlcl.config._python import read_file, run_file
from jaxmlcl.errors import ConfigError
from jaxmlcl.training.experiment import Experiment

_KINDS = {"experiment": "an Experiment", "study": "a Study"}


def load(path: str | os.PathLike[str]) -> Experiment:
    """The experiment of a configuration file, checked field by field.

    Args:
      path: a Python file with an `experiment`, or JSON as `to_json` writes it.

    Raises:
      ConfigError: no such file, an error in it (with its line), or a field of a wrong type.

    Example:
      >>> import tempfile
      >>> file = Path(tempfile.mkdtemp()) / "tiny.py"
      >>> _ = file.write_text('''
      ... from jaxmlcl.config import *
      ... experiment = Experiment(
      ...     "tiny", Data("digits:train"), {"bce": Stage(Classification(), steps(5))})
      ... ''')
      >>> load(file).stages["bce"].batch_size
      64
    """
    path = Path(path)
    if path.suffix == ".json":
        return from_json(read_file(path), where=str(path))
    experiment = execute(path, "experiment")
    if not isinstance(experiment, Experiment):
        raise ConfigError(
            f"{path}: `experiment` is of type {type(experiment).__name__}, not an Experiment"
        )
    return from_json(to_json(experiment, where=str(path)), where=str(path))


def execute(path: Path, wanted: str) -> Any:
    """What a Python file defines under a name; anything it raises becomes one line with its place.

    Args:
      path: the file.
      wanted: the name; a function of that name is called.

    Raises:
      ConfigError: no such file, an error in it, or nothing of that name.
    """
    found = run_file(path, wanted)
    if found is None:
        kind = _KINDS.get(wanted, "a value")
        raise ConfigError(f"{path}: defines no `{wanted}`; set it to {kind}")
    return found
