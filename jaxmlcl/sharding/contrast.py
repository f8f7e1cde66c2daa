"""The contrastive loss over a mesh: what travels between the devices, and what stays.

Anchors and keys are split by rows over all axes of the mesh, so every anchor has to meet keys
that live elsewhere. The strategies differ in what travels; value and gradient are those of
`jaxmlcl.losses.multi_positive_infonce`. With n devices, B anchors, K keys and width D:

- `gather_keys`: every device gets all keys, K x D numbers, and walks over them with its own
  anchors. A segment that is whole on every device (a replicated queue) does not travel at all.
- `gather_anchors`: every device gets all anchors, B x D numbers, walks over its own keys with
  them, and what the walks give is combined: [B] for each sum over keys. The keys stay.
- `ring`: the keys go round, one device's share at a time, and each device walks over the visitors
  while the next ones are on their way. As many bytes as `gather_keys`, but never all keys at once.

Where the weights factorise, class sums need no key to travel in any of them: each device sums its
own, and [L, D] is added up.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jax.typing import ArrayLike

from jaxmlcl import losses
from jaxmlcl.losses.parts import (
    FACTORISED,
    Anchors,
    Keys,
    Problem,
    Walk,
    divide,
    merge_walks,
    own_keys,
    prepare,
    sum_classes,
    walk,
)

Strategy = Literal["auto", "gather_keys", "gather_anchors", "ring"]
STRATEGIES = ("gather_keys", "gather_anchors", "ring")


def multi_positive_infonce(
    anchors: ArrayLike,
    keys: Any,
    anchor_labels: ArrayLike,
    key_labels: Any,
    *,
    mesh: Mesh | AbstractMesh | None = None,
    strategy: Strategy = "auto",
    replicated: bool | tuple[bool, ...] = False,
    reduce: bool = True,
    statistics: bool = False,
    **options: Any,
) -> Any:
    """`losses.multi_positive_infonce` of arrays that are split by rows over a mesh.

    Call it on global arrays, under `jax.jit`. Take gradients of it, not inside of it.

    Args:
        anchors: [B, D], B a multiple of the number of devices.
        keys: [K, D], or a tuple of such arrays (batch keys, queue); K of every array that is not
            replicated a multiple of the number of devices.
        anchor_labels: [B, L].
        key_labels: [K, L], or a tuple of such arrays.
        mesh: the devices; None for the mesh of the context (`jax.set_mesh`), and one device where
            there is none.
        strategy: `gather_keys`, `gather_anchors`, `ring`, or `auto`: the one that moves the
            fewest bytes by `strategy_bytes`.
        replicated: whether keys are whole on every device; a tuple where keys are one.
        reduce: False for the per-anchor values [B].
        statistics: whether to return (loss, measurements).
        **options: those of `losses.multi_positive_infonce`.

    Returns:
        What `losses.multi_positive_infonce` returns.

    Raises:
        ValueError: an argument that does not fit, among them rows that do not divide over the
            devices and a strategy that does not exist.

    Example:
        >>> from jaxmlcl.sharding import MeshSpec
        >>> mesh = MeshSpec().build(jax.devices()[:1])
        >>> z, labels = losses.normalize(jnp.eye(4)[:, :3] + 0.1), jnp.eye(4, 2)
        >>> float(multi_positive_infonce(z, z, labels, labels, mesh=mesh)) == float(
        ...     losses.multi_positive_infonce(z, z, labels, labels)
        ... )
        True
    """
    if strategy not in ("auto", *STRATEGIES):
        raise ValueError(f"strategy is {strategy!r}; expected one of auto, {', '.join(STRATEGIES)}")
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    if mesh.empty or mesh.size == 1:
        return losses.multi_positive_infonce(
            anchors,
            keys,
            anchor_labels,
            key_labels,
            reduce=reduce,
            statistics=statistics,
            **options,
        )
    problem = prepare(anchors, keys, anchor_labels, key_labels, statistics=statistics, **options)
    whole = _whole(replicated, len(problem.segments))
    _check_divisible(problem, whole, mesh)
    if strategy == "auto":
        counted = strategy_bytes(problem, whole, mesh.size)
        chosen = min(STRATEGIES, key=lambda name: counted[name])
    else:
        chosen = strategy
    axes = tuple(mesh.axis_names)
    rows, everywhere = PartitionSpec(axes), PartitionSpec()
    anchor_specs = jax.tree.map(lambda x: rows if x.ndim else everywhere, problem.anchors)
    key_specs = tuple(
        jax.tree.map(lambda _, spec=everywhere if here else rows: spec, keys)
        for keys, here in zip(problem.segments, whole, strict=True)
    )
    specs = (anchor_specs, key_specs, everywhere, everywhere)

    def body(
        anchors: Anchors, segments: tuple[Keys, ...], temperature: Any, class_sums: Any
    ) -> Any:
        local = dataclasses.replace(
            problem,
            anchors=anchors,
            segments=segments,
            temperature=temperature,
            class_sums=class_sums,
        )
        return _local_rows(local, whole, chosen, axes, mesh.size)

    # Every result has a row for each anchor.
    mapped = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=rows)
    values, terms, measured = mapped(
        problem.anchors, problem.segments, problem.temperature, problem.class_sums
    )
    loss = divide(values.sum(), terms.sum()) if reduce else values
    if not statistics:
        return loss
    return loss, {
        name: divide((value * weight).sum(), weight.sum())
        for name, (value, weight) in measured.items()
    }


def strategy_bytes(problem: Problem, replicated: tuple[bool, ...], devices: int) -> dict[str, int]:
    """Bytes that each device receives in a value and gradient, by strategy.

    A gather of x bytes in all brings (n - 1) / n x to each device, and so does the reduction that
    is its derivative. Keys are taken to have no gradient, as those of a momentum encoder. What all
    strategies have in common (class sums, scalars) is left out.

    Args:
        problem: what is compared.
        replicated: which segments of keys are whole on every device.
        devices: n.
    """

    def size(tree: Any) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    moved = [
        _travelling(keys, problem)
        for keys, whole in zip(problem.segments, replicated, strict=True)
        if not whole
    ]
    rows, dim = problem.shape
    wide = problem.rule.dtype.itemsize
    # Sums over keys: maximum and total; weights, weighted scores and positives where W needs them.
    sums = rows * wide * (2 + 3 * _pairwise(problem))
    anchors = size(_meeting(problem.anchors, problem)) + rows * dim * wide + sums
    if _pairwise(problem) and not problem.rule.pairwise:
        # The weights y_ij / c_ij, which are made on the way.
        anchors += rows * problem.anchors.labels.shape[1] * wide
    share = (devices - 1) / devices
    return {
        "gather_keys": round(share * size(moved)),
        "gather_anchors": round(share * anchors),
        "ring": round(share * size(moved)),
    }


def _whole(replicated: bool | tuple[bool, ...], segments: int) -> tuple[bool, ...]:
    if not isinstance(replicated, (bool, tuple)):
        raise ValueError(
            f"replicated is {replicated!r}; expected a bool, or a tuple with one for each array "
            "of keys"
        )
    whole = replicated if isinstance(replicated, tuple) else (replicated,) * segments
    if len(whole) != segments:
        raise ValueError(
            f"replicated has {len(whole)} entries; expected {segments}, one for each array of keys"
        )
    return whole


def _check_divisible(problem: Problem, whole: tuple[bool, ...], mesh: Mesh | AbstractMesh) -> None:
    named = {"anchors": problem.anchors.embeddings}
    several = len(problem.segments) > 1
    for number, (keys, here) in enumerate(zip(problem.segments, whole, strict=True)):
        if not here:
            named[f"keys[{number}]" if several else "keys"] = keys.embeddings
    for name, array in named.items():
        if array.shape[0] % mesh.size:
            letter = "B" if name == "anchors" else "K"
            raise ValueError(
                f"{name} has shape {list(array.shape)}; expected [{letter}, D] with {letter} a "
                f"multiple of the {mesh.size} devices of the mesh"
            )


def _pairwise(problem: Problem) -> bool:
    """Whether weights of pairs are built: always so with ids."""
    return problem.rule.pairwise or problem.anchors.ids is not None


def _travelling(keys: Keys, problem: Problem) -> Keys:
    """What of the keys the walk needs: labels only for weights of pairs."""
    if _pairwise(problem):
        return keys
    return keys._replace(labels=None, known=None)


def _meeting(anchors: Anchors, problem: Problem) -> Anchors:
    """What of the anchors the walk needs."""
    if problem.rule.weighting not in FACTORISED:
        return anchors._replace(kept=None, threshold=None)
    if problem.rule.pairwise:
        return Anchors(
            anchors.embeddings, None, ids=anchors.ids, label_weights=anchors.label_weights
        )
    return Anchors(anchors.embeddings, None, ids=anchors.ids)


def _local_rows(
    problem: Problem,
    whole: tuple[bool, ...],
    strategy: str,
    axes: tuple[str, ...],
    devices: int,
) -> Any:
    """On one device: values and terms of its anchors, and what was measured."""
    parts = tuple(
        _own_part(keys, axes, devices) if here else keys
        for keys, here in zip(problem.segments, whole, strict=True)
    )
    problem = _with_counts(problem, parts, axes)
    # Of a batch's keys that are whole everywhere, a device's anchors have the keys of its share.
    first = dataclasses.replace(problem, segments=parts)
    own = own_keys(first) if problem.rule.statistics else None
    sums = None
    if problem.rule.class_sums and strategy != "gather_anchors":
        sums = _class_sums(parts, problem.rule.dtype, axes)
        problem = dataclasses.replace(problem, rule=problem.rule._replace(class_sums=False))
    if strategy == "gather_anchors":
        found = _by_anchors(problem, parts, axes)
    elif strategy == "gather_keys":
        segments = tuple(
            _travelling(keys, problem) if here else _gather(_travelling(keys, problem), axes)
            for keys, here in zip(problem.segments, whole, strict=True)
        )
        found = walk(problem.anchors, segments, problem.rule)
    else:
        found = _by_ring(problem, whole, axes, devices)
    if sums is not None:
        found = found._replace(sums=sums[0], counts=sums[1])
    found = problem.complete(found)
    values, terms = problem.rows(found)
    return values, terms, problem.statistics(found, own) if problem.rule.statistics else {}


def _own_part(keys: Keys, axes: tuple[str, ...], devices: int) -> Keys:
    """One device's share of keys that are whole on every device."""
    size, rest = divmod(keys.embeddings.shape[0], devices)
    index = jax.lax.axis_index(axes)
    if not rest:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, index * size, size), keys)
    # They do not divide: shares of one more, and what is past the end is not there.
    size += 1
    place = index * size + jnp.arange(size)
    there = place < keys.embeddings.shape[0]
    taken = jax.tree.map(lambda x: jnp.take(x, place, axis=0, mode="clip"), keys)
    return taken._replace(valid=there if taken.valid is None else taken.valid & there)


