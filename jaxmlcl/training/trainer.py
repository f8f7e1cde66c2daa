"""The trainer: one loop for every stage of every method, readable from top to bottom."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmlcl.data.pipeline import GlobalOrder, batches
from jaxmlcl.distributed import group
from jaxmlcl.errors import ConfigError, NonFiniteError, Preempted
from jaxmlcl.evaluation import choose_thresholds, multilabel_metrics
from jaxmlcl.sharding import place_rows
from jaxmlcl.training._storage import open_place
from jaxmlcl.training.checkpoint import Checkpoint, CheckpointStore
from jaxmlcl.training.console import Console, Silent
from jaxmlcl.training.experiment import Experiment, parse_profile
from jaxmlcl.training.kept import (
    check_fingerprint,
    check_kept,
    checkpoint_folder,
    load_stage,
    stage_folder,
)
from jaxmlcl.training.optimizers import Plateau
from jaxmlcl.training.profile import Profile
from jaxmlcl.training.program import (
    StageProgram,
    build_stage,
    device_constants,
    scoring_inputs,
    show_bytes,
    source_labels,
    source_mask,
    stage_steps,
)
from jaxmlcl.training.progress import Progress
from jaxmlcl.training.signals import Stop, stop_signals
from jaxmlcl.training.splits import (
    StageData,
    check_same_data,
    check_selection,
    data_field,
    open_data,
    source_annotations,
)
from jaxmlcl.training.stage import Stage
from jaxmlcl.training.step import advance_plateau
from jaxmlcl.training.trained_on import save_trained_on
from jaxmlcl.training.weights import read_start
from jaxmlcl.training.workdir import (
    check_same_everywhere,
    check_shared,
    open_workdir,
    write_file,
)
from jaxmlcl.training.writers import MetricsLog, NoLog, TensorBoard

# Measurements wait on the device at most this many steps before they are looked at.
_MOST_PENDING = 256
_AGAIN = "run the same command again to continue"
_VALIDATED = ("map", "micro_f1", "macro_f1", "example_f1", "hamming_accuracy", "precision_at_1")


def default_workdir(experiment: Experiment) -> Path:
    """Where an experiment is written: its workdir, or runs/NAME."""
    return Path(experiment.workdir or Path("runs") / experiment.name)


def train(
    experiment: Experiment,
    resolved: str,
    *,
    console: Console | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Path:
    """Run an experiment, or continue it from its last checkpoint.

    Args:
      experiment: what to run.
      resolved: the same as JSON text, as it is kept in the workdir.
      console: what hears of the progress; nothing by default.
      devices: the devices to use; all by default.

    Returns:
      The workdir.

    Raises:
      UserError: something the user can mend: configuration, data, disk, NaN in the loss.
      Preempted: a signal asked to stop; the state is saved.
    """
    console = console or Silent()
    check_same_everywhere(resolved)
    folder = default_workdir(experiment)
    with open_workdir(folder, resolved) as workdir, stop_signals(group()) as stop:
        # Set up: devices, data, and what every step reads.
        mesh = experiment.mesh.build(devices)
        data = open_data(experiment)
        check_same_data(
            {
                f"{split} of stage {name}": source
                for name, own in data.items()
                for split, source in (("train", own.train), ("validation", own.validation))
            }
        )
        stores = {
            name: CheckpointStore(
                stage_folder(workdir, name, experiment.checkpoint.folder),
                keep_latest=experiment.checkpoint.keep,
            )
            for name in experiment.stages
        }
        check_kept(experiment, workdir, resolved, stores)
        for store in stores.values():
            for removed in store.clean():
                console.line(
                    f"{removed}: removed, an interrupted save or a checkpoint without its manifest"
                )
        run = _Run(experiment, workdir, mesh, data, stores, console, stop)
        platform = mesh.devices.flat[0].platform
        first = data[next(iter(data))]
        console.line(
            f"{experiment.name}: {_counts(first)}, {mesh.size} {platform} device(s), "
            f"workdir {workdir}"
        )
        for name, own in data.items():
            if experiment.stages[name].data is not None:
                console.line(f"{name}: data of its own, {_counts(own)}")
        try:
            # Check: every stage is worked out before the first one trains.
            run.plan()
            # Restore: find where the run stands, and forget what was logged after that.
            position = run.find_position()
            splits = {name: (used.train, used.validation) for name, used in data.items()}
            check_selection(experiment, splits)
            # Nothing is refused from here on: what the folder says is now about this run.
            write_file(workdir / "experiment.json", resolved)
            if experiment.checkpoint.folder is not None:
                kept = open_place(checkpoint_folder(workdir, experiment.checkpoint.folder))
                check_shared(kept)
                write_file(kept / "experiment.json", resolved)
            for used in data.values():
                used.preparation.save(workdir / used.file)
            save_trained_on(workdir, {name: used.train for name, used in data.items()})
            run.log.cut(position.host["metrics_offset"] if position else 0)
            # Train: every stage in order; finished ones only say what they cost.
            for name in experiment.stages:
                run.stage(name)
        finally:
            run.close()
        return workdir


class _Run:
    """One call of `train`: everything its stages share."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: Path,
        mesh: jax.sharding.Mesh,
        data: dict[str, StageData],
        stores: dict[str, CheckpointStore],
        console: Console,
        stop: Stop,
    ) -> None:
        self.experiment = experiment
        self.workdir = workdir
        self.mesh = mesh
        self.data = data
        self.constants: tuple[StageData, Any] | None = None
        self.stores = stores
        self.console = console
        self.stop = stop
        # What is written once is written by process 0.
        writes = group().primary
        self.log = MetricsLog(workdir) if writes else NoLog()
        tensorboard = writes and experiment.logging.tensorboard
        self.tensorboard = TensorBoard(workdir) if tensorboard else None
        self.restored: dict[str, Checkpoint | None] = {}
        self.flops: dict[str, float] = {}
        self.summary: dict[str, Any] = {}
        self.programs: dict[str, StageProgram] = {}

    def plan(self) -> None:
        """Build every stage and its start, so that a misfit is told now and not hours later."""
        flops: dict[str, float] = {}
        for name, stage in self.experiment.stages.items():
            program = build_stage(self.experiment, name, self.mesh, self.data[name].train, flops)
            if stage.starts_from is not None:
                program.check_start(self.programs[stage.starts_from])
            # What has begun needs the file no more, which may be gone when a run is continued.
            if stage.weights is not None and not self.stores[name].checkpoints():
                read_start(self.experiment, program)
            flops[name] = program.flops_per_step * program.total
            self.programs[name] = program
        first = next(iter(self.programs.values()))
        if self.experiment.profile and parse_profile(self.experiment.profile)[0] >= first.total:
            raise ConfigError(
                f'profile: "{self.experiment.profile}" begins after the last of the {first.total} '
                f"steps of {first.name}"
            )

    def find_position(self) -> Checkpoint | None:
        """The newest intact checkpoint of every stage up to the first unfinished one."""
        latest, complete = None, True
        for name, store in self.stores.items():
            if not complete:
                if store.discard():
                    self.console.line(f"{name}: trained anew, since an earlier stage is")
                continue
            checkpoint = store.latest_valid(report=self.console.line)
            self.restored[name] = checkpoint
            complete = checkpoint is not None and checkpoint.finished
            if checkpoint is not None:
                self._check_data(name, checkpoint)
                latest = checkpoint
        return latest

    def _check_data(self, name: str, checkpoint: Checkpoint) -> None:
        data = self.data[name]
        check_fingerprint(checkpoint, "train", data.train)
        if data.validation is not None:
            check_fingerprint(checkpoint, "validation", data.validation)
        before = {"processes": 1, **checkpoint.host["machine"]}
        machine = _machine(self.mesh)
        if before != machine:
            self.console.line(
                f"continuing on another machine or mesh ({before} before, {machine} now): results "
                "agree to rounding, not to the bit"
            )

    def stage(self, name: str) -> None:
        """Train one stage to its end, from its last checkpoint if there is one."""
        stage = self.experiment.stages[name]
        program = self.programs[name]
        source = self.data[name].train
        if stage.duration.flops_of:
            # The other stages may have ended before their time.
            program = build_stage(self.experiment, name, self.mesh, source, self.flops)
        checkpoint = self.restored.get(name)
        if checkpoint is not None and checkpoint.finished:
            self._conclude(program, Progress(**checkpoint.host["progress"]))
            self.console.line(f"{name}: finished before, at step {checkpoint.step}")
            return
        if (asked := self.stop.reached()) is not None:
            raise Preempted(f"stopped by {asked} before {name} began; {_AGAIN}")

        # The state: restored, or fresh with an earlier stage's encoder.
        progress = Progress()
        if checkpoint is not None:
            progress = Progress(**checkpoint.host["progress"])
            state = program.restore(self.stores[name], checkpoint)
            self.console.line(f"{name}: continuing after step {progress.step}")
        else:
            state = program.initial(self._start(name))

        # The step, compiled once for every batch of the stage.
        constants = self._constants(self.data[name])
        resident = "resident" in constants
        steps = stage_steps(self.experiment, name, source, self.mesh, resident=resident)
        compiled, seconds = program.compile(steps[progress.step], constants)
        progress.compile_seconds += seconds
        sizes = ", ".join(f"{k} {show_bytes(v)}" for k, v in program.bytes_of_state().items())
        self.console.line(
            f"{name}: {stage.objective.describe()}, {program.total} steps of {stage.batch_size}, "
            f"compiled in {seconds:.1f} s, {program.flops_per_step / 1e9:.3g} GFLOP a step; {sizes}"
        )
        queue = program.describe_queue()
        if queue is not None:
            self.console.line(f"{name}: {queue}")
        scorer = self._validator(program, constants) if stage.objective.gives_scores else None

        every = {
            "log": program.count(self.experiment.logging.every),
            "validate": program.count(stage.validate_every),
            "save": program.count(self.experiment.checkpoint.every),
        }
        first = progress.step
        profile = self._profile(name, first)
        # A CPU's devices share its threads. Steps that are under way together can take them from
        # each other until every one of them waits for a device that has none.
        one_at_a_time = self.mesh.size > 1 and self.mesh.devices.flat[0].platform == "cpu"
        pending: list[tuple[int, dict[str, jax.Array]]] = []
        started = last_log = time.perf_counter()
        last_logged = first
        finished = first >= program.total
        self.console.start(name, first, program.total, stage.batch_size)
        replaced = progress.replaced - steps.replaced
        iterator = batches(steps, first, self.experiment.loading)
        try:
            while not finished:
                # 1. One step. Nothing is moved between host and device but the batch.
                host = next(iterator)
                progress.replaced = replaced + steps.replaced
                profile.before(progress.step)
                batch = place_rows(host, self.mesh)
                with jax.transfer_guard("disallow"):
                    state, measurements = compiled(state, batch, constants)
                if one_at_a_time:
                    jax.block_until_ready(measurements)
                progress.step += 1
                pending.append((progress.step, measurements))
                profile.after(progress.step, state)
                finished = progress.step >= program.total
                # Read once: a signal that comes later in this round is for the next one. With
                # several processes all leave at the same step.
                leaving = self.stop.reached()

                # 2. Look at what the last steps measured; stop before anything bad is saved.
                loss = None
                logging = progress.step % every["log"] == 0 or finished
                validating = scorer is not None and (
                    progress.step % every["validate"] == 0 or finished
                )
                saving = progress.step % every["save"] == 0 or finished or leaving is not None
                if logging or validating or saving or len(pending) >= _MOST_PENDING:
                    last = self._drain(name, stage, pending)
                    loss = last["loss"]
                if logging:
                    now = time.perf_counter()
                    rate = (progress.step - last_logged) * stage.batch_size / (now - last_log)
                    last_log, last_logged = now, progress.step
                    timed = {**last, "samples_per_second": rate}
                    self._write("train", program, progress.step, timed)
                self.console.progress(progress.step, loss)

                # 3. Validate, and decide whether this is the best so far.
                best = False
                if validating and scorer is not None:
                    # What follows from it must be the same everywhere, to the last bit.
                    measured = group().share(scorer(state))
                    self._write("validation", program, progress.step, measured)
                    best = progress.judge(stage.select, measured)
                    if isinstance(stage.optimizer.schedule, Plateau):
                        plateau = advance_plateau(
                            stage.optimizer.schedule, state.plateau, np.float32(measured["loss"])
                        )
                        state = dataclasses.replace(state, plateau=plateau)
                    if stage.patience is not None and not finished:
                        finished = progress.validations_since_best >= stage.patience

                # 4. Save arrays, data position, best and log offset as one unit.
                if saving or best or finished:
                    spent = time.perf_counter()
                    progress.train_seconds += spent - started
                    started = spent
                    self._save(program, state, progress, best=best, finished=finished)

                # 5. Leave if asked to.
                if leaving is not None and not finished:
                    self.stores[name].wait()
                    self.console.stop()
                    saved = f"after saving step {progress.step} of {name}"
                    raise Preempted(f"stopped by {leaving} {saved}; {_AGAIN}")
        finally:
            profile.close()
            iterator.close()
            self.console.stop()
        self.stores[name].wait()
        if progress.replaced:
            here = " of this process" if group().count > 1 else ""
            self.console.line(
                f"{name}: {progress.replaced} samples{here} stood in for images that cannot be "
                "decoded"
            )
        self._conclude(program, progress)

    def _constants(self, data: StageData) -> Any:
        """What a stage's steps read and do not change; of one data set at a time on the device."""
        if self.constants is None or self.constants[0] is not data:
            self.constants = None
            on_device = device_constants(
                data.preparation, data.train, self.mesh, self.experiment.precision
            )
            self.constants = (data, on_device)
        return self.constants[1]

    def _start(self, name: str) -> Any:
        """Parameters and objective state that a stage starts from."""
        stage = self.experiment.stages[name]
        if stage.weights is not None:
            self.console.line(f"{name}: the encoder starts from {stage.weights}")
            return read_start(self.experiment, self.programs[name])
        source = stage.starts_from
        if source is None:
            return None
        state, _ = load_stage(self.stores[source], self.programs[source], self.console.line)
        return state.params, state.objective

    def _drain(
        self, name: str, stage: Stage, pending: list[tuple[int, dict[str, jax.Array]]]
    ) -> dict[str, float]:
        """The last step's measurements; every waiting step's loss and parameters are checked."""
        checked = ("loss", "parameter_norm")
        found = jax.device_get([[terms[name] for name in checked] for _, terms in pending])
        for (step, measurements), values in zip(pending, found, strict=True):
            if not np.isfinite(values).all():
                what = "loss is" if not math.isfinite(values[0]) else "parameters are"
                terms = _on_host(measurements)
                source = self.data[name].train
                order = GlobalOrder(len(source), stage.batch_size, self.experiment.seed)
                ids = source_annotations(source, order[step - 1])["ids"].tolist()
                shown = ", ".join(f"{term} {value:.4g}" for term, value in terms.items())
                raise NonFiniteError(
                    f"{name}: the {what} not finite at step {step}: {shown}; sample ids of the "
                    f"batch: {ids}; the last good checkpoint is kept; look at these samples, or "
                    "lower the learning rate in a new workdir"
                )
        last = _on_host(pending[-1][1])
        pending.clear()
        return last

    def _write(self, kind: str, program: StageProgram, step: int, values: dict[str, float]) -> None:
        epoch = step * program.count.batch_size / program.count.examples
        row = {"kind": kind, "stage": program.name, "step": step, "epoch": epoch, **values}
        self.log.write(row)
        if self.tensorboard is not None:
            self.tensorboard.write(row)

    def _validator(self, program: StageProgram, constants: Any) -> Any:
        """A function from the state to measurements on the validation split, if there is one."""
        validation = self.data[program.name].validation
        if validation is None:
            return None
        inputs = scoring_inputs(validation, self.mesh)
        labels, _ = source_labels(validation)
        known = source_mask(validation, f"{data_field(self.experiment, program.name)}.validation")
        score, select = program.scorer(constants), program.program.stage.select

        def validate(state: Any) -> dict[str, float]:
            network = state.averaged()
            parts = [
                jax.device_get(score(network.params, network.objective, x))[:valid]
                for x, valid in inputs
            ]
            return validation_measures(np.concatenate(parts), labels, known, select)

        return validate

    def _save(
        self, program: StageProgram, state: Any, progress: Progress, *, best: bool, finished: bool
    ) -> None:
        self.log.sync()
        data = self.data[program.name]
        host = {
            "progress": dataclasses.asdict(progress),
            "metrics_offset": self.log.offset,
            "data": {
                "train": data.train.metadata.fingerprint,
                "validation": data.validation.metadata.fingerprint if data.validation else None,
                "label_names": list(data.train.metadata.label_names),
                "next_step": progress.step,
                "seed": self.experiment.seed,
            },
            "queue_shards": program.program.spec.queue_shards,
            "machine": _machine(self.mesh),
        }
        saved = program.portable(state)
        self.stores[program.name].save(progress.step, saved, host, best=best, finished=finished)

    def _conclude(self, program: StageProgram, progress: Progress) -> None:
        """Note what the stage cost, for later durations and the report."""
        stage = program.program.stage
        self.flops[program.name] = program.flops_per_step * progress.step
        sizes = program.bytes_of_state()
        leaves = jax.tree.leaves(program.abstract.params)
        self.summary[program.name] = {
            "objective": stage.objective.describe(),
            "gives_scores": stage.objective.gives_scores,
            "steps": progress.step,
            "epochs": progress.step * stage.batch_size / program.count.examples,
            "batch_size": stage.batch_size,
            "select": stage.select,
            "best_step": progress.best_step if progress.best_value is not None else None,
            "starts_from": stage.starts_from,
            "gflop_per_step": program.flops_per_step / 1e9,
            "gflop_total": self.flops[program.name] / 1e9,
            "parameters": sum(leaf.size for leaf in leaves),
            "bytes": sizes,
            "compile_seconds": progress.compile_seconds,
            "train_seconds": progress.train_seconds,
            **({"replaced_samples": progress.replaced} if progress.replaced else {}),
            "machine": _machine(self.mesh),
        }
        write_file(self.workdir / "stages.json", json.dumps(self.summary, indent=2) + "\n")

    def _profile(self, name: str, first: int) -> Profile:
        wanted = self.experiment.profile if group().primary else None
        if wanted is None or name != next(iter(self.experiment.stages)):
            return Profile(None, self.workdir)
        if first > parse_profile(wanted)[0]:
            self.console.line(f"profile: no trace, step {parse_profile(wanted)[0]} is already done")
        return Profile(parse_profile(wanted), self.workdir)

    def close(self) -> None:
        """Wait for what is still being written, and close the logs."""
        self.log.close()
        if self.tensorboard is not None:
            self.tensorboard.close()
        for store in self.stores.values():
            store.wait()


