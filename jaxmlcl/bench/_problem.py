"""What is measured: the sizes of one call of the loss, its arrays, and what it must compute."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable

import numpy as np

from jaxmlcl import sharding
from jaxmlcl.errors import UserError
from jaxmlcl.losses import WEIGHTINGS

DTYPES = ("float32", "bfloat16", "float64")
STRATEGIES = ("single", "auto", *sharding.STRATEGIES)
# W = sum over labels of (anchor's) x (key's): what one row per (anchor, label), or class sums, can
# compute.
FACTORISED = ("mulsupcon", "mulsupcon_mean")
TEMPERATURE = 0.1
# Rows drawn at a time.
_BLOCK = 1 << 16


@dataclasses.dataclass(frozen=True)
class LossProblem:
    """One call of the loss: value and gradient, labels as uint8, all inputs on the device."""

    anchors: int = 256
    """B."""
    keys: int = 8192
    """K, those of the batch included."""
    labels: int = 80
    """L."""
    dim: int = 256
    """D, the width of the embeddings."""
    cardinality: float = 2.9
    """Mean number of labels per row; every label is drawn with probability cardinality / L."""
    weighting: str = "mulsupcon"
    """One of `jaxmlcl.losses.WEIGHTINGS`."""
    dtype: str = "float32"
    """Of the embeddings: float32, bfloat16 or float64."""
    chunk_size: int | None = None
    """Keys scored at a time by ours; None leaves the choice to the loss."""
    keys_gradient: bool = False
    """Whether keys have a gradient too, or anchors alone (a queue)."""
    strategy: str = "single"
    """How devices share the work; `single` uses one of them."""
    seed: int = 0
    """Of the arrays."""

    def __post_init__(self) -> None:
        for name in ("anchors", "keys", "labels", "dim"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.chunk_size is not None and self.chunk_size < 1:
            raise UserError(f"chunk size must be at least 1, not {self.chunk_size}")
        if not (math.isfinite(self.cardinality) and 0 < self.cardinality <= self.labels):
            raise UserError(
                f"cardinality, labels per row, must be above 0 and at most the {self.labels} "
                f"labels there are, not {self.cardinality:g}"
            )
        _check_choice("weighting", self.weighting, WEIGHTINGS)
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("strategy", self.strategy, STRATEGIES)

    @property
    def title(self) -> str:
        """(B, K, L) and what else tells it from others."""
        size = f"({self.anchors}, {self.keys}, {self.labels})"
        return f"{size}, {self.cardinality:g} labels a row"

    @property
    def itemsize(self) -> int:
        """Bytes of a number of an embedding."""
        return {"bfloat16": 2, "float32": 4, "float64": 8}[self.dtype]

    @property
    def input_bytes(self) -> int:
        """Bytes of embeddings and labels."""
        return (self.anchors + self.keys) * (self.dim * self.itemsize + self.labels)

    @property
    def walk_flop(self) -> int:
        """Operations of the walks over the keys: all products of B x K x D."""
        return 2 * self.anchors * self.keys * self.dim * sum(self.walks[:2])

    @property
    def class_sum_flop(self) -> int:
        """Operations of the class sums, where the weighting has them."""
        return 2 * self.keys * self.labels * self.dim * (self.weighting in FACTORISED)

    @property
    def walks(self) -> tuple[int, int, int]:
        """Scores, weighted sums and exponentials that value and gradient cannot do without.

        The weighted sum of the keys is the anchors' gradient and falls out of the first walk; the
        keys' gradient needs the softmax, and so every score, a second time.
        """
        return (2, 2, 2) if self.keys_gradient else (1, 1, 1)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Unit anchors [B, D] and keys [K, D] as float32, anchor and key labels as uint8.

        The first keys have the anchors' labels, as those of the batch do, so that every label of an
        anchor is some key's. At least one row has a label.

        Example:
          >>> z, k, y, yk = LossProblem(anchors=2, keys=3, labels=4, dim=8).arrays()
          >>> z.shape, k.dtype, y.dtype, bool((y == yk[:2]).all())
          ((2, 8), dtype('float32'), dtype('uint8'), True)
        """
        generator = np.random.default_rng(self.seed)
        z, k = (_unit_rows(generator, rows, self.dim) for rows in (self.anchors, self.keys))
        key_labels = np.empty((self.keys, self.labels), np.uint8)
        for start in range(0, self.keys, _BLOCK):
            block = key_labels[start : start + _BLOCK]
            drawn = generator.random(block.shape, dtype=np.float32)
            block[:] = drawn < self.cardinality / self.labels
        key_labels[0, 0] |= not key_labels[0].any()
        return z, k, key_labels[np.arange(self.anchors) % self.keys], key_labels


def _unit_rows(generator: np.random.Generator, rows: int, width: int) -> np.ndarray:
    result = np.empty((rows, width), np.float32)
    for start in range(0, rows, _BLOCK):
        block = result[start : start + _BLOCK]
        generator.standard_normal(dtype=np.float32, out=block)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return result


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    known = list(choices)
    if value not in known:
        close = difflib.get_close_matches(value, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"use {', '.join(known)}"
        raise UserError(f'unknown {name} "{value}"; {hint}')
