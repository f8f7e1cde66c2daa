"""What an encoder makes of a split, kept as small as its pictures need it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ROWS = 1000
"""So many rows' representations are kept, spread evenly over the split."""


class Representations(NamedTuple):
    """A summary of the representations of a split."""

    class_means: np.ndarray
    """[L, width] float32: the mean over the rows that carry exactly this label; 0 without any."""
    class_counts: np.ndarray
    """[L] int64: how many rows these are."""
    ids: np.ndarray
    """[m] int32: some rows, at most 1000."""
    labels: np.ndarray
    """[m, L] uint8: their labels."""
    alone: np.ndarray
    """[m] bool: which of them carry exactly one label, no label being unknown."""
    representation: np.ndarray
    """[m, width] float32."""


class Collected:
    """Sums over the rows with exactly one label, and some rows as they are, batch by batch.

    Args:
      labels: [n, L], all rows of the split in their order.
      ids: [n].
      label_mask: [n, L], False for unknown labels; a row with such a label may carry more than
        one, and counts for no class.

    Example:
      >>> kept = Collected(np.array([[1, 0], [1, 1], [1, 0]], np.uint8), np.arange(3))
      >>> kept.add(np.array([[1.0, 0.0], [9.0, 9.0]]))
      >>> kept.add(np.array([[3.0, 0.0]]))
      >>> kept.result().class_means.tolist(), kept.result().class_counts.tolist()
      ([[2.0, 0.0], [0.0, 0.0]], [2, 0])

    Source: MulSupCon, AAAI 2024, figure 3.
    """

    def __init__(
        self, labels: np.ndarray, ids: np.ndarray, label_mask: np.ndarray | None = None
    ) -> None:
        alone = labels.sum(axis=1) == 1
        if label_mask is not None:
            alone &= label_mask.all(axis=1)
        self._labels, self._ids = labels, ids
        self._class = np.where(alone, labels.argmax(axis=1), -1)
        self._chosen = np.unique(np.linspace(0, len(ids) - 1, min(ROWS, len(ids))).round())
        self._sums: np.ndarray | None = None
        self._rows: list[np.ndarray] = []
        self._seen = 0

    def add(self, representation: np.ndarray) -> None:
        """The next rows, [b, width]."""
        start, self._seen = self._seen, self._seen + len(representation)
        if self._sums is None:
            self._sums = np.zeros((self._labels.shape[1], representation.shape[1]))
        classes = self._class[start : self._seen]
        np.add.at(self._sums, classes[classes >= 0], representation[classes >= 0])
        inside = (start <= self._chosen) & (self._chosen < self._seen)
        self._rows.append(representation[self._chosen[inside].astype(int) - start])

    def result(self) -> Representations:
        """What was kept of the rows so far."""
        counts = np.bincount(self._class[self._class >= 0], minlength=self._labels.shape[1])
        sums = np.zeros((self._labels.shape[1], 0)) if self._sums is None else self._sums
        chosen = self._chosen[self._chosen < self._seen].astype(int)
        return Representations(
            (sums / np.maximum(counts, 1)[:, None]).astype(np.float32),
            counts.astype(np.int64),
            self._ids[chosen],
            self._labels[chosen],
            self._class[chosen] >= 0,
            np.concatenate(self._rows).astype(np.float32),
        )
