"""What a run has kept: where its checkpoints are, whose they are, and the finished ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from jaxmlcl.data.source import Source
from jaxmlcl.distributed import group
from jaxmlcl.errors import CheckpointError, ConfigError, UserError
from jaxmlcl.training._storage import is_remote, open_place
from jaxmlcl.training.checkpoint import Checkpoint, CheckpointStore
from jaxmlcl.training.experiment import Experiment
from jaxmlcl.training.program import StageProgram
from jaxmlcl.training.step import TrainState
from jaxmlcl.training.workdir import check_folder, folder_before


def checkpoint_folder(workdir: Path, folder: str | None) -> Path | str:
    """Where a run's checkpoints are: `checkpoint.folder`, from the workdir, or in a bucket."""
    if folder is not None and is_remote(folder):
        return folder.rstrip("/")
    return workdir / Path(folder or "checkpoints").expanduser()


def stage_folder(workdir: Path, stage: str, folder: str | None = None) -> Path | str:
    """Where a stage's checkpoints are; `folder` is the experiment's `checkpoint.folder`."""
    place = checkpoint_folder(workdir, folder)
    return f"{place}/{stage}" if isinstance(place, str) else place / stage


def load_stage(
    store: CheckpointStore,
    program: StageProgram,
    report: Callable[[str], None],
) -> tuple[TrainState, Checkpoint]:
    """The state a finished stage ended with: its best by validation, or its last.

    Where the stage averages its network, the averages stand in place of the parameters. A damaged
    best is passed over for the last, saying so.

    Raises:
      UserError: the stage is not finished, or its checkpoints are damaged.
    """
    finished = store.latest_valid(where=lambda found: found.finished, report=report)
    chosen = finished
    if finished is not None and program.program.stage.select != "last":
        chosen = store.latest_valid(where=lambda found: found.best, report=report) or finished
    if chosen is None:
        raise UserError(
            f"stage {program.name}: no intact finished checkpoint in {store.directory}; run the "
            "training command again"
        )
    return program.restore(store, chosen).averaged(), chosen


def check_fingerprint(checkpoint: Checkpoint, split: str, source: Source) -> None:
    """Refuse data that are not those a checkpoint was trained, or chosen, with.

    Raises:
      CheckpointError: with both fingerprints.
    """
    saved, now = checkpoint.host["data"].get(split), source.metadata.fingerprint
    if saved != now:
        raise CheckpointError(
            f"{checkpoint.path}: it was trained on other data (fingerprint of {split} "
            f"{str(saved)[:12]}, now {now[:12]}); bring back the data, or start in a new workdir"
        )


def check_kept(
    experiment: Experiment, workdir: Path, resolved: str, stores: Mapping[str, CheckpointStore]
) -> None:
    """Refuse checkpoints of another experiment, and to begin anew because their folder changed."""

    def check() -> None:
        folder = experiment.checkpoint.folder
        if folder is not None:
            check_folder(open_place(checkpoint_folder(workdir, folder)), resolved)
        before = folder_before(workdir, folder)
        if before == folder or any(store.checkpoints() for store in stores.values()):
            return
        old = checkpoint_folder(workdir, before)
        for name in stores:
            if CheckpointStore(stage_folder(workdir, name, before)).checkpoints():
                raise ConfigError(
                    f"checkpoint.folder: the run's checkpoints are in {old}, and there are none in "
                    f"{checkpoint_folder(workdir, folder)}; copy them there to continue the run, "
                    "or leave the folder as it was"
                )

    group().once(check)