def validation_measures(
    scores: np.ndarray, labels: np.ndarray, known: np.ndarray | None = None, select: str = "last"
) -> dict[str, float]:
    """Mean binary cross-entropy of the scores, and the measures that are logged while training.

    Both over the labels that `known` [n, L] says are known; None: all. What a stage selects by is
    among them, also where it is not logged otherwise.
    """
    p = np.clip(scores.astype(np.float64), 1e-7, 1.0 - 1e-7)
    losses = -np.where(labels > 0, np.log(p), np.log1p(-p))
    loss = (losses if known is None else losses[known]).mean()
    if not np.isfinite(scores).all():
        extra = (select,) if select == "best_macro_f1" else ()
        return {"loss": math.nan, **dict.fromkeys((*_VALIDATED, *extra), math.nan)}
    measured = multilabel_metrics(scores, labels, label_mask=known)
    found = {"loss": float(loss), **{name: float(measured[name]) for name in _VALIDATED}}
    if select == "best_macro_f1":
        cut = choose_thresholds(scores, labels, label_mask=known)["macro_f1"]
        best = multilabel_metrics(scores, labels, threshold=cut, label_mask=known)
        found[select] = float(best["macro_f1"])
    return found


def _counts(data: StageData) -> str:
    labels = len(data.train.metadata.label_names)
    return f"{len(data.train)} training samples, {labels} labels"


def _on_host(measurements: dict[str, jax.Array]) -> dict[str, float]:
    """A step's measurements as numbers, the loss first."""
    values = {term: float(value) for term, value in jax.device_get(measurements).items()}
    return {"loss": values.pop("loss"), **values}


def _machine(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    device = mesh.devices.flat[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "mesh": {name: int(size) for name, size in mesh.shape.items()},
        "processes": jax.process_count(),
        "cpu_cores": os.cpu_count(),
        "jax": jax.__version__,
    }
