"""Holding out rows of a multi-label source so that every label keeps its share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmlcl.data.source import ArraySource, Source, fraction_option, integer_option, shorten
from jaxmlcl.errors import DataError


def stratified_split(labels: Any, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Split rows in two so that each label has about the same share of its positives in both.

    Iterative stratification, a label at a time instead of a row at a time: among the rows that are
    still free, the label with the fewest positives comes next, and all its rows are dealt out; the
    held-out part gets as many as it still lacks of `fraction * positives`. Rare labels are thus
    dealt while there is a choice, and frequent ones make up for what these brought along. Rows
    without labels come last and settle the number of rows. The order among equals is random and
    depends on the seed alone.

    Args:
      labels: `[n, L]`, 0 or 1.
      fraction: the share of the rows to hold out, between 0 and 1.
      seed: 0 or more.

    Returns:
      The row numbers of the rest and those held out, each ascending, int64; together every row
      once. A label with fewer than `0.5 / fraction` positives may have none held out.

    Raises:
      ValueError: labels are not an `[n, L]` array of 0 and 1, or fraction is not between 0 and 1.

    Example:
      >>> labels = np.repeat(np.eye(2, dtype=np.uint8), [10, 20], axis=0)
      >>> rest, held_out = stratified_split(labels, 0.2)
      >>> labels[rest].sum(axis=0), labels[held_out].sum(axis=0)
      (array([ 8, 16], dtype=uint64), array([2, 4], dtype=uint64))

    Source: K. Sechidis, G. Tsoumakas, I. Vlahavas, On the Stratification of Multi-Label Data,
    ECML PKDD 2011, algorithm 1.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or ((labels != 0) & (labels != 1)).any():
        raise ValueError(f"labels of shape {labels.shape} must be [n, L] with the values 0 and 1")
    if not 0 < fraction < 1:
        raise ValueError(f"fraction {fraction} must be between 0 and 1")
    n = len(labels)
    # Raw Philox words are the same in every version of NumPy; its permutations need not be.
    order = np.argsort(np.random.Philox(seed).random_raw(n), kind="stable")
    by_row = labels[order].astype(np.uint8)
    by_label = np.ascontiguousarray(by_row.T, dtype=bool)
    positives = by_label.sum(axis=1)  # of each label, among the free rows
    lacking = fraction * positives  # of each label, in the held-out part
    free, held_out = np.ones(n, bool), np.zeros(n, bool)

    def surplus() -> float:
        """How many rows the held-out part lacks of its share of those already dealt."""
        return fraction * (n - free.sum()) - held_out.sum()

    while positives.any():
        label = np.argmin(np.where(positives > 0, positives, n + 1))
        rows = np.flatnonzero(by_label[label] & free)
        # A half is rounded towards the right number of rows.
        half = 0.5 + 1e-9 * np.sign(surplus())
        chosen = rows[: max(0, int(np.floor(lacking[label] + half)))]
        free[rows], held_out[chosen] = False, True
        positives -= by_row[rows].sum(axis=0, dtype=np.int64)
        lacking -= by_row[chosen].sum(axis=0, dtype=np.int64)
    unlabelled = np.flatnonzero(free)
    held_out[unlabelled[: max(0, round(fraction * n - held_out.sum()))]] = True
    return np.sort(order[~held_out]), np.sort(order[held_out])


# Parts of two, and parts of three.
_TWO, _THREE = ("rest", "held-out"), ("train", "validation", "test")


def take_part(source: Source, options: Mapping[str, str], where: str) -> Source:
    """The part of a source in memory that `open_source`'s options ask for.

    Args:
      source: the whole, in memory, or with `labels()` and `subset(rows, name)`.
      options: `part`, "rest" or "held-out", or one of three, "train", "validation" and "test";
        `fraction`, the share that is held out, 0.2 if absent, or that of validation and of test
        each, 0.1 if absent; `test_fraction`, that of test if it is another; `split_seed`, 0 if
        absent; `share`, the share of those rows to take, again by stratification; all if absent.
        With `share` there need be no `part`.
      where: the URI, for messages.

    Returns:
      The rows in the order of the whole, with their ids.

    Raises:
      DataError: an option is not as described, the source is not in memory, or the part is empty.

    Example:
      >>> whole = ArraySource(np.ones((10, 1)), np.ones((10, 1)), name="ones")
      >>> part = take_part(whole, {"part": "held-out"}, "ones")
      >>> len(part), part.metadata.name
      (2, 'ones-held-out')
      >>> len(take_part(whole, {"part": "train", "fraction": "0.2"}, "ones"))
      6
    """
    part = options.get("part")
    if part not in (*_TWO, *_THREE) and not (
        part is None and "share" in options and "fraction" not in options
    ):
        name = "fraction" if "fraction" in options else next(iter(options))
        told = f"part={shorten(part)}" if part else f"option {name!r} without a part"
        raise DataError(
            f"{where}: {told}; write part=rest or part=held-out, or, for three parts, part=train, "
            "part=validation or part=test"
        )
    default = "0.1" if part in _THREE else "0.2"
    fraction = fraction_option(options, "fraction", default=default, where=where)
    default = options.get("fraction", default)
    of_test = fraction_option(options, "test_fraction", default=default, where=where)
    if part not in _THREE and "test_fraction" in options:
        raise DataError(
            f"{where}: option 'test_fraction' belongs to three parts; write part=train, "
            "part=validation or part=test"
        )
    if part in _THREE and fraction + of_test >= 1:
        raise DataError(
            f"{where}: validation ({fraction:g}) and test ({of_test:g}) leave nothing to train on; "
            "write less for fraction or test_fraction"
        )
    seed = integer_option(options, "split_seed", default=0, low=0, high=2**63 - 1, where=where)
    subset: Any = getattr(source, "subset", None)
    arrays: Any = getattr(source, "arrays", None)
    if arrays is None and subset is None:
        raise DataError(f"{where}: parts can be taken of sources that fit in memory only")
    whole = {} if arrays is None else arrays()
    labels = source.labels() if arrays is None else whole["labels"]  # type: ignore[attr-defined]
    rows, name = np.arange(len(source)), source.metadata.name
    if part is not None:
        rows = _rows(labels, part, fraction, of_test, seed)
        name = f"{name}-{part}"
    if "share" in options:
        share = fraction_option(options, "share", default="1", where=where)
        rows = rows[stratified_split(labels[rows], share, seed)[1]]
        name = f"{name}-{share:g}"
    if len(rows) == 0:
        asked = f"share {options['share']}" if "share" in options else f"part {part!r}"
        raise DataError(f"{where}: {asked} of {len(source)} rows is empty")
    if arrays is None:
        part_of: Source = subset(rows, name)
        return part_of
    return ArraySource(
        whole["inputs"][rows],
        whole["labels"][rows],
        name=name,
        label_names=source.metadata.label_names,
        feature_names=getattr(source, "feature_names", None),
        ids=whole["ids"][rows],
        where=where,
        label_mask=whole["label_mask"][rows] if "label_mask" in whole else None,
        targets=whole["targets"][rows] if "targets" in whole else None,
    )


def _rows(labels: np.ndarray, part: str, fraction: float, of_test: float, seed: int) -> np.ndarray:
    """Row numbers of a part; of three, test is held out first, then validation of the rest."""
    if part in _TWO:
        rest, held_out = stratified_split(labels, fraction, seed)
        return held_out if part == "held-out" else rest
    rest, test = stratified_split(labels, of_test, seed)
    if part == "test":
        return test
    train, validation = stratified_split(labels[rest], fraction / (1 - of_test), seed)
    return rest[validation if part == "validation" else train]
