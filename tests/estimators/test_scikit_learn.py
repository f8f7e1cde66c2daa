"""scikit-learn's own checks, and its pipelines, searches and scorers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import check_estimator

from jaxmlcl.estimators import MultiLabelClassifier
from tests.estimators.cases import SMALL, rows

each = pytest.mark.parametrize("estimator", SMALL.values(), ids=SMALL.keys())


@pytest.mark.slow
@each
def test_every_check_of_scikit_learn_passes(estimator: MultiLabelClassifier) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(clone(estimator), on_fail=None, on_skip=None)
    failed = {row["check_name"]: row["exception"] for row in results if row["status"] == "failed"}
    assert failed == {}
    skipped = [row["check_name"] for row in results if row["status"] == "skipped"]
    assert set(skipped) <= {"check_array_api_input"}
    assert len(results) - len(skipped) >= 58
    assert not any(row["expected_to_fail"] for row in results)


@each
def test_in_a_pipeline_under_cross_validation(estimator: MultiLabelClassifier) -> None:
    x, y = rows(120)
    line = make_pipeline(MinMaxScaler(), clone(estimator))
    scores = cross_val_score(line, x, y, cv=3)
    assert scores.shape == (3,)
    assert scores.min() > 0.6
    # Subset accuracy, as ClassifierMixin has it.
    fitted = line.fit(x, y)
    assert fitted.score(x, y) == (fitted.predict(x) == y).all(1).mean()


@each
@pytest.mark.parametrize("labels", [2, 3])
def test_scorers_read_probabilities_of_labels(estimator: MultiLabelClassifier, labels: int) -> None:
    # With 2 labels scikit-learn could take the columns for the classes of one.
    x, y = rows(120, labels=labels)
    for scoring in ("roc_auc", "average_precision", "f1_micro"):
        assert cross_val_score(clone(estimator), x, y, cv=2, scoring=scoring).min() > 0.7
    predicted = cross_val_predict(clone(estimator), x, y, cv=2, method="predict_proba")
    assert predicted.shape == y.shape


def test_a_search_over_parameters() -> None:
    x, y = rows(90)
    search = GridSearchCV(clone(SMALL["ML-kNN"]), {"neighbours": [1, 5], "threshold": [0.4, 0.5]})
    search.fit(x, y)
    assert set(search.best_params_) == {"neighbours", "threshold"}
    assert search.best_score_ > 0.7
    wide = GridSearchCV(clone(SMALL["BCE"]), {"hidden": [(8,), (16,)]}, cv=2).fit(x, y)
    assert wide.best_params_["hidden"] in [(8,), (16,)]


@each
def test_parameters_and_clones(estimator: MultiLabelClassifier) -> None:
    other = clone(estimator).set_params(threshold=0.25, random_state=3)
    assert other.get_params()["threshold"] == 0.25
    assert estimator.get_params()["threshold"] == 0.5
    assert clone(other).get_params() == other.get_params()


@each
def test_same_seed_same_numbers_and_random_states_are_taken(
    estimator: MultiLabelClassifier,
) -> None:
    x, y = rows()

    def scores(state: Any) -> np.ndarray:
        return clone(estimator).set_params(random_state=state).fit(x, y).predict_proba(x)

    np.testing.assert_array_equal(scores(1), scores(1))
    first, second = (scores(np.random.RandomState(5)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    if hasattr(estimator, "transform"):
        assert np.abs(scores(1) - scores(2)).max() > 1e-6


@each
def test_masks_are_cut_with_the_rows(estimator: MultiLabelClassifier) -> None:
    x, y = rows(120)
    mask = np.ones(y.shape, bool)
    mask[::5, 1] = False
    wrong = np.where(mask, y, 1 - y)
    scores = cross_val_score(
        clone(estimator), x, wrong, cv=2, params={"label_mask": mask}, scoring="f1_micro"
    )
    assert scores.min() > 0.7


@each
def test_what_embeds_is_a_transformer(estimator: MultiLabelClassifier) -> None:
    x, y = rows()
    if not hasattr(estimator, "transform"):
        assert estimator.title == "ML-kNN"
        return
    fitted: Any = clone(estimator).fit(x, y)
    assert fitted.transform(x).shape == (80, 32)
    assert fitted.transform(x.astype(np.float32)).dtype == np.float32
    names = fitted.get_feature_names_out()
    assert len(names) == 32
    assert names[1] == f"{type(estimator).__name__.lower()}1"
