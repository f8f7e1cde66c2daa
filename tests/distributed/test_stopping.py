"""Processes that are asked to stop, die, or never come: nobody hangs, and nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.conftest import STAGES, Runs, close


def identical(runs: Runs, run: str, other: str) -> None:
    """Two runs ended with the same bits, and logged the same."""
    assert runs.rows(run) == runs.rows(other)
    assert runs.summary(run) == runs.summary(other)
    for stage in STAGES:
        mine, other_arrays = runs.arrays(run, stage), runs.arrays(other, stage)
        assert mine.keys() == other_arrays.keys()
        for path, array in other_arrays.items():
            assert mine[path].tobytes() == array.tobytes(), path


def row(runs: Runs, run: str, number: int, wait: float = 0.0) -> Callable[[], bool]:
    """When the log has so many rows, and a little later."""
    since: list[float] = []

    def moment() -> bool:
        if not since and runs.length(run) >= number:
            since.append(time.monotonic())
        return bool(since) and time.monotonic() >= since[0] + wait

    return moment


@pytest.mark.slow
def test_a_run_of_which_processes_are_killed_ends_with_the_same_bits(runs: Runs) -> None:
    runs.train("whole", 2, 2)
    total = runs.length("whole")
    generator = random.Random(20261128)
    for part in range(3):
        low, high = total * part // 3, total * (part + 1) // 3
        which, number = generator.randrange(2), generator.randrange(low + 1, high - 2)
        pause = generator.uniform(0, 0.05)
        codes, told = runs.stop("hurt", signal.SIGKILL, which, row(runs, "hurt", number, pause))
        # 137 is how a shell names an end by SIGKILL. The other ends itself, and says whom it lost.
        assert codes == {which: 137, 1 - which: 75}, told
        assert f"jaxmlcl: process {which} (" in told
        assert "its connection closed, it was killed or crashed; run the same command again" in told
        assert "Traceback" not in told
    told = runs.train("hurt", 2, 2)
    assert "continuing after step" in told
    assert "results agree to rounding" not in told
    identical(runs, "hurt", "whole")


def test_the_channel_speaks_before_a_library_aborts(runs: Runs) -> None:
    program = Path(__file__).with_name("aborting.py")
    started = runs.start(2, 1, str(program), program=())
    told = started.communicate(timeout=120)[1]
    assert "process 0 ended with exit code 75" in told
    assert "process 1 ended with exit code 137" in told
    assert "jaxmlcl: process 1 (" in told


@pytest.mark.slow
@pytest.mark.usefixtures("one")
def test_a_signal_to_one_saves_all_at_one_step_and_another_number_of_processes_goes_on(
    runs: Runs,
) -> None:
    # To process 1 in the first stage; then, as 4 processes on another mesh with the queue dealt
    # out, to process 0 in the second; then one process finishes, which has one device.
    codes, told = runs.stop("moved", signal.SIGTERM, 1, row(runs, "moved", 7))
    assert codes == {0: 75, 1: 75}, told
    assert told.count("stopped by signal SIGTERM to process 1 (") == 2
    assert "after saving step" in told
    words = ("--mesh.fsdp", "2", "--mesh.queue", "interleave")
    codes, told = runs.stop(
        "moved", signal.SIGINT, 0, row(runs, "moved", 30), *words, processes=4, devices=1
    )
    assert set(codes.values()) == {75}, told
    assert "continuing on another machine or mesh" in told
    assert "stopped by signal SIGINT to process 0 (" in told
    runs.train("moved", 0, 1)
    close(runs, "moved", "one")


@pytest.mark.slow
def test_a_process_that_stops_answering_ends_the_others_in_the_stated_time(runs: Runs) -> None:
    arguments = ("train", "config.py", "--workdir", "asleep", "--distributed.timeout", "5")
    started = runs.start(2, 2, *arguments)
    moment = row(runs, "asleep", 3)
    while not moment():
        assert started.poll() is None, started.communicate()
        time.sleep(0.01)
    first, second = runs.children(started)
    os.kill(second, signal.SIGSTOP)
    began = time.monotonic()
    try:
        # A process that has ended waits for the script to ask; its state is then Z.
        while Path(f"/proc/{first}/stat").exists():
            assert time.monotonic() < began + 20, "the other hangs"
            time.sleep(0.05)
    finally:
        os.kill(second, signal.SIGKILL)
    told = started.communicate(timeout=60)[1]
    assert "process 0 ended with exit code 75" in told
    assert "jaxmlcl: process 1 (" in told
    assert "gave no sign of life for 5 s; run the same command again" in told


def test_a_mistake_in_one_process_ends_all_with_its_line(runs: Runs) -> None:
    # Process 1 finds other data under the same names.
    other = runs.folder / "other"
    other.mkdir()
    for name in ("train", "validation", "test"):
        arrays = dict(np.load(runs.folder / f"{name}.npz"))
        np.savez(other / f"{name}.npz", **{**arrays, "inputs": arrays["inputs"] + 1})
    codes, told = runs.together(["--data.root", str(runs.folder)], ["--data.root", str(other)])
    assert codes == [2, 2], told
    for text in told:
        assert "process 1 (" in text
        assert ") differs from process 0: train of stage pretrain has fingerprint " in text
        assert "give all processes the same data" in text
    assert "Traceback" not in "".join(told)
    assert not (runs.folder / "apart" / "experiment.json").exists()


@pytest.mark.slow
def test_processes_with_other_flags_are_refused(runs: Runs) -> None:
    codes, told = runs.together(["--seed", "1"], ["--seed", "2"])
    assert codes == [2, 2], told
    assert all("differs from process 0: seed (1 in process 0, 2 there)" in text for text in told)
    codes, told = runs.together(["--distributed.num-processes", "3"], [])
    assert codes == [2, 2], told
    assert "was started as one of 2 processes, process 0 (" in told[0]


def test_devices_that_are_not_those_asked_for_are_refused(runs: Runs) -> None:
    started = runs.start(
        2, 2, "train", "config.py", "--workdir", "no", "--distributed.devices", "8"
    )
    output, told = started.communicate(timeout=120)
    assert started.returncode == 2, output + told
    line = "2 processes x 2 local devices = 4 cpu devices, but --distributed.devices asks for 8"
    assert line in told
    assert not (runs.folder / "no").exists()


def test_devices_are_counted_without_a_launcher_too(runs: Runs) -> None:
    started = runs.start(0, 1, "train", "config.py", "--distributed.devices", "16")
    told = started.communicate(timeout=120)[1]
    assert started.returncode == 2, told
    assert "1 process x " in told
    assert "but --distributed.devices asks for 16" in told


@pytest.mark.slow
@pytest.mark.usefixtures("one")
def test_rows_and_folders_that_differ_are_refused(runs: Runs) -> None:
    rows = np.load(runs.folder / "test.npz")["inputs"]
    for name, inputs in (("first", rows), ("second", rows[:-1])):
        (runs.folder / name).mkdir()
        np.savez(runs.folder / name / "new.npz", inputs=inputs)
    flags = [["--data.root", str(runs.folder / name)] for name in ("first", "second")]
    words = ["predict", "one", "new.npz", "-o", "apart.csv"]
    codes, told = runs.together(*flags, words=words)
    assert codes == [2, 2], told
    assert all(") differs from process 0: its rows of " in text for text in told)
    assert not (runs.folder / "apart.csv").exists()
    assert not list(runs.folder.glob(".apart*"))
    codes, told = runs.together(
        ["--split", "test"], ["--split", "validation"], words=["evaluate", "one"]
    )
    assert codes == [2, 2], told
    assert all("split (test in process 0, validation there)" in text for text in told)
    # The same name on disks of their own.
    for name in ("disk0", "disk1"):
        (runs.folder / name).mkdir()
    places = [["--workdir", "run"], ["--workdir", "run"]]
    folders = [runs.folder / name for name in ("disk0", "disk1")]
    codes, told = runs.together(
        *places, words=["train", str(runs.folder / "config.py")], folders=folders
    )
    assert codes == [2, 2], told
    assert all("does not see the files that process 0 writes" in text for text in told)


def test_one_that_never_comes_is_named(runs: Runs) -> None:
    words = ["--distributed.start-timeout", "2", "--workdir", "late"]
    (code,), (told,) = runs.together(words)
    assert code == 2, told
    assert (
        "start of 2 processes: process 1 of 2 did not come within 2 s; there are: process 0 ("
        in told
    )
    assert len(told.strip().splitlines()) == 1
    assert not (runs.folder / "late").exists()
