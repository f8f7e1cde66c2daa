"""What a mask leaves out has no effect: value, gradient, class sums and statistics."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from jaxmlcl import losses

WEIGHTINGS = losses.WEIGHTINGS
FACTORISED = ("mulsupcon", "mulsupcon_mean")
CHUNKS = (None, 4)

RNG = np.random.default_rng(7)


def unit(n: int) -> np.ndarray:
    x = RNG.normal(size=(n, 3))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


ANCHORS, KEYS = unit(6), unit(11)
LABELS = RNG.integers(0, 2, (6, 4)).astype(np.float64)
KEY_LABELS = RNG.integers(0, 2, (11, 4)).astype(np.float64)
LABELS[2], LABELS[3], KEY_LABELS[4], KEY_LABELS[5] = 0, 1, 0, 1
KEY_VALID = np.array([1, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1], bool)
WHERE = np.array([1, 0, 1, 1, 0, 1], bool)
ANCHOR_IDS = np.array([3, 4, 5, 6, 7, -1])
KEY_IDS = np.array([-1, 3, 4, 4, 9, -1, 6, 3, 5, 12, 7])
IDS = {"anchor_ids": ANCHOR_IDS, "key_ids": KEY_IDS}
EXCLUDED = (ANCHOR_IDS[:, None] == KEY_IDS[None, :]) & (KEY_IDS >= 0)


# Given by default, so that tests share a compilation.
ALL_KEPT = {
    "key_valid": np.ones(11, bool),
    "where": np.ones(6, bool),
    "label_mask": np.ones((6, 4), bool),
}


def spoiled(array: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """NaN wherever the mask says that nothing is there."""
    return np.where(kept.reshape(-1, *[1] * (array.ndim - 1)), array, np.nan)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_invalid_keys_are_as_if_removed(evaluate: Any, weighting: str) -> None:
    v = KEY_VALID
    value, rows, (to_anchors, to_keys) = evaluate(
        ANCHORS, KEYS[v], LABELS, KEY_LABELS[v], weighting=weighting
    )
    for chunk_size in CHUNKS:
        masked, masked_rows, (masked_anchors, masked_keys) = evaluate(
            ANCHORS,
            spoiled(KEYS, v),
            LABELS,
            spoiled(KEY_LABELS, v),
            weighting=weighting,
            chunk_size=chunk_size,
            **ALL_KEPT | {"key_valid": v},
        )
        np.testing.assert_allclose(masked, value, rtol=1e-12)
        np.testing.assert_allclose(masked_rows, rows, atol=1e-12)
        np.testing.assert_allclose(masked_anchors, to_anchors, atol=1e-12)
        np.testing.assert_allclose(np.asarray(masked_keys)[v], to_keys, atol=1e-12)
        assert not np.any(np.asarray(masked_keys)[~v])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_dropped_anchors_are_as_if_removed(evaluate: Any, weighting: str) -> None:
    w = WHERE
    value, rows, (to_anchors, to_keys) = evaluate(
        ANCHORS[w], KEYS, LABELS[w], KEY_LABELS, weighting=weighting
    )
    masked, masked_rows, (masked_anchors, masked_keys) = evaluate(
        spoiled(ANCHORS, w),
        KEYS,
        spoiled(LABELS, w),
        KEY_LABELS,
        weighting=weighting,
        **ALL_KEPT | {"where": w},
    )
    np.testing.assert_allclose(masked, value, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(masked_rows)[w], rows, atol=1e-12)
    np.testing.assert_allclose(np.asarray(masked_anchors)[w], to_anchors, atol=1e-12)
    np.testing.assert_allclose(masked_keys, to_keys, atol=1e-12)
    assert not np.any(np.asarray(masked_rows)[~w])
    assert not np.any(np.asarray(masked_anchors)[~w])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_equal_ids_equal_loops(naive: Any, evaluate: Any, weighting: str) -> None:
    assert EXCLUDED.sum() == 7
    arrays = (ANCHORS, KEYS, LABELS, KEY_LABELS)
    for valid in (np.ones(11, bool), KEY_VALID):
        expected_rows, expected, _ = naive(
            *arrays, weighting=weighting, absent=EXCLUDED | ~valid[None, :]
        )
        for chunk_size in CHUNKS:
            value, rows, _ = evaluate(
                *arrays,
                weighting=weighting,
                chunk_size=chunk_size,
                **ALL_KEPT | IDS | {"key_valid": valid},
            )
            np.testing.assert_allclose(value, expected, rtol=1e-12)
            np.testing.assert_allclose(rows, expected_rows, atol=1e-12)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_equal_ids_are_as_if_removed_for_that_anchor(evaluate: Any, weighting: str) -> None:
    """One anchor at a time: value and gradients as with keys that are really gone."""
    for i in (0, 1, 5):
        there = ~EXCLUDED[i]
        assert there.sum() == (9 if i < 2 else 11)
        only = np.arange(6) == i
        arrays = (ANCHORS, KEYS, LABELS, KEY_LABELS)
        options = ALL_KEPT | {"where": only, "weighting": weighting}
        value, rows, (to_anchors, to_keys) = evaluate(*arrays, **options | IDS)
        one, one_row, (anchor_grad, key_grad) = evaluate(*arrays, **options | {"key_valid": there})
        np.testing.assert_allclose(value, one, rtol=1e-12)
        np.testing.assert_allclose(rows, one_row, atol=1e-12)
        np.testing.assert_allclose(to_anchors, anchor_grad, atol=1e-12)
        np.testing.assert_allclose(to_keys, key_grad, atol=1e-12)
        assert not np.any(np.asarray(to_keys)[~there])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_unknown_labels_are_as_if_absent(evaluate: Any, weighting: str) -> None:
    mask = np.random.default_rng(3).integers(0, 2, LABELS.shape).astype(bool)
    value, _, grads = evaluate(
        ANCHORS, KEYS, np.where(mask, LABELS, 0), KEY_LABELS, weighting=weighting
    )
    unknown = np.where(mask, LABELS, -1)
    masked, _, masked_grads = evaluate(
        ANCHORS,
        KEYS,
        unknown,
        KEY_LABELS,
        weighting=weighting,
        **ALL_KEPT | {"label_mask": mask},
    )
    np.testing.assert_allclose(masked, value, rtol=1e-12)
    for a, b in zip(masked_grads, grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_values_in_masked_places_are_not_checked() -> None:
    mask = np.random.default_rng(3).integers(0, 2, LABELS.shape).astype(bool)
    options = {"label_mask": mask, "key_valid": KEY_VALID, "where": WHERE}
    hidden = losses.multi_positive_infonce(
        ANCHORS, KEYS, np.where(mask, LABELS, -1), spoiled(KEY_LABELS, KEY_VALID), **options
    )
    shown = losses.multi_positive_infonce(ANCHORS, KEYS, LABELS, KEY_LABELS, **options)
    np.testing.assert_array_equal(hidden, shown)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("weighting", FACTORISED)
def test_given_class_sums(evaluate: Any, weighting: str) -> None:
    """Same value, and the same gradient once that of the sums is carried back to the keys."""
    options = {"weighting": weighting, "key_valid": KEY_VALID}
    keys, key_labels = spoiled(KEYS, KEY_VALID), spoiled(KEY_LABELS, KEY_VALID)
    value, _, grads = evaluate(ANCHORS, keys, LABELS, key_labels, **options)

    def given(z: jax.Array, k: jax.Array, chunk_size: int | None) -> jax.Array:
        sums = losses.class_sums(k, key_labels, key_valid=KEY_VALID)
        return losses.multi_positive_infonce(
            z,
            k,
            LABELS,
            key_labels,
            class_sums=sums,
            chunk_size=chunk_size,
            temperature=0.3,
            **options,
        )

    both = jax.jit(jax.value_and_grad(given, argnums=(0, 1)), static_argnums=2)
    for chunk_size in CHUNKS:
        again, given_grads = both(ANCHORS, keys, chunk_size)
        np.testing.assert_allclose(again, value, rtol=1e-12)
        for a, b in zip(given_grads, grads, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_class_sums_are_used_and_ids_set_them_aside(evaluate: Any) -> None:
    arrays = (ANCHORS, KEYS, LABELS, KEY_LABELS)
    sums, counts = losses.class_sums(KEYS, KEY_LABELS)
    np.testing.assert_allclose(sums, KEY_LABELS.T @ KEYS, atol=1e-13)
    twice = {"class_sums": (2 * sums, counts), "weighting": "mulsupcon"}
    plain = evaluate(*arrays, weighting="mulsupcon")[0]
    assert abs(evaluate(*arrays, **twice)[0] - plain) > 0.01
    np.testing.assert_array_equal(
        evaluate(*arrays, **twice, **IDS)[0], evaluate(*arrays, weighting="mulsupcon", **IDS)[0]
    )
    with pytest.raises(ValueError, match=r"key_labels has shape \[3, 4\]; .* with K = 11"):
        losses.class_sums(KEYS, KEY_LABELS[:3])
    with pytest.raises(ValueError, match=r"keys has shape \[3\]; expected \[K, D\]"):
        losses.class_sums(KEYS[0], KEY_LABELS)


NOTHING: dict[str, dict[str, Any]] = {
    "no labels": {"labels": np.zeros((6, 4))},
    "no valid key": {"key_valid": np.zeros(11, bool)},
    "no key": {"keys": np.zeros((0, 3)), "key_labels": np.zeros((0, 4))},
    "no anchor kept": {"where": np.zeros(6, bool)},
    "no known label": {"label_mask": np.zeros((6, 4), bool)},
    "every key of the sample itself": {
        "anchor_ids": np.zeros(6, int),
        "key_ids": np.zeros(11, int),
    },
}


@pytest.mark.parametrize("case", NOTHING)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_nothing_to_compare_is_zero_but_nan_shows(evaluate: Any, weighting: str, case: str) -> None:
    given = {"labels": LABELS, "key_labels": np.ones((11, 4)), "keys": KEYS}
    given |= (ALL_KEPT if case != "no key" else {}) | NOTHING[case]
    arrays = given.pop("keys"), given.pop("labels"), given.pop("key_labels")
    options = given | {"weighting": weighting}
    value, rows, grads = evaluate(ANCHORS, *arrays, **options)
    assert value == 0
    assert not np.any(rows)
    assert not any(np.any(g) for g in grads)
    if case not in ("no key", "no anchor kept"):
        broken = ANCHORS.copy()
        broken[4, 1] = np.nan
        assert np.isnan(evaluate(broken, *arrays, **options)[0])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_show(evaluate: Any, weighting: str, bad: float) -> None:
    for chunk_size in CHUNKS:
        options = ALL_KEPT | {"weighting": weighting, "chunk_size": chunk_size}
        for array in (0, 1):
            arrays = [ANCHORS.copy(), KEYS.copy(), LABELS, KEY_LABELS]
            arrays[array][-1, 0] = bad
            assert not np.isfinite(evaluate(*arrays, **options)[0])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_all_labels_everywhere(evaluate: Any, weighting: str) -> None:
    """Every key is then a positive: the loss is the mean over keys, per label for `mulsupcon`."""
    scores = ANCHORS @ KEYS.T / 0.3
    mean = (np.log(np.exp(scores).sum(1)) - scores.mean(1)).mean()
    value, _, _ = evaluate(ANCHORS, KEYS, np.ones((6, 4)), np.ones((11, 4)), weighting=weighting)
    np.testing.assert_allclose(value, mean)


@pytest.mark.parametrize("weighting", FACTORISED)
def test_a_label_without_keys_adds_nothing(evaluate: Any, weighting: str) -> None:
    key_labels = KEY_LABELS.copy()
    key_labels[:, 0] = 0
    only_that = np.array([[1, 0, 0, 0]] * 6)
    value, _, grads = evaluate(ANCHORS, KEYS, only_that, key_labels, weighting=weighting)
    assert value == 0
    assert not any(np.any(g) for g in grads)


def test_negative_ids_match_nothing(evaluate: Any) -> None:
    arrays = (ANCHORS, KEYS, LABELS, KEY_LABELS)
    none = {"anchor_ids": np.full(6, -1), "key_ids": np.full(11, -1)}
    np.testing.assert_allclose(
        evaluate(*arrays, weighting="mulsupcon", **none)[0],
        evaluate(*arrays, weighting="mulsupcon")[0],
        rtol=1e-13,
    )


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_pair_statistics_equal_loops(naive: Any, weighting: str) -> None:
    arrays = (ANCHORS, KEYS, LABELS, KEY_LABELS)
    labelled = WHERE & (LABELS.sum(1) > 0)
    for empty_matches_empty, chunk_size in ((True, 4), (False, None)):
        options = {"weighting": weighting, "empty_matches_empty": empty_matches_empty}
        _, _, positives = naive(*arrays, absent=EXCLUDED | ~KEY_VALID[None, :], **options)
        masks = IDS | {"key_valid": KEY_VALID, "where": WHERE}
        statistics = jax.jit(
            lambda masks, chunk_size=chunk_size, options=options: losses.pair_statistics(
                LABELS, KEY_LABELS, chunk_size=chunk_size, **masks, **options
            )
        )(masks)
        np.testing.assert_allclose(
            statistics["positives_per_anchor"], positives[labelled].mean(), rtol=1e-6
        )
        np.testing.assert_allclose(
            statistics["valid_anchor_fraction"], (positives[WHERE] > 0).mean(), rtol=1e-6
        )


def test_pair_statistics_by_hand() -> None:
    """Labels of the golden vectors: W has 3, 2 and 3 entries above zero."""
    labels = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 1]])
    key_labels = np.vstack([labels, [[0, 0, 1], [0, 0, 0]]])
    statistics = losses.pair_statistics(labels, key_labels, weighting="mulsupcon")
    assert float(statistics["positives_per_anchor"]) == pytest.approx(8 / 3)
    assert float(statistics["valid_anchor_fraction"]) == 1
    own = losses.pair_statistics(labels, key_labels, weighting="all")
    assert float(own["positives_per_anchor"]) == 1
    # At least 1/2: {0, 1} with itself and {1}; {1} with itself and {0, 1}; {0, 2} with itself, {2}.
    some = losses.pair_statistics(labels, key_labels, weighting="jaccard", threshold=0.5)
    assert float(some["positives_per_anchor"]) == 2
    masked = losses.pair_statistics(labels, key_labels, label_mask=np.zeros((3, 3)))
    assert float(masked["positives_per_anchor"]) == 0
    assert float(masked["valid_anchor_fraction"]) == 0
