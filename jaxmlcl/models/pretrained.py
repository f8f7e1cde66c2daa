"""Weights of torchvision, timm and MoCo to encoders, and of encoders to torchvision's names."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlcl.errors import ConfigError, DataError
from jaxmlcl.io import writing
from jaxmlcl.models._state_dict import read_state_dict
from jaxmlcl.models.encoders import Encoder, ResNet
from jaxmlcl.models.vit import ViT, vit

ARCHITECTURES: dict[str, Encoder] = {
    "resnet18": ResNet((2, 2, 2, 2)),
    "resnet34": ResNet((3, 4, 6, 3)),
    "resnet50": ResNet((3, 4, 6, 3), block="bottleneck"),
    "resnet101": ResNet((3, 4, 23, 3), block="bottleneck"),
    "resnet152": ResNet((3, 8, 36, 3), block="bottleneck"),
    "vit_s_16": vit("S"),
    "vit_b_16": vit("B"),
    "vit_l_16": vit("L"),
}


class Pretrained(NamedTuple):
    """An encoder and its weights."""

    encoder: Encoder
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    """Running means and variances; empty for encoders without."""


def load_pretrained(
    path: str | os.PathLike[str], arch: str | Encoder, *, image_size: int = 224, channels: int = 3
) -> Pretrained:
    """An encoder with the weights of a file that torchvision, timm or MoCo made.

    Of MoCo's two encoders it is the one that is trained. The last layer and what counts batches
    are left aside. Positions of a vision transformer for another image size are resized (bicubic).

    Args:
      path: `.safetensors`, or a state dict as `torch.save` writes it, which is not unpickled.
      arch: a name of `ARCHITECTURES`, or an encoder.
      image_size: side of the images that a vision transformer will see, pixels.
      channels: of the images; 3 in the files of torchvision and timm.

    Returns:
      The encoder, and its parameters and batch statistics as NumPy arrays, float32.

    Raises:
      ConfigError: no such architecture; safetensors is not installed.
      DataError: the file cannot be read, or its weights are not those of the architecture.

    Example:
      >>> load_pretrained("none.safetensors", "resnet19")
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.ConfigError: no architecture 'resnet19'; there are resnet18, resnet34, ...
    """
    if isinstance(arch, str):
        if arch not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ConfigError(f"no architecture {arch!r}; there are {known}")
        arch = ARCHITECTURES[arch]
    found = {_torchvision_name(name): array for name, array in _query(read_weights(path)).items()}
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for entry in _entries(arch):
        if entry.name not in found:
            raise DataError(f"{path}: no weight {entry.name}, which {_title(arch)} has")
        array = np.asarray(found.pop(entry.name)).astype(np.float32)
        if entry.name == _POSITIONS and isinstance(arch, ViT):
            array = _resized(array, image_size // arch.patch)
        _set(variables, entry.path, entry.to_flax(array))
    left = [name for name in found if not _ASIDE.search(name)]
    if left:
        raise DataError(f"{path}: a weight {left[0]}, which {_title(arch)} has not")
    _check_shapes(variables, arch, (1, image_size, image_size, channels), path)
    return Pretrained(arch, variables["params"], variables["batch_stats"])


def save_pretrained(path: str | os.PathLike[str], pretrained: Pretrained) -> None:
    """Write an encoder's weights as safetensors with torchvision's names, whole or not at all.

    Raises:
      ConfigError: an encoder that torchvision has no names for; safetensors is not installed.
    """
    content = _safetensors().save(named_weights(pretrained))
    with writing(path) as file:
        file.write(content)


def named_weights(pretrained: Pretrained) -> dict[str, np.ndarray]:
    """An encoder's weights by torchvision's names, with the axes that PyTorch wants.

    Raises:
      ConfigError: an encoder that torchvision has no names for.

    Example:
      >>> encoder = ResNet((1,), channels=4)
      >>> variables = encoder.build(jnp.float32).init(
      ...     jax.random.key(0), jnp.ones((1, 8, 8, 3)), False
      ... )
      >>> named = named_weights(Pretrained(encoder, **variables))
      >>> named["conv1.weight"].shape, named["layer1.0.bn2.running_var"].shape
      ((4, 3, 7, 7), (4,))
    """
    variables = {"params": pretrained.params, "batch_stats": pretrained.batch_stats}
    return {
        entry.name: np.ascontiguousarray(entry.to_torch(_get(variables, entry.path)))
        for entry in _entries(pretrained.encoder)
    }


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of a file of weights, by the names that it gives them.

    Args:
      path: `.safetensors`, or a state dict as `torch.save` writes it, or did before PyTorch 1.6. A
        dictionary under `state_dict` or `model` is taken for the whole, and `module.` before names
        is dropped.

    Raises:
      ConfigError: safetensors is not installed.
      DataError: the file cannot be read, or holds more than arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file of weights")
    if path.suffix == ".safetensors":
        try:
            found: Any = _safetensors().load(path.read_bytes())
        except ConfigError:
            raise
        except Exception as error:
            raise DataError(f"{path}: not safetensors: {error}") from None
    else:
        found = read_state_dict(path)
        for name in ("state_dict", "model"):
            if isinstance(found.get(name), dict):
                found = found[name]
        found = {name: array for name, array in found.items() if isinstance(array, np.ndarray)}
    return {re.sub(r"^module\.", "", name): array for name, array in found.items()}


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One array: where it is here, what it is called there, and how its axes differ."""

    path: tuple[str, ...]
    name: str
    kind: str = "as it is"

    def to_flax(self, array: np.ndarray) -> np.ndarray:
        if self.kind == "convolution":
            return array.transpose(2, 3, 1, 0)
        return array.T if self.kind == "linear" else array

    def to_torch(self, array: Any) -> np.ndarray:
        array = np.asarray(array)
        if self.kind == "convolution":
            return array.transpose(3, 2, 0, 1)
        return array.T if self.kind == "linear" else array


