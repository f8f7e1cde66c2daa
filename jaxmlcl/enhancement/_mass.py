"""How much degree a row's labels carry, told from nothing but how many labels the rows have.

Logical labels come from distributions by a rule: in descending order, labels are taken until their
degrees sum to more than one half. So the number of labels a row has says something about its
distribution: if degrees are nearly equal, every row needs half of the labels; if they are spread,
fewer. Model a row as a draw from the symmetric Dirichlet distribution on L labels, whose spread is
measured by the coefficient of variation of one degree,

    v = standard deviation / mean = sqrt((L - 1) / (L a + 1)),     a the Dirichlet's parameter.

With c_k the number of rows that have k labels, the spread's posterior under a flat prior is

    p(v | c) ~ prod_k P(k | v)^(c_k),

and what is expected of the labels' mass is the mean over rows i of E[mass | k_i], averaged over
that posterior. P(k | v) and E[mass | v, k] come from draws, with fixed random numbers.
"""

from __future__ import annotations

import functools

import numpy as np

# Values of v that are tried, and how many numbers are drawn for each: the standard error of the
# mass is then near .001 (.003 with a thousand labels, whose draws are fewer).
_SPREADS = 64
_NARROWEST = 0.01
_CELLS = 1 << 18
_DRAWS = (256, 16_384)


def expected_mass(labels: np.ndarray) -> float:
    """The mean degree that a row's labels should carry together, from the labels alone.

        mean_i E[sum_j d_ij l_ij | |l_i|]

    under the model at the head of this file. Rows with no label or with all say nothing: those
    with all carry 1, those with none are left out.

    Args:
      labels: [n, L] in {0, 1}.

    Returns:
      A number in (0, 1].

    Raises:
      ValueError: no row has a label.

    Example:
      >>> labels = np.array([[1, 1, 0, 0]] * 50 + [[1, 0, 0, 0]] * 50)
      >>> print(f"{expected_mass(labels):.2f}")
      0.68
    """
    y = np.asarray(labels)
    sizes = np.rint(y.sum(1)).astype(int)
    counts = np.bincount(sizes, minlength=y.shape[1] + 1)
    rows = counts[1:].sum()
    if rows == 0:
        raise ValueError(f"labels {list(y.shape)}: no row has a label, so nothing is known")
    num_labels = y.shape[1]
    if num_labels == 1 or rows == counts[num_labels]:
        return 1.0
    spreads, likely, mass = _tables(num_labels)
    partial = counts.copy()
    partial[[0, num_labels]] = 0
    seen = np.flatnonzero(partial)
    log_posterior = np.log(likely[:, seen]) @ counts[seen] + np.log(np.gradient(spreads))
    posterior = np.exp(log_posterior - log_posterior.max())
    total = float(counts[num_labels])
    for size in seen:
        # Sizes that the rule never gives, half of the labels and more: what they carry at least.
        least = max(0.5, size / num_labels)
        carried = np.where(np.isfinite(mass[:, size]), mass[:, size], least)
        total += counts[size] * float(posterior @ carried) / posterior.sum()
    return total / rows


@functools.lru_cache(maxsize=32)
def _tables(num_labels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spreads [s], P(k | v) [s, L + 1] and E[mass | v, k] [s, L + 1] (NaN where never seen)."""
    draws = int(np.clip(_CELLS // num_labels, *_DRAWS))
    widest = 0.999 * np.sqrt(num_labels - 1)
    spreads = np.geomspace(_NARROWEST, widest, _SPREADS)
    random = np.random.default_rng(0)
    likely = np.empty((_SPREADS, num_labels + 1))
    mass = np.full((_SPREADS, num_labels + 1), np.nan)
    for i, spread in enumerate(spreads):
        concentration = ((num_labels - 1) / spread**2 - 1) / num_labels
        degrees = random.dirichlet(np.full(num_labels, concentration), draws)
        # A very uneven Dirichlet may underflow to rows of zeros, which numpy gives as NaN.
        degrees = degrees[np.isfinite(degrees).all(1)]
        falling = -np.sort(-degrees, axis=1)
        running = np.cumsum(falling, axis=1)
        sizes = (running <= 0.5).sum(1) + 1
        carried = running[np.arange(len(sizes)), np.minimum(sizes, num_labels) - 1]
        counts = np.bincount(sizes, minlength=num_labels + 1)[: num_labels + 1]
        # One pseudo-draw over all sizes, so that no row can rule a spread out by itself.
        likely[i] = (counts + 1 / num_labels) / (len(sizes) + 1)
        sums = np.bincount(sizes, weights=carried, minlength=num_labels + 1)[: num_labels + 1]
        mass[i, counts > 0] = sums[counts > 0] / counts[counts > 0]
    return spreads, likely, mass
