"""Probes: what can be read off a frozen representation without training anything.

Two readers that need no gradient: the labels of the nearest training rows, and ridge regression.
Both choose their one setting on validation rows, or, without any, on training rows left out one
at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxmlcl.evaluation._counts import mean, ratio
from jaxmlcl.evaluation._inputs import Inputs, check, check_rows
from jaxmlcl.evaluation._ranking import label_rankings

NEIGHBOURS = (5, 10, 20, 50, 100, 200)
PENALTIES = tuple(10.0**power for power in range(-6, 4))

_BLOCK = 1 << 24  # similarities held at once


class ProbeScores(NamedTuple):
    """What a probe says.

    Attributes:
        scores: of the rows asked about [n, L] float32.
        validation_scores: of the validation rows [v, L] float32, or None without any.
        chosen: the number of neighbours, or the penalty.
        tried: every candidate with what it was chosen by (empty where there was no choice).
    """

    scores: np.ndarray
    validation_scores: np.ndarray | None
    chosen: float
    tried: dict[float, float]


def knn_scores(
    train_embeddings: ArrayLike,
    train_labels: ArrayLike,
    embeddings: ArrayLike,
    *,
    neighbours: int | Sequence[int] = NEIGHBOURS,
    temperature: float | None = 0.07,
    validation_embeddings: ArrayLike | None = None,
    validation_labels: ArrayLike | None = None,
    label_mask: ArrayLike | None = None,
    validation_mask: ArrayLike | None = None,
) -> ProbeScores:
    """Votes of the nearest training rows.

    score_ij = sum over the k nearest rows r of w_ir y_rj / sum of w_ir
    w_ir = exp(cosine_ir / temperature), or 1 for plain votes

    Args:
        train_embeddings: [m, D], finite; only their directions count.
        train_labels: [m, L], 0/1.
        embeddings: [n, D], the rows to score. None of the training rows is left out for them.
        neighbours: k, or several of which one is chosen: the best mAP on validation, or, without
            validation, on the training rows with the votes of the others. Of equally good ones
            the smallest; those beyond the number of rows are cut to it.
        temperature: of the weights, > 0; None for plain votes.
        validation_embeddings: [v, D], or None.
        validation_labels: [v, L]; both or neither.
        label_mask: [m, L], True where a training label is known; None: everywhere. Only rows that
            know a label vote for it; where none of the k does, the score is the label's frequency.
        validation_mask: [v, L], the same for validation.

    Returns:
        `ProbeScores` in [0, 1]; `tried` holds the mAP of every k.

    Raises:
        ValueError: shapes differ, embeddings are not finite, k < 1, temperature <= 0.

    Example:
        >>> train, labels = [[1.0, 0.1], [1.0, -0.1], [0.0, 2.0]], [[1, 0], [1, 1], [0, 1]]
        >>> found = knn_scores(train, labels, [[3.0, 0.0]], neighbours=2, temperature=None)
        >>> found.scores.tolist(), found.chosen
        ([[1.0, 0.5]], 2)

    Source: Wu, Xiong, Yu, Lin, Unsupervised feature learning via non-parametric instance
        discrimination (CVPR 2018), section 3.4.
    """
    train, labels, known = _training(train_embeddings, train_labels, label_mask)
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected a positive number or None")
    asked = [neighbours] if isinstance(neighbours, int | np.integer) else list(neighbours)
    if not asked or min(asked) < 1:
        raise ValueError(f"neighbours is {neighbours}, expected numbers of at least 1")
    validation = _validation(
        validation_embeddings, validation_labels, validation_mask, (train.shape[1], labels.shape[1])
    )
    directions = _directions(train)
    prior = ratio((labels & known).sum(axis=0), known.sum(axis=0))

    def votes(queries: np.ndarray, sizes: Sequence[int], alone: bool) -> Iterator[np.ndarray]:
        """Scores [n, L] for each of the sizes."""
        nearest, similar = _nearest(directions, _directions(queries), max(sizes), alone)
        weights = np.ones_like(similar)
        if temperature is not None:
            weights = np.exp((similar - similar[:, :1]) / temperature)
        for size in sizes:
            yield _vote(nearest[:, :size], weights[:, :size], labels, known, prior)

    def sizes_for(rows: int) -> list[int]:
        return sorted({min(int(k), rows) for k in asked})

    tried: dict[float, float] = {}
    checked = None
    sizes = sizes_for(len(train))
    if validation is not None:
        kept = None
        for size, scores in zip(sizes, votes(validation.scores, sizes, False), strict=True):
            tried[size] = _mean_precision(scores, validation)
            if kept is None or size == _best(tried):
                kept = scores
        checked = kept
    elif len(sizes) > 1:
        sizes = sizes_for(len(train) - 1)
        truth = Inputs(train, labels & known, known)
        for size, scores in zip(sizes, votes(train, sizes, True), strict=True):
            tried[size] = _mean_precision(scores, truth)
    chosen = int(_best(tried)) if tried else sizes[0]
    queries = _rows(embeddings, "embeddings", train.shape[1])
    scores = next(votes(queries, [chosen], False))
    return ProbeScores(scores, checked, chosen, tried if len(sizes) > 1 else {})


def ridge_scores(
    train_embeddings: ArrayLike,
    train_labels: ArrayLike,
    embeddings: ArrayLike,
    *,
    penalties: float | Sequence[float] = PENALTIES,
    validation_embeddings: ArrayLike | None = None,
    validation_labels: ArrayLike | None = None,
    label_mask: ArrayLike | None = None,
    validation_mask: ArrayLike | None = None,
) -> ProbeScores:
    """Linear regression on the labels with a squared penalty and a free intercept, in closed form.

    argmin over W, b of |Y - X W - b|^2 + penalty * v |W|^2

    with v the mean over the D features of their squared deviations, summed over the rows, so that
    penalties mean the same whatever the scale of the embeddings. One eigendecomposition serves all
    penalties.

    Args:
        train_embeddings: [m, D], finite.
        train_labels: [m, L], 0/1.
        embeddings: [n, D], the rows to score.
        penalties: one, or several of which one is chosen for all labels: the best mAP on
            validation, or, without validation, the smallest mean squared error of training rows
            left out one at a time (exactly, from the same decomposition). Of equally good ones
            the smallest.
        validation_embeddings: [v, D], or None.
        validation_labels: [v, L]; both or neither.
        label_mask: [m, L], True where a training label is known; None: everywhere. Each label is
            fitted to the rows that know it; labels known in the same rows share a decomposition,
            and labels known nowhere score 0.
        validation_mask: [v, L], the same for validation.

    Returns:
        `ProbeScores`; scores are near [0, 1], and not cut to it, which would make ties. `tried`
        holds the mAP of every penalty, or its squared error.

    Raises:
        ValueError: shapes differ, embeddings are not finite, a penalty is not positive.

    Example:
        >>> train, labels = [[0.0], [1.0], [2.0], [3.0]], [[0], [0], [1], [1]]
        >>> found = ridge_scores(train, labels, [[1.5], [4.0]], penalties=1e-9)
        >>> found.scores.round(3).tolist()
        [[0.5], [1.5]]

    Source: Hoerl, Kennard, Ridge regression (Technometrics 12, 1970); leaving one out: Golub,
        Heath, Wahba, Generalized cross-validation (Technometrics 21, 1979).
    """
    train, labels, known = _training(train_embeddings, train_labels, label_mask)
    asked = np.unique(np.atleast_1d(np.asarray(penalties, np.float64)))
    if asked.size == 0 or not (np.isfinite(asked).all() and asked[0] > 0):
        raise ValueError(f"penalties is {penalties}, expected positive numbers")
    width = train.shape[1]
    validation = _validation(
        validation_embeddings, validation_labels, validation_mask, (width, labels.shape[1])
    )
    queries = _rows(embeddings, "embeddings", width)
    patterns, of_label = np.unique(known, axis=1, return_inverse=True)
    fits = [
        (np.flatnonzero(of_label == i), _Ridge(train[rows], labels[rows][:, of_label == i]))
        for i, rows in enumerate(patterns.T)
        if rows.any()
    ]

    def predict(x: np.ndarray, penalty: float) -> np.ndarray:
        scores = np.zeros((len(x), labels.shape[1]), np.float32)
        for columns, fit in fits:
            scores[:, columns] = fit.predict(x, penalty)
        return scores

    tried: dict[float, float] = {}
    checked = None
    if validation is not None:
        for penalty in asked.tolist():
            scores = predict(validation.scores, penalty)
            tried[penalty] = _mean_precision(scores, validation)
            if checked is None or penalty == _best(tried):
                checked = scores
        chosen = _best(tried)
    elif asked.size > 1:
        for penalty in asked.tolist():
            squares = math.fsum(fit.left_out(penalty) for _, fit in fits)
            tried[penalty] = squares / int(known.sum())
        chosen = _best(tried, min)
    else:
        chosen = float(asked[0])
    return ProbeScores(predict(queries, chosen), checked, chosen, tried if asked.size > 1 else {})


class _Ridge:
    """Ridge regression for all penalties: X - mean = Z V', with Z' Z = diag(squares)."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        x, y = x.astype(np.float64), y.astype(np.float64)
        self.center, self.level = x.mean(axis=0), y.mean(axis=0)
        x = x - self.center
        self.residual = y - self.level
        # The smaller of the two Gram matrices has the same eigenvalues.
        if len(x) >= x.shape[1]:
            squares, self.directions = np.linalg.eigh(x.T @ x)
            self.rows = x @ self.directions
        else:
            squares, left = np.linalg.eigh(x @ x.T)
            kept = squares > squares[-1] * len(x) * np.finfo(np.float64).eps
            squares, left = squares[kept], left[:, kept]
            self.rows = left * np.sqrt(squares)
            self.directions = x.T @ (left / np.sqrt(squares))
        self.squares = np.maximum(squares, 0.0)
        # Without any deviation the penalty has no scale, and no effect.
        self.unit = float(np.square(x).sum()) / x.shape[1] or 1.0
        self.along = self.rows.T @ self.residual

    def _coefficients(self, penalty: float) -> np.ndarray:
        return self.along / (self.squares + penalty * self.unit)[:, None]

    def predict(self, x: np.ndarray, penalty: float) -> np.ndarray:
        weights = self.directions @ self._coefficients(penalty)
        return (x - self.center) @ weights + self.level

    def left_out(self, penalty: float) -> float:
        """Sum of squared errors of the rows, each predicted from the others."""
        fitted = self.rows @ self._coefficients(penalty)
        leverage = np.square(self.rows) @ (1 / (self.squares + penalty * self.unit))
        rest = 1 - leverage - 1 / len(fitted)
        errors = ratio(self.residual - fitted, rest[:, None])
        # A row alone is predicted by nothing: its whole label is the error.
        errors = np.where(rest[:, None] <= 0, self.residual + self.level, errors)
        return float(np.square(errors).sum())


