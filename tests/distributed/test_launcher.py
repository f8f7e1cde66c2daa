"""How a process learns its place: flags, and what launchers leave in the environment."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest

from jaxmlcl.distributed import Settings, find_place
from jaxmlcl.distributed._launcher import Place
from jaxmlcl.errors import ConfigError

SLURM = {
    "SLURM_JOB_ID": "4096",
    "SLURM_STEP_NODELIST": "gpu[07-09],gpu12",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "TPU_", "JOB_COMPLETION")):
            monkeypatch.delenv(name)


def launched(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Place | None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return find_place(Settings(start_timeout=1))


def test_a_process_that_nobody_launched_is_alone() -> None:
    assert find_place(Settings()) is None


def test_flags_give_the_place() -> None:
    settings = Settings("10.0.0.1:7654", 4, 3)
    assert find_place(settings) == Place("10.0.0.1", 7654, 4, 3)
    assert find_place(Settings("[fe80::1]:80", 1, 0)) == Place("fe80::1", 80, 1, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "h:1"}, "--distributed.num-processes and --distributed.process-id must"),
        ({"num_processes": 2, "process_id": 0}, "--distributed.coordinator must be given too"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, "2 is not from 0 to num-pro"),
        ({"coordinator": "h:1", "num_processes": 0, "process_id": 0}, "0 is not from 0 to num-pro"),
        ({"coordinator": "h", "num_processes": 2, "process_id": 0}, '"h" is not HOST:PORT'),
        ({"coordinator": ":80", "num_processes": 2, "process_id": 0}, '":80" is not HOST:PORT'),
        ({"coordinator": "h:99999", "num_processes": 2, "process_id": 0}, "is not HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        find_place(Settings(**given))
    assert message in str(refused.value)


@pytest.mark.parametrize("name", ["start_timeout", "timeout"])
def test_times_are_positive(name: str) -> None:
    for value in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(
            ConfigError, match=f"--distributed.{name.replace('_', '-')}: it must be"
        ):
            Settings(**{name: value})  # type: ignore[arg-type]


def test_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    place = launched(monkeypatch, **SLURM)
    # The first node of the step, and a port made of the job's number.
    assert place == Place("gpu07", 61440, 8, 5, local_devices=(1,))


@pytest.mark.parametrize("tasks", ["1(x4)", "1,1,1,1"])
def test_a_slurm_task_that_has_its_node_to_itself_takes_all_its_devices(
    monkeypatch: pytest.MonkeyPatch, tasks: str
) -> None:
    place = launched(monkeypatch, **{**SLURM, "SLURM_STEP_TASKS_PER_NODE": tasks})
    assert place is not None
    assert place.local_devices is None


def test_an_interactive_allocation_is_not_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # `salloc` and the body of an sbatch script have the job's variables, not the step's.
    kept = {name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS")}
    assert launched(monkeypatch, **kept) is None


def test_open_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    place = launched(monkeypatch, **OPEN_MPI)
    assert place == Place("10.96.0.1", 1531576320 // 4096 % 4096 + 61440, 4, 3, local_devices=(1,))


def test_an_open_mpi_process_alone_on_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    place = launched(monkeypatch, **{**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"})
    assert place is not None
    assert place.local_devices is None


def test_a_launcher_that_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="a launcher is there but cannot be read") as refused:
        launched(monkeypatch, **{**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "nonsense"})
    assert "--distributed.launcher none" in str(refused.value)


def test_no_launcher_is_looked_for_when_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert find_place(Settings(launcher="none")) is None


def test_flags_go_before_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert find_place(Settings("here:1", 2, 1)) == Place("here", 1, 2, 1)


def test_a_pod_that_is_not_one_of_several_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched(monkeypatch, KUBERNETES_SERVICE_HOST="10.0.0.1") is None


def test_open_mpi_in_a_pod_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    place = launched(monkeypatch, KUBERNETES_SERVICE_HOST="10.0.0.1", **OPEN_MPI)
    assert place is not None
    assert place.count == 4


@pytest.mark.skipif(
    importlib.util.find_spec("kubernetes") is not None, reason="the extra is installed here"
)
def test_a_kubernetes_job_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r'pip install "jaxmlcl\[kubernetes\]"'):
        launched(monkeypatch, KUBERNETES_SERVICE_HOST="10.0.0.1", JOB_COMPLETION_INDEX="1")
