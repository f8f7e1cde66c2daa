"""Losses of C-GMVAE: Gaussians, mixtures of labels, their divergences, and label embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxmlcl import losses
from jaxmlcl.losses.parts import score_contrastive
from tests.devices import check_devices, needs_eight, run_in_eight_devices, starts_eight

QUICK = {"xla_backend_optimization_level": 0}
S, B, L, D = 3, 8, 5, 4
RNG = np.random.default_rng(11)
Z = RNG.normal(size=(S, B, D))
MEAN, OTHER = RNG.normal(size=(2, B, D))
VARIANCE, OTHER_VARIANCE = np.exp(RNG.normal(size=(2, B, D)) / 2)
MEANS, EMBEDDINGS = RNG.normal(size=(2, L, D))
VARIANCES = np.exp(RNG.normal(size=(L, D)) / 2)
# The first rows have all labels, none, and none that is known; the fourth is left out.
LABELS = RNG.integers(0, 2, (B, L)).astype(np.float64)
LABELS[0], LABELS[1], LABELS[4:, 0] = 1, 0, 1
MASK = RNG.integers(0, 5, (B, L)) > 0
MASK[2], MASK[4:, 0], MASK[0] = False, True, True
KEPT = np.arange(B) != 3
PART = KEPT & (LABELS * MASK).any(1)


@starts_eight
def test_in_eight_devices() -> None:
    run_in_eight_devices(__file__)


def test_the_process_has_the_devices_it_asked_for() -> None:
    check_devices()


def log_density(z: Sequence[float], mean: Sequence[float], variance: Sequence[float]) -> float:
    return -0.5 * sum(
        math.log(v) + (x - m) ** 2 / v for x, m, v in zip(z, mean, variance, strict=True)
    )


def mixture_by_loops(z: Any, degrees: Sequence[float]) -> float:
    total = sum(
        y * math.exp(log_density(z, MEANS[i], VARIANCES[i])) for i, y in enumerate(degrees) if y
    )
    return math.log(total) - math.log(sum(degrees))


def kl_by_loops(labels: Any) -> list[float]:
    """Rows without labels give 0."""
    return [
        sum(log_density(z[b], MEAN[b], VARIANCE[b]) - mixture_by_loops(z[b], labels[b]) for z in Z)
        / S
        if labels[b].any()
        else 0.0
        for b in range(B)
    ]


def contrast_by_loops(labels: Any, known: Any, temperature: float) -> list[float]:
    values = []
    for w, y, there in zip(MEAN, labels, known, strict=True):
        scores = {
            i: sum(a * b for a, b in zip(w, EMBEDDINGS[i], strict=True)) / temperature
            for i in range(L)
            if there[i]
        }
        log_sum = math.log(sum(map(math.exp, scores.values()))) if scores else 0.0
        size = sum(y[i] for i in scores)
        cost = sum(y[i] * (log_sum - score) for i, score in scores.items())
        values.append(cost / size if size else 0.0)
    return values


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "mixture": lambda x, labels=LABELS, mask=None, **k: losses.mixture_kl(
        x + Z, x, VARIANCE, MEANS, VARIANCES, labels, label_mask=mask, **k
    ),
    "gaussian": lambda x, labels=None, mask=None, **k: losses.gaussian_kl(
        x, VARIANCE, OTHER, OTHER_VARIANCE, **k
    ),
    "contrast": lambda x, labels=LABELS, mask=None, **k: losses.label_contrastive(
        x, EMBEDDINGS, labels, temperature=0.5, label_mask=mask, **k
    ),
}


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest) -> Callable[..., jax.Array]:
    return LOSSES[request.param]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
def test_golden(golden: dict[str, Any], dtype: str, tolerance: float) -> None:
    close = {"rtol": 0, "atol": tolerance}

    def given(name: str) -> dict[str, jax.Array]:
        return {k: jnp.asarray(v, dtype) for k, v in golden[name]["inputs"].items()}

    def divergence(kl: dict[str, jax.Array], means: jax.Array, reduce: bool = True) -> jax.Array:
        variances = jnp.exp(kl["fx_logvar"]), jnp.exp(kl["label_logvar"])
        return losses.mixture_kl(
            kl["z0"], kl["fx_mu"], variances[0], means, variances[1], kl["Y"], reduce=reduce
        )

    def contrast(at: dict[str, jax.Array], e: jax.Array, views: Sequence[str]) -> jax.Array:
        anchors = losses.normalize(jnp.concatenate([at[view] for view in views]))
        return losses.label_contrastive(anchors, e.T, jnp.concatenate([at["Y"]] * len(views)))

    def closed(two: dict[str, jax.Array]) -> jax.Array:
        variances = jnp.exp(two["fx_logvar"]), jnp.exp(two["p_logvar"])
        return losses.gaussian_kl(two["fx_mu"], variances[0], two["p_mu"], variances[1])

    both = ["label_emb_raw", "feat_emb_raw"]

    def everything(kl: Any, two: Any, one: Any, code: Any) -> Any:
        return (
            jax.value_and_grad(divergence, argnums=1)(kl, kl["label_mu"]),
            divergence(kl, kl["label_mu"], False),
            closed(two),
            jax.value_and_grad(contrast, argnums=1)(one, one["E"], both[1:]),
            jax.value_and_grad(contrast, argnums=1)(code, code["E"], both),
        )

    names = ("cgmvae_kl", "kl_gauss", "cgmvae_cl_paper", "cgmvae_cl_code")
    (kl, of_kl), rows, two, one, code = jax.jit(everything, compiler_options=QUICK)(
        *map(given, names)
    )
    entry = golden["cgmvae_kl"]
    assert kl.dtype == two.dtype == one[0].dtype == dtype
    np.testing.assert_allclose(kl, entry["value"], **close)
    np.testing.assert_allclose(rows, entry["per_sample"], **close)
    np.testing.assert_allclose(of_kl[1, 0], entry["grad"]["value"], **close)
    np.testing.assert_allclose(two, golden["kl_gauss"]["value"], **close)
    for name, (value, grad) in (("cgmvae_cl_paper", one), ("cgmvae_cl_code", code)):
        np.testing.assert_allclose(value, golden[name]["value"], **close)
        np.testing.assert_allclose(grad[0, 1], golden[name]["grad"]["value"], **close)


@pytest.mark.usefixtures("x64")
def test_densities_against_loops() -> None:
    for s in range(S):
        expected = [log_density(Z[s, b], MEAN[b], VARIANCE[b]) for b in range(B)]
        np.testing.assert_allclose(
            losses.gaussian_log_density(Z[s], MEAN, VARIANCE), expected, rtol=1e-12
        )
    degrees = LABELS * RNG.random((B, L))
    for labels in (LABELS, degrees):
        found = losses.mixture_log_density(Z, MEANS, VARIANCES, labels)
        assert found.shape == (S, B)
        assert np.isneginf(found[:, 1]).all()
        for b in range(B):
            if b != 1:
                expected = [mixture_by_loops(z[b], labels[b]) for z in Z]
                np.testing.assert_allclose(found[:, b], expected, rtol=1e-12)
        single = losses.mixture_log_density(Z[0], MEANS, VARIANCES, labels)
        np.testing.assert_allclose(single, found[0], rtol=1e-13)


@pytest.mark.usefixtures("x64")
def test_divergence_against_loops() -> None:
    """With several samples, all, no, some and unknown labels, and degrees."""
    for labels in (LABELS, LABELS * RNG.random((B, L))):
        found = losses.mixture_kl(
            np.where(KEPT[:, None], Z, np.nan),
            np.where(KEPT[:, None], MEAN, np.nan),
            VARIANCE,
            MEANS,
            VARIANCES,
            np.where(MASK, labels, np.nan),
            label_mask=MASK,
            where=KEPT,
            reduce=False,
        )
        expected = np.where(KEPT, kl_by_loops(labels * MASK), 0)
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)
        value = losses.mixture_kl(
            Z, MEAN, VARIANCE, MEANS, VARIANCES, labels, label_mask=MASK, where=KEPT
        )
        np.testing.assert_allclose(value, expected.sum() / PART.sum(), rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_contrast_against_loops() -> None:
    for labels in (LABELS, LABELS * RNG.random((B, L))):
        for known, mask in ((np.ones((B, L), bool), None), (MASK, MASK)):
            found = losses.label_contrastive(
                MEAN, EMBEDDINGS, labels, temperature=0.5, label_mask=mask, reduce=False
            )
            expected = contrast_by_loops(labels, known, 0.5)
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
            scores = MEAN @ EMBEDDINGS.T / 0.5
            value = score_contrastive(scores, labels, label_mask=mask)
            anchors = (labels * known).any(1).sum()
            np.testing.assert_allclose(value, sum(expected) / anchors, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_closed_form_is_what_samples_estimate() -> None:
    """With one label for every row the mixture is one Gaussian, whose divergence is known."""
    one = np.zeros((B, L))
    one[np.arange(B), np.arange(B) % L] = 1
    closed = losses.gaussian_kl(
        MEAN, VARIANCE, MEANS[np.arange(B) % L], VARIANCES[np.arange(B) % L], reduce=False
    )
    count = 4000
    noise = RNG.random((count, B, D))
    errors = {}
    for stratified in (False, True):
        z = losses.gaussian_samples(noise, MEAN, VARIANCE, stratified=stratified)
        found = losses.mixture_kl(z, MEAN, VARIANCE, MEANS, VARIANCES, one, reduce=False)
        errors[stratified] = np.abs(found - closed).max()
    # Sums over dimensions, which this is with one component, have hardly any variance left.
    assert errors[False] < 0.5
    assert errors[True] < 0.02 * errors[False]


@pytest.mark.usefixtures("x64")
def test_stratified_samples_are_distributed_as_plain_ones() -> None:
    """One in each part; uniform within it; the order another one for every row and dimension."""
    strata, repeats = 4, 5000
    noise = RNG.random((strata, repeats, 1))
    z = losses.gaussian_samples(
        noise, np.zeros((repeats, 1)), np.ones((repeats, 1)), stratified=True
    )
    u = np.asarray(jax.scipy.special.ndtr(z))[..., 0]
    np.testing.assert_array_equal(
        np.sort(np.floor(u * strata), axis=0), np.tile(np.arange(4.0)[:, None], repeats)
    )
    places = u * strata % 1
    order = np.argsort(u, axis=0)
    by_part = np.take_along_axis(places, order, axis=0)
    # Uniform numbers have mean 1/2, variance 1/12 and no correlation between parts.
    np.testing.assert_allclose(by_part.mean(1), 0.5, atol=0.02)
    np.testing.assert_allclose(by_part.var(1), 1 / 12, atol=0.005)
    correlation = np.corrcoef(by_part) - np.eye(strata)
    assert np.abs(correlation).max() < 0.06
    firsts = np.bincount(order[0], minlength=strata) / repeats
    np.testing.assert_allclose(firsts, 1 / strata, atol=0.03)


@pytest.mark.usefixtures("x64")
def test_plain_samples_are_quantiles() -> None:
    noise = np.array([0.5, 0.8413447460685429, 1e-6])[:, None, None]
    z = losses.gaussian_samples(noise, [[1.0]], [[4.0]])
    np.testing.assert_allclose(z[:, 0, 0], [1, 3, 1 - 2 * 4.753424308822899], rtol=1e-9)
    ends = losses.gaussian_samples([[[0.999999999]]], [[0.0]], [[1.0]], stratified=True)
    assert np.isfinite(ends).all()


@pytest.mark.usefixtures("x64")
def test_derivatives(loss: Callable[..., jax.Array]) -> None:
    """Backward and forward mode against differences, in a few directions."""
    directions = RNG.normal(size=(4, B, D))
    step = 1e-5

    def along(x: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
        slope = (loss(x + step * v) - loss(x - step * v)) / (2 * step)
        return slope, jax.jvp(loss, (x,), (v,))[1], (jax.grad(loss)(x) * v).sum()

    slopes, forward, backward = jax.jit(jax.vmap(along, in_axes=(None, 0)), compiler_options=QUICK)(
        MEAN, directions
    )
    np.testing.assert_allclose(forward, slopes, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(backward, slopes, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("x64")
def test_derivatives_by_the_labels_gaussians() -> None:
    """Labels that no row has get none."""
    labels = LABELS.copy()
    labels[:, 2] = 0

    def kl(means: jax.Array, variances: jax.Array) -> jax.Array:
        return losses.mixture_kl(Z, MEAN, VARIANCE, means, variances, labels)

    grads = jax.jit(jax.grad(kl, argnums=(0, 1)), compiler_options=QUICK)(MEANS, VARIANCES)
    step = 1e-6
    for place, grad in enumerate(grads):
        for index in ((0, 1), (4, 3)):
            moved = [[MEANS.copy(), VARIANCES.copy()] for _ in range(2)]
            moved[0][place][index] += step
            moved[1][place][index] -= step
            slope = (kl(*moved[0]) - kl(*moved[1])) / (2 * step)
            np.testing.assert_allclose(grad[index], slope, rtol=1e-6)
        assert not grad[2].any()


@pytest.mark.usefixtures("x64")
def test_rows_that_take_no_part_are_as_if_they_were_not_there(
    loss: Callable[..., jax.Array], request: pytest.FixtureRequest
) -> None:
    """Rows without labels, without known ones, and rows left out: in value and gradient."""
    gaussian = "gaussian" in request.node.name
    keep = KEPT if gaussian else PART
    x = np.where(KEPT[:, None], MEAN, np.nan)
    run = jax.jit(
        jax.value_and_grad(lambda x: loss(x, labels=LABELS, mask=MASK, where=KEPT)),
        compiler_options=QUICK,
    )
    value, grad = run(x)
    rows = loss(MEAN, labels=LABELS, mask=MASK, where=KEPT, reduce=False)
    np.testing.assert_allclose(value, rows[keep].mean(), rtol=1e-12)
    assert not np.asarray(rows)[~keep].any()
    assert not np.asarray(grad)[~keep].any()
    assert np.isfinite(grad).all()
    # Nothing at all.
    value, grad = jax.value_and_grad(lambda x: loss(x, where=np.zeros(B, bool)))(MEAN)
    assert value == 0
    assert not grad.any()


def test_nan_shows(loss: Callable[..., jax.Array]) -> None:
    spoilt = jnp.asarray(MEAN).at[0, 0].set(jnp.nan)
    assert np.isnan(loss(spoilt))


def test_unknown_labels_leave_the_mixture_and_both_sums() -> None:
    """Two of five labels unknown everywhere: as if there were three."""
    mask = np.tile(np.array([1, 0, 1, 1, 0], bool), (B, 1))
    few = mask[0]
    for found, expected in (
        (
            losses.mixture_kl(Z, MEAN, VARIANCE, MEANS, VARIANCES, LABELS, label_mask=mask),
            losses.mixture_kl(Z, MEAN, VARIANCE, MEANS[few], VARIANCES[few], LABELS[:, few]),
        ),
        (
            losses.label_contrastive(MEAN, EMBEDDINGS, LABELS, label_mask=mask),
            losses.label_contrastive(MEAN, EMBEDDINGS[few], LABELS[:, few]),
        ),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_bfloat16_and_vmap(loss: Callable[..., jax.Array]) -> None:
    run = jax.jit(loss, compiler_options=QUICK)
    rounded = jnp.asarray(MEAN, jnp.bfloat16)
    narrow = run(rounded)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, run(rounded.astype(jnp.float32)), rtol=2e-6)
    single = jnp.asarray(2 * MEAN, jnp.float32)
    stacked = jax.jit(jax.vmap(loss), compiler_options=QUICK)(jnp.stack([single / 2, single]))
    np.testing.assert_allclose(stacked[1], run(single), rtol=1e-5)


def test_many_labels_are_summed_in_float32() -> None:
    """A thousand equal labels: in bfloat16 sums would stop growing at 256."""
    many = 1000
    ones = np.ones((2, many))
    zeros = jnp.zeros((many, 3), jnp.bfloat16)
    at = jnp.zeros((2, 3), jnp.bfloat16)
    np.testing.assert_allclose(losses.label_contrastive(at, zeros, ones), math.log(many), rtol=1e-6)
    unit = jnp.ones_like(zeros)
    kl = losses.mixture_kl(at, at, jnp.ones_like(at), zeros, unit, ones)
    np.testing.assert_allclose(kl, 0, atol=1e-6)


def test_far_from_the_origin_float32_is_enough() -> None:
    """Means around 1000: squares would leave no digits of their differences."""
    shift = 1000.0
    arrays = [np.asarray(a + shift, np.float32) for a in (Z, MEAN, MEANS)]
    near = [a.astype(np.float64) - shift for a in arrays]
    found, expected = (
        losses.mixture_kl(z, mean, VARIANCE, means, VARIANCES, LABELS)
        for z, mean, means in (arrays, near)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_memory_is_linear_in_rows_times_labels() -> None:
    """Delicious: 983 labels, batch 128, d = 64; [B, L, d] alone would be 32 MB."""
    b, labels, d = 128, 983, 64
    shapes = [(b, d), (b, d), (b, d), (labels, d), (labels, d), (b, labels)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    step = jax.jit(jax.grad(losses.mixture_kl, argnums=(1, 2, 3, 4)))
    analysis = step.lower(*arrays).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 8 * 4 * b * labels


@needs_eight
def test_sharded_is_single_device(loss: Callable[..., jax.Array]) -> None:
    """Rows over eight devices: the same value and gradient."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    step = jax.jit(jax.value_and_grad(lambda x: loss(x, where=KEPT)))
    x = jnp.asarray(MEAN, jnp.float32)
    value, grad = step(x)
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    other, of_other = step(spread)
    np.testing.assert_allclose(other, value, rtol=1e-6)
    np.testing.assert_allclose(of_other, grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: losses.mixture_kl(Z, MEAN[:2], VARIANCE, MEANS, VARIANCES, LABELS),
            r"mean has shape \[2, 4\]; expected \[B, d\] with B = 8, d = 4",
        ),
        (
            lambda: losses.mixture_kl(Z, MEAN, VARIANCE, MEANS[:2], VARIANCES, LABELS),
            r"means has shape \[2, 4\]; expected \[L, d\] with L = 5, d = 4",
        ),
        (
            lambda: losses.mixture_kl(Z[:0], MEAN, VARIANCE, MEANS, VARIANCES, LABELS),
            r"z has shape \[0, 8, 4\]; expected at least one sample of each row",
        ),
        (
            lambda: losses.mixture_log_density(Z[0, 0], MEANS, VARIANCES, LABELS),
            r"z has shape \[4\]",
        ),
        (
            lambda: losses.mixture_log_density(Z, MEANS, -VARIANCES, LABELS),
            r"variances \[5, 4\] has -.* at \[0, 0\]; expected variances, which are positive",
        ),
        (
            lambda: losses.gaussian_kl(MEAN, VARIANCE, OTHER[:3], OTHER_VARIANCE),
            r"other_mean has shape \[3, 4\]",
        ),
        (
            lambda: losses.gaussian_log_density([1, 2], [0.0, 0.0], [1.0, 1.0]),
            r"z is int32 \[2\]; expected floating point",
        ),
        (
            lambda: losses.label_contrastive(MEAN, EMBEDDINGS[:, :2], LABELS),
            r"label_embeddings has shape \[5, 2\]; expected \[L, D\] with D = 4",
        ),
        (
            lambda: losses.label_contrastive(MEAN, EMBEDDINGS, LABELS * 3),
            r"labels \[8, 5\] has 3.0 at \[0, 0\]; expected values in \[0, 1\]",
        ),
        (
            lambda: losses.label_contrastive(MEAN, EMBEDDINGS, LABELS, temperature=0.0),
            "temperature is 0.0; expected a number above 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
