"""The walls of the house: which room may import which, who prints, and what an import costs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaxmlcl

PACKAGE = Path(jaxmlcl.__file__).parent

# The floor of every room; docs/architecture.md has the picture. An import stays in its room or
# goes to a lower floor. `__init__` is the package itself, which holds the version.
FLOORS = {
    "__init__": 0,
    "errors": 0,
    "io": 0,
    "layout": 0,
    "random": 0,
    "distributed": 1,
    "losses": 1,
    "queue": 1,
    "models": 1,
    "neighbours": 1,
    "predictor": 1,
    "data": 2,
    "evaluation": 2,
    "sharding": 2,
    "bench": 3,
    "training": 3,
    "methods": 4,
    "baselines": 4,
    "enhancement": 4,
    "config": 5,
    "report": 5,
    "studies": 6,
    "cli": 7,
    "configs": 7,
    "__main__": 8,
    "estimators": 8,
}

# All that rooms of arrays and pytrees may use beside the standard library and themselves.
ARRAY_ROOMS = {
    "losses": {"jax", "numpy"},
    "queue": {"jax", "numpy"},
    "neighbours": {"jax", "numpy"},
    "evaluation": {"numpy", "scipy"},
}

# Libraries that only these rooms may know, so that each can be exchanged in one place.
HOMES = {
    "PIL": {"data"},
    "absl": {"data"},
    "arff": {"data"},
    "array_record": {"data"},
    "cattrs": {"config"},
    "cv2": {"data"},
    "flax": {"models", "methods"},
    "grain": {"data"},
    "h5py": {"data"},
    "jinja2": {"report"},
    "matplotlib": {"report"},
    "msgspec": {"data"},
    "optax": {"training", "enhancement"},
    "orbax": {"training"},
    "safetensors": {"models"},
    "simplejpeg": {"data"},
    "sklearn": {"baselines", "data", "enhancement", "estimators", "report"},
    "tensorboardX": {"training"},
    "tensorflow_datasets": {"data"},
    "threadpoolctl": {"baselines"},
    "torch": {"bench"},
    "tqdm": {"cli"},
    "tyro": {"config"},
}

SPEAKERS = {"cli", "__main__"}

# What a program that only wants losses, the queue or the measures must not pay for.
HEAVY = [*HOMES, "scipy", "tensorflow", "tensorflow_datasets"]


def files() -> list[Path]:
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.parts[0] if len(path.parts) > 1 else path.stem


def imports(text: str, path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, top-level module and, within jaxmlcl, room of every import, also within functions."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = ("jaxmlcl", *path.parts)[: -node.level]
                base = ".".join((*package, *filter(None, [base])))
            names = [f"{base}.{alias.name}" for alias in node.names]
            # `from jaxmlcl import queue` names a room, `from jaxmlcl import __version__` none.
            modules = names if base == "jaxmlcl" else [base]
        else:
            continue
        for module in modules:
            top, *rest = module.split(".")
            room = rest[0] if rest and rest[0] in FLOORS else "__init__"
            yield node.lineno, top, room if top == "jaxmlcl" else ""


def broken_walls(text: str, path: Path) -> list[str]:
    room = room_of(path)
    broken = []
    for line, module, target in imports(text, path):
        place = f"{path}:{line}"
        if module == "jaxmlcl":
            if target != room and FLOORS[target] >= FLOORS[room]:
                broken.append(f"{place}: {room} (floor {FLOORS[room]}) imports {target} above it")
            if target != room and room in ARRAY_ROOMS:
                broken.append(f"{place}: {room} stands by itself and imports {target}")
        elif module not in sys.stdlib_module_names:
            if room not in HOMES.get(module, {room}):
                broken.append(f"{place}: {module} belongs to {HOMES[module]}, not to {room}")
            if module not in ARRAY_ROOMS.get(room, {module}):
                broken.append(f"{place}: {room} takes arrays only and imports {module}")
    return broken


def speech(text: str) -> list[int]:
    """Lines that print or end the program."""
    lines = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.exit", "exit"):
            lines.append(node.lineno)
        if isinstance(node, ast.Raise) and node.exc and "SystemExit" in ast.unparse(node.exc):
            lines.append(node.lineno)
    return sorted(lines)


def test_every_room_has_a_floor() -> None:
    # The project's configurations are a room of the package in the wheel only.
    assert {room_of(path) for path in files()} | {"configs"} == set(FLOORS)


@pytest.mark.parametrize("path", files(), ids=str)
def test_imports_point_down(path: Path) -> None:
    assert broken_walls((PACKAGE / path).read_text(), path) == []


def test_only_the_command_line_prints_and_exits() -> None:
    found = {
        f"{path}:{line}"
        for path in files()
        if room_of(path) not in SPEAKERS
        for line in speech((PACKAGE / path).read_text())
    }
    assert found == set()


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("losses/_x.py", "from jaxmlcl.config import load", "imports config above it"),
        ("losses/_x.py", "from jaxmlcl.errors import UserError", "stands by itself"),
        ("losses/_x.py", "def f():\n    import flax.linen", "flax belongs to"),
        ("queue.py", "import optax", "optax belongs to"),
        ("evaluation/_x.py", "import jax", "takes arrays only and imports jax"),
        ("training/step.py", "from jaxmlcl import methods", "imports methods above it"),
        ("training/step.py", "from ..methods.mulsupcon import MulSupCon", "imports methods above"),
        ("data/source.py", "from jaxmlcl.sharding import BATCH", "imports sharding above it"),
        ("report/_page.py", "import tyro", "tyro belongs to"),
    ],
)
def test_a_broken_wall_is_found(path: str, text: str, message: str) -> None:
    assert message in " ".join(broken_walls(text, Path(path)))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("losses/_x.py", "from ._common import dot\nimport numpy as np\nimport math"),
        ("methods/x.py", "from jaxmlcl import queue\nfrom ..training.objective import Aux"),
        ("training/_manifest.py", "import jaxmlcl\nfrom jaxmlcl import __version__"),
    ],
)
def test_a_whole_wall_is_left_alone(path: str, text: str) -> None:
    assert broken_walls(text, Path(path)) == []


def test_speech_is_found() -> None:
    assert speech("import sys\nprint(1)\nsys.exit(2)\nraise SystemExit(3)\n") == [2, 3, 4]
    assert speech("def f():\n    '''>>> print(1)'''\n    except_print = 1\n") == []


def test_light_imports_are_light_and_start_no_device() -> None:
    # The number of devices can only be set before any is started, which the last lines confirm.
    program = f"""
import sys
import jaxmlcl, jaxmlcl.losses, jaxmlcl.queue, jaxmlcl.evaluation
assert not (found := sorted(set({HEAVY!r}) & set(sys.modules))), f"imported: {{found}}"
import jax
jax.config.update("jax_num_cpu_devices", 3)
assert len(jax.devices("cpu")) == 3
try:
    jax.config.update("jax_num_cpu_devices", 4)
except RuntimeError:
    print("light")
"""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(PACKAGE.parent),
        "PYTHONSAFEPATH": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "light"), done.stderr
