"""Charts as inline SVG that takes its colours and its font from the page around it."""

from __future__ import annotations

import io
import math
import re
import unicodedata
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jaxmlcl.report._format import DASH
from jaxmlcl.report._read import clean

MAX_POINTS = 500
SERIES = 5  # number of --series-N colours that the page defines

# Matplotlib draws with these; the page's style sheet decides what they look like.
_INK, _MUTED, _RULE = "#010203", "#010204", "#010205"
_SERIES = [f"#0102{16 + index:02x}" for index in range(SERIES)]
_PAGE_COLOURS = {
    _INK: "currentColor",
    _MUTED: "var(--muted, #777)",
    _RULE: "var(--rule, #bbb)",
    **{colour: f"var(--series-{i + 1}, #47a)" for i, colour in enumerate(_SERIES)},
}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxmlcl",
    "text.usetex": False,
    "text.parse_math": False,
    "text.color": _INK,
    "font.size": 9.0,
    "axes.edgecolor": _RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "figure.dpi": 72.0,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "grid.alpha": 0.75,
}

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
ET.register_namespace("", _SVG.strip("{}"))  # so that elements are written without a prefix


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    name: str
    steps: np.ndarray  # [n]
    values: np.ndarray  # [n], NaN where there is no value
    colour: int  # which of the page's series colours, from 1
    dashed: bool = False


@dataclass(frozen=True)
class Dots:
    """Some points of a map."""

    x: np.ndarray  # [n]
    y: np.ndarray  # [n]
    colour: int | None  # which of the page's series colours, from 1; None: muted


