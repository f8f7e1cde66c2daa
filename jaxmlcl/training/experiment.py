"""The experiment: data, stages, mesh, seed and where to write, in one typed, frozen value."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from jaxmlcl.data.pipeline import Loading
from jaxmlcl.errors import ConfigError
from jaxmlcl.random import Generator
from jaxmlcl.sharding.mesh import MeshSpec
from jaxmlcl.training._storage import check_place
from jaxmlcl.training.dataset import Data
from jaxmlcl.training.duration import Duration, check_duration, steps
from jaxmlcl.training.stage import Stage

# Where the data are: it may differ between the machines of a run.
PLACES = ("data.root", "stages.*.data.root")
# What may differ between the runs that continue one workdir: none of it changes what is learnt.
# A change of mesh changes rounding only, and is announced.
VOLATILE = ("workdir", "profile", "logging", "checkpoint", "loading", "mesh", "main", *PLACES)

__all__ = [
    "PLACES",
    "VOLATILE",
    "Checkpoint",
    "Data",
    "Experiment",
    "Loading",
    "Logging",
    "parse_profile",
]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When the state is saved, and what is kept."""

    every: Duration = dataclasses.field(default_factory=lambda: steps(1000))
    """How often the state is saved (steps, epochs or examples)."""
    keep: int = 2
    """How many of the latest are kept (count), beside the best and each stage's last."""
    folder: str | None = None
    """Where checkpoints are kept: a folder (a relative one lies in WORKDIR), or gs://BUCKET/PATH or
    s3://BUCKET/PATH (needs the extra "cloud"); WORKDIR/checkpoints if absent."""

    def __post_init__(self) -> None:
        check_duration("checkpoint: every", self.every)
        if self.folder is not None:
            check_place(self.folder)
        if self.keep < 1:
            raise ConfigError(f"checkpoint: keep must be at least 1, not {self.keep}")


@dataclasses.dataclass(frozen=True)
class Logging:
    """What is written while training."""

    every: Duration = dataclasses.field(default_factory=lambda: steps(50))
    """How often a line goes to metrics.jsonl (steps, epochs or examples)."""
    tensorboard: bool = False
    """Write TensorBoard event files too (needs the extra "tensorboard")."""

    def __post_init__(self) -> None:
        check_duration("logging: every", self.every)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run depends on."""

    name: str
    """Name of the experiment; the default workdir is runs/NAME."""
    data: Data
    """Where the data are."""
    stages: dict[str, Stage]
    """What is trained, in order; stages may start from earlier ones by name."""
    main: str | None = None
    """Stage whose figures stand for the run; the last that gives scores if absent."""
    seed: int = 0
    """Seed of parameters, order, augmentation and dropout."""
    random: Generator = "hash"
    """What draws dropout and augmentation: the counter hash, or JAX's threefry, which is slower."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """Type of the computation; parameters and reductions are kept in at least float32."""
    mesh: MeshSpec = dataclasses.field(default_factory=MeshSpec)
    """Devices and how the state is laid out over them."""
    loading: Loading = dataclasses.field(default_factory=Loading)
    """How training data are read."""
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    """When the state is saved."""
    logging: Logging = dataclasses.field(default_factory=Logging)
    """What is written while training."""
    profile: str | None = None
    """START:STOP, the steps of the first stage to trace into WORKDIR/profile; none if absent."""
    workdir: str | None = None
    """Folder of the run; runs/NAME if absent."""

    def __post_init__(self) -> None:
        if not isinstance(self.stages, dict):
            raise ConfigError(
                'stages: write a dictionary from names to stages, {"NAME": Stage(...)}'
            )
        if not self.stages:
            raise ConfigError("experiment: it has no stages; give at least one")
        # The default workdir is runs/NAME.
        if self.name.strip(" .") == "" or re.search(r"[/\\\x00-\x1f]", self.name):
            raise ConfigError(
                f"name: {self.name[:60]!r} cannot be the name of a folder; write one that is not "
                "empty, without slashes and control characters"
            )
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed: it must be at least 0 and below 2^32, not {self.seed}")
        if self.data.inputs == "inherit":
            raise ConfigError(
                'data.inputs: "inherit" is for the own data of a stage that starts from another; '
                'use "standardize", "unit" or "raw"'
            )
        earlier: list[str] = []
        for name, stage in self.stages.items():
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ConfigError(
                    f'experiment: stage name "{name}" may hold letters, digits, - and _ only'
                )
            for source in (*stage.duration.flops_of, *filter(None, [stage.starts_from])):
                if source not in earlier:
                    raise ConfigError(
                        f'stages.{name}: "{source}" is not an earlier stage; the earlier ones are '
                        f"{', '.join(earlier) or 'none'}"
                    )
            if stage.validates and self.data_of(name).validation is None:
                field = "data.validation" if stage.data is None else "its data.validation"
                raise ConfigError(
                    f"stages.{name}: it chooses by validation, but {field} is not given"
                )
            earlier.append(name)
        if self.main is not None and not (
            self.main in self.stages and self.stages[self.main].objective.gives_scores
        ):
            raise ConfigError(f'main: "{self.main}" is not a stage that gives label scores')
        if self.profile is not None:
            parse_profile(self.profile)

    def data_of(self, stage: str) -> Data:
        """The data of a stage: its own, under the experiment's root unless they name another."""
        own = self.stages[stage].data
        if own is None:
            return self.data
        return own if own.root else dataclasses.replace(own, root=self.data.root)


def parse_profile(text: str) -> tuple[int, int]:
    """Read START:STOP.

    Raises:
      ConfigError: the text is not two increasing step numbers.

    Example:
      >>> parse_profile("10:20")
      (10, 20)
    """
    start, _, stop = text.partition(":")
    if not (start.isdigit() and stop.isdigit() and int(start) < int(stop)):
        raise ConfigError(f'profile: "{text}" is not START:STOP, two increasing step numbers')
    return int(start), int(stop)
