"""Fitted classifiers as files: a line with a checksum, then arrays and JSON in NumPy's NPZ."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmlcl import __version__
from jaxmlcl.errors import CheckpointError, ConfigError
from jaxmlcl.estimators._targets import Targets
from jaxmlcl.io import writing

if TYPE_CHECKING:
    from jaxmlcl.estimators._base import MultiLabelClassifier

# The first words of a file; the number changes when older programs cannot read what is written.
_MAGIC = b"jaxmlcl-estimator 1 "
_INFO = "info.json"
_LEARNT, _CLASSES = "learnt:", "classes"


def write(path: str | os.PathLike[str], estimator: MultiLabelClassifier) -> None:
    """Write a fitted classifier, whole or not at all."""
    learnt, arrays = estimator._fitted()
    targets = estimator._targets
    info = {
        "class": type(estimator).__name__,
        "jaxmlcl": __version__,
        "parameters": _encoded(estimator, estimator.get_params(deep=False)),
        "learnt": _encoded(estimator, learnt),
        "threshold": estimator.threshold_,
        "kind": targets.kind,
        "label_names": [str(name) for name in targets.names],
        "features": int(estimator.n_features_in_),
        "feature_names": None,
        "text_classes": False,
    }
    if hasattr(estimator, "feature_names_in_"):
        info["feature_names"] = list(estimator.feature_names_in_)
    stored = {_LEARNT + name: np.asarray(array) for name, array in arrays.items()}
    stored |= {"shift": estimator._shift, "scale": estimator._scale}
    if targets.classes is not None:
        classes = targets.classes
        if classes.dtype == object:
            if not all(isinstance(one, str) for one in classes):
                raise ConfigError(
                    f"{type(estimator).__name__}: a file cannot hold classes such as "
                    f"{classes[0]!r}; use numbers or text"
                )
            info["text_classes"] = True
            classes = classes.astype(str)
        stored[_CLASSES] = classes
    stored[_INFO] = np.frombuffer(json.dumps(info).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **stored)
    content = buffer.getvalue()
    with writing(path) as file:
        file.write(_MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n")
        file.write(content)


def load(path: str | os.PathLike[str]) -> MultiLabelClassifier:
    """Read a classifier of any class that its `save` wrote; nothing is unpickled.

    Args:
      path: the file.

    Raises:
      CheckpointError: it is missing, damaged, or not such a file.

    Example:
      >>> import tempfile
      >>> from jaxmlcl.estimators import MLkNNClassifier
      >>> path = tempfile.mkdtemp() + "/classifier"
      >>> X, Y = [[0.0], [1.0], [8.0], [9.0]], [[1, 0], [1, 0], [0, 1], [0, 1]]
      >>> MLkNNClassifier(neighbours=1).fit(X, Y).save(path)
      >>> load(path).predict([[0.4]])
      array([[1, 0]])
    """
    where = os.fspath(path)
    try:
        with open(path, "rb") as file:
            head, content = file.readline(200), file.read()
    except OSError as error:
        raise CheckpointError(f"{where}: cannot be read ({error.strerror})") from None
    if not head.startswith(_MAGIC):
        raise CheckpointError(f"{where}: not a classifier that this version of jaxmlcl saved")
    if head[len(_MAGIC) :].strip() != hashlib.sha256(content).hexdigest().encode():
        raise CheckpointError(f"{where}: damaged: its checksum is another; save it again")
    try:
        return _read(content)
    except (
        AttributeError,
        ConfigError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        told = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{where}: does not hold a whole classifier ({told})") from None


def _read(content: bytes) -> MultiLabelClassifier:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        stored = {name: file[name] for name in file.files}
    info = json.loads(stored.pop(_INFO).tobytes())
    known = importlib.import_module("jaxmlcl.estimators")
    if info["class"] not in known.__all__:
        raise ValueError(f"the class {info['class']!r} is not known")
    estimator = getattr(known, info["class"])(**_decoded(info["parameters"]))
    estimator._shift, estimator._scale = stored["shift"], stored["scale"]
    estimator.threshold_ = float(info["threshold"])
    estimator.n_features_in_ = info["features"]
    if info["feature_names"] is not None:
        estimator.feature_names_in_ = np.array(info["feature_names"], object)
    classes = stored.get(_CLASSES)
    if classes is not None and info["text_classes"]:
        classes = classes.astype(object)
    names = np.array(info["label_names"], object)
    estimator._targets = Targets(
        np.zeros((0, len(names)), np.uint8), None, info["kind"], classes, names
    )
    estimator._name_labels()
    arrays = {
        name.removeprefix(_LEARNT): array
        for name, array in stored.items()
        if name.startswith(_LEARNT)
    }
    estimator._restore(_decoded(info["learnt"]), arrays)
    return estimator


def _encoded(estimator: Any, value: Any, name: str = "") -> Any:
    """The value as JSON has it; tuples remain tuples."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {key: _encoded(estimator, item, key) for key, item in value.items()}
    if isinstance(value, tuple):
        return {"tuple": [_encoded(estimator, item, name) for item in value]}
    if isinstance(value, list):
        return [_encoded(estimator, item, name) for item in value]
    raise ConfigError(
        f"{type(estimator).__name__}: {name} is a {type(value).__name__}, which a file cannot "
        "hold; set it to a number or text before saving"
    )


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"tuple"}:
        return tuple(_decoded(item) for item in value["tuple"])
    return {key: _decoded(item) for key, item in value.items()}
