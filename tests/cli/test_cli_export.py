"""`export` on a real, tiny run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmlcl.data import open_source
from jaxmlcl.predictor import load_predictor

pytest.importorskip("flatbuffers", reason="flatbuffers (extra export) is not installed")

Run = Callable[..., Any]


def test_export_writes_what_predict_gives(run: Run, trained: Path, tmp_path: Path) -> None:
    workdir, path = shutil.copytree(trained, tmp_path / "run"), tmp_path / "new" / "bce.zip"
    (workdir / "thresholds.json").unlink(missing_ok=True)
    scores = tmp_path / "scores.npz"
    assert run("predict", workdir, "digits:test?size=24", "-o", scores).code == 0
    code, out, err = run("export", workdir, "-o", path)
    assert (code, err) == (0, "")
    assert out == (
        "bce, step 2: uint8 [b, 48, 48, 1] to scores [b, 10], without thresholds, for cpu, cuda, "
        f"tpu\nwritten: {path}\n"
    )
    assert os.listdir(path.parent) == ["bce.zip"]
    shutil.rmtree(workdir)
    predictor = load_predictor(path)
    with np.load(scores) as expected:
        assert list(predictor.label_names) == expected["label_names"].tolist()
        found = predictor.scores(open_source("digits:test?size=24").arrays()["inputs"])
        np.testing.assert_allclose(found, expected["scores"], rtol=1e-5, atol=1e-6)


def test_export_takes_stage_and_platforms(run: Run, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "probe.zip"
    code, out, _ = run("export", trained, "-o", path, "--stage", "probe", "--platforms", "rocm,cpu")
    assert code == 0
    assert out.startswith("probe, step 2: uint8 [b, 48, 48, 1] to scores [b, 10], ")
    assert out.endswith(f", for rocm, cpu\nwritten: {path}\n")
    assert load_predictor(path).description.platforms == ("rocm", "cpu")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["WORK", "-o", "a.pkl"], "a.pkl: its form is told by its ending: .zip, .safetensors"),
        (["WORK"], "the following arguments are required: -o"),
        (["WORK", "-o", "folder.zip"], "folder.zip: is a folder"),
        (["WORK", "-o", "file.txt/a.zip", "--platforms", "cpu"], "file.txt: Not a directory"),
        (["WORK", "-o", "a.zip", "--stage", "pretrain"], '"pretrain" is no stage that gives label'),
        (["WORK", "-o", "a.zip", "--platforms", "cpu,gpu"], 'platforms: "gpu" is none of cpu, cu'),
        (["WORK", "-o", "a.zip", "--platform", "cpu"], "did you mean --platforms?"),
        (["WORK", "-o", "a.safetensors", "--platforms", "cpu"], "--platforms belongs to a predict"),
        (["WORK", "-o", "a.safetensors", "--stage", "x"], '"x" is no stage of this run; there are'),
        # Pretraining is opened; its encoder, with a small stem, is not one of torchvision's.
        (["WORK", "-o", "a.safetensors", "--stage", "pretrain"], "torchvision has no such network"),
        (["nowhere", "-o", "a.zip"], "nowhere is not a run: it has no experiment.json"),
    ],
)
def test_export_refuses_in_one_line_and_writes_nothing(
    run: Run,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "file.txt").touch()
    code, out, err = run("export", *(str(trained) if word == "WORK" else word for word in words))
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert sorted(os.listdir()) == ["file.txt", "folder.zip"]
