"""Losses of label enhancement: contrast of two views, distance from the labels, threshold."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxmlcl import losses
from tests.devices import check_devices, needs_eight, run_in_eight_devices, starts_eight

DENOMINATORS = ("paper", "with_pos", "pyldl")
QUICK = {"xla_backend_optimization_level": 0}
RNG = np.random.default_rng(5)
Z, Q = RNG.normal(size=(2, 6, 3))
WHERE = np.array([1, 1, 1, 0, 1, 1], bool)
# Rows with all labels, with none, with nothing known, left out, and six others.
DEGREES = RNG.dirichlet(np.ones(5), 10)
LABELS = RNG.integers(0, 2, (10, 5)).astype(np.float64)
LABELS[0], LABELS[1] = 1, 0
MASK = RNG.integers(0, 5, (10, 5)) > 0
MASK[2] = False
KEPT = np.arange(10) != 3


@starts_eight
def test_in_eight_devices() -> None:
    run_in_eight_devices(__file__)


def test_the_process_has_the_devices_it_asked_for() -> None:
    check_devices()


def contrast_by_loops(
    z: Any, q: Any, temperature: float, denominator: str, rows: Sequence[int] | None = None
) -> list[float]:
    """l_Zm + l_Qm of the rows, in plain loops."""

    def cosine(a: Any, b: Any) -> float:
        lengths = [max(math.sqrt(sum(x * x for x in v)), 1e-8) for v in (a, b)]
        return sum(x * y for x, y in zip(a, b, strict=True)) / (lengths[0] * lengths[1])

    rows = range(len(z)) if rows is None else rows
    values = []
    for m in rows:
        total = 0.0
        for own, other in ((z, q), (q, z)):
            positive = cosine(own[m], other[m]) / temperature
            terms = [cosine(own[m], own[s]) / temperature for s in rows if s != m]
            terms += [cosine(own[m], other[s]) / temperature for s in rows if s != m]
            if denominator == "with_pos":
                terms.append(positive)
            if denominator == "pyldl":
                terms.append(0.0)
            total += math.log(sum(math.exp(x) for x in terms)) - positive
        values.append(total)
    return values


def hinge_by_loops(d: Any, y: Any, known: Any, margin: float, form: str) -> list[float]:
    values = []
    for row, labels, mask in zip(d, y, known, strict=True):
        there = [j for j in range(len(row)) if mask[j]]
        costs = [
            max(row[j] - row[k] + margin, 0.0)
            for j in there
            for k in there
            if labels[j] == 0 and labels[k] == 1
        ]
        # The pair of the highest 0 and the lowest 1 costs most.
        values.append(max(costs, default=0.0) if form == "max" else sum(costs))
    return values


@functools.cache
def compiled(name: str, **static: Any) -> Callable[..., Any]:
    """Value, rows and gradients of a loss, compiled once for many tests.

    Arguments are two arrays, both differentiated but for labels, and a dictionary of others.
    """
    function = getattr(losses, name)
    moving = (0, 1) if name == "cross_view_contrastive" else 0

    def everything(a: Any, b: Any, more: dict[str, Any]) -> Any:
        value, grads = jax.value_and_grad(
            lambda a, b: function(a, b, **static, **more), argnums=moving
        )(a, b)
        rows = function(a, b, **static, **more, reduce=False)
        return value, rows, grads

    return jax.jit(everything, compiler_options=QUICK)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
def test_golden_contrast(golden: dict[str, Any], dtype: str, tolerance: float) -> None:
    for denominator in DENOMINATORS:
        entry = golden[f"conle_con_{denominator}"]
        z, q = (jnp.asarray(entry["inputs"][name], dtype) for name in ("Z", "Q"))
        value, grad = jax.jit(
            jax.value_and_grad(
                lambda z, q, of=denominator, t=entry["inputs"]["tau"]: (
                    losses.cross_view_contrastive(z, q, temperature=t, denominator=of)
                )
            ),
            compiler_options=QUICK,
        )(z, q)
        assert value.dtype == dtype
        np.testing.assert_allclose(value, entry["value"], rtol=0, atol=tolerance)
        np.testing.assert_allclose(grad[1, 0], entry["grad"]["value"], rtol=0, atol=tolerance)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
def test_golden_attributes_and_total(golden: dict[str, Any], dtype: str, tolerance: float) -> None:
    close = {"rtol": 0, "atol": tolerance}
    entry = golden["conle_att"]
    given, parts = entry["inputs"], entry["parts"]
    logits, labels = jnp.asarray(given["logits"], dtype), np.array(given["L"])

    def attributes(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        d = jax.nn.softmax(x)
        distance = losses.squared_distance(d, labels)
        hinges = [
            losses.threshold_hinge(d, labels, margin=given["eps"], form=form)
            for form in ("max", "pairs")
        ]
        return given["lam1"] * distance + given["lam2"] * hinges[0], (distance, *hinges)

    step = jax.jit(jax.value_and_grad(attributes, has_aux=True), compiler_options=QUICK)
    (value, terms), grad = step(logits)
    names = ("l_dis", "l_thr_eq14", "l_thr_eq13")
    np.testing.assert_allclose(terms, [parts[name] for name in names], **close)
    np.testing.assert_allclose(value, entry["value"], **close)
    np.testing.assert_allclose(grad[0, 1], entry["grad"]["value"], **close)

    views = [jnp.asarray(golden["conle_con_paper"]["inputs"][v], dtype) for v in ("Z", "Q")]
    contrast = jax.jit(losses.cross_view_contrastive, compiler_options=QUICK)(*views)
    total = golden["conle_total"]["value"]
    np.testing.assert_allclose(contrast + value, total["ConLE"], **close)
    np.testing.assert_allclose(value, total["ConLE_h"], **close)
    np.testing.assert_allclose(contrast + given["lam1"] * terms[0], total["ConLE_l"], **close)

    entry = golden["conle_thr_edges"]
    for form in ("max", "pairs"):
        rows = losses.threshold_hinge(
            jnp.asarray(entry["inputs"]["D"], dtype),
            entry["inputs"]["L"],
            margin=entry["inputs"]["eps"],
            form=form,
            reduce=False,
        )
        np.testing.assert_allclose(rows, entry["value"]["default"], **close)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_contrast_against_loops(denominator: str, chunk_size: int | None) -> None:
    """Also with rows left out, whose vectors may be anything."""
    run = compiled("cross_view_contrastive", denominator=denominator, chunk_size=chunk_size)
    for temperature in (0.5, 0.05):
        for where in (np.ones(6, bool), WHERE):
            z, q = (np.where(where[:, None], x, np.nan) for x in (Z, Q))
            value, rows, grads = run(z, q, {"temperature": temperature, "where": where})
            kept = np.flatnonzero(where)
            expected = contrast_by_loops(Z, Q, temperature, denominator, kept)
            np.testing.assert_allclose(rows[where], expected, rtol=1e-12)
            np.testing.assert_allclose(value, np.mean(expected), rtol=1e-12)
            assert not any(x[~where].any() for x in (rows, *grads))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_rows_left_out_are_as_if_they_were_not_there(chunk_size: int | None) -> None:
    run = compiled("cross_view_contrastive", denominator="paper", chunk_size=chunk_size)
    grads = run(Z, Q, {"temperature": 0.5, "where": WHERE})[2]
    alone = run(Z[WHERE], Q[WHERE], {"temperature": 0.5, "where": np.ones(5, bool)})[2]
    for grad, dropped in zip(grads, alone, strict=True):
        np.testing.assert_allclose(grad[WHERE], dropped, rtol=1e-9, atol=1e-14)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", ["max", "pairs"])
def test_hinge_against_loops(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown labels and dropped rows are as if they were not there; what they hold is NaN."""
    known = MASK & KEPT[:, None]
    d, y = (np.where(known, x, np.nan) for x in (DEGREES, LABELS))
    masks = {"label_mask": MASK, "where": KEPT}
    for margin in (0.0, 0.05, 0.3):
        expected = hinge_by_loops(DEGREES, LABELS, known, margin, form)
        assert sum(value > 0 for value in expected) > 1
        run = compiled("threshold_hinge", form=form)
        value, rows, grad = run(d, y, {**masks, "margin": margin})
        np.testing.assert_allclose(rows, expected, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(value, np.sum(expected) / KEPT.sum(), rtol=1e-12)
        assert not np.asarray(grad)[~known].any()
        assert np.isfinite(grad).all()
    # A few labels at a time, as for many.
    monkeypatch.setattr("jaxmlcl.losses._enhancement._DENSE_PAIRS", 100)
    again, of_again = jax.jit(
        jax.value_and_grad(lambda d: losses.threshold_hinge(d, y, margin=0.3, form=form, **masks))
    )(d)
    np.testing.assert_allclose(again, value, rtol=1e-12)
    np.testing.assert_allclose(of_again, grad, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_distance_against_loops() -> None:
    known = MASK & KEPT[:, None]
    d, y = (np.where(known, x, np.nan) for x in (DEGREES, LABELS))
    expected = [
        sum((DEGREES[i, j] - LABELS[i, j]) ** 2 for j in range(5) if known[i, j]) for i in range(10)
    ]
    for reduction, scale in (("sum", 1), ("mean", KEPT.sum())):
        run = compiled("squared_distance", reduction=reduction)
        value, rows, grad = run(d, y, {"label_mask": MASK, "where": KEPT})
        np.testing.assert_allclose(rows, expected, rtol=1e-12)
        np.testing.assert_allclose(value, sum(expected) / scale, rtol=1e-12)
        by_hand = np.where(known, 2 * (DEGREES - LABELS) / scale, 0)
        np.testing.assert_allclose(grad, by_hand, rtol=1e-12)


LOSSES: dict[str, Callable[..., jax.Array]] = {
    **{
        f"contrast {name}": lambda x, n=name, **k: losses.cross_view_contrastive(
            x, x[::-1] + Q[: len(x)], denominator=n, **k
        )
        for name in DENOMINATORS
    },
    "contrast in chunks": lambda x, **k: losses.cross_view_contrastive(
        x, x[::-1] + Q[: len(x)], chunk_size=4, **k
    ),
    "distance": lambda x, **k: losses.squared_distance(x, LABELS[: len(x), :3], **k),
    "hinge": lambda x, **k: losses.threshold_hinge(x, LABELS[: len(x), 2:], margin=0.1, **k),
    "pairs": lambda x, **k: losses.threshold_hinge(
        x, LABELS[: len(x), 2:], margin=0.1, form="pairs", **k
    ),
}


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest) -> Callable[..., jax.Array]:
    return LOSSES[request.param]


@pytest.mark.usefixtures("x64")
def test_derivatives(loss: Callable[..., jax.Array]) -> None:
    """Backward and forward mode against differences, in a few directions."""
    directions = RNG.normal(size=(4, *Z.shape))
    step = 1e-5

    def along(x: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
        slope = (loss(x + step * v) - loss(x - step * v)) / (2 * step)
        return slope, jax.jvp(loss, (x,), (v,))[1], (jax.grad(loss)(x) * v).sum()

    slopes, forward, backward = jax.jit(jax.vmap(along, in_axes=(None, 0)), compiler_options=QUICK)(
        Z, directions
    )
    np.testing.assert_allclose(forward, slopes, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(backward, slopes, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_forms_of_the_contrast_agree(denominator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temperature that is traced, one that is known, and sums without a mask: three forms."""

    def everything(temperature: Any, where: Any) -> Any:
        def total(views: jax.Array) -> jax.Array:
            return losses.cross_view_contrastive(
                *views, temperature=temperature, denominator=denominator, where=where
            )

        views, direction = jnp.asarray([Z, Q]), jnp.asarray([Q, Z])
        slope = jax.grad(total)
        return (
            total(views),
            slope(views),
            jax.jvp(slope, (views,), (direction,))[1],
            jax.grad(lambda x: (slope(x) * direction).sum())(views),
        )

    traced = jax.jit(everything, compiler_options=QUICK)
    for temperature, where, many in ((0.5, WHERE, 128), (0.04, None, 128), (0.5, None, 1)):
        monkeypatch.setattr("jaxmlcl.losses._enhancement._MANY", many)
        known = functools.partial(everything, temperature, where)
        expected = traced(temperature, np.ones(6, bool) if where is None else where)
        found = jax.jit(known, compiler_options=QUICK)()
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    assert "bool[6,6]" not in str(jax.make_jaxpr(known)())


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_contrast_at_the_borders_of_its_forms(denominator: str) -> None:
    """Views that point apart and together, where the sums are smallest and largest, in float32."""
    signs = np.where(np.arange(128) % 2, 1.0, -1.0)
    apart, together = signs[:2, None] * np.eye(3)[:1], np.ones((128, 3))
    for temperature, z, q in (
        (1 / 32, apart, apart),
        (1 / 32, together, together),
        (0.4, together, together),
        (0.4, signs[:, None] * together, -together),
    ):
        run = jax.jit(
            jax.value_and_grad(
                functools.partial(
                    losses.cross_view_contrastive, temperature=temperature, denominator=denominator
                ),
                argnums=(0, 1),
            ),
            compiler_options=QUICK,
        )
        value, grads = run(jnp.asarray(z, jnp.float32), jnp.asarray(q, jnp.float32))
        z, q = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, q))
        others, expected = ~np.eye(len(z), dtype=bool), 0.0
        for own, other in ((z, q), (q, z)):
            positive = (own * other).sum(1) / temperature
            terms = np.exp(own @ own.T / temperature) + np.exp(own @ other.T / temperature)
            added = {"paper": 0, "with_pos": np.exp(positive), "pyldl": 1}[denominator]
            expected += np.mean(np.log((terms * others).sum(1) + added) - positive)
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-5)
        assert all(np.isfinite(grad).all() for grad in grads)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_a_row_left_alone_has_no_gradient(denominator: str) -> None:
    """Also where the temperature is known."""
    value, grad = jax.jit(
        jax.value_and_grad(
            lambda z: losses.cross_view_contrastive(
                z, Q, denominator=denominator, where=np.arange(6) == 2
            )
        ),
        compiler_options=QUICK,
    )(Z)
    assert value == 0
    assert not grad.any()


def test_nothing_kept_is_zero_and_nan_shows(loss: Callable[..., jax.Array]) -> None:
    run = jax.jit(jax.value_and_grad(lambda x, where: loss(x, where=where)), compiler_options=QUICK)
    value, grad = run(jnp.asarray(Z), np.zeros(6, bool))
    assert value == 0
    assert not grad.any()
    assert np.isnan(run(jnp.asarray(Z).at[2, 0].set(jnp.nan), WHERE)[0])


def test_bfloat16_and_vmap(loss: Callable[..., jax.Array]) -> None:
    run = jax.jit(loss, compiler_options=QUICK)
    rounded = jnp.asarray(Z, jnp.bfloat16)
    narrow = run(rounded)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, run(rounded.astype(jnp.float32)), rtol=2e-6)
    single = jnp.asarray(2 * Z, jnp.float32)
    stacked = jax.jit(jax.vmap(loss), compiler_options=QUICK)(jnp.stack([single / 2, single]))
    np.testing.assert_allclose(stacked[1], run(single), rtol=1e-5)


def test_bfloat16_views_are_summed_in_float32() -> None:
    """A thousand terms of about 1: sums in bfloat16 would stop growing at 256."""
    views = [jnp.asarray(x, jnp.bfloat16) for x in RNG.normal(size=(2, 500, 8))]
    value = jax.jit(losses.cross_view_contrastive)(*views)
    z, q = (np.asarray(x.astype(jnp.float32), np.float64) for x in views)
    z, q = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, q))
    others = ~np.eye(500, dtype=bool)

    def logs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.log(((np.exp(2 * a @ a.T) + np.exp(2 * a @ b.T)) * others).sum(1))

    expected = np.mean(logs(z, q) + logs(q, z) - 4 * (z * q).sum(1))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_single_row_has_nothing_to_contrast(denominator: str, chunk_size: int | None) -> None:
    run = compiled("cross_view_contrastive", denominator=denominator, chunk_size=chunk_size)
    value, _, grads = run(Z, Q, {"temperature": 0.5, "where": np.arange(6) == 2})
    assert value == 0
    assert not any(grad.any() for grad in grads)


def test_one_row_alone() -> None:
    step = jax.jit(
        jax.value_and_grad(losses.cross_view_contrastive, argnums=(0, 1)), compiler_options=QUICK
    )
    value, grads = step(jnp.asarray(Z[:1]), jnp.asarray(Q[:1]))
    assert value == 0
    assert not any(grad.any() for grad in grads)


@pytest.mark.usefixtures("x64")
def test_short_vectors() -> None:
    """Lengths are clamped at 1e-8; what is clamped passes no gradient, and is no NaN."""
    z, q = Z.copy(), Q.copy()
    z[0], q[1] = 0, [1e-10, 0, 0]
    value, _, grads = compiled("cross_view_contrastive", denominator="paper", chunk_size=None)(
        z, q, {"temperature": 0.5, "where": np.ones(6, bool)}
    )
    np.testing.assert_allclose(value, np.mean(contrast_by_loops(z, q, 0.5, "paper")), rtol=1e-12)
    assert all(np.isfinite(grad).all() for grad in grads)
    assert not grads[0][0].any()
    assert not grads[1][1].any()
    assert np.abs(grads[0][1:]).max() < 10


def test_chunks_change_nothing_and_hold_less() -> None:
    z, q = (jnp.asarray(x, jnp.float32) for x in RNG.normal(size=(2, 1000, 16)))

    def step(chunk: int | None) -> Any:
        function = jax.value_and_grad(
            lambda z, q: losses.cross_view_contrastive(z, q, chunk_size=chunk), argnums=(0, 1)
        )
        return jax.jit(function).lower(z, q).compile()

    dense, walked = step(None), step(50)
    (value, grads), (other, others) = dense(z, q), walked(z, q)
    np.testing.assert_allclose(other, value, rtol=1e-6)
    for a, b in zip(grads, others, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8)
    block = 4 * 1000 * 1000
    assert dense.memory_analysis().temp_size_in_bytes < 7 * block
    assert walked.memory_analysis().temp_size_in_bytes < block


def test_many_rows_are_walked_over() -> None:
    shape = jax.ShapeDtypeStruct((8192, 8), jnp.float32)
    step = jax.jit(jax.value_and_grad(losses.cross_view_contrastive, argnums=(0, 1)))
    memory = step.lower(shape, shape).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 8192 * 8192 / 2


@needs_eight
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("chunk_size", [None, 8])
def test_sharded_equals_one_device(chunk_size: int | None) -> None:
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    rng = np.random.default_rng(0)
    z, q = rng.normal(size=(2, 16, 5))
    labels = rng.integers(0, 2, (16, 5)).astype(np.uint8)
    where = np.arange(16) != 3

    def total(z: jax.Array, q: jax.Array, labels: jax.Array, where: jax.Array) -> jax.Array:
        d = jax.nn.softmax(z * q)
        value = losses.cross_view_contrastive(z, q, where=where, chunk_size=chunk_size)
        value += losses.squared_distance(d, labels, where=where)
        for form in ("max", "pairs"):
            value += losses.threshold_hinge(d, labels, form=form, where=where)
        return value

    step = jax.value_and_grad(total, argnums=(0, 1))
    value, grads = jax.jit(step, compiler_options=QUICK)(z, q, labels, where)
    arguments = jax.device_put((z, q, labels, where), rows)
    out = (NamedSharding(mesh, PartitionSpec()), (rows, rows))
    sharded_value, sharded_grads = jax.jit(step, out_shardings=out, compiler_options=QUICK)(
        *arguments
    )
    np.testing.assert_allclose(sharded_value, value, rtol=1e-12)
    for sharded, grad in zip(sharded_grads, grads, strict=True):
        np.testing.assert_allclose(sharded, grad, rtol=1e-10, atol=1e-13)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"q has shape \[5, 3\]; expected \[n, d\] with n = 6"):
        losses.cross_view_contrastive(Z, Q[:5])
    with pytest.raises(ValueError, match=r"z is int\d+ \[2, 3\]; expected floating"):
        losses.cross_view_contrastive(np.ones((2, 3), int), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"denominator is 'papr'; .* did you mean 'paper'"):
        losses.cross_view_contrastive(Z, Q, denominator="papr")
    with pytest.raises(ValueError, match=r"temperature is 0; expected a number above 0"):
        losses.cross_view_contrastive(Z, Q, temperature=0)
    with pytest.raises(ValueError, match=r"where has shape \[5\]; expected \[n\] with n = 6"):
        losses.cross_view_contrastive(Z, Q, where=np.ones(5))
    with pytest.raises(ValueError, match=r"chunk_size is 0; expected"):
        losses.cross_view_contrastive(Z, Q, chunk_size=0)
    with pytest.raises(ValueError, match=r"reduction is 'means'; expected one of sum, mean"):
        losses.squared_distance(DEGREES, LABELS, reduction="means")
    with pytest.raises(ValueError, match=r"labels has shape \[5, 10\]; .* with n = 10, L = 5"):
        losses.squared_distance(DEGREES, LABELS.T)
    with pytest.raises(ValueError, match=r"labels \[10, 5\] has 0.5 at \[0, 0\]; expected 0 or 1"):
        losses.threshold_hinge(DEGREES, np.full((10, 5), 0.5))
    with pytest.raises(ValueError, match=r"form is 'mean'; expected one of max, pairs"):
        losses.threshold_hinge(DEGREES, LABELS, form="mean")
    with pytest.raises(ValueError, match=r"margin is -0.1; expected a number at least 0"):
        losses.threshold_hinge(DEGREES, LABELS, margin=-0.1)
    with pytest.raises(ValueError, match=r"label_mask has shape \[5\]; expected \[n, L\]"):
        losses.threshold_hinge(DEGREES, LABELS, label_mask=np.ones(5))
