"""Heat maps of labels against labels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib import image

from jaxmlcl.report import heat_map


def pixels(picture: bytes) -> np.ndarray:
    return image.imread(io.BytesIO(picture))[..., :3]


def test_signs_have_colours_and_the_diagonal_none() -> None:
    """More red where products are positive, more blue where they are negative."""
    names = [f"label {i}" for i in range(6)]
    ones = np.ones((6, 6))
    red, blue = (pixels(heat_map(sign * ones, names)) for sign in (1, -1))
    for picture, channel in ((red, 0), (blue, 2)):
        coloured = np.ptp(picture, axis=-1) > 0.3
        assert coloured.sum() > 10_000
        assert (picture[coloured].mean(0).argmax()) == channel
    # The diagonal's own values are of no matter.
    assert heat_map(ones + 99 * np.eye(6), names) == heat_map(ones, names)


def test_many_labels_are_not_named_and_the_picture_stays_small() -> None:
    values = np.random.default_rng(0).normal(size=(983, 983))
    picture = pixels(heat_map(values + values.T, [str(i) for i in range(983)]))
    assert max(picture.shape) < 2000


@pytest.mark.parametrize("values", [np.zeros((1, 1)), np.full((3, 3), np.nan)])
def test_nothing_to_colour_is_a_picture_too(values: np.ndarray) -> None:
    assert heat_map(values, ["a"] * len(values))[:4] == b"\x89PNG"


def test_names_must_fit() -> None:
    with pytest.raises(ValueError, match=r"shape \[2, 2\] and there are 1 names"):
        heat_map(np.ones((2, 2)), ["a"])
