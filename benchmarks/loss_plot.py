"""The picture of `benchmarks.loss`: time, memory, and small sizes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from jaxmlcl.bench import CLASS_SUMS, COMPILED, EAGER, FLOOR_TERMS, OURS, WEIGHTS, median
from jaxmlcl.io import write_atomic

# Colours that are told apart without seeing red and green, and a marker of its own for each.
STYLES = {
    OURS: ("#0072b2", "o"),
    WEIGHTS: ("#d55e00", "s"),
    CLASS_SUMS: ("#e69f00", "D"),
    EAGER: ("#7a3b91", "^"),
    COMPILED: ("#c26fa8", "v"),
}
GREY, RULE, INK = "#6b6b6b", "#dddddd", "#222222"
# What a plain form may be faster by at small sizes.
SMALL_AIM = 1.1
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "jaxmlcl",
    # The reader's fonts: half the size, and letters that can be searched.
    "svg.fonttype": "none",
    "font.size": 9.0,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10.0,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
}


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the picture as SVG (or as PNG, by the name's ending)."""
    panels = [
        (name, panel)
        for name, panel in (
            ("shapes", _shapes),
            ("small", _small),
            ("keys", _keys),
            ("labels", _labels),
        )
        if report.get(name)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        lines = (len(panels) + 1) // 2
        figure = Figure(figsize=(10.5, 0.7 + 4.0 * lines), layout="constrained")
        figure.patch.set_facecolor("white")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, hspace=0.06, wspace=0.04)
        grid = figure.subplots(lines, 2, squeeze=False).ravel()
        used: set[str] = set()
        for axes, (name, panel) in zip(grid, panels, strict=False):
            used |= panel(axes, report[name])
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        handles = [
            Line2D([], [], color=colour, marker=marker, markersize=6, label=name)
            for name, (colour, marker) in STYLES.items()
            if name in used
        ]
        figure.legend(
            handles=handles, loc="outside upper center", ncols=len(handles), frameon=False
        )
        buffer = io.BytesIO()
        if path.suffix == ".svg":
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            text = io.StringIO()
            FigureCanvasSVG(figure).print_svg(text, metadata=nothing)
            buffer.write("\n".join(x.rstrip() for x in text.getvalue().splitlines()).encode())
            buffer.write(b"\n")
        else:
            figure.savefig(buffer, format="png", dpi=110)
    write_atomic(path, buffer.getvalue())


def _shapes(axes: Axes, entries: list[dict[str, Any]]) -> set[str]:
    """A row per shape, a mark per form, a grey tick for the floor."""
    used = set()
    names = []
    for row, entry in enumerate(entries):
        problem = entry["problem"]
        size = ", ".join(_count(problem[name]) for name in ("anchors", "keys", "labels"))
        names.append(f"({size})\n{problem['cardinality']:g} labels a row")
        axes.axhline(row, color=RULE, linewidth=0.7, zorder=0)
        terms = [median(entry["floor"][term]) for term in FLOOR_TERMS[:3] if entry["floor"]]
        if terms:
            floor = 1e3 * sum(terms)
            axes.plot([floor, floor], [row - 0.24, row + 0.24], color=GREY, linewidth=2.0)
            if row == 0:
                style: dict[str, Any] = {"color": GREY, "fontsize": 8, "ha": "center"}
                axes.text(floor, row - 0.3, "floor", va="bottom", **style)
        missing = []
        for form in entry["forms"]:
            colour, marker = STYLES[form["name"]]
            if form["seconds"]:
                used.add(form["name"])
                value = 1e3 * median(form["seconds"])
                axes.plot(value, row, marker, color=colour, markersize=7, markeredgecolor="white")
            elif form["counted"]:
                missing.append(form["counted"])
        if missing:
            text = f"others: {_bytes(min(missing))} to {_bytes(max(missing))}, not run"
            if len(missing) == 1 or min(missing) == max(missing):
                text = f"not run: {_bytes(missing[0])}"
            axes.annotate(
                text, (1, row), (0, -9), xycoords=("axes fraction", "data"), ha="right", va="top",
                textcoords="offset points", fontsize=8, color=GREY,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(len(entries) - 0.45, -0.7)
    axes.set_yticks(range(len(entries)), names)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_title("Time of value and gradient by (B, K, L)")
    axes.set_xlabel("milliseconds, log scale")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}"))
    return used


