"""Losses of a latent space that labels divide among them: Gaussians, mixtures, label embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ._common import (
    accumulation_dtype,
    check_floating,
    check_labels,
    check_number,
    check_shape,
    concrete,
    divide,
    dot,
)


def gaussian_log_density(z: ArrayLike, mean: ArrayLike, variance: ArrayLike) -> jax.Array:
    """Logarithm of a Gaussian's density with a diagonal covariance, without its 2 pi.

        -1/2 sum_d (log v_d + (z_d - m_d)^2 / v_d)

    The constant d/2 log(2 pi) is left out, as it cancels in every difference of two densities.

    Args:
        z: [..., d].
        mean: [..., d] or [d], of a shape that broadcasts against `z`.
        variance: the same, > 0.

    Returns:
        [...], in at least float32.

    Raises:
        ValueError: an argument that does not fit; the message names it and its shape.

    Example:
        >>> print(f"{gaussian_log_density([1.0, 0.0], [0.0, 0.0], [1.0, 2.0]):.6f}")
        -0.846574

    Source: C-GMVAE, ICML 2022, eq. 3.
    """
    z, mean, variance = _gaussians(z=z, mean=mean, variance=variance)
    return -0.5 * (jnp.log(variance) + jnp.square(z - mean) / variance).sum(-1)


def mixture_log_density(
    z: ArrayLike,
    means: ArrayLike,
    variances: ArrayLike,
    labels: ArrayLike,
    *,
    label_mask: ArrayLike | None = None,
) -> jax.Array:
    """Logarithm of the density of the mixture of a row's labels, without the 2 pi.

        log sum_i y_i N(z; m_i, v_i) - log sum_i y_i

    Every label is one Gaussian with a diagonal covariance; a row's mixture holds its labels' in
    equal parts, or by their degrees. Memory is linear in B x L: no array [B, L, d] is made.

    Args:
        z: [B, d], or [S, B, d] for several points of each row.
        means: [L, d].
        variances: [L, d], > 0.
        labels: [B, L] in [0, 1].
        label_mask: [B, L], False for unknown labels, which are left out of the mixture.

    Returns:
        [B] or [S, B], in at least float32; -inf, with zero gradient, for a row without labels.

    Raises:
        ValueError: an argument that does not fit; the message names it and its shape.

    Example:
        >>> means, variances = [[0.0], [2.0]], [[1.0], [1.0]]
        >>> value = mixture_log_density([[1.0]], means, variances, [[1, 1]])
        >>> print(f"{value[0]:.6f}")
        -0.500000

    Source: C-GMVAE, ICML 2022, eq. 3.
    """
    z = jnp.asarray(z)
    check_shape("z", z.shape[-2:], {"B": None, "d": None})
    y, labelled = _labels(labels, label_mask, None, z.shape[-2])
    values = _mixture(*_components(z, means, variances, y.shape[1]), y, labelled)
    return jnp.where(labelled, values, -jnp.inf)


def mixture_kl(
    z: ArrayLike,
    mean: ArrayLike,
    variance: ArrayLike,
    label_means: ArrayLike,
    label_variances: ArrayLike,
    labels: ArrayLike,
    *,
    label_mask: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduce: bool = True,
) -> jax.Array:
    """Estimate of the divergence of a row's Gaussian from the mixture of its labels.

        1/S sum_s [log N(z_s; m, v) - log sum_i y_i N(z_s; m_i, v_i) + log sum_i y_i]

    with z_s drawn from N(m, v), by `gaussian_samples` or otherwise: unbiased for any S, and
    negative at times. The loss is the mean over the rows that are kept and have labels; a row
    without labels has no mixture, and takes no part.

    Args:
        z: [S, B, d], or [B, d] for one sample of each row.
        mean: [B, d], m.
        variance: [B, d], v, > 0.
        label_means: [L, d], m_i.
        label_variances: [L, d], v_i, > 0.
        labels: [B, L] in [0, 1].
        label_mask: [B, L], False for unknown labels, which are left out of the mixture.
        where: [B], False for rows to leave out.
        reduce: False for per-row values.

    Returns:
        Scalar, or [B] with `reduce=False` (0 for rows that take no part), in at least float32. 0
        with zero gradient where no row takes part.

    Raises:
        ValueError: an argument that does not fit; the message names it and its shape.

    Example:
        >>> mean, variance = [[1.0]], [[1.0]]
        >>> kl = mixture_kl([[1.0]], mean, variance, [[0.0], [2.0]], [[1.0], [1.0]], [[1, 1]])
        >>> print(f"{kl:.6f}")
        0.500000

    Source: C-GMVAE, ICML 2022, eq. 3.
    """
    z, mean, variance = jnp.asarray(z), jnp.asarray(mean), jnp.asarray(variance)
    if z.ndim == 2:
        z = z[None]
    check_shape("z", z.shape, {"S": None, "B": None, "d": None})
    if z.shape[0] == 0:
        raise ValueError(f"z has shape {list(z.shape)}; expected at least one sample of each row")
    rows, width = z.shape[1:]
    for name, array in (("mean", mean), ("variance", variance)):
        check_shape(name, array.shape, {"B": rows, "d": width})
    y, takes_part = _labels(labels, label_mask, where, rows)
    z, mean = (jnp.where(takes_part[:, None], x, 0) for x in (z, mean))
    variance = jnp.where(takes_part[:, None], variance, 1)
    own = gaussian_log_density(z, mean, variance)
    components = _components(z, label_means, label_variances, y.shape[1])
    values = (own - _mixture(*components, y, takes_part)).mean(0)
    return _mean(values, takes_part, reduce)


def gaussian_kl(
    mean: ArrayLike,
    variance: ArrayLike,
    other_mean: ArrayLike,
    other_variance: ArrayLike,
    *,
    where: ArrayLike | None = None,
    reduce: bool = True,
) -> jax.Array:
    """Divergence of one Gaussian from another, both with diagonal covariances, in closed form.

        1/2 sum_d (log w_d - log v_d + (v_d + (m_d - u_d)^2) / w_d - 1)

    of N(m, v) from N(u, w). The loss is the mean over the kept rows.

    Args:
        mean: [B, d], m.
        variance: [B, d], v, > 0.
        other_mean: [B, d], u.
        other_variance: [B, d], w, > 0.
        where: [B], False for rows to leave out.
        reduce: False for per-row values.

    Returns:
        Scalar, or [B] with `reduce=False` (0 for rows left out), in at least float32. 0 with zero
        gradient where no row is kept.

    Raises:
        ValueError: an argument that does not fit; the message names it and its shape.

    Example:
        >>> print(f"{gaussian_kl([[0.0]], [[1.0]], [[1.0]], [[1.0]]):.6f}")
        0.500000

    Source: C-GMVAE, ICML 2022, table 4 (single Gaussian).
    """
    m, v, u, w = _gaussians(
        mean=mean, variance=variance, other_mean=other_mean, other_variance=other_variance
    )
    check_shape("mean", m.shape, {"B": None, "d": None})
    for name, array in (("variance", v), ("other_mean", u), ("other_variance", w)):
        check_shape(name, array.shape, {"B": m.shape[0], "d": m.shape[1]})
    kept = _kept(where, m.shape[0])
    m, u = (jnp.where(kept[:, None], x, 0) for x in (m, u))
    v, w = (jnp.where(kept[:, None], x, 1) for x in (v, w))
    values = 0.5 * (jnp.log(w) - jnp.log(v) + (v + jnp.square(m - u)) / w - 1).sum(-1)
    return _mean(values, kept, reduce)


def gaussian_samples(
    noise: ArrayLike, mean: ArrayLike, variance: ArrayLike, *, stratified: bool = False
) -> jax.Array:
    """Points of rows' Gaussians, as functions of their means and variances.

        z_s = m + sqrt(v) e_s

    Plain, e_s is the normal quantile of the noise. Stratified, every dimension of a row is cut
    into S parts of equal probability and each of its S samples falls into another one (Latin
    hypercube): every sample is distributed as before, so averages stay unbiased, and for S > 1
    they vary less.

    Args:
        noise: [S, B, d] in (0, 1), uniform and independent.
        mean: [B, d].
        variance: [B, d], >= 0.
        stratified: whether the samples of a row share out the distribution.

    Returns:
        [S, B, d], in at least float32.

    Raises:
        ValueError: an argument that does not fit; the message names it and its shape.

    Example:
        >>> z = gaussian_samples([[[0.5]], [[0.975]]], [[1.0]], [[4.0]])
        >>> print([f"{float(x):.2f}" for x in z[:, 0, 0]])
        ['1.00', '4.92']

    Source: Kingma & Welling, Auto-Encoding Variational Bayes, ICLR 2014, section 2.4; McKay,
    Beckman & Conover, Technometrics 21, 1979 (Latin hypercube).
    """
    noise, mean, variance = _gaussians(noise=noise, mean=mean, variance=variance)
    check_shape("noise", noise.shape, {"S": None, "B": None, "d": None})
    for name, array in (("mean", mean), ("variance", variance)):
        check_shape(name, array.shape, {"B": noise.shape[1], "d": noise.shape[2]})
    if stratified:
        noise = _stratify(noise)
    return mean + jnp.sqrt(variance) * jax.scipy.special.ndtri(noise)


def label_contrastive(
    anchors: ArrayLike,
    label_embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    label_mask: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduce: bool = True,
) -> jax.Array:
    """Contrast of every sample with the embeddings of its labels, against those of all labels.

        -1 / |y| sum_i y_i log (exp(w . e_i / t) / sum_j exp(w . e_j / t))

    The loss is the mean over the rows that are kept and have labels. Neither argument is
    normalised here.

    Args:
        anchors: [B, D], w.
        label_embeddings: [L, D], e.
        labels: [B, L] in [0, 1].
        temperature: t, > 0.
        label_mask: [B, L], False for unknown labels, which are left out of both sums.
        where: [B], False for rows to leave out.
        reduce: False for per-row values.

    Returns:
        Scalar, or [B] with `reduce=False` (0 for rows that take no part), in at least float32. 0
        with zero gradient where no row takes part.

    Raises:
        ValueError: an argument that does not fit; the message names it and its shape.

    Example:
        >>> loss = label_contrastive([[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], [[1, 0]])
        >>> print(f"{loss:.6f}")
        0.313262

    Source: C-GMVAE, ICML 2022, eq. 5.
    """
    w, e = jnp.asarray(anchors), jnp.asarray(label_embeddings)
    check_shape("anchors", w.shape, {"B": None, "D": None})
    check_shape("label_embeddings", e.shape, {"L": None, "D": w.shape[1]})
    for name, array in (("anchors", w), ("label_embeddings", e)):
        check_floating(name, array)
    check_number("temperature", temperature, minimum=0, strict=True)
    dtype = accumulation_dtype(w, e)
    if where is not None:
        w = jnp.where(_kept(where, w.shape[0])[:, None], w, 0)
    scores = dot(w.astype(dtype), e.astype(dtype).T) / temperature
    return score_contrastive(scores, labels, label_mask=label_mask, where=where, reduce=reduce)


def score_contrastive(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    label_mask: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduce: bool = True,
) -> jax.Array:
    """`label_contrastive` of scores [B, L] that are there already, w . e_i / t."""
    scores = jnp.asarray(scores)
    check_shape("scores", scores.shape, {"B": None, "L": None})
    check_floating("scores", scores)
    y, takes_part = _labels(labels, label_mask, where, scores.shape[0])
    check_shape("labels", y.shape, {"B": scores.shape[0], "L": scores.shape[1]})
    dtype = accumulation_dtype(scores)
    y = y.astype(dtype)
    known = jnp.broadcast_to(takes_part[:, None], y.shape)
    if label_mask is not None:
        known = known & jnp.asarray(label_mask, bool)
    scores = jnp.where(known, scores.astype(dtype), 0)
    positives = divide((y * scores).sum(-1), y.sum(-1))
    # Rows that take no part keep their scores, now all 0, so that no sum is over nothing.
    counted = jnp.where(known | ~takes_part[:, None], scores, -jnp.inf)
    peak = jax.lax.stop_gradient(counted.max(-1, keepdims=True))
    sums = jnp.log(jnp.exp(counted - peak).sum(-1)) + peak[:, 0]
    return _mean(sums - positives, takes_part, reduce)


def _gaussians(**arrays: ArrayLike) -> list[jax.Array]:
    """The arrays in one floating type, of at least float32, refused where they do not broadcast."""
    given = {name: jnp.asarray(array) for name, array in arrays.items()}
    dtype = accumulation_dtype(*given.values())
    first, *others = given
    for name, array in given.items():
        check_floating(name, array)
        if name.endswith("variance"):
            _check_variance(name, array)
    for name in others:
        try:
            fits = np.broadcast_shapes(given[first].shape, given[name].shape)
        except ValueError:
            fits = ()
        if not fits:
            raise ValueError(
                f"{name} has shape {list(given[name].shape)}; expected one that broadcasts "
                f"against {first} {list(given[first].shape)}"
            )
    return [array.astype(dtype) for array in given.values()]


def _check_variance(name: str, variance: jax.Array) -> None:
    values = concrete(variance)
    if values is not None and (values < 0).any():
        place = [int(i) for i in np.argwhere(values < 0)[0]]
        raise ValueError(
            f"{name} {list(values.shape)} has {values[tuple(place)]} at {place}; "
            "expected variances, which are positive"
        )


def _kept(where: ArrayLike | None, rows: int) -> jax.Array:
    if where is None:
        return jnp.ones(rows, bool)
    check_shape("where", np.shape(where), {"B": rows})
    return jnp.asarray(where, bool)


def _labels(
    labels: ArrayLike, label_mask: ArrayLike | None, where: ArrayLike | None, rows: int | None
) -> tuple[jax.Array, jax.Array]:
    """Known labels [B, L], 0 where nothing is known, and which rows are kept and have any."""
    check_shape("labels", np.shape(labels), {"B": rows, "L": None})
    count, num_labels = np.shape(labels)
    kept = _kept(where, count)
    known = jnp.broadcast_to(kept[:, None], (count, num_labels))
    if label_mask is not None:
        check_shape("label_mask", np.shape(label_mask), {"B": count, "L": num_labels})
        known = known & jnp.asarray(label_mask, bool)
    masked = label_mask is not None or where is not None
    check_labels("labels", labels, known if masked else None)
    y = jnp.where(known, jnp.asarray(labels), 0)
    return y, kept & (y > 0).any(-1)


def _components(
    z: jax.Array, means: ArrayLike, variances: ArrayLike, num_labels: int
) -> tuple[jax.Array, jax.Array]:
    """log N(z; m_i, v_i) without constants: what depends on z [..., L], and the rest [L].

    With p = 1 / v the exponent is z^2 . p - 2 z . (m p) + m^2 . p: one product of inner width 2 d
    where the difference written out would be an array [..., L, d]. The three terms cancel, so
    points and means are first moved by the middle of the means, which no difference notices.
    """
    means, variances = jnp.asarray(means), jnp.asarray(variances)
    for name, array in (("means", means), ("variances", variances)):
        check_floating(name, array)
        check_shape(name, array.shape, {"L": num_labels, "d": z.shape[-1]})
    check_floating("z", z)
    _check_variance("variances", variances)
    dtype = accumulation_dtype(z, means, variances)
    z, means, variances = z.astype(dtype), means.astype(dtype), variances.astype(dtype)
    middle = jax.lax.stop_gradient(means.mean(0))
    z, means = z - middle, means - middle
    precisions = 1 / variances
    of_z = jnp.concatenate([jnp.square(z), z], axis=-1)
    of_labels = jnp.concatenate([precisions, -2 * means * precisions], axis=-1)
    rest = (jnp.log(variances) + jnp.square(means) * precisions).sum(-1)
    return -0.5 * dot(of_z, of_labels.T), -0.5 * rest


def _mixture(moving: jax.Array, rest: jax.Array, y: jax.Array, takes_part: jax.Array) -> jax.Array:
    """log sum_i y_i exp(moving_i + rest_i) - log sum_i y_i [..., B]; 0 for rows without part."""
    degrees = y.astype(moving.dtype)
    there = (degrees > 0) & takes_part[:, None]
    weights = rest + jnp.log(jnp.where(there, degrees, 1))
    # A sum over nothing has a gradient that is NaN; such rows get one of zeros.
    counted = jnp.where(there, moving + weights, -jnp.inf)
    counted = jnp.where(takes_part[:, None], counted, 0)
    total = jnp.where(takes_part, degrees.sum(-1), 1)
    peak = jax.lax.stop_gradient(counted.max(-1, keepdims=True))
    peak = jnp.where(jnp.isfinite(peak), peak, 0)
    values = jnp.log(jnp.exp(counted - peak).sum(-1)) + peak[..., 0] - jnp.log(total)
    return jnp.where(takes_part, values, 0)


def _stratify(noise: jax.Array) -> jax.Array:
    """Uniform noise [S, ...] with one value in each of the S equal parts of (0, 1).

    Of S independent uniform numbers the ranks are a random permutation: they choose the parts.
    The sorted values u_1 < ... < u_S do not depend on it, and the ratios (u_r / u_(r+1))^r, with
    u_(S+1) = 1, are again uniform and independent (Renyi): they choose the places within.
    """
    samples = noise.shape[0]
    rank = jnp.argsort(jnp.argsort(noise, axis=0), axis=0)
    ordered = jnp.sort(noise, axis=0)
    above = jnp.concatenate([ordered[1:], jnp.ones_like(ordered[:1])])
    order = jnp.arange(1, samples + 1).reshape(-1, *[1] * (noise.ndim - 1))
    places = jnp.take_along_axis((ordered / above) ** order, rank, axis=0)
    limits = jnp.finfo(noise.dtype)
    return jnp.clip((rank + places) / samples, limits.tiny, 1 - limits.epsneg)


def _mean(values: jax.Array, takes_part: jax.Array, reduce: bool) -> jax.Array:
    values = jnp.where(takes_part, values, 0)
    return divide(values.sum(), takes_part.sum(dtype=values.dtype)) if reduce else values
