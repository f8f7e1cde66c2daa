"""Comparison of evaluated runs: of what `evaluate` wrote, without data or networks."""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlcl.errors import ConfigError, DataError, UserError
from jaxmlcl.evaluation import (
    bootstrap_interval,
    bootstrap_replicates,
    paired_comparison,
    paired_test,
    replicate_interval,
    replicate_p,
)

MEASURES = ("map", "precision_at_1", "hamming_accuracy", "example_f1", "micro_f1", "macro_f1")
PROTOCOLS = ("best_on_val", "per_label", "cardinality", "fixed_0.5", "paper")


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """One stage of an evaluated run."""

    workdir: Path
    stage: str
    seed: int | None
    protocols: dict[str, Any]
    ids: np.ndarray
    """[n]."""
    scores: np.ndarray
    """[n, L] float32."""
    labels: np.ndarray
    """[n, L] uint8."""
    label_mask: np.ndarray | None
    """[n, L] bool, or None where all labels are known."""
    label_names: tuple[str, ...]

    def thresholds(self, protocol: str) -> Any:
        """What a protocol chose, as the resampling of `jaxmlcl.evaluation` takes it."""
        if protocol == "fixed_0.5":
            return 0.5
        field = {"per_label": "label_thresholds", "cardinality": "threshold"}
        found = self.protocols.get(protocol, {}).get(field.get(protocol, "thresholds"))
        if found is None:
            raise UserError(
                f"{self.workdir}: the evaluation of {self.stage} has no protocol {protocol}; "
                "run `jaxmlcl evaluate` again with validation rows, or give --protocol fixed_0.5"
            )
        return found


def read_evaluated(
    workdir: Path, split: str = "test", stage: str | None = None, probe: str | None = None
) -> Evaluated:
    """Read the scores of one stage that `jaxmlcl evaluate` wrote.

    Args:
      workdir: the run's folder.
      split: which rows.
      stage: its name; the run's main result by default.
      probe: "knn" or "linear" for what `evaluate --probe` wrote.

    Raises:
      UserError: the run was not evaluated so; the command to run is named. Or a file is damaged.
    """
    folder = workdir / "evaluation" / (probe or "")
    path = folder / f"{split}.json"
    flags = "" if probe is None else f" --probe {probe}"
    command = f"jaxmlcl evaluate {workdir} --split {split}{flags}"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        name = stage or document["run"]["stage"]
        if name not in document["stages"]:
            raise UserError(
                f'{path} has no stage "{name}", only {", ".join(document["stages"])}; '
                f"run: {command}"
            )
        result = document["stages"][name]
        seed, protocols = result["run"].get("seed"), dict(result["protocols"])
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run: {command}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not what evaluate writes; run: {command}") from None
    path = folder / f"{name}-{split}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {field: file[field] for field in file.files}
        names = tuple(str(label) for label in arrays["label_names"])
        found = Evaluated(
            workdir,
            str(name),
            seed,
            protocols,
            arrays["ids"],
            arrays["scores"],
            arrays["labels"],
            arrays.get("label_mask"),
            names,
        )
        shape = (len(found.ids), len(names))
        if found.scores.shape != shape or found.labels.shape != shape:
            raise ValueError("shapes")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        raise UserError(f"{path}: missing or not readable; run: {command}") from None
    return found


