"""Learners of distributions: optimality, loops, and scikit-learn's ways."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxmlcl.enhancement import SABFGS, AAkNN
from jaxmlcl.errors import ConfigError


def made(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(n, 3))
    logits = x @ generator.normal(size=(3, 4)) + [0.5, 0.0, -0.5, 0.2]
    exponentials = np.exp(logits)
    return x, exponentials / exponentials.sum(1, keepdims=True)


def test_maximum_entropy_recovers_its_own_model() -> None:
    x, d = made()
    learner = SABFGS().fit(x[:40], d[:40])
    np.testing.assert_allclose(learner.predict(x[40:]), d[40:], atol=1e-4)
    assert learner.coef_.shape == (4, 3)
    assert learner.intercept_.shape == (4,)


@pytest.mark.parametrize("intercept", [True, False])
def test_moments_match_at_the_maximum(intercept: bool) -> None:
    x, _ = made()
    d = np.random.default_rng(1).dirichlet(np.ones(4), len(x))
    learner = SABFGS(fit_intercept=intercept, tolerance=1e-9).fit(x, d)
    rest = learner.predict(x) - d
    np.testing.assert_allclose(x.T @ rest, 0, atol=1e-5)
    assert np.allclose(rest.sum(0), 0, atol=1e-5) == intercept
    assert (learner.intercept_ == 0).all() != intercept


def test_zeros_among_degrees() -> None:
    learner = SABFGS().fit([[0.0], [1.0]], [[1.0, 0.0], [0.0, 1.0]])
    assert learner.predict([[0.0], [1.0]]).argmax(1).tolist() == [0, 1]
    assert np.isfinite(learner.coef_).all()


def test_nearest_rows_are_averaged() -> None:
    x, d = made()
    found = AAkNN(neighbours=7).fit(x[:40], d[:40]).predict(x[40:])
    for row, got in zip(x[40:], found, strict=True):
        order = np.argsort(((x[:40] - row) ** 2).sum(1))[:7]
        np.testing.assert_allclose(got, d[order].mean(0))


@pytest.mark.parametrize("learner", [SABFGS(max_iterations=50), AAkNN(neighbours=3)])
def test_scikit_learns_ways(learner: SABFGS | AAkNN) -> None:
    x, d = made()
    copy = clone(learner)
    assert copy.get_params() == learner.get_params()
    found = cross_val_predict(make_pipeline(StandardScaler(), copy), x, d, cv=3)
    assert found.shape == d.shape
    np.testing.assert_allclose(found.sum(1), 1)
    assert learner.fit(x, d).score(x, d) > 0.5


def test_misuse_is_refused() -> None:
    x, d = made()
    for learner in (SABFGS(), AAkNN()):
        with pytest.raises(ValueError, match=r"distributions\[1\] is .* sum to 1"):
            learner.fit(x[:2], [[0.5, 0.5], [0.7, 0.7]])
        with pytest.raises(ValueError, match="at least 0"):
            learner.fit(x[:1], [[1.5, -0.5]])
        with pytest.raises(ValueError, match="distributions has shape"):
            learner.fit(x, d[:3])
        with pytest.raises(ValueError, match=r"features has shape \(2, 1\); expected \[n, 3\]"):
            learner.fit(x, d).predict([[0.0], [1.0]])
        with pytest.raises(ValueError, match=r"features\[0, 2\] is nan"):
            learner.predict([[0.0, 1.0, np.nan]])
    with pytest.raises(ConfigError, match="AAkNN: 5 neighbours need as many rows, not 2"):
        AAkNN().fit(x[:2], d[:2])
    with pytest.raises(ConfigError, match="max_iterations must be a whole number"):
        SABFGS(max_iterations=0).fit(x, d)
