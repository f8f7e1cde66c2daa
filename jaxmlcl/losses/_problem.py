"""A contrastive loss as data: what is compared, by which rule, and what the sums over keys mean.

`multi_positive_infonce` goes through these steps on one device, and the collective strategies
take them apart: `prepare`, `label_counts` and `weighed` (where ids exclude pairs), `walk`,
`complete`, `rows`. Only the second and the fourth need sums over all keys.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ._chunks import chunk_of, fold, num_keys, take
from ._common import accumulation_dtype, check_floating, check_number, check_shape, divide, dot
from ._pairs import (
    FACTORISED,
    Anchors,
    Keys,
    Maybe,
    allowed_pairs,
    check_and_mask,
    is_segmented,
    known_key_labels,
    shape_of,
)
from ._walk import Rule, Walk

Statistics = dict[str, tuple[jax.Array, jax.Array]]


class OwnKeys(NamedTuple):
    """The key of each anchor's own sample."""

    embeddings: jax.Array
    """[B, D]"""
    valid: Maybe = None
    """[B] bool, None where every anchor has one."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Anchors, keys and the rule that compares them, checked."""

    anchors: Anchors
    segments: tuple[Keys, ...]
    rule: Rule
    temperature: jax.Array
    class_sums: tuple[jax.Array, jax.Array] | None = None
    """The caller's sums [L, D] and counts [L]; None where ids give each anchor its own."""

    @property
    def shape(self) -> tuple[int, int]:
        """(B, D)."""
        return self.anchors.embeddings.shape

    def label_counts(self, few_anchors: bool = True) -> jax.Array | None:
        """c_j [L], or c_ij [B, L] where ids exclude pairs; None where class sums tell them.

        Counts come before the walk, for weights of pairs. Without ids those are worth their while
        only for few anchors: a matrix of weights is B x K x L, class sums are K x L x D.

        Args:
            few_anchors: whether to look for that case.
        """
        rule, (num_anchors, dim) = self.rule, self.shape
        if rule.weighting not in FACTORISED or self.class_sums is not None:
            return None
        with_ids = self.anchors.ids is not None
        chunk, plain = chunk_of(num_anchors, self.segments, rule.chunk_size)
        if not with_ids and not (few_anchors and num_anchors < dim and plain):
            return None

        def count(keys: Keys, start: Any, size: int, _: Any) -> jax.Array:
            chunk = take(keys, start, size)
            labels = known_key_labels(chunk, rule.dtype)
            if not with_ids:
                return labels.sum(0)
            return dot(jnp.asarray(allowed_pairs(self.anchors, chunk)).astype(rule.dtype), labels)

        sizes = [num_keys(keys) for keys in self.segments]
        parts = [
            fold(functools.partial(count, keys), jnp.add, size, chunk)
            for keys, size in zip(self.segments, sizes, strict=True)
        ]
        return functools.reduce(jnp.add, parts)

    def weighed(self, counts: jax.Array | None) -> Problem:
        """With weights of pairs made of y_ij / c_ij; unchanged without counts."""
        if counts is None:
            return self
        weights = _per_key(self.anchors.labels, counts)
        anchors = self.anchors._replace(label_weights=weights, label_counts=counts)
        rule = self.rule._replace(pairwise=True, class_sums=False)
        return dataclasses.replace(self, anchors=anchors, rule=rule)

    def complete(self, found: Walk) -> Walk:
        """The walk with the sums over weights, where they follow from the class sums.

        With class means M_j = S_j / c_j: sum_p W_ip s_ip = z_i . sum_j y_ij M_j, and the row sums
        of W are the labels that some key carries.
        """
        if self.rule.pairwise:
            return found
        sums, counts = found.sums, found.counts
        if self.class_sums is not None:
            sums, counts = self.class_sums
        labels, z = self.anchors.labels, self.anchors.embeddings
        means = dot(_per_key(labels, counts), sums)
        carried = jnp.where(counts == 0, 0, labels).sum(-1)
        return found._replace(
            sums=sums, counts=counts, weight=carried, weighted=(z * means).sum(-1)
        )

    def rows(self, found: Walk) -> tuple[jax.Array, jax.Array]:
        """loss_i [B], 0 for anchors that are left out, and what each adds to the divisor [B]."""
        log_sum = jnp.where(found.log_sum == -jnp.inf, 0, found.log_sum)
        values = found.weight * log_sum - found.weighted
        weighting, labels = self.rule.weighting, jnp.asarray(self.anchors.labels)
        sizes = labels.sum(-1)
        if weighting == "mulsupcon_mean":
            values = divide(values, sizes)
        elif weighting != "mulsupcon":
            values = divide(values, found.positives)
        if weighting == "mulsupcon":
            terms = sizes
        elif weighting in ("any", "jaccard"):
            terms = (jnp.asarray(found.positives) > 0).astype(values.dtype)
        else:
            terms = jnp.ones_like(values)
        kept = self.anchors.kept
        if kept is not None:
            values, terms = jnp.where(kept, values, 0), jnp.where(kept, terms, 0)
        return values, terms

    def statistics(self, found: Walk, own: OwnKeys | None = None) -> Statistics:
        """What the walk tells beside the loss: name -> (value [B], its weight in the mean [B]).

        Args:
            found: a complete walk with `seen`.
            own: each anchor's own key, from `own_keys`.
        """
        seen, anchors = found.seen, self.anchors
        if seen is None:
            raise ValueError("the walk was not asked for statistics")
        found, anchors, t = jax.lax.stop_gradient((found, anchors, self.temperature))
        z, labels = anchors.embeddings, jnp.asarray(anchors.labels)
        kept = jnp.ones(z.shape[0], bool) if anchors.kept is None else anchors.kept
        labelled = kept & (labels > 0).any(-1)
        scores = dot(z, seen.keys) if seen.scores is None else seen.scores
        if self.rule.weighting in FACTORISED:
            # Each pair of an anchor and one of its labels has positives of its own, as in the
            # loss: the c_j keys that carry the label. The others are its negatives.
            carried = found.counts if anchors.label_counts is None else anchors.label_counts
            of_label = dot(z, found.sums.T) if seen.of_label is None else seen.of_label
            others = seen.allowed[:, None] - carried
            against = jnp.where(others > 0, labels, 0)
            apart = (against * divide(scores[:, None] - of_label, others)).sum(-1)
            positives = (labels * carried).sum(-1)
            positive = (divide(found.weighted, found.weight), found.weight)
            negative = (divide(apart, against.sum(-1)), against.sum(-1))
        else:
            positives = found.positives
            others = seen.allowed - positives
            positive = (divide(seen.alike, positives), positives > 0)
            negative = (divide(scores - seen.alike, others), others > 0)
        positive, negative = (
            (value, jnp.where(kept, weight, 0)) for value, weight in (positive, negative)
        )
        alone = found.log_sum == -jnp.inf
        log_sum = jnp.where(alone, 0, found.log_sum)
        compared = kept & ~alone
        number = jnp.maximum(jnp.broadcast_to(seen.allowed, log_sum.shape), 1)
        measured = {
            "positives_per_anchor": (positives, labelled),
            "valid_anchor_fraction": (positives > 0, kept),
            "positive_similarity": (positive[0] * t, positive[1]),
            "negative_similarity": (negative[0] * t, negative[1]),
            "effective_negatives": (jnp.exp(log_sum - seen.mean_score), compared),
            "uniformity": (log_sum - jnp.log(number) - 1 / t, compared),
        }
        if own is not None:
            with_own = kept if own.valid is None else kept & own.valid
            keys = jax.lax.stop_gradient(own.embeddings).astype(z.dtype)
            score, unscaled = (z * keys).sum(-1), z * t
            distance = (unscaled**2).sum(-1) + (keys**2).sum(-1) - 2 * t * score
            # The same product in another order may differ in its last bits.
            slack = 1e-5 * jnp.maximum(1, jnp.abs(seen.best))
            measured["alignment"] = (jnp.maximum(distance, 0), with_own)
            measured["in_batch_top1"] = (score >= seen.best - slack, with_own)
        return {
            name: (jnp.where(weight > 0, value, 0).astype(z.dtype), weight.astype(z.dtype))
            for name, (value, weight) in measured.items()
        }


