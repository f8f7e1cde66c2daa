"""Real processes: killed at any moment, told to stop, given what they cannot use."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
import pytest

import jaxmlcl
from jaxmlcl.cli import main
from jaxmlcl.training import trainer, workdir, writers
from jaxmlcl.training.checkpoint import Checkpoint, CheckpointStore
from jaxmlcl.training.kept import stage_folder

CONFIG = """
from jaxmlcl.config import *

encoder = ResNet(depths=(1,), channels=2, stem="small")
experiment = Experiment(
    "killed",
    Data("digits:train?size=96", "digits:validation?size=32", inputs="unit"),
    {
        "pretrain": Stage(
            MulSupCon(encoder=encoder, head=Projection(width=4), queue_capacity=32),
            steps(60),
            batch_size=16,
            optimizer=Optimizer("adam", 1e-2, schedule=Cosine()),
            augmentation=(Shift(2), Intensity(), Noise()),
        ),
        "probe": Stage(
            linear_probe(encoder),
            steps(40),
            batch_size=16,
            optimizer=Optimizer("sgd", 0.1),
            starts_from="pretrain",
            frozen=("^encoder/",),
            validate_every=steps(7),
            select="map",
        ),
        "bce": Stage(
            Classification(encoder=encoder),
            steps(40),
            batch_size=16,
            optimizer=Optimizer("adamw", 1e-2, schedule=Plateau(patience=0)),
            validate_every=steps(4),
            select="loss",
        ),
    },
    checkpoint=Checkpoint(every=steps(5)),
    logging=Logging(every=steps(2)),
)
"""
STAGES = ("pretrain", "probe", "bce")


class Run:
    """One workdir, and the command that trains in it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.config = folder / "config.py"
        self.config.write_text(CONFIG)
        self.workdir = folder / name

    def start(self) -> subprocess.Popen[str]:
        place = str(Path(jaxmlcl.__file__).parents[1])
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": place}
        command = [sys.executable, "-m", "jaxmlcl", "train", str(self.config)]
        return subprocess.Popen(
            [*command, "--workdir", str(self.workdir)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self) -> str:
        process = self.start()
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return output

    def stop(self, number: signal.Signals, moment: Callable[[], bool]) -> tuple[int, str]:
        """Send a signal as soon as the moment has come; the exit code and what was printed."""
        process = self.start()
        deadline = time.monotonic() + 300
        while not moment():
            assert process.poll() is None, f"it ended too early:\n{process.communicate()[0]}"
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        process.send_signal(number)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def lines(self) -> int:
        path = self.workdir / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def half_saved(self) -> list[Path]:
        """Checkpoints that are being written: a step's folder without its manifest."""
        folders = self.workdir.glob("checkpoints/*/*")
        return [folder for folder in folders if not (folder / "manifest.json").exists()]

    def metrics(self) -> list[dict[str, Any]]:
        rows = map(json.loads, (self.workdir / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in row.items() if k != "samples_per_second"} for row in rows]

    def summary(self) -> dict[str, Any]:
        stages = json.loads((self.workdir / "stages.json").read_text())
        return {
            name: {k: v for k, v in stage.items() if not k.endswith("_seconds")}
            for name, stage in stages.items()
        }

    def saved(self, stage: str, where: Callable[[Checkpoint], bool]) -> dict[str, Any]:
        """Every array of a checkpoint by its path, and its step."""
        store = CheckpointStore(stage_folder(self.workdir, stage))
        problems: list[str] = []
        checkpoint = store.latest_valid(report=problems.append, where=where)
        assert checkpoint is not None
        assert not problems
        leaves = jax.tree_util.tree_flatten_with_path(store.restore_numpy(checkpoint))[0]
        arrays = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
        return {"step": np.array(checkpoint.step), **arrays}


def identical(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for path, array in theirs.items():
        assert ours[path].dtype == array.dtype
        assert ours[path].tobytes() == array.tobytes(), path


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, run = Run(tmp_path, "whole"), Run(tmp_path, "run")
    whole.finish()
    total = whole.lines()
    generator = random.Random(20240607)

    def later(seconds: float) -> Callable[[], bool]:
        start = time.monotonic()
        return lambda: time.monotonic() > start + seconds

    def row(number: int) -> Callable[[], bool]:
        """A row of the log, and a few milliseconds more."""
        after: list[Callable[[], bool]] = []

        def moment() -> bool:
            if not after and run.lines() >= number:
                after.append(later(generator.uniform(0, 0.05)))
            return bool(after) and after[0]()

        return moment

    def save(number: int) -> Callable[[], bool]:
        """The first save after a row of the log."""
        return lambda: run.lines() >= number and bool(run.half_saved())

    # While it starts; in each stage at a random row and during a save. A stage has 26 to 30 rows.
    parts = [(total * i // 6, total * (i + 1) // 6) for i in range(6)]
    rows = [generator.randrange(low + 1, high - 3) for low, high in parts]
    run.stop(signal.SIGKILL, later(generator.uniform(0.5, 4)))
    during_saves = 0
    for index, number in enumerate(rows):
        saving = index % 2 == 1
        code, output = run.stop(signal.SIGKILL, save(number) if saving else row(number))
        assert code == -signal.SIGKILL, output
        during_saves += saving and bool(run.half_saved())
        if index == 2:
            # Between two kills a polite one: it saves at the next step and says so.
            code, output = run.stop(signal.SIGTERM, row(number + 4))
            assert code == 75, output
            assert "stopped by signal SIGTERM after saving step" in output
            assert "run the same command again" in output
    assert during_saves > 0
    output = run.finish()
    assert "pretrain: finished before, at step 60" in output
    assert "bce: continuing after step" in output

    assert run.metrics() == whole.metrics()
    assert run.summary() == whole.summary()
    for stage in STAGES:
        identical(*(r.saved(stage, lambda found: found.finished) for r in (run, whole)))
    for stage in STAGES[1:]:
        identical(*(r.saved(stage, lambda found: found.best) for r in (run, whole)))
    # The second half of each stage was worth training: nothing is compared with itself at zero.
    first, last = (whole.metrics()[i]["loss"] for i in (0, -1))
    assert first != last


# --------------------------------------------------------------------- one line and exit 2

VECTORS = """
from jaxmlcl.config import *

experiment = Experiment(
    "vectors",
    Data({train!r}, inputs="raw"),
    {{
        "bce": Stage(
            Classification(encoder=MLP(hidden=(4,), dropout=0.0)),
            steps(12),
            batch_size=4,
            optimizer=Optimizer("sgd", {rate}),
        )
    }},
    checkpoint=Checkpoint(every=steps(3)),
    logging=Logging(every=steps(1)),
)
"""
Words = Callable[..., tuple[int, str]]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Words:
    """The command line in this process: its exit code, and what it says on standard error."""

    def call(*words: str | Path) -> tuple[int, str]:
        capfd.readouterr()
        code = main([str(word) for word in words])
        return code, capfd.readouterr().err

    return call


@pytest.fixture(autouse=True)
def _one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    original = trainer.train
    monkeypatch.setattr(
        trainer, "train", lambda *a, **k: original(*a, **k, devices=jax.devices()[:1])
    )


def last_line(text: str) -> str:
    lines = text.splitlines()
    assert lines
    assert lines[-1].startswith("jaxmlcl: ")
    assert "Traceback" not in text
    return lines[-1]


def hdf5(path: Path, feature: Any, target: Any) -> Path:
    with h5py.File(path, "w") as file:
        file["feature"], file["target"] = feature, target
    return path


def write_config(folder: Path, train: Path | None = None, rate: float = 0.1) -> Path:
    if train is None:
        generator = np.random.default_rng(0)
        target = generator.integers(0, 2, (10, 2))
        train = hdf5(folder / "good.h5", generator.normal(size=(10, 3)), target)
    path = folder / "config.py"
    path.write_text(VECTORS.format(train=str(train), rate=rate))
    return path


ARFF = """@relation 'tiny: -C 1'
@attribute a {0,1}
@attribute x numeric
@data
%s
"""
XML = '<labels xmlns="http://mulan.sourceforge.net/labels"><label name="a"></label></labels>'


def bad_data(folder: Path) -> Iterator[tuple[str, Path, list[str]]]:
    features, labels = np.ones((3, 2)), np.array([[0, 1], [1, 0], [1, 1]])
    empty = hdf5(folder / "empty.h5", np.zeros((0, 2)), np.zeros((0, 2)))
    yield "no rows", empty, ["empty.h5", "no rows"]
    yield (
        "no columns",
        hdf5(folder / "narrow.h5", np.zeros((3, 0)), labels),
        ["narrow.h5", "empty"],
    )
    wrong = labels.copy()
    wrong[1, 0] = 2
    yield (
        "labels",
        hdf5(folder / "labels.h5", features, wrong),
        ["labels.h5", "row 1", "label_0", "2", "not 0 or 1"],
    )
    holes = features.copy()
    holes[2, 1] = np.nan
    yield (
        "NaN",
        hdf5(folder / "nan.h5", holes, labels),
        ["nan.h5", "row 2", "feature_1", "nan", "not a number"],
    )
    for name, rows, said in (
        ("none.arff", "", ["none.arff", "no rows"]),
        ("label.arff", "1,0.5\n3,0.5", ["label.arff", "line 6", "3"]),
        ("missing.arff", "1,0.5\n0,NaN", ["missing.arff", "line 6", "x"]),
    ):
        path = folder / name
        path.write_text(ARFF % rows)
        path.with_suffix(".xml").write_text(XML)
        yield name, path, said


def test_bad_data_get_one_line(command: Words, tmp_path: Path) -> None:
    for name, path, said in bad_data(tmp_path):
        config = write_config(tmp_path, path)
        code, err = command("train", config, "--workdir", tmp_path / "run")
        assert code == 2, name
        line = last_line(err)
        assert err.count("\n") == 1, name
        for words in said:
            assert words in line, (name, line)


def test_a_workdir_that_cannot_be_written(command: Words, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "file").write_text("mine")
    code, err = command("train", config, "--workdir", tmp_path / "file" / "run")
    assert code == 2
    assert "cannot write to the workdir (Not a directory)" in last_line(err)
    code, err = command("train", config, "--workdir", tmp_path / "file")
    assert code == 2
    assert "cannot write to the workdir (File exists)" in last_line(err)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_workdir_without_permission(command: Words, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    code, err = command("train", write_config(tmp_path), "--workdir", tmp_path / "closed" / "run")
    assert code == 2
    assert "cannot write to the workdir (Permission denied)" in last_line(err)


def test_a_workdir_of_another_experiment(command: Words, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    run = tmp_path / "run"
    # One that was refused before its first step claims nothing.
    code, err = command("train", config, "--workdir", run, "--stages.bce.frozen", "^nothing")
    assert (code, "matches no parameter" in last_line(err)) == (2, True)
    assert command("train", config, "--workdir", run)[0] == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert run / "metrics.jsonl" in before
    code, err = command("train", config, "--workdir", run, "--stages.bce.batch-size", "5")
    assert code == 2
    line = last_line(err)
    assert "belongs to a different experiment: stages.bce.batch_size (4 there, 5 now)" in line
    assert {path: path.read_bytes() for path in before} == before


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_at_the_start(
    command: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workdir, "write_atomic", full)
    code, err = command("train", write_config(tmp_path), "--workdir", tmp_path / "run")
    assert code == 2
    line = last_line(err)
    assert "run/experiment.json: cannot be written (No space left on device); free the disk" in line


class FullFile:
    """A file on a disk that is full after some more bytes, of which it takes what fits."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self.room = file, room

    def write(self, data: bytes) -> int:
        if self.room == 0:
            full()
        taken = data[: self.room]
        self.room -= len(taken)
        return self._file.write(taken)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_full_disk_while_logging_loses_nothing(
    command: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path)
    assert command("train", config, "--workdir", tmp_path / "whole")[0] == 0
    whole = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    # In the middle of the row of step 8; the checkpoints before it are those of steps 3 and 6.
    room = sum(len(line) + 1 for line in whole[:7]) + 20

    def limited(self: Any, folder: Path) -> None:
        original(self, folder)
        self._file = FullFile(self._file, room)

    original = writers.MetricsLog.__init__
    monkeypatch.setattr(writers.MetricsLog, "__init__", limited)
    run = tmp_path / "run"
    code, err = command("train", config, "--workdir", run)
    assert code == 2
    line = last_line(err)
    assert "run/metrics.jsonl: cannot be written (No space left on device)" in line
    monkeypatch.setattr(writers.MetricsLog, "__init__", original)
    code, err = command("train", config, "--workdir", run)
    assert code == 0
    assert "bce: continuing after step 6" in err

    def untimed(lines: list[str]) -> list[dict[str, Any]]:
        return [{**json.loads(line), "samples_per_second": None} for line in lines]

    parts = (run / "metrics.jsonl").read_text().splitlines()
    assert untimed(parts) == untimed(whole)


def test_nan_names_everything_and_keeps_the_last_good_checkpoint(
    command: Words, tmp_path: Path
) -> None:
    config, run = write_config(tmp_path, rate=1e10), tmp_path / "run"
    code, err = command("train", config, "--workdir", run)
    assert code == 2
    line = last_line(err)
    assert "not finite at step " in line
    step = int(line.split("at step ")[1].split(":")[0])
    assert "gradient_norm" in line
    # Its samples are those of that step: four rows out of ten.
    ids = json.loads(line.split("sample ids of the batch: ")[1].split(";")[0])
    assert len(ids) == 4
    order = trainer.GlobalOrder(10, 4, 0)
    assert ids == order[step - 1].tolist()
    assert "the last good checkpoint is kept" in line
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, step))
    store = CheckpointStore(stage_folder(run, "bce"))
    saved = store.checkpoints()
    assert all(found.step < step for found in saved)
    assert len(saved) == min(2, (step - 1) // 3)
    # Running again goes on from there and stops at the same step.
    code, again = command("train", config, "--workdir", run)
    assert code == 2
    assert last_line(again) == line
