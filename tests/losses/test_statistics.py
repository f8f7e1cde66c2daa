"""What the walk measures beside the loss, against loops over pairs."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np
import pytest

from jaxmlcl import losses

FACTORISED = ("mulsupcon", "mulsupcon_mean")
B, K, L, D = 4, 11, 3, 3
T = 0.4

RNG = np.random.default_rng(9)


def unit(n: int) -> np.ndarray:
    x = RNG.normal(size=(n, D))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


ANCHORS, KEYS = unit(B), unit(K)
# The batch's keys come first: two of them lie next to their anchors.
KEYS[:2] = ANCHORS[:2]
LABELS = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0]], np.float64)
KEY_LABELS = np.vstack([LABELS, RNG.integers(0, 2, (K - B, L))]).astype(np.float64)
MASKS: dict[str, Any] = {
    "key_valid": np.arange(K) % 5 != 2,
    "where": np.arange(B) != 1,
    "label_mask": np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]], bool),
    "key_label_mask": RNG.random((K, L)) < 0.8,
    "anchor_ids": np.arange(B),
    "key_ids": np.array([-1, -1, -1, -1, 0, 7, 3, 3, 2, 0, 8]),
}
WITHOUT_IDS = {name: mask for name, mask in MASKS.items() if not name.endswith("ids")}
ROWS = ("key_valid", "key_label_mask", "key_ids")
CASES: dict[str, dict[str, Any]] = {
    "bare": {},
    "masks": WITHOUT_IDS,
    "masks and ids": MASKS,
    "no keys": WITHOUT_IDS | {"key_valid": np.zeros(K, bool)},
    "no anchors": MASKS | {"where": np.zeros(B, bool)},
}


def mean(pairs: list[tuple[float, float]]) -> float:
    """Mean of (value, weight)."""
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else 0.0


def by_loops(weighting: str, labels: np.ndarray, masks: dict[str, Any]) -> dict[str, float]:
    """Every measurement as its definition says it, one pair at a time."""
    valid = masks.get("key_valid", np.ones(K, bool))
    where = masks.get("where", np.ones(B, bool))
    known = masks.get("label_mask", np.ones((B, L), bool))
    key_known = masks.get("key_label_mask", np.ones((K, L), bool))
    lists: dict[str, list[tuple[float, float]]] = {
        name: []
        for name in (
            "positives_per_anchor",
            "valid_anchor_fraction",
            "positive_similarity",
            "negative_similarity",
            "effective_negatives",
            "uniformity",
            "alignment",
            "in_batch_top1",
        )
    }
    for i in range(B):
        if not where[i]:
            continue
        cosine = [float(ANCHORS[i] @ KEYS[p]) for p in range(K)]
        there = [
            p
            for p in range(K)
            if valid[p]
            and not (
                "key_ids" in masks
                and masks["key_ids"][p] >= 0
                and masks["key_ids"][p] == masks["anchor_ids"][i]
            )
        ]
        mine = labels[i] * known[i]
        positives = 0.0
        if weighting in FACTORISED:
            # One group of positives and one of negatives for each label of the anchor.
            for j in range(L):
                carried = {p: KEY_LABELS[p, j] * key_known[p, j] for p in there}
                count = sum(carried.values())
                positives += mine[j] * count
                if mine[j] and count:
                    alike = sum(carried[p] * cosine[p] for p in there) / count
                    lists["positive_similarity"].append((alike, mine[j]))
                others = len(there) - count
                if mine[j] and others:
                    apart = sum((1 - carried[p]) * cosine[p] for p in there) / others
                    lists["negative_similarity"].append((apart, mine[j]))
        else:
            alike, apart = [], []
            for p in there:
                both = known[i] & key_known[p] if "key_label_mask" in masks else np.ones(L, bool)
                both = both if weighting in ("all", "jaccard") else np.ones(L, bool)
                a = {j for j in range(L) if both[j] and mine[j] > 0}
                b = {j for j in range(L) if both[j] and KEY_LABELS[p, j] * key_known[p, j] > 0}
                same = len(a & b) / len(a | b) if a | b else 1.0
                positive = {
                    "any": bool(a & b),
                    "all": a == b and bool(both.any()),
                    "jaccard": same >= 0.5 and bool(both.any()),
                }[weighting]
                (alike if positive else apart).append(cosine[p])
            positives = len(alike)
            for name, group in (("positive_similarity", alike), ("negative_similarity", apart)):
                lists[name] += [(sum(group) / len(group), 1.0)] if group else []
        if mine.any():
            lists["positives_per_anchor"].append((positives, 1.0))
        lists["valid_anchor_fraction"].append((float(positives > 0), 1.0))
        if there:
            weights = [math.exp(cosine[p] / T) for p in there]
            share = [w / sum(weights) for w in weights]
            entropy = -sum(s * math.log(s) for s in share)
            lists["effective_negatives"].append((math.exp(entropy), 1.0))
            near = sum(math.exp((cosine[p] - 1) / T) for p in there) / len(there)
            lists["uniformity"].append((math.log(near), 1.0))
        if not valid[i]:
            continue
        lists["alignment"].append((float(((ANCHORS[i] - KEYS[i]) ** 2).sum()), 1.0))
        best = max((cosine[p] for p in there if p < B), default=-math.inf)
        lists["in_batch_top1"].append((float(cosine[i] >= best - 1e-9), 1.0))
    return {name: mean(pairs) for name, pairs in lists.items()}


def split(masks: dict[str, Any]) -> dict[str, Any]:
    """Masks of keys for two segments: the batch's own keys, and a queue."""
    return {name: (mask[:B], mask[B:]) if name in ROWS else mask for name, mask in masks.items()}


