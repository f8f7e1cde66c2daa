"""Many variants of one stage as one program: what may differ inside it, and its compiled parts."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlcl.sharding import replicated
from jaxmlcl.training.duration import Duration
from jaxmlcl.training.objective import BatchSpec
from jaxmlcl.training.optimizers import Plateau
from jaxmlcl.training.program import StageProgram, preparation_of
from jaxmlcl.training.stage import Stage
from jaxmlcl.training.step import Program, TrainState

PyTree = Any
Path = tuple[str | int, ...]

# A stage's other fields (durations, batch, selection) are read by the host.
_TRACEABLE = ("objective", "optimizer", "augmentation")


def spec_leaves(spec: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every field below a dataclass or tuple with its path; classes and lengths are leaves too.

    Example:
      >>> from jaxmlcl.training.optimizers import Cosine
      >>> [(path, value) for path, value in spec_leaves(Cosine()) if path]
      [(('warmup',), None), (('final',), 0.0)]
    """
    if isinstance(spec, tuple):
        yield path, ("length", len(spec))
        for position, item in enumerate(spec):
            yield from spec_leaves(item, (*path, position))
    elif dataclasses.is_dataclass(spec) and not isinstance(spec, Duration):
        yield path, type(spec)
        for field in dataclasses.fields(spec):
            yield from spec_leaves(getattr(spec, field.name), (*path, field.name))
    else:
        yield path, spec


def with_values(spec: Any, values: Mapping[Path, Any]) -> Any:
    """A copy of a dataclass with fields replaced, without the checks of its `__post_init__`.

    Traced values cannot be checked; the values they stand for have been.

    Example:
      >>> from jaxmlcl.training.optimizers import Cosine
      >>> with_values(Cosine(), {("final",): 0.5})
      Cosine(warmup=None, final=0.5)
    """
    for path, value in values.items():
        spec = _replace(spec, path, value)
    return spec