def prepare(
    anchors: ArrayLike,
    keys: Any,
    anchor_labels: ArrayLike,
    key_labels: Any,
    *,
    weighting: str = "mulsupcon",
    temperature: ArrayLike = 0.1,
    class_sums: tuple[ArrayLike, ArrayLike] | None = None,
    chunk_size: int | None = None,
    empty_matches_empty: bool = True,
    statistics: bool = False,
    **masks: Any,
) -> Problem:
    """Check the arguments of `multi_positive_infonce` and put them in order.

    Args:
        anchors: [B, D].
        keys: [K, D], or a tuple of such arrays.
        anchor_labels: [B, L].
        key_labels: [K, L], or a tuple of such arrays.
        weighting: rule of the weights.
        temperature: scale of the scores.
        class_sums: (sums [L, D], counts [L]) of the valid keys.
        chunk_size: keys at a time.
        empty_matches_empty: whether two empty label sets are equal.
        statistics: whether the walk measures more than the loss.
        **masks: the other arguments of `multi_positive_infonce`.

    Raises:
        ValueError: an argument that does not fit; the message names it and its shape.
    """
    shape_of("anchors", anchors)
    anchors = jnp.asarray(anchors)
    check_shape("anchors", anchors.shape, {"B": None, "D": None})
    check_floating("anchors", anchors)
    several = is_segmented(keys)
    given_keys = keys if several else (keys,)
    names = [f"keys[{number}]" for number in range(len(keys))] if several else ["keys"]
    for name, part in zip(names, given_keys, strict=True):
        check_shape(name, shape_of(name, part), {"K": None, "D": anchors.shape[1]})
    parts = tuple(jnp.asarray(part) for part in given_keys)
    for name, part in zip(names, parts, strict=True):
        check_floating(name, part)
    check_number("temperature", temperature, minimum=0, strict=True)
    dtype = accumulation_dtype(anchors, *parts)
    of_anchors, of_keys = check_and_mask(
        anchor_labels,
        key_labels,
        weighting=weighting,
        chunk_size=chunk_size,
        dtype=dtype,
        num_anchors=anchors.shape[0],
        num_keys=tuple(part.shape[0] for part in parts),
        several=several,
        **masks,
    )
    scale = jnp.asarray(temperature, dtype)
    z = anchors.astype(dtype)
    if of_anchors.kept is not None:
        z = jnp.where(of_anchors.kept[:, None], z, 0)
    pairwise = weighting not in FACTORISED
    given = None
    if class_sums is not None:
        checked = _checked(class_sums, weighting, jnp.asarray(of_anchors.labels), z)
        given = checked if of_anchors.ids is None else None
    rule = Rule(
        weighting,
        class_sums=not pairwise and given is None,
        pairwise=pairwise,
        dtype=jnp.dtype(dtype),
        chunk_size=chunk_size,
        empty_matches_empty=empty_matches_empty,
        statistics=statistics,
    )
    segments = tuple(part._replace(embeddings=k) for part, k in zip(of_keys, parts, strict=True))
    return Problem(of_anchors._replace(embeddings=z / scale), segments, rule, scale, given)


