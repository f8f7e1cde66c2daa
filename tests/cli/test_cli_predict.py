"""`predict` and `embed` on real, tiny runs."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxmlcl.cli import main
from jaxmlcl.data import open_source
from tests.conftest import ROOT

Run = Callable[..., Any]

LABELS = ["sea", "is, say, sky", 'the "moon"']
FEATURES = [f"f {i}" for i in range(5)]
CONFIG = """
from jaxmlcl.config import *

encoder = MLP((8,))
experiment = Experiment(
    "birds",
    Data("train.csv?id=nr", "validation.csv?id=nr", "test.csv?id=nr"),
    {
        "pretrain": Stage(
            MulSupCon(encoder=encoder, head=Projection(width=4), queue_capacity=16),
            steps(4),
            batch_size=8,
        ),
        "bce": Stage(Classification(encoder=encoder), steps(30), batch_size=8),
    },
)
"""


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run on CSV files, evaluated, and then without the folder of its data."""
    folder = tmp_path_factory.mktemp("birds")
    rng = np.random.default_rng(0)
    (folder / "data").mkdir()
    for split, rows in (("train", 60), ("validation", 40), ("test", 30)):
        x = rng.normal(size=(rows, 5)).astype(np.float32)
        y = (x[:, :3] > 0.3).astype(int)
        cells = [[i + 100, *y[i], *map(float, x[i])] for i in range(rows)]
        write_csv(folder / "data" / f"{split}.csv", ["nr", *LABELS, *FEATURES], cells)
        (folder / "data" / f"{split}.labels.json").write_text(json.dumps(LABELS))
    (folder / "birds.py").write_text(CONFIG)
    workdir = folder / "run"
    flags = ["--workdir", str(workdir), "--data.root", str(folder / "data")]
    assert main(["train", str(folder / "birds.py"), *flags]) == 0
    assert main(["evaluate", str(workdir)]) == 0
    os.rename(folder / "data", folder / "elsewhere")
    with np.load(workdir / "evaluation" / "bce-test.npz") as file:
        scores, ids = file["scores"], file["ids"]
    return SimpleNamespace(
        workdir=workdir, test=folder / "elsewhere" / "test.csv", x=x, scores=scores, ids=ids
    )


def table(text: str) -> tuple[list[str], list[list[str]]]:
    header, *rows = csv.reader(io.StringIO(text))
    return header, rows