def loss(z: Any, k: Any, labels: Any, key_labels: Any, masks: Any, **options: Any) -> Any:
    """Of a batch with a queue."""
    keys, of_keys = (k[:B], k[B:]), (key_labels[:B], key_labels[B:])
    options |= split(masks)
    return losses.multi_positive_infonce(z, keys, labels, of_keys, temperature=T, **options)


@functools.cache
def compiled(weighting: str, chunk_size: int | None) -> Any:
    """The statistics alone."""
    return jax.jit(
        lambda *arrays: loss(*arrays, weighting=weighting, chunk_size=chunk_size, statistics=True)[
            1
        ],
        compiler_options={"xla_backend_optimization_level": 0},
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
def test_statistics_equal_loops(weighting: str) -> None:
    """For every mask and chunk size."""
    for case, masks in CASES.items():
        expected = by_loops(weighting, LABELS, masks)
        for chunk_size in (None, 3) if case == "masks" else (3,):
            statistics = compiled(weighting, chunk_size)(ANCHORS, KEYS, LABELS, KEY_LABELS, masks)
            assert set(statistics) == set(expected)
            for name, figure in expected.items():
                np.testing.assert_allclose(
                    statistics[name], figure, rtol=1e-9, atol=1e-12, err_msg=f"{case}: {name}"
                )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("weighting", "case"), [("mulsupcon", "bare"), ("mulsupcon", "masks and ids"), ("all", "masks")]
)
def test_measuring_leaves_value_and_gradient_alone(
    weighting: str, case: str, quick_compile: dict[str, int]
) -> None:
    def both(z: Any, k: Any) -> Any:
        options = {"weighting": weighting, "chunk_size": 3}
        rest = (LABELS, KEY_LABELS, CASES[case])
        plain = jax.value_and_grad(lambda z, k: loss(z, k, *rest, **options), (0, 1))
        measured = jax.value_and_grad(
            lambda z, k: loss(z, k, *rest, **options, statistics=True), (0, 1), has_aux=True
        )
        (value, _), gradients = measured(z, k)
        return (value, gradients), plain(z, k)

    found, expected = jax.jit(both, compiler_options=quick_compile)(ANCHORS, KEYS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, expected)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("weighting", FACTORISED)
