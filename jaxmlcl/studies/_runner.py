"""Runs a study: trials chosen by validation, then every seed scored on the test rows, once.

A cell is one method on one data set of one table. Its folder keeps one JSON file per trial and per
seed; what is there and still the same experiment is not run again, so a stopped study goes on
where it was. Networks are trained by the trainer as any run is; their checkpoints are deleted once
they are scored, unless they are asked for.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import io
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmlcl.config import from_json, to_json
from jaxmlcl.errors import ConfigError, DataError, NonFiniteError, UserError
from jaxmlcl.evaluation import evaluate_scores, multilabel_metrics
from jaxmlcl.io import write_atomic
from jaxmlcl.studies._study import (
    Choice,
    DataSet,
    Fitted,
    Method,
    Networks,
    Study,
    Table,
    slug,
)
from jaxmlcl.training import trainer
from jaxmlcl.training.evaluate import evaluate_run
from jaxmlcl.training.experiment import Data
from jaxmlcl.training.program import source_labels, source_mask
from jaxmlcl.training.splits import (
    check_apart,
    check_same_labels,
    check_selection,
    fit_preparation,
    open_split,
    source_arrays,
)

Report = Callable[[str], None]
_RESULTS = ("threshold_free", "protocols")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method on one data set of one table."""

    table: Table
    data: DataSet
    method: Method
    folder: Path

    @property
    def name(self) -> str:
        """TABLE/SET/METHOD, as on the command line."""
        return f"{self.table.name}/{self.data.name}/{self.method.name}"

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds it is run with: one, where nothing depends on them."""
        return self.table.seeds if self.method.seeded else self.table.seeds[:1]

    def trials(self) -> list[dict[str, Any]]:
        """What is known of its trials, in their order."""
        if self.data.name in self.method.leaves_out:
            return []
        first = self.seeds[0]
        found = (
            _read(self.folder / f"trial-{i}.json", self.method.build(self.data, choice, first))
            for i, choice in enumerate(self.method.trials)
        )
        return [record for record in found if record is not None]

    def results(self) -> list[dict[str, Any]]:
        """What is known of its seeds, in their order."""
        found: list[dict[str, Any]] = []
        if self.data.name in self.method.leaves_out:
            return found
        for seed in self.seeds:
            path = self.folder / f"seed-{seed}.json"
            for choice in self.method.trials:
                record = _read(path, self.method.build(self.data, choice, seed))
                if record is not None:
                    found.append(record)
                    break
        return found

    def scores(self) -> dict[int, dict[str, np.ndarray]]:
        """Test scores by seed: {"ids", "scores", "labels"}, "label_mask" if some are unknown."""
        found = {}
        for seed in self.seeds:
            path = self.folder / f"seed-{seed}.npz"
            if path.exists():
                with np.load(path, allow_pickle=False) as stored:
                    found[seed] = dict(stored)
        return found


def cells(study: Study, folder: Path, only: Sequence[str] = ()) -> list[Cell]:
    """The cells of a study, or those whose TABLE/SET/METHOD begins with one of `only`.

    A `*` in a pattern stands for any table, set or method.

    Raises:
      UserError: nothing is called like one of `only`.
    """
    found = [
        Cell(table, data, method, folder / table.name / data.name / slug(method.name))
        for table in study.tables
        for data in table.sets
        for method in table.methods
    ]
    for pattern in only:
        if not any(_matches(cell.name, pattern) for cell in found):
            names = [cell.name.split("/") for cell in found]
            known = dict.fromkeys("/".join(parts[:n]) for n in (1, 2, 3) for parts in names)
            near = difflib.get_close_matches(pattern, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; --plan lists the names"
            raise UserError(f"reproduce: nothing is called {pattern} in this study{hint}")
    if not only:
        return found
    return [cell for cell in found if any(_matches(cell.name, pattern) for pattern in only)]


def _matches(name: str, pattern: str) -> bool:
    wanted, parts = pattern.split("/"), name.split("/")
    return len(wanted) <= len(parts) and all(
        one in ("*", part) for one, part in zip(wanted, parts, strict=False)
    )


def run_study(
    study: Study,
    folder: Path,
    *,
    only: Sequence[str] = (),
    keep: bool = False,
    report: Report = lambda _: None,
) -> None:
    """Run every cell that is not finished.

    Args:
      study: what to run.
      folder: where its cells are kept.
      only: TABLE, TABLE/SET or TABLE/SET/METHOD; everything if empty.
      keep: keep the runs (checkpoints and logs) of the seeds that are reported.
      report: called with a line for every trial and seed.

    Raises:
      UserError: nothing matches `only`, or something that concerns every cell, such as the disk.
    """
    chosen = cells(study, folder, only)
    missing: set[str] = set()
    # Files may have changed since an earlier call of this process.
    _checksums.cache_clear()
    _unseen_ids.cache_clear()
    for number, cell in enumerate(chosen, 1):
        if cell.data.name in cell.method.leaves_out or cell.data.name in missing:
            continue
        tell = _prefixed(report, f"[{number}/{len(chosen)}] {cell.name}")
        try:
            _run_cell(cell, keep, tell)
        except DataError as error:
            # Absent data cost their rows of the table, not the study.
            missing.add(cell.data.name)
            tell(f"left out: {error}")


def _prefixed(report: Report, prefix: str) -> Report:
    return lambda text: report(f"{prefix}: {text}")


def _run_cell(cell: Cell, keep: bool, report: Report) -> None:
    first, *others = cell.seeds
    trials = []
    for number, choice in enumerate(cell.method.trials):
        made = cell.method.build(cell.data, choice, first)
        path = cell.folder / f"trial-{number}.json"
        trial = _known(path, made)
        if trial is None:
            trial = _run_trial(path, made, choice)
            report(
                f"trial {number + 1} of {len(cell.method.trials)} {told(choice)}: "
                + (
                    trial["failed"]
                    if "failed" in trial
                    else f"validation mAP {trial['map']:.4f}, {trial['seconds']:.1f} s"
                )
            )
        trials.append(trial)
    able = [index for index, trial in enumerate(trials) if "failed" not in trial]
    if not able:
        report("every trial failed; it has no figures")
        return
    best = max(able, key=lambda index: trials[index]["map"])
    choice = cell.method.trials[best]
    for seed in (first, *others):
        made = cell.method.build(cell.data, choice, seed)
        path = cell.folder / f"seed-{seed}.json"
        known = _known(path, made)
        if known is not None and ("failed" in known or path.with_suffix(".npz").exists()):
            if not cell.data.unseen or "failed" in known or "unseen" in known:
                continue
            known["unseen"] = _unseen(path.with_suffix(".npz"), known, cell.data.data)
            write_atomic(path, json.dumps(known, indent=1) + "\n")
            continue
        # The chosen trial was trained with the first seed: its network is scored as it is.
        run = cell.folder / (f"trial-{best}" if seed == first else f"seed-{seed}")
        result = _score(path, run, made, choice, seed, cell.data.unseen)
        report(f"seed {seed} {told(choice)}: {_headline(result)}")
        if not keep:
            shutil.rmtree(run, ignore_errors=True)
    if not keep:
        for index in range(len(trials)):
            shutil.rmtree(cell.folder / f"trial-{index}", ignore_errors=True)


def told(choice: Choice) -> str:
    """A choice in words.

    Example:
      >>> told({"C": 3.0, "hidden": (256, 512)})
      '(C 3.0, hidden 256-512)'
    """
    if not choice:
        return "(nothing to choose)"
    words = (
        f"{name} {'-'.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in choice.items()
    )
    return f"({', '.join(words)})"


def _headline(result: dict[str, Any]) -> str:
    if "failed" in result:
        return str(result["failed"])
    paper = result["protocols"]["paper"]
    free = result["threshold_free"]

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    return (
        f"test mAP {shown(free['map'])}, P@1 {shown(free['precision_at_1'])}, paper protocol "
        f"mi-F1 {shown(paper['micro_f1'])}, ma-F1 {shown(paper['macro_f1'])}, "
        f"{result['seconds']:.1f} s"
    )


def _description(made: Networks | Fitted) -> str:
    if isinstance(made, Fitted):
        if type(made.baseline).__repr__ is object.__repr__:
            kind = type(made.baseline).__name__
            raise ConfigError(
                f"study: baseline {kind} does not tell its settings, so its results could not be "
                "recognised; make it a dataclass"
            )
        return f"{made.baseline!r} on {made.data!r}"
    return to_json(dataclasses.replace(made.experiment, workdir=None))


def _same(text: str, made: Networks | Fitted) -> bool:
    if isinstance(made, Fitted):
        return text == _description(made)
    try:
        # Read back and compared as values: a field added since, at its default, changes nothing.
        stored = from_json(text, where="stored experiment")
    except UserError:
        return False
    return _unplaced(stored) == _unplaced(made.experiment)


def _unplaced(experiment: Any) -> Any:
    data = dataclasses.replace(experiment.data, root=None)
    return dataclasses.replace(experiment, data=data, workdir=None)


def _read(path: Path, made: Networks | Fitted) -> dict[str, Any] | None:
    """A record, if it is there and is of this experiment."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return stored if _same(stored["experiment"], made) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _known(path: Path, made: Networks | Fitted) -> dict[str, Any] | None:
    """A record of this experiment on the data as they are now."""
    stored = _read(path, made)
    if stored is None:
        return None
    splits = tuple(stored.get("data", {}))
    return stored if stored.get("data", {}) == _checksums(_data(made), splits) else None


