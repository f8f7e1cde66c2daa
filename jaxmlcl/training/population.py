"""Many variants of one experiment, trained together: what a sweep or a study of seeds needs.

Each member's figures are those that `trainer.train` gives for it, up to rounding. Stages that
members have in common are trained once; stages that differ in their seed, or in numbers that can
be traced, are trained in one vmapped program. Only the training and validation splits are opened,
and nothing is written.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxmlcl.data.images import Photographs
from jaxmlcl.data.source import Source
from jaxmlcl.errors import ConfigError, UserError
from jaxmlcl.sharding import MeshSpec
from jaxmlcl.training._members import (
    Members,
    Path,
    differing_numbers,
    is_number,
    spec_leaves,
    traceable,
)
from jaxmlcl.training._together import (
    Job,
    Network,
    Result,
    Splits,
    StageOutcome,
    train_together,
)
from jaxmlcl.training.console import Console, Silent
from jaxmlcl.training.experiment import Experiment
from jaxmlcl.training.program import (
    StageProgram,
    build_stage,
    device_constants,
    preparation_of,
    scoring_batches,
    source_labels,
    source_mask,
)
from jaxmlcl.training.splits import (
    Preparation,
    check_same_labels,
    check_selection,
    data_field,
    fit_preparation,
    open_split,
)
from jaxmlcl.training.stage import Stage

PyTree = Any

# Members in one program: two cores are busy with one, an accelerator is not.
_AT_ONCE, _MOST = {"cpu": 4}, 64
# Of the memory of an accelerator, and where its size is not known (bytes).
_MEMORY_SHARE, _MEMORY = 0.5, 4 * 2**30
# A state is there about this often: donated and new, best so far, gradients and activations.
_COPIES = 5


@dataclasses.dataclass(frozen=True)
class Trial:
    """One member of a population, trained."""

    experiment: Experiment
    stages: dict[str, StageOutcome]
    """By name; those of a failed member end before the stage that failed."""
    error: str | None = None
    """Why the member failed: where its loss or parameters were not finite."""
    networks: dict[str, Network] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )
    """The scoring stages' networks, if they were kept."""

    @property
    def main(self) -> str:
        """The stage whose figures stand for the trial."""
        return main_stage(self.experiment)

    def scores(self, source: Source, stage: str | None = None) -> np.ndarray:
        """Label scores [n, L] of every row of a source, by the main or another scoring stage.

        Raises:
          UserError: the member failed, its networks were not kept, or the stage gives no scores.
        """
        if self.error is not None:
            raise UserError(f"a member that failed has no scores: {self.error}")
        name = self.main if stage is None else stage
        if name not in self.networks:
            raise UserError(
                f'no network of stage "{name}" was kept; those kept: '
                f"{', '.join(self.networks) or 'none (train with keep_networks=True)'}"
            )
        return self.networks[name](source)


def main_stage(experiment: Experiment) -> str:
    """The stage whose figures stand for an experiment: its `main`, or the last that gives scores.

    Raises:
      ConfigError: no stage gives label scores.
    """
    scoring = [name for name, stage in experiment.stages.items() if stage.objective.gives_scores]
    if not scoring:
        raise ConfigError(f"{experiment.name}: no stage gives label scores; add a probe or BCE")
    return experiment.main or scoring[-1]


