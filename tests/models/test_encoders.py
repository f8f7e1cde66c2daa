"""Encoders and heads: shapes, counts, initial values, statistics and numbers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlcl.errors import ConfigError
from jaxmlcl.methods.networks import init_module, run_module
from jaxmlcl.models import (
    ARCHITECTURES,
    MLP,
    Classifier,
    Dropout,
    Projection,
    ResNet,
    ViT,
    dense,
    vit,
)
from jaxmlcl.models.encoders import GroupNorm
from jaxmlcl.models.layers import batch_norm
from jaxmlcl.sharding import MeshSpec

SMALL = ResNet(depths=(1, 1), channels=4, stem="small")
SMALL_VIT = ViT(patch=4, units=8, depth=2, heads=2)
SIGMAS = 5.0


def abstract(spec: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> tuple[Any, Any, Any]:
    """Parameters, statistics and training output of a network, as shapes only."""

    def make(key: jax.Array, x: jax.Array) -> Any:
        module = spec.build(x.dtype)
        params, stats = init_module(module, key, x, False)
        output, new = run_module(module, params, stats, x, train=True, key=key)
        assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, stats)
        return params, new, output

    return jax.eval_shape(make, jax.random.key(0), jax.ShapeDtypeStruct(shape, dtype))


def initial(spec: Any, shape: tuple[int, ...], dtype: Any = jnp.float32, seed: int = 0) -> Any:
    def make(key: jax.Array) -> Any:
        return init_module(spec.build(dtype), key, jnp.zeros(shape, dtype), False)

    return jax.tree.map(np.array, jax.jit(make)(jax.random.key(seed)))


def size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def named(tree: Any, ending: str) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    paths = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    return {path: leaf for path, leaf in paths.items() if path.endswith(ending)}


@pytest.mark.parametrize(
    ("spec", "shape", "width", "count"),
    [
        (MLP(), (3, 103), 256, (103 + 1) * 256 + (256 + 1) * 512 + (512 + 1) * 256),
        (MLP(hidden=(5,)), (3, 7), 5, (7 + 1) * 5),
        # torchvision's 11 689 512 and 25 557 032 without 513 000 and 2 049 000 of the last layer.
        (ResNet(), (2, 224, 224, 3), 512, 11_176_512),
        (ResNet((3, 4, 6, 3), block="bottleneck"), (2, 64, 64, 3), 2048, 23_508_032),
        # Stem 9 x 4 + 8; 2 (9 x 16) + 2 x 8; 9 x 32 + 9 x 64 + 32 of the shortcut + 3 x 16.
        (SMALL, (3, 16, 16, 1), 8, 44 + 304 + 944),
        # Stem 9 x 3 x 8 + 16. First: 64 + 576 + 256, shortcut 256, norms 16 + 16 + 64 + 64. Second:
        # 32 x 16 + 9 x 256 + 16 x 64, shortcut 32 x 64, norms 32 + 32 + 128 + 128.
        (
            ResNet((1, 1), 8, "bottleneck", "small"),
            (3, 17, 13, 3),
            64,
            (216 + 16) + (896 + 256 + 160) + (512 + 2304 + 1024 + 2048 + 320),
        ),
    ],
    ids=["mlp", "one layer", "resnet18", "resnet50", "small basic", "small bottleneck"],
)
def test_widths_and_parameter_counts(
    spec: Any, shape: tuple[int, ...], width: int, count: int
) -> None:
    params, stats, output = abstract(spec, shape)
    assert spec.width == width
    assert output.shape == (shape[0], width)
    assert size(params) == count
    # A mean and a variance for every scale and bias of a normalisation.
    assert size(stats) == 2 * size(named(params, "scale"))


@pytest.mark.parametrize(
    ("name", "count"),
    # torchvision's 21 797 672, 44 549 160 and 60 192 808 without the last layer.
    [("resnet34", 21_284_672), ("resnet101", 42_500_160), ("resnet152", 58_143_808)],
)
def test_parameter_counts_of_deep_networks(name: str, count: int) -> None:
    module = ARCHITECTURES[name].build(jnp.float32)
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), x)
    assert size(variables["params"]) == count
    assert size(variables["batch_stats"]) == 2 * size(named(variables["params"], "scale"))


def test_resnet50_is_torchvisions_layout() -> None:
    spec = ResNet((3, 4, 6, 3), block="bottleneck")

    def make(key: jax.Array, x: jax.Array) -> Any:
        module = spec.build(x.dtype)
        variables = module.init(key, x, False)
        return module.apply(
            variables, x, False, capture_intermediates=True, mutable=["intermediates"]
        )[1]

    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    found = jax.eval_shape(make, jax.random.key(0), x)["intermediates"]
    assert found["Conv_0"]["__call__"][0].shape == (1, 112, 112, 64)
    ends = [found[f"_Block_{i}"]["__call__"][0].shape[1:] for i in (0, 2, 3, 6, 7, 12, 13, 15)]
    shapes = [(56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)]
    assert ends == [shape for shape in shapes for _ in range(2)]
    # Version 1.5: the 3x3 convolution takes the stride, not the 1x1 before it.
    convolutions = [found["_Block_3"][f"Conv_{i}"]["__call__"][0].shape[1:] for i in range(4)]
    assert convolutions == [(56, 56, 128), (28, 28, 128), (28, 28, 512), (28, 28, 512)]


@pytest.mark.parametrize(
    ("inputs", "hidden", "width"),
    [(2048, 1024, 256), (256, 256, 256), (512, 256, 256), (511, 256, 256), (300, 150, 64)],
)
def test_the_projections_width_rule(inputs: int, hidden: int, width: int) -> None:
    params, _, output = abstract(Projection(width=width), (4, inputs))
    assert params["Dense_0"]["kernel"].shape == (inputs, hidden)
    assert params["Dense_1"]["kernel"].shape == (hidden, width)
    assert output.shape == (4, width)


def test_a_projection_of_several_blocks_or_none() -> None:
    params, stats, _ = abstract(Projection(width=16, hidden_layers=2), (4, 64))
    shapes = [params[f"Dense_{i}"]["kernel"].shape for i in range(3)]
    assert shapes == [(64, 32), (32, 32), (32, 16)]
    assert len(stats) == 2
    params, stats, _ = abstract(Projection(width=16, hidden_layers=0), (4, 64))
    assert params["Dense_0"]["kernel"].shape == (64, 16)
    assert stats == {}


def check_uniform(values: np.ndarray, bound: float) -> None:
    assert np.abs(values).max() <= bound
    assert np.abs(values).max() > bound * (1 - 20 / values.size)
    assert abs(values.mean()) < SIGMAS * bound / math.sqrt(3 * values.size)
    # The variance of a square of a uniform number in ±1 is 4/45.
    wrong = abs((values**2).mean() - bound**2 / 3)
    assert wrong < SIGMAS * bound**2 * math.sqrt(4 / 45 / values.size)


def test_linear_layers_start_as_pytorchs_do() -> None:
    params, _ = initial(MLP(hidden=(400, 300)), (1, 90))
    for layer, inputs in (("Dense_0", 90), ("Dense_1", 400)):
        check_uniform(params[layer]["kernel"], 1 / math.sqrt(inputs))
        check_uniform(params[layer]["bias"], 1 / math.sqrt(inputs))
    # Kernel and bias are different draws.
    same = np.isin(params["Dense_1"]["bias"], params["Dense_1"]["kernel"])
    assert same.mean() < 0.1
    head, _ = initial(Projection(width=200), (1, 400))
    assert set(head["Dense_0"]) == {"kernel"}
    check_uniform(head["Dense_1"]["bias"], 1 / math.sqrt(200))
    assert (head["BatchNorm_0"]["scale"] == 1).all()
    assert (head["BatchNorm_0"]["bias"] == 0).all()


def test_convolutions_start_from_kaiming_normal_fan_out() -> None:
    params, stats = initial(ResNet((1, 1), 32, stem="small"), (1, 8, 8, 3))
    kernels = named(params, "kernel")
    assert len(kernels) == 6
    for path, kernel in kernels.items():
        height, width, _, outputs = kernel.shape
        deviation = math.sqrt(2 / (height * width * outputs))
        wrong = abs((kernel.astype(np.float64) ** 2).mean() / deviation**2 - 1)
        assert wrong < SIGMAS * math.sqrt(2 / kernel.size), path
        assert abs(kernel.mean()) < SIGMAS * deviation / math.sqrt(kernel.size)
        # Not cut off at two deviations: 4.6 % of a normal distribution is beyond.
        assert 0.02 < (np.abs(kernel) > 2 * deviation).mean() < 0.08
    # The last normalisation of a block starts at 1 too, not at 0.
    assert all((scale == 1).all() for scale in named(params, "scale").values())
    assert all((bias == 0).all() for bias in named(params, "bias").values())
    assert all((mean == 0).all() for mean in named(stats, "mean").values())
    assert all((var == 1).all() for var in named(stats, "var").values())


def test_initial_values_depend_on_the_key_only() -> None:
    one, again, other = (initial(MLP(hidden=(8,)), (1, 4), seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one["Dense_0"]["kernel"], again["Dense_0"]["kernel"])
    assert (one["Dense_0"]["kernel"] != other["Dense_0"]["kernel"]).all()


# --------------------------------------------------------------------- independent numbers


def linear(layer: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    return x @ layer["kernel"] + layer.get("bias", 0.0)


def convolution(layer: dict[str, np.ndarray], x: np.ndarray, stride: int) -> np.ndarray:
    kernel = layer["kernel"]
    pad = kernel.shape[0] // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
    return np.einsum("nhwcij,ijco->nhwo", windows[:, ::stride, ::stride], kernel)


class Norm:
    """Batch normalisation with explicit sums, and the statistics it leaves behind."""

    def __init__(self, stats: dict[str, Any], train: bool) -> None:
        self.stats, self.train, self.new = stats, train, {}

    def __call__(self, name: str, layer: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        old = self.stats[name]
        mean, var = old["mean"], old["var"]
        if self.train:
            rows = x.reshape(-1, x.shape[-1])
            mean = rows.sum(0) / len(rows)
            var = ((rows - mean) ** 2).sum(0) / len(rows)
            self.new[name] = {
                "mean": 0.9 * old["mean"] + 0.1 * mean,
                "var": 0.9 * old["var"] + 0.1 * var,
            }
        return (x - mean) / np.sqrt(var + 1e-5) * layer["scale"] + layer["bias"]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def projection(params: Any, norm: Norm, x: np.ndarray) -> np.ndarray:
    x = norm("BatchNorm_0", params["BatchNorm_0"], linear(params["Dense_0"], x))
    return linear(params["Dense_1"], relu(x))


def small_resnet(
    params: Any, stats: Any, train: bool, x: np.ndarray, layers: int
) -> tuple[np.ndarray, Any]:
    """Two blocks of two (basic) or three (bottleneck) convolutions, the second of stride 2."""
    top = Norm(stats, train)
    x = relu(top("BatchNorm_0", params["BatchNorm_0"], convolution(params["Conv_0"], x, 1)))
    new = {}
    for block, stride in (("_Block_0", 1), ("_Block_1", 2)):
        p, norm = params[block], Norm(stats[block], train)
        y = x
        for index in range(layers):
            # The first 3x3 convolution takes the stride: of two the first, of three the second.
            step = stride if index == layers - 2 else 1
            y = convolution(p[f"Conv_{index}"], y, step)
            y = norm(f"BatchNorm_{index}", p[f"BatchNorm_{index}"], y)
            y = relu(y) if index < layers - 1 else y
        if f"Conv_{layers}" in p:
            x = convolution(p[f"Conv_{layers}"], x, stride)
            x = norm(f"BatchNorm_{layers}", p[f"BatchNorm_{layers}"], x)
        x = relu(x + y)
        new[block] = norm.new
    return x.mean((1, 2)), {**top.new, **new}


def layer_norm(layer: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * layer["scale"] + layer["bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def attention(layer: dict[str, np.ndarray], x: np.ndarray, heads: int) -> np.ndarray:
    """Of each head in turn, from queries, keys and values that lie beside each other."""
    queries, keys, values = np.split(linear(layer, x), 3, axis=-1)
    found = []
    for q, k, v in zip(
        *(np.split(part, heads, axis=-1) for part in (queries, keys, values)), strict=True
    ):
        weights = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]))
        found.append(weights / weights.sum(-1, keepdims=True) @ v)
    return np.concatenate(found, axis=-1)


def small_vit(params: Any, spec: ViT, x: np.ndarray) -> np.ndarray:
    batch, height, width, _ = x.shape
    size, units = spec.patch, spec.units
    patches = [
        x[:, row : row + size, column : column + size].reshape(batch, -1)
        for row in range(0, height, size)
        for column in range(0, width, size)
    ]
    layer = {**params["patches"], "kernel": params["patches"]["kernel"].reshape(-1, units)}
    tokens = [np.broadcast_to(params["token"][0, 0], (batch, units))]
    x = np.stack(tokens + [linear(layer, patch) for patch in patches], axis=1)
    x = x + params["positions"]
    for index in range(spec.depth):
        p = params[f"block_{index}"]
        y = attention(p["qkv"], layer_norm(p["norm_1"], x), spec.heads)
        x = x + linear(p["out"], y)
        x = x + linear(p["down"], gelu(linear(p["up"], layer_norm(p["norm_2"], x))))
    return layer_norm(params["norm"], x)[:, 0]


def random_like(tree: Any, seed: int) -> Any:
    """Values around those of a tree, so that scales, biases and statistics all matter."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + generator.uniform(0.1, 0.5, leaf.shape), tree)


