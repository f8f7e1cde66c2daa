"""The forms in JAX, and the floor that the machine's own products and exponentials set."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlcl.bench._forms import form_of
from jaxmlcl.bench._problem import LossProblem
from jaxmlcl.bench._process import available_memory, give_memory_back, resident_peak
from jaxmlcl.errors import UserError
from jaxmlcl.sharding import MeshSpec, batch_sharding

# What one call for the floor costs at least, so that the call itself does not count, and at most:
# then the keys are walked over more than once, or more keys are extrapolated, chunk by chunk alike.
_LEAST_FLOP, _MOST_FLOP = 2e8, 2e10
# Scores of a chunk that stay in some cache; an accelerator wants more at a time.
_CACHED_BYTES = {"cpu": (1 << 19, 1 << 21, 1 << 23, 1 << 25)}
_ACCELERATOR_BYTES = (1 << 26, 1 << 28)
# Numbers of an array that is passed over once; more are extrapolated.
_ARRAY = 1 << 26


class JaxSide:
    """Inputs on the device, compiled forms, and their times; in a process of its own or here."""

    def __init__(self, x64: bool = False, tidy: bool = False) -> None:
        if tidy:
            give_memory_back()
        if x64:
            jax.config.update("jax_enable_x64", True)
        self.compiled: dict[str, Any] = {}
        self.floors: dict[str, tuple[Callable[[], Any], float]] = {}

    def describe(self) -> dict[str, Any]:
        """Version, devices, and the memory that is left on one of them."""
        device = jax.devices()[0]
        return {
            "version": jax.__version__,
            "backend": device.platform,
            "device": device.device_kind,
            "devices": len(jax.devices()),
        }

    def available(self) -> int | None:
        """Bytes left on the device; None where it does not tell."""
        if jax.default_backend() == "cpu":
            return available_memory()
        figures = jax.devices()[0].memory_stats() or {}
        if "bytes_limit" not in figures:
            return None
        return int(figures["bytes_limit"] - figures.get("bytes_in_use", 0))

    def shape(self, problem: LossProblem) -> None:
        """Set the problem, without its arrays: forms can be compiled but not run."""
        self.problem = problem
        self.compiled, self.floors = {}, {}
        self.mesh = None
        devices = len(jax.devices())
        if problem.strategy != "single":
            if devices == 1:
                raise UserError(
                    f'strategy "{problem.strategy}" shares the work among devices and there is '
                    "one; leave it at single, or set JAX_NUM_CPU_DEVICES=8 to try it on the CPU"
                )
            for name in ("anchors", "keys"):
                if getattr(problem, name) % devices:
                    raise UserError(
                        f"{getattr(problem, name)} {name} cannot be split evenly among {devices} "
                        "devices; give a multiple"
                    )
            self.mesh = MeshSpec().build()
        b, k, length, width = problem.anchors, problem.keys, problem.labels, problem.dim
        dtype = jnp.dtype(problem.dtype)
        kinds = (((b, width), dtype), ((k, width), dtype), ((b, length), "u1"), ((k, length), "u1"))
        placed = batch_sharding(self.mesh) if self.mesh is not None else None
        self.arguments: tuple[Any, ...] = tuple(
            jax.ShapeDtypeStruct(shape, kind, sharding=placed) for shape, kind in kinds
        )

    def open(self, problem: LossProblem) -> None:
        """Make a problem's inputs."""
        self.shape(problem)
        where = self.arguments[0].sharding or jax.devices()[0]
        arrays = [
            jax.device_put(x.astype(spec.dtype, copy=False), where)
            for x, spec in zip(problem.arrays(), self.arguments, strict=True)
        ]
        self.arguments = tuple(jax.block_until_ready(arrays))

    def compile(self, form: str) -> int | None:
        """Compile value and gradient; bytes of its temporaries on each device, by XLA's plan."""
        wanted = (0, 1) if self.problem.keys_gradient else (0,)
        function = jax.value_and_grad(form_of(form, self.problem, self.mesh), wanted)
        # Ours multiplies in full precision everywhere, so the others must, too.
        with jax.default_matmul_precision("highest"):
            self.compiled[form] = jax.jit(function).lower(*self.arguments).compile()
        plan = self.compiled[form].memory_analysis()
        return None if plan is None else int(plan.temp_size_in_bytes)

    def forget(self, form: str) -> None:
        """Drop a compiled form."""
        del self.compiled[form]

    def answer(self, form: str) -> tuple[float, list[np.ndarray]]:
        """Value and gradients, as the host's arrays."""
        value, gradients = self.compiled[form](*self.arguments)
        return float(value), [np.asarray(x.astype(_wide(x.dtype))) for x in gradients]

    def run(self, form: str, count: int) -> float:
        """Seconds per call, of `count` calls."""
        call = self.compiled[form]
        # Not timed: whoever had the turn before left its own data in the caches, and threads that
        # wait a while for more work.
        jax.block_until_ready(call(*self.arguments))
        started = time.perf_counter()
        for _ in range(count):
            result = call(*self.arguments)
        jax.block_until_ready(result)
        return (time.perf_counter() - started) / count

    def peak(self, form: str) -> int | None:
        """Bytes over the inputs at most; None on an accelerator, which does not tell."""
        if jax.default_backend() != "cpu":
            return None
        self.compile(form)

        def call() -> None:
            jax.block_until_ready(self.compiled[form](*self.arguments))

        # Once before, so that the threads' stacks and the code are there.
        call()
        return resident_peak(call)

    def floor(self, term: str) -> float:
        """Seconds of one of the FLOOR_TERMS, over all keys.

        "exponentials" is one pass over a [B, K] array in memory. The others are products and
        exponentials of chunks that stay in the cache, in a loop over the keys, and nothing else; at
        the first call the size of the chunk that is best for the term is found.
        """
        if term not in self.floors:
            if term == "exponentials":
                candidates = [_array_pass(*self.arguments[:2])]
            else:
                candidates = [_floor(term, self.arguments, size) for size in _chunk_bytes()]
            times = []
            for call, factor in candidates:
                _seconds(call)
                times.append(factor * min(_seconds(call), _seconds(call)))
            self.floors[term] = candidates[times.index(min(times))]
        call, factor = self.floors[term]
        return factor * _seconds(call)


