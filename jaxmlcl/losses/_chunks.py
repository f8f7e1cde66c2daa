"""Chunks of the keys: how many at a time, how they are taken, and how their sums are merged."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ._pairs import Keys

# Numbers that are held at a time where nothing else is asked for, scores [B, chunk] above all. On a
# CPU they should stay in the cache, and below the second number of scores all pairs at once are as
# fast; an accelerator wants few, large products. The last number of each bounds the keys and labels
# that are made wide at once.
_CPU_SCORES, _CPU_PLAIN, _CPU_WIDE = 2**18, 2**19, 2**22
_ACCELERATOR_SCORES, _ACCELERATOR_WIDE = 2**25, 2**28
_SMALLEST_CHUNK = 256


_whole = contextvars.ContextVar("whole", default=False)


@contextlib.contextmanager
def unchunked() -> Iterator[None]:
    """While tracing in here, all keys are one chunk, whatever was asked for.

    For counting operations: a loop's body would be counted once, and chunks differ between
    platforms.
    """
    token = _whole.set(True)
    try:
        yield
    finally:
        _whole.reset(token)


def chunk_size_for(
    num_anchors: int, num_keys: int, chunk_size: int | None = None, *, per_key: int = 0
) -> int:
    """Keys per chunk: the caller's, or chosen from the shapes.

    Args:
        num_anchors: B.
        num_keys: K, over all segments.
        chunk_size: the caller's choice.
        per_key: numbers of a key and its labels, D + L, which a chunk holds beside the scores.

    Example:
        >>> chunk_size_for(256, 65_536, 4096)
        4096
    """
    if _whole.get():
        return max(num_keys, 1)
    if chunk_size is not None:
        return operator.index(chunk_size)
    cpu = jax.default_backend() == "cpu"
    pairs, wide = max(num_anchors, 1) * num_keys, per_key * num_keys
    most = (_CPU_PLAIN, _CPU_WIDE) if cpu else (_ACCELERATOR_SCORES, _ACCELERATOR_WIDE)
    if pairs <= most[0] and wide <= most[1]:
        return max(num_keys, 1)
    scores = _CPU_SCORES if cpu else _ACCELERATOR_SCORES
    size = max(scores // max(num_anchors, per_key // 2, 1), _SMALLEST_CHUNK)
    return min(num_keys, -(-size // _SMALLEST_CHUNK) * _SMALLEST_CHUNK)


def chunk_of(anchors: int, segments: tuple[Keys, ...], chunk_size: int | None) -> tuple[int, bool]:
    """Keys per chunk, and whether that is all of them, so that plain autodiff is as good."""
    total = sum(num_keys(keys) for keys in segments)
    per_key = max(sum(x.shape[1] for x in keys[:2] if x is not None) for keys in segments)
    chunk = chunk_size_for(anchors, total, chunk_size, per_key=per_key)
    return chunk, chunk >= total


def num_keys(keys: Keys) -> int:
    """K of a segment."""
    return jnp.asarray(keys.labels if keys.embeddings is None else keys.embeddings).shape[0]


def fold(
    step: Callable[[Any, int, Any], Any],
    merge: Callable[[Any, Any], Any],
    num_keys: int,
    chunk_size: int,
    linear: Any = (),
) -> Any:
    """Merge `step(start, size, part)` over chunks of the keys.

    The first chunk starts the carry, so that it needs no neutral element, and a ragged tail is
    one more call, so that nothing is padded. A step takes its slice of what it closes over by
    itself, at a start that is traced: no array is copied into chunks.

    Args:
        step: of a chunk's first key, its size, and its part of `linear`.
        merge: combines two results.
        num_keys: K.
        chunk_size: keys at a time.
        linear: a pytree of [K, ...] that a derivative is taken in: these are handed over as a
            loop's inputs, whose transposition writes each chunk's cotangent once.
    """
    if chunk_size >= num_keys:
        return step(0, num_keys, linear)
    count, rest = divmod(num_keys, chunk_size)

    def part(start: int, stop: int) -> Any:
        return jax.tree.map(lambda x: x[start:stop], linear)

    carry = step(0, chunk_size, part(0, chunk_size))
    if count > 1:
        chunks = jax.tree.map(
            lambda x: x.reshape(count - 1, chunk_size, *x.shape[1:]),
            part(chunk_size, count * chunk_size),
        )

        def body(carry: Any, index_and_part: Any) -> Any:
            index, chunk = index_and_part
            return merge(carry, step(index * chunk_size, chunk_size, chunk)), None

        # Differentiated once more, a chunk's scores are computed again instead of being kept.
        body = jax.checkpoint(body, prevent_cse=False)
        carry, _ = jax.lax.scan(body, carry, (jnp.arange(1, count), chunks))
    if rest:
        carry = merge(carry, step(count * chunk_size, rest, part(count * chunk_size, num_keys)))
    return carry


def take(keys: Keys, start: Any, size: int) -> Keys:
    """The keys from `start` on."""
    return jax.tree.map(lambda x: _slice(x, start, size), keys)


def _slice(x: jax.Array, start: Any, size: int) -> jax.Array:
    if isinstance(start, int) and (start, size) == (0, x.shape[0]):
        return x
    if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize == 2:
        return _slice_bits(x, start, size)
    return _plain_slice(x, start, size)


def _plain_slice(x: jax.Array, start: Any, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _slice_bits(x: jax.Array, start: Any, size: int) -> jax.Array:
    """A slice of 16-bit floats, taken as integers.

    XLA on a CPU computes in float32 and would convert the whole of x before the loop; bits it
    leaves alone. They have no derivative, so the slice is given its own. The barrier ties x to
    the chunk at hand: without it all bits of x are copied before the loop.
    """
    x, start = jax.lax.optimization_barrier((x, start))
    bits = jax.lax.bitcast_convert_type(x, jnp.uint16)
    return jax.lax.bitcast_convert_type(_plain_slice(bits, start, size), x.dtype)


@_slice_bits.defjvp
def _slice_bits_jvp(size: int, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    x, start = primals
    return _slice_bits(x, start, size), _plain_slice(tangents[0], start, size)
