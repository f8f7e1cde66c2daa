"""The benchmark runs, its peer computes the same, and its file holds what its table shows."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_vectors(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    short = ["--repetitions", "1", "--steps", "20", "--peer-steps", "2", "--workers", "0"]
    words = ["-m", "benchmarks.vectors", "--only", "loop", *short, "--json", str(file)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(file.read_text())
    rates = report["pretraining"]["steps_per_second"]
    has_peer = importlib.util.find_spec("torch") is not None
    assert set(rates) == {
        *("jaxmlcl loop", "jaxmlcl step"),
        *(("torch loop", "torch step") if has_peer else ()),
    }
    assert all(rate > 0 for of_name in rates.values() for [rate] in of_name.values())
    assert ("pip install" in done.stdout) is not has_peer
    if has_peer:
        assert set(report["checks"]) == {"loss at batch 64", "loss at batch 256", "parameters"}
        ratio = report["pretraining"]["times_as_fast"]["torch step"]["64"][0]
        assert ratio == rates["jaxmlcl loop"]["64"][0] / rates["torch step"]["64"][0]
