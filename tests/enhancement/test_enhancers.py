"""What all comparison methods promise, whatever they compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxmlcl.enhancement import ENHANCERS, FCM, GLLE, KM, LESC, LEVI, LP, Enhancer
from jaxmlcl.errors import ConfigError, UserError

# So small that each fit takes a moment.
SMALL: dict[type[Enhancer], dict[str, Any]] = {
    FCM: {"clusters": 4},
    KM: {},
    LP: {},
    GLLE: {"max_iterations": 20},
    LESC: {"max_iterations": 20},
    LEVI: {"hidden": 8, "latent": 4, "epochs": 20},
}
EVERY = pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)
# Where LEVI is compiled for shapes of its own, which takes seconds.
COMPILED = pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if kind is LEVI else ()) for kind in SMALL],
    ids=lambda kind: kind.__name__,
)


def made(n: int = 24, labels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, (n, labels))
    # One row without labels, one with all.
    y[3], y[4] = 0, 1
    return generator.normal(size=(n, 5)) + y[:, :1], y


def proper(found: np.ndarray, shape: tuple[int, ...]) -> None:
    assert found.shape == shape
    assert found.dtype == np.float64
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-12)


def test_the_registry_has_them() -> None:
    for kind in SMALL:
        assert ENHANCERS[kind.__name__.lower()] is kind
        assert kind.title.startswith(kind.__name__)


@EVERY
def test_rows_are_distributions(kind: type[Enhancer]) -> None:
    x, y = made()
    enhancer = kind(**SMALL[kind])
    found = enhancer.fit_transform(x, y)
    proper(found, y.shape)
    np.testing.assert_array_equal(found, enhancer.distributions_)
    assert enhancer.n_features_in_ == 5
    proper(kind(**SMALL[kind]).fit_transform(x.astype(np.float32), y.astype(bool)), y.shape)


@COMPILED
def test_edge_cases_are_distributions(kind: type[Enhancer]) -> None:
    x, y = made()
    for labels in (np.zeros_like(y), np.ones_like(y)):
        found = kind(**SMALL[kind]).fit_transform(x, labels)
        proper(found, y.shape)
    enhancer = kind(**SMALL[kind])
    # One row; two equal rows; features that say nothing; one label; huge and tiny features.
    proper(enhancer.fit_transform(x[:1], y[:1]), (1, 4))
    proper(enhancer.fit_transform(x[[0, 0]], y[[1, 3]]), (2, 4))
    proper(enhancer.fit_transform(np.ones_like(x), y), y.shape)
    np.testing.assert_allclose(enhancer.fit_transform(x, y[:, :1]), 1)
    proper(enhancer.fit_transform(1e6 * x, y), y.shape)
    proper(enhancer.fit_transform(1e-6 * x, y), y.shape)


@EVERY
def test_rows_without_labels_where_no_row_has_any(kind: type[Enhancer]) -> None:
    x, y = made()
    found = kind(**SMALL[kind]).fit_transform(x, np.zeros_like(y))
    if kind in (FCM, KM, LP):
        np.testing.assert_allclose(found, 0.25)


@COMPILED
def test_the_seed_decides(kind: type[Enhancer]) -> None:
    x, y = made()
    options = SMALL[kind]
    if not kind.seeded:
        assert "random_state" not in kind().get_params()
        return
    first = kind(**options, random_state=1).fit_transform(x, y)
    np.testing.assert_array_equal(first, kind(**options, random_state=1).fit_transform(x, y))
    assert np.abs(first - kind(**options, random_state=2).fit_transform(x, y)).max() > 1e-9
    several = kind(**options).fit_many(
        np.asarray(x, np.float64), y.astype(float), [np.arange(24)] * 3, [2, 1, 1]
    )
    proper(several, (3, 24, 4))
    np.testing.assert_allclose(several[1], first, atol=1e-5)
    np.testing.assert_allclose(several[2], several[1], atol=1e-6)
    assert np.abs(several[0] - several[1]).max() > 1e-9


@EVERY
def test_scikit_learns_ways(kind: type[Enhancer]) -> None:
    x, y = made()
    enhancer = kind(**SMALL[kind])
    copy = clone(enhancer)
    assert type(copy) is kind
    assert copy.get_params() == enhancer.get_params()
    for name, value in SMALL[kind].items():
        assert kind().set_params(**{name: value}).get_params()[name] == value
    scaled = StandardScaler().fit_transform(x)
    found = make_pipeline(StandardScaler(), copy).fit_transform(x, y)
    np.testing.assert_array_equal(found, enhancer.fit_transform(scaled, y))


@COMPILED
def test_rows_that_are_left_out(kind: type[Enhancer]) -> None:
    x, y = made()
    enhancer, rows = kind(**SMALL[kind]), [np.arange(20)]
    if kind.out_of_sample:
        proper(enhancer.fit_many(x, y.astype(float), rows, [0]), (1, 24, 4))
    else:
        with pytest.raises(UserError, match=f"{kind.title} has no out-of-sample form"):
            enhancer.fit_many(x, y.astype(float), rows, [0])


@pytest.mark.parametrize("kind", [KM, LP, GLLE, LESC], ids=lambda kind: kind.__name__)
def test_the_order_of_rows_does_not_matter(kind: type[Enhancer]) -> None:
    x, y = made()
    options = SMALL[kind] | ({"max_iterations": None} if kind in (GLLE, LESC) else {})
    order = np.random.default_rng(5).permutation(24)
    found = kind(**options).fit_transform(x, y)
    np.testing.assert_allclose(
        kind(**options).fit_transform(x[order], y[order]), found[order], atol=1e-6
    )


@EVERY
def test_arrays_that_cannot_be(kind: type[Enhancer]) -> None:
    x, y = made()
    enhancer = kind(**SMALL[kind])
    with pytest.raises(ValueError, match="labels has shape"):
        enhancer.fit(x, y[:3])
    with pytest.raises(ValueError, match=r"labels\[0, 0\] is 3"):
        enhancer.fit(x, np.full_like(y, 3))
    with pytest.raises(ValueError, match="features must be finite"):
        enhancer.fit(np.where(x > 0, np.nan, x), y)


@pytest.mark.parametrize(
    ("enhancer", "said"),
    [
        (FCM(clusters=0), "FCM: clusters must be a whole number of at least 1, not 0"),
        (FCM(fuzziness=1), "FCM: fuzziness must be a number above 1, not 1"),
        (FCM(output="none"), 'FCM: output must be "linear" or "softmax", not \'none\''),
        (KM(output=1), 'KM: output must be "linear" or "softmax", not 1'),
        (LP(alpha=1.0), "LP: alpha must be a number of at least 0 and at most 1, not 1.0"),
        (LP(neighbours=0), "LP: neighbours must be a whole number of at least 1, or None, not 0"),
        (LP(solver="exact"), 'LP: solver must be "closed" or "iterate"'),
        (GLLE(lam=-1), "GLLE: lam must be a number of at least 0, not -1"),
        (GLLE(sigma="wide"), "GLLE: sigma must be a number above 0, not 'wide'"),
        (GLLE(max_iterations=2.5), "GLLE: max_iterations must be a whole number of at least 1"),
        (LESC(landmarks=0), "LESC: landmarks must be a whole number of at least 1, or None"),
        (LESC(beta=float("nan")), "LESC: beta must be a number above 0, not nan"),
    ],
)
def test_parameters_that_cannot_be(enhancer: Enhancer, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        enhancer.fit(*made())