def _run_trial(path: Path, made: Networks | Fitted, choice: Choice) -> dict[str, Any]:
    started = time.perf_counter()
    record: dict[str, Any] = {"experiment": _description(made), "choice": _plain(choice)}
    try:
        if isinstance(made, Fitted):
            (validation,), _ = _fit(made, ("validation",))
            record["map"] = multilabel_metrics(
                validation.scores, validation.labels, label_mask=validation.label_mask
            )["map"]
        else:
            experiment, run = _placed(made, path.with_suffix(""))
            _check_rows(made)
            _train(experiment, run)
            document = evaluate_run(experiment, run, "validation", made.stage)
            record["map"] = document["threshold_free"]["map"]
            record |= _costs(run, document)
    except NonFiniteError as error:
        record["failed"] = str(error)
    if "failed" not in record and not math.isfinite(record["map"] or math.nan):
        record["map"] = None
        record["failed"] = "no label has a positive among the validation rows"
    record["data"] = _checksums(_data(made), ("train", "validation"))
    record["seconds"] = time.perf_counter() - started
    write_atomic(path, json.dumps(record, indent=1) + "\n")
    return record


def _score(
    path: Path, run: Path, made: Networks | Fitted, choice: Choice, seed: int, unseen: bool
) -> dict[str, Any]:
    started = time.perf_counter()
    record: dict[str, Any] = {
        "experiment": _description(made),
        "choice": _plain(choice),
        "seed": seed,
    }
    try:
        if isinstance(made, Fitted):
            (validation, test), names = _fit(made, ("validation", "test"))
            document = evaluate_scores(
                test.scores,
                test.labels,
                label_names=names,
                validation_scores=validation.scores,
                validation_labels=validation.labels,
                label_mask=test.label_mask,
                validation_mask=validation.label_mask,
            )
            arrays = {name: value for name, value in test._asdict().items() if value is not None}
        else:
            experiment, run = _placed(made, run)
            _train(experiment, run)
            everything = evaluate_run(experiment, run, "test", None if made.also else made.stage)
            document = everything["stages"][made.stage]
            record["also"] = {
                row: {name: everything["stages"][stage][name] for name in _RESULTS}
                for stage, row in made.also.items()
            }
            with np.load(run / "evaluation" / f"{made.stage}-test.npz") as stored:
                arrays = {name: stored[name] for name in _Fitted._fields if name in stored}
            record |= _costs(run, document)
        record |= {name: document[name] for name in _RESULTS}
        buffer = io.BytesIO()
        np.savez(buffer, **{**arrays, "scores": arrays["scores"].astype(np.float32)})
        write_atomic(path.with_suffix(".npz"), buffer.getvalue())
        if unseen:
            record["unseen"] = _unseen(path.with_suffix(".npz"), record, _data(made))
    except NonFiniteError as error:
        record["failed"] = str(error)
    record["data"] = _checksums(_data(made), ("train", "validation", "test"))
    record["seconds"] = time.perf_counter() - started
    write_atomic(path, json.dumps(record, indent=1) + "\n")
    return record


