"""How the processes of a run find each other: from flags, or from the launcher that started them.

What a launcher says is read by JAX's own detection (Cloud TPU, SLURM, Open MPI, Kubernetes), so
that whatever it learns to detect is detected here too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import warnings
from typing import Literal

from jaxmlcl.errors import ConfigError

_FLAGS = ("coordinator", "num-processes", "process-id")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command line says of the processes of a run."""

    coordinator: str | None = None
    """HOST:PORT at which process 0 listens."""
    num_processes: int | None = None
    process_id: int | None = None
    devices: int | None = None
    """Devices that all processes together must have; whatever there are if absent."""
    launcher: Literal["auto", "none"] = "auto"
    """Whether to look for a launcher where the three above are not given."""
    start_timeout: float = 300.0
    """Time in which every process must have come (seconds)."""
    timeout: float = 60.0
    """Silence after which a process counts as gone (seconds)."""

    def __post_init__(self) -> None:
        for name, value in (("start-timeout", self.start_timeout), ("timeout", self.timeout)):
            if not 0 < value < 1e6:
                raise ConfigError(
                    f"--distributed.{name}: it must be positive and below 1e6 s, not {value:g}"
                )


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one process stands among those of its run."""

    host: str
    port: int
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None
    """Devices of this machine that are this process's own; None: all."""


def find_place(settings: Settings) -> Place | None:
    """This process's place; None where it is alone and no launcher is there.

    Raises:
      ConfigError: the flags are not complete or do not fit together, or a launcher cannot be read.
    """
    given = (settings.coordinator, settings.num_processes, settings.process_id)
    if any(value is not None for value in given):
        return _from_flags(*given)
    return _from_launcher(settings) if settings.launcher == "auto" else None


def _from_flags(coordinator: str | None, count: int | None, index: int | None) -> Place:
    if coordinator is None or count is None or index is None:
        given = zip(_FLAGS, (coordinator, count, index), strict=True)
        missing = [f"--distributed.{name}" for name, value in given if value is None]
        raise ConfigError(
            f"{' and '.join(missing)} must be given too: coordinator, num-processes and process-id "
            "go together"
        )
    if count < 1 or not 0 <= index < count:
        raise ConfigError(
            f"--distributed.process-id: {index} is not from 0 to num-processes - 1 = {count - 1}"
        )
    return Place(*_address(coordinator), count, index)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ConfigError(
            f'--distributed.coordinator: "{text}" is not HOST:PORT, the address of process 0 and a '
            "free port there, such as 10.0.0.1:7654"
        )
    return host, int(port)


def _from_launcher(settings: Settings) -> Place | None:
    # The only place that reads what JAX keeps to itself: `jax.distributed.initialize()` detects
    # the same, but does not tell who is missing.
    from jax._src.clusters import ClusterEnv

    others = ("TPU_WORKER_ID", "OMPI_MCA_orte_hnp_uri", "SLURM_PROCID")
    if "KUBERNETES_SERVICE_HOST" in os.environ and not any(name in os.environ for name in others):
        if "JOB_COMPLETION_INDEX" not in os.environ:
            return None  # a pod that is not one of several
        if not importlib.util.find_spec("kubernetes"):
            raise ConfigError(
                "this is a pod of an indexed Kubernetes job; finding the others needs an extra "
                'that is not installed: run pip install "jaxmlcl[kubernetes]", or give '
                "--distributed.coordinator, num-processes and process-id"
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            address, count, index, local = ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, None, math.ceil(settings.start_timeout)
            )
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"a launcher is there but cannot be read ({reason}); give --distributed.coordinator, "
            "num-processes and process-id, or --distributed.launcher none"
        ) from None
    if address is None or count is None or index is None:
        return None
    if local is not None and _alone_on_machine():
        # JAX gives each task one device; a task that has the machine to itself has them all.
        local = None
    return Place(*_address(address), count, index, None if local is None else tuple(local))


def _alone_on_machine() -> bool:
    """Whether the launcher started one process on this machine."""
    # "1(x4)" or "2,1": tasks of each node. A mixture is told by nobody; it is left to JAX.
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("SLURM_TASKS_PER_NODE")
    if tasks is not None:
        return all(part.partition("(")[0] == "1" for part in tasks.split(","))
    with contextlib.suppress(ValueError):
        return int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")) == 1
    return False