def run(spec: Any, params: Any, stats: Any, x: np.ndarray, train: bool) -> tuple[Any, Any]:
    def apply(params: Any, stats: Any, x: jax.Array) -> Any:
        module = spec.build(x.dtype)
        return run_module(module, params, stats, x, train=train, key=jax.random.key(0))

    return jax.device_get(jax.jit(apply)(params, stats, x))


def check_tree(found: Any, expected: Any, tolerance: float) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("train", [True, False])
def test_the_projection_in_numpy(train: bool) -> None:
    spec = Projection(width=5, dropout=0.0)
    params, stats = (random_like(tree, 1) for tree in initial(spec, (1, 8), jnp.float64))
    x = np.random.default_rng(2).normal(size=(7, 8)) + 1.0
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves((params, stats)))
    output, new = run(spec, params, stats, x, train)
    norm = Norm(stats, train)
    np.testing.assert_allclose(output, projection(params, norm, x), rtol=1e-12, atol=1e-12)
    # Training moves the statistics by a tenth of the way; evaluation leaves them.
    check_tree(new, norm.new if train else stats, 1e-12 if train else 0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("spec", "layers"),
    [(SMALL, 2), (ResNet((1, 1), 2, "bottleneck", "small"), 3)],
    ids=["basic", "bottleneck"],
)
def test_the_residual_network_in_numpy(spec: ResNet, layers: int, train: bool) -> None:
    params, stats = (random_like(tree, 3) for tree in initial(spec, (1, 7, 6, 2), jnp.float64))
    x = np.random.default_rng(4).normal(size=(5, 7, 6, 2))
    output, new = run(spec, params, stats, x, train)
    expected, expected_stats = small_resnet(params, stats, train, x, layers)
    np.testing.assert_allclose(output, expected, rtol=1e-11, atol=1e-11)
    check_tree(new, expected_stats if train else stats, 1e-11 if train else 0)