def thin(
    steps: np.ndarray, values: np.ndarray, limit: int = MAX_POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` points of a curve, among them the extremes of every stretch.

    The curve is cut into limit/2 stretches and the lowest and highest point of each is kept, so
    that a single spike survives, as it would not if every k-th point were taken.

    Args:
      steps: [n] positions.
      values: [n] values, NaN allowed.
      limit: number of points to keep, at least 2.

    Returns:
      Positions and values of the points kept, in order.

    Example:
      >>> values = np.zeros(10_000)
      >>> values[1234] = 7.0
      >>> steps, kept = thin(np.arange(10_000), values)
      >>> len(kept) <= 500, kept.max()
      (True, np.float64(7.0))
    """
    if len(values) <= limit:
        return steps, values
    kept: set[int] = set()
    for stretch in np.array_split(np.arange(len(values)), max(1, limit // 2)):
        inside = values[stretch]
        if np.isnan(inside).all():
            kept.add(int(stretch[0]))
        else:
            kept |= {int(stretch[np.nanargmin(inside)]), int(stretch[np.nanargmax(inside)])}
    chosen = np.array(sorted(kept))
    return steps[chosen], values[chosen]


def line_chart(
    lines: Sequence[Line],
    *,
    identity: str,
    description: str,
    limits: tuple[float, float] | None = None,
    logarithmic: bool = False,
) -> str:
    """Curves over training steps as an SVG element.

    Args:
      lines: the curves, drawn in order; each is thinned to 500 points.
      identity: prefix of every id in the element; different for every chart of a page.
      description: what a screen reader says.
      limits: lowest and highest value shown; None: chosen from the values.
      logarithmic: the values on a logarithmic scale.

    Returns:
      The element as text.
    """
    with _style():
        figure = _figure(260, 160)
        axes = figure.add_axes((0.135, 0.14, 0.85, 0.82))
        for line in lines:
            steps, values = thin(line.steps, line.values)
            axes.plot(
                steps,
                values,
                color=_SERIES[(line.colour - 1) % SERIES],
                linewidth=1.2,
                linestyle=(0, (4, 2)) if line.dashed else "-",
                marker="o" if len(values) <= 25 else None,
                markersize=3.5,
                markeredgewidth=0,
            )
        axes.grid(axis="y")
        axes.margins(x=0.01, y=0.08)
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
            axes.tick_params(which="minor", length=0)
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        if limits is not None:
            axes.set_ylim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short_number(x)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: short_number(y)))
        return _svg(figure, identity, description)


def bar_chart(
    labels: Sequence[str],
    groups: Sequence[Sequence[float]],
    *,
    identity: str,
    description: str,
) -> str:
    """Horizontal bars from 0 to 1, one bar per group for every label, as an SVG element.

    Args:
      labels: [n] names, from top to bottom; long ones are cut.
      groups: for each group [n] values in [0, 1]; NaN is shown as a dash.
      identity: prefix of every id in the element; different for every chart of a page.
      description: what a screen reader says.

    Returns:
      The element as text.
    """
    names = [_cut(clean(name)[:200]) for name in labels]
    bar = 10.0 if len(groups) > 1 else 12.0
    pitch = bar * len(groups) + 6.0
    width, height = 300.0, pitch * len(names) + 22.0
    left = 12.0 + 5.2 * max(map(_width, names), default=1)
    with _style():
        figure = _figure(width, height)
        box = (left / width, 18.0 / height, (width - left - 34.0) / width, 1 - 22.0 / height)
        axes = figure.add_axes(box)
        axes.set_xlim(0, 1)
        axes.set_ylim(pitch * len(names), 0)
        axes.set_yticks([])
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(axis="x")
        for row, name in enumerate(names):
            middle = pitch * (row + 0.5)
            style: dict[str, Any] = {"va": "center_baseline"}
            axes.text(-6 / (width - left - 34), middle, name, ha="right", **style)
            for group, values in enumerate(groups):
                centre = pitch * row + 3.0 + bar * (group + 0.5)
                value = values[row]
                shown = 0.0 if math.isnan(value) else value
                colour = _SERIES[group % SERIES]
                axes.barh(centre, shown, height=bar - 2.5, color=colour, linewidth=0)
                text = DASH if math.isnan(value) else f"{value:.2f}"
                place = shown + 4 / (width - left - 34)
                axes.text(place, centre, text, fontsize=8, color=_MUTED, **style)
        return _svg(figure, identity, description)


def scatter_chart(groups: Sequence[Dots], *, identity: str, description: str) -> str:
    """Points of a map without axes as an SVG element; later groups lie above earlier ones.

    Args:
      groups: the points.
      identity: prefix of every id in the element; different for every chart of a page.
      description: what a screen reader says.

    Returns:
      The element as text.
    """
    with _style():
        figure = _figure(260, 240)
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
        axes.set_axis_off()
        axes.set_aspect("equal", adjustable="datalim")
        for group in groups:
            colour = _RULE if group.colour is None else _SERIES[(group.colour - 1) % SERIES]
            axes.plot(
                group.x,
                group.y,
                linestyle="none",
                marker="o",
                markersize=2.0 if group.colour is None else 3.0,
                markeredgewidth=0,
                color=colour,
            )
        return _svg(figure, identity, description)


def short_number(value: float) -> str:
    """A number for an axis, as short as it can be.

    Example:
      >>> [short_number(x) for x in (0.0, 0.25, 1500, 24000, 3e6, 1e-5)]
      ['0', '0.25', '1.5k', '24k', '3M', '1e-5']
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return re.sub(r"e([-+])0*", lambda match: "e" + match[1].strip("+"), f"{value:.4g}")


@contextmanager
def _style() -> Iterator[None]:
    """The report's style in place of whatever the user has configured, and back again."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def _figure(width: float, height: float) -> Figure:
    """An empty figure of a size in points."""
    return Figure(figsize=(width / 72, height / 72))


def _width(name: str) -> int:
    """Width of a name in letters; those of East Asian scripts count as two."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in name)


def _cut(name: str, width: int = 22) -> str:
    if _width(name) <= width:
        return name
    while _width(name) > width - 1:
        name = name[:-1]
    return name + "…"


def _svg(figure: Figure, identity: str, description: str) -> str:
    """The figure as an SVG element to put into a page.

    Colours become the page's, the font is inherited, ids that nothing refers to are dropped and
    the others get a prefix: matplotlib uses the same ids in every figure.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings():
        # The browser, not matplotlib, draws the letters, so its fonts need not have them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    root = ET.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    text = ET.tostring(root, encoding="unicode")
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
    kept = {name for pair in used for name in pair if name}
    for element in root.iter():
        if (name := element.attrib.pop("id", None)) in kept:
            element.set("id", f"{identity}-{name}")
        if target := element.attrib.pop(_HREF, None):
            element.set("href", f"#{identity}-{target.removeprefix('#')}")
        if clip := element.get("clip-path"):
            element.set("clip-path", clip.replace("url(#", f"url(#{identity}-"))
        if style := element.get("style"):
            element.set("style", _restyle(style))
        for attribute in ("d", "x", "y"):
            if coordinates := element.get(attribute):
                short = re.sub(r"-?\d+\.\d+", _round, coordinates)
                element.set(attribute, " ".join(short.split()))
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        if element.tag != f"{_SVG}text":
            element.text = None
        element.tail = None
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-label", clean(description))
    return ET.tostring(root, encoding="unicode")


def _restyle(style: str) -> str:
    """The page's colours and font instead of matplotlib's."""
    style = re.sub(r"font-family:[^;]*;?\s*", "", style)
    # Older versions of matplotlib use the short form.
    style = re.sub(r"font:[^;]*?([\d.]+px)[^;]*", r"font-size: \1", style)
    for placeholder, colour in _PAGE_COLOURS.items():
        style = style.replace(placeholder, colour)
    return style.strip()


def _round(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