def test_predict_writes_the_scores_of_evaluation(
    run: Run, birds: SimpleNamespace, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "scores.csv"
    code, out, err = run("predict", birds.workdir, birds.test, "--id", "nr", "-o", path)
    assert (code, err) == (0, "")
    assert out == f"bce, step 30: 30 rows, 3 labels\nwritten: {path}\n"
    header, rows = table(path.read_text())
    assert header == ["id", *LABELS]
    assert [int(row[0]) for row in rows] == birds.ids.tolist() == list(range(100, 130))
    assert (np.array([row[1:] for row in rows], np.float32) == birds.scores).all()
    assert os.listdir(path.parent) == ["scores.csv"]


def test_predict_of_every_kind_of_input_agrees(
    run: Run, birds: SimpleNamespace, tmp_path: Path
) -> None:
    order = [3, 1, 4, 0, 2]
    write_csv(
        tmp_path / "plain.csv",
        ["id", *(FEATURES[j] for j in order)],
        [[f"bird, {i}", *map(float, row[order])] for i, row in enumerate(birds.x)],
    )
    np.savez(tmp_path / "x.npz", inputs=birds.x)
    np.save(tmp_path / "x.npy", birds.x)
    for source in (
        *(tmp_path / name for name in ("plain.csv", "x.npz", "x.npy")),
        f"{birds.test}?id=nr",
    ):
        assert run("predict", birds.workdir, source, "-o", tmp_path / "out.npz").code == 0
        with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
            assert (found["scores"] == birds.scores).all()
            assert found["label_names"].tolist() == LABELS
    code, out, _ = run("predict", birds.workdir, tmp_path / "plain.csv", "-o", "-")
    assert code == 0
    header, rows = table(out)
    assert header == ["id", *LABELS]
    assert [row[0] for row in rows] == [f"bird, {i}" for i in range(30)]


def test_predict_reads_standard_input_and_writes_standard_output(
    run: Run, birds: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = SimpleNamespace(buffer=io.BytesIO(birds.test.read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    code, out, err = run("predict", birds.workdir, "-", "-o", "-", "--labels")
    assert (code, err) == (0, "")
    header, rows = table(out)
    assert header == ["id", *LABELS, *(f"predicted:{name}" for name in LABELS)]
    assert [row[0] for row in rows] == [str(i) for i in range(30)]
    assert (np.array([row[1:4] for row in rows], np.float32) == birds.scores).all()


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ([], "all"),
        (["--threshold", "per-all"], "all"),
        (["--threshold", "per-label"], "label"),
        (["--threshold", "0.25"], 0.25),
        (["--top", "2"], "top"),
    ],
)
def test_labels_are_predicted_by_a_rule(
    run: Run, birds: SimpleNamespace, tmp_path: Path, flags: list[str], rule: Any
) -> None:
    path = tmp_path / "out.jsonl"
    assert run("predict", birds.workdir, birds.test, "-o", path, *flags).code == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    known = json.loads((birds.workdir / "thresholds.json").read_text())["bce"]
    if rule == "label":
        thresholds = [known["label"][name] for name in LABELS]
    else:
        thresholds = [known["all"] if rule == "all" else rule] * 3
    for row, values in zip(rows, birds.scores, strict=True):
        best = np.argsort(-values)
        wanted = [LABELS[j] for j in best]
        if rule == "top":
            wanted = wanted[:2]
        else:
            wanted = [LABELS[j] for j in best if values[j] >= np.float32(thresholds[j])]
        assert row["labels"] == wanted
        assert np.array(list(row["scores"].values()), np.float32).tolist() == values.tolist()


def test_predict_needs_no_thresholds_for_scores(
    run: Run, birds: SimpleNamespace, tmp_path: Path
) -> None:
    workdir = shutil.copytree(birds.workdir, tmp_path / "run")
    (workdir / "thresholds.json").unlink()
    assert run("predict", workdir, birds.test, "-o", tmp_path / "a.csv").code == 0
    assert not (workdir / "thresholds.json").exists()
    code, _, err = run("predict", workdir, birds.test, "-o", tmp_path / "b.csv", "--labels")
    assert code == 2
    assert "no thresholds are remembered, and there are no validation rows" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "b.csv").exists()
    words = ("--labels", "--data.root", birds.test.parent)
    assert run("predict", workdir, birds.test, "-o", tmp_path / "b.csv", *words).code == 0
    assert (workdir / "thresholds.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["WORK", "narrow.npy", "-o", "a.csv"], "narrow.npy: 4 features, but the run was trained"),
        (["WORK", "bare.csv", "-o", "a.csv"], "3 features, but the run was trained on 5: no colu"),
        (["WORK", "nan.npy", "-o", "a.csv"], "nan.npy, row 2 (counted from 0), feature 'f 1': na"),
        (["WORK", "gone.csv", "-o", "a.csv"], "gone.csv: no such file; tried "),
        (["WORK", "nan.npy", "-o", "a.txt"], "a.txt: its form is told by its ending: .csv, .json"),
        (["WORK", "nan.npy", "-o", "nan.npz/a.csv"], "nan.npz: Not a directory; "),
        (["WORK", "bare.csv", "-o", "bare.csv"], "bare.csv: is INPUT itself; write to another"),
        (["WORK", "nan.npy", "-o", "folder.csv"], "folder.csv: is a folder"),
        (["WORK", "nan.npy"], "the following arguments are required: -o"),
        (["WORK", "nan.npy", "-o", "-", "--top", "4"], "argument --top: 4 is not from 1 to 3"),
        (["WORK", "nan.npy", "-o", "-", "--threshold", "per-lab"], '"per-lab" is not per-all, pe'),
        (["WORK", "nan.npy", "-o", "-", "--threshold", "1", "--top", "1"], "exclude each other"),
        (["WORK", "nan.npy", "-o", "-", "--batch", "0"], "argument --batch: 0 is not at least 1"),
        (["WORK", "nan.npy", "-o", "-", "--stage", "pretrain"], '"pretrain" is no stage that giv'),
        (["WORK", "nan.npy", "-o", "-", "--id", "f 1"], "an id column belongs to CSV"),
        (["nowhere", "nan.npy", "-o", "-"], "nowhere is not a run: it has no experiment.json"),
    ],
)
def test_predict_refuses_in_one_line_and_writes_nothing(
    run: Run,
    birds: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    holes = birds.x.copy()
    holes[2, 1] = np.nan
    np.save("nan.npy", holes)
    np.savez("nan.npz", holes)
    np.save("narrow.npy", birds.x[:, :4])
    write_csv(tmp_path / "bare.csv", ["nr", "f 1", "f 3"], [[1, 0.5, 0.5]])
    (tmp_path / "folder.csv").mkdir()
    before = sorted(os.listdir())
    code, out, err = run("predict", *(str(birds.workdir) if w == "WORK" else w for w in words))
    assert code == 2, err
    assert said in err
    assert err.count("\n") == 1
    assert out.count("\n") <= 1
    assert sorted(os.listdir()) == before


def test_a_run_of_an_older_version_is_told_to_train_again(
    run: Run, birds: SimpleNamespace, tmp_path: Path
) -> None:
    workdir = shutil.copytree(birds.workdir, tmp_path / "run")
    (workdir / "data.json").unlink()
    code, _, err = run("predict", workdir, birds.test, "-o", "-")
    assert code == 2
    assert err == (
        f"jaxmlcl: {workdir}/data.json: missing or not readable; run the training command again "
        "to rewrite it\n"
    )


def test_embed_writes_representations_labels_and_ids(
    run: Run, birds: SimpleNamespace, tmp_path: Path
) -> None:
    path = tmp_path / "z.npz"
    words = ("--stage", "pretrain", "--data.root", birds.test.parent, "-o", path)
    code, out, err = run("embed", birds.workdir, *words)
    assert (code, err) == (0, "")
    shapes = "embedding [30, 4], representation [30, 8]"
    assert out == f"pretrain, step 4: {shapes}\nwritten: {path}\n"
    with np.load(path, allow_pickle=False) as found:
        assert set(found) == {"ids", "embedding", "representation", "labels", "label_names"}
        assert found["ids"].tolist() == list(range(100, 130))
        assert found["label_names"].tolist() == LABELS
        assert (found["labels"] == open_source(f"{birds.test}?id=nr").arrays()["labels"]).all()
        assert found["embedding"].dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found["embedding"], axis=1), 1, rtol=1e-5)
        embedding = found["embedding"]
    # The same rows without labels, of a file.
    np.save(tmp_path / "x.npy", birds.x)
    code, _, err = run(
        "embed", birds.workdir, tmp_path / "x.npy", "--stage", "pretrain", "-o", path
    )
    assert (code, err) == (0, "")
    with np.load(path) as found:
        assert set(found) == {"ids", "embedding", "representation"}
        assert (found["embedding"] == embedding).all()
    # A file that is a source has labels.
    assert run("embed", birds.workdir, f"{birds.test}?id=nr", "-o", path).code == 0
    with np.load(path) as found:
        assert set(found) == {"ids", "representation", "labels", "label_names"}
    words = ("--split", "train", "--data.root", birds.test.parent, "-o", path)
    assert run("embed", birds.workdir, *words).code == 0
    assert np.load(path)["representation"].shape == (60, 8)


