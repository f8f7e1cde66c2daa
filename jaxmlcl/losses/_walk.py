"""One walk over the keys, in pieces that stay in the cache, and its derivative.

For anchors z_i (already divided by the temperature), keys k_p and scores s_ip = z_i . k_p, the loss
sum_p W_ip (lse_i - s_ip) needs of the keys only sums over p:

    lse_i = log sum_p exp(s_ip)                      the denominator
    S_j = sum_p y_pj k_p,   c_j = sum_p y_pj         where W factorises over labels
    sum_p W_ip s_ip,   sum_p W_ip                    where it does not

so the keys are taken a chunk at a time, with a maximum that runs along, and nothing of size
[B, K] is kept, but where all of it is no more than a chunk.

**First derivative.** d lse_i = o_i . dz_i + sum_p P_ip z_i . dk_p, with P the softmax and

    o_i = sum_p P_ip k_p,

which is one more sum over p: the walk that gives the value gives o_i as well, so that the
derivative in the anchors needs no walk of its own. Only where keys move (or labels that are
degrees) the keys that do are walked once more. The rule below is a rule for tangents, linear in
them; JAX transposes it for `grad`, and differentiates through it for second derivatives, where the
chunks are recomputed.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ._chunks import chunk_of, fold, take
from ._common import divide, dot
from ._pairs import (
    FACTORISED,
    Anchors,
    Keys,
    Maybe,
    allowed_pairs,
    known_key_labels,
    positive_pairs,
)


class Rule(NamedTuple):
    """What is fixed while tracing: hashable, no arrays."""

    weighting: str | None
    """None: only the denominators are wanted."""
    class_sums: bool
    """Whether S and c are wanted."""
    pairwise: bool
    """Whether sums over the weights of pairs are wanted."""
    dtype: Any
    """Of every sum."""
    chunk_size: int | None = None
    """Keys at a time; None: chosen from the shapes."""
    empty_matches_empty: bool = True
    statistics: bool = False
    """Whether `Walk.seen` is wanted."""


class Seen(NamedTuple):
    """What the walk can tell beside the loss; without derivative."""

    mean_score: jax.Array
    """[B] sum_p P_ip s_ip, the mean score under the softmax."""
    allowed: jax.Array
    """[B] or [1], number of keys in the denominator."""
    scores: Maybe
    """[B] sum of the scores of pairs that are allowed; None where `keys` tells it."""
    alike: Maybe
    """[B] sum of the scores of positives; for weightings that do not factorise."""
    of_label: Maybe
    """[B, L] sum of the scores of keys with a label; None where the class sums tell it."""
    keys: Maybe
    """[D] sum of the valid keys; only where no pair is excluded."""
    best: jax.Array
    """[B] largest score among the first segment of keys."""


class Walk(NamedTuple):
    """Sums over the keys."""

    log_sum: Maybe
    """[B] log of the denominator; -inf for an anchor without keys."""
    sums: Maybe = None
    """[L, D] of the keys that carry each label."""
    counts: Maybe = None
    """[L] keys that carry each label."""
    weight: Maybe = None
    """[B] sum_p W_ip."""
    weighted: Maybe = None
    """[B] sum_p W_ip s_ip."""
    positives: Maybe = None
    """[B] number of positives."""
    seen: Seen | None = None


class _Part(NamedTuple):
    """The sums of a chunk, before the logarithm; merged in any order."""

    maximum: jax.Array
    total: jax.Array
    centre: jax.Array | None
    added: dict[str, jax.Array]
    best: jax.Array | None


def walk(
    anchors: Anchors, segments: tuple[Keys, ...], rule: Rule, *, streamed: bool = False
) -> Walk:
    """Walk over the keys of all segments.

    Where everything is one chunk, plain autodiff is as good in the anchors and better in the
    keys, because the scores are there already.

    Args:
        anchors: anchors and their labels, [B, ...].
        segments: keys and their labels, [K1, ...], [K2, ...], ..., compared as if concatenated.
        rule: what is wanted.
        streamed: keep nothing of the size of the scores for the derivative, however few they are.
    """
    chunk, plain = chunk_of(anchors.embeddings.shape[0], segments, rule.chunk_size)
    if plain and not streamed:
        return _finish(_forward(rule, anchors, segments, chunk), anchors, rule)
    return _streamed(rule._replace(chunk_size=chunk), anchors, segments)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _streamed(rule: Rule, anchors: Anchors, segments: tuple[Keys, ...]) -> Walk:
    return _finish(_forward(rule, anchors, segments, rule.chunk_size or 1), anchors, rule)


@functools.partial(_streamed.defjvp, symbolic_zeros=True)
def _streamed_jvp(rule: Rule, primals: Any, tangents: Any) -> tuple[Walk, Walk]:
    (anchors, segments), (d_anchors, d_segments) = primals, tangents
    chunk = rule.chunk_size or 1
    dz = _moving(d_anchors.embeddings)
    part = _forward(rule, anchors, segments, chunk, pull=dz is not None)
    change: dict[str, jax.Array] = {}
    if dz is not None:
        change["log_sum"] = (_centre(part) * dz).sum(-1)
        if rule.pairwise:
            # The same sum as in the value's own walk, in another order.
            pulled = part.added["pulled"]
            part.added["weighted"] = (pulled * anchors.embeddings).sum(-1)
            change["weighted"] = (pulled * dz).sum(-1)
    out = _finish(part, anchors, rule)
    d_weights = _moving(d_anchors.label_weights)
    for keys, d_keys in zip(segments, d_segments, strict=True):
        moving = {"keys": _moving(d_keys.embeddings), "labels": _moving(d_keys.labels)}
        if not rule.class_sums and rule.weighting not in FACTORISED:
            moving["labels"] = None
        moving = {name: tangent for name, tangent in moving.items() if tangent is not None}
        if moving or d_weights is not None:
            step = functools.partial(_tangent_of_chunk, rule, anchors, d_weights, out, keys)
            more = fold(step, add, keys.embeddings.shape[0], chunk, moving)
            change = {
                name: change[name] + more[name]
                if name in change and name in more
                else change.get(name, more.get(name))
                for name in {**change, **more}
            }
    tangent = jax.tree.map(lambda x: SymbolicZero(jax.typeof(x).to_tangent_aval()), out)
    return out, tangent._replace(**change)


def _moving(tangent: Any) -> Any:
    """The tangent, or None where it is known to be zero."""
    return None if tangent is None or type(tangent) is SymbolicZero else tangent


def _finite(maximum: jax.Array) -> jax.Array:
    return jnp.where(maximum == -jnp.inf, 0, maximum)


def _forward(
    rule: Rule,
    anchors: Anchors,
    segments: tuple[Keys, ...],
    chunk: int,
    pull: bool = False,
) -> _Part:
    """The sums over all keys; with `pull` also those that the derivative in the anchors needs."""
    part = None
    for number, keys in enumerate(segments):
        step = functools.partial(_chunk, rule, anchors, keys, pull)
        here = fold(step, _merge, keys.embeddings.shape[0], chunk)
        if rule.statistics and number == 0:
            here = here._replace(best=here.maximum)
        part = here if part is None else _merge(part, here)
    if part is None:
        raise ValueError("no segment of keys")
    return part


def _chunk(
    rule: Rule,
    anchors: Anchors,
    keys: Keys,
    pull: bool,
    start: Any,
    size: int,
    _: Any = (),
) -> _Part:
    keys = take(keys, start, size)
    k = embeddings_of(keys, rule.dtype)
    scores = dot(anchors.embeddings, k.T)
    allowed = allowed_pairs(anchors, keys)
    kept = scores if allowed is None else jnp.where(allowed, scores, -jnp.inf)
    maximum = jax.lax.stop_gradient(kept.max(-1, initial=-jnp.inf))
    exponentials = jnp.exp(kept - _finite(maximum)[:, None])
    added: dict[str, jax.Array] = {}
    if rule.class_sums:
        labels = known_key_labels(keys, rule.dtype)
        added |= {"sums": dot(labels.T, k), "counts": labels.sum(0)}
    if rule.pairwise:
        weights, positive = _pairs_of(rule, anchors, keys)
        added |= {"weight": weights.sum(-1), "positives": positive.sum(-1, dtype=rule.dtype)}
        if pull:
            added["pulled"] = dot(weights, k)
        else:
            added["weighted"] = (weights * scores).sum(-1)
        if rule.statistics and rule.weighting in FACTORISED:
            there = scores if allowed is None else jnp.where(allowed, scores, 0)
            added["of_label"] = dot(there, known_key_labels(keys, rule.dtype))
        elif rule.statistics:
            added["alike"] = jnp.where(positive, scores, 0).sum(-1)
    if rule.statistics:
        there = jnp.ones((1, size), bool) if allowed is None else allowed
        added["allowed"] = there.sum(-1, dtype=rule.dtype)
        if rule.pairwise or anchors.ids is not None:
            added["scores"] = jnp.where(there, scores, 0).sum(-1)
        else:
            added["keys"] = k.sum(0)
    return _Part(
        maximum,
        exponentials.sum(-1),
        dot(exponentials, k) if pull or rule.statistics else None,
        added,
        None,
    )


def _pairs_of(rule: Rule, anchors: Anchors, keys: Keys) -> tuple[jax.Array, jax.Array]:
    """Weights and positives [B, chunk]."""
    return positive_pairs(
        anchors,
        keys,
        weighting=rule.weighting or "",
        empty_matches_empty=rule.empty_matches_empty,
        dtype=rule.dtype,
    )


def embeddings_of(keys: Keys, dtype: Any) -> jax.Array:
    """Embeddings in the type of the sums, zero for keys that are not there."""
    k = keys.embeddings.astype(dtype)
    return k if keys.valid is None else jnp.where(keys.valid[:, None], k, 0)


def _merge(a: _Part, b: _Part) -> _Part:
    maximum = jnp.maximum(a.maximum, b.maximum)
    shift = _finite(maximum)
    of_a, of_b = jnp.exp(a.maximum - shift), jnp.exp(b.maximum - shift)
    centre = None
    if a.centre is not None and b.centre is not None:
        centre = a.centre * of_a[:, None] + b.centre * of_b[:, None]
    return _Part(
        maximum,
        a.total * of_a + b.total * of_b,
        centre,
        add(a.added, b.added),
        a.best,
    )


def merge_walks(a: Walk, b: Walk) -> Walk:
    """The walk over the keys of both; `seen.best` is of the first segment of `a` and of `b`."""
    maximum = jax.lax.stop_gradient(jnp.maximum(a.log_sum, b.log_sum))
    shift = _finite(maximum)
    of_a, of_b = jnp.exp(a.log_sum - shift), jnp.exp(b.log_sum - shift)
    empty = maximum == -jnp.inf
    total = jnp.where(empty, 1, of_a + of_b)
    seen = None
    if a.seen is not None and b.seen is not None:
        share = jax.lax.stop_gradient((of_a * a.seen.mean_score + of_b * b.seen.mean_score) / total)
        seen = add(a.seen, b.seen)._replace(
            mean_score=share, best=jnp.maximum(a.seen.best, b.seen.best)
        )
    rest = add(a._replace(log_sum=None, seen=None), b._replace(log_sum=None, seen=None))
    return rest._replace(log_sum=jnp.where(empty, -jnp.inf, jnp.log(total) + shift), seen=seen)


def add(a: Any, b: Any) -> Any:
    """The sum of two pytrees."""
    return jax.tree.map(jnp.add, a, b)


def _centre(part: _Part) -> jax.Array:
    """o [B, D]: 0 for an anchor without keys."""
    if part.centre is None:
        raise ValueError("the walk was asked for no centre")
    return divide(part.centre, part.total[:, None])


def _finish(part: _Part, anchors: Anchors, rule: Rule) -> Walk:
    empty = part.maximum == -jnp.inf
    total = jnp.where(empty, 1, part.total)
    log_sum = jnp.where(empty, -jnp.inf, jnp.log(total) + _finite(part.maximum))
    added = part.added
    seen = None
    if rule.statistics:
        best = part.maximum if part.best is None else part.best
        seen = Seen(
            (_centre(part) * anchors.embeddings).sum(-1),
            added["allowed"],
            added.get("scores"),
            added.get("alike"),
            added.get("of_label"),
            added.get("keys"),
            best,
        )
        seen = jax.tree.map(jax.lax.stop_gradient, seen)
    return Walk(
        log_sum,
        added.get("sums"),
        added.get("counts"),
        added.get("weight"),
        added.get("weighted"),
        added.get("positives"),
        seen,
    )


def _tangent_of_chunk(
    rule: Rule,
    anchors: Anchors,
    d_weights: jax.Array | None,
    out: Walk,
    keys: Keys,
    start: Any,
    size: int,
    moving: dict[str, jax.Array],
) -> dict[str, jax.Array]:
    """What moving keys and labels add to the tangents of the sums."""
    keys = take(keys, start, size)
    k = embeddings_of(keys, rule.dtype)
    allowed = allowed_pairs(anchors, keys)
    scores = dot(anchors.embeddings, k.T)
    change: dict[str, jax.Array] = {}
    if rule.pairwise:
        weights, _ = _pairs_of(rule, anchors, keys)
    if "keys" in moving:
        dk = moving["keys"].astype(rule.dtype)
        if keys.valid is not None:
            dk = jnp.where(keys.valid[:, None], dk, 0)
        moved = dot(anchors.embeddings, dk.T)
        kept = scores if allowed is None else jnp.where(allowed, scores, -jnp.inf)
        softmax = jnp.exp(kept - _finite(out.log_sum)[:, None])
        change["log_sum"] = (softmax * moved).sum(-1)
        if rule.class_sums:
            change["sums"] = dot(known_key_labels(keys, rule.dtype).T, dk)
        if rule.pairwise:
            change["weighted"] = (weights * moved).sum(-1)
    labels = moving.get("labels")
    if labels is not None:
        labels = known_key_labels(keys._replace(labels=labels), rule.dtype)
        if rule.class_sums:
            more = dot(labels.T, k)
            change["sums"] = change["sums"] + more if "sums" in change else more
            change["counts"] = labels.sum(0)
    if rule.pairwise and (labels is not None or d_weights is not None):
        of_anchors = anchors.label_weights
        tangents = []
        if labels is not None and of_anchors is not None:
            tangents.append(dot(of_anchors, labels.T))
        if d_weights is not None:
            tangents.append(dot(d_weights, known_key_labels(keys, rule.dtype).T))
        for tangent in tangents:
            moved = tangent if allowed is None else jnp.where(allowed, tangent, 0)
            for name, more in (("weight", moved), ("weighted", moved * scores)):
                row = more.sum(-1)
                change[name] = change[name] + row if name in change else row
    return change
