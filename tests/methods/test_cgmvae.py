"""C-GMVAE: the total, options, rows without labels, and what a step may depend on."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlcl import losses
from jaxmlcl.config import from_json, override, to_json
from jaxmlcl.errors import ConfigError
from jaxmlcl.methods import CGMVAE
from jaxmlcl.methods.cgmvae import label_average
from jaxmlcl.models import MLP
from jaxmlcl.training.duration import steps
from jaxmlcl.training.experiment import Data, Experiment
from jaxmlcl.training.objective import Batch, BatchSpec
from jaxmlcl.training.stage import Stage
from tests.conftest import quick_jit

SIZE, FEATURES, LABELS = 6, 5, 4
SMALL = CGMVAE(
    MLP((8,), 0.3), embedding=7, latent=3, label_hidden=(6,), label_dropout=0.3, decoder_hidden=(9,)
)
KEY = jax.random.key(3)


def batch_of(known: np.ndarray | None = None, size: int = SIZE) -> Batch:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(size, FEATURES)).astype(np.float32)
    labels = (generator.random((size, LABELS)) < 0.5).astype(np.float32)
    labels[:, 0], labels[1] = 1, 0
    if known is not None:
        labels = labels * known
    mask = None if known is None else jnp.asarray(known)
    return Batch(jnp.asarray(x), jnp.asarray(labels), jnp.arange(size), size, mask)


def start(objective: CGMVAE, batch: Batch) -> tuple[Any, Any]:
    arrays = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (batch.inputs, batch.labels))
    spec = BatchSpec(*arrays, batch.step_samples)
    params, state = quick_jit(lambda key: objective.init(key, spec))(jax.random.key(0))
    return params, state


def step(objective: CGMVAE, batch: Batch, params: Any = None, key: jax.Array = KEY) -> Any:
    first, state = start(objective, batch)
    run = quick_jit(jax.value_and_grad(objective.loss, has_aux=True))
    (loss, aux), grads = run(first if params is None else params, state, batch, key)
    return loss, aux.measurements, grads


def still(objective: CGMVAE = SMALL, **changes: Any) -> CGMVAE:
    """Without dropout."""
    encoder = dataclasses.replace(objective.encoder, dropout=0.0)
    return dataclasses.replace(objective, encoder=encoder, label_dropout=0.0, **changes)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
def test_golden_totals(golden: dict[str, Any], dtype: str, tolerance: float) -> None:
    close = {"rtol": 0, "atol": tolerance}

    def total(name: str, branches: list[str], objective: CGMVAE) -> jax.Array:
        given = {
            k: jnp.asarray(v, dtype)
            for k, v in golden[name]["inputs"].items()
            if not isinstance(v, str)
        }
        kl = {k: jnp.asarray(v, dtype) for k, v in golden["cgmvae_kl"]["inputs"].items()}
        variances = jnp.exp(kl["fx_logvar"]), jnp.exp(kl["label_logvar"])
        divergence = losses.mixture_kl(
            kl["z0"], kl["fx_mu"], variances[0], kl["label_mu"], variances[1], kl["Y"]
        )
        scores = jnp.stack([losses.normalize(given[branch]) @ given["E"] for branch in branches])
        return objective.total(scores, divergence, given["Y"], None)[0]

    branches = ["label_emb_raw", "feat_emb_raw", "feat_emb2_raw"]
    for name, views, objective in (
        ("cgmvae_total_code", branches, CGMVAE()),
        ("cgmvae_total_paper", branches[1:2], CGMVAE(objective="paper")),
    ):
        found = quick_jit(functools.partial(total, name, views, objective))()
        assert found.dtype == dtype
        np.testing.assert_allclose(found, golden[name]["value"], **close)
    entry = golden["cgmvae_label_z"]
    found = label_average(*(jnp.asarray(entry["inputs"][k], dtype) for k in ("label_mu", "Y")))
    np.testing.assert_allclose(found, entry["value"], **close)


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({}, {"kl": 6, "cross_entropy": 0.5, "contrastive": 1}),
        ({"alpha": 2.0, "beta": 3.0}, {"kl": 6, "cross_entropy": 3, "contrastive": 2}),
        ({"variant": "gm_only"}, {"kl": 6, "cross_entropy": 0.5}),
        ({"variant": "contrastive_only"}, {"cross_entropy": 0.5, "contrastive": 1}),
        ({"variant": "uni_gaussian"}, {"kl": 6, "cross_entropy": 0.5}),
        ({"objective": "paper"}, {"kl": 1, "cross_entropy": 0.5, "contrastive": 1}),
        (
            {"objective": "paper", "reconstruction": "labels", "kl_coefficient": 0.25},
            {"kl": 0.25, "cross_entropy": 0.5, "contrastive": 1, "reconstruction": 1},
        ),
    ],
)
def test_the_loss_is_the_weighted_sum_of_its_terms(changes: Any, weights: Any) -> None:
    loss, terms, grads = step(dataclasses.replace(SMALL, **changes), batch_of())
    assert set(terms) == set(weights)
    expected = sum(weights[name] * terms[name] for name in terms)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    # Everything that is used learns; without KL the label encoder is only decoded.
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    assert np.abs(grads["decoder"]["kernel_point"]).max() > 0
    assert np.abs(grads["labels"]["embeddings"]).max() > 0


def plain(objective: CGMVAE, params: Any, batch: Batch, training_points: Any) -> np.ndarray:
    """Scores [V, B, L] in numpy, of the points given and, before them, of the label sets."""

    def layer(x: np.ndarray, at: Any) -> np.ndarray:
        return x @ np.asarray(at["kernel"]) + np.asarray(at["bias"])

    relu = functools.partial(np.maximum, 0)
    at = params["labels"]
    h = relu(np.asarray(at["embeddings"]) + np.asarray(at["bias"]))
    h = relu(layer(h, at["layers_0"]))
    means = layer(h, at["head"]["mean"])
    y = np.asarray(batch.labels)
    center = y @ means / np.maximum(y.sum(1, keepdims=True), 1)
    scores = []
    for z in (center, *training_points):
        both = [params["decoder"][name] for name in ("kernel_features", "kernel_point")]
        first = {"kernel": np.concatenate(both), "bias": params["decoder"]["bias"]}
        v = layer(np.concatenate([batch.inputs, z], axis=1), first)
        v = layer(relu(v), params["decoder"]["Dense_0"])
        v = np.where(v > 0, v, 0.01 * v)
        w = v / np.linalg.norm(v, axis=1, keepdims=True)
        scores.append(w @ np.asarray(at["embeddings"]).T)
    return np.stack(scores)


def test_scores_are_those_of_the_network_in_numpy() -> None:
    objective, batch = still(), batch_of()
    params, state = start(objective, batch)

    def layer(x: np.ndarray, at: Any) -> np.ndarray:
        return x @ np.asarray(at["kernel"]) + np.asarray(at["bias"])

    features = np.maximum(layer(np.asarray(batch.inputs), params["encoder"]["Dense_0"]), 0)
    mean = layer(features, params["head"]["mean"])
    logits = plain(objective, params, batch, [mean])[1]
    found = quick_jit(objective.scores)(params, state, batch.inputs)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), rtol=1e-5)
    embedded = quick_jit(objective.embed)(params, state, batch.inputs)
    np.testing.assert_allclose(embedded["representation"], features, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(embedded["latent"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embedded["embedding"], axis=1), 1, rtol=1e-6)
    embeddings = objective.label_embeddings(params, state)
    np.testing.assert_array_equal(embeddings, params["labels"]["embeddings"])


def test_terms_are_those_of_the_network_in_numpy() -> None:
    """With hardly any variance every point is the mean: all but the KL is then known."""
    objective, batch = still(variant="contrastive_only"), batch_of()
    params, state = start(objective, batch)
    params["head"]["log_variance"]["kernel"] *= 0
    params["head"]["log_variance"]["bias"] = jnp.full(3, -60.0)
    features = quick_jit(objective.embed)(params, state, batch.inputs)
    scores = plain(objective, params, batch, [np.asarray(features["latent"])])
    y = np.asarray(batch.labels)
    entropy = (np.logaddexp(0, scores) - y * scores).sum(-1)
    labelled = y.any(1)
    terms = step(objective, batch, params)[1]
    expected = entropy[0][labelled].mean() + 2 * entropy[1].mean()
    np.testing.assert_allclose(terms["cross_entropy"], expected, rtol=1e-5)
    log_sum = np.log(np.exp(scores).sum(-1))
    positive = (y * scores).sum(-1) / np.maximum(y.sum(1), 1)
    np.testing.assert_allclose(
        terms["contrastive"], (log_sum - positive)[:, labelled].mean(), rtol=1e-5
    )


def test_rows_without_labels_have_part_in_their_cross_entropy_only() -> None:
    """As many as there are: all finite, and the other terms as if they were not there."""
    objective = still(dataclasses.replace(SMALL, objective="paper"))
    batch = batch_of()
    loss, _, grads = step(objective, batch)
    assert np.isfinite(loss)
    bare = dataclasses.replace(batch, labels=jnp.zeros_like(batch.labels))
    _, nothing, of_nothing = step(objective, bare)
    assert nothing["kl"] == nothing["contrastive"] == 0
    assert nothing["cross_entropy"] > 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((grads, of_nothing)))
    assert not np.asarray(of_nothing["labels"]["head"]["mean"]["kernel"]).any()


def test_unknown_labels_are_left_out() -> None:
    """What they hold is of no matter; one that is unknown everywhere learns nothing."""
    known = np.ones((SIZE, LABELS), bool)
    known[:, 2], known[4] = False, False
    batch = batch_of(known)
    spoilt = dataclasses.replace(batch, labels=jnp.where(known, batch.labels, 1))
    first, second = (step(still(), one) for one in (batch, spoilt))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.asarray(first[2]["labels"]["embeddings"])[2].any()
    assert np.asarray(first[2]["labels"]["embeddings"])[0].any()


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder_input": "z"},
        {"decoder_hidden": (9, 5)},
        {"label_input": "embedding"},
        {"normalize_label_emb": True},
        {"kl_samples": 5},
        {"kl_samples": 5, "kl_sampling": "stratified"},
        {"kl_point": "decoded"},
        {"temperature": 0.5},
    ],
)
def test_every_option_does_something_and_learns(changes: Any) -> None:
    batch = batch_of()
    objective = dataclasses.replace(SMALL, **changes)
    loss, _, grads = step(objective, batch)
    assert loss != step(SMALL, batch)[0]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    assert np.asarray(grads["encoder"]["Dense_0"]["kernel"]).any()
    scores = quick_jit(objective.scores)(*start(objective, batch), batch.inputs)
    assert scores.shape == (SIZE, LABELS)


def test_more_samples_vary_less() -> None:
    """The KL's estimate over many keys, with the mean that all forms have in common."""
    batch = batch_of()
    found = {}
    for name, changes in {
        "one": {},
        "plain": {"kl_samples": 8},
        "stratified": {"kl_samples": 8, "kl_sampling": "stratified"},
    }.items():
        objective = still(variant="gm_only", **changes)
        params, state = start(objective, batch)
        run = quick_jit(
            jax.vmap(
                lambda key, o=objective, p=params, s=state: o.loss(p, s, batch, key)[
                    1
                ].measurements["kl"]
            )
        )
        found[name] = np.asarray(run(jax.random.split(jax.random.key(1), 200)))
    spread = {name: values.std() for name, values in found.items()}
    assert spread["plain"] < 0.6 * spread["one"]
    assert spread["stratified"] < 0.6 * spread["plain"]
    error = spread["one"] / np.sqrt(200)
    assert abs(found["one"].mean() - found["stratified"].mean()) < 4 * error


