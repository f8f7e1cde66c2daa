"""What evaluation keeps of representations is what `embed` gives for the same rows."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmlcl.config import Experiment, to_json
from jaxmlcl.training.evaluate import evaluate_run
from jaxmlcl.training.predict import open_network
from jaxmlcl.training.representations import ROWS, Collected
from jaxmlcl.training.splits import open_split
from jaxmlcl.training.trainer import train
from tests.training.conftest import small_experiment


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    experiment = small_experiment(tmp_path_factory.mktemp("kept") / "run")
    train(experiment, to_json(experiment), devices=jax.devices()[:1])
    evaluate_run(experiment, Path(str(experiment.workdir)), "test")
    return experiment


def kept(experiment: Experiment, stage: str) -> dict[str, np.ndarray]:
    path = Path(str(experiment.workdir)) / "evaluation" / f"{stage}-test-representations.npz"
    with np.load(path) as file:
        return dict(file)


def test_every_scoring_stage_has_its_own(evaluated: Experiment) -> None:
    from jaxmlcl.data.features import source_features

    arrays = open_split(evaluated.data, "test").arrays()
    alone = arrays["labels"].sum(axis=1) == 1
    assert 0 < alone.sum() < len(alone)
    scoring = [name for name, stage in evaluated.stages.items() if stage.objective.gives_scores]
    seen = []
    for stage in scoring:
        network = open_network(
            evaluated, Path(str(evaluated.workdir)), stage, devices=jax.devices()[:1]
        )
        features = source_features(open_split(evaluated.data, "test"), "test", network.expected)
        parts = [found["representation"] for _, found in network.embeddings(features)]
        representation = np.concatenate(parts)
        found = kept(evaluated, stage)
        np.testing.assert_array_equal(found["ids"], arrays["ids"])
        np.testing.assert_allclose(found["representation"], representation, rtol=1e-5, atol=1e-6)
        for label in range(arrays["labels"].shape[1]):
            rows = alone & (arrays["labels"][:, label] > 0)
            assert found["class_counts"][label] == rows.sum()
            if rows.any():
                mean = representation[rows].mean(axis=0)
                np.testing.assert_allclose(found["class_means"][label], mean, rtol=1e-4, atol=1e-5)
        seen.append(found["representation"])
    assert len(seen) > 1
    assert not np.allclose(seen[0], seen[1])


def test_rows_are_spread_over_the_split_and_batches_do_not_matter() -> None:
    labels = np.eye(4, dtype=np.uint8)[np.arange(3210) % 4]
    labels[::7] = 1
    rows = np.arange(3210.0)[:, None] * [1.0, -1.0]
    results = []
    for size in (1000, 64):
        collected = Collected(labels, np.arange(3210) + 5)
        for start in range(0, 3210, size):
            collected.add(rows[start : start + size])
        results.append(collected.result())
    whole, parts = results
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(whole.ids) == ROWS
    assert (whole.ids[0], whole.ids[-1]) == (5, 3214)
    np.testing.assert_array_equal(whole.representation[:, 0], whole.ids - 5)
    np.testing.assert_array_equal(whole.labels, labels[whole.ids - 5])


def test_a_row_with_unknown_labels_counts_for_no_class() -> None:
    labels = np.array([[1, 0], [1, 0], [0, 1]], np.uint8)
    known = np.array([[True, False], [True, True], [True, True]])
    collected = Collected(labels, np.arange(3), known)
    collected.add(np.array([[100.0], [2.0], [3.0]]))
    assert collected.result().class_means.ravel().tolist() == [2.0, 3.0]
    assert collected.result().class_counts.tolist() == [1, 1]
    assert collected.result().alone.tolist() == [False, True, True]
