"""Samples with what is true of them and what is predicted."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import matplotlib.image
import numpy as np

from jaxmlcl.report._format import decimal
from jaxmlcl.report._read import Predictions, Run, number

MAX_SAMPLES = 24
MAX_CHIPS = 8  # labels written out for a sample and stage
THUMBNAIL = 192  # longest side of a stored thumbnail (pixels)


def show_samples(run: Run, samples: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Some samples with their true labels and what every scoring stage says about them.

    Args:
      run: the run directory.
      samples: "ids" [m] and "inputs", as `build_report` takes them; None: the first predictions.

    Returns:
      What the template shows; None if no stage has predictions.

    Raises:
      UserError: the file of predictions is damaged.
      ValueError: the inputs are not images, or not one for every id.
    """
    # Ids of other data name other samples.
    found = {stage: run.predictions(stage) for stage in run.stages_by_data()[0]}
    predictions = {stage: value for stage, value in found.items() if value is not None}
    if not predictions:
        return None
    main = predictions[list(predictions)[-1]]
    if samples is None:
        ids, inputs = main.ids[:MAX_SAMPLES], None
    else:
        ids, inputs = np.asarray(samples["ids"]), _images(samples)
    rows = {stage: _rows_by_id(value) for stage, value in predictions.items()}
    thresholds = {stage: _threshold(run.results[stage]) for stage in predictions}
    cards: list[dict[str, Any]] = []
    for index, key in enumerate(ids.tolist()):
        if len(cards) == MAX_SAMPLES:
            break
        if key not in rows[list(rows)[-1]]:
            continue
        truth = main.labels[rows[list(rows)[-1]][key]] > 0
        cards.append(
            {
                "id": str(key),
                "image": None if inputs is None else _thumbnail(inputs[index]),
                "true": [main.label_names[j] for j in np.flatnonzero(truth)[:MAX_CHIPS]],
                "more": max(0, int(truth.sum()) - MAX_CHIPS),
                "stages": [
                    {
                        "name": stage,
                        **_chips(value, rows[stage][key], thresholds[stage], inputs is None),
                    }
                    for stage, value in predictions.items()
                    if key in rows[stage]
                ],
            }
        )
    return {
        "cards": cards,
        "images": inputs is not None,
        "stages": list(predictions),
        "unknown": main.label_mask is not None,
        "thresholds": [(stage, f"{value:.2g}") for stage, value in thresholds.items()],
        "unmatched": sum(key not in rows[list(rows)[-1]] for key in ids.tolist()),
    }


def _images(samples: Mapping[str, Any]) -> np.ndarray | None:
    """The images among the samples, uint8 [m, H, W, C]; None if the samples are vectors."""
    if samples.get("inputs") is None:
        return None
    inputs = np.asarray(samples["inputs"])
    if inputs.dtype != np.uint8 or inputs.ndim != 4 or inputs.shape[-1] not in (1, 3):
        raise ValueError(
            f"samples: inputs {inputs.dtype} {inputs.shape} should be uint8 [m, H, W, 1 or 3], "
            "or None for vectors"
        )
    if len(inputs) != len(samples["ids"]):
        raise ValueError(f"samples: {len(inputs)} inputs, but {len(samples['ids'])} ids")
    return inputs


def _rows_by_id(predictions: Predictions) -> dict[Any, int]:
    return {key: row for row, key in enumerate(predictions.ids.tolist())}


def _threshold(result: dict[str, Any]) -> float:
    """The threshold chosen on validation for micro F1, or 0.5 if none was chosen."""
    chosen = result.get("protocols", {}).get("best_on_val", {}).get("thresholds", {})
    value = number(chosen.get("micro_f1"))
    return value if math.isfinite(value) else 0.5


def _chips(predictions: Predictions, row: int, threshold: float, with_top: bool) -> dict[str, Any]:
    """Labels of a sample that are predicted or true, by score; for vectors at least the top 3."""
    scores, truth = predictions.scores[row], predictions.labels[row] > 0
    mask = predictions.label_mask
    known = np.ones(len(truth), bool) if mask is None else mask[row]
    predicted = scores >= threshold
    order = np.argsort(-scores, kind="stable")
    top = set(order[:3].tolist()) if with_top else set()
    listed = [j for j in order.tolist() if predicted[j] or truth[j] or j in top]
    verdicts = {
        (True, True): ("correct", "✓"),
        (True, False): ("false", "\N{MULTIPLICATION SIGN}"),
        (False, True): ("missed", "○"),
        (False, False): ("rejected", ""),
    }
    chips = []
    for j in listed[:MAX_CHIPS]:
        verdict, sign = verdicts[bool(predicted[j]), bool(truth[j])]
        if not known[j]:
            verdict, sign = "unknown", "?"
        name, score = predictions.label_names[j], decimal(float(scores[j]), 2)
        chips.append({"label": name, "score": score, "verdict": verdict, "sign": sign})
    return {"chips": chips, "more": len(listed) - len(chips)}


def _thumbnail(image: np.ndarray) -> dict[str, Any]:
    """An image [H, W, C] as a PNG in a data URI; large ones are averaged down by a whole factor."""
    factor = -(-max(image.shape[:2]) // THUMBNAIL)
    if factor > 1:
        # A side shorter than the factor is kept as it is.
        down, across = (min(factor, side) for side in image.shape[:2])
        rows, columns = image.shape[0] // down, image.shape[1] // across
        blocks = image[: rows * down, : columns * across].reshape(
            rows, down, columns, across, image.shape[2]
        )
        image = np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Software": None}
    matplotlib.image.imsave(buffer, image, format="png", metadata=metadata)
    return {
        "uri": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "width": image.shape[1],
        "height": image.shape[0],
    }
