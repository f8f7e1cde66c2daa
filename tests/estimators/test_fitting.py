"""How estimators are fitted: shared programs, held-out rows, thresholds and progress."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from jaxmlcl.estimators import (
    BCEClassifier,
    CGMVAEClassifier,
    MLkNNClassifier,
    MulSupConClassifier,
    MultiLabelClassifier,
)
from jaxmlcl.evaluation import choose_thresholds, multilabel_metrics
from jaxmlcl.training import arrays
from tests.estimators.cases import SMALL, rows

NETWORKS = pytest.mark.parametrize("name", ["MulSupCon", "BCE", "C-GMVAE"])


@NETWORKS
@pytest.mark.parametrize("masked", [False, True], ids=["known", "masked"])
def test_padding_changes_rounding_only(name: str, masked: bool) -> None:
    # 11 features become 12, 3 labels 8.
    x, y = rows(70, 11)
    mask = np.random.default_rng(2).random(y.shape) < 0.8 if masked else None
    found: list[Any] = []
    for bucketed in (True, False):
        few = {"steps": 20} | ({"pretraining_steps": 10} if name == "MulSupCon" else {})
        fitted = clone(SMALL[name]).set_params(bucketed=bucketed, weight_decay=1e-3, **few)
        found.append(fitted.fit(x, y, label_mask=mask))
    assert found[0]._network.padded == (12, 8)
    assert found[1]._network.padded == (11, 3)
    for method in ("predict_proba", "transform", "decision_function"):
        one, other = (getattr(fitted, method)(x) for fitted in found)
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)
    losses = [[outcome.loss for outcome in fitted.stages_.values()] for fitted in found]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def leaf(tree: Any, path: str) -> np.ndarray:
    for name in path.split("/"):
        tree = tree[name]
    return np.asarray(tree)


@pytest.mark.parametrize(
    ("name", "inputs", "labels"),
    [
        ("MulSupCon", ["encoder/Dense_0/kernel"], ["classifier/Dense_0/kernel"]),
        ("BCE", ["encoder/Dense_0/kernel"], ["classifier/Dense_0/kernel"]),
        (
            "C-GMVAE",
            ["encoder/Dense_0/kernel", "decoder/kernel_features"],
            ["labels/embeddings"],
        ),
    ],
)
def test_what_is_padded_stays_zero(name: str, inputs: list[str], labels: list[str]) -> None:
    x, y = rows(70, 11)
    network = clone(SMALL[name]).set_params(weight_decay=1e-2).fit(x, y)._network
    for path in inputs:
        kernel = leaf(network.arrays[0], path)
        assert kernel.shape == (12, 32)
        assert not kernel[11:].any()
        assert kernel[:11].all()
    for path in labels:
        kernel = leaf(network.arrays[0], path)
        kernel = kernel if name == "C-GMVAE" else kernel.T
        assert kernel.shape == (8, 32)
        assert not kernel[3:].any()
        assert kernel[:3].any()


@NETWORKS
def test_fits_of_similar_shapes_share_what_is_compiled(name: str) -> None:
    clone(SMALL[name]).fit(*rows(70, 11))
    before = arrays._members.cache_info().misses
    sizes = {}
    for n, d, labels in ((70, 11, 3), (90, 12, 5), (200, 11, 7)):
        fitted = clone(SMALL[name]).set_params(random_state=n).fit(*rows(n, d, labels))
        assert fitted._network.padded == (12, 8)
        stage = list(fitted._stages().items())[-1]
        members = arrays._members(*stage_key(*stage))
        sizes[n] = members._run._cache_size()
    assert arrays._members.cache_info().misses == before
    assert set(sizes.values()) == {1}


def stage_key(name: str, stage: Any) -> tuple[Any, ...]:
    import jax

    return name, arrays._in_steps(stage, 1, False), (12, 8), True, 0, jax.devices()[0]


@pytest.mark.parametrize("estimator", SMALL.values(), ids=SMALL.keys())
def test_thresholds(estimator: Any) -> None:
    x, y = rows(120)
    plain = clone(estimator).fit(x, y)
    np.testing.assert_array_equal(plain.predict(x), plain.predict_proba(x) >= 0.5)
    low = clone(estimator).set_params(threshold=0.1).fit(x, y)
    np.testing.assert_array_equal(low.predict(x), low.predict_proba(x) >= 0.1)
    assert low.predict(x).sum() >= plain.predict(x).sum()
    away = np.abs(low.predict_proba(x) - 0.1) > 1e-6
    assert ((low.decision_function(x) >= 0) == low.predict(x))[away].all()
    given = clone(estimator).set_params(threshold="validation")
    other = rows(60, seed=9)
    given.fit(x, y, validation=other)
    chosen = choose_thresholds(given.predict_proba(other[0]), other[1], per="all")
    assert given.threshold_ == pytest.approx(chosen)
    # Nothing is held out where rows to choose on are given.
    np.testing.assert_array_equal(given.predict_proba(x), plain.predict_proba(x))
    held = clone(estimator).set_params(threshold="validation", validation_fraction=0.3).fit(x, y)
    assert 0 < held.threshold_ < 1
    assert np.abs(held.predict_proba(x) - plain.predict_proba(x)).max() > 1e-6


def test_too_few_rows_to_hold_out() -> None:
    x, y = rows(2)
    with pytest.raises(ValueError, match=r"too few to hold out 0\.2 of them; give validation"):
        MLkNNClassifier(threshold="validation").fit(x, y)


def test_validation_rows_are_checked() -> None:
    x, y = rows()
    for validation, message in (
        ((x,), "validation must be"),
        ((x[:, :5], y), "6 features as input"),
        ((x, y[:, :2]), "has the labels"),
        ((x, y[:, 0]), "unlike the y that is fitted"),
    ):
        with pytest.raises(ValueError, match=message):
            MLkNNClassifier().fit(x, y, validation=validation)


def test_the_best_step_is_kept() -> None:
    x, y = rows(60)
    fitted = clone(SMALL["BCE"]).set_params(select="map", validate_every=10, patience=3)
    fitted.fit(x, y, validation=rows(60, seed=4))
    outcome = fitted.stages_["bce"]
    values = {step: measured["map"] for step, measured in outcome.history}
    assert outcome.validation["map"] == max(values.values())
    assert outcome.steps < 100 or len(values) == 10


def test_progress_is_shown_where_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = rows()
    small = clone(SMALL["BCE"]).set_params(steps=2)
    small.fit(x, y)
    assert capsys.readouterr() == ("", "")
    small.set_params(verbose=1).fit(x, y)
    shown = capsys.readouterr()
    assert "bce, 2 steps of 32" in shown.err
    assert shown.out == ""


def test_without_scikit_learn_the_import_says_what_to_do() -> None:
    program = """
import sys
sys.modules["sklearn"] = None
import jaxmlcl.losses
try:
    import jaxmlcl.estimators
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == (
        "ConfigError jaxmlcl.estimators needs scikit-learn, which is not installed: run "
        'pip install "scikit-learn>=1.6"'
    )


def yeast(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    from jaxmlcl.data import open_source

    found = open_source(f"vectors/yeast/yeast_official_{split}.hdf5", root=folder).arrays()
    return found["inputs"], found["labels"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "least"),
    [
        # A tenth of the default's pretraining; docs/estimators.md has the figures of all of it.
        (MulSupConClassifier(pretraining_steps=1000), 0.45),
        (CGMVAEClassifier(), 0.45),
        (BCEClassifier(), 0.48),
    ],
    ids=["MulSupCon", "C-GMVAE", "BCE"],
)
def test_on_yeast(shared_data: Path, estimator: MultiLabelClassifier, least: float) -> None:
    x, y = yeast(shared_data, "val")
    scores = clone(estimator).fit(*yeast(shared_data, "train")).predict_proba(x)
    assert multilabel_metrics(scores, y)["map"] > least