def _replace(spec: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(head, int):
        return (*spec[:head], _replace(spec[head], rest, value), *spec[head + 1 :])
    changed = copy.copy(spec)
    object.__setattr__(changed, head, _replace(getattr(spec, head), rest, value))
    return changed


def differing_numbers(stages: Sequence[Stage]) -> tuple[Path, ...]:
    """Paths of the numbers in which stages differ and that a traced value might stand for."""
    found: dict[Path, list[Any]] = {}
    for stage in stages:
        for path, value in spec_leaves(stage):
            if path and path[0] in _TRACEABLE:
                found.setdefault(path, []).append(value)
    return tuple(
        path
        for path, values in found.items()
        if len(set(values)) > 1 and any(isinstance(value, float) for value in values)
    )


def is_number(value: Any) -> bool:
    """Whether a field's value can become an array's element."""
    return isinstance(value, int | float) and not isinstance(value, bool)


class Members:
    """The compiled functions of stages that differ in their random key and in some numbers only.

    A leading axis R, the members, stands before every array that is a member's own. Each member's
    numbers are those of the trainer's step, up to the rounding of batched products.
    """

    def __init__(self, program: StageProgram, paths: Sequence[Path] = ()) -> None:
        self.program = program
        self.paths = tuple(paths)
        # Everything is on the mesh from the start: arrays that come home elsewhere than they left
        # would compile the steps twice.
        self._here = replicated(program.mesh)
        self._begin: Callable[..., TrainState] = jax.jit(
            _each(self._init), out_shardings=self._here
        )
        self._run = jax.jit(self._steps, donate_argnums=(0, 1), out_shardings=self._here)
        self._scores = jax.jit(_each(self._score, shared=2))
        self._score_one = jax.jit(self._score)

    def place(self, tree: PyTree) -> PyTree:
        """Arrays on the device where the members' own are."""
        return jax.device_put(tree, self._here)

    def narrower(self, spec: BatchSpec) -> Members:
        """The same programs with states initialised for a narrower spec, then padded with zeros.

        For inputs and labels that are padded with zeros themselves: the network then starts as it
        would without them.
        """
        other = copy.copy(self)
        # Not compiled as a whole: most of its parts have shapes that other specs have, too.
        begin = _each(functools.partial(self._init_narrow, spec))
        other._begin = lambda *arguments: self.place(begin(*arguments))
        return other

    def init(self, keys: jax.Array, values: Any, sources: PyTree | None) -> TrainState:
        """Fresh states; with the encoders of `sources` = (parameters, states) where given."""
        return self._begin(keys, values, sources)

    def steps(
        self,
        state: TrainState,
        bad: jax.Array,
        keys: jax.Array,
        values: Any,
        indices: np.ndarray,
        constants: PyTree,
    ) -> tuple[TrainState, jax.Array, jax.Array]:
        """As many steps as `indices` [T, R, B] has; first bad steps [R] (0: none), losses [R].

        State and `bad` are donated. `constants` are the data, as the trainer's step takes them.
        """
        return self._run(state, bad, keys, values, indices, constants)

    def values(self, stages: Sequence[Stage]) -> dict[str, jax.Array]:
        """The members' own numbers, [R] each."""
        kind = jnp.promote_types(self.program.program.feed.dtype, jnp.float32)
        leaves = [dict(spec_leaves(stage)) for stage in stages]
        return {
            _name(path): jnp.asarray([leaf[path] for leaf in leaves], kind) for path in self.paths
        }

    def traces(self, constants: PyTree) -> bool:
        """Whether a step can be traced with these numbers unknown, and keeps its types."""
        program = self.program
        key = program.program.feed.key
        kind = jnp.promote_types(program.program.feed.dtype, jnp.float32)
        values = {_name(path): jax.ShapeDtypeStruct((), kind) for path in self.paths}
        index = jax.ShapeDtypeStruct((program.program.stage.batch_size,), jnp.int32)

        def whole(key: Any, values: Any, index: Any, constants: PyTree) -> TrainState:
            state = self._init(key, values, None)
            state, _ = self._step(state, key, values, index, constants)
            if program.program.stage.objective.gives_scores:
                inputs = constants["resident"]["inputs"][index]
                self._score(
                    state.params, state.objective, key, values, inputs, preparation_of(constants)
                )
            return state

        try:
            state = jax.eval_shape(whole, key, values, index, constants)
        except (TypeError, ValueError):
            # What tracing raises where Python wants the number itself.
            return False
        shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(t)] for t in (state, self.abstract)]
        return shapes[0] == shapes[1]

    @property
    def abstract(self) -> TrainState:
        """Shapes of one member's state."""
        return self.program.abstract

    def bytes_of_state(self) -> int:
        """Bytes of one member's state."""
        return sum(self.program.bytes_of_state().values())

    def scores(
        self,
        networks: PyTree,
        keys: jax.Array,
        values: Any,
        batches: Sequence[tuple[Any, int]],
        constants: PyTree,
    ) -> np.ndarray:
        """Scores [R, n, L] of batches as `scoring_batches` gives them."""
        preparation = preparation_of(constants)
        parts = [
            self._scores(*networks, keys, values, inputs, preparation) for inputs, _ in batches
        ]
        return _joined(parts, batches)

    def scores_of_one(
        self,
        network: PyTree,
        key: jax.Array,
        values: Any,
        batches: Sequence[tuple[Any, int]],
        constants: PyTree,
    ) -> np.ndarray:
        """Scores [n, L] of a single member, whose arrays have no leading axis."""
        preparation = preparation_of(constants)
        parts = [
            self._score_one(*network, key, values, inputs, preparation)[None]
            for inputs, _ in batches
        ]
        return _joined(parts, batches)[0]

    def advance_plateau(self, plateau: PyTree, losses: np.ndarray) -> PyTree:
        """The plateau rules' states after one more validation loss [R] each."""
        schedule = self.program.program.stage.optimizer.schedule
        assert isinstance(schedule, Plateau)
        return _advance(schedule, plateau, losses)

    def _program(self, key: jax.Array, values: Mapping[str, jax.Array]) -> Program:
        """The pure functions of one member."""
        whole, program = self.program, self.program.program
        stage = with_values(program.stage, {path: values[_name(path)] for path in self.paths})
        return dataclasses.replace(
            program,
            stage=stage,
            feed=dataclasses.replace(program.feed, key=key),
            transform=stage.optimizer.build(whole.abstract.params, whole.count, stage.frozen),
            rate=stage.optimizer.rate(whole.count),
            place=lambda tree: tree,
        )

    def _init(self, key: jax.Array, values: Any, source: PyTree | None) -> TrainState:
        return self._program(key, values).init(source)

    def _init_narrow(
        self, spec: BatchSpec, key: jax.Array, values: Any, source: PyTree | None
    ) -> TrainState:
        program = dataclasses.replace(self._program(key, values), spec=spec)
        return jax.tree.map(_padded, program.init(source), self.abstract)

    def _step(
        self, state: TrainState, key: jax.Array, values: Any, index: jax.Array, constants: PyTree
    ) -> Any:
        return self._program(key, values).step(state, {"index": index}, constants)

    def _steps(
        self,
        state: TrainState,
        bad: jax.Array,
        keys: jax.Array,
        values: Any,
        indices: jax.Array,
        constants: PyTree,
    ) -> tuple[TrainState, jax.Array, jax.Array]:
        step = _each(self._step, shared=1)

        def one(carry: Any, index: jax.Array) -> Any:
            state, bad = carry
            state, measured = step(state, keys, values, index, constants)
            finite = jnp.isfinite(measured["loss"]) & jnp.isfinite(measured["parameter_norm"])
            return (state, jnp.where((bad == 0) & ~finite, state.step, bad)), measured["loss"]

        (state, bad), losses = jax.lax.scan(one, (state, bad), indices)
        return state, bad, losses[-1]

    def _score(
        self,
        params: PyTree,
        objective: PyTree,
        key: jax.Array,
        values: Any,
        inputs: jax.Array,
        constants: PyTree,
    ) -> jax.Array:
        return self._program(key, values).scores(params, objective, inputs, constants)