def _small(axes: Axes, entries: list[dict[str, Any]]) -> set[str]:
    """Ours over the better plain form, with the span of the repetitions' middle half."""
    colour, marker = STYLES[OURS]
    for row, entry in enumerate(entries):
        ratios = sorted(entry["ratios"])
        quarter = len(ratios) // 4
        middle = ratios[quarter : len(ratios) - quarter]
        axes.plot([row, row], [middle[0], middle[-1]], color=colour, linewidth=3, alpha=0.35)
        axes.plot(row, median(ratios), marker, color=colour, markersize=7, markeredgecolor="white")
    axes.axhline(1.0, color=GREY, linewidth=1.0)
    axes.axhline(SMALL_AIM, color=GREY, linewidth=1.0, linestyle=(0, (4, 3)))
    for value, text in ((1.0, "as fast"), (SMALL_AIM, "10 % slower")):
        axes.annotate(text, (1, value), (4, 0), xycoords=("axes fraction", "data"), va="center",
                      textcoords="offset points", fontsize=8, color=GREY)  # fmt: skip
    axes.set_xlim(-0.6, len(entries) - 0.4)
    axes.set_ylim(0, max(1.25, 1.05 * axes.get_ylim()[1]))
    names = [f"{entry['anchors']}\n{_count(entry['keys'])}" for entry in entries]
    axes.set_xticks(range(len(entries)), names)
    axes.grid(axis="y")
    axes.set_title("Small sizes: time over the better plain jnp form")
    axes.set_xlabel("B (above) and K (below)")
    axes.set_ylabel("ratio")
    return {OURS}


def _keys(axes: Axes, curve: dict[str, Any]) -> set[str]:
    inputs = [value / 1e6 for value in curve["inputs"]]
    axes.plot(curve["keys"], inputs, color=GREY, linewidth=1.2, linestyle=(0, (1, 2)))
    axes.annotate("the inputs", (curve["keys"][-2], inputs[-2]), (6, -8), fontsize=8, color=GREY,
                  textcoords="offset points", va="center")  # fmt: skip
    _lines(axes, curve["keys"], curve["temporaries"])
    axes.set_title(f"Temporaries as keys grow (B = {curve['anchors']}, L = {curve['labels']})")
    axes.set_xlabel("K, log scale")
    axes.xaxis.set_major_locator(FixedLocator(curve["keys"][:: 1 if len(curve["keys"]) < 6 else 2]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _count(int(x))))
    return set(curve["temporaries"])


def _labels(axes: Axes, curve: dict[str, Any]) -> set[str]:
    _lines(axes, curve["cardinalities"], curve["peaks"])
    size = ", ".join(_count(curve[name]) for name in ("anchors", "keys", "labels"))
    axes.set_title(f"Resident memory as labels grow ({size})")
    axes.set_xlabel("labels per row, log scale")
    axes.xaxis.set_major_locator(FixedLocator(curve["cardinalities"]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    return set(curve["peaks"])


def _lines(axes: Axes, x: list[float], forms: dict[str, list[int | None]]) -> None:
    """Log-log lines, with the last value of each at its end."""
    ends: list[tuple[float, str, str]] = []
    for name, values in forms.items():
        colour, marker = STYLES[name]
        shown = [None if value is None else max(value, 1e4) / 1e6 for value in values]
        width = 2.4 if name == OURS else 1.5
        axes.plot(x, shown, color=colour, marker=marker, markersize=4.5, linewidth=width,
                  zorder=3 if name == OURS else 2)  # fmt: skip
        if values[-1] is not None:
            ends.append((shown[-1] or 0.0, _bytes(values[-1]), colour))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.10g}"))
    axes.grid(axis="y")
    axes.set_ylabel("MB, log scale")
    low, high = axes.get_ylim()
    # Labels that would cover each other are moved apart: at least so much of the axis between them.
    least = (high / low) ** 0.055
    place = 0.0
    for value, text, colour in sorted(ends):
        place = max(value, place * least)
        axes.annotate(text, (1.0, place), (4, 0), xycoords=("axes fraction", "data"), va="center",
                      textcoords="offset points", fontsize=8, color=colour)  # fmt: skip


def _count(value: int) -> str:
    """A power of two as people say it.

    >>> _count(365), _count(65536), _count(1048576)
    ('365', '64Ki', '1Mi')
    """
    for size, letters in ((2**20, "Mi"), (2**10, "Ki")):
        if value >= size and value % size == 0:
            return f"{value // size}{letters}"
    return str(value)


def _bytes(value: float) -> str:
    if value >= 1e9:
        return f"{value / 1e9:.3g} GB"
    return f"{value / 1e6:.3g} MB"
