"""The critical-difference diagram: what is joined, and that the picture says the numbers."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.image import imread

from jaxmlcl.report import critical_difference_plot
from jaxmlcl.report._critical import joined

NAMES = ["ConLE", "GLLE", "LESC", "LP", "KM", "FCM"]
RANKS = [1.2, 2.1, 2.7, 4.0, 5.6, 5.4]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("ranks", "cd", "expected"),
    [
        ([1.0, 2.0, 3.0], 5.0, [(0, 2)]),
        ([1.0, 2.0, 3.0], 0.5, []),
        ([1.0, 2.0, 3.0], 1.0, []),
        ([1.0, 1.9, 2.5, 2.6], 1.0, [(0, 1), (1, 3)]),
        ([1.5, 1.5], 0.1, [(0, 1)]),
    ],
)
def test_runs_that_are_joined(
    ranks: list[float], cd: float, expected: list[tuple[int, int]]
) -> None:
    assert joined(ranks, cd) == expected


def test_svg_says_names_and_ranks_in_the_page_s_colours() -> None:
    root = ET.fromstring(critical_difference_plot(NAMES, RANKS, 1.4))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert set(NAMES) <= set(texts)
    assert {f"{rank:.2f}" for rank in RANKS} <= set(texts)
    assert "CD 1.40" in texts
    text = critical_difference_plot(NAMES, RANKS, 1.4).decode()
    assert root.get("aria-label", "").startswith("Average ranks: ConLE 1.20, GLLE 2.10")
    assert "#0102" not in text
    assert "var(--series-1" in text
    # A bar for each run: ConLE, GLLE; GLLE, LESC; LESC, LP; LP, FCM; FCM, KM counts in the last.
    bars = len(re.findall(r"stroke: var\(--series-1", text))
    assert bars == len(joined(sorted(RANKS), 1.4)) == 4


def test_a_wide_difference_stays_inside() -> None:
    root = ET.fromstring(critical_difference_plot(["A", "B"], [1.4, 1.6], 30.0))
    width = float(root.get("viewBox", "").split()[2])
    coordinates = [
        float(x)
        for path in root.iter(f"{SVG}path")
        for x in re.findall(r"[ML] (\S+)", path.get("d", ""))
    ]
    assert max(coordinates) <= width


def test_png_is_a_picture_on_white() -> None:
    picture = imread(io.BytesIO(critical_difference_plot(NAMES, RANKS, 1.4, form="png")))
    assert picture.shape[1] > 300
    assert np.allclose(picture[0, 0, :3], 1)
    assert picture[..., :3].min() < 0.3


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"ranks has shape \(2,\) for 3 names"):
        critical_difference_plot(["A", "B", "C"], [1, 2], 1.0)
    with pytest.raises(ValueError, match="is not finite, or cd is not above 0"):
        critical_difference_plot(["A", "B"], [1, 2], 0.0)
    with pytest.raises(ValueError, match="form is 'pdf'"):
        critical_difference_plot(["A", "B"], [1, 2], 1.0, form="pdf")  # type: ignore[arg-type]