def test_label_distributions(weighting: str) -> None:
    """Degrees of the anchors weigh their labels."""
    degrees = LABELS * [0.9, 0.4, 0.6]
    for masks in (WITHOUT_IDS, MASKS):
        expected = by_loops(weighting, degrees, masks)
        statistics = compiled(weighting, 3)(ANCHORS, KEYS, degrees, KEY_LABELS, masks)
        for name, figure in expected.items():
            np.testing.assert_allclose(statistics[name], figure, rtol=1e-9, err_msg=name)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
def test_what_stands_in_masked_places_is_not_measured(weighting: str) -> None:
    run = compiled(weighting, 3)
    valid, where = MASKS["key_valid"], MASKS["where"]
    keys, anchors = KEYS.copy(), ANCHORS.copy()
    assert not valid[:B].all()
    keys[~valid], anchors[~where] = np.nan, np.inf
    labels = np.where(MASKS["label_mask"] & where[:, None], LABELS, np.nan)
    key_labels = np.where(MASKS["key_label_mask"] & valid[:, None], KEY_LABELS, np.nan)
    shown = run(ANCHORS, KEYS, LABELS, KEY_LABELS, MASKS)
    hidden = run(anchors, keys, labels, key_labels, MASKS)
    for name, figure in shown.items():
        np.testing.assert_allclose(hidden[name], figure, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("weighting", ["mulsupcon", "any"])
def test_by_hand(weighting: str) -> None:
    """Two anchors on the axes, their own keys on them, a third key between."""
    half = math.sqrt(0.5)
    eye = np.eye(2, dtype=np.float32)
    labels, queue = np.eye(2, dtype=np.uint8), np.array([[half, half]], np.float32)
    _, found = jax.jit(
        lambda *keys: losses.multi_positive_infonce(
            eye,
            keys,
            labels,
            (labels, np.ones((1, 2), np.uint8)),
            temperature=1.0,
            weighting=weighting,
            statistics=True,
        )
    )(eye, queue)
    weights = np.exp([1, 0, half])
    share = weights / weights.sum()
    expected = {
        "positives_per_anchor": 2,
        "valid_anchor_fraction": 1,
        "positive_similarity": (1 + half) / 2,
        "negative_similarity": 0,
        "effective_negatives": math.exp(-np.sum(share * np.log(share))),
        "uniformity": math.log(np.mean(np.exp(np.array([1, 0, half]) - 1))),
        "alignment": 0,
        "in_batch_top1": 1,
    }
    assert set(found) == set(expected)
    for name, figure in expected.items():
        np.testing.assert_allclose(found[name], figure, atol=1e-6, err_msg=name)
        assert found[name].dtype == np.float32


def test_one_array_of_keys_has_no_key_of_its_own() -> None:
    """Which of them is an anchor's own is not known; nor with a queue alone of another size."""

    def names(keys: Any, key_labels: Any) -> set[str]:
        _, found = jax.eval_shape(
            lambda z, k, y, yk: losses.multi_positive_infonce(z, k, y, yk, statistics=True),
            ANCHORS,
            keys,
            LABELS,
            key_labels,
        )
        assert {figure.shape for figure in found.values()} == {()}
        return set(found)

    every = names((KEYS[:B], KEYS[B:]), (KEY_LABELS[:B], KEY_LABELS[B:]))
    assert names(KEYS, KEY_LABELS) == every - {"alignment", "in_batch_top1"}
    assert names((KEYS[B:], KEYS[:B]), (KEY_LABELS[B:], KEY_LABELS[:B])) == names(KEYS, KEY_LABELS)


@pytest.mark.usefixtures("x64")
def test_given_class_sums_tell_the_same() -> None:
    arrays = (ANCHORS, KEYS, LABELS, KEY_LABELS)
    valid = MASKS["key_valid"]
    sums = losses.class_sums(KEYS, KEY_LABELS, key_valid=valid)

    @jax.jit
    def found(class_sums: Any) -> Any:
        return tuple(
            losses.multi_positive_infonce(
                *arrays, key_valid=valid, class_sums=given, chunk_size=3, statistics=True
            )
            for given in (None, class_sums)
        )

    computed, given = found(sums)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), computed, given)
