"""openml.org, without a network: the fetcher is replaced by what it would return."""

from __future__ import annotations

import warnings
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from scipy import sparse
from sklearn import datasets
from sklearn.utils import Bunch

from jaxmlcl.data import open_source
from jaxmlcl.errors import DataError

TABLE = np.array([[0.5, 0, 1, 0], [2.0, 2, 0, 1], [1.0, 1, 0, 0]])
NAMES = ["depth", "colour", "sea", "sky"]
KINDS = {"colour": ["red", "blue", "grey"], "sea": ["TRUE", "FALSE"], "sky": ["0", "1"]}


@pytest.fixture
def fetched(monkeypatch) -> dict[str, Any]:
    """What to return, and under "asked" what was asked for."""
    state: dict[str, Any] = {"data": TABLE, "error": None}

    def fetch(**options: Any) -> Bunch:
        state["asked"] = options
        if state["error"]:
            raise state["error"]
        return Bunch(data=state["data"], feature_names=NAMES, categories=KINDS)

    monkeypatch.setattr(datasets, "fetch_openml", fetch)
    return state


def test_columns_become_features_and_labels(fetched) -> None:
    source = open_source("openml:birds?labels=s*&version=4")
    assert fetched["asked"]["name"] == "birds"
    assert fetched["asked"]["version"] == 4
    assert fetched["asked"]["target_column"] is None
    assert source.metadata.label_names == ("sea", "sky")
    # The values of "sea" are declared TRUE first.
    np.testing.assert_array_equal(source.arrays()["labels"], [[0, 0], [1, 1], [1, 0]])
    assert source.feature_names == ("depth", "colour=red", "colour=blue", "colour=grey")
    np.testing.assert_array_equal(
        source.arrays()["inputs"], [[0.5, 1, 0, 0], [2, 0, 0, 1], [1, 0, 1, 0]]
    )
    fetched["data"] = sparse.csr_matrix(TABLE)
    again = open_source("openml:41473?labels=sea,sky")
    assert fetched["asked"]["data_id"] == 41473
    assert again.metadata.fingerprint == source.metadata.fingerprint


def test_missing_features(fetched) -> None:
    fetched["data"] = TABLE.copy()
    fetched["data"][0, :2] = np.nan
    with pytest.raises(DataError, match=r"openml:birds, row 0 .*feature 'depth': nan"):
        open_source("openml:birds?labels=s*")
    inputs = open_source("openml:birds?labels=s*&missing=mean").arrays()["inputs"]
    np.testing.assert_array_equal(inputs[0], [1.5, 0, 0.5, 0.5])


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("openml:birds?labels=sea", URLError("no network"), r"cannot be reached \(no network\)"),
        ("openml:birds?labels=sea", ValueError("No active\nset"), "cannot be used: No active set"),
        ("openml:birds", None, "which columns are labels"),
        ("openml:birds?labels=colour", None, "label 'colour' has the values 'red,blue,grey'"),
        ("openml:birds?labels=*", None, "every column is a label"),
        ("openml:birds?labels=see", None, r"no column 'see' \(did you mean 'sea'\?\)"),
        ("openml:12?labels=sea&version=2", None, "a number names one version"),
    ],
)
def test_what_cannot_be_had_is_told_in_one_line(fetched, uri, error, message) -> None:
    fetched["error"] = error
    with pytest.raises(DataError, match=message) as refusal:
        open_source(uri)
    assert len(str(refusal.value).splitlines()) == 1
    assert str(refusal.value).startswith(uri.partition("?")[0])


def test_without_a_network(monkeypatch, tmp_path) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise URLError("name resolution failed")

    monkeypatch.setattr("sklearn.datasets._openml.urlopen", refuse)
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"openml:birds: .*reached \(name resolution failed\)"):
            open_source("openml:birds?labels=sea")


def test_with_the_answers_that_scikit_learn_tests_its_fetcher_with(monkeypatch, tmp_path) -> None:
    fetcher = pytest.importorskip("sklearn.datasets.tests.test_openml")
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    # The first 13 rows of the data set "emotions".
    fetcher._monkey_patch_webbased_functions(monkeypatch, 40589, True)
    labels = "amazed.suprised,happy.pleased,relaxing.calm,quiet.still,sad.lonely,angry.aggresive"
    source = open_source(f"openml:40589?labels={labels}")
    assert (len(source), source.metadata.num_features, source.metadata.num_labels) == (13, 72, 6)
    np.testing.assert_array_equal(
        source.arrays()["labels"][:2], [[0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 1]]
    )
