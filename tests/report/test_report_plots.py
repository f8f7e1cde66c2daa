"""Charts: thinning keeps the extremes, and the SVG fits into a page beside others."""

from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest

from jaxmlcl.report._format import DASH
from jaxmlcl.report._plots import MAX_POINTS, Line, bar_chart, line_chart, short_number, thin

SVG = "{http://www.w3.org/2000/svg}"


def curve(values: np.ndarray) -> Line:
    return Line("loss", np.arange(len(values), dtype=float), values, 1)


def test_thin_keeps_extremes_and_order() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=20_001)
    values[777], values[13_000] = 50.0, -60.0
    steps, kept = thin(np.arange(20_001), values)
    assert len(kept) <= MAX_POINTS
    assert (np.diff(steps) > 0).all()
    assert 777 in steps
    assert 13_000 in steps
    np.testing.assert_array_equal(values[steps], kept)


def test_thin_leaves_short_curves_and_gaps_alone() -> None:
    values = np.array([1.0, np.nan, 3.0])
    steps, kept = thin(np.arange(3), values)
    np.testing.assert_array_equal(kept, values)
    long = np.ones(1000)
    long[200:600] = np.nan
    steps, kept = thin(np.arange(1000), long)
    assert len(kept) <= MAX_POINTS
    assert np.isnan(kept[(steps >= 200) & (steps < 600)]).all()
    assert np.isfinite(kept[(steps < 200) | (steps >= 600)]).all()


def drawn_points(svg: str) -> int:
    """Number of vertices of the longest path."""
    return max(len(re.findall("[ML] ", path)) for path in re.findall(r' d="([^"]+)"', svg))


def test_a_long_curve_stays_small() -> None:
    values = np.sin(np.arange(100_000) / 3)
    svg = line_chart([curve(values)], identity="a", description="d")
    assert 100 < drawn_points(svg) < 1.1 * MAX_POINTS
    assert len(svg) < 20_000


def test_colours_and_fonts_come_from_the_page() -> None:
    svg = line_chart([curve(np.arange(5.0))], identity="a", description="d")
    svg += bar_chart(["x"], [[0.5], [0.25]], identity="b", description="d")
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)) == {
        "none",
        "currentColor",
        "var(--muted, #777)",
        "var(--rule, #bbb)",
        "var(--series-1, #47a)",
        "var(--series-2, #47a)",
    }
    assert "font-family" not in svg
    assert "DejaVu" not in svg
    assert "<style" not in svg
    assert "<metadata" not in svg


def test_ids_are_prefixed_and_resolve() -> None:
    first, second = (
        ET.fromstring(line_chart([curve(np.arange(5.0))], identity=name, description="d"))
        for name in ("a", "b")
    )
    for root, prefix in ((first, "a-"), (second, "b-")):
        ids = [element.get("id") for element in root.iter() if element.get("id")]
        assert ids
        assert all(name.startswith(prefix) for name in ids)
        assert len(set(ids)) == len(ids)
        targets = {e.get("href", "")[1:] for e in root.iter(f"{SVG}use")}
        targets |= set(re.findall(r"url\(#([^)]+)\)", ET.tostring(root, encoding="unicode")))
        assert targets == set(ids)


def test_the_users_style_is_neither_used_nor_changed() -> None:
    plain = bar_chart(["$x$"], [[0.5]], identity="a", description="d")
    with matplotlib.rc_context({"font.size": 30.0, "axes.facecolor": "red", "svg.hashsalt": "z"}):
        assert bar_chart(["$x$"], [[0.5]], identity="a", description="d") == plain
        assert matplotlib.rcParams["font.size"] == 30.0


def test_bars_have_the_length_of_their_values() -> None:
    svg = bar_chart(["a", "b", "c"], [[0.5, float("nan"), 1.0]], identity="a", description="d")
    root = ET.fromstring(svg)
    lengths = []
    for path in root.iter(f"{SVG}path"):
        if "--series-1" in path.get("style", ""):
            x = [float(number) for number in re.findall(r"[ML] ([\d.]+)", path.get("d", ""))]
            lengths.append(max(x) - min(x))
    half, none, whole = lengths
    assert none == 0
    assert half / whole == pytest.approx(0.5, abs=1e-3)
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert [text for text in texts if text in ("0.50", DASH, "1.00")] == ["0.50", DASH, "1.00"]


def test_names_in_any_script_are_cut_to_fit() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = bar_chart(
            ["標" * 40, "x" * 40, "é"], [[0.1, 0.2, 0.3]], identity="a", description="d"
        )
    texts = [element.text for element in ET.fromstring(svg).iter(f"{SVG}text")]
    assert "標" * 10 + "…" in texts
    assert "x" * 21 + "…" in texts
    assert "é" in texts


def test_one_point_and_constant_curves() -> None:
    for values in (np.array([2.0]), np.full(40, 3.0), np.zeros(3), np.array([np.nan, 1.0])):
        for logarithmic in (False, bool(np.nanmin(values) > 0)):
            svg = line_chart(
                [curve(values)], identity="a", description='say "x" <y>', logarithmic=logarithmic
            )
            assert ET.fromstring(svg).get("aria-label") == 'say "x" <y>'
            assert "nan" not in svg


def test_short_numbers() -> None:
    assert [short_number(x) for x in (-1500.0, 0.5, 1e-7, -2.5e-12, 999.0)] == [
        "-1.5k",
        "0.5",
        "1e-7",
        "-2.5e-12",
        "999",
    ]
