"""A stage of several members of a population, trained together from its first step to its last."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlcl.data.pipeline import GlobalOrder
from jaxmlcl.data.source import Source
from jaxmlcl.training._members import Members, keep
from jaxmlcl.training.console import Console
from jaxmlcl.training.experiment import Experiment
from jaxmlcl.training.optimizers import Plateau
from jaxmlcl.training.program import scoring_batches, stage_key
from jaxmlcl.training.progress import Progress
from jaxmlcl.training.stage import Stage
from jaxmlcl.training.step import TrainState
from jaxmlcl.training.trainer import validation_measures

PyTree = Any

# Steps that one call of the compiled program takes at most.
_MOST_STEPS = 250


@dataclasses.dataclass(frozen=True)
class StageOutcome:
    """How one stage of one member ended."""

    steps: int
    """Optimiser steps taken."""
    best_step: int
    """The step whose network the stage ended with: the best on validation, or the last."""
    loss: float
    """Training loss of the last step."""
    validation: dict[str, float]
    """Measures on the validation split at `best_step`; empty if it was not scored."""
    history: tuple[tuple[int, dict[str, float]], ...]
    """(step, measures) of every validation."""
    seconds: float
    """Time that the stage took for all members trained with this one, compilation included."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network that scores sources like those it was trained on."""

    members: Members
    arrays: PyTree
    key: jax.Array
    values: dict[str, Any]
    constants: PyTree
    """Data it was trained on; scoring reads their preparation."""

    def __call__(self, source: Source) -> np.ndarray:
        """Label scores [n, L] of every row."""
        batches = list(scoring_batches(source, self.members.program.mesh))
        return self.members.scores_of_one(
            self.arrays, self.key, self.values, batches, self.constants
        )


@dataclasses.dataclass(frozen=True)
class Job:
    """One stage of one or several members that agree in everything it depends on."""

    name: str
    experiment: Experiment
    """Of one of these members."""
    start: Hashable
    """Key of the job that it starts from, or None."""

    @property
    def stage(self) -> Stage:
        return self.experiment.stages[self.name]


@dataclasses.dataclass(frozen=True)
class Result:
    """What later stages and the trials want of a finished job."""

    outcome: StageOutcome
    flops: float
    network: Network
    error: str | None


@dataclasses.dataclass(frozen=True)
class Splits:
    """Training and validation data on the device, and what is read off them."""

    source: Source
    validation: Source | None
    constants: PyTree
    batches: list[tuple[jax.Array, int]]
    """Validation inputs; none if there is no such split."""
    labels: np.ndarray
    known: np.ndarray | None = None
    """Which of the labels are known; None: all."""


def train_together(
    members: Members,
    jobs: Sequence[Job],
    splits: Splits,
    starts: Sequence[PyTree] | None,
    console: Console,
) -> list[Result]:
    """Train a stage of several members in one program.

    Args:
      members: the program.
      jobs: what each member is.
      splits: their data.
      starts: (parameters, objective state) that each member's encoder comes from, if any.
      console: what hears of the progress.
    """
    program = members.program
    name, stage, total = program.name, program.program.stage, program.total
    count = len(jobs)
    began = time.perf_counter()
    console.line(
        f"{name}: {stage.objective.describe()}, {total} steps of {stage.batch_size}, "
        f"{count} member{'s' if count > 1 else ''} at once"
    )
    keys = jnp.stack([stage_key(job.experiment.seed, name, job.experiment.random) for job in jobs])
    keys, values = members.place((keys, members.values([job.stage for job in jobs])))
    source = None
    if starts is not None:
        source = jax.tree.map(lambda *leaves: np.stack(leaves), *starts)
    state = members.init(keys, values, source)
    bad = members.place(jnp.zeros(count, jnp.int32))
    best: PyTree = None
    if stage.select != "last":
        best = jax.tree.map(jnp.copy, _network(state))

    orders = {
        seed: GlobalOrder(len(splits.source), stage.batch_size, seed)
        for seed in {job.experiment.seed for job in jobs}
    }
    validates = bool(splits.batches) and stage.objective.gives_scores
    every = program.count(stage.validate_every) if validates else total
    progress = [Progress() for _ in jobs]
    history: list[list[tuple[int, dict[str, float]]]] = [[] for _ in jobs]
    losses = np.full(count, np.nan)
    errors: list[str | None] = [None] * count
    running = np.ones(count, bool)
    step = 0
    console.start(f"{name} x {count}", 0, total, stage.batch_size * count)
    while running.any():
        # As the trainer: some steps, a look at what they measured, a validation.
        stop = min(total, step + _MOST_STEPS, (step // every + 1) * every)
        drawn = {
            seed: np.stack([order[i] for i in range(step, stop)]) for seed, order in orders.items()
        }
        indices = np.stack([drawn[job.experiment.seed] for job in jobs], axis=1)
        state, bad, last = members.steps(state, bad, keys, values, indices, splits.constants)
        step = stop
        found = np.asarray(bad)
        for member in np.flatnonzero(running).tolist():
            progress[member].step = step
            losses[member] = last[member]
            if found[member]:
                running[member] = False
                errors[member] = (
                    f"{name}: the loss or the parameters are not finite at step {found[member]}"
                )
        improved = np.zeros(count, bool)
        ended = running & (step == total)
        if validates and running.any() and (step % every == 0 or step == total):
            scores = members.scores(_network(state), keys, values, splits.batches, splits.constants)
            measured = [
                validation_measures(scores[member], splits.labels, splits.known, stage.select)
                if running[member]
                else {}
                for member in range(count)
            ]
            for member in np.flatnonzero(running).tolist():
                history[member].append((step, measured[member]))
                improved[member] = progress[member].judge(stage.select, measured[member])
                since = progress[member].validations_since_best
                if stage.patience is not None and since >= stage.patience:
                    ended[member] = True
            if isinstance(stage.optimizer.schedule, Plateau):
                told = [measure.get("loss", np.nan) for measure in measured]
                plateau = members.advance_plateau(state.plateau, np.asarray(told, np.float32))
                state = dataclasses.replace(state, plateau=plateau)
        if best is not None:
            # A member without a best, whose measures are all NaN, ends with its last.
            hopeless = [one.best_value is None for one in progress]
            best = keep(improved | (ended & hopeless), _network(state), best)
        running &= ~ended
        shown = losses[np.isfinite(losses)]
        console.progress(step, float(shown.mean()) if shown.size else None)
    console.stop()

    seconds = time.perf_counter() - began
    arrays = jax.device_get(_network(state) if best is None else best)
    results = []
    for member, taken in enumerate(progress):
        chosen = taken.step if taken.best_value is None else taken.best_step
        outcome = StageOutcome(
            steps=taken.step,
            best_step=chosen,
            loss=float(losses[member]),
            validation=dict(history[member]).get(chosen, {}),
            history=tuple(history[member]),
            seconds=seconds,
        )
        network = Network(
            members,
            jax.tree.map(lambda leaf, member=member: leaf[member], arrays),
            keys[member],
            {field: value[member] for field, value in values.items()},
            splits.constants,
        )
        flops = program.flops_per_step * taken.step
        results.append(Result(outcome, flops, network, errors[member]))
    return results


def _network(state: TrainState) -> PyTree:
    """What members are scored with and later stages start from."""
    state = state.averaged()
    return state.params, state.objective
