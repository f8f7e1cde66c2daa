"""Stages trained on arrays in memory, without files and runs: what the `fit` of an estimator needs.

The programs and the loop are those of `train_population`. They are kept between calls, and data are
padded to a few sizes, so that calls with data of different shapes share what was compiled.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlcl.data.source import SourceMetadata
from jaxmlcl.errors import ConfigError, NonFiniteError
from jaxmlcl.sharding import MeshSpec, batch_sharding, place_whole, replicated
from jaxmlcl.training._members import Members, spec_leaves, with_values
from jaxmlcl.training._together import Job, Splits, StageOutcome, train_together
from jaxmlcl.training.console import Console, Silent
from jaxmlcl.training.dataset import Data
from jaxmlcl.training.duration import Duration, steps
from jaxmlcl.training.experiment import Experiment
from jaxmlcl.training.objective import BatchSpec, Objective
from jaxmlcl.training.program import build_stage
from jaxmlcl.training.stage import Stage

PyTree = Any

# Rows that are scored at once, and smallest sizes that data are padded to. Scores are always those
# of a full block, so they do not depend on what else is scored.
_BLOCK, _LEAST_ROWS, _LEAST_WIDTH = 256, 256, 8


class Rows(NamedTuple):
    """Rows to train on or to validate with."""

    inputs: np.ndarray
    """[n, d], finite, ready for the network."""
    labels: np.ndarray
    """[n, L] in {0, 1}."""
    known: np.ndarray | None = None
    """[n, L] bool, False where a label is unknown; None: all are known."""


@dataclasses.dataclass(frozen=True)
class ArrayNetwork:
    """A trained network as arrays: what scores and embeds rows."""

    objective: Objective
    features: int
    """Width of the inputs, d."""
    labels: int
    """Number of labels, L."""
    padded: tuple[int, int]
    """Both as the network has them."""
    masked: bool
    """Whether it was trained with a mask of known labels."""
    arrays: PyTree = dataclasses.field(repr=False)
    """(parameters, state) of the objective."""

    def scores(self, inputs: np.ndarray) -> np.ndarray:
        """Label scores [m, L] float32 of inputs [m, d]."""
        return self._each_block("scores", inputs)[:, : self.labels]

    def embed(self, inputs: np.ndarray, name: str) -> np.ndarray:
        """The representation [m, width] float32 of that name, of inputs [m, d]."""
        return self._each_block("embed", inputs, name)

    def abstract(self) -> PyTree:
        """Shapes and types of `arrays`."""
        return abstract_arrays(self.objective, self.padded, self.masked)

    def _each_block(self, method: str, inputs: np.ndarray, name: str = "") -> np.ndarray:
        function = _applied(self.objective, method, name)
        width = self.padded[0]
        parts = [
            np.asarray(
                function(*self.arrays, _padded(inputs[start : start + _BLOCK], _BLOCK, width))
            )
            for start in range(0, max(1, len(inputs)), _BLOCK)
        ]
        return np.concatenate(parts)[: len(inputs)]


def abstract_arrays(objective: Objective, padded: tuple[int, int], masked: bool) -> PyTree:
    """Shapes and types of an objective's (parameters, state) for inputs and labels so wide."""
    spec = _spec(objective, 1, padded, masked)
    return jax.eval_shape(lambda: objective.init(jax.random.key(0), spec))


