"""Unknown labels of keys: each pair is compared on the labels that both are known to have."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import pytest

from jaxmlcl import losses

RNG = np.random.default_rng(11)
ANCHORS, KEYS = RNG.normal(size=(6, 3)), RNG.normal(size=(11, 3))
LABELS = (RNG.random((6, 4)) < 0.4).astype(np.float64)
KEY_LABELS = (RNG.random((11, 4)) < 0.4).astype(np.float64)
KNOWN, KEY_KNOWN = RNG.random((6, 4)) < 0.7, RNG.random((11, 4)) < 0.7
# An anchor and a key of which nothing is known; a pair with nothing known to both; known to be
# without labels; equal as far as is known.
KNOWN[1], KEY_KNOWN[3] = False, False
KNOWN[2], KEY_KNOWN[4] = [True, True, False, False], [False, False, True, True]
LABELS[4], KEY_LABELS[5], KNOWN[4], KEY_KNOWN[5] = 0, 0, True, True
LABELS[5], KEY_LABELS[6] = [1, 0, 1, 0], [1, 1, 1, 0]
KNOWN[5], KEY_KNOWN[6] = True, [True, False, True, True]
MASKS = {"label_mask": KNOWN, "key_label_mask": KEY_KNOWN}
SETS = ("all", "jaccard")


def by_pairs(weighting: str, empty_matches_empty: bool) -> tuple[np.ndarray, np.ndarray]:
    """Per-anchor values and positives of `all` and `jaccard`, every pair with its own labels."""
    values, positives = np.zeros(6), np.zeros(6, int)
    for i in range(6):
        scores = KEYS @ ANCHORS[i] / 0.3
        cost = math.log(np.exp(scores).sum()) - scores
        for p in range(11):
            both = KNOWN[i] & KEY_KNOWN[p]
            mine, other = LABELS[i][both] > 0, KEY_LABELS[p][both] > 0
            either = (mine | other).sum()
            if not both.any() or (not either and not empty_matches_empty):
                continue
            overlap = (mine & other).sum() / either if either else 1.0
            if overlap == 1 if weighting == "all" else overlap >= 0.5:
                values[i] += overlap * cost[p]
                positives[i] += 1
    return values / np.maximum(positives, 1), positives


@pytest.mark.parametrize("empty_matches_empty", [True, False])
@pytest.mark.parametrize("weighting", SETS)
def test_sets_are_compared_on_what_both_know(
    evaluate: Any, weighting: str, empty_matches_empty: bool
) -> None:
    expected, positives = by_pairs(weighting, empty_matches_empty)
    assert positives[1] == 0
    assert positives[5] >= 1
    options = {"weighting": weighting, "empty_matches_empty": empty_matches_empty}
    divisor = 6 if weighting == "all" else (positives > 0).sum()
    for chunk_size in (None, 4):
        value, rows, grads = evaluate(
            ANCHORS, KEYS, LABELS, KEY_LABELS, chunk_size=chunk_size, **MASKS, **options
        )
        np.testing.assert_allclose(rows, expected, rtol=1e-10)
        np.testing.assert_allclose(value, expected.sum() / divisor, rtol=1e-10)
        assert not np.asarray(grads[0])[1].any()
    statistics = losses.pair_statistics(LABELS, KEY_LABELS, **MASKS, **options)
    assert float(statistics["valid_anchor_fraction"]) == pytest.approx((positives > 0).mean())


@pytest.mark.parametrize("weighting", ["mulsupcon", "mulsupcon_mean", "any"])
def test_an_unknown_label_of_a_key_is_none_it_carries(evaluate: Any, weighting: str) -> None:
    value, rows, grads = evaluate(
        ANCHORS, KEYS, LABELS * KNOWN, KEY_LABELS * KEY_KNOWN, weighting=weighting
    )
    masked, masked_rows, masked_grads = evaluate(
        ANCHORS, KEYS, LABELS, KEY_LABELS, weighting=weighting, **MASKS
    )
    np.testing.assert_allclose(masked, value, rtol=1e-12)
    np.testing.assert_allclose(masked_rows, rows, atol=1e-12)
    for a, b in zip(masked_grads, grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)
    # It stays in the denominator.
    assert np.asarray(grads[1])[3].any()


@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
def test_what_stands_in_masked_cells_has_no_effect(evaluate: Any, weighting: str) -> None:
    options = {"weighting": weighting, **MASKS}
    value, _, grads = evaluate(ANCHORS, KEYS, LABELS, KEY_LABELS, **options)
    labels, key_labels = np.where(KNOWN, LABELS, np.nan), np.where(KEY_KNOWN, KEY_LABELS, np.nan)
    hidden, _, hidden_grads = evaluate(ANCHORS, KEYS, labels, key_labels, **options)
    np.testing.assert_array_equal(hidden, value)
    for a, b in zip(hidden_grads, grads, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
def test_masks_without_a_gap_are_as_none(evaluate: Any, weighting: str) -> None:
    full = {"label_mask": np.ones((6, 4), bool), "key_label_mask": np.ones((11, 4), bool)}
    value, rows, _ = evaluate(ANCHORS, KEYS, LABELS, KEY_LABELS, weighting=weighting)
    masked, masked_rows, _ = evaluate(
        ANCHORS, KEYS, LABELS, KEY_LABELS, weighting=weighting, **full
    )
    np.testing.assert_allclose(masked, value, rtol=1e-12)
    np.testing.assert_allclose(masked_rows, rows, rtol=1e-12)


@pytest.mark.parametrize("weighting", SETS)
def test_invalid_keys_have_no_labels_to_know(evaluate: Any, weighting: str) -> None:
    valid = np.arange(11) % 3 != 0
    options: dict[str, Any] = {"weighting": weighting, "label_mask": KNOWN}
    value, rows, _ = evaluate(
        ANCHORS, KEYS[valid], LABELS, KEY_LABELS[valid], key_label_mask=KEY_KNOWN[valid], **options
    )
    masked, masked_rows, _ = evaluate(
        ANCHORS, KEYS, LABELS, KEY_LABELS, key_label_mask=KEY_KNOWN, key_valid=valid, **options
    )
    np.testing.assert_allclose(masked, value, rtol=1e-12)
    np.testing.assert_allclose(masked_rows, rows, atol=1e-12)


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"key_label_mask has shape \[11, 3\]; .* K = 11, L = 4"):
        losses.multi_positive_infonce(
            ANCHORS, KEYS, LABELS, KEY_LABELS, key_label_mask=np.ones((11, 3))
        )


def test_labels_of_degrees_are_checked_where_they_are_known() -> None:
    degrees = KEY_LABELS.copy()
    degrees[3, 0] = 0.5
    losses.pair_statistics(LABELS, degrees, weighting="all", **MASKS)
    with pytest.raises(ValueError, match=r"key_labels \[11, 4\] has 0.5 at \[3, 0\]"):
        losses.pair_statistics(LABELS, degrees, weighting="all", label_mask=KNOWN)


@pytest.mark.parametrize("name", ["binary_cross_entropy", "focal", "asymmetric"])
def test_a_row_of_which_nothing_is_known_adds_nothing(x64: None, name: str) -> None:
    function = getattr(losses, name)
    logits, rest = RNG.normal(size=(6, 4)), KNOWN.any(1)
    value, grad = jax.value_and_grad(lambda x: function(x, LABELS, label_mask=KNOWN))(logits)
    dropped = function(logits[rest], LABELS[rest], label_mask=KNOWN[rest])
    np.testing.assert_allclose(value, dropped, rtol=1e-12)
    assert not np.asarray(grad)[~KNOWN].any()
    assert np.asarray(grad)[KNOWN].all()