def traceable(program: StageProgram, paths: Sequence[Path], constants: PyTree) -> tuple[Path, ...]:
    """Those of the paths whose numbers can be unknown while the stage is traced."""
    # An array's element has a type of its own, which in bfloat16 would widen the computation.
    if program.program.feed.dtype == jnp.bfloat16:
        return ()
    if Members(program, paths).traces(constants):
        return tuple(paths)
    return tuple(path for path in paths if Members(program, [path]).traces(constants))


def _each(function: Callable[..., Any], shared: int = 0) -> Callable[..., Any]:
    """The function over a leading axis of all its arguments but the last `shared` ones."""

    def mapped(*arguments: Any) -> Any:
        own, common = arguments[: len(arguments) - shared], arguments[len(arguments) - shared :]
        if jax.tree.leaves(own)[0].shape[0] > 1:
            return jax.vmap(lambda *mine: function(*mine, *common))(*own)
        # A batch of one is no batch: the program is then the trainer's.
        results = function(*jax.tree.map(lambda x: x[0], own), *common)
        return jax.tree.map(lambda x: x[None], results)

    return mapped


@functools.partial(jax.jit, donate_argnums=2)
def keep(mask: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """The new arrays [R, ...] of members where `mask` [R], else the old ones."""
    return jax.tree.map(
        lambda a, b: jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old
    )


@functools.partial(jax.jit, static_argnums=0)
def _advance(schedule: Plateau, plateau: PyTree, losses: jax.Array) -> PyTree:
    def one(state: PyTree, loss: jax.Array) -> PyTree:
        return schedule.transform().update({}, state, value=loss)[1]

    return jax.vmap(one)(plateau, losses)


def _joined(parts: Sequence[jax.Array], batches: Sequence[tuple[Any, int]]) -> np.ndarray:
    rows = [
        np.asarray(jax.device_get(part))[:, :valid]
        for part, (_, valid) in zip(parts, batches, strict=True)
    ]
    return np.concatenate(rows, axis=1)


def _padded(leaf: jax.Array, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """The array with zeros behind it on every axis, up to a shape."""
    missing = [(0, b - a) for a, b in zip(leaf.shape, wanted.shape, strict=True)]
    return jnp.pad(leaf, missing) if missing else leaf


def _name(path: Path) -> str:
    return ".".join(map(str, path))