def temporaries(problem: LossProblem, forms: list[str]) -> dict[str, int | None]:
    """Bytes that XLA plans for each form, found without arrays.

    Example:
      >>> problem = LossProblem(anchors=8, keys=64, labels=4, dim=16)
      >>> list(temporaries(problem, ["jaxmlcl"]))
      ['jaxmlcl']
    """
    side = JaxSide()
    side.shape(problem)
    return {form: side.compile(form) for form in forms}


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _chunk_bytes() -> tuple[int, ...]:
    return _CACHED_BYTES.get(jax.default_backend(), _ACCELERATOR_BYTES)


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


def _array_pass(anchors: jax.Array, keys: jax.Array) -> tuple[Callable[[], Any], float]:
    rows, total = anchors.shape[0], keys.shape[0]
    columns = min(total, max(1, _ARRAY // rows))
    tile = jnp.ones((rows, columns), _wide(anchors.dtype))
    compiled = jax.jit(jnp.exp).lower(tile).compile()
    return lambda: compiled(tile), total / columns


def _floor(
    term: str, arguments: tuple[jax.Array, ...], chunk_bytes: int
) -> tuple[Callable[[], Any], float]:
    """A compiled call with the work of a term, and how often it fits into all of it."""
    anchors, keys = arguments[:2]
    (rows, width), total = anchors.shape, keys.shape[0]
    dtype = _wide(anchors.dtype)
    # Two chunks at least: of one alone the compiler would take the product out of the loop.
    chunk = min(max(1, total // 2), max(16, chunk_bytes // (4 * rows)))
    flop = 2 * rows * width * chunk
    chunks = max(1, min(total // chunk, int(_MOST_FLOP / flop)))
    turns = chunks * math.ceil(_LEAST_FLOP / (flop * chunks))

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.matmul(x, y, precision="highest", preferred_element_type=dtype)

    def walk(anchors: jax.Array, keys: jax.Array, tile: jax.Array) -> jax.Array:
        def keys_at(index: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(keys, index % chunks * chunk, chunk)

        def body(index: jax.Array, state: jax.Array) -> jax.Array:
            if term == "scores":
                return product(anchors, keys_at(index).T)
            if term == "weighted sum":
                return state + product(tile, keys_at(index))
            return jnp.exp(-state)

        first = jnp.zeros((rows, width), dtype) if term == "weighted sum" else tile.astype(dtype)
        return jax.lax.fori_loop(0, turns, body, first)

    inputs = (anchors, keys, jnp.ones((rows, chunk), anchors.dtype))
    compiled = jax.jit(walk).lower(*inputs).compile()
    return lambda: compiled(*inputs), total / (chunk * turns)
