"""What both sides of `benchmarks.train_step` compute: sizes, constants and a fixed batch."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

ARCHITECTURES = ("resnet18", "resnet50")
PRECISIONS = ("float32", "bfloat16")
# Labels and their mean number per image, as in COCO; width of the embeddings.
LABELS, CARDINALITY, WIDTH = 80, 2.9, 256
# Fraction of the key encoder, and of SGD's momentum, that is kept per step.
KEPT, MOMENTUM = 0.999, 0.9
RATE, DECAY = 0.03, 1e-4


class Arrays(NamedTuple):
    """A batch and a full queue."""

    views: np.ndarray
    """[B, 2, S, S, 3] uint8."""
    labels: np.ndarray
    """[B, L] uint8, at least one label each."""
    keys: np.ndarray
    """[Q, D] float32, unit vectors."""
    key_labels: np.ndarray
    """[Q, L] uint8."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The sizes of a step."""

    arch: str = "resnet50"
    batch: int = 8
    size: int = 224
    queue: int = 8192
    precision: str = "float32"

    @property
    def title(self) -> str:
        """One line for a person."""
        return (
            f"{self.arch}, {self.size} px, batch {self.batch}, queue {self.queue}, {self.precision}"
        )

    def arrays(self) -> Arrays:
        """The batch and the queue, the same at every call."""
        generator = np.random.default_rng(0)

        def labels(rows: int) -> np.ndarray:
            drawn = generator.random((rows, LABELS)) < (CARDINALITY - 1) / LABELS
            drawn[np.arange(rows), generator.integers(0, LABELS, rows)] = True
            return drawn.astype(np.uint8)

        # Coarse squares: images of pure noise would all look alike behind the average pool, and
        # the normalisation over the batch would show nothing but rounding.
        squares = generator.integers(0, 256, (self.batch, 2, 8, 8, 3), np.uint8)
        nearest = np.arange(self.size) * 8 // self.size
        views = np.ascontiguousarray(squares[:, :, nearest][:, :, :, nearest])
        keys = generator.normal(size=(self.queue, WIDTH)).astype(np.float32)
        keys /= np.linalg.norm(keys, axis=1, keepdims=True)
        return Arrays(views, labels(self.batch), keys, labels(self.queue))