def train_on_arrays(
    stages: Mapping[str, Stage],
    train: Rows,
    validation: Rows | None = None,
    *,
    seed: int = 0,
    bucketed: bool = True,
    console: Console | None = None,
) -> tuple[ArrayNetwork, dict[str, StageOutcome]]:
    """Train stages, each on what it starts from, and return the network of the last.

    Orders, random numbers, validation and selection are those of `trainer.train` with inputs "raw".
    With `bucketed`, rows are padded to one of a few numbers, widths with columns of zeros whose
    labels are unknown and whose weights begin and stay at zero. It changes rounding only.

    Args:
      stages: by name, in order; durations in steps, epochs or examples.
      train: n rows, at least one.
      validation: rows to select and stop by.
      seed: at least 0, below 2^32.
      bucketed: whether programs are shared with data of similar shapes.
      console: what hears of the progress; nothing by default.

    Returns:
      The network, and how each stage ended.

    Raises:
      ConfigError: stages that do not fit together or the data.
      NonFiniteError: the loss or the parameters of a stage did not stay finite.

    Example:
      >>> from jaxmlcl.config import MLP, Classification
      >>> stage = Stage(Classification(MLP(hidden=(4,))), steps(2), batch_size=4)
      >>> rows = Rows(np.eye(6, 3, dtype=np.float32), np.eye(6, 2))
      >>> network, outcomes = train_on_arrays({"bce": stage}, rows)
      >>> network.scores(rows.inputs).shape, outcomes["bce"].steps
      ((6, 2), 2)
    """
    device = jax.devices()[0]
    features, labels = train.inputs.shape[1], train.labels.shape[1]
    padded = (features, labels)
    if bucketed:
        padded = (bucket(features, _LEAST_WIDTH), bucket(labels, _LEAST_WIDTH))
    unknown = train.known is not None and not train.known.all()
    masked = unknown or padded[1] > labels
    n, validated = len(train.inputs), validation is not None
    fixed = {name: _in_steps(stage, n, validated) for name, stage in stages.items()}
    place = "arrays in memory"
    data = Data(place, place if validation is not None else None, inputs="raw")
    experiment = Experiment("arrays", data, fixed, seed=seed)
    splits = _splits(train, validation, padded, masked, bucketed, device)
    networks: dict[str, PyTree] = {}
    outcomes: dict[str, StageOutcome] = {}
    for name, stage in fixed.items():
        size = len(splits.source) if not bucketed else 0
        members = _members(name, stage, padded, masked, size, device)
        if padded != (features, labels):
            members = _narrower(members, features, labels, masked)
        starts = None if stage.starts_from is None else [networks[stage.starts_from]]
        job = Job(name, experiment, stage.starts_from)
        (result,) = train_together(members, [job], splits, starts, console or Silent())
        if result.error is not None:
            raise NonFiniteError(f"{result.error}; lower the learning rate, or scale the inputs")
        networks[name], outcomes[name] = result.network.arrays, result.outcome
    last = fixed[name].objective
    return ArrayNetwork(last, features, labels, padded, masked, networks[name]), outcomes


