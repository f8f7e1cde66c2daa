"""Real processes on this machine, started by launch/local.sh as a person would start them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxmlcl
from jaxmlcl.training.checkpoint import CheckpointStore

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "local.sh"

CONFIG = """
from jaxmlcl.config import *

encoder = MLP(hidden=(16, 8))
experiment = Experiment(
    "many",
    Data("train.npz", "validation.npz", "test.npz"),
    {
        "pretrain": Stage(
            # 44 divides over 4 devices, and not by 16: the queue wraps within a step.
            MulSupCon(encoder=encoder, head=Projection(width=8), queue_capacity=44),
            steps(24),
            batch_size=16,
            optimizer=Optimizer("adam", 1e-2, schedule=Cosine()),
            augmentation=(ZeroMask(0.3),),
        ),
        "bce": Stage(
            Classification(encoder=encoder),
            steps(24),
            batch_size=16,
            optimizer=Optimizer("adamw", 1e-2, schedule=Plateau(patience=0)),
            starts_from="pretrain",
            validate_every=steps(6),
            select="loss",
        ),
    },
    checkpoint=Checkpoint(every=steps(4)),
    logging=Logging(every=steps(1)),
    precision="float64",
)
"""
STAGES = ("pretrain", "bce")
MACHINE = ("machine", "compile_seconds", "train_seconds")


class Runs:
    """A folder with data and a configuration, and the commands that are run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        generator = np.random.default_rng(5)
        directions = generator.normal(size=(6, 4))
        # Neither 100 nor 30 nor 23 divides over the devices or by the batch.
        for name, rows in (("train", 100), ("validation", 30), ("test", 23)):
            inputs = generator.normal(size=(rows, 6))
            labels = (inputs @ directions + generator.normal(size=(rows, 4)) > 0.5).astype(np.uint8)
            np.savez(folder / f"{name}.npz", inputs=inputs, labels=labels)
        (folder / "config.py").write_text(CONFIG)

    def start(
        self,
        processes: int,
        devices: int,
        *words: str,
        program: tuple[str, ...] = ("-m", "jaxmlcl"),
        folder: Path | None = None,
    ) -> subprocess.Popen[str]:
        """Start a command as so many processes; 0: without a launcher, on one device."""
        place = os.pathsep.join([str(Path(jaxmlcl.__file__).parents[1]), str(ROOT)])
        python = [sys.executable, *program]
        environment = {
            **{name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"},
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": place,
            "PYTHONSAFEPATH": "1",
            "JAXMLCL_DATA": str(self.folder),
        }
        command = [*python, *words]
        if processes:
            environment |= {"DEVICES": str(devices), "JAXMLCL": " ".join(python)}
            command = [str(SCRIPT), str(processes), *words]
        return subprocess.Popen(
            command,
            cwd=folder or self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def together(
        self,
        *flags: list[str],
        words: Sequence[str] = ("train", "config.py", "--workdir", "apart"),
        folders: Sequence[Path] = (),
    ) -> tuple[list[int], list[str]]:
        """Processes of a run of two, each with flags of its own; codes, and what was told."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        started = []
        for index, own in enumerate(flags):
            place = ["--distributed.coordinator", address, "--distributed.num-processes", "2"]
            place += ["--distributed.process-id", str(index)]
            folder = folders[index] if folders else None
            # Where a flag is given twice, the last one counts.
            started.append(self.start(0, 1, *words, *place, *own, folder=folder))
        told = [process.communicate(timeout=120)[1] for process in started]
        return [process.returncode for process in started], told

    def call(self, processes: int, devices: int, *words: str) -> tuple[str, str]:
        """Run a command to its good end: what it printed, and what it told."""
        started = self.start(processes, devices, *words)
        output, told = started.communicate(timeout=400)
        assert started.returncode == 0, output + told
        return output, told

    def train(self, run: str, processes: int, devices: int, *words: str) -> str:
        return self.call(processes, devices, "train", "config.py", "--workdir", run, *words)[1]

    def stop(
        self,
        run: str,
        number: signal.Signals,
        which: int,
        moment: Callable[[], bool],
        *words: str,
        processes: int = 2,
        devices: int = 2,
    ) -> tuple[dict[int, int], str]:
        """Send one process of a training a signal; the exit codes, and what was told."""
        arguments = ("train", "config.py", "--workdir", run, *words)
        started = self.start(processes, devices, *arguments)
        deadline = time.monotonic() + 300
        while not moment():
            assert started.poll() is None, f"it ended too early:\n{started.communicate()}"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(self.children(started)[which], number)
        told = started.communicate(timeout=400)[1]
        codes = dict.fromkeys(range(processes), 0)
        for line in told.splitlines():
            if line.startswith("launch/local.sh: process "):
                words_of = line.split()
                codes[int(words_of[2])] = int(words_of[-1])
        assert started.returncode == next((code for code in codes.values() if code), 0)
        return codes, told

    def children(self, started: subprocess.Popen[str]) -> list[int]:
        """The processes that launch/local.sh started, in order."""
        text = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    def rows(self, run: str) -> list[dict[str, Any]]:
        """The log without what is timed."""
        text = (self.folder / run / "metrics.jsonl").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        return [{k: v for k, v in row.items() if k != "samples_per_second"} for row in rows]

    def length(self, run: str) -> int:
        path = self.folder / run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def arrays(self, run: str, stage: str) -> dict[str, np.ndarray]:
        """Every array of a stage's last checkpoint by its path."""
        store = CheckpointStore(self.folder / run / "checkpoints" / stage)
        problems: list[str] = []
        found = store.latest_valid(report=problems.append, where=lambda found: found.finished)
        assert found is not None
        assert not problems
        leaves = jax.tree_util.tree_flatten_with_path(store.restore_numpy(found))[0]
        return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}

    def summary(self, run: str) -> dict[str, Any]:
        stages = json.loads((self.folder / run / "stages.json").read_text())
        return {
            name: {k: v for k, v in stage.items() if k not in MACHINE}
            for name, stage in stages.items()
        }


def close(runs: Runs, run: str, other: str) -> None:
    """Two runs agree as one program on other devices does: losses to 1e-12, parameters to 1e-9."""
    ours, theirs = runs.rows(run), runs.rows(other)
    # A row that was written twice, or not at all, shows here.
    place = ("kind", "stage", "step")
    assert [[row[k] for k in place] for row in ours] == [[row[k] for k in place] for row in theirs]
    losses = [[row["loss"] for row in rows] for rows in (ours, theirs)]
    assert losses[0][0] != losses[0][-1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-12, atol=0)
    for stage in STAGES:
        mine, other_arrays = runs.arrays(run, stage), runs.arrays(other, stage)
        assert mine.keys() == other_arrays.keys()
        for path, array in other_arrays.items():
            np.testing.assert_allclose(mine[path], array, rtol=0, atol=1e-9, err_msg=path)
    assert runs.summary(run) == runs.summary(other)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A folder with data and a configuration."""
    return Runs(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="session")
def one(runs: Runs) -> str:
    """A run of a single process on a single device."""
    runs.train("one", 0, 1)
    return "one"