@pytest.mark.usefixtures("x64")
def test_the_vision_transformer_in_numpy() -> None:
    # Three rows of two patches: their order matters.
    generator = np.random.default_rng(8)
    x = generator.normal(size=(2, 12, 8, 3))
    params, stats = initial(SMALL_VIT, x[:1].shape, jnp.float64)
    params = jax.tree.map(lambda leaf: generator.normal(0, 0.5, leaf.shape), params)
    output, _ = run(SMALL_VIT, params, stats, x, train=False)
    expected = small_vit(params, SMALL_VIT, x)
    np.testing.assert_allclose(output, expected, rtol=1e-11, atol=1e-11)


def group_norm(layer: dict[str, np.ndarray], x: np.ndarray, groups: int) -> np.ndarray:
    parts = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean = parts.mean((1, 3), keepdims=True)
    var = ((parts - mean) ** 2).mean((1, 3), keepdims=True)
    scaled = (parts - mean) / np.sqrt(var + 1e-5)
    return scaled.reshape(x.shape) * layer["scale"] + layer["bias"]


@pytest.mark.usefixtures("x64")
# 32 does not divide 48: there are as many groups as divide both.
@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16)])
def test_group_normalisation_in_numpy(channels: int, groups: int) -> None:
    module = GroupNorm(jnp.float64, jnp.float64)
    # Small enough that what is added to the variance counts.
    x = np.random.default_rng(9).normal(0.01, 0.01, (2, 3, 2, channels))
    params = random_like(module.init(jax.random.key(0), x)["params"], 10)
    output = module.apply({"params": params}, x)
    expected = group_norm(params["GroupNorm_0"], x, groups)
    np.testing.assert_allclose(output, expected, rtol=1e-11, atol=1e-11)