def train_population(
    experiments: Sequence[Experiment],
    *,
    at_once: int | None = None,
    keep_networks: bool = False,
    console: Console | None = None,
    done: Callable[[int, Trial], None] | None = None,
    device: jax.Device | None = None,
) -> list[Trial]:
    """Train many variants of an experiment, all their stages, on one device.

    Orders, random numbers, validation and selection are those of `trainer.train`. Variants may
    differ in anything, but only those whose programs have the same shapes are trained together.

    Args:
      experiments: the members, usually one experiment with fields replaced.
      at_once: most members in one program; by default what suits the device and its memory.
      keep_networks: whether the trials can score other sources afterwards (`Trial.scores`).
      console: what hears of the progress; nothing by default.
      done: called with a member's position and its trial as soon as it is finished.
      device: the device to use; the first by default.

    Returns:
      One trial for each experiment, in their order.

    Raises:
      UserError: a configuration or data that the trainer would refuse as well.

    Example:
      >>> from jaxmlcl.config import Classification, Data, ResNet, Stage, steps
      >>> network = ResNet(depths=(1,), channels=4, stem="small")
      >>> data = Data("digits:train?size=32", validation="digits:validation?size=32")
      >>> stage = Stage(Classification(encoder=network), steps(2), batch_size=8)
      >>> trials = train_population([
      ...     Experiment("tiny", data, {"bce": stage}, seed=seed) for seed in (0, 1)])
      >>> [trial.stages["bce"].steps for trial in trials]
      [2, 2]
      >>> all(0 < trial.stages["bce"].validation["map"] < 1 for trial in trials)
      True
    """
    device = jax.devices()[0] if device is None else device
    population = _Population(experiments, at_once, keep_networks, console or Silent(), device)
    population.plan()
    trials: list[Trial | None] = [None] * len(experiments)
    for wave in population.waves():
        for position, trial in population.train(wave):
            trials[position] = trial
            if done is not None:
                done(position, trial)
    return [trial for trial in trials if trial is not None]


