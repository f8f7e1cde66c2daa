"""How far apart the methods of a table are: paired bootstrap over the test rows they share."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxmlcl.evaluation import bootstrap_replicates, replicate_interval, replicate_p
from jaxmlcl.io import write_atomic
from jaxmlcl.studies._runner import Cell

REPLICATES = 500


@dataclasses.dataclass(frozen=True)
class Difference:
    """A method's mAP less the reference's, both as means over their seeds."""

    method: str
    value: float
    low: float
    high: float
    p: float


def against_best_baseline(cells: Iterable[Cell]) -> tuple[str, list[Difference]] | None:
    """Differences in test mAP from the best baseline, which validation tells, not the test rows.

    mean over seeds of mAP_b(method) - mean over seeds of mAP_b(baseline), for rows drawn with
    replacement, b = 1 ... 500; both are measured on the same draws.

    Args:
      cells: the methods on one data set.

    Returns:
      The baseline's name, and a difference for each method that is not a baseline; None where
      there is nothing to compare.
    """
    finished = [cell for cell in cells if _finished(cell)]
    baselines = [cell for cell in finished if cell.method.baseline]
    others = [cell for cell in finished if not cell.method.baseline]
    if not baselines or not others:
        return None
    best = max(baselines, key=_validation_map)
    value, draws = _mean(best)
    differences = []
    for cell in others:
        own_value, own_draws = _mean(cell)
        difference, drawn = own_value - value, own_draws - draws
        low, high = replicate_interval(difference, drawn)
        p = replicate_p(difference, drawn)
        differences.append(Difference(cell.method.name, difference, low, high, p))
    return best.method.name, differences


def _finished(cell: Cell) -> bool:
    """Whether every seed has an mAP; one that failed, or met no positives, has none."""
    found = [result.get("threshold_free", {}).get("map") for result in cell.results()]
    return len(found) == len(cell.scores()) == len(cell.seeds) and None not in found


def _validation_map(cell: Cell) -> float:
    return max(trial["map"] for trial in cell.trials() if "failed" not in trial)


def _mean(cell: Cell) -> tuple[float, np.ndarray]:
    """The mean over seeds of a cell's mAP, and of its replicates [500]."""
    values = [result["threshold_free"]["map"] for result in cell.results()]
    draws = [_replicates(cell.folder / f"seed-{seed}.npz") for seed in cell.scores()]
    return float(np.mean(values)), np.mean(draws, axis=0)


def _replicates(scored: Path) -> np.ndarray:
    """Replicates of the mAP of scores in a file, kept beside it: many labels take minutes."""
    kept = scored.with_suffix(".replicates.npy")
    if kept.exists() and kept.stat().st_mtime_ns >= scored.stat().st_mtime_ns:
        drawn = np.load(kept, allow_pickle=False)
        if drawn.shape == (REPLICATES,):
            return drawn
    with np.load(scored, allow_pickle=False) as stored:
        arrays = stored["scores"], stored["labels"]
        mask = stored.get("label_mask", None)
    drawn = bootstrap_replicates(
        *arrays, measures="map", label_mask=mask, replicates=REPLICATES, seed=0
    )["map"]
    buffer = io.BytesIO()
    np.save(buffer, drawn)
    write_atomic(kept, buffer.getvalue())
    return drawn
