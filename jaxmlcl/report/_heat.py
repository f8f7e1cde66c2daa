"""A matrix of labels against labels, as a picture on white."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from jaxmlcl.report._plots import _figure, _style
from jaxmlcl.report._read import clean

NAMED = 80
"""Up to so many labels are named."""


def heat_map(values: np.ndarray, names: Sequence[str], title: str = "") -> bytes:
    """A PNG of a symmetric matrix: blue below 0, red above, the diagonal left white.

    Args:
      values: [L, L]; what is not finite is left white.
      names: of the labels, [L]; written up to 80 labels.
      title: above the picture.

    Returns:
      The picture.

    Raises:
      ValueError: `values` is not [L, L], or not a name for each label.

    Example:
      >>> heat_map(np.eye(3), ["a", "b", "c"])[:4]
      b'\\x89PNG'
    """
    values = np.array(values, np.float64)
    if values.ndim != 2 or values.shape != (len(names), len(names)) or not len(names):
        raise ValueError(
            f"values has shape {list(values.shape)} and there are {len(names)} names; expected "
            "[L, L] with a name for each label"
        )
    np.fill_diagonal(values, np.nan)
    finite = np.abs(values[np.isfinite(values)])
    limit = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    return _picture(values, names, "RdBu_r", (-limit, limit), title)


def similarity_map(
    similarity: np.ndarray, names: Sequence[str], limits: tuple[float, float] | None = None
) -> bytes:
    """A PNG of a matrix of class similarities on white: the darker, the more alike.

    Args:
      similarity: [K, K].
      names: of the classes, [K]; written up to 80.
      limits: the values that are lightest and darkest; those of the matrix by default.

    Returns:
      The picture.

    Example:
      >>> similarity_map(np.full((3, 3), 1 / 3), ["cat", "cow", "dog"])[:4]
      b'\\x89PNG'
    """
    limits = limits or (float(similarity.min()), float(similarity.max()))
    return _picture(similarity, names, "Blues", limits)


def _picture(
    values: np.ndarray,
    names: Sequence[str],
    colours: str,
    limits: tuple[float, float],
    title: str = "",
) -> bytes:
    named = len(names) <= NAMED
    side = min(max(11.0 * len(names), 200.0), 620.0)
    with _style():
        figure = _figure(side + (150 if named else 80), side + (120 if named else 50))
        axes = figure.add_subplot()
        image = axes.imshow(
            values, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="nearest"
        )
        axes.set_facecolor("white")
        if named:
            texts = [clean(str(name))[:24] for name in names]
            axes.set_xticks(range(len(names)), texts, rotation=90, fontsize=7)
            axes.set_yticks(range(len(names)), texts, fontsize=7)
        else:
            axes.set_xticks([])
            axes.set_yticks([])
        if title:
            axes.set_title(clean(title), fontsize=9, loc="left", color="#333333")
        axes.tick_params(colors="#999999", labelcolor="#333333", length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.03)
        bar.ax.tick_params(labelsize=7, colors="#999999", labelcolor="#333333")
        bar.outline.set_visible(False)
        figure.set_facecolor("white")
        figure.tight_layout(pad=1.5)
        figure.set_dpi(2 * figure.get_dpi())
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
        return buffer.getvalue()