def test_the_mlp_in_numpy() -> None:
    spec = MLP(hidden=(6, 3), dropout=0.0)
    params, stats = initial(spec, (1, 4))
    x = np.random.default_rng(5).normal(size=(9, 4)).astype(np.float32)
    expected = relu(linear(params["Dense_1"], relu(linear(params["Dense_0"], x))))
    for train in (True, False):
        output, new = run(spec, params, stats, x, train)
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
        assert new == stats == {}


def test_max_pooling_of_the_imagenet_stem() -> None:
    spec = ResNet((1,), channels=2, stem="imagenet")
    params, stats = initial(spec, (1, 12, 12, 1))
    # Blocks that add nothing leave what the stem gives.
    params["_Block_0"]["BatchNorm_1"]["scale"] *= 0
    x = np.random.default_rng(6).normal(size=(2, 12, 12, 1)).astype(np.float32)
    output, _ = run(spec, params, stats, x, train=False)
    stem = relu(convolution(params["Conv_0"], x, 2) / np.sqrt(1 + 1e-5))
    padded = np.pad(stem, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    pooled = windows[:, ::2, ::2].max((-2, -1))
    assert pooled.shape == (2, 3, 3, 2)
    np.testing.assert_allclose(output, pooled.mean((1, 2)), rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (MLP(), (4, 12)),
        (Projection(width=8), (4, 12)),
        (ResNet((1,), 4), (4, 16, 16, 3)),
        (ResNet((1,), 4, norm="group"), (4, 16, 16, 3)),
        (ResNet((1,), 4, statistics="per_device"), (4, 16, 16, 3)),
        (SMALL_VIT, (4, 8, 8, 3)),
    ],
    ids=["mlp", "projection", "resnet", "group", "per device", "vit"],
)
def test_bfloat16_keeps_parameters_and_statistics_in_float32(
    spec: Any, shape: tuple[int, ...]
) -> None:
    # Statistics are per device only where there are several.
    with jax.set_mesh(MeshSpec(2, 1).build(jax.devices()[:2])):
        params, stats, output = abstract(spec, shape, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, stats))} == {jnp.dtype("float32")}
    # A pooled mean is a sum of many terms and stays in float32, and so does a class token.
    wanted = jnp.float32 if isinstance(spec, ResNet | ViT) else jnp.bfloat16
    assert output.dtype == wanted


