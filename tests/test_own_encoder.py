"""A user's own encoder, as docs/configuration.md shows it, from training to a run's folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "configuration.md"


def jaxmlcl(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jaxmlcl", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    block = re.search(r"```python\n(# small\.py\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    (tmp_path / "small.py").write_text(block[1])
    return tmp_path


def test_the_class_is_read_from_the_file_that_is_named(configuration: Path) -> None:
    own = jaxmlcl(
        *("config", "small.py", "--stages.bce.objective.encoder.width", "24", "--json"),
        folder=configuration,
    )
    assert own.returncode == 0, own.stderr
    (configuration / "experiment.json").write_text(own.stdout)
    without = jaxmlcl("config", "experiment.json", folder=configuration)
    assert without.returncode == 2
    assert without.stderr.strip().count("\n") == 0
    assert 'unknown encoder type "Small"' in without.stderr
    assert "JAXMLCL_CODE=FILE.py" in without.stderr
    named = jaxmlcl("config", "experiment.json", folder=configuration, JAXMLCL_CODE="small.py")
    assert named.returncode == 0, named.stderr
    assert re.search(r"encoder\.width\s+= 24", named.stdout)
    (configuration / "broken.py").write_text("\n1 / 0\n")
    broken = jaxmlcl("config", "experiment.json", folder=configuration, JAXMLCL_CODE="broken.py")
    assert broken.returncode == 2
    assert "broken.py, line 2: ZeroDivisionError" in broken.stderr


def test_it_cannot_have_the_name_of_one_of_ours(configuration: Path) -> None:
    """A saved run would find ours, and score with it."""
    text = (configuration / "small.py").read_text().replace("Small", "ResNet")
    (configuration / "small.py").write_text(text)
    refused = jaxmlcl("config", "small.py", folder=configuration)
    assert refused.returncode == 2
    assert "the class ResNet of your own has the name of one of jaxmlcl" in refused.stderr
    assert "stages.bce.objective.encoder" in refused.stderr


@pytest.mark.slow
def test_it_is_trained_evaluated_and_applied(configuration: Path) -> None:
    named = {"JAXMLCL_CODE": "small.py"}
    for words, environment in (
        (("train", "small.py"), {}),
        (("evaluate", "runs/small"), named),
        (("embed", "runs/small", "-o", "features.npz"), named),
        (("report", "runs/small"), {}),
    ):
        done = jaxmlcl(*words, folder=configuration, **environment)
        assert done.returncode == 0, done.stderr
    assert (
        "representation [64, 16]"
        in jaxmlcl(
            *("embed", "runs/small", "-o", "again.npz"), folder=configuration, **named
        ).stdout
    )
    assert (configuration / "runs" / "small" / "report.html").exists()
