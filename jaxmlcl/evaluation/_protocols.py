"""Ways to report: which threshold, chosen where, and everything as one JSON-ready result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike

from jaxmlcl.evaluation._counts import (
    Conventions,
    count,
    count_top,
    resolve,
    threshold_measures,
)
from jaxmlcl.evaluation._inputs import Inputs, check, check_rows
from jaxmlcl.evaluation._metrics import number_or_none, per_label_table
from jaxmlcl.evaluation._ranking import threshold_free_measures
from jaxmlcl.evaluation._thresholds import (
    THRESHOLD_GRID,
    best_of_grid,
    best_per_label,
    best_top_k,
    cardinality_threshold,
)


def protocol_metrics(
    test_scores: ArrayLike,
    test_labels: ArrayLike,
    *,
    validation_scores: ArrayLike | None = None,
    validation_labels: ArrayLike | None = None,
    test_mask: ArrayLike | None = None,
    validation_mask: ArrayLike | None = None,
    **conventions: Unpack[Conventions],
) -> dict[str, dict[str, Any]]:
    """The measures that need predictions, under every protocol.

    Chosen on the validation rows, and absent if there are none:

    - `best_on_val`: each measure at the threshold of .1, .2, ... .9 that maximises it.
    - `per_label`: everything at one threshold of the nine per label, which maximises its F1.
    - `cardinality`: everything at the one score that makes predicted labels as many as true ones.
    - `top_k`: the k highest scores of each row predicted, for each measure the k that maximises
      it.

    Chosen elsewhere:

    - `fixed_0.5`: everything at 0.5.
    - `paper`: each measure at the threshold that maximises it ON THE TEST ROWS THEMSELVES. An
      oracle that looks at the answers: for comparison with published tables made in this way, and
      for nothing else.

    Args:
        test_scores: [n, L], finite.
        test_labels: [n, L], 0/1.
        validation_scores: [m, L], or None.
        validation_labels: [m, L], or None; both or neither.
        test_mask: [n, L], True where the label is known; None: everywhere.
        validation_mask: [m, L], the same for validation.
        **conventions: as in `multilabel_metrics`.

    Returns:
        Protocol -> measure -> value. What was chosen stands beside them: `thresholds`, a dict from
        measure to threshold (`best_on_val`, `paper`); `label_thresholds`, L numbers (`per_label`);
        `threshold` (`cardinality`); `k`, a dict from measure to k (`top_k`).

    Raises:
        ValueError: as `multilabel_metrics`; validation and test are the same rows; only one of
            validation scores and labels is given.

    Example:
        >>> test, validation = [[0.45], [0.1]], [[0.15], [0.05]]
        >>> labels = [[1], [0]]
        >>> result = protocol_metrics(
        ...     test, labels, validation_scores=validation, validation_labels=labels
        ... )
        >>> result["fixed_0.5"]["micro_f1"], result["paper"]["thresholds"]["micro_f1"]
        (0.0, 0.2)
        >>> result["best_on_val"]["thresholds"]["micro_f1"]
        0.1

    Source: MulSupCon (AAAI 2024), whose program scores every threshold on the test rows (`paper`).
    """
    full = resolve(conventions)
    test = check_rows(check(test_scores, test_labels, test_mask))
    validation = _validation(test, validation_scores, validation_labels, validation_mask)
    cuts = np.array(THRESHOLD_GRID)
    test_counts = count(test, cuts[:, None])
    result: dict[str, dict[str, Any]] = {}
    if validation is not None:
        counts = count(validation, cuts[:, None])
        chosen, _ = best_of_grid(counts, cuts, full)
        values = {
            name: threshold_measures(test_counts, THRESHOLD_GRID.index(cut), full)[name]
            for name, cut in chosen.items()
        }
        result["best_on_val"] = {**values, "thresholds": chosen}
        per_label = best_per_label(counts, cuts)
        result["per_label"] = {
            **_at(test, per_label, full),
            "label_thresholds": per_label.tolist(),
        }
        level = cardinality_threshold(validation)
        result["cardinality"] = {**_at(test, level, full), "threshold": level}
        sizes = best_top_k(validation, full)
        test_top = count_top(test, max(sizes.values()))
        values = {
            name: threshold_measures(test_top, k - 1, full)[name] for name, k in sizes.items()
        }
        result["top_k"] = {**values, "k": sizes}
    result["fixed_0.5"] = {**threshold_measures(test_counts, THRESHOLD_GRID.index(0.5), full)}
    chosen, values = best_of_grid(test_counts, cuts, full)
    result["paper"] = {**values, "thresholds": chosen}
    return result


def _at(inputs: Inputs, thresholds: Any, conventions: Conventions) -> dict[str, Any]:
    return {**threshold_measures(count(inputs, np.atleast_2d(thresholds)), 0, conventions)}


def _validation(
    test: Inputs,
    scores: ArrayLike | None,
    labels: ArrayLike | None,
    mask: ArrayLike | None,
) -> Inputs | None:
    if (scores is None) != (labels is None):
        raise ValueError("validation_scores and validation_labels: give both or neither")
    if scores is None or labels is None:
        return None
    validation = check_rows(check(scores, labels, mask))
    if validation.scores.shape[1] != test.scores.shape[1]:
        raise ValueError(
            f"validation_scores has shape {validation.scores.shape}, expected "
            f"[m, {test.scores.shape[1]}] as the test scores"
        )
    if np.array_equal(validation.scores, test.scores) and np.array_equal(
        validation.labels, test.labels
    ):
        raise ValueError(
            "validation_scores and validation_labels equal the test arrays: thresholds chosen on "
            "the rows that are scored are the `paper` protocol, not `best_on_val`"
        )
    return validation


def evaluate_scores(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    label_names: Sequence[str],
    validation_scores: ArrayLike | None = None,
    validation_labels: ArrayLike | None = None,
    label_mask: ArrayLike | None = None,
    validation_mask: ArrayLike | None = None,
    run: Mapping[str, Any] | None = None,
    **conventions: Unpack[Conventions],
) -> dict[str, Any]:
    """Everything that is reported about one set of scores, ready for JSON.

    threshold-free measures + measures under each protocol + per-label table

    Args:
        scores: [n, L], finite: the rows to report on.
        labels: [n, L], 0/1.
        label_names: L names.
        validation_scores: [m, L] of other rows, to choose thresholds by; None: no `best_on_val`.
        validation_labels: [m, L], or None; both or neither.
        label_mask: [n, L], True where the label is known; None: everywhere.
        validation_mask: [m, L], the same for validation.
        run: what made the scores (stage, step, seed, checkpoint), copied into the result.
        **conventions: as in `multilabel_metrics`.

    Returns:
        `threshold_free`, `protocols` (as `protocol_metrics`), `per_label` (as `per_label_table`,
        at the one threshold that maximises micro-F1 on validation, or 0.5 without) and, if given,
        `run`. Undefined values are None.

    Raises:
        ValueError: as `protocol_metrics`.

    Example:
        >>> result = evaluate_scores([[0.9, 0.1], [0.2, 0.3]], [[1, 0], [0, 0]],
        ...                          label_names=["cat", "dog"])
        >>> result["threshold_free"]["map"], result["per_label"][1]["average_precision"]
        (1.0, None)

    Source: MulSupCon (AAAI 2024) and MulCon (2021) for the measures.
    """
    full = resolve(conventions)
    test = check_rows(check(scores, labels, label_mask))
    protocols = protocol_metrics(
        scores,
        labels,
        validation_scores=validation_scores,
        validation_labels=validation_labels,
        test_mask=label_mask,
        validation_mask=validation_mask,
        **conventions,
    )
    best_on_val = protocols.get("best_on_val")
    cut = 0.5 if best_on_val is None else best_on_val["thresholds"]["micro_f1"]
    result: dict[str, Any] = {
        "threshold_free": _defined(threshold_free_measures(test, full)),
        "protocols": {name: _defined(values) for name, values in protocols.items()},
        "per_label": per_label_table(
            scores, labels, label_names, thresholds=cut, label_mask=label_mask
        ),
    }
    return result if run is None else result | {"run": dict(run)}


def _defined(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: number_or_none(value) if isinstance(value, float) else value
        for name, value in values.items()
    }
