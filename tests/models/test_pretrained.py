"""Weights of torchvision: the same numbers layer by layer, and files that are read, never run."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlcl.errors import ConfigError, DataError
from jaxmlcl.models import ARCHITECTURES, Pretrained, ResNet, ViT, load_pretrained, save_pretrained
from jaxmlcl.models.pretrained import named_weights, read_weights

TINY_RESNET = ResNet((1, 2), channels=4, block="bottleneck")
TINY_VIT = ViT(patch=4, units=8, depth=2, heads=2)


def random(encoder: Any, size: int = 32, seed: int = 0) -> Pretrained:
    """An encoder with random numbers everywhere, statistics included."""
    module = encoder.build(jnp.float32)
    variables = module.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), False)
    generator = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(variables)
    drawn = [generator.uniform(0.5, 1.5, leaf.shape).astype(np.float32) for leaf in leaves]
    found = jax.tree.unflatten(tree, drawn)
    return Pretrained(encoder, found["params"], found.get("batch_stats", {}))


def output(pretrained: Pretrained, x: np.ndarray, dtype: Any = jnp.float32, **options: Any) -> Any:
    variables = {"params": pretrained.params, "batch_stats": pretrained.batch_stats}
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
    return pretrained.encoder.build(dtype).apply(variables, x, False, **options)


def check_same(found: Pretrained, expected: Pretrained) -> None:
    assert jax.tree.structure(found[1:]) == jax.tree.structure(expected[1:])
    for a, b in zip(jax.tree.leaves(found[1:]), jax.tree.leaves(expected[1:]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("encoder", [TINY_RESNET, TINY_VIT, ResNet((1,), channels=4)])
def test_what_is_written_is_read(encoder: Any, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    before = random(encoder)
    path = tmp_path / "a" / "weights.safetensors"
    save_pretrained(path, before)
    check_same(load_pretrained(path, encoder, image_size=32), before)


def test_timm_names_and_other_image_sizes(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    before = random(TINY_VIT)
    save_pretrained(tmp_path / "a.safetensors", before)
    weights = read_weights(tmp_path / "a.safetensors")
    names = {
        "class_token": "cls_token",
        "encoder.pos_embedding": "pos_embed",
        "conv_proj.weight": "patch_embed.proj.weight",
        "conv_proj.bias": "patch_embed.proj.bias",
        "encoder.ln.weight": "norm.weight",
        "encoder.ln.bias": "norm.bias",
    }
    parts = (
        ("encoder.layers.encoder_layer_", "blocks."),
        (".ln_", ".norm"),
        (".self_attention.in_proj_", ".attn.qkv."),
        (".self_attention.out_proj", ".attn.proj"),
        (".mlp.0", ".mlp.fc1"),
        (".mlp.3", ".mlp.fc2"),
    )
    renamed = {}
    for name, array in weights.items():
        new = names.get(name, name)
        for ours, theirs in parts:
            new = new.replace(ours, theirs)
        renamed[f"module.{new}"] = array
    renamed["module.head.weight"] = np.zeros((3, 8), np.float32)
    numpy.save_file(renamed, tmp_path / "timm.safetensors")
    check_same(load_pretrained(tmp_path / "timm.safetensors", TINY_VIT, image_size=32), before)
    larger = load_pretrained(tmp_path / "timm.safetensors", TINY_VIT, image_size=48)
    places = larger.params["positions"]
    assert places.shape == (1, 145, 8)
    np.testing.assert_array_equal(places[:, 0], before.params["positions"][:, 0])
    assert output(larger, np.ones((2, 48, 48, 3), np.float32)).shape == (2, 8)


@pytest.mark.parametrize(
    "prefixes", [("encoder_q", "encoder_k"), ("base_encoder", "momentum_encoder")]
)
def test_of_moco_the_query_encoder_is_taken(prefixes: tuple[str, str], tmp_path: Path) -> None:
    before = random(TINY_RESNET)
    query = named_weights(before)
    arrays = {f"module.{prefixes[0]}.{name}": array for name, array in query.items()}
    arrays |= {f"module.{prefixes[1]}.{name}": array + 1 for name, array in query.items()}
    arrays[f"module.{prefixes[0]}.fc.0.weight"] = np.ones((4, 4), np.float32)
    arrays["module.queue"] = np.ones((4, 8), np.float32)
    arrays["module.queue_ptr"] = np.zeros(1, np.int64)
    (tmp_path / "moco.pth.tar").write_bytes(state_dict(arrays))
    check_same(load_pretrained(tmp_path / "moco.pth.tar", TINY_RESNET, image_size=32), before)


def program(arrays: dict[str, np.ndarray], damage: bytes = b"", more: bytes = b"") -> bytes:
    """The pickle of a state dict as `torch.save` writes it, made without PyTorch."""
    words = [b"\x80\x02ccollections\nOrderedDict\n)R("]
    kinds = {"float32": "FloatStorage", "float64": "DoubleStorage", "int64": "LongStorage"}

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    for key, (name, array) in enumerate(arrays.items()):
        steps = [step // array.itemsize for step in array.strides]
        shape = b"(" + b"".join(map(number, array.shape)) + b"t"
        strides = b"(" + b"".join(map(number, steps)) + b"t"
        storage = f"ctorch\n{kinds[str(array.dtype)]}\n".encode()
        words.append(text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n((")
        words.append(text("storage") + storage + text(str(key)) + text("cpu"))
        words.append(number(array.size) + more + b"tQ" + number(0) + shape + strides)
        words.append(b"\x89ccollections\nOrderedDict\n)RtR")
    return b"".join(words) + b"u" + damage + b"."


def state_dict(arrays: dict[str, np.ndarray], damage: bytes = b"") -> bytes:
    """A file as `torch.save(state_dict)` writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/data.pkl", program(arrays, damage))
    return buffer.getvalue()