def _with_counts(problem: Problem, parts: tuple[Keys, ...], axes: tuple[str, ...]) -> Problem:
    """With the weights of pairs that ids make differ from anchor to anchor."""
    counting = dataclasses.replace(problem, segments=parts)
    if problem.anchors.ids is None:
        return problem
    # All anchors meet each device's share of the labels, whatever travels afterwards.
    ids = jax.lax.all_gather(problem.anchors.ids, axes, tiled=True)
    embeddings = jnp.zeros((ids.shape[0], problem.shape[1]), problem.rule.dtype)
    counting = dataclasses.replace(counting, anchors=Anchors(embeddings, None, ids=ids))
    counts = counting.label_counts(few_anchors=False)
    if counts is None:
        return problem
    return problem.weighed(_scatter_sum(counts, axes))


def _class_sums(parts: tuple[Keys, ...], dtype: Any, axes: tuple[str, ...]) -> Any:
    """Class sums and counts of all keys: each device's share, added up."""
    sums = [sum_classes(keys, dtype) for keys in parts]
    return jax.lax.psum(jax.tree.map(lambda *xs: sum(xs[1:], xs[0]), *sums), axes)


# Bytes of a device's share, from which Gloo's reduce-scatter is left alone.
_LARGE = 2**16


def _by_gloo(share: int) -> bool:
    """Whether a reduce-scatter with so many bytes for each device would be one that goes wrong.

    From some megabytes on Gloo's now and then gives wrong sums, without a word (jax issue 40830;
    jaxlib 0.10.2 does). Its all-reduce is right, and moves twice as much. Small sums go the same
    way as in one process, to the same bits.
    """
    return share >= _LARGE and jax.process_count() > 1 and jax.default_backend() == "cpu"


