"""Tries an installed wheel, in an environment without pytest: `python wheel.py CLONE`.

Run it in an empty folder, so that nothing is imported from the sources.
"""

from __future__ import annotations

import filecmp
import importlib.util
import subprocess
import sys
from pathlib import Path

import jaxmlcl

CLONE = Path(sys.argv[1])
INSTALLED = Path(jaxmlcl.__file__).parent
COMMAND = str(Path(sys.executable).with_name("jaxmlcl"))
TABLE = "a,b,bird,sea\n" + "".join(
    f"{i / 40},{(i * 7) % 40 / 40},{int(i > 20)},{int((i * 7) % 40 > 15)}\n" for i in range(40)
)

CONFIG = """
from jaxmlcl.config import *

encoder = ResNet(depths=(1,), channels=2, stem="small")
experiment = Experiment(
    "small",
    Data("digits:train?size=32", "digits:validation?size=40", "digits:test?size=24", inputs="unit"),
    stages={
        "pretrain": Stage(MulSupCon(encoder=encoder, queue_capacity=16), steps(2), batch_size=8),
        "bce": Stage(Classification(encoder=encoder), steps(2), batch_size=8),
    },
    workdir="run",
)
"""


def run(*words: str, code: int = 0) -> str:
    """What a command prints; it must end with `code`, and without a traceback."""
    done = subprocess.run([COMMAND, *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def files(folder: Path) -> set[str]:
    """Every file of a folder, but what Python and macOS leave behind."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {
        str(path) for path in paths if "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


def main() -> None:
    """Everything there, and the first commands of a user."""
    assert CLONE not in INSTALLED.parents or ".venv-wheel" in INSTALLED.parts, INSTALLED
    assert importlib.util.find_spec("pytest") is None
    for there, here in ((CLONE / "jaxmlcl", INSTALLED), (CLONE / "configs", INSTALLED / "configs")):
        missing = files(there) - files(here)
        assert not missing, f"not in the wheel: {sorted(missing)}"
        _, differ, errors = filecmp.cmpfiles(there, here, files(there), shallow=False)
        assert differ + errors == [], f"not as in the sources: {differ + errors}"
    assert jaxmlcl.__version__ in run("--version")
    assert "mulsupcon-vectors" in run("reproduce", "--list")
    Path("small.py").write_text(CONFIG)
    run("train", "small.py")
    run("evaluate", "run")
    run("report", "run")
    assert Path("run/report.html").stat().st_size > 10_000
    Path("birds.csv").write_text(TABLE)
    run("data", "inspect", "birds.csv?labels=bird,sea")
    run("enhance", "birds.csv?labels=bird,sea", "--method", "lp", "-o", "birds.npz")
    told = run("train", "nothing.py", code=2)
    assert told.count("\n") == 1, told
    print("the wheel is whole and works by itself")


if __name__ == "__main__":
    main()
