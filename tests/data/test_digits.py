"""The embedded images."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxmlcl.data import Source, open_source
from jaxmlcl.data.digits import CANVAS, LARGEST, SMALLEST, SPLITS, DigitsSource
from jaxmlcl.errors import DataError


def digest(*arrays: np.ndarray) -> str:
    joined = hashlib.sha256()
    for array in arrays:
        joined.update(np.ascontiguousarray(array).tobytes())
    return joined.hexdigest()


def test_shape_and_metadata() -> None:
    source = open_source("digits:train?size=40&seed=3")
    assert isinstance(source, Source)
    assert len(source) == 40
    metadata = source.metadata
    assert metadata.label_names == tuple("0123456789")
    assert (metadata.kind, metadata.image_size) == ("image", (48, 48))
    arrays = source.arrays()
    assert arrays["inputs"].shape == (40, *metadata.input_shape)
    assert arrays["inputs"].dtype == metadata.input_dtype == "uint8"
    assert arrays["labels"].shape == (40, 10)
    assert arrays["ids"].tolist() == list(range(40))
    for index in (0, 17, -1):
        record = source[index]
        np.testing.assert_array_equal(record["inputs"], arrays["inputs"][index])
        np.testing.assert_array_equal(record["labels"], arrays["labels"][index])
        assert record["id"] == arrays["ids"][index]
    with pytest.raises(IndexError):
        source[40]


def test_default_sizes_and_names() -> None:
    assert len(open_source("digits:train")) == 4000
    assert len(open_source("digits:validation")) == 1000
    assert len(open_source("digits:test")) == 2000
    assert open_source("digits:training").metadata == open_source("digits:train").metadata


@pytest.mark.parametrize(
    ("split", "options"),
    [("tests", {}), ("train", {"size": 0}), ("train", {"seed": -1}), ("train", {"seed": 2**63})],
)
def test_bad_arguments_are_refused(split, options) -> None:
    with pytest.raises(DataError, match="digits:"):
        DigitsSource(split, **options)


def test_a_canvas_does_not_depend_on_the_size() -> None:
    small = DigitsSource("validation", size=7, seed=5).arrays()
    large = DigitsSource("validation", size=300, seed=5)
    np.testing.assert_array_equal(small["inputs"], large.arrays()["inputs"][:7])
    np.testing.assert_array_equal(small["labels"], large.arrays()["labels"][:7])
    np.testing.assert_array_equal(small["inputs"][6], large[6]["inputs"])


def test_a_canvas_is_the_same_in_another_process_and_release() -> None:
    # The digests hold for every machine and NumPy: change them together with the recipe's version.
    expected = {
        "training": "449e49f3e04cb5f4511b23200ae3b4150bfa85f4b71ca08fc624d82e6ce362f9",
        "validation": "33056609e1d21910c5592e8b20c9d88ee9a4d4d7057231e224149c46843aba50",
        "test": "ca37e01fdcf0a62ca64a643b0fa3a940992b1ba8545f88ad47d7bd0e1a918ea2",
    }
    program = (
        "import sys, hashlib\n"
        "from jaxmlcl.data import open_source\n"
        "for split in sys.argv[1:]:\n"
        "    arrays = open_source(f'digits:{split}?size=50&seed=1').arrays()\n"
        "    print(hashlib.sha256(arrays['inputs'].tobytes() + arrays['labels'].tobytes())"
        ".hexdigest())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *SPLITS], capture_output=True, text=True, check=True
    )
    here = [DigitsSource(split, size=50, seed=1).arrays() for split in SPLITS]
    digests = [digest(arrays["inputs"], arrays["labels"]) for arrays in here]
    assert result.stdout.split() == digests
    assert dict(zip(SPLITS, digests, strict=True)) == expected


def test_seeds_splits_and_indices_give_different_canvases() -> None:
    canvases = {
        digest(DigitsSource(split, size=20, seed=seed)[index]["inputs"])
        for split in SPLITS
        for seed in (0, 1, 2**63 - 1)
        for index in range(20)
    }
    assert len(canvases) == 3 * 3 * 20


def test_fingerprint_is_of_the_recipe() -> None:
    recipes = [("train", 10, 0), ("train", 11, 0), ("train", 10, 1), ("test", 10, 0)]
    prints = [DigitsSource(s, size=n, seed=k).metadata.fingerprint for s, n, k in recipes]
    assert len(set(prints)) == 4
    assert prints[0] == DigitsSource("training", size=10, seed=0).metadata.fingerprint
    assert all(len(fingerprint) == 64 for fingerprint in prints)


def test_no_original_occurs_in_two_splits() -> None:
    used = {}
    for split in SPLITS:
        source = DigitsSource(split, size=3000, seed=0)
        used[split] = {drawn.original for i in range(3000) for drawn in source.layout(i)}
    assert not used["training"] & used["validation"]
    assert not used["training"] & used["test"]
    assert not used["validation"] & used["test"]
    # 7500 draws leave out hardly any original of the smaller parts.
    assert 1060 <= len(used["training"]) <= 1085
    assert len(used["validation"]) == 357
    assert len(used["test"]) == 355


def test_labels_are_what_is_drawn() -> None:
    target = load_digits().target
    counts = np.zeros(5, int)
    for split in SPLITS:
        source = DigitsSource(split, size=500, seed=2)
        labels = source.arrays()["labels"]
        for i in range(500):
            layout = source.layout(i)
            assert all(target[drawn.original] == drawn.digit for drawn in layout)
            assert set(np.flatnonzero(labels[i])) == {drawn.digit for drawn in layout}
            counts[len(layout)] += 1
        assert labels.sum(1).min() == 1
        assert labels.sum(1).max() == 4
    assert counts[0] == 0
    assert (counts[1:] > 300).all()  # of 375 expected


def test_labels_are_balanced() -> None:
    labels = DigitsSource("train", size=4000, seed=0).arrays()["labels"]
    # 2.5 digits of ten classes, with repetition: 1 - mean over k = 1..4 of .9^k = .2262.
    assert np.abs(labels.mean(0) - 0.2262).max() < 0.03


def test_squares_stay_on_the_canvas_and_apart() -> None:
    source = DigitsSource("train", size=2000, seed=0)
    sides = []
    for i in range(2000):
        layout = source.layout(i)
        for place, one in enumerate(layout):
            sides.append(one.side)
            assert 0 <= one.top <= CANVAS - one.side
            assert 0 <= one.left <= CANVAS - one.side
            for other in layout[:place]:
                high = min(one.top + one.side, other.top + other.side) - max(one.top, other.top)
                wide = min(one.left + one.side, other.left + other.side) - max(one.left, other.left)
                shared = max(high, 0) * max(wide, 0)
                assert shared <= 0.1 * min(one.side, other.side) ** 2
    assert (min(sides), max(sides)) == (SMALLEST, LARGEST)


def test_every_digit_can_be_seen() -> None:
    # The digit itself, scaled and dimmed by hand in floating point, is on the canvas below noise.
    images = load_digits().images
    source = DigitsSource("test", size=60, seed=0)
    for i in range(60):
        canvas = source[i]["inputs"][..., 0].astype(float)
        cover = np.zeros((CANVAS, CANVAS))
        for drawn in source.layout(i):
            centre = np.clip((np.arange(drawn.side) + 0.5) * 8 / drawn.side - 0.5, 0, 7)
            weights = np.maximum(0, 1 - np.abs(centre[:, None] - np.arange(8)))
            square = weights @ images[drawn.original] @ weights.T / 16 * 255
            square *= drawn.brightness / 256
            window = (
                slice(drawn.top, drawn.top + drawn.side),
                slice(drawn.left, drawn.left + drawn.side),
            )
            cover[window] = np.maximum(cover[window], square)
        noise = canvas - cover
        assert noise.min() > -1.5  # rounded once and cut off once
        assert noise.max() < 31.5
        assert 14 < noise[cover < 200].mean() < 17


def test_pickle_round_trip() -> None:
    source = DigitsSource("test", size=5, seed=9)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.metadata == source.metadata
    np.testing.assert_array_equal(copy[4]["inputs"], source[4]["inputs"])


def test_eight_thousand_canvases_take_seconds() -> None:
    start = time.process_time()
    DigitsSource("train", size=8000, seed=0).arrays()
    assert time.process_time() - start < 10
