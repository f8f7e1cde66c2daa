"""Python files that are executed: configurations, studies, and classes of a user's own."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
import types
from pathlib import Path

from jaxmlcl.errors import ConfigError, UserError

CODE = "JAXMLCL_CODE"
"""Environment variable with files that define encoders, augmentations or schedules."""


def run_file(path: Path, wanted: str | None = None) -> object:
    """Execute a Python file; anything it raises becomes one line with its place.

    Args:
      path: the file.
      wanted: a name in it, the value of which is returned; a function of that name is called.

    Returns:
      The value, or None without one.

    Raises:
      ConfigError: no such file, or an error in it.
    """
    text = read_file(path)
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
        found = getattr(module, wanted, None) if wanted else None
        return found() if callable(found) else found
    except SyntaxError as error:
        raise ConfigError(f"{error.filename or path}, line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        place = f"{path}, line {lines[-1]}" if lines else str(path)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise ConfigError(f"{place}: {kind}{error}") from error


def run_code() -> bool:
    """Execute the files that JAXMLCL_CODE names, for the classes they define; False without any.

    Raises:
      ConfigError: no such file, or an error in it.
    """
    named = [name for name in os.environ.get(CODE, "").split(os.pathsep) if name]
    for name in named:
        run_file(Path(name))
    return bool(named)


def read_file(path: Path) -> str:
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