def _unseen(scored: Path, record: dict[str, Any], data: Data) -> dict[str, Any]:
    """Measures of the test rows whose inputs do not occur in training, at the same thresholds."""
    with np.load(scored, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    kept = np.isin(arrays["ids"], _unseen_ids(data))
    rows = {
        name: arrays[name][kept] for name in ("scores", "labels", "label_mask") if name in arrays
    }
    found = evaluate_scores(
        rows["scores"],
        rows["labels"],
        label_names=[str(label) for label in range(rows["labels"].shape[1])],
        label_mask=rows.get("label_mask"),
    )
    protocols = dict(found["protocols"])
    chosen = record["protocols"].get("best_on_val")
    if chosen is not None:
        # Validation chose a threshold for each measure, whatever rows are scored.
        protocols["best_on_val"] = {
            name: multilabel_metrics(
                rows["scores"],
                rows["labels"],
                threshold=threshold,
                label_mask=rows.get("label_mask"),
            )[name]
            for name, threshold in chosen["thresholds"].items()
        }
    return {
        "rows": int(kept.sum()),
        "threshold_free": found["threshold_free"],
        "protocols": protocols,
    }


@functools.lru_cache(maxsize=8)
def _unseen_ids(data: Data) -> np.ndarray:
    """Ids of the test rows whose inputs are those of no training row."""
    arrays = {split: source_arrays(open_split(data, split)) for split in ("train", "test")}
    if arrays["train"] is None or arrays["test"] is None:
        raise DataError(f"{data.test}: rows can be compared in sources that fit in memory only")
    known = {row.tobytes() for row in _comparable(arrays["train"]["inputs"])}
    kept = [row.tobytes() not in known for row in _comparable(arrays["test"]["inputs"])]
    ids: np.ndarray = arrays["test"]["ids"][np.array(kept)]
    return ids


def _comparable(inputs: np.ndarray) -> np.ndarray:
    # Adding 0 turns -0 into 0.
    return np.ascontiguousarray(inputs, np.float64) + 0.0


def _train(experiment: Any, run: Path) -> None:
    resolved = to_json(experiment)
    stored = run / "experiment.json"
    if stored.exists():
        if _same(stored.read_text(encoding="utf-8"), Networks(experiment, "")):
            # The trainer compares texts; this one may lack fields that have been added since.
            write_atomic(stored, resolved)
        else:
            shutil.rmtree(run)
    trainer.train(experiment, resolved)


def _check_rows(made: Networks) -> None:
    """Refuse to choose among trials on rows that they are trained on."""
    opened: dict[Data, Any] = {}
    for data in map(made.experiment.data_of, made.experiment.stages):
        if data not in opened:
            train = open_split(data, "train")
            opened[data] = train, open_split(data, "validation") if data.validation else None
    splits = {name: opened[made.experiment.data_of(name)] for name in made.experiment.stages}
    check_selection(made.experiment, splits, made.stage)


def _placed(made: Networks, run: Path) -> tuple[Any, Path]:
    return dataclasses.replace(made.experiment, workdir=str(run)), run


def _costs(run: Path, document: dict[str, Any]) -> dict[str, Any]:
    stages = json.loads((run / "stages.json").read_text(encoding="utf-8"))
    return {
        "step": document["run"]["step"],
        "gflop": document["run"]["gflop"],
        "steps": {name: stage["steps"] for name, stage in stages.items()},
    }


def _plain(choice: Choice) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in choice.items()}