def compare_runs(
    first: Sequence[Evaluated],
    second: Sequence[Evaluated],
    *,
    measures: Sequence[str] = MEASURES,
    protocol: str | None = None,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two runs, or two groups of runs that differ in their seeds.

    Two runs: `paired_comparison` of their scores. Two groups: the means over the seeds, with the
    rows resampled for all runs alike, and `paired_test` over the seeds.

    Args:
      first: one run, or several with different seeds.
      second: as many, with the same seeds where there are several.
      measures: names of measures.
      protocol: whose thresholds; each run has its own. best_on_val by default, or a threshold of
        0.5 where a run has none.
      replicates: resamples of the rows.
      confidence: of the intervals.
      seed: of the resamples.

    Returns:
      A JSON-ready object; "measures" has, for each, the values "a" and "b" (means over seeds),
      "difference", "low", "high", "p_bootstrap" and "p_permutation" (of rows; None where it is not
      defined), and "seeds": None, or "a" and "b" seed by seed with the `PairedTest`.

    Raises:
      UserError: the runs did not score the same rows, or cannot be paired.
    """
    _check_rows([*first, *second])
    pairs = _pairs(first, second)
    if protocol is None:
        has = all("best_on_val" in run.protocols for pair in pairs for run in pair)
        protocol = "best_on_val" if has else "fixed_0.5"
    options: dict[str, Any] = {
        "measures": measures,
        "label_mask": first[0].label_mask,
        "seed": seed,
    }
    labels = first[0].labels
    try:
        if len(pairs) == 1:
            a, b = pairs[0]
            compared = paired_comparison(
                a.scores,
                b.scores,
                labels,
                thresholds_a=a.thresholds(protocol),
                thresholds_b=b.thresholds(protocol),
                replicates=replicates,
                confidence=confidence,
                **options,
            )
            found = {}
            for name, comparison in compared.items():
                values = comparison._asdict()
                values = {"a": values.pop("first"), "b": values.pop("second"), **values}
                found[name] = {**values, "seeds": None}
        else:
            found = _over_seeds(pairs, labels, protocol, replicates, confidence, options)
    except ValueError as error:
        raise DataError(f"{first[0].workdir} and {second[0].workdir}: {error}") from error
    return {
        "a": [_identity(run) for run, _ in pairs],
        "b": [_identity(run) for _, run in pairs],
        "num_rows": len(labels),
        "num_labels": labels.shape[1],
        "protocol": protocol,
        "confidence": confidence,
        "replicates": replicates,
        "measures": {name: _defined(values) for name, values in found.items()},
    }


def _over_seeds(
    pairs: Sequence[tuple[Evaluated, Evaluated]],
    labels: np.ndarray,
    protocol: str,
    replicates: int,
    confidence: float,
    options: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    values: list[list[dict[str, float]]] = [[], []]
    drawn: list[list[dict[str, np.ndarray]]] = [[], []]
    for pair in pairs:
        for side, run in enumerate(pair):
            cuts = run.thresholds(protocol)
            once = bootstrap_interval(run.scores, labels, thresholds=cuts, replicates=1, **options)
            values[side].append({name: found.value for name, found in once.items()})
            drawn[side].append(
                bootstrap_replicates(
                    run.scores, labels, thresholds=cuts, replicates=replicates, **options
                )
            )
    compared = {}
    for name in values[0][0]:
        a, b = ([value[name] for value in side] for side in values)
        difference = float(np.mean(a) - np.mean(b))
        means = [np.mean([one[name] for one in side], axis=0) for side in drawn]
        low, high = replicate_interval(difference, means[0] - means[1], confidence)
        test: dict[str, Any] = {"a": a, "b": b}
        if np.isfinite([*a, *b]).all():
            test |= paired_test(a, b, confidence=confidence)._asdict()
        compared[name] = {
            "a": float(np.mean(a)),
            "b": float(np.mean(b)),
            "difference": difference,
            "low": low,
            "high": high,
            "p_bootstrap": replicate_p(difference, means[0] - means[1]),
            "p_permutation": math.nan,
            "seeds": _defined(test),
        }
    return compared


def _pairs(
    first: Sequence[Evaluated], second: Sequence[Evaluated]
) -> list[tuple[Evaluated, Evaluated]]:
    """Run by run; several on a side are paired by their seeds."""
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    seeds = [[run.seed for run in side] for side in (first, second)]
    for side in seeds:
        if None in side or len(set(side)) < len(side):
            raise ConfigError(
                f"several runs of a side need seeds of their own, and these have {_list(side)}; "
                "name each seed's run once"
            )
    if set(seeds[0]) != set(seeds[1]):
        raise ConfigError(
            f"the runs have seeds {_list(seeds[0])} and {_list(seeds[1])}; several runs are paired "
            "by their seeds, so give the same ones on both sides"
        )
    other = {run.seed: run for run in second}
    return [(run, other[run.seed]) for run in sorted(first, key=lambda run: run.seed or 0)]


def _check_rows(runs: Sequence[Evaluated]) -> None:
    """Refuse runs that did not score the same rows with the same labels."""
    one = runs[0]
    for run in runs[1:]:
        both = f"{one.workdir} ({one.stage}) and {run.workdir} ({run.stage})"
        if run.label_names != one.label_names:
            raise DataError(
                f"{both} scored different labels ({len(one.label_names)} and "
                f"{len(run.label_names)} of them); compare runs of one data set"
            )
        if not np.array_equal(run.ids, one.ids):
            raise DataError(
                f"{both} scored different rows ({len(one.ids)} and {len(run.ids)}, by their ids); "
                "evaluate both on the same split"
            )
        whole = np.ones(one.labels.shape, np.bool_)
        mask, other = (whole if r.label_mask is None else r.label_mask > 0 for r in (one, run))
        known = np.array_equal(mask, other)
        if not (known and np.array_equal(one.labels * mask, run.labels * mask)):
            raise DataError(
                f"{both} scored rows with the same ids and other labels; the data have changed: "
                "evaluate both again"
            )


def _identity(run: Evaluated) -> dict[str, Any]:
    return {"workdir": str(run.workdir), "stage": run.stage, "seed": run.seed}


def _list(seeds: Sequence[int | None]) -> str:
    return ", ".join(
        str(seed) for seed in sorted(seeds, key=lambda seed: (seed is None, seed or 0))
    )


def _defined(values: dict[str, Any]) -> dict[str, Any]:
    """Ready for JSON: None for NaN."""

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(item) for item in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return {name: clean(value) for name, value in values.items()}
