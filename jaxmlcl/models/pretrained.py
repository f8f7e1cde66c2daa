"""Weights of torchvision and timm, to and from encoders: safetensors, or state dicts of PyTorch.

A state dict is a ZIP archive of arrays and a program for a stack machine that puts them together.
That program is read here, a few of its words, and never run: what is more than arrays in
dictionaries is refused.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxmlcl.errors import ConfigError, DataError
from jaxmlcl.io import writing
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
        found = _state_dict(path)
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


# Types of PyTorch's storages.
_STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


# Words that stand for a text or a number.
_PLAIN = frozenset(
    (
        *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    )
)
# How a file begins that torch.save wrote before PyTorch 1.6: torchvision's of the time are still
# handed out.
_EARLIER = 0x1950A86A20F9469CFC6C


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str


class _Tensor(NamedTuple):
    """An array before its storage is read; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# What damaged files make zipfile raise, and what is put together from them.
_UNREADABLE = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
)


class _Mark:
    """Where a group of values on the stack begins."""


def _state_dict(path: Path) -> dict[str, Any]:
    """The dictionary of arrays that `torch.save` wrote."""
    try:
        with path.open("rb") as file:
            found = (_of_archive if zipfile.is_zipfile(file) else _of_sequence)(path)
    except _UNREADABLE as error:
        raise DataError(
            f"{path}: neither safetensors nor a state dict as torch.save writes it: {error}"
        ) from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: it holds no dictionary of weights")
    return found


def _of_archive(path: Path) -> Any:
    """What `torch.save` wrote since PyTorch 1.6: an archive with a file for each storage."""
    with zipfile.ZipFile(path) as archive:
        (program,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = program[: -len("data.pkl")]
        if archive.testzip() is not None:
            raise DataError(f"{path}: damaged: {archive.testzip()}")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise DataError(f"{path}: written on a machine of another byte order")
        found = _Machine(path).run(io.BytesIO(archive.read(program)))
        return _filled(found, lambda storage: archive.read(f"{folder}data/{storage.key}"))


def _of_sequence(path: Path) -> Any:
    """What it wrote before: five pickles, then for each storage its length and its content."""
    with path.open("rb") as file:
        try:
            known = _Machine(path).run(file) == _EARLIER
        except DataError:
            known = False
        if not known:
            raise ValueError("it begins as none of its forms; PyTorch may read it and save it anew")
        _Machine(path).run(file)  # the version of this form
        if _Machine(path).run(file).get("little_endian") is not True:
            raise DataError(f"{path}: written on a machine of another byte order")
        machine = _Machine(path)
        found = machine.run(file)
        places = {}
        for key in _Machine(path).run(file):
            size = int.from_bytes(file.read(8), "little") * machine.storages[key].itemsize
            places[key] = (file.tell(), size)
            file.seek(size, os.SEEK_CUR)

        def read(storage: _Storage) -> bytes:
            start, size = places[storage.key]
            file.seek(start)
            content = file.read(size)
            if len(content) != size:
                raise ValueError("it ends before its time")
            return content

        return _filled(found, read)


def _filled(found: Any, read: Callable[[_Storage], bytes]) -> Any:
    """Dictionaries, at any depth, with arrays in place of what is said of them."""
    if isinstance(found, dict):
        return {name: _filled(value, read) for name, value in found.items()}
    if not isinstance(found, _Tensor):
        return found
    storage, offset, shape, strides = found
    flat = np.frombuffer(read(storage), storage.dtype)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    size = int(np.prod(shape, dtype=np.int64))
    if min((*shape, *strides, offset)) < 0 or (size and last >= len(flat)):
        raise ValueError(f"an array of shape {shape} beyond its storage")
    steps = tuple(step * storage.dtype.itemsize for step in strides)
    view = np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)
    return view.copy()


