"""The critical-difference diagram: average ranks on a line, methods that do not differ joined."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from jaxmlcl.report._plots import _INK, _MUTED, _RULE, _SERIES, _cut, _figure, _style, _svg, _width
from jaxmlcl.report._read import clean

# What the page's style sheet says of the colours, for a picture without a page.
_ON_PAPER = {_INK: "#1a1a1a", _MUTED: "#666666", _RULE: "#999999", _SERIES[0]: "#1f5fa8"}
_ROW, _LETTER = 14.0, 5.3


def critical_difference_plot(
    names: Sequence[str],
    ranks: ArrayLike,
    cd: float,
    *,
    form: Literal["svg", "png"] = "svg",
) -> bytes:
    """Average ranks of methods on a line; a bar joins methods that differ by less than `cd`.

    Args:
      names: [k] methods; long names are cut.
      ranks: [k] average ranks, 1 the best, as `average_ranks` gives them.
      cd: the critical difference, as `nemenyi_critical_difference` gives it.
      form: "svg", an element for a page or a file of its own, or "png", on white.

    Returns:
      The picture as bytes.

    Raises:
      ValueError: names and ranks that do not fit together, or a number that is not one.

    Example:
      >>> picture = critical_difference_plot(["A", "B", "C"], [1.2, 1.9, 2.9], 1.0)
      >>> picture.startswith(b"<svg")
      True

    Source: J. Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006,
    figure 1.
    """
    where = np.asarray(ranks, np.float64)
    if where.ndim != 1 or len(where) != len(names) or len(where) < 2:
        raise ValueError(f"ranks has shape {where.shape} for {len(names)} names; expected [k] each")
    if not (np.isfinite(where).all() and math.isfinite(cd) and cd > 0):
        raise ValueError(f"ranks {where.tolist()} or cd {cd} is not finite, or cd is not above 0")
    if form not in ("svg", "png"):
        raise ValueError(f"form is {form!r}; expected 'svg' or 'png'")
    order = np.argsort(where, kind="stable")
    methods = [(_cut(clean(names[i])[:200]), float(where[i])) for i in order]
    colours = _ON_PAPER if form == "png" else {colour: colour for colour in _ON_PAPER}
    with _style():
        figure = _drawn(methods, cd, colours)
        if form == "svg":
            listed = ", ".join(f"{name} {rank:.2f}" for name, rank in methods)
            text = f"Average ranks: {listed}. Critical difference {cd:.2f}."
            return _svg(figure, "critical-difference", text).encode()
        buffer = io.BytesIO()
        figure.set_facecolor("white")
        figure.set_dpi(2 * figure.get_dpi())
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
        return buffer.getvalue()


def _drawn(methods: Sequence[tuple[str, float]], cd: float, colours: dict[str, str]) -> Figure:
    """The diagram in points: the scale above, bars below it, then the names on both sides."""
    ranks = [rank for _, rank in methods]
    low, high = math.floor(min(1.0, *ranks)), math.ceil(max(len(methods), *ranks))
    bars = joined(ranks, cd)
    left_half = (len(methods) + 1) // 2
    margin = 40.0 + _LETTER * max(_width(name) for name, _ in methods)
    scale = max(180.0, 44.0 * (high - low))
    width = scale + 2 * margin
    # A critical difference beyond the scale reaches past its end.
    reach = max(width, margin + cd / (high - low) * scale + 20.0)
    names_at = 46.0 + 7.0 * len(bars) + 10.0
    height = names_at + _ROW * left_half + 2.0
    figure = _figure(reach, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, reach)
    axes.set_ylim(height, 0)
    axes.axis("off")
    ink, muted, rule = colours[_INK], colours[_MUTED], colours[_RULE]

    def x(rank: float) -> float:
        return margin + (rank - low) / (high - low) * scale

    def line(points: Sequence[tuple[float, float]], colour: str, thick: float, **more: Any) -> None:
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=thick, **more)

    def text(place: tuple[float, float], words: str, colour: str, **more: Any) -> None:
        axes.text(*place, words, color=colour, **{"va": "center_baseline", **more})

    top = 38.0
    ends = x(low), x(low) + cd / (high - low) * scale
    line([(ends[0], 16), (ends[1], 16)], muted, 1.0)
    for end in ends:
        line([(end, 13), (end, 19)], muted, 1.0)
    text(((ends[0] + ends[1]) / 2, 7), f"CD {cd:.2f}", muted, ha="center", fontsize=8)
    line([(x(low), top), (x(high), top)], ink, 1.0)
    for tick in range(low, high + 1):
        line([(x(tick), top), (x(tick), top - 4)], ink, 1.0)
        text((x(tick), top - 10), str(tick), muted, ha="center", fontsize=8)
    for number, (first, last) in enumerate(bars):
        y = top + 9.0 + 7.0 * number
        pieces = [(x(ranks[first]) - 3, y), (x(ranks[last]) + 3, y)]
        line(pieces, colours[_SERIES[0]], 3.0, solid_capstyle="butt")
    for number, (name, rank) in enumerate(methods):
        on_left = number < left_half
        row = number if on_left else len(methods) - 1 - number
        y = names_at + _ROW * (row + 0.5)
        side = margin - 26.0 if on_left else margin + scale + 26.0
        line([(x(rank), top), (x(rank), y), (side, y)], rule, 0.8, solid_joinstyle="miter")
        gap, align = (-4.0, "right") if on_left else (4.0, "left")
        text((side + gap, y), name, ink, ha=align)
        inner, align = (4.0, "left") if on_left else (-4.0, "right")
        text((side + inner, y - 4.5), f"{rank:.2f}", muted, ha=align, fontsize=7)
    return figure


def joined(ranks: Sequence[float], cd: float) -> list[tuple[int, int]]:
    """The longest runs of ascending ranks within `cd`, as first and last; single ones are none.

    Example:
      >>> joined([1.0, 1.5, 2.2, 4.0], 1.0)
      [(0, 1), (1, 2)]
    """
    runs: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = max(i for i in range(first, len(ranks)) if ranks[i] - ranks[first] < cd)
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs
