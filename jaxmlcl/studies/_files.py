"""Where studies are, and how they are read: Python files with a `study`."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path
from typing import Any

import jaxmlcl
from jaxmlcl.config import execute
from jaxmlcl.errors import ConfigError


def study_folders() -> list[Path]:
    """Folders in which studies are sought: of the working directory, then the installed ones."""
    package = Path(jaxmlcl.__file__).parent
    places = (Path("configs"), package / "configs", package.parent / "configs")
    found: list[Path] = []
    for place in places:
        folder = place / "studies"
        if folder.is_dir() and folder.resolve() not in [one.resolve() for one in found]:
            found.append(folder)
    return found


def study_name(asked: str) -> str:
    """The name of a study that is asked for by its name or its file.

    Example:
      >>> study_name("configs/studies/my_birds.py")
      'my-birds'
    """
    return Path(asked).stem.replace("_", "-") if asked.endswith(".py") else asked


def list_studies() -> dict[str, tuple[Path, str]]:
    """Every study's name, with its file and the first line of its text."""
    studies: dict[str, tuple[Path, str]] = {}
    for folder in study_folders():
        for path in sorted(folder.glob("*.py")):
            name = study_name(str(path))
            if name not in studies:
                studies[name] = (path, _first_line(path))
    return studies


def find_study(name: str) -> Path:
    """The file of a named study; a path of a file stands for itself.

    Raises:
      ConfigError: there is no such study; the ones that exist are named.
    """
    if name.endswith(".py"):
        return Path(name)
    studies = list_studies()
    if name in studies:
        return studies[name][0]
    near = difflib.get_close_matches(name, studies, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(studies) or 'none'}"
    raise ConfigError(f'reproduce: no study "{name}"; {hint}')


def load_study(path: Path) -> Any:
    """Read a study's file.

    Raises:
      ConfigError: no such file, an error in it (with its line), or no `study` in it.
    """
    # Imported here: what they are made of asks this module for names.
    from jaxmlcl.studies._work import AnyStudy

    study = execute(path, "study")
    if not isinstance(study, AnyStudy):
        raise ConfigError(f"{path}: `study` is of type {type(study).__name__}, not a Study")
    return study


def _first_line(path: Path) -> str:
    try:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    except (OSError, SyntaxError, ValueError):
        return "(cannot be read)"
    return text.partition("\n")[0]