class _Machine:
    """Reads the words of a state dict's program: dictionaries, tuples, numbers, texts, arrays."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.storages: dict[str, np.dtype] = {}
        self._stack: list[Any] = []
        self._memory: dict[int, Any] = {}

    def run(self, program: BinaryIO) -> Any:
        """What the program puts together; the file is left where it ends.

        Raises:
          DataError: a word that state dicts do not need.
        """
        stack, memory = self._stack, self._memory
        try:
            for opcode, found, _ in pickletools.genops(program):
                argument: Any = found
                word = opcode.name
                if word in ("PROTO", "FRAME"):
                    continue
                if word == "STOP":
                    return stack.pop()
                if word in _PLAIN:
                    stack.append(argument)
                elif word in ("NEWTRUE", "NEWFALSE", "NONE"):
                    stack.append({"NEWTRUE": True, "NEWFALSE": False, "NONE": None}[word])
                elif word in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
                    stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list}.get(word, tuple)())
                elif word == "MARK":
                    stack.append(_Mark())
                elif word in ("TUPLE1", "TUPLE2", "TUPLE3"):
                    count = int(word[-1])
                    stack[-count:] = [tuple(stack[-count:])]
                elif word == "TUPLE":
                    stack.append(tuple(self._group()))
                elif word in ("APPEND", "APPENDS"):
                    values = self._group() if word == "APPENDS" else [stack.pop()]
                    self._of(list).extend(values)
                elif word == "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    self._of(dict)[key] = value
                elif word == "SETITEMS":
                    values = self._group()
                    self._of(dict).update(zip(values[::2], values[1::2], strict=True))
                elif word in ("BINPUT", "LONG_BINPUT"):
                    memory[argument] = stack[-1]
                elif word == "MEMOIZE":
                    memory[len(memory)] = stack[-1]
                elif word in ("BINGET", "LONG_BINGET"):
                    stack.append(memory[argument])
                elif word == "GLOBAL":
                    stack.append(_Global(argument.replace(" ", ".")))
                elif word == "BINPERSID":
                    stack.append(self._storage(stack.pop()))
                elif word == "REDUCE":
                    values, function = stack.pop(), stack.pop()
                    stack.append(self._made(function, values))
                elif word == "BUILD":
                    # The state of an ordered dictionary: versions of modules.
                    stack.pop()
                    self._of(dict)
                else:
                    raise self._refused(word)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{self._path}: damaged state dict: {error}") from None
        raise DataError(f"{self._path}: the state dict ends before its time")

    def _refused(self, what: str) -> DataError:
        return DataError(
            f"{self._path}: it holds more than weights ({what[:60]}), and nothing is unpickled; "
            "save model.state_dict(), or safetensors"
        )

    def _group(self) -> list[Any]:
        place = max(i for i, value in enumerate(self._stack) if isinstance(value, _Mark))
        values = self._stack[place + 1 :]
        del self._stack[place:]
        return values

    def _of(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise self._refused(type(self._stack[-1]).__name__)
        return self._stack[-1]

    def _storage(self, identity: Any) -> _Storage:
        kind, storage, key = identity[:3]
        name = storage.name.rpartition(".")[2] if isinstance(storage, _Global) else ""
        if kind != "storage" or name not in _STORAGES or not re.fullmatch(r"\w+", str(key)):
            raise self._refused(name or str(kind))
        if len(identity) > 5 and identity[5] is not None:
            raise self._refused("a view of a storage")
        self.storages[str(key)] = _STORAGES[name]
        return _Storage(_STORAGES[name], str(key))

    def _made(self, function: Any, values: Any) -> Any:
        name = function.name if isinstance(function, _Global) else type(function).__name__
        if name == "collections.OrderedDict":
            # Python 2 gave it its pairs, later ones add them.
            return dict(*values)
        if name == "torch._utils._rebuild_parameter":
            return values[0]
        rebuild = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
        if name in rebuild and isinstance(values[0], _Storage):
            return _Tensor(*values[:4])
        raise self._refused(name)