@pytest.mark.parametrize("kind", ["global", "per_device", "group"])
def test_images_of_bfloat16_are_normalised_in_float32(kind: Any) -> None:
    params, x = far_from_zero((4, 4, 4, 64))
    stats = {"mean": np.zeros(64, np.float32), "var": np.ones(64, np.float32)}
    layer: Any = GroupNorm(jnp.bfloat16, jnp.float32)
    given: Any = {"params": {"GroupNorm_0": params}}
    if kind != "group":
        layer = batch_norm(True, jnp.bfloat16, kind)
        given = {"params": params, "batch_stats": stats}
    with jax.set_mesh(MeshSpec(2, 1).build(jax.devices()[:2])):
        output, new = layer.apply(given, x, mutable=["batch_stats"])
    exact = np.asarray(x, np.float64)
    if kind == "group":
        check_rounded_once(output, group_norm(params, exact, 32))
        return
    parts = np.split(exact, 2 if kind == "per_device" else 1)
    norms = [Norm({"": stats}, True) for _ in parts]
    expected = [norm("", params, part) for norm, part in zip(norms, parts, strict=True)]
    check_rounded_once(output, np.concatenate(expected))
    for name, found in new["batch_stats"].items():
        assert found.dtype == jnp.float32
        mean = sum(norm.new[""][name] for norm in norms) / len(norms)
        np.testing.assert_allclose(found, mean, rtol=1e-5)


def test_tokens_of_bfloat16_are_normalised_in_float32() -> None:
    spec = ViT(patch=4, units=64, depth=1, heads=2)
    params, _ = initial(spec, (1, 8, 8, 3), jnp.bfloat16)
    # Blocks that add nothing leave what the positions are.
    params = jax.tree.map(np.zeros_like, params)
    params["norm"], places = far_from_zero(params["positions"].shape)
    params["positions"] = np.asarray(places, np.float32)
    output, _ = run(spec, params, {}, jnp.ones((1, 8, 8, 3), jnp.bfloat16), train=False)
    check_rounded_once(output, layer_norm(params["norm"], np.asarray(places, np.float64))[:, 0])


