"""Values and gradients of the multi-positive InfoNCE, without masks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxmlcl import losses

WEIGHTINGS = losses.WEIGHTINGS
FACTORISED = ("mulsupcon", "mulsupcon_mean")
GOLDEN = {
    "mulsupcon_w0": "mulsupcon",
    "mulsupcon_w1": "mulsupcon_mean",
    "supcon_all": "all",
    "supcon_any": "any",
}


def problem(seed: int) -> dict[str, np.ndarray]:
    """Unit embeddings and 0/1 labels in which some rows are empty and some are full."""
    rng = np.random.default_rng(seed)

    def unit(n: int) -> np.ndarray:
        x = rng.normal(size=(n, 3))
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    anchor_labels = rng.integers(0, 2, (6, 4)).astype(np.float64)
    key_labels = rng.integers(0, 2, (11, 4)).astype(np.float64)
    anchor_labels[0], anchor_labels[1], key_labels[1], key_labels[2] = 0, 1, 0, 1
    return {
        "anchors": unit(6),
        "keys": unit(11),
        "anchor_labels": anchor_labels,
        "key_labels": key_labels,
    }


def soft(labels: np.ndarray) -> np.ndarray:
    """Label distributions on the given supports; empty rows stay empty."""
    weights = labels * np.linspace(0.2, 1.0, labels.shape[1])
    return weights / np.maximum(weights.sum(1, keepdims=True), 1e-9)


def raw(inputs: dict[str, Any], dtype: str = "float64") -> tuple[jax.Array, ...]:
    """Arrays of a golden entry: raw anchors and keys, and both label matrices."""
    keys = [*inputs["k_batch_raw"], *inputs["k_queue_raw"]]
    arrays = (inputs["q_raw"], keys, inputs["Y"], [*inputs["Y"], *inputs["Y_queue"]])
    return tuple(jnp.asarray(np.array(x, dtype)) for x in arrays)


@pytest.fixture(scope="module")
def golden_loss(quick_compile: dict[str, int]) -> Any:
    """Value and gradient with respect to the raw anchors, compiled once per weighting and dtype.

    With `every_path` a list of them: all keys at once, in chunks, and in parts.
    """

    def loss(q: jax.Array, k: jax.Array, *rest: Any, cut: int | None, **options: Any) -> jax.Array:
        labels, key_labels, temperature = rest
        keys = losses.normalize(k)
        if cut is not None:
            keys, key_labels = (keys[:cut], keys[cut:]), (key_labels[:cut], key_labels[cut:])
        return losses.multi_positive_infonce(
            losses.normalize(q), keys, labels, key_labels, temperature=temperature, **options
        )

    def found(*arrays: Any, weighting: str, every_path: bool = False) -> Any:
        paths = [(None, None)]
        if every_path:
            num_anchors, num_keys = len(arrays[0]), len(arrays[1])
            paths += [(1, None), (2, None), (num_keys, None), (None, num_anchors), (2, num_anchors)]
        results = [
            jax.value_and_grad(loss)(*arrays, cut=cut, chunk_size=size, weighting=weighting)
            for size, cut in paths
        ]
        return results if every_path else results[0]

    return jax.jit(
        found, static_argnames=("weighting", "every_path"), compiler_options=quick_compile
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
@pytest.mark.parametrize("temperature", ["0.5", "0.1"])
@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.usefixtures("x64")
def test_golden(
    golden: dict[str, Any],
    golden_loss: Any,
    name: str,
    temperature: str,
    dtype: str,
    tolerance: float,
) -> None:
    entry = golden[f"{name}_tau{temperature}"]
    results = golden_loss(
        *raw(entry["inputs"], dtype),
        entry["inputs"]["tau"],
        weighting=GOLDEN[name],
        every_path=True,
    )
    assert len(results) == 6
    assert entry["grad"]["wrt"] == "q_raw[0,1]"
    for value, grad in results:
        assert value.dtype == dtype
        np.testing.assert_allclose(value, entry["value"], rtol=0, atol=tolerance)
        np.testing.assert_allclose(grad[0, 1], entry["grad"]["value"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("ids", [False, True])
def test_golden_weights(golden: dict[str, Any], evaluate: Any, ids: bool) -> None:
    """With keys = identity, d loss / d anchors is (|y_i| softmax_ip - W_ip) / (t sum_i |y_i|)."""
    inputs, expected = golden["mulsupcon_W"]["inputs"], golden["mulsupcon_W"]["value"]
    labels, key_labels = np.array(inputs["Y"]), np.array(inputs["Y_keys"])
    scores = np.random.default_rng(0).normal(size=(3, 5))
    # Ids that match nothing: the weights are then built pair by pair.
    given = {"anchor_ids": np.arange(3), "key_ids": np.arange(10, 15)} if ids else {}
    _, _, (grad, _) = evaluate(scores, np.eye(5), labels, key_labels, temperature=0.5, **given)
    softmax = np.exp(scores / 0.5) / np.exp(scores / 0.5).sum(1, keepdims=True)
    weights = labels.sum(1, keepdims=True) * softmax - grad * 0.5 * labels.sum()
    np.testing.assert_allclose(weights, expected["W"], atol=1e-9)
    np.testing.assert_allclose(weights.sum(1), expected["row_sums"], atol=1e-9)
    _, counts = losses.class_sums(np.eye(5), key_labels)
    np.testing.assert_array_equal(counts, expected["counts"])


def test_golden_unlabelled_anchor(golden: dict[str, Any], evaluate: Any) -> None:
    inputs, expected = golden["unlabelled_anchor"]["inputs"], golden["unlabelled_anchor"]["value"]
    q, k, labels, key_labels = raw(inputs)
    arrays = (losses.normalize(q), losses.normalize(k), labels, key_labels)

    def loss(weighting: str, **options: Any) -> Any:
        return evaluate(*arrays, weighting=weighting, temperature=inputs["tau"], **options)[:2]

    close = {"rtol": 0, "atol": 1e-9}
    np.testing.assert_allclose(loss("mulsupcon")[0], expected["mulsupcon_w0"], **close)
    np.testing.assert_allclose(loss("mulsupcon_mean")[0], expected["mulsupcon_w1_divB"], **close)
    value, rows = loss("all")
    np.testing.assert_allclose(value, expected["all_authors_empty_equals_empty"], **close)
    assert rows[3] > 0
    assert loss("all", empty_matches_empty=False)[1][3] == 0
    # The authors' value is NaN; dividing by B instead of by the anchors with a positive is at hand.
    value, rows = loss("any")
    np.testing.assert_allclose(value, expected["any_skip_mean_over_valid"], **close)
    np.testing.assert_allclose(rows.mean(), expected["any_skip_mean_over_B"], **close)
    assert rows[3] == 0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_golden_single_label(golden: dict[str, Any], golden_loss: Any, weighting: str) -> None:
    entry = golden["mulsupcon_single_label"]
    names = ("q_raw", "k_raw", "Y", "Y_keys")
    arrays = (np.array(entry["inputs"][name], np.float64) for name in names)
    tau = entry["inputs"]["tau"]
    value, _ = golden_loss(*arrays, tau, weighting=weighting)
    np.testing.assert_allclose(value, entry["value"], rtol=0, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_distributions_of_anchors_give_the_mean_form(
    golden: dict[str, Any], golden_loss: Any
) -> None:
    """Degrees y / |y| of the anchors turn `mulsupcon` into `mulsupcon_mean`."""
    entry = golden["mulsupcon_w1_tau0.5"]
    q, k, labels, key_labels = raw(entry["inputs"])
    degrees = labels / labels.sum(1, keepdims=True)
    value, _ = golden_loss(q, k, degrees, key_labels, 0.5, weighting="mulsupcon")
    np.testing.assert_allclose(value, entry["value"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"threshold": 0.25, "empty_matches_empty": False}])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_equals_loops(naive: Any, evaluate: Any, weighting: str, options: dict[str, Any]) -> None:
    for seed in range(3):
        arrays = tuple(problem(seed).values())
        expected_rows, expected, _ = naive(*arrays, weighting=weighting, **options)
        value, rows, _ = evaluate(*arrays, weighting=weighting, **options)
        np.testing.assert_allclose(value, expected, atol=1e-12)
        np.testing.assert_allclose(rows, expected_rows, atol=1e-12)


@pytest.mark.parametrize("weighting", FACTORISED)
def test_label_distributions_equal_loops(naive: Any, evaluate: Any, weighting: str) -> None:
    case = problem(0)
    case |= {name: soft(case[name]) for name in ("anchor_labels", "key_labels")}
    expected_rows, expected, _ = naive(*case.values(), weighting=weighting)
    for options in ({}, {"anchor_ids": np.arange(6), "key_ids": np.full(11, -1)}):
        value, rows, _ = evaluate(*case.values(), weighting=weighting, **options)
        np.testing.assert_allclose(rows, expected_rows, atol=1e-12)
        np.testing.assert_allclose(value, expected, atol=1e-12)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_gradients_are_slopes(evaluate: Any, weighting: str) -> None:
    case = problem(3)
    rng, step = np.random.default_rng(0), 1e-6
    _, _, grads = evaluate(*case.values(), weighting=weighting)
    for name, grad in zip(("anchors", "keys"), grads, strict=True):
        direction = rng.normal(size=grad.shape)
        plus, minus = (
            evaluate(**case | {name: case[name] + sign * step * direction}, weighting=weighting)[0]
            for sign in (1, -1)
        )
        slope = (plus - minus) / (2 * step)
        np.testing.assert_allclose(np.sum(grad * direction), slope, rtol=1e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("weighting", ["mulsupcon", "any"])
def test_derivatives(weighting: str) -> None:
    """Both modes in anchors, keys and temperature, and the second order of the factorised form."""
    case = problem(3)

    def loss(anchors: jax.Array, keys: jax.Array, temperature: jax.Array) -> jax.Array:
        return losses.multi_positive_infonce(
            anchors,
            keys,
            case["anchor_labels"],
            case["key_labels"],
            weighting=weighting,
            temperature=temperature,
        )

    arrays = (case["anchors"], case["keys"], 0.5)
    check_grads(jax.jit(loss), arrays, order=1, atol=1e-6, rtol=1e-6)
    if weighting == "mulsupcon":
        check_grads(jax.jit(loss), arrays, order=2, modes=["rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("weighting", "chunk_size"),
    [*((weighting, 4) for weighting in WEIGHTINGS), *(("jaccard", n) for n in (1, 6, 11))],
)
def test_chunks_change_nothing(evaluate: Any, weighting: str, chunk_size: int) -> None:
    case = problem(1)
    value, _, grads = evaluate(*case.values(), weighting=weighting)
    again, _, chunk_grads = evaluate(*case.values(), weighting=weighting, chunk_size=chunk_size)
    np.testing.assert_allclose(again, value, rtol=1e-12)
    for a, b in zip(chunk_grads, grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("weighting", ["any", "mulsupcon"])
def test_chunks_keep_memory_below_the_score_matrix(weighting: str) -> None:
    """Of the gradient with respect to anchors, the case of the momentum queue."""
    num_anchors, num_keys, dim = 256, 8192, 8
    shapes = [(num_anchors, dim), (num_keys, dim), (num_anchors, 3), (num_keys, 3)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def temporaries(chunk_size: int | None) -> int:
        grad = jax.grad(
            lambda *a: losses.multi_positive_infonce(*a, weighting=weighting, chunk_size=chunk_size)
        )
        memory = jax.jit(grad).lower(*arrays).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    score_matrix = 4 * num_anchors * num_keys
    assert temporaries(num_keys) > score_matrix
    assert temporaries(256) < score_matrix / 3
    assert temporaries(None) < score_matrix, "chosen from the shapes"


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_order_of_keys_anchors_and_labels_does_not_matter(evaluate: Any, weighting: str) -> None:
    case = problem(4)
    rng = np.random.default_rng(0)
    anchors, keys, columns = rng.permutation(6), rng.permutation(11), rng.permutation(4)
    value, _, (to_anchors, to_keys) = evaluate(*case.values(), weighting=weighting)
    moved, _, (moved_anchors, moved_keys) = evaluate(
        case["anchors"][anchors],
        case["keys"][keys],
        case["anchor_labels"][anchors][:, columns],
        case["key_labels"][keys][:, columns],
        weighting=weighting,
    )
    np.testing.assert_allclose(moved, value, rtol=1e-13)
    np.testing.assert_allclose(moved_anchors, np.asarray(to_anchors)[anchors], atol=1e-13)
    np.testing.assert_allclose(moved_keys, np.asarray(to_keys)[keys], atol=1e-13)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_jit_and_vmap_change_nothing(evaluate: Any, weighting: str) -> None:
    cases = [problem(seed) for seed in range(3)]

    def loss(*arrays: Any) -> jax.Array:
        return losses.multi_positive_infonce(*arrays, weighting=weighting, temperature=0.3)

    eager = [loss(*case.values()) for case in cases]
    jitted = [evaluate(*case.values(), weighting=weighting)[0] for case in cases]
    np.testing.assert_allclose(jitted, eager, rtol=1e-13)
    stacked = [np.stack(column) for column in zip(*(case.values() for case in cases), strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(*stacked), eager, rtol=1e-13)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_bfloat16_is_float32_on_rounded_inputs(
    weighting: str, quick_compile: dict[str, int]
) -> None:
    case = problem(5)
    rounded = [jnp.asarray(case[name], jnp.bfloat16) for name in ("anchors", "keys")]
    both = jax.jit(
        jax.value_and_grad(
            lambda z, k: losses.multi_positive_infonce(
                z, k, case["anchor_labels"], case["key_labels"], weighting=weighting
            ),
            argnums=(0, 1),
        ),
        compiler_options=quick_compile,
    )
    value, grads = both(*rounded)
    wide, wide_grads = both(*(np.asarray(x, np.float32) for x in rounded))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, wide, rtol=1e-6)
    for a, b in zip(grads, wide_grads, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=2**-8, atol=1e-6)


def test_large_scores_do_not_overflow(evaluate: Any) -> None:
    case = problem(6)
    case["anchors"] = case["anchors"] * 1e4
    value, _, grads = evaluate(*case.values(), weighting="mulsupcon")
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)


def test_stopped_keys_get_no_gradient() -> None:
    case = problem(0)
    grad = jax.jit(
        jax.grad(
            lambda keys: losses.multi_positive_infonce(
                case["anchors"],
                jax.lax.stop_gradient(keys),
                case["anchor_labels"],
                case["key_labels"],
            )
        )
    )(case["keys"])
    assert not np.any(grad)


def test_chunk_size_may_be_a_whole_number_of_numpy() -> None:
    z, labels = np.eye(5, 3, dtype=np.float32), np.eye(5, 2, dtype=np.float32)
    one, other = (
        losses.multi_positive_infonce(
            z[:2], z, labels[:2], labels, temperature=0.5, chunk_size=size
        )
        for size in (2, np.int64(2))
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("x64")
def test_normalize() -> None:
    x = np.array([[3.0, 4.0], [0.0, 0.0], [1e-13, 0.0]])
    np.testing.assert_allclose(losses.normalize(x), [[0.6, 0.8], [0, 0], [0, 0]])
    np.testing.assert_allclose(losses.normalize(x.T, axis=0).T, losses.normalize(x))
    # d (x / |x|) . c = (c - u (u . c)) / |x|, with u = (0.6, 0.8) and c = (1, 0)
    grad = jax.jit(jax.grad(lambda v: losses.normalize(v)[:, 0].sum()))(x)
    np.testing.assert_allclose(grad, [[(1 - 0.36) / 5, -0.48 / 5], [0, 0], [0, 0]], atol=1e-15)
    assert losses.normalize(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert np.isnan(losses.normalize(np.array([np.nan, 1.0]))).all()
    with pytest.raises(ValueError, match=r"x is int\d+ \[2\]; expected floating point"):
        losses.normalize(np.array([1, 2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchors": np.ones(3)}, r"anchors has shape \[3\]; expected \[B, D\]"),
        ({"anchors": [[1.0], [1.0, 2.0]]}, r"anchors is a list of 2; expected one array"),
        ({"class_sums": np.ones((4, 3))}, r"class_sums is a \w+ of shape \[4, 3\]; expected"),
        (
            {"anchor_ids": np.arange(6.0), "key_ids": np.arange(11)},
            r"anchor_ids is float\d+ \[6\]; expected integers",
        ),
        (
            {"anchor_ids": np.arange(6), "key_ids": np.arange(11) + 2**40},
            r"key_ids \[11\] go from 1099511627776 to 1099511627786; expected numbers that",
        ),
        ({"keys": np.ones((11, 2))}, r"keys has shape \[11, 2\]; expected \[K, D\] with D = 3"),
        ({"anchors": np.ones((6, 3), int)}, r"anchors is int\d+ \[6, 3\]; expected floating"),
        ({"keys": np.ones((11, 3), int)}, r"keys is int\d+ \[11, 3\]; expected floating"),
        ({"anchor_labels": np.ones((5, 4))}, r"anchor_labels has shape \[5, 4\]; .* with B = 6"),
        ({"key_labels": np.ones((9, 4))}, r"key_labels has shape \[9, 4\]; .* with K = 11"),
        ({"key_labels": np.ones((11, 5))}, r"key_labels has shape \[11, 5\]; .* L = 4"),
        ({"key_valid": np.ones(6)}, r"key_valid has shape \[6\]; expected \[K\] with K = 11"),
        ({"label_mask": np.ones(6)}, r"label_mask has shape \[6\]; expected \[B, L\] with B = 6"),
        ({"where": np.ones(11)}, r"where has shape \[11\]; expected \[B\] with B = 6"),
        ({"anchor_ids": np.ones(6, int)}, r"key_ids is None; expected both"),
        ({"key_ids": np.ones(11, int)}, r"anchor_ids is None; expected both"),
        ({"anchor_ids": np.ones(7), "key_ids": np.ones(11)}, r"anchor_ids has shape \[7\]"),
        ({"temperature": 0.0}, r"temperature is 0.0; expected a number above 0"),
        ({"temperature": float("nan")}, r"temperature is nan; expected a number above 0"),
        ({"temperature": np.ones(6)}, r"temperature has shape \[6\]; expected \[\]"),
        ({"weighting": "mulsupcom"}, r"weighting is 'mulsupcom'; .* did you mean 'mulsupcon'"),
        ({"weighting": "x"}, r"weighting is 'x'; expected one of all, any, [a-z_, ]*jaccard(?!;)"),
        ({"threshold": 1.5}, r"threshold is 1.5; expected a number at least 0 and at most 1"),
        ({"chunk_size": 0}, r"chunk_size is 0; expected a whole number of keys >= 1"),
        ({"chunk_size": 2.0}, r"chunk_size is 2.0; expected a whole number"),
        ({"anchor_labels": np.full((6, 4), 2)}, r"anchor_labels \[6, 4\] has 2 at \[0, 0\]; exp"),
        ({"key_labels": np.full((11, 4), -0.5)}, r"key_labels \[11, 4\] has -0.5 at \[0, 0\]"),
        ({"anchor_labels": np.full((6, 4), np.nan)}, r"anchor_labels \[6, 4\] has nan at \[0, 0\]"),
        (
            {"anchor_labels": np.full((6, 4), 0.25), "weighting": "all"},
            r"anchor_labels \[6, 4\] has 0.25 at \[0, 0\]; expected 0 or 1",
        ),
        (
            {"class_sums": (np.ones((4, 3)), np.ones(4)), "weighting": "any"},
            r"class_sums is given with weighting 'any', which does not factorise",
        ),
        (
            {"class_sums": (np.ones((4, 2)), np.ones(4))},
            r"class_sums\[0\] has shape \[4, 2\]; expected \[L, D\] with L = 4, D = 3",
        ),
        (
            {"class_sums": (np.ones((4, 3)), np.ones(3))},
            r"class_sums\[1\] has shape \[3\]; expected \[L\] with L = 4",
        ),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    given = problem(0) | change
    with pytest.raises(ValueError, match=message):
        losses.multi_positive_infonce(**given)
    # Shapes, types and options are known while tracing; what stands in arrays is not.
    if not any(sign in message for sign in (r" at \[", "go from")):
        arrays = {name: x for name, x in given.items() if isinstance(x, np.ndarray | tuple)}
        rest = {name: x for name, x in given.items() if name not in arrays}
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda arrays: losses.multi_positive_infonce(**arrays, **rest), arrays)


def test_shapes_are_refused_while_tracing_and_values_are_not_looked_at() -> None:
    case = problem(0)
    with pytest.raises(ValueError, match="weighting"):
        jax.jit(lambda: losses.multi_positive_infonce(**case, weighting="none"))()
    value = jax.jit(
        lambda labels, t: losses.multi_positive_infonce(
            case["anchors"], case["keys"], labels, case["key_labels"], temperature=t
        )
    )(case["anchor_labels"] * 2, 0.1)
    assert np.isfinite(value)
