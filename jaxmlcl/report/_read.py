"""What a run directory holds, read and checked; anything that is not there yet stays empty."""

from __future__ import annotations

import contextlib
import json
import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlcl.errors import UserError


@dataclass(frozen=True)
class Predictions:
    """Scores and labels of one stage on one split."""

    ids: np.ndarray  # [n]
    scores: np.ndarray  # [n, L]
    labels: np.ndarray  # [n, L] 0/1
    label_names: tuple[str, ...]
    label_mask: np.ndarray | None = None  # [n, L], False for unknown labels; None: all are known


@dataclass(frozen=True)
class Run:
    """The parts of a run directory that the report shows."""

    workdir: Path
    experiment: dict[str, Any]
    stages: dict[str, dict[str, Any]]  # stages.json, in the order in which they were run
    records: list[dict[str, Any]]  # metrics.jsonl
    evaluation: dict[str, Any]  # evaluation/<split>.json without its results
    results: dict[str, dict[str, Any]]  # the result of every scoring stage, in stage order

    @property
    def split(self) -> str:
        """Name of the split that was evaluated."""
        return str(self.evaluation.get("split", "test"))

    def predictions(self, stage: str) -> Predictions | None:
        """Scores of a stage on the evaluated split, or None if they were not written."""
        path = self.workdir / "evaluation" / f"{stage}-{self.split}.npz"
        return read_predictions(path) if path.exists() else None

    def stages_by_data(self) -> list[list[str]]:
        """Names of the stages that were evaluated, those on the same data together.

        The first group is that of the main stage's data; without results it is empty.
        """
        main: list[str] = []
        others: dict[str, list[str]] = {}
        for stage, result in self.results.items():
            data = result.get("data", self.evaluation.get("data"))
            same = data == self.evaluation.get("data")
            group = main if same else others.setdefault(json.dumps(data, sort_keys=True), [])
            group.append(stage)
        return [main, *others.values()]

    def parent(self, stage: str) -> str | None:
        """The stage whose encoder a stage starts with."""
        plan = configured_stages(self.experiment).get(stage, {})
        name = plan.get("starts_from") or self.stages.get(stage, {}).get("starts_from")
        return name if isinstance(name, str) else None

    def lineage(self, stage: str) -> list[str]:
        """The stage and every stage it builds on, the earliest first."""
        line: list[str] = []
        current: str | None = stage
        while current is not None and current not in line:
            line.insert(0, current)
            current = self.parent(current)
        return line

    def series(self, kind: str, stage: str, field: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of one field over a stage; values that are not numbers are NaN."""
        chosen = [
            record
            for record in self.records
            if record.get("kind") == kind and record.get("stage") == stage and field in record
        ]
        steps = np.array([number(record.get("step")) for record in chosen], dtype=np.float64)
        values = np.array([number(record[field]) for record in chosen], dtype=np.float64)
        known = np.isfinite(steps)
        return steps[known], np.where(np.isfinite(values), values, np.nan)[known]


def read_run(workdir: Path) -> Run:
    """Read a run directory; parts that do not exist yet are empty.

    Args:
      workdir: the directory that training writes to.

    Returns:
      What the report needs of it.

    Raises:
      UserError: it is not a run directory, or one of its files is damaged (with file and line).
    """
    if not (workdir / "experiment.json").is_file():
        raise UserError(
            f"{workdir} is not a run directory: it has no experiment.json; "
            "give the directory that `jaxmlcl train CONFIG` wrote to"
        )
    experiment = read_json(workdir / "experiment.json")
    path = workdir / "stages.json"
    summary = read_json(path) if path.exists() else {}
    for name, entry in summary.items():
        expect(entry, dict, path, name)
    records = read_records(workdir / "metrics.jsonl")
    evaluation, results = read_evaluation(workdir / "evaluation")
    seen = dict.fromkeys(configured_stages(experiment))
    seen |= dict.fromkeys(summary)
    seen |= dict.fromkeys(str(record["stage"]) for record in records if "stage" in record)
    seen |= dict.fromkeys(results)
    return Run(
        workdir=workdir,
        experiment=experiment,
        stages={name: summary.get(name, {}) for name in seen},
        records=records,
        evaluation=evaluation,
        results={name: results[name] for name in seen if name in results},
    )


def configured_stages(experiment: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The stages of the resolved experiment by name, in order; empty if it names none."""
    stages = experiment.get("stages")
    if not isinstance(stages, dict):
        return {}
    return {name: entry for name, entry in stages.items() if isinstance(entry, dict)}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    return parse_json(_read_bytes(path), path, 1)


def parse_json(content: bytes, path: Path, first_line: int) -> dict[str, Any]:
    """A JSON object from bytes; errors name the file and the line in it."""
    try:
        value = json.loads(content.decode())
    except json.JSONDecodeError as error:
        line, reason = first_line + error.lineno - 1, error.msg
    except UnicodeDecodeError as error:
        line, reason = first_line + content[: error.start].count(b"\n"), "not UTF-8"
    except (ValueError, RecursionError) as error:
        line, reason = first_line, str(error)
    else:
        if isinstance(value, dict):
            return value
        line, reason = first_line, f"expected an object, found {type(value).__name__}"
    raise UserError(
        f"{path}, line {line}: damaged JSON ({reason}); restore the file or {_remake(path)}"
    )


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that was still being written is left out."""
    if not path.exists():
        return []
    # Splitting at the newline byte alone: str.splitlines would also cut at U+2028 inside a value.
    lines = _read_bytes(path).split(b"\n")
    unfinished = lines.pop()
    records = [
        parse_json(line, path, index) for index, line in enumerate(lines, start=1) if line.strip()
    ]
    if unfinished.strip():
        # The writer may have been stopped in the middle of it; training cuts it off on resume.
        with contextlib.suppress(UserError):
            records.append(parse_json(unfinished, path, len(lines) + 1))
    return records


def read_evaluation(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The evaluation of the test split (or else of the first split there is) and its results."""
    files = sorted(folder.glob("*.json"), key=lambda file: (file.stem != "test", file.name))
    if not files:
        return {}, {}
    path = files[0]
    content = read_json(path)
    if "stages" in content:
        results = expect(content["stages"], dict, path, "stages")
    elif "protocols" in content:
        run = expect(content.get("run", {}), dict, path, "run")
        results = {str(run.get("stage", path.stem)): content}
    else:
        results = {}
    for name, result in results.items():
        expect(result, dict, path, f"stages.{name}")
        for field in ("threshold_free", "protocols", "run"):
            expect(result.get(field, {}), dict, path, f"stages.{name}.{field}")
        expect(result.get("data", {}), dict, path, f"stages.{name}.data")
        for field, protocol in result.get("protocols", {}).items():
            expect(protocol, dict, path, f"stages.{name}.protocols.{field}")
            thresholds = protocol.get("thresholds", {})
            expect(thresholds, dict, path, f"stages.{name}.protocols.{field}.thresholds")
        rows = expect(result.get("per_label", []), list, path, f"stages.{name}.per_label")
        for index, row in enumerate(rows):
            expect(row, dict, path, f"stages.{name}.per_label[{index}]")
    data = expect(content.get("data", {}), dict, path, "data")
    return {"split": str(content.get("split", path.stem)), "data": data}, results


def read_predictions(path: Path) -> Predictions:
    """Scores and labels of one stage; no pickled object is ever loaded."""
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, scores, labels = file["ids"], file["scores"], file["labels"]
            names = tuple(str(name) for name in file["label_names"])
            mask = file["label_mask"].astype(bool) if "label_mask" in file else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged predictions ({error}); {_remake(path)}") from error
    shape = (len(ids), len(names)) if ids.ndim == 1 else None
    masked = mask is None or mask.shape == shape
    if scores.shape != shape or labels.shape != shape or not masked:
        raise UserError(
            f"{path}: ids {ids.shape}, scores {scores.shape}, labels {labels.shape} and "
            f"{len(names)} label names do not fit together; {_remake(path)}"
        )
    return Predictions(ids, scores, labels, names, mask)


def expect(value: Any, kind: type, path: Path, field: str) -> Any:
    """The value, if it is of the kind the field should have."""
    if not isinstance(value, kind):
        raise UserError(
            f"{path}: field {field} should be {'an object' if kind is dict else 'a list'}, "
            f"found {type(value).__name__}; {_remake(path)}"
        )
    return value


def number(value: Any) -> float:
    """The value as a float; NaN for anything that is not a number.

    Example:
      >>> number(3), number(None), number("3")
      (3.0, nan, nan)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def clean(text: str) -> str:
    """The text without characters that neither HTML nor XML can hold.

    Example:
      >>> clean("a\\x00b")
      'a\N{REPLACEMENT CHARACTER}b'
    """
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _remake(path: Path) -> str:
    """The command that writes the file anew."""
    if path.parent.name == "evaluation":
        return f"write it anew with `jaxmlcl evaluate {path.parent.parent}`"
    return "repeat the training that wrote it"