def own_keys(problem: Problem) -> OwnKeys | None:
    """The first segment of keys, where it has one key for each anchor; None where it has not.

    A single array of keys tells nothing about which key is whose.
    """
    first = problem.segments[0]
    if len(problem.segments) == 1 or first.embeddings.shape != problem.shape:
        return None
    return OwnKeys(first.embeddings, first.valid)


def _checked(
    class_sums: tuple[ArrayLike, ArrayLike], weighting: str, labels: jax.Array, z: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The caller's class sums, refused where they do not fit."""
    if weighting not in FACTORISED:
        raise ValueError(
            f"class_sums is given with weighting {weighting!r}, which does not factorise over "
            f"labels; expected None, or weighting {' or '.join(FACTORISED)}"
        )
    if not isinstance(class_sums, (tuple, list)) or len(class_sums) != 2:
        shape = f" of shape {list(np.shape(class_sums))}" if hasattr(class_sums, "shape") else ""
        raise ValueError(
            f"class_sums is a {type(class_sums).__name__}{shape}; expected a pair, "
            "sums [L, D] and counts [L]"
        )
    for number, part in enumerate(class_sums):
        shape_of(f"class_sums[{number}]", part)
    sums, counts = (jnp.asarray(x) for x in class_sums)
    check_shape("class_sums[0]", sums.shape, {"L": labels.shape[1], "D": z.shape[1]})
    check_shape("class_sums[1]", counts.shape, {"L": labels.shape[1]})
    return sums.astype(z.dtype), counts.astype(z.dtype)


def _per_key(labels: Any, counts: Any) -> jax.Array:
    """y_ij / c_j, and 0 for a label that no key carries."""
    return jnp.where(counts == 0, 0, divide(labels, counts))
