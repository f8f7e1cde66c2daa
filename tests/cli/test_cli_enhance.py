"""`jaxmlcl enhance`: files in three forms that come back, measures, and what is refused."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from jaxmlcl.data import logical_labels, open_distributions, open_source
from jaxmlcl.enhancement import ENHANCERS
from jaxmlcl.evaluation import distribution_measures

Run = Callable[..., Any]

RNG = np.random.default_rng(6)
FEATURES = RNG.normal(size=(30, 4))
DEGREES = RNG.dirichlet([1.0, 1.0, 1.0], 30)
LABELS = logical_labels(DEGREES)
NAMES = ["sea", "sky", "sun"]


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    path = tmp_path / "birds.mat"
    savemat(
        path,
        {
            "features": FEATURES,
            "labelDistribution": DEGREES,
            "label_names": np.array(NAMES, object),
        },
    )
    return path


def expected(method: str) -> np.ndarray:
    return ENHANCERS[method]().fit_transform(FEATURES, LABELS)


@pytest.mark.parametrize("ending", ["npz", "mat"])
@pytest.mark.parametrize("method", ["km", "lp"])
def test_arrays_come_back(run: Run, birds: Path, ending: str, method: str) -> None:
    path = birds.parent / f"out/enhanced.{ending}"
    code, out, err = run("enhance", birds, "--method", method, "-o", path)
    assert (code, err) == (0, "")
    title = ENHANCERS[method].title
    assert re.match(
        rf"{title}: 30 rows, 3 labels, [\d.]+ s; its labels are those of its distributions; "
        rf"written: {re.escape(str(path))}\n",
        out,
    )
    data = open_distributions(path)
    np.testing.assert_array_equal(data.distributions, expected(method))
    np.testing.assert_array_equal(data.features, FEATURES)
    np.testing.assert_array_equal(data.labels, LABELS)
    assert data.label_names == tuple(NAMES)
    assert not data.labels_derived
    source = open_source(f"{path}?targets={path.name}")
    np.testing.assert_array_equal(source[7]["targets"], expected(method)[7].astype(np.float32))
    np.testing.assert_array_equal(source[7]["labels"], LABELS[7])


def test_other_programs_read_the_files(run: Run, birds: Path) -> None:
    folder = birds.parent
    for ending in ("mat", "npz"):
        run("enhance", birds, "--method", "km", "-o", folder / f"e.{ending}")
    held = loadmat(folder / "e.mat")
    assert {"features", "logicalLabel", "labelDistribution"} <= set(held)
    np.testing.assert_array_equal(held["labelDistribution"], expected("km"))
    with np.load(folder / "e.npz", allow_pickle=False) as arrays:
        assert {*arrays} == {"features", "labels", "distributions", "label_names", "ids"}
        assert arrays["ids"].tolist() == list(range(30))


def test_a_table_and_its_targets(run: Run, tmp_path: Path) -> None:
    """CSV to CSV, rows by their ids, then targets of the table it was made from."""
    rows = [
        ",".join(map(str, [100 - i, *x, *y]))
        for i, (x, y) in enumerate(zip(FEATURES.tolist(), LABELS.tolist(), strict=True))
    ]
    (tmp_path / "birds.csv").write_text("\n".join(["number,a,b,c,d,sea,sky,sun", *rows]))
    words = ("enhance", "birds.csv?id=number", "--labels", "s*", "--data.root", tmp_path)
    code, out, err = run(*words, "--method", "km", "-o", tmp_path / "enhanced.csv")
    assert (code, err) == (0, "")
    # No truth, so nothing is measured.
    assert out.count("\n") == 1
    with (tmp_path / "enhanced.csv").open() as file:
        header, *cells = csv.reader(file)
    assert header == ["id", *NAMES]
    assert [row[0] for row in cells[:2]] == ["100", "99"]
    features = FEATURES.astype(np.float32)
    by_hand = ENHANCERS["km"]().fit_transform(features, LABELS)
    # Distances are products of matrices, whose last bit depends on how the processor adds.
    np.testing.assert_allclose(np.array(cells, float)[:, 1:], by_hand, rtol=1e-12)
    uri = f"{tmp_path}/birds.csv?id=number&labels=s*&targets=enhanced.csv&part=rest"
    arrays = open_source(uri).arrays()  # type: ignore[attr-defined]
    np.testing.assert_allclose(arrays["targets"], by_hand[100 - arrays["ids"]], rtol=1e-6)
    run(*words, "--method", "km", "--keep-features", "-o", tmp_path / "whole.csv")
    data = open_distributions(f"{tmp_path}/whole.csv?id=id", labels="sea,sky,sun")
    np.testing.assert_array_equal(data.features, features)
    np.testing.assert_allclose(data.distributions, by_hand, rtol=1e-6)
    assert data.feature_names == ("a", "b", "c", "d")


def test_measures_beside_what_needs_no_method(run: Run, birds: Path) -> None:
    _, out, _ = run("enhance", birds, "--method", "lp", "-o", birds.parent / "e.csv")
    _, header, *lines = out.splitlines()
    shares = LABELS / LABELS.sum(1, keepdims=True)
    softmax = np.exp(shares) / np.exp(shares).sum(1, keepdims=True)
    rows = {
        "LP": expected("lp"),
        "uniform": np.full(DEGREES.shape, 1 / 3),
        "softmax(L/|L|)": softmax,
        "L/|L|": shares,
    }
    assert [re.split(r"  +", line)[0] for line in lines] == list(rows)
    for line, recovered in zip(lines, rows.values(), strict=True):
        measures = distribution_measures(recovered, DEGREES)
        assert header.split() == list(measures)
        assert re.split(r"  +", line)[1:] == [f"{value:.4f}" for value in measures.values()]


def test_sources_that_hold_labels_only(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tiny.xml").write_text('<labels><label name="sea"/><label name="sky"/></labels>')
    rows = "\n".join(f"{i},{i % 2},{int(i > 3)}" for i in range(8))
    (tmp_path / "tiny.arff").write_text(
        "@relation t\n@attribute x numeric\n@attribute sea {0,1}\n@attribute sky {0,1}\n"
        f"@data\n{rows}\n"
    )
    code, out, err = run(
        "enhance", tmp_path / "tiny.arff", "--method", "km", "-o", tmp_path / "e.npz"
    )
    assert (code, err) == (0, "")
    assert out.startswith("KM: 8 rows, 2 labels, ")
    np.testing.assert_allclose(np.load(tmp_path / "e.npz")["distributions"].sum(1), 1)


def test_hyper_parameters_and_seed(run: Run, birds: Path) -> None:
    path = birds.parent / "e.npz"
    words = ("enhance", birds, "--method", "km", "-o", path)
    assert run(*words, "--set", "output=softmax", "--seed", "3").code == 0
    found = open_distributions(path).distributions
    softmax = ENHANCERS["km"](output="softmax").fit_transform(FEATURES, LABELS)  # type: ignore[call-arg]
    np.testing.assert_array_equal(found, softmax)
    assert not np.array_equal(softmax, expected("km"))


def test_a_seed(run: Run, birds: Path) -> None:
    folder, found = birds.parent, []
    for seed in ("1", "1", "2"):
        code, out, _ = run(
            "enhance", birds, "--method", "fcm", "--seed", seed, "-o", folder / "e.npz"
        )
        assert code == 0
        assert f" s, seed {seed}; " in out
        found.append(open_distributions(folder / "e.npz").distributions)
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "glel"), '--method: "glel" is none of .*fcm, glle, .*; did you mean glle'),
        (("--method", "km", "--set", "output"), 'argument --set: "output" is not NAME=VALUE'),
        (
            ("--method", "km", "--set", "outputs=linear"),
            'km has no hyper-parameter "outputs"; did you mean output.; it has output',
        ),
        (("--method", "km", "--set", "output=cubic"), "KM: output must be .* not 'cubic'"),
        (("--method", "km", "--seed", "-1"), "argument --seed: -1 is not from 0"),
        (("--method", "km", "--labels", "a"), "label columns are named once, and for CSV"),
        ((), "--method"),
    ],
)
def test_mistakes(run: Run, birds: Path, words: tuple[str, ...], message: str) -> None:
    path = birds.parent / "e.npz"
    code, out, err = run("enhance", birds, "-o", path, *words)
    assert (code, out) == (2, "")
    assert re.search(message, err)
    assert err.count("\n") == 1
    assert not path.exists()


def test_files_that_cannot_be(run: Run, birds: Path) -> None:
    folder = birds.parent
    (folder / "broken.mat").write_bytes(birds.read_bytes()[:300])
    np.savez(folder / "odd.npz", features=FEATURES, labels=DEGREES * 2)
    np.savez(folder / "twice.npz", features=FEATURES, labels=LABELS, label_names=["id", "a", "b"])
    (folder / "kept.csv").write_text("as it was")
    for source, output, message in (
        ("none.mat", "e.csv", "none.mat: no such file"),
        ("broken.mat", "e.csv", "broken.mat: cannot be read as a MATLAB file"),
        ("odd.npz", "kept.csv", "odd.npz, row 0 .*: the degrees sum to 2, not to 1"),
        ("twice.npz", "kept.csv", "kept.csv: two columns would be called 'id'; write .npz"),
        ("birds.mat", "e.txt", "e.txt: its form is told by its ending: .csv, .npz, .mat"),
        ("birds.mat", "birds.mat", "birds.mat: is SOURCE itself"),
        ("digits:test?size=8", "e.csv", "takes vectors in memory, this source holds images"),
    ):
        code, out, err = run(
            "enhance", source, "--method", "km", "-o", folder / output, "--data.root", folder
        )
        assert (code, out) == (2, "")
        assert re.search(message, err)
        assert err.count("\n") == 1
    assert (folder / "kept.csv").read_text() == "as it was"
    assert not (folder / "e.csv").exists()
    (folder / "d.csv").mkdir()
    _, _, err = run("enhance", birds, "--method", "km", "-o", folder / "d.csv")
    assert "is a folder; -o wants the name of a file" in err
    _, _, err = run("enhance", birds, "--method", "km", "-o", folder / "e.npz", "--keep-features")
    assert "--keep-features is for .csv" in err
