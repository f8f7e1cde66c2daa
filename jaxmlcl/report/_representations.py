"""What encoders make of a split: how alike they find its classes, and a map of its rows."""

from __future__ import annotations

import base64
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from jaxmlcl.errors import UserError
from jaxmlcl.report._heat import similarity_map
from jaxmlcl.report._plots import SERIES, Dots, scatter_chart
from jaxmlcl.report._read import Run, _remake

FEWEST_ROWS = 20
"""A map of fewer different rows would show nothing."""


class Kept(NamedTuple):
    """What evaluation keeps of a stage's representations."""

    class_means: np.ndarray  # [L, width]
    class_counts: np.ndarray  # [L]
    labels: np.ndarray  # [m, L]
    alone: np.ndarray  # [m], of rows with exactly one label
    representation: np.ndarray  # [m, width]
    label_names: tuple[str, ...]


def class_similarity(class_means: np.ndarray) -> np.ndarray:
    """How alike classes are to an encoder: softmax_b cos(mean_a, mean_b), a row for each class.

    Args:
      class_means: [K, width], the mean representation of the rows that carry exactly one label.

    Returns:
      [K, K], rows sum to 1; a class whose mean is 0 is as like every other.

    Example:
      >>> class_similarity(np.array([[1.0, 0.0], [0.0, 2.0]])).round(3).tolist()
      [[0.731, 0.269], [0.269, 0.731]]

    Source: MulSupCon, AAAI 2024, figure 3.
    """
    cosine = _cosine(class_means)
    exponential = np.exp(cosine - cosine.max(axis=1, keepdims=True))
    similarity: np.ndarray = exponential / exponential.sum(axis=1, keepdims=True)
    return similarity


def _cosine(class_means: np.ndarray) -> np.ndarray:
    means = np.asarray(class_means, np.float64)
    length = np.linalg.norm(means, axis=1, keepdims=True)
    unit = means / np.where(length > 0, length, 1)
    return unit @ unit.T


def show_similarities(run: Run) -> list[dict[str, Any]]:
    """Heat maps of class similarity, of all stages that saw the same data under one scale.

    Raises:
      UserError: a file of representations is damaged.
    """
    shown = []
    for stages in run.stages_by_data():
        kept = {name: found for name in stages if (found := read_kept(run, name)) is not None}
        if not kept:
            continue
        first = next(iter(kept.values()))
        there = np.flatnonzero(first.class_counts > 0)
        if len(there) < 2:
            continue
        names = [first.label_names[index] for index in there]
        maps = {name: class_similarity(one.class_means[there]) for name, one in kept.items()}
        limits = min(m.min() for m in maps.values()), max(m.max() for m in maps.values())
        pictures = []
        for name, similarity in maps.items():
            cosine = _cosine(kept[name].class_means[there])
            others = cosine[~np.eye(len(there), dtype=bool)].mean()
            picture = similarity_map(similarity, names, limits)
            pictures.append(
                {
                    "stage": name,
                    "uri": "data:image/png;base64," + base64.b64encode(picture).decode(),
                    "cosine": f"{others:.3f}",
                }
            )
        shown.append(
            {
                "stages": list(kept),
                "classes": len(there),
                "left_out": len(first.label_names) - len(there),
                "rows": int(first.class_counts.sum()),
                "pictures": pictures,
            }
        )
    return shown


def show_maps(run: Run) -> list[dict[str, Any]]:
    """A two-dimensional map of some rows by t-SNE for each stage, coloured by label.

    Raises:
      UserError: a file of representations is damaged.
    """
    shown: list[dict[str, Any]] = []
    for stages in run.stages_by_data():
        for name in stages:
            kept = read_kept(run, name)
            if kept is None:
                continue
            places = neighbour_map(kept.representation)
            if places is None:
                continue
            alone = kept.alone
            counts = kept.labels[alone].sum(axis=0, dtype=np.int64)
            largest = [int(i) for i in np.argsort(-counts, kind="stable")[:SERIES] if counts[i]]
            coloured = [alone & (kept.labels[:, label] > 0) for label in largest]
            rest = ~np.any(coloured, axis=0) if coloured else np.ones(len(places), bool)
            dots = [Dots(places[rest, 0], places[rest, 1], None)]
            dots += [
                Dots(places[chosen, 0], places[chosen, 1], colour)
                for colour, chosen in enumerate(coloured, start=1)
            ]
            legend = [
                {"colour": colour, "name": kept.label_names[label]}
                for colour, label in enumerate(largest, start=1)
            ]
            shown.append(
                {
                    "stage": name,
                    "rows": len(places),
                    "legend": legend,
                    "svg": Markup(
                        scatter_chart(
                            dots,
                            identity=f"map-{len(shown)}",
                            description=f"Map of {len(places)} representations of {name} by t-SNE",
                        )
                    ),
                }
            )
    return shown


def neighbour_map(representation: np.ndarray) -> np.ndarray | None:
    """Places [m, 2] of representations [m, width] by t-SNE of their directions, always the same.

    Rows that are equal have one place. None for fewer than 20 different rows: there is no map of
    them, and scikit-learn's tree does not survive rows that are all alike.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows = np.asarray(representation, np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    directions = (rows / np.where(length > 0, length, 1)).round(7)
    different, place_of = np.unique(directions, axis=0, return_inverse=True)
    if len(different) < FEWEST_ROWS:
        return None
    # Distances in the 50 widest directions are what t-SNE's authors take, and are far cheaper.
    widest = PCA(min(50, *different.shape), svd_solver="full").fit_transform(different)
    if widest.shape[1] < 2:
        widest = np.pad(widest, ((0, 0), (0, 1)))
    perplexity = min(30, (len(different) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(widest)
    return np.asarray(places[place_of.ravel()])


def read_kept(run: Run, stage: str) -> Kept | None:
    """What evaluation kept of a stage, or None where it kept nothing.

    Raises:
      UserError: the file is damaged.
    """
    path = run.workdir / "evaluation" / f"{stage}-{run.split}-representations.npz"
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            kept = Kept(
                file["class_means"],
                file["class_counts"],
                file["labels"],
                file["alone"],
                file["representation"],
                tuple(str(name) for name in file["label_names"]),
            )
        labels = len(kept.label_names)
        fit = (
            kept.class_means.ndim == kept.representation.ndim == 2
            and kept.class_means.shape[0] == labels
            and kept.class_counts.shape == (labels,)
            and kept.labels.shape == (len(kept.representation), labels)
            and kept.alone.shape == kept.labels.shape[:1]
            and kept.alone.dtype == bool
            and np.isfinite(kept.class_means).all()
            and np.isfinite(kept.representation).all()
        )
        if not fit:
            raise ValueError("its arrays do not fit together")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        message = f"{path}: damaged representations ({error}); {_remake(Path(path))}"
        raise UserError(message) from error
    return kept