def test_embed_refuses_in_one_line(run: Run, birds: SimpleNamespace, tmp_path: Path) -> None:
    for words, said in (
        (["-o", tmp_path / "z.csv"], "z.csv: its form is told by its ending: .npz"),
        ([birds.test, "--split", "test", "-o", tmp_path / "z.npz"], "exclude each other"),
        (["-o", tmp_path / "z.npz"], "data: data.root is not a folder"),
        (["--stage", "prob", "-o", tmp_path / "z.npz"], '"prob" is no stage of this run; there a'),
    ):
        code, _, err = run("embed", birds.workdir, *words)
        assert code == 2
        assert said in err
        assert err.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_pictures_are_predicted_from_a_source(run: Run, trained: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(trained, tmp_path / "run")
    assert run("evaluate", workdir).code == 0
    path = tmp_path / "out.npz"
    assert run("predict", workdir, "digits:test?size=24", "--stage", "probe", "-o", path).code == 0
    with np.load(path) as found, np.load(workdir / "evaluation" / "probe-test.npz") as expected:
        assert (found["scores"] == expected["scores"]).all()
        assert (found["ids"] == expected["ids"]).all()


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGINT])
def test_a_killed_prediction_leaves_nothing(
    birds: SimpleNamespace, tmp_path: Path, kill: signal.Signals
) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "jaxmlcl", "predict", birds.workdir, "-", "-o", tmp_path / "a.npz"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        # A shell that starts the tests in the background has them ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert program.stdin is not None
    assert program.stderr is not None
    text = birds.test.read_bytes()
    program.stdin.write(text + text.partition(b"\n")[2] * 100)
    program.stdin.flush()
    # It waits for more rows, and its file is begun.
    until = time.monotonic() + 120
    while not os.listdir(tmp_path):
        assert program.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    program.send_signal(kill)
    assert program.wait(60) == 130
    assert program.stderr.read() == b"jaxmlcl: interrupted\n"
    assert os.listdir(tmp_path) == []
    program.stdin.close()
    program.stderr.close()