def earlier_state_dict(arrays: dict[str, np.ndarray], damage: bytes = b"") -> bytes:
    """A file as it wrote before PyTorch 1.6; a storage of it is no view of another (N)."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"long": 4}}
    keys = [str(key) for key in range(len(arrays))]
    # In another order than they were named in.
    keys.reverse()
    begin = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system)]
    end = [array.size.to_bytes(8, "little") + array.tobytes() for array in arrays.values()]
    return b"".join([*begin, program(arrays, damage, b"N"), pickle.dumps(keys, 2), *end[::-1]])


FORMS = pytest.mark.parametrize("form", [state_dict, earlier_state_dict])


@FORMS
def test_a_state_dict_is_read_without_running_it(form: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    arrays = {
        "module.a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1, 2**40]),
        "c": np.array(2.5),
    }
    path.write_bytes(form(arrays))
    found = read_weights(path)
    assert list(found) == ["a", "b", "c"]
    for name, array in zip("abc", arrays.values(), strict=True):
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


class Harmful:
    """What a pickle can do to who loads it."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_is_more_than_weights_is_refused(protocol: int, tmp_path: Path) -> None:
    path, place = tmp_path / "weights.pth", tmp_path / "touched"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": Harmful(place)}, protocol))
    with pytest.raises(DataError, match=r"more than weights .*nothing is unpickled"):
        read_weights(path)
    assert not place.exists()


