"""The benchmarks run, their peers compute the same, and their files hold what their tables show."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.loss import AIMED_AT, BEGIN, END, PAGE, aims, figures_of, markdown, with_figures
from jaxmlcl.bench import (
    EAGER,
    FLOOR_TERMS,
    JAX_FORMS,
    OURS,
    TORCH_FORMS,
    FormFigures,
    LossFigures,
    LossProblem,
)
from tests.conftest import ROOT


@pytest.mark.slow
def test_vectors(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    short = ["--repetitions", "1", "--steps", "20", "--peer-steps", "2", "--workers", "0"]
    words = ["-m", "benchmarks.vectors", "--only", "loop", "cgmvae", *short, "--json", str(file)]
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
    for name in ("yeast", "delicious"):
        found = report["cgmvae"][name]["steps_per_second"]
        assert set(found) == {"jaxmlcl", *(("torch",) if has_peer else ())}
        assert all(rate > 0 for [rate] in found.values())
    if has_peer:
        assert set(report["checks"]) == {
            *("loss at batch 64", "loss at batch 256", "parameters"),
            *("C-GMVAE, yeast", "C-GMVAE, delicious"),
        }
        ratio = report["pretraining"]["times_as_fast"]["torch step"]["64"][0]
        assert ratio == rates["jaxmlcl loop"]["64"][0] / rates["torch step"]["64"][0]


@pytest.mark.slow
def test_input(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV (extra images) is not installed")
    file = tmp_path / "input.json"
    words = [
        "-m",
        "benchmarks.input",
        "--repetitions",
        "1",
        "--seconds",
        "0.2",
        "--json",
        str(file),
    ]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(file.read_text())
    has_peer = importlib.util.find_spec("torch") is not None
    assert ("pip install" in done.stdout) is not has_peer
    for title, rates in report["rates"].items():
        assert set(rates) == {"jaxmlcl", *(("torch",) if has_peer else ())}
        assert all(rate > 0 for [rate] in rates.values())
        if has_peer:
            assert report["times_as_fast"][title] == [rates["jaxmlcl"][0] / rates["torch"][0]]
    assert 0 < report["worker_mb"]["own"] < report["worker_mb"]["resident"] < 300


@pytest.mark.slow
def test_train_step(tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    sizes = ["--arch", "resnet18", "--batch", "8", "--size", "64", "--queue", "64"]
    short = ["--repetitions", "1", "--seconds", "0.1", "--peers", "eager", "--json", str(file)]
    words = ["-m", "benchmarks.train_step", *sizes, *short]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(file.read_text())
    has_peer = importlib.util.find_spec("torch") is not None
    assert ("pip install" in done.stdout) is not has_peer
    ours = ["jaxmlcl", "jaxmlcl, SimCLR"]
    assert list(report["sides"]) == [*ours, *(["torch eager"] if has_peer else [])]
    for found in report["sides"].values():
        assert found["rates"][0] > 0
        assert found["peak"] > found["packages"] > 0
    assert len(report["checks"]) == (3 if has_peer else 0)
    # One image of 64 pixels: 225.95 MFLOP forward, counting of each kernel what lies inside the
    # image (at 2 x 2 positions that is 16 of 36 products). Two encoders forward and one gradient
    # make four times that, less the 18.25 of the stem, whose pixels have no gradient; head, loss
    # and what is no product come on top.
    products = 4 * 225_949_184 - 18_249_216
    assert products < report["flop_per_image"] < 1.02 * products
    assert "floor:" in done.stdout


@pytest.mark.slow
def test_convolution(tmp_path: Path) -> None:
    file = tmp_path / "convolution.json"
    words = ["-m", "benchmarks.convolution", "--quick", "--repetitions", "1", "--json", str(file)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(file.read_text())
    layers = report["basic"]["layers"]
    # Stem, two blocks of two, of which the second has a shortcut.
    assert sum(layer["times"] for layer in layers.values()) == 6
    gflop = layers["8 x 8 x 4, 1 x 1 / 2, 8"]["gflop"]
    assert gflop == pytest.approx(3 * 2e-9 * 2 * 4 * 4 * 4 * 8)
    assert all(layer["takes"] in ("patches", "XLA") for layer in layers.values())
    assert report["bottleneck"]["encoder"]["ratios"][0] > 0
    assert "XLA / convolve" in done.stdout


@pytest.mark.slow
def test_loss(tmp_path: Path) -> None:
    file = tmp_path / "loss.json"
    command = [sys.executable, "-m", "benchmarks.loss", "--quick", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(file.read_text())
    assert report["disagreements"] == []
    first, second = (figures_of(entry) for entry in report["shapes"])
    has_peer = importlib.util.find_spec("torch") is not None
    assert ("pip install" in done.stdout) is not has_peer
    names = [*JAX_FORMS, *(TORCH_FORMS if has_peer else ())]
    assert [form.name for form in first.forms if form.seconds] == names
    assert max(max(off) for off in first.deviations.values()) < 1e-5
    assert [form.name for form in second.forms if form.counted] == names[1:]
    assert set(report["labels"]["peaks"]) == set(names)
    assert all(len(values) == 2 for values in report["keys"]["temporaries"].values())
    assert [entry["keys"] for entry in report["small"]] == [16, 64]
    # The picture says what the table says: one polyline or mark for every form.
    assert all(name in file.with_suffix(".svg").read_text() for name in names)
    again = subprocess.run(
        [*command[:3], "--read", str(file), "--json", str(tmp_path / "again.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert markdown(report) in again.stdout
    assert markdown(report) in done.stdout


def test_figures_go_between_their_marks() -> None:
    page = PAGE.read_text(encoding="utf-8")
    written = with_figures(page, "| a |")
    assert f"{BEGIN}\n\n| a |\n\n{END}" in written
    assert with_figures(written, "| a |") == written
    with pytest.raises(SystemExit, match="must hold the lines"):
        with_figures("no marks", "| a |")


def test_aims_are_judged() -> None:
    problem = LossProblem(*AIMED_AT, cardinality=10)
    ours = FormFigures(OURS, [0.16, 0.15, 0.17], temporaries=5_000_000)
    eager = FormFigures(EAGER, [4.0] * 3, [25.0, 27.0, 29.0])
    floor = {term: [0.05] * 3 for term in FLOOR_TERMS}
    figures = LossFigures(problem, {}, [ours, eager], floor, {})
    found = {aim["what"]: (aim["reached"], aim["met"]) for aim in aims([figures])}
    assert found["jaxmlcl / floor"] == (pytest.approx(0.16 / 0.15), True)
    assert found["PyTorch eager / jaxmlcl"] == (27.0, False)
    assert found["temporaries, MB"] == (5.0, True)