def _data(made: Networks | Fitted) -> Data:
    return made.data if isinstance(made, Fitted) else made.experiment.data


@functools.lru_cache(maxsize=64)
def _checksums(data: Data, splits: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for split in splits:
        if getattr(data, split) is not None:
            source = open_split(data, split)
            found[split] = {
                "source": getattr(data, split),
                "rows": len(source),
                "fingerprint": source.metadata.fingerprint,
            }
    return found


class _Fitted(NamedTuple):
    # A baseline's scores of a split, and the split's own arrays.
    scores: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    label_mask: np.ndarray | None


def _fit(made: Fitted, splits: Sequence[str]) -> tuple[list[_Fitted], tuple[str, ...]]:
    """Scores and arrays of splits, from a baseline fitted on the prepared training rows."""
    train = open_split(made.data, "train")
    blind = not getattr(made.baseline, "looks_at_inputs", True)
    preparation = None if blind else fit_preparation(made.data, train)

    def arrays(source: Any) -> _Fitted:
        # With the prepared inputs in the place of the scores.
        if preparation is None:
            labels, ids = source_labels(source)
            mask = source_mask(source, source.metadata.name)
            return _Fitted(np.zeros((len(labels), 1), np.float32), labels, ids, mask)
        stored = source_arrays(source)
        if stored is None:
            raise DataError(f"{source.metadata.name}: a baseline needs data that fit in memory")
        inputs = (stored["inputs"] - preparation.shift) * preparation.scale
        known = stored.get("label_mask")
        return _Fitted(inputs.astype(np.float32), stored["labels"], stored["ids"], known)

    rows = arrays(train)
    mask = () if rows.label_mask is None else (rows.label_mask,)
    predictor = made.baseline.fit(rows.scores, rows.labels, *mask)
    results = []
    opened = {"train": train}
    for split in splits:
        source = open_split(made.data, split)
        check_same_labels(train, source, ("train", split))
        for other, earlier in opened.items():
            check_apart(made.data, split, other, source, earlier)
        opened[split] = source
        rows = arrays(source)
        results.append(rows._replace(scores=np.asarray(predictor.scores(rows.scores))))
    return results, train.metadata.label_names