def far_from_zero(shape: tuple[int, ...]) -> tuple[dict[str, np.ndarray], jax.Array]:
    """Scale, bias and inputs around 20: bfloat16 goes in steps of 1/8 there, as a mean would."""
    generator = np.random.default_rng(11)
    params = {
        name: generator.uniform(0.5, 1.5, shape[-1]).astype(np.float32)
        for name in ("scale", "bias")
    }
    return params, jnp.asarray(generator.normal(20, 1, shape), jnp.bfloat16)


def check_rounded_once(found: Any, exact: np.ndarray) -> None:
    """Of bfloat16's eight bits, half of the last is lost; float32 loses next to nothing before."""
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-7.9, atol=2e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("spec", [MLP(), Projection(width=8)], ids=["mlp", "projection"])
def test_float64_is_float64_throughout(spec: Any) -> None:
    params, stats, output = abstract(spec, (4, 12), jnp.float64)
    kinds = {leaf.dtype for leaf in jax.tree.leaves((params, stats, output))}
    assert kinds == {jnp.dtype("float64")}


def test_statistics_of_bfloat16_inputs_are_summed_in_float32() -> None:
    spec = Projection(width=4, dropout=0.0)
    params, stats = initial(spec, (1, 8), jnp.bfloat16)
    x = np.random.default_rng(7).normal(size=(512, 8)).astype(np.float32)
    rounded = jnp.asarray(x, jnp.bfloat16)
    output, new = run(spec, params, stats, rounded, train=True)
    norm = Norm(stats, True)
    expected = projection(params, norm, np.asarray(rounded, np.float32))
    # Sums of 512 terms in bfloat16 would be wrong in the second digit.
    check_tree(new, norm.new, 1e-3)
    np.testing.assert_allclose(np.asarray(output, np.float32), expected, rtol=0.05, atol=0.05)


def test_the_classifier_is_in_float32_at_least() -> None:
    module = Classifier(3, jnp.bfloat16)
    x = jnp.ones((2, 5), jnp.bfloat16)
    variables = module.init(jax.random.key(0), x)
    logits = module.apply(variables, x)
    assert logits.dtype == jnp.float32
    layer = variables["params"]["Dense_0"]
    np.testing.assert_allclose(logits[0], layer["kernel"].sum(0) + layer["bias"], rtol=1e-6)
    assert np.abs(layer["kernel"]).max() <= 1 / math.sqrt(5)


# --------------------------------------------------------------------- dropout


def drop(x: jax.Array, rate: float, seed: int = 0, train: bool = True) -> np.ndarray:
    output = Dropout(rate).apply({}, x, train, rngs={"dropout": jax.random.key(seed)})
    return np.asarray(output)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5])
def test_dropout_scales_what_it_keeps(rate: float) -> None:
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (300, 200)), jnp.float32)
    y = drop(x, rate)
    kept = y != 0
    np.testing.assert_allclose(y[kept], np.asarray(x)[kept] / (1 - rate), rtol=1e-6)
    assert abs(kept.mean() - (1 - rate)) < SIGMAS * math.sqrt(rate * (1 - rate) / kept.size)
    # Rows, units and keys have masks of their own.
    for a, b in ((kept[:-1], kept[1:]), (kept[:, :-1], kept[:, 1:]), (kept, drop(x, rate, 1) != 0)):
        correlation = np.corrcoef(a.ravel(), b.ravel())[0, 1]
        assert abs(correlation) < SIGMAS / math.sqrt(a.size)


def test_dropout_of_pictures_and_short_types() -> None:
    x = jnp.ones((4, 3, 3, 2), jnp.bfloat16)
    y = drop(x, 0.5)
    assert y.dtype == jnp.bfloat16
    assert set(np.unique(y.astype(np.float32))) == {0.0, 2.0}


def test_dropout_is_the_identity_in_evaluation_and_at_rate_zero() -> None:
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(drop(x, 0.9, train=False), x)
    np.testing.assert_array_equal(drop(x, 0.0), x)
    # No random stream is asked for.
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, False), x)