def bucket(size: int, least: int) -> int:
    """The smallest of 4, 5, 6 and 7 times a power of two that is not below `size`, nor `least`.

    Example:
      >>> [bucket(size, 8) for size in (1, 9, 15, 100, 1200)]
      [8, 10, 16, 112, 1280]
    """
    size = max(size, least, 4)
    unit = 2 ** ((size - 1).bit_length() - 3) if size > 4 else 1
    return -(-size // unit) * unit


class _Described(NamedTuple):
    """A source of which only shapes and length are asked."""

    metadata: SourceMetadata
    size: int

    def __len__(self) -> int:
        return self.size


def _described(padded: tuple[int, int], masked: bool, size: int) -> Any:
    names = tuple(f"label_{index}" for index in range(padded[1]))
    metadata = SourceMetadata(
        "arrays", names, (padded[0],), "float32", "vector", "", unknown_labels=masked
    )
    return _Described(metadata, size)


def _in_steps(stage: Stage, examples: int, validated: bool) -> Stage:
    """The stage with all durations in steps, since programs do not know the number of rows."""
    found: dict[Any, Duration] = {}
    for path, leaf in spec_leaves(stage):
        if isinstance(leaf, Duration):
            if leaf.flops_of:
                raise ConfigError(f'"{leaf}" is for runs; give steps or epochs')
            found[path] = steps(leaf.steps(batch_size=stage.batch_size, examples=examples))
    if not (validated and stage.objective.gives_scores):
        # Without a meaning, it must not tell programs apart.
        found["validate_every",] = steps(1)
    return with_values(stage, found)


@functools.lru_cache(maxsize=64)
def _members(
    name: str,
    stage: Stage,
    padded: tuple[int, int],
    masked: bool,
    size: int,
    device: jax.Device,
) -> Members:
    """The compiled functions of a stage, of a seed and data that it is told when it is called."""
    # What depends on other stages is in the arguments of the functions.
    alone = dataclasses.replace(stage, starts_from=None)
    place = "arrays in memory"
    data = Data(place, place if stage.validates else None, inputs="raw")
    experiment = Experiment("arrays", data, {name: alone})
    mesh = MeshSpec().build([device])
    return Members(
        build_stage(experiment, name, mesh, _described(padded, masked, max(1, size)), {})
    )


@functools.lru_cache(maxsize=256)
def _narrower(members: Members, features: int, labels: int, masked: bool) -> Members:
    stage = members.program.program.stage
    return members.narrower(_spec(stage.objective, stage.batch_size, (features, labels), masked))


def _spec(objective: Objective, rows: int, widths: tuple[int, int], masked: bool) -> BatchSpec:
    features, labels = widths
    views = (objective.views,) if objective.views > 1 else ()
    return BatchSpec(
        jax.ShapeDtypeStruct((rows, *views, features), jnp.float32),
        jax.ShapeDtypeStruct((rows, labels), jnp.float32),
        rows,
        jax.ShapeDtypeStruct((rows, labels), bool) if masked else None,
    )


def _splits(
    train: Rows,
    validation: Rows | None,
    padded: tuple[int, int],
    masked: bool,
    bucketed: bool,
    device: jax.Device,
) -> Splits:
    n = len(train.inputs)
    rows = bucket(n, _LEAST_ROWS) if bucketed else n
    resident = {
        "inputs": _padded(train.inputs, rows, padded[0]),
        "labels": _padded(train.labels, rows, padded[1], np.uint8),
        "ids": np.arange(rows, dtype=np.int32),
    }
    if masked:
        resident["label_mask"] = _padded(_known(train), rows, padded[1], bool)
    constants = {"shift": np.zeros((), np.float32), "scale": np.ones((), np.float32)}
    mesh = MeshSpec().build([device])
    everything = {**constants, "resident": resident, "examples": np.uint32(n)}
    placed = place_whole(everything, replicated(mesh))
    batches: list[tuple[jax.Array, int]] = []
    labels, known = np.zeros((0, padded[1]), np.uint8), None
    if validation is not None:
        count = len(validation.inputs)
        for start in range(0, count, _BLOCK):
            block = validation.inputs[start : start + _BLOCK]
            inputs = place_whole(_padded(block, _BLOCK, padded[0]), batch_sharding(mesh))
            batches.append((inputs, len(block)))
        labels = _padded(validation.labels, count, padded[1], np.uint8)
        known = _padded(_known(validation), count, padded[1], bool)
        known = None if known.all() else known
    return Splits(_described(padded, masked, n), None, placed, batches, labels, known)


def _known(rows: Rows) -> np.ndarray:
    return np.ones(rows.labels.shape, bool) if rows.known is None else rows.known


def _padded(array: np.ndarray, rows: int, width: int, kind: Any = np.float32) -> np.ndarray:
    """The array with zeros behind its rows and columns."""
    result = np.zeros((rows, width), kind)
    result[: array.shape[0], : array.shape[1]] = array
    return result


@functools.lru_cache(maxsize=64)
def _applied(objective: Objective, method: str, name: str) -> Callable[..., jax.Array]:
    """A compiled method of the objective; an embedding's name says which one."""

    def apply(params: PyTree, state: PyTree, inputs: jax.Array) -> jax.Array:
        found = getattr(objective, method)(params, state, inputs)
        return (found[name] if name else found).astype(jnp.float32)

    return jax.jit(apply)