_POSITIONS = "encoder.pos_embedding"
# The classifier, and counters of batches.
_ASIDE = re.compile(r"(^|\.)(fc|head|heads|classifier|pre_logits)\.|num_batches_tracked$")
# timm's names of a vision transformer, and earlier ones of torchvision.
_NAMES = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", _POSITIONS),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"^norm\.", "encoder.ln."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.(weight|bias)$", r".self_attention.in_proj_\1"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.(?:fc1|linear_1)\.", ".mlp.0."),
    (r"\.mlp\.(?:fc2|linear_2)\.", ".mlp.3."),
)


# The names that MoCo's programs give the encoder that is trained, up to its second version and
# from the third.
_QUERY = ("encoder_q.", "base_encoder.")


def _query(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The query encoder's weights in a file of MoCo, which holds a key encoder and a queue too."""
    for prefix in _QUERY:
        if any(name.startswith(prefix) for name in weights):
            return {
                name.removeprefix(prefix): array
                for name, array in weights.items()
                if name.startswith(prefix)
            }
    return weights


def _torchvision_name(name: str) -> str:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _entries(encoder: Encoder) -> Iterator[_Entry]:
    if isinstance(encoder, ResNet) and (encoder.stem, encoder.norm) == ("imagenet", "batch"):
        yield from _resnet(encoder)
    elif isinstance(encoder, ViT):
        yield from _vit(encoder)
    else:
        raise ConfigError(
            f"{_title(encoder)}: torchvision has no such network; a ResNet with the ImageNet stem "
            "and batch normalisation, or a ViT, is needed"
        )


def _title(encoder: Encoder) -> str:
    names = [name for name, known in ARCHITECTURES.items() if known == encoder]
    return names[0] if names else type(encoder).__name__


def _resnet(encoder: ResNet) -> Iterator[_Entry]:
    yield from _convolution((), 0, "conv1", "bn1")
    layers = 2 if encoder.block == "basic" else 3
    index = 0
    for group, depth in enumerate(encoder.depths):
        for position in range(depth):
            here, there = (f"_Block_{index}",), f"layer{group + 1}.{position}"
            for layer in range(layers):
                names = (f"{there}.conv{layer + 1}", f"{there}.bn{layer + 1}")
                yield from _convolution(here, layer, *names)
            # The first block of a group changes the shape, but for the basic ones of the first.
            if position == 0 and (group > 0 or encoder.block == "bottleneck"):
                names = (f"{there}.downsample.0", f"{there}.downsample.1")
                yield from _convolution(here, layers, *names)
            index += 1


def _convolution(
    here: tuple[str, ...], number: int, convolution: str, norm: str
) -> Iterator[_Entry]:
    yield _Entry(
        ("params", *here, f"Conv_{number}", "kernel"), f"{convolution}.weight", "convolution"
    )
    place = (*here, f"BatchNorm_{number}")
    for collection, ours, theirs in (
        ("params", "scale", "weight"),
        ("params", "bias", "bias"),
        ("batch_stats", "mean", "running_mean"),
        ("batch_stats", "var", "running_var"),
    ):
        yield _Entry((collection, *place, ours), f"{norm}.{theirs}")


def _vit(encoder: ViT) -> Iterator[_Entry]:
    yield _Entry(("params", "token"), "class_token")
    yield _Entry(("params", "positions"), _POSITIONS)
    yield _Entry(("params", "patches", "kernel"), "conv_proj.weight", "convolution")
    yield _Entry(("params", "patches", "bias"), "conv_proj.bias")
    for index in range(encoder.depth):
        here, there = ("params", f"block_{index}"), f"encoder.layers.encoder_layer_{index}"
        for ours, theirs in (("norm_1", "ln_1"), ("norm_2", "ln_2")):
            yield _Entry((*here, ours, "scale"), f"{there}.{theirs}.weight")
            yield _Entry((*here, ours, "bias"), f"{there}.{theirs}.bias")
        for ours, weight, bias in (
            ("qkv", "self_attention.in_proj_weight", "self_attention.in_proj_bias"),
            ("out", "self_attention.out_proj.weight", "self_attention.out_proj.bias"),
            ("up", "mlp.0.weight", "mlp.0.bias"),
            ("down", "mlp.3.weight", "mlp.3.bias"),
        ):
            yield _Entry((*here, ours, "kernel"), f"{there}.{weight}", "linear")
            yield _Entry((*here, ours, "bias"), f"{there}.{bias}")
    yield _Entry(("params", "norm", "scale"), "encoder.ln.weight")
    yield _Entry(("params", "norm", "bias"), "encoder.ln.bias")


def _set(tree: dict[str, Any], path: tuple[str, ...], value: np.ndarray) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = np.ascontiguousarray(value)


def _get(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = tree
    for part in path:
        found = found[part]
    return found


def _resized(positions: np.ndarray, side: int) -> np.ndarray:
    """Positions [1, 1 + n * n, D] for side * side patches; that of the class token stays."""
    token, grid = positions[:, :1], positions[:, 1:]
    before = math.isqrt(grid.shape[1])
    if before == side or before * before != grid.shape[1]:
        return positions
    grid = grid.reshape(1, before, before, -1)
    changed = jax.image.resize(grid, (1, side, side, grid.shape[-1]), "bicubic")
    return np.concatenate([token, np.asarray(changed).reshape(1, side * side, -1)], axis=1)


def _check_shapes(
    variables: dict[str, Any],
    encoder: Encoder,
    images: tuple[int, ...],
    path: str | os.PathLike[str],
) -> None:
    def init() -> Any:
        return encoder.build(jnp.float32).init(jax.random.key(0), jnp.zeros(images), False)

    expected = jax.eval_shape(init)
    for entry in _entries(encoder):
        wanted, found = _get(expected, entry.path).shape, _get(variables, entry.path).shape
        if wanted != found:
            raise DataError(
                f"{path}: {entry.name} has shape {list(entry.to_torch(np.empty(found)).shape)}, "
                f"{_title(encoder)} wants {list(entry.to_torch(np.empty(wanted)).shape)}"
            )


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ModuleNotFoundError:
        raise ConfigError(
            "weights in this form need safetensors, which is not installed: run pip install "
            '"jaxmlcl[weights]"'
        ) from None
    return safetensors.numpy
