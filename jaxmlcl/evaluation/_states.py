"""Measures of scores that arrive in batches, or on several hosts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Unpack

import numpy as np
from numpy.typing import ArrayLike

from jaxmlcl.evaluation._counts import Conventions, Counts, count, resolve, threshold_measures
from jaxmlcl.evaluation._inputs import (
    Inputs,
    check,
    check_grid,
    check_rows,
    check_thresholds,
)
from jaxmlcl.evaluation._metrics import all_measures
from jaxmlcl.evaluation._thresholds import THRESHOLD_GRID


@dataclass(frozen=True)
class MetricState:
    """What has been seen so far; immutable, and the same however the rows were cut into batches.

    counts(a + b) = counts(a) + counts(b), in integers, at every threshold of a grid; rankings need
    the scores themselves, which are kept in the order of arrival. `compute` gives, to the last
    bit, what `multilabel_metrics` gives for all rows at once, in any order of rows.

    Attributes:
        thresholds: the grid [T].
        counts: integer counts at the grid's thresholds.
        keep_scores: whether scores are kept; without them only the measures of
            `THRESHOLD_METRICS` can be computed, in memory that does not grow.
        chunks: the scores, labels and masks kept.

    Example:
        >>> state = MetricState.empty(num_labels=2)
        >>> state = state.update([[0.9, 0.2]], [[1, 0]])
        >>> padded = state.update([[0.3, 0.8], [0.0, 0.0]], [[1, 1], [0, 0]], where=[True, False])
        >>> round(padded.compute()["micro_f1"], 4), padded.num_rows
        (0.8, 2)
    """

    thresholds: np.ndarray
    counts: Counts
    keep_scores: bool = True
    chunks: tuple[Inputs, ...] = field(default=(), repr=False)

    @classmethod
    def empty(
        cls,
        num_labels: int,
        *,
        thresholds: ArrayLike = THRESHOLD_GRID,
        keep_scores: bool = True,
    ) -> MetricState:
        """The state of no rows; merging it changes nothing.

        Example:
            >>> MetricState.empty(3).num_rows
            0
        """
        grid = check_grid(thresholds)
        return cls(grid, Counts.zeros(len(grid), num_labels), keep_scores)

    @property
    def num_labels(self) -> int:
        """The number of labels L."""
        return self.counts.known.shape[0]

    @property
    def num_rows(self) -> int:
        """The number of rows seen that have a known entry."""
        return int(self.counts.rows)

    def update(
        self,
        scores: ArrayLike,
        labels: ArrayLike,
        *,
        where: ArrayLike | None = None,
        label_mask: ArrayLike | None = None,
    ) -> MetricState:
        """The state after a batch.

        Args:
            scores: [b, L]; finite in the rows that count.
            labels: [b, L], 0/1.
            where: [b], False for rows that only pad the batch; None: all rows count.
            label_mask: [b, L], True where the label is known; None: everywhere.

        Returns:
            A new state; arrays are copied, so that the caller may reuse its buffers.

        Raises:
            ValueError: as `multilabel_metrics`, and if L or the length of `where` differ.

        Example:
            >>> MetricState.empty(1).update([[0.7], [0.1]], [[1], [0]]).num_rows
            2
        """
        values, truth = np.asarray(scores), np.asarray(labels)
        mask = None if label_mask is None else np.asarray(label_mask)
        if where is not None:
            rows = np.asarray(where, dtype=np.bool_)
            if rows.shape != values.shape[:1] or rows.shape != truth.shape[:1]:
                raise ValueError(
                    f"where has shape {rows.shape}, expected the rows of scores {values.shape} "
                    f"and labels {truth.shape}"
                )
            values, truth = values[rows], truth[rows]
            mask = None if mask is None else mask[rows]
        inputs = check(values, truth, mask)
        if inputs.scores.shape[1] != self.num_labels:
            raise ValueError(
                f"scores has shape {inputs.scores.shape}, expected [b, {self.num_labels}]"
            )
        counts = self.counts + count(inputs, self.thresholds[:, None])
        kept = Inputs(
            inputs.scores.copy(),
            inputs.labels.copy(),
            None if inputs.mask is None else inputs.mask.copy(),
        )
        return replace(self, counts=counts, chunks=(*self.chunks, kept) if self.keep_scores else ())

    def merge(self, other: MetricState) -> MetricState:
        """The state of the rows of both, for instance of two hosts.

        Raises:
            ValueError: the two differ in labels, thresholds or `keep_scores`.

        Example:
            >>> one = MetricState.empty(1).update([[0.7]], [[1]])
            >>> one.merge(one).num_rows
            2
        """
        if (
            self.num_labels != other.num_labels
            or self.keep_scores != other.keep_scores
            or not np.array_equal(self.thresholds, other.thresholds)
        ):
            raise ValueError(
                "states differ in num_labels, thresholds or keep_scores: "
                f"{self.num_labels}, {self.thresholds.tolist()}, {self.keep_scores} and "
                f"{other.num_labels}, {other.thresholds.tolist()}, {other.keep_scores}"
            )
        return replace(
            self, counts=self.counts + other.counts, chunks=(*self.chunks, *other.chunks)
        )

    def arrays(self) -> Inputs:
        """Scores [n, L], labels [n, L] bool and mask [n, L] or None, as kept.

        Example:
            >>> MetricState.empty(1).update([[0.7]], [[1]]).arrays().labels
            array([[ True]])
        """
        if not self.keep_scores:
            raise ValueError("keep_scores is False: this state holds counts only")
        empty = np.zeros((0, self.num_labels))
        if not self.chunks:
            return Inputs(empty, empty.astype(np.bool_), None)
        mask = None
        if any(chunk.mask is not None for chunk in self.chunks):
            mask = np.concatenate([chunk.known for chunk in self.chunks])
        return Inputs(
            np.concatenate([chunk.scores for chunk in self.chunks]),
            np.concatenate([chunk.labels for chunk in self.chunks]),
            mask,
        )

    def compute(
        self, *, threshold: ArrayLike = 0.5, **conventions: Unpack[Conventions]
    ) -> dict[str, float]:
        """The measures of all rows seen.

        Args:
            threshold: a number, or one per label [L]; without kept scores, a number of the grid.
            **conventions: as in `multilabel_metrics`.

        Returns:
            As `multilabel_metrics`; without kept scores only the names in `THRESHOLD_METRICS`.

        Raises:
            ValueError: nothing was seen, or the threshold is not in the grid.

        Example:
            >>> state = MetricState.empty(1, keep_scores=False).update([[0.7], [0.6]], [[1], [0]])
            >>> state.compute(threshold=0.5)["hamming_accuracy"]
            0.5
        """
        full = resolve(conventions)
        cuts = check_thresholds(threshold, self.num_labels)
        if self.keep_scores:
            return all_measures(check_rows(self.arrays()), cuts, full)
        index = np.flatnonzero(self.thresholds == cuts[0])
        if len(cuts) > 1 or index.size == 0:
            raise ValueError(
                f"threshold is {cuts.tolist()}: without kept scores, expected one of "
                f"{self.thresholds.tolist()}"
            )
        if self.num_rows == 0:
            raise ValueError("no row has been seen")
        return threshold_measures(self.counts, int(index[0]), full)