def test_layers_of_one_network_have_different_masks() -> None:
    spec = MLP(hidden=(64, 64), dropout=0.5)
    params, stats = initial(spec, (1, 64))
    # With identity kernels and large biases every unit that is zero was dropped.
    for layer in params.values():
        layer["kernel"], layer["bias"] = np.eye(64, dtype=np.float32), np.ones(64, np.float32)
    x = np.ones((256, 64), np.float32)
    output, _ = run(spec, params, stats, x, train=True)
    # 2 x 1 where only the first layer dropped, 2 (4 + 1) where none did.
    shares = {value: (output == value).mean() for value in (0.0, 2.0, 10.0)}
    assert sum(shares.values()) == 1.0
    for value, share in ((0.0, 0.5), (2.0, 0.25), (10.0, 0.25)):
        assert abs(shares[value] - share) < SIGMAS * 0.5 / math.sqrt(output.size)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MLP(dropout=1.0),
        lambda: MLP(dropout=-0.1),
        lambda: MLP(hidden=()),
        lambda: MLP(hidden=(8, 0)),
        lambda: Projection(dropout=1.5),
        lambda: Projection(width=0),
        lambda: Projection(hidden_layers=-1),
        lambda: ResNet(depths=()),
        lambda: ResNet(channels=0),
    ],
)
def test_what_cannot_be_built_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match="must"):
        make()


def test_dense_without_bias() -> None:
    params = dense(3, 2, jnp.float32, use_bias=False).init(jax.random.key(0), jnp.ones((1, 3)))
    assert set(params["params"]) == {"kernel"}


def test_group_normalisation_looks_at_one_sample() -> None:
    spec = ResNet(depths=(1, 1), channels=4, stem="small", norm="group")
    params, stats = initial(spec, (2, 16, 16, 3))
    assert stats == {}
    assert size(params) == size(initial(dataclasses.replace(spec, norm="batch"), (2, 16, 16, 3))[0])
    module = spec.build(jnp.float32)
    x = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
    together, _ = run_module(module, params, stats, x, train=True, key=jax.random.key(0))
    alone, _ = run_module(module, params, stats, x[1:2], train=True, key=jax.random.key(0))
    np.testing.assert_allclose(alone[0], together[1], rtol=1e-5, atol=1e-6)


def test_vision_transformers() -> None:
    # torchvision's 86 567 656 and 304 326 632 without the last layer; S is timm's 22 050 664.
    for spec, last, count in (
        (vit("S"), 384, 22_050_664),
        (vit("B"), 768, 86_567_656),
        (vit("L"), 1024, 304_326_632),
    ):
        params, stats, output = abstract(spec, (2, 224, 224, 3))
        assert size(params) == count - (last + 1) * 1000
        assert stats == {}
        assert output.shape == (2, spec.width) == (2, last)
    small = ViT(patch=4, units=8, depth=2, heads=2, dropout=0.5)
    params, stats = initial(small, (1, 8, 8, 3))
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)

    def outputs(spec: ViT, dtype: Any, **options: Any) -> Any:
        return run_module(spec.build(dtype), params, stats, x.astype(dtype), **options)[0]

    still = outputs(small, jnp.float32, train=False, key=jax.random.key(0))
    np.testing.assert_array_equal(
        still, outputs(small, jnp.float32, train=False, key=jax.random.key(1))
    )
    moving = [outputs(small, jnp.float32, train=True, key=jax.random.key(k)) for k in (0, 1)]
    assert (moving[0] != moving[1]).any()
    again = dataclasses.replace(small, remat="blocks")
    np.testing.assert_allclose(
        outputs(again, jnp.float32, train=True, key=jax.random.key(0)), moving[0], rtol=1e-5
    )
    low = outputs(small, jnp.bfloat16, train=False, key=jax.random.key(0))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, still, atol=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViT(units=10, heads=3), "units .10. must divide by heads .3."),
        (lambda: ViT(depth=0), "must be at least 1"),
        (lambda: vit("XL"), "no ViT 'XL'; there are S, B, L"),  # type: ignore[arg-type]
        (lambda: initial(ViT(4, 8, 1, 2), (1, 10, 8, 3)), "10 x 8 do not divide into patches of 4"),
        (lambda: initial(ViT(4, 8, 1, 2), (1, 8)), "takes images"),
    ],
)
def test_vision_transformers_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
