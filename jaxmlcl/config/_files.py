"""Configuration files: Python that builds an experiment, or the JSON of a run."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from jaxmlcl.config._json import from_json, to_json
from jaxmlcl.errors import ConfigError, UserError
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
        return from_json(_read(path), where=str(path))
    experiment = execute(path, "experiment")
    if not isinstance(experiment, Experiment):
        raise ConfigError(
            f"{path}: `experiment` is of type {type(experiment).__name__}, not an Experiment"
        )
    return from_json(to_json(experiment, where=str(path)), where=str(path))


def _read(path: Path) -> str:
    if path.is_dir():
        inside = path / "experiment.json"
        advice = f"; give {inside}" if inside.exists() else "; give a .py or .json file"
        raise ConfigError(f"{path}: is a folder, a configuration file is expected{advice}")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration{_near_files(path)}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text; save the file as UTF-8") from None


def _near_files(path: Path) -> str:
    """The names nearest to a missing file's, under the nearest folder that exists."""
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    found = (
        file for end in ("*.py", "*.json") for file in (*folder.glob(end), *folder.glob(f"*/{end}"))
    )
    names = {str(file.relative_to(folder)): file for file in sorted(found)}
    wanted = str(path.relative_to(folder))
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(str(names[name]) for name in near)}?"
    here = [str(file) for file in names.values() if file.parent == folder]
    return f"; {folder} holds {', '.join(here[:5])}" if here else ""


def execute(path: Path, wanted: str) -> Any:
    """What a Python file defines under a name; anything it raises becomes one line with its place.

    Args:
      path: the file.
      wanted: the name; a function of that name is called.

    Raises:
      ConfigError: no such file, an error in it, or nothing of that name.
    """
    text = _read(path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ConfigError(f"{path}, line {line}: holds a null byte; save the file as text")
    name = f"jaxmlcl_config_{path.stem}"
    module = types.ModuleType(name)
    module.__file__ = str(path)
    # Dataclasses that the file defines look their module up.
    sys.modules[name] = module
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
        found = getattr(module, wanted, None)
        if callable(found):
            found = found()
    except SyntaxError as error:
        raise ConfigError(f"{error.filename or path}, line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        place = f"{path}, line {lines[-1]}" if lines else str(path)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise ConfigError(f"{place}: {kind}{error}") from error
    if found is None:
        kind = _KINDS.get(wanted, "a value")
        raise ConfigError(f"{path}: defines no `{wanted}`; set it to {kind}")
    return found
