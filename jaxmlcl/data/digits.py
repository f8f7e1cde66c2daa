"""The embedded data set: multi-label images composed from scikit-learn's handwritten digits."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from jaxmlcl.data.source import (
    SourceMetadata,
    checked_index,
    fraction_option,
    integer_option,
    shorten,
)
from jaxmlcl.errors import DataError

CANVAS = 48  # height and width of a canvas, pixels
SMALLEST, LARGEST = 12, 22  # side of a digit on the canvas, pixels
MOST = 4  # digits on a canvas
SPLITS = ("training", "validation", "test")

_RECIPE = 1  # goes up whenever any canvas changes
_SIZES = {"training": 4000, "validation": 1000, "test": 2000}
_PLACES = 48  # random places tried for a digit before all go to the four quarters
_NOISE = 32  # pixel noise is uniform on 0 ... _NOISE - 1
_DIMMEST = 128  # brightness is uniform on _DIMMEST ... 256, in 256ths
_MOST_ROWS = 2**31 - 1  # ids are int32

# The random words of a canvas: the count, four words a digit, the places, the noise by bytes.
_PLACES_AT = 1 + 4 * MOST
_NOISE_AT = _PLACES_AT + 2 * MOST * _PLACES
_WORDS = _NOISE_AT + CANVAS * CANVAS // 8


class Drawn(NamedTuple):
    """One digit on a canvas.

    Args:
      digit: its class, 0 to 9.
      original: its row in `sklearn.datasets.load_digits()`.
      top, left: the upper left pixel of its square.
      side: the side of its square, pixels.
      brightness: the factor on its grey values, in 256ths.

    Example:
      >>> Drawn(digit=7, original=43, top=0, left=10, side=16, brightness=256).side
      16
    """

    digit: int
    original: int
    top: int
    left: int
    side: int
    brightness: int


class DigitsSource:
    """Canvases of 48x48 grey pixels with 1 to 4 handwritten digits; the labels are the digits seen.

    Canvas `i` is a pure function of (seed, split, i): not of the size of the source, the process or
    the machine (all arithmetic is on integers, the random numbers are Philox words with key (seed,
    split) and counter i). The number of digits is uniform on 1 to 4; each has a uniform class, a
    uniform original of that class, a side of 12 to 22 pixels, a place and a brightness. Squares
    overlap by at most a tenth of the smaller one, and digits are drawn by maximum, so that none is
    covered. Uniform noise of 0 to 31 grey levels is added.

    No original digit occurs in two splits: within each class and in the order of the file, of every
    five originals the first three are for training, the fourth is for validation, the fifth for
    test (1085, 357 and 355 of 1797 originals).

    Args:
      split: "train", "validation" or "test".
      size: the number of canvases.
      seed: 0 to 2**63 - 1.
      unknown: the share of the label cells that are hidden, from 0 to below 1. Which ones is a
        pure function of (unknown_seed, split, i); a hidden label is 0 and masked.
      unknown_seed: 0 to 2**63 - 1.

    Raises:
      DataError: the split is none of these, or size, a seed or unknown is out of range.

    Example:
      >>> source = DigitsSource("train", size=100, seed=0)
      >>> record = source[5]
      >>> sorted({drawn.digit for drawn in source.layout(5)}) == list(record["labels"].nonzero()[0])
      True
      >>> bool((record["inputs"] == DigitsSource("train", size=6, seed=0)[5]["inputs"]).all())
      True

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998, as scikit-learn carries it.
    """

    def __init__(
        self,
        split: str,
        *,
        size: int | None = None,
        seed: int = 0,
        unknown: float = 0.0,
        unknown_seed: int = 0,
    ) -> None:
        self.split = _split_name(split, f"digits:{split}")
        self.size = _SIZES[self.split] if size is None else int(size)
        self.seed = int(seed)
        if not 1 <= self.size <= _MOST_ROWS:
            raise DataError(f"digits:{split}: size={size} must be from 1 to {_MOST_ROWS}")
        if not 0 <= self.seed < 2**63:
            raise DataError(f"digits:{split}: seed={seed} must be from 0 to 2**63 - 1")
        self.unknown, self.unknown_seed = float(unknown), int(unknown_seed)
        if not 0 <= self.unknown < 1:
            raise DataError(f"digits:{split}: unknown={unknown} must be at least 0 and below 1")
        if not 0 <= self.unknown_seed < 2**63:
            raise DataError(
                f"digits:{split}: unknown_seed={unknown_seed} must be from 0 to 2**63 - 1"
            )

    @property
    def metadata(self) -> SourceMetadata:
        """Name, labels "0" to "9", shape, and the fingerprint of the recipe."""
        recipe = {"recipe": "digits", "version": _RECIPE, **vars(self)}
        if not self.unknown:
            # As it was before labels could be hidden, so that checkpoints know their data.
            del recipe["unknown"], recipe["unknown_seed"]
        return SourceMetadata(
            name=f"digits-{self.split}",
            label_names=tuple("0123456789"),
            input_shape=(CANVAS, CANVAS, 1),
            input_dtype="uint8",
            kind="image",
            fingerprint=hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
            unknown_labels=self.unknown > 0,
        )

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        row = checked_index(index, self.size)
        inputs = np.zeros((CANVAS, CANVAS, 1), np.uint8)
        labels = np.zeros(10, np.uint8)
        self._draw(row, inputs[..., 0], labels)
        record = {"inputs": inputs, "labels": labels, "id": row}
        if not self.unknown:
            return record
        known = self._known(row)
        return {**record, "labels": labels * known, "label_mask": known}

    def __repr__(self) -> str:
        hidden = f", unknown={self.unknown}, unknown_seed={self.unknown_seed}"
        return (
            f"DigitsSource({self.split!r}, size={self.size}, seed={self.seed}"
            f"{hidden if self.unknown else ''})"
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """All canvases: `inputs` uint8 [n, 48, 48, 1], `labels` uint8 [n, 10], `ids` int32 [n].

        Where labels are hidden, also `label_mask`, bool [n, 10].
        """
        inputs = np.zeros((self.size, CANVAS, CANVAS, 1), np.uint8)
        labels = np.zeros((self.size, 10), np.uint8)
        for row in range(self.size):
            self._draw(row, inputs[row, ..., 0], labels[row])
        ids = np.arange(self.size, dtype=np.int32)
        arrays: dict[str, np.ndarray] = {"inputs": inputs, "labels": labels, "ids": ids}
        if not self.unknown:
            return arrays
        known = np.stack([self._known(row) for row in range(self.size)])
        return {**arrays, "labels": labels * known, "label_mask": known}

    def layout(self, index: SupportsIndex) -> tuple[Drawn, ...]:
        """The digits on canvas `index`, in the order in which they are drawn."""
        return _layout(self._words(checked_index(index, self.size)), self.split)

    def _known(self, row: int) -> np.ndarray:
        # Another stream than the canvas's: the counter's upper words tell them apart.
        key = np.array([self.unknown_seed, SPLITS.index(self.split)], np.uint64)
        words = np.random.Philox(key=key, counter=np.array([0, row, 1, 0], np.uint64)).random_raw(
            10
        )
        return (words >> np.uint64(11)) * 2.0**-53 >= self.unknown

    def _words(self, row: int) -> np.ndarray:
        # Raw words rather than a Generator's draws: only their stream is promised not to change
        # from one NumPy release to the next.
        key = np.array([self.seed, SPLITS.index(self.split)], np.uint64)
        counter = np.array([0, row, 0, 0], np.uint64)
        return np.random.Philox(key=key, counter=counter).random_raw(_WORDS)

    def _draw(self, row: int, canvas: np.ndarray, labels: np.ndarray) -> None:
        words = self._words(row)
        for drawn in _layout(words, self.split):
            rows = slice(drawn.top, drawn.top + drawn.side)
            columns = slice(drawn.left, drawn.left + drawn.side)
            square = (_scaled(drawn.original, drawn.side) * drawn.brightness >> 8).astype(np.uint8)
            canvas[rows, columns] = np.maximum(canvas[rows, columns], square)
            labels[drawn.digit] = 1
        noise = words[_NOISE_AT:].astype("<u8").view(np.uint8) % _NOISE
        canvas += np.minimum(noise.reshape(CANVAS, CANVAS), 255 - canvas)


def open_digits(body: str, options: Mapping[str, str], places: Sequence[Path]) -> DigitsSource:
    """Open `digits:SPLIT?size=N&seed=S&unknown=F&unknown_seed=S`; see `open_source`.

    Example:
      >>> open_digits("validation", {"size": "10"}, [])
      DigitsSource('validation', size=10, seed=0)
    """
    del places  # no files are read
    where = f"digits:{body}"
    split = _split_name(body, where)
    size = integer_option(
        options, "size", default=_SIZES[split], low=1, high=_MOST_ROWS, where=where
    )
    seed = integer_option(options, "seed", default=0, low=0, high=2**63 - 1, where=where)
    hidden = integer_option(options, "unknown_seed", default=0, low=0, high=2**63 - 1, where=where)
    if "unknown" not in options:
        if "unknown_seed" in options:
            raise DataError(f"{where}: option 'unknown_seed' without unknown; write unknown=0.3")
        return DigitsSource(split, size=size, seed=seed)
    share = fraction_option(options, "unknown", default="", where=where)
    return DigitsSource(split, size=size, seed=seed, unknown=share, unknown_seed=hidden)


def _split_name(text: str, where: str) -> str:
    split = "training" if text == "train" else text
    if split not in SPLITS:
        raise DataError(f"{where}: unknown split {shorten(text)}; it is train, validation or test")
    return split


def _layout(words: np.ndarray, split: str) -> tuple[Drawn, ...]:
    count = 1 + int(words[0] % MOST)
    picks = words[1:_PLACES_AT].reshape(MOST, 4)[:count]
    digits = (picks[:, 0] % 10).tolist()
    members = [_originals(split)[digit] for digit in digits]
    originals = [
        int(rows[int(word) % len(rows)]) for rows, word in zip(members, picks[:, 1], strict=True)
    ]
    sides = (SMALLEST + picks[:, 2] % (LARGEST - SMALLEST + 1)).astype(np.int64)
    brightness = (_DIMMEST + picks[:, 3] % (257 - _DIMMEST)).tolist()

    draws = words[_PLACES_AT:_NOISE_AT].reshape(MOST, _PLACES, 2)[:count]
    corners = _corners(draws, sides)
    return tuple(
        Drawn(*fields)
        for fields in zip(
            digits, originals, *corners.T.tolist(), sides.tolist(), brightness, strict=True
        )
    )


def _corners(draws: np.ndarray, sides: np.ndarray) -> np.ndarray:
    # draws [digits, places, 2], sides [digits]: the upper left corners [digits, 2]. Every digit,
    # the largest first, takes the first of its places that is clear of the digits before it.
    corners = np.zeros((len(sides), 2), np.int64)
    placed: list[int] = []
    for digit in np.argsort(-sides, kind="stable").tolist():
        places = (draws[digit] % np.uint64(CANVAS + 1 - sides[digit])).astype(np.int64)
        low = np.maximum(places[:, None], corners[placed])
        high = np.minimum(places[:, None] + sides[digit], corners[placed] + sides[placed, None])
        shared = np.maximum(high - low, 0).prod(axis=-1)  # [places, placed], pixels
        clear = (10 * shared <= sides[digit] ** 2).all(axis=-1)
        if not clear.any():
            return _quarters(draws, sides)
        corners[digit] = places[np.argmax(clear)]
        placed.append(digit)
    return corners


def _quarters(draws: np.ndarray, sides: np.ndarray) -> np.ndarray:
    # Digit m somewhere in quarter m of the canvas: no overlap, whatever the sides.
    half = CANVAS // 2
    within = draws[:, 0] % (half + 1 - sides).astype(np.uint64)[:, None]
    quarter = np.arange(len(sides))
    return within.astype(np.int64) + half * np.stack([quarter // 2, quarter % 2], axis=1)


@functools.cache
def _load() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images.astype(np.int64), data.target.astype(np.int64)  # grey 0 ... 16


@functools.cache
def _originals(split: str) -> tuple[np.ndarray, ...]:
    # For every class the rows of its originals in this split.
    takes = {"training": (0, 1, 2), "validation": (3,), "test": (4,)}[split]
    rows = [np.flatnonzero(_load()[1] == digit) for digit in range(10)]
    return tuple(row[np.isin(np.arange(len(row)) % 5, takes)] for row in rows)


@functools.cache
def _scaled(original: int, side: int) -> np.ndarray:
    # Bilinear, pixel centres at halves, in exact fractions with denominator 2 * side, so that no
    # machine rounds differently. uint16, so that the brightness can be multiplied on.
    image = _load()[0][original]
    numerator = np.clip((2 * np.arange(side) + 1) * 8 - side, 0, 14 * side)
    low, fraction = np.divmod(numerator, 2 * side)
    weights = np.zeros((side, 8), np.int64)
    weights[np.arange(side), low] += 2 * side - fraction
    weights[np.arange(side), np.minimum(low + 1, 7)] += fraction
    total = 16 * (2 * side) ** 2
    return ((weights @ image @ weights.T * 255 + total // 2) // total).astype(np.uint16)