def _own_rows(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """This device's share of the rows."""
    rows = x.shape[0] // jax.lax.axis_size(axes)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * rows, rows)


def _scatter_sum(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The sum over the devices, of which each keeps its share of the rows."""
    if _by_gloo(x.nbytes // jax.lax.axis_size(axes)):
        return _own_rows(jax.lax.psum(x, axes), axes)
    return jax.lax.psum_scatter(x, axes, scatter_dimension=0, tiled=True)


def _gather(tree: Any, axes: tuple[str, ...]) -> Any:
    """All devices' rows, in order."""

    def one(x: jax.Array) -> jax.Array:
        if not _by_gloo(x.nbytes) or not jnp.issubdtype(x.dtype, jnp.inexact):
            return jax.lax.all_gather(x, axes, tiled=True)
        # The derivative of a gather is a reduce-scatter, that of this sum is none.
        whole = jnp.zeros((jax.lax.axis_size(axes) * x.shape[0], *x.shape[1:]), x.dtype)
        start = jax.lax.axis_index(axes) * x.shape[0]
        return jax.lax.psum(jax.lax.dynamic_update_slice_in_dim(whole, x, start, 0), axes)

    return jax.tree.map(one, tree)


def _by_anchors(problem: Problem, parts: tuple[Keys, ...], axes: tuple[str, ...]) -> Walk:
    """All anchors over this device's keys, and the sums of all devices for its own anchors."""
    meeting = _gather(_meeting(problem.anchors, problem), axes)
    meeting = meeting._replace(threshold=problem.anchors.threshold)
    found = walk(meeting, parts, problem.rule)
    scatter = functools.partial(_scatter_sum, axes=axes)
    mine = functools.partial(_own_rows, axes=axes)
    maximum = jax.lax.pmax(jax.lax.stop_gradient(found.log_sum), axes)
    shift = jnp.where(maximum == -jnp.inf, 0, maximum)
    share = jnp.exp(found.log_sum - shift)
    total = scatter(share)
    empty = mine(maximum) == -jnp.inf
    log_sum = jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1, total)) + mine(shift))
    seen = found.seen
    if seen is not None:
        total = jnp.where(empty, 1, jax.lax.stop_gradient(total))
        per_row = {
            name: scatter(value)
            for name, value in (
                ("scores", seen.scores),
                ("alike", seen.alike),
                ("of_label", seen.of_label),
            )
            if value is not None
        }
        several = seen.allowed.shape[0] > 1
        seen = seen._replace(
            mean_score=scatter(jax.lax.stop_gradient(share) * seen.mean_score) / total,
            allowed=scatter(seen.allowed) if several else jax.lax.psum(seen.allowed, axes),
            keys=None if seen.keys is None else jax.lax.psum(seen.keys, axes),
            best=mine(jax.lax.pmax(seen.best, axes)),
            **per_row,
        )
    sums, counts = (
        None if x is None else jax.lax.psum(x, axes) for x in (found.sums, found.counts)
    )
    return Walk(
        log_sum,
        sums,
        counts,
        weight=None if found.weight is None else scatter(found.weight),
        weighted=None if found.weighted is None else scatter(found.weighted),
        positives=None if found.positives is None else scatter(found.positives),
        seen=seen,
    )


