"""What goes into estimators: kinds of data, unknown labels, and bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError

from jaxmlcl.errors import ConfigError
from jaxmlcl.estimators import MultiLabelClassifier
from tests.estimators.cases import SMALL, rows

each = pytest.mark.parametrize("estimator", SMALL.values(), ids=SMALL.keys())
KNN = SMALL["ML-kNN"]


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@each
def test_sparse_data_are_the_dense_ones(estimator: MultiLabelClassifier) -> None:
    x, y = rows()
    x[np.abs(x) < 0.5] = 0.0
    dense = clone(estimator).fit(x, y).predict_proba(x)
    for kind in (sparse.csr_matrix, sparse.csc_array, sparse.coo_array):
        fitted = clone(estimator).fit(kind(x), kind(y))
        np.testing.assert_allclose(fitted.predict_proba(kind(x)), dense, atol=1e-4)
        assert fitted.predict(kind(x)).shape == y.shape


@each
def test_frames_keep_their_names(estimator: MultiLabelClassifier) -> None:
    x, y = rows()
    frame = pd.DataFrame(x, columns=[f"x{index}" for index in range(6)])
    labels = pd.DataFrame(y, columns=["sea", "sky", "sun"])
    fitted = clone(estimator).fit(frame, labels)
    assert list(fitted.feature_names_in_) == list(frame.columns)
    assert list(fitted.label_names_) == ["sea", "sky", "sun"]
    np.testing.assert_array_equal(
        fitted.predict_proba(frame), clone(estimator).fit(x, y).predict_proba(x)
    )
    with pytest.raises(ValueError, match="same order as they were in fit"):
        fitted.predict(frame[frame.columns[::-1]])
    with pytest.raises(ValueError, match="unseen at fit time"):
        fitted.predict(frame.rename(columns={"x0": "new"}))


def test_frames_of_mixed_types_and_their_own_missing_values() -> None:
    x, y = rows()
    mixed = pd.DataFrame({"a": y[:, 0].astype(bool), "b": y[:, 1].astype(float), "c": y[:, 2]})
    expected = clone(KNN).fit(x, y).predict_proba(x)
    np.testing.assert_array_equal(clone(KNN).fit(x, mixed).predict_proba(x), expected)
    nullable = pd.DataFrame(y, columns=["a", "b", "c"]).astype("Int64")
    nullable.iloc[3, 1] = pd.NA
    with pytest.raises(ValueError, match=r"NaN: row 3, label 'b'; say with label_mask") as error:
        clone(KNN).fit(x, nullable)
    one_line(error)
    clone(KNN).fit(x, nullable, label_mask=nullable.notna())


@each
def test_unknown_labels_may_be_anything(estimator: MultiLabelClassifier) -> None:
    x, y = rows()
    mask = np.random.default_rng(1).random(y.shape) < 0.7
    found = [
        clone(estimator).fit(x, np.where(mask, y, filled), label_mask=mask).predict_proba(x)
        for filled in (0.0, 1.0, np.nan, 7.0)
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    assert ((found[0] > 0.5) == y).mean() > 0.85
    full = clone(estimator).fit(x, y, label_mask=np.ones(y.shape, bool)).predict_proba(x)
    np.testing.assert_allclose(full, clone(estimator).fit(x, y).predict_proba(x), atol=1e-5)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((80, 2), bool), r"label_mask has shape \(80, 2\); expected \(80, 3\)"),
        (np.zeros((80, 3), bool), "no label is known"),
        (np.full((80, 3), 2), "other values than True and False"),
    ],
)
def test_masks_that_do_not_fit(mask: Any, message: str) -> None:
    x, y = rows()
    with pytest.raises(ValueError, match=message) as error:
        clone(KNN).fit(x, y, label_mask=mask)
    one_line(error)


@each
def test_classes_in_one_dimension(estimator: MultiLabelClassifier) -> None:
    x, y = rows()
    words = np.array(["no", "yes"], object)[y[:, 0]]
    fitted = clone(estimator).fit(x, words)
    assert list(fitted.classes_) == ["no", "yes"]
    assert (fitted.predict(x) == words).mean() > 0.9
    assert fitted.predict_proba(x).shape == (80, 2)
    assert ((fitted.decision_function(x) > 0) == (fitted.predict(x) == "yes")).all()
    three = y[:, 0] + 2 * (y[:, 0] * y[:, 1])
    fitted = clone(estimator).fit(x, three)
    assert list(fitted.classes_) == [0, 1, 3]
    assert (fitted.predict(x) == three).mean() > 0.8
    np.testing.assert_allclose(fitted.predict_proba(x).sum(1), 1.0)


@each
def test_one_label_is_one_dimension(estimator: MultiLabelClassifier) -> None:
    x, y = rows()
    with pytest.warns(DataConversionWarning):
        fitted = clone(estimator).fit(x, y[:, :1])
    np.testing.assert_array_equal(fitted.predict(x), clone(estimator).fit(x, y[:, 0]).predict(x))


def test_rows_of_unknown_class_are_left_out() -> None:
    x, y = rows()
    words = np.array(["no", "yes"], object)[y[:, 0]]
    known = np.arange(80) % 4 > 0
    words[~known] = None
    fitted = clone(KNN).fit(x, words, label_mask=known)
    assert list(fitted.classes_) == ["no", "yes"]
    with pytest.raises(ValueError, match="say with label_mask which rows") as error:
        clone(KNN).fit(x, words)
    one_line(error)


@each
def test_labels_that_never_occur_and_constant_features(estimator: MultiLabelClassifier) -> None:
    x, y = rows()
    y[:, 1] = 0
    x[:, 4] = 0.1 + 0.2
    fitted = clone(estimator).fit(x, y)
    scores = fitted.predict_proba(x)
    assert np.isfinite(scores).all()
    assert not fitted.predict(x)[:, 1].any()
    assert (fitted.predict(x)[:, 0] == y[:, 0]).mean() > 0.9
    # What was constant carries nothing, whatever it is later.
    x[:, 4] = 1e6
    np.testing.assert_allclose(fitted.predict_proba(x), scores, atol=1e-6)


@each
def test_bad_data_are_refused_in_one_line(estimator: MultiLabelClassifier) -> None:
    x, y = rows()
    fitted = clone(estimator).fit(x, y)
    holed = x.copy()
    holed[2, 3] = np.nan
    far = x.copy()
    far[2, 3] = np.inf
    cases: list[tuple[Any, Any, str]] = [
        (x[:1], y[:1], "minimum of 2"),
        (x[:, :0], y, "0 feature"),
        (x, y[:50], "inconsistent numbers of samples"),
        (x, np.where(np.arange(80)[:, None] == 3, np.nan, y), "NaN: row 3, label 'label_0'"),
        (x, np.where(np.arange(80)[:, None] == 3, 2, y), "row 3, label 'label_0' of y is 2"),
        (x, np.full(80, "same"), "one class, 'same'"),
        (x, y[:, :0], r"shape \(80, 0\)"),
        (x, None, "target y is None"),
        (x * 1e200, y, "too large"),
    ]
    for features, labels, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            clone(estimator).fit(features, labels)
        one_line(error)
    for features, message in ((holed, "contains NaN"), (far, "contains infinity")):
        for call in (fitted.predict, lambda rows: clone(estimator).fit(rows, y)):
            with pytest.raises(ValueError, match=message):
                call(features)
    with pytest.raises(ValueError, match="6 features as input"):
        fitted.predict(x[:, :5])
    with pytest.raises(NotFittedError):
        clone(estimator).predict(x)


@each
def test_a_fit_that_fails_leaves_what_was_fitted(estimator: MultiLabelClassifier) -> None:
    x, y = rows()
    fitted = clone(estimator).fit(x, y)
    before = fitted.predict_proba(x)
    for bad in (np.full(80, 1), np.full(y.shape, 2)):
        with pytest.raises(ValueError, match=r"one class|is 2"):
            fitted.fit(x + 5.0, bad)
        np.testing.assert_array_equal(fitted.predict_proba(x), before)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("threshold", 0.0, "threshold must be a number between 0 and 1"),
        ("threshold", "best", 'or "validation", not'),
        ("validation_fraction", 1.5, "validation_fraction must be"),
        ("random_state", -1, "random_state must be at least 0"),
        ("hidden", "wide", "hidden must be widths"),
        ("steps", 0, "steps must be a whole number of at least 1, not 0"),
        ("pretraining_steps", 1.5, "pretraining_steps must be"),
        ("queue_capacity", 8, "queue_capacity 8 is below the batch size"),
        ("temperature", 0.0, "temperature must be positive"),
        ("weighting", "none", "weighting"),
        ("select", "best", "select must be"),
        ("encoder_rate", -1.0, "finite and at least 0"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(name: str, value: Any, message: str) -> None:
    x, y = rows()
    estimator = clone(SMALL["MulSupCon"]).set_params(**{name: value})
    with pytest.raises(ConfigError, match=message) as error:
        estimator.fit(x, y)
    one_line(error)


def test_bad_parameters_of_ml_knn() -> None:
    x, y = rows()
    for changes, message in (
        ({"neighbours": 0}, "neighbours must be a whole number"),
        ({"smoothing": 0.0}, "smoothing must be positive"),
        ({"metric": "manhattan"}, "metric must be"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            clone(KNN).set_params(**changes).fit(x, y)
        one_line(error)


def test_fewer_rows_than_neighbours() -> None:
    fitted = clone(KNN).fit([[0.0], [1.0], [2.0]], [[1, 0], [1, 1], [0, 1]])
    assert fitted.neighbours_ == 2
    assert fitted.predict_proba([[0.0]]).shape == (1, 2)