class _Population:
    """One call of `train_population`: data, compiled groups, and results still needed."""

    def __init__(
        self,
        experiments: Sequence[Experiment],
        at_once: int | None,
        keep_networks: bool,
        console: Console,
        device: jax.Device,
    ) -> None:
        self.experiments = experiments
        self.at_once = at_once
        self.keep_networks = keep_networks
        self.console = console
        self.mesh = MeshSpec().build([device])
        self.splits: dict[Hashable, Splits] = {}
        self.groups: dict[Hashable, Members] = {}
        self.traced: dict[Hashable, tuple[Path, ...]] = {}
        self.results: dict[Hashable, Result] = {}
        stages: dict[str, list[Stage]] = {}
        for experiment in experiments:
            for name, stage in experiment.stages.items():
                if stage.weights is not None:
                    raise ConfigError(
                        f"stages.{name}: it starts from a file of weights, which variants that are "
                        "trained together do not; use `jaxmlcl train` for each of them"
                    )
                stages.setdefault(name, []).append(stage)
        self.numbers = {name: set(differing_numbers(found)) for name, found in stages.items()}
        self.jobs: list[dict[str, tuple[Hashable, Job]]] = [_jobs(e) for e in experiments]
        # Results are kept while a member that is not finished wants them.
        self.wanted = collections.Counter(key for jobs in self.jobs for key, _ in jobs.values())

    def plan(self) -> None:
        """Work out every group, so that a misfit is told before anything trains."""
        seen: set[Hashable] = set()
        planned: dict[str, dict[Hashable, set[Hashable]]] = {}
        for experiment, jobs in zip(self.experiments, self.jobs, strict=True):
            flops: dict[str, float] = {}
            groups: dict[str, Hashable] = {}
            for name, stage in experiment.stages.items():
                groups[name] = self._group(jobs[name][1], flops)
                planned.setdefault(name, {}).setdefault(groups[name], set()).add(jobs[name][0])
                program = self.groups[groups[name]].program
                if stage.starts_from is not None:
                    start = groups[stage.starts_from]
                    if (groups[name], start) not in seen:
                        program.check_start(self.groups[start].program)
                        seen.add((groups[name], start))
                flops[name] = program.flops_per_step * program.total
            rows = tuple(
                (_data_key(experiment, name), stage.validates, stage.starts_from)
                for name, stage in experiment.stages.items()
            )
            if rows not in seen:
                seen.add(rows)
                opened = {name: self._open(experiment, name) for name in experiment.stages}
                check_selection(
                    experiment, {name: (one.source, one.validation) for name, one in opened.items()}
                )
        for name, found in planned.items():
            sizes = [len(keys) for keys in found.values()]
            self.console.line(
                f"{name}: {sum(sizes)} to train for {len(self.experiments)} members, "
                f"{len(sizes)} program{'s' if len(sizes) > 1 else ''}"
            )

    def waves(self) -> Iterator[list[int]]:
        """Members, so many at a time that their first stages fill one program."""
        groups: dict[tuple[Hashable, Hashable], dict[Hashable, list[int]]] = {}
        for position, jobs in enumerate(self.jobs):
            key, job = next(iter(jobs.values()))
            alike = (self._group(job, {}), tuple(jobs))
            groups.setdefault(alike, {}).setdefault(key, []).append(position)
        for (group, _), together in groups.items():
            most = self._most(self.groups[group])
            sharing = list(together.values())
            for start in range(0, len(sharing), most):
                yield sorted(itertools.chain(*sharing[start : start + most]))

    def train(self, positions: Sequence[int]) -> Iterator[tuple[int, Trial]]:
        """Train the stages of these members in order; members come out as they finish."""
        flops: dict[int, dict[str, float]] = {position: {} for position in positions}
        failed: set[int] = set()
        names = list(self.jobs[positions[0]])
        for name in names:
            waiting = [position for position in positions if position not in failed]
            missing: dict[Hashable, dict[Hashable, Job]] = {}
            for position in waiting:
                key, job = self.jobs[position][name]
                if key not in self.results:
                    group = self._group(job, flops[position])
                    missing.setdefault(group, {})[key] = job
            # The first has no members: for those whose stage was trained with an earlier wave.
            chunks: list[tuple[Hashable, list[Hashable]]] = [(None, [])]
            for group, found_missing in missing.items():
                most, keys = self._most(self.groups[group]), list(found_missing)
                chunks += [(group, keys[i : i + most]) for i in range(0, len(keys), most)]
            for group, keys in chunks:
                if keys:
                    found = self._together(group, [missing[group][key] for key in keys])
                    self.results.update(zip(keys, found, strict=True))
                for position in list(waiting):
                    result = self.results.get(self.jobs[position][name][0])
                    if result is None:
                        continue
                    waiting.remove(position)
                    flops[position][name] = result.flops
                    if result.error is not None:
                        failed.add(position)
                    if result.error is not None or name == names[-1]:
                        yield position, self._trial(position)

    def _together(self, group: Hashable, jobs: Sequence[Job]) -> list[Result]:
        starts = None
        if jobs[0].start is not None:
            starts = [self.results[job.start].network.arrays for job in jobs]
        splits = self._open(jobs[0].experiment, jobs[0].name)
        return train_together(self.groups[group], jobs, splits, starts, self.console)

    def _trial(self, position: int) -> Trial:
        """The trial of a member that is finished; its results are let go."""
        stages: dict[str, StageOutcome] = {}
        networks: dict[str, Network] = {}
        error = None
        for name, (key, job) in self.jobs[position].items():
            result = self.results.get(key)
            if result is not None and error is None:
                error = result.error
                if error is None:
                    stages[name] = result.outcome
                    if self.keep_networks and job.stage.objective.gives_scores:
                        networks[name] = result.network
            self.wanted[key] -= 1
            if not self.wanted[key]:
                self.results.pop(key, None)
        return Trial(self.experiments[position], stages, error, networks)

    def _open(self, experiment: Experiment, stage: str) -> Splits:
        data = experiment.data_of(stage)
        key = (_data_key(experiment, stage), experiment.precision)
        if key not in self.splits:
            source = open_split(data, "train")
            if isinstance(source, Photographs):
                raise ConfigError(
                    f"{data_field(experiment, stage)}.train: {data.train} are photographs, which "
                    "are read while they are trained on, so variants cannot be trained together; "
                    "use `jaxmlcl train` for each of them"
                )
            batches: list[tuple[jax.Array, int]] = []
            labels = np.zeros((0, len(source.metadata.label_names)), np.uint8)
            known = None
            validation = open_split(data, "validation") if data.validation else None
            if validation is not None:
                check_same_labels(source, validation, ("train", "validation"))
                batches = list(scoring_batches(validation, self.mesh))
                labels, _ = source_labels(validation)
                known = source_mask(validation, f"{data_field(experiment, stage)}.validation")
            if data.inputs == "inherit":
                start = self._open(experiment, str(experiment.stages[stage].starts_from))
                preparation = Preparation(**preparation_of(start.constants))
                preparation.check(source, data_field(experiment, stage))
            else:
                preparation = fit_preparation(data, source)
            constants = device_constants(preparation, source, self.mesh, experiment.precision)
            if "resident" not in constants:
                where = data_field(experiment, stage)
                raise ConfigError(
                    f"{where}.train: {data.train} does not fit on the device, so variants cannot "
                    "be trained together; use `jaxmlcl train` for each of them"
                )
            self.splits[key] = Splits(source, validation, constants, batches, labels, known)
        return self.splits[key]

    def _group(self, job: Job, flops: Mapping[str, float]) -> Hashable:
        """What members must agree in to be trained in one program, which is worked out."""
        stage, leaves = job.stage, dict(spec_leaves(job.stage))
        numbers = {path for path in self.numbers[job.name] if is_number(leaves.get(path))}
        alike = (
            job.name,
            _data_key(job.experiment, job.name),
            job.experiment.precision,
            job.experiment.random,
            tuple((path, None if path in numbers else leaf) for path, leaf in leaves.items()),
            frozenset(numbers),
            tuple(flops[name] for name in stage.duration.flops_of),
        )
        build = functools.partial(self._program, job, flops)
        if alike not in self.traced:
            constants = self._open(job.experiment, job.name).constants
            self.traced[alike] = traceable(build(), sorted(numbers, key=str), constants)
        traced = self.traced[alike]
        rest = tuple((path, leaves[path]) for path in sorted(numbers - set(traced), key=str))
        group = (alike, rest)
        if group not in self.groups:
            self.groups[group] = Members(build(), traced)
        return group

    def _program(self, job: Job, flops: Mapping[str, float]) -> StageProgram:
        source = self._open(job.experiment, job.name).source
        return build_stage(job.experiment, job.name, self.mesh, source, flops)

    def _most(self, members: Members) -> int:
        """How many members are trained in one program."""
        device = self.mesh.devices.flat[0]
        # Hosts say nothing of their memory.
        limit = (device.memory_stats() or {}).get("bytes_limit")
        budget = _MEMORY if limit is None else _MEMORY_SHARE * limit
        fitting = max(1, int(budget // (_COPIES * members.bytes_of_state())))
        most = _AT_ONCE.get(device.platform, _MOST) if self.at_once is None else self.at_once
        return min(fitting, most)


def _data_key(experiment: Experiment, stage: str) -> Hashable:
    """What the inputs of a stage depend on: its data and, where inherited, those it starts from."""
    data, start = experiment.data_of(stage), experiment.stages[stage].starts_from
    if data.inputs == "inherit" and start is not None:
        return data, _data_key(experiment, start)
    return data


def _jobs(experiment: Experiment) -> dict[str, tuple[Hashable, Job]]:
    """The experiment's stages, each with a key of everything that its result depends on."""
    jobs: dict[str, tuple[Hashable, Job]] = {}
    for name, stage in experiment.stages.items():
        start = None if stage.starts_from is None else jobs[stage.starts_from][0]
        key = (
            name,
            _data_key(experiment, name),
            experiment.precision,
            experiment.random,
            experiment.seed,
            tuple(spec_leaves(stage)),
            start,
            tuple(jobs[other][0] for other in stage.duration.flops_of),
        )
        jobs[name] = key, Job(name, experiment, start)
    return jobs