def _best(tried: dict[float, float], by: Callable[..., float] = max) -> float:
    """The candidate with the best value, the first of equally good ones; NaN never wins."""
    worst = -math.inf if by is max else math.inf
    return by(tried, key=lambda name: worst if math.isnan(tried[name]) else tried[name])


def _mean_precision(scores: np.ndarray, truth: Inputs) -> float:
    mask = None if truth.mask is None else truth.mask
    return mean(label_rankings(Inputs(scores, truth.labels, mask), areas=False)[0])


def _rows(values: ArrayLike, name: str, width: int | None) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32 if array.dtype.kind not in "iub" else np.float64)
    if array.ndim != 2 or array.shape[1] == 0 or width not in (None, array.shape[1]):
        expected = "D" if width is None else width
        raise ValueError(f"{name} has shape {array.shape}, expected [rows, {expected}]")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite")
    return array


def _labels(
    labels: ArrayLike, mask: ArrayLike | None, rows: int, names: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Labels and mask as bool, checked as those of the measures are."""
    array = np.asarray(labels)
    if array.ndim != 2 or len(array) != rows:
        raise ValueError(f"{names[0]} has shape {array.shape}, expected [{rows}, L]")
    try:
        inputs = check(np.zeros(array.shape, np.float32), array, mask)
    except ValueError as error:
        text = str(error).replace("label_mask", names[1]).replace("labels", names[0])
        raise ValueError(text) from None
    return inputs.labels, inputs.mask


def _training(
    embeddings: ArrayLike, labels: ArrayLike, mask: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    train = _rows(embeddings, "train_embeddings", None)
    if len(train) == 0:
        raise ValueError("train_embeddings has no row")
    truth, known = _labels(labels, mask, len(train), ("train_labels", "label_mask"))
    return train, truth, np.ones(truth.shape, np.bool_) if known is None else known


def _validation(
    embeddings: ArrayLike | None,
    labels: ArrayLike | None,
    mask: ArrayLike | None,
    shape: tuple[int, int],
) -> Inputs | None:
    """The validation rows, with their embeddings in the place of scores."""
    if (embeddings is None) != (labels is None):
        raise ValueError("validation_embeddings and validation_labels: give both or neither")
    if embeddings is None or labels is None:
        return None
    rows = _rows(embeddings, "validation_embeddings", shape[0])
    names = ("validation_labels", "validation_mask")
    truth, known = _labels(labels, mask, len(rows), names)
    if truth.shape[1] != shape[1]:
        raise ValueError(f"validation_labels has shape {truth.shape}, expected [v, {shape[1]}]")
    check_rows(Inputs(np.zeros(truth.shape), truth, known))
    return Inputs(rows, truth, known)


def _directions(x: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows of zeros stay."""
    x = x.astype(np.float32) if x.dtype != np.float64 else x
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def _nearest(
    train: np.ndarray, queries: np.ndarray, size: int, alone: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The `size` nearest training rows of each query, nearest first, and their cosines [n, size].

    With `alone` the queries are the training rows, and none is its own neighbour.
    """
    step = max(1, _BLOCK // len(train))
    nearest = np.empty((len(queries), size), np.int64)
    similar = np.empty((len(queries), size), np.result_type(train, queries))
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        cosines = queries[rows] @ train.T
        if alone:
            cosines[np.arange(len(cosines)), np.arange(rows.start, rows.stop)] = -np.inf
        if size < len(train):
            found = np.argpartition(-cosines, size - 1, axis=1)[:, :size]
            found.sort(axis=1)
        else:
            found = np.broadcast_to(np.arange(size), (len(cosines), size))
        values = np.take_along_axis(cosines, found, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        nearest[rows] = np.take_along_axis(found, order, axis=1)
        similar[rows] = np.take_along_axis(values, order, axis=1)
    return nearest, similar


def _vote(
    nearest: np.ndarray,
    weights: np.ndarray,
    labels: np.ndarray,
    known: np.ndarray,
    prior: np.ndarray,
) -> np.ndarray:
    """Weighted share of the neighbours that have each label, of those that know it [n, L]."""
    whole = bool(known.all())
    result = np.empty((len(nearest), labels.shape[1]), np.float32)
    step = max(1, _BLOCK // (nearest.shape[1] * labels.shape[1]))
    for start in range(0, len(nearest), step):
        rows = slice(start, start + step)
        # [b, 1, k] @ [b, k, L]: a small matrix product for each row.
        weight = weights[rows, None].astype(np.float32)
        votes = weight @ labels[nearest[rows]].astype(np.float32)
        if whole:
            share = votes[:, 0] / weight.sum(axis=2)
        else:
            of = (weight @ known[nearest[rows]].astype(np.float32))[:, 0]
            share = np.where(of > 0, votes[:, 0] / np.where(of > 0, of, 1), prior)
        # Rounding must not lift a unanimous vote above 1.
        result[rows] = np.clip(share, 0, 1)
    return result
