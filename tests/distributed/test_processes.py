"""Two and four real processes give what one gives, and write it once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.conftest import STAGES, Runs, close

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one")]


@pytest.fixture(scope="module")
def two(runs: Runs) -> str:
    """What two processes tell that train "two", with two devices each."""
    return runs.train("two", 2, 2)


def test_two_processes_train_as_one(runs: Runs, two: str) -> None:
    close(runs, "two", "one")


def test_the_bits_depend_on_the_devices_and_not_on_the_processes(runs: Runs, two: str) -> None:
    runs.train("single", 1, 4)
    assert runs.rows("single") == runs.rows("two")
    for stage in STAGES:
        single, many = runs.arrays("single", stage), runs.arrays("two", stage)
        assert single.keys() == many.keys()
        for path, array in single.items():
            assert many[path].tobytes() == array.tobytes(), path


def test_they_say_how_many_they_are_and_write_everything_once(runs: Runs, two: str) -> None:
    assert two.startswith("2 processes x 2 local devices = 4 cpu devices\n")
    # One console: every line once, and nothing of the libraries below.
    assert two.count("compiled in") == 2
    assert "Gloo" not in two
    one, many = (
        {str(path.relative_to(runs.folder / run)) for path in (runs.folder / run).rglob("*")}
        for run in ("one", "two")
    )
    same = [{name for name in names if "checkpoints" not in name} for names in (one, many)]
    assert same[0] == same[1]
    manifests = [
        {name for name in names if name.endswith("manifest.json")} for names in (one, many)
    ]
    assert manifests[0] == manifests[1]
    for name in ("data.json", "preparation.npz"):
        assert (runs.folder / "one" / name).read_bytes() == (
            runs.folder / "two" / name
        ).read_bytes()


def numbers(value: Any, path: str = "") -> dict[str, float]:
    """Every number of a JSON document by its place."""
    if isinstance(value, dict):
        parts = [numbers(item, f"{path}.{name}") for name, item in value.items()]
    elif isinstance(value, list):
        parts = [numbers(item, f"{path}.{place}") for place, item in enumerate(value)]
    else:
        return {path: value} if isinstance(value, (int, float)) else {}
    return {name: number for part in parts for name, number in part.items()}


def test_evaluation_is_that_of_one_process(runs: Runs, two: str) -> None:
    output, told = runs.call(2, 2, "evaluate", "one", "--json")
    # Standard output is the document, from one process.
    many = json.loads(output)
    assert json.loads((runs.folder / "one" / "evaluation" / "test.json").read_text()) == many
    thresholds = (runs.folder / "one" / "thresholds.json").read_text()
    scores = dict(np.load(runs.folder / "one" / "evaluation" / "bce-test.npz"))
    one = json.loads(runs.call(0, 1, "evaluate", "one", "--json")[0])
    assert numbers(many) == pytest.approx(numbers(one), rel=1e-12, abs=1e-12)
    assert (runs.folder / "one" / "thresholds.json").read_text() == thresholds
    for name, array in np.load(runs.folder / "one" / "evaluation" / "bce-test.npz").items():
        assert (array == scores[name]).all(), name
    assert told.startswith("2 processes x 2 local devices = 4 cpu devices\n")


def test_prediction_is_that_of_one_process(runs: Runs, two: str) -> None:
    output, _ = runs.call(2, 2, "predict", "one", "test.npz", "-o", "two.csv", "--labels")
    assert output.count("written: two.csv") == 1
    runs.call(0, 1, "predict", "one", "test.npz", "-o", "one.csv", "--labels")
    assert (runs.folder / "two.csv").read_bytes() == (runs.folder / "one.csv").read_bytes()


def test_representations_are_those_of_one_process(runs: Runs, two: str) -> None:
    runs.call(2, 2, "embed", "one", "--stage", "pretrain", "-o", "two.npz")
    runs.call(0, 1, "embed", "one", "--stage", "pretrain", "-o", "one.npz")
    one, many = (dict(np.load(runs.folder / name)) for name in ("one.npz", "two.npz"))
    assert one.keys() == many.keys()
    for name in one.keys() - {"label_names"}:
        np.testing.assert_allclose(many[name], one[name], rtol=1e-6, atol=1e-7)
    probes = [
        runs.call(count, 2, "evaluate", "one", "--probe", "knn", "--json")[0] for count in (0, 2)
    ]
    assert numbers(json.loads(probes[1])) == pytest.approx(numbers(json.loads(probes[0])), abs=1e-9)


def test_four_processes_on_a_mesh_of_two_axes_train_as_one(runs: Runs) -> None:
    words = ("--mesh.fsdp", "2", "--mesh.queue", "interleave")
    told = runs.train("four", 4, 1, *words)
    assert told.startswith("4 processes x 1 local devices = 4 cpu devices\n")
    assert "keys in 4 parts" in told
    close(runs, "four", "one")


@pytest.mark.parametrize("processes", [2, 4])
def test_global_batches_are_those_of_one_process(runs: Runs, processes: int) -> None:
    # What each process reads, put together on the devices, against the order itself.
    program = Path(__file__).with_name("batches.py")
    started = runs.start(processes, 2, str(program), program=())
    output, told = started.communicate(timeout=300)
    assert started.returncode == 0, output + told
    assert output.splitlines() == ["40 steps are the same"] * processes
