"""Fitted estimators as files: the same predictions, whole or not at all, never pickle."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from jaxmlcl import estimators
from jaxmlcl.errors import CheckpointError, ConfigError
from jaxmlcl.estimators import MultiLabelClassifier
from tests.estimators.cases import SMALL, rows

each = pytest.mark.parametrize("estimator", SMALL.values(), ids=SMALL.keys())


def frames() -> tuple[Any, Any]:
    x, y = rows()
    names = [f"x{index}" for index in range(6)]
    return pd.DataFrame(x, columns=names), pd.DataFrame(y, columns=["sea", "sky", "sun"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MultiLabelClassifier]:
    fitted = clone(SMALL["BCE"]).fit(*frames())
    path = tmp_path_factory.mktemp("saved") / "bce"
    fitted.save(path)
    return path, fitted


@each
def test_what_is_loaded_predicts_the_same(estimator: MultiLabelClassifier, tmp_path: Path) -> None:
    x, y = frames()
    fitted = clone(estimator).set_params(threshold="validation", random_state=np.int64(4))
    fitted.fit(x, y)
    # What was trained does not follow parameters that are set later.
    if hasattr(fitted, "hidden"):
        fitted.set_params(hidden=(7, 7))
    path = tmp_path / "folder" / "classifier"
    fitted.save(path)
    for found in (estimators.load(path), type(estimator).load(path)):
        assert type(found) is type(estimator)
        assert found.get_params() == fitted.get_params()
        assert found.threshold_ == fitted.threshold_
        np.testing.assert_array_equal(found.predict_proba(x), fitted.predict_proba(x))
        np.testing.assert_array_equal(found.predict(x), fitted.predict(x))
        assert list(found.label_names_) == ["sea", "sky", "sun"]
        assert found.score(x, y) == fitted.score(x, y)
        with pytest.raises(ValueError, match="unseen at fit time"):
            found.predict(x.rename(columns={"x0": "new"}))
        if hasattr(fitted, "transform"):
            again: Any = found
            np.testing.assert_array_equal(again.transform(x), fitted.transform(x))
    assert b"pickle" not in path.read_bytes()
    found.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@each
def test_pickle_works_too(estimator: MultiLabelClassifier) -> None:
    x, y = rows()
    fitted = clone(estimator).fit(x, y)
    found = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(found.predict_proba(x), fitted.predict_proba(x))


@pytest.mark.parametrize(
    "classes", [np.array(["no", "yes"], object), np.array(["no", "yes"]), np.array([3, 7])]
)
def test_classes_come_back_with_their_type(classes: np.ndarray, tmp_path: Path) -> None:
    x, y = rows()
    fitted = clone(SMALL["ML-kNN"]).fit(x, classes[y[:, 0]])
    fitted.save(tmp_path / "classifier")
    found = estimators.load(tmp_path / "classifier")
    assert found.classes_.dtype == fitted.classes_.dtype
    np.testing.assert_array_equal(found.predict(x), fitted.predict(x))


def refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        estimators.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_damaged_files_are_refused(saved: Any, tmp_path: Path) -> None:
    content = saved[0].read_bytes()
    path = tmp_path / "damaged"
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content), 60):
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        refused(path, "damaged|not a classifier")
    for size in (0, 10, 90, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        refused(path, "damaged|not a classifier")
    path.write_bytes(content + b"more")
    refused(path, "damaged")


def test_other_files_are_refused(saved: Any, tmp_path: Path) -> None:
    refused(tmp_path / "absent", "cannot be read")
    refused(tmp_path, "cannot be read")
    path = tmp_path / "other"
    path.write_bytes(pickle.dumps(saved[1]))
    refused(path, "not a classifier")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.npy", b"")
    refused(path, "not a classifier")
    with pytest.raises(CheckpointError, match="holds a BCEClassifier, not a MLkNNClassifier"):
        estimators.MLkNNClassifier.load(saved[0])


def test_nothing_is_unpickled(monkeypatch: pytest.MonkeyPatch, saved: Any) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, never)
    x, _ = frames()
    np.testing.assert_array_equal(estimators.load(saved[0]).predict(x), saved[1].predict(x))


def test_a_failed_save_leaves_what_was_there(
    monkeypatch: pytest.MonkeyPatch, saved: Any, tmp_path: Path
) -> None:
    path = tmp_path / "classifier"
    saved[1].save(path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxmlcl.io.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        saved[1].save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["classifier"]


def test_what_a_file_cannot_hold_is_said(tmp_path: Path) -> None:
    x, y = rows()
    fitted = clone(SMALL["ML-kNN"]).set_params(random_state=np.random.RandomState(0)).fit(x, y)
    with pytest.raises(ConfigError, match="random_state is a RandomState, which a file cannot"):
        fitted.save(tmp_path / "classifier")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFittedError):
        clone(fitted).save(tmp_path / "classifier")