def test_noise_belongs_to_the_place_in_the_step() -> None:
    """The first rows of a batch are drawn alike whatever follows; every branch has its own."""
    objective = still()
    mean, variance = jnp.zeros((SIZE, 3)), jnp.ones((SIZE, 3))
    points, own = objective._points(KEY, mean, variance, 2, 1)
    fewer, _ = objective._points(KEY, mean[:4], variance[:4], 2, 1)
    np.testing.assert_array_equal(points[:, :4], fewer)
    drawn = np.concatenate([points, own])
    assert len(np.unique(drawn)) == drawn.size


def test_label_gaussians_are_computed_once() -> None:
    """No array of the label encoder has a batch dimension: L = 11 rows of width 13."""
    objective = dataclasses.replace(SMALL, label_hidden=(13,))
    batch = batch_of(size=17)
    params, state = start(objective, batch)
    text = str(jax.make_jaxpr(objective.loss)(params, state, batch, KEY))
    assert f"f32[{LABELS},13]" in text
    assert f"[17,{LABELS},13]" not in text
    assert f"[17,{LABELS},3]" not in text


def test_it_is_written_and_read_back() -> None:
    stage = Stage(dataclasses.replace(SMALL, objective="paper", kl_samples=3), steps(4))
    experiment = Experiment("x", Data("train.csv"), {"train": stage})
    again = from_json(to_json(experiment))
    assert again == experiment
    changed = override(experiment, ["--stages.train.objective.alpha", "2"])
    assert changed.stages["train"].objective.alpha == 2
    assert SMALL.describe() == "c-gmvae"
    assert dataclasses.replace(SMALL, variant="gm_only").describe() == "c-gmvae gm only"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": 0}, "embedding must be at least 1, not 0"),
        ({"alpha": -1.0}, "alpha must be at least 0 and finite, not -1.0"),
        ({"decoder_hidden": ()}, r"decoder_hidden must be one or more widths .*, not \(\)"),
        ({"label_dropout": 1.0}, "label_dropout must be at least 0 and below 1, not 1.0"),
        ({"kl_coefficient": float("inf")}, "kl_coefficient must be .*, not inf"),
        ({"temperature": 0.0}, "temperature must be positive, not 0.0"),
        ({"kl_samples": 0}, "kl_samples must be at least 1, not 0"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **changes)
