"""Curves of a study beside each other, as one picture on white."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import FuncFormatter, NullFormatter

from jaxmlcl.report._plots import _figure, _style
from jaxmlcl.report._read import clean

_COLOURS = ("#1f5fa8", "#c4561d", "#3c8d4f", "#8a5fb0", "#6b6b6b")


@dataclass(frozen=True)
class Panel:
    """One pair of axes: curves over the same positions."""

    title: str
    x_label: str
    x: np.ndarray
    """[s]."""
    lines: Mapping[str, np.ndarray]
    """Name to values [s] or [k, s], of which the mean is drawn and the range is shaded."""
    logarithmic: bool = False
    """Whether positions are on a logarithmic scale, with a mark at each."""
    mark: float | None = None
    """A position to mark by a vertical line."""


def curves_plot(panels: Sequence[Panel]) -> bytes:
    """A PNG of the panels, side by side, at most three in a row.

    Args:
      panels: at least one.

    Returns:
      The picture.

    Raises:
      ValueError: no panel.

    Example:
      >>> panel = Panel("KL", "epoch", np.arange(3), {"mean": np.array([0.3, 0.2, 0.1])})
      >>> curves_plot([panel])[:4]
      b'\\x89PNG'
    """
    if not panels:
        raise ValueError("panels is empty; expected at least one")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with _style():
        figure = _figure(250.0 * columns, 190.0 * rows)
        for number, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, number + 1)
            for colour, (name, values) in zip(
                _COLOURS * len(panel.lines), panel.lines.items(), strict=False
            ):
                many = np.atleast_2d(np.asarray(values, np.float64))
                axes.plot(
                    panel.x,
                    many.mean(0),
                    color=colour,
                    linewidth=1.4,
                    label=name,
                    marker="o" if panel.logarithmic else None,
                    markersize=3.0,
                )
                if len(many) > 1:
                    axes.fill_between(
                        panel.x, many.min(0), many.max(0), color=colour, alpha=0.18, linewidth=0
                    )
            if panel.logarithmic:
                axes.set_xscale("log")
                # Texts are not parsed as formulas here, which Matplotlib's own labels would be.
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.xaxis.set_minor_formatter(NullFormatter())
            if panel.mark is not None:
                axes.axvline(panel.mark, color="#999999", linewidth=0.9, linestyle=(0, (3, 2)))
            axes.grid(axis="y")
            axes.set_title(clean(panel.title), fontsize=9, loc="left")
            axes.set_xlabel(clean(panel.x_label), fontsize=8)
            for text in [axes.title, axes.xaxis.label, *axes.get_xticklabels()]:
                text.set_color("#333333")
            axes.tick_params(colors="#666666", labelcolor="#333333")
            axes.spines["bottom"].set_color("#999999")
            axes.grid(color="#dddddd")
            if len(panel.lines) > 1:
                axes.legend(frameon=False, fontsize=7.5, labelcolor="#333333")
        figure.set_facecolor("white")
        figure.tight_layout()
        figure.set_dpi(2 * figure.get_dpi())
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
        return buffer.getvalue()