def _by_ring(
    problem: Problem, whole: tuple[bool, ...], axes: tuple[str, ...], devices: int
) -> Walk:
    """This device's anchors over its own keys, then over each neighbour's as they come by."""
    anchors, rule = problem.anchors, problem.rule
    travelling = [_travelling(keys, problem) for keys in problem.segments]
    moving = tuple(keys for keys, here in zip(travelling, whole, strict=True) if not here)
    staying = tuple(keys for keys, here in zip(travelling, whole, strict=True) if here)
    if not moving:
        return walk(anchors, staying, rule)
    to_the_next = [(device, (device + 1) % devices) for device in range(devices)]

    def pass_on(keys: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.ppermute(x, axes, to_the_next), keys)

    def visit(carry: Any, _: None) -> Any:
        # The next visitors are sent for before these are walked over: neither waits for the other.
        found, keys = carry
        coming = pass_on(keys)
        return (merge_walks(found, walk(anchors, keys, rule, streamed=True)), coming), None

    coming = pass_on(moving)
    found: Walk = walk(anchors, moving, rule, streamed=True)
    if devices > 2:
        (found, coming), _ = jax.lax.scan(visit, (found, coming), length=devices - 2)
    found = merge_walks(found, walk(anchors, coming, rule, streamed=True))
    if not staying:
        return found
    more = walk(anchors, staying, rule)
    # The best key is looked for in the first segment only.
    if whole[0]:
        return merge_walks(_without_best(found), more)
    return merge_walks(found, _without_best(more))


def _without_best(found: Walk) -> Walk:
    if found.seen is None:
        return found
    return found._replace(seen=found.seen._replace(best=jnp.full_like(found.seen.best, -jnp.inf)))