def test_of_earlier_files_too(tmp_path: Path) -> None:
    path, place = tmp_path / "weights.pth", tmp_path / "touched"
    whole = earlier_state_dict({"a": np.zeros(3, np.float32)})
    start = whole.index(b"\x80\x02ccollections")
    for content in (
        pickle.dumps(Harmful(place), 2),
        whole[:start] + pickle.dumps({"a": Harmful(place)}, 2),
        whole.replace(b"NtQ", b"(K\x00ttQ"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"more than weights|none of its forms"):
            read_weights(path)
        assert not place.exists()
    # Python 2 wrote ordered dictionaries as their pairs, and texts of bytes.
    pairs = whole[start:].replace(b")R(X\1\0\0\0a", b"(](U\1a").replace(b"tRu.", b"tRtatR.")
    path.write_bytes(whole[:start] + pairs)
    np.testing.assert_array_equal(read_weights(path)["a"], np.zeros(3))


@FORMS
def test_damaged_files_are_refused(form: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    whole = form({"a": np.arange(6, dtype=np.float32).reshape(2, 3)})
    generator = np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(whole[: generator.integers(1, len(whole) + 1)])
        for place in generator.integers(0, len(content), 2):
            content[place] = generator.integers(256)
        path.write_bytes(content)
        try:
            read_weights(path)
        except DataError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
    path.write_bytes(form({"a": np.zeros(3, np.float32)}, damage=b"]"))
    with pytest.raises(DataError, match="no dictionary of weights"):
        read_weights(path)
    with pytest.raises(DataError, match="no such file"):
        read_weights(tmp_path / "none.pth")


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    save_pretrained(path, random(TINY_RESNET))
    with pytest.raises(DataError, match=r"no weight layer2.2.conv1.weight"):
        load_pretrained(path, ResNet((1, 3), channels=4, block="bottleneck"))
    with pytest.raises(DataError, match=r"a weight layer2.1\.\S+, which ResNet has not"):
        load_pretrained(path, ResNet((1, 1), channels=4, block="bottleneck"))
    with pytest.raises(DataError, match=r"conv1.weight has shape \[4, 3, 7, 7\].* \[8, 3, 7, 7\]"):
        load_pretrained(path, ResNet((1, 2), channels=8, block="bottleneck"))
    with pytest.raises(ConfigError, match="torchvision has no such network"):
        load_pretrained(path, ResNet(stem="small"))
    with pytest.raises(ConfigError, match="no architecture 'resnet19'; there are resnet18"):
        load_pretrained(path, "resnet19")
    assert set(ARCHITECTURES) >= {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152"}
    path.write_bytes(b"{}")
    with pytest.raises(DataError, match="not safetensors"):
        read_weights(path)


MISSING = "torch, torchvision or timm (extra reference-tests) is not installed"
DEEP = ("resnet101", "resnet152")
VISION = ("resnet18", "resnet34", "resnet50", *DEEP, "vit")
ENCODERS = {
    "vit": ViT(8, 32, 2, 4),
    "timm resnet26": ResNet((2, 2, 2, 2), block="bottleneck"),
    "timm vit": ViT(8, 32, 2, 4),
}


def their_network(name: str) -> tuple[Any, list[Any]]:
    """A network of torchvision or timm with random numbers everywhere, and its blocks."""
    torch = pytest.importorskip("torch", reason=MISSING)
    if name in VISION:
        models = pytest.importorskip("torchvision.models", reason=MISSING)
        if name == "vit":
            model = models.VisionTransformer(32, 8, 2, 4, 32, 128)
        else:
            model = getattr(models, name)(weights=None)
    else:
        timm = pytest.importorskip("timm", reason=MISSING)
        options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
        if name == "timm vit":
            model = timm.models.VisionTransformer(**options)
        else:
            model = timm.create_model(name.removeprefix("timm "))
    randomise(torch, model)
    places = {"vit": ["encoder.layers"], "timm vit": ["blocks"]}
    groups = places.get(name, [f"layer{n}" for n in range(1, 5)])
    return model.eval(), [block for group in groups for block in model.get_submodule(group)]


def randomise(torch: Any, model: Any) -> None:
    """Every parameter and every statistic, so that none can be left out or taken for another."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.dim() > 1:
            tensor.normal_(0, tensor[0].numel() ** -0.5)
        elif name.endswith(("weight", "running_var")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.uniform_(-0.5, 0.5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name",
    [
        *(name for name in VISION if name not in DEEP),
        *(pytest.param(name, marks=pytest.mark.slow) for name in DEEP),
        "timm resnet26",
        "timm vit",
    ],
)
def test_torchvision_and_timm_give_the_same_layer_by_layer(name: str, tmp_path: Path) -> None:
    model, blocks = their_network(name)
    torch = pytest.importorskip("torch")
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save(weights, tmp_path / "weights.pth")
    pretrained = load_pretrained(tmp_path / "weights.pth", ENCODERS.get(name, name), image_size=32)
    # torchvision's older files have the form of before PyTorch 1.6.
    torch.save(weights, tmp_path / "earlier.pth", _use_new_zipfile_serialization=False)
    earlier = read_weights(tmp_path / "earlier.pth")
    assert earlier.keys() == weights.keys()
    assert all(np.array_equal(earlier[key], value.numpy()) for key, value in weights.items())
    seen: list[Any] = []
    for block in blocks:
        block.register_forward_hook(lambda module, inputs, out: seen.append(out.numpy()))
    for last in ("fc", "head", "heads"):
        if hasattr(model, last):
            setattr(model, last, torch.nn.Identity())
    x = np.random.default_rng(1).normal(size=(2, 32, 32, 3))
    # The same numbers in float64: what differs is then more than rounding.
    with torch.no_grad():
        expected = model.double()(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    result, kept = output(pretrained, x, jnp.float64, capture_intermediates=True)
    assert len(seen) == len(blocks)
    vision = isinstance(pretrained.encoder, ViT)
    title, tolerance = "block_{}" if vision else "_Block_{}", 1e-9
    for index, theirs in enumerate(seen):
        (found,) = kept["intermediates"][title.format(index)]["__call__"]
        theirs = theirs if vision else theirs.transpose(0, 2, 3, 1)
        assert np.abs(found - theirs).max() < tolerance * np.abs(theirs).max(), index
    assert result.shape == expected.shape == (2, pretrained.encoder.width)
    assert np.abs(result - expected).max() < tolerance * np.abs(expected).max()
    # And back: what is written here is what torchvision reads.
    if name == "timm vit":
        return
    save = pytest.importorskip("safetensors.torch")
    save_pretrained(tmp_path / "back.safetensors", pretrained)
    other, _ = their_network(name)
    for tensor in other.state_dict().values():
        tensor.zero_()
    written = save.load_file(tmp_path / "back.safetensors")
    missing, unexpected = other.load_state_dict(written, strict=False)
    aside = ("fc.", "heads.")
    assert unexpected == []
    assert all(part.startswith(aside) for part in missing), missing
    for key, ours in other.state_dict().items():
        if not key.startswith(aside):
            assert torch.equal(ours, weights[key]), key
