"""Simultaneous confidence bands for the empirical distribution of ranks that should be uniform.

N independent uniforms are counted on a grid z_1 < ... < z_m: C_i = #(u <= z_i) is Binomial(N, z_i). A band
takes the same pointwise level gamma at every grid point, and gamma is lowered until the whole path (C_1, ...,
C_m) stays inside with probability 1 - alpha. That probability is exact: uniforms counted in cells are
independent Poisson counts given their sum, so a path's law is a product of Poisson steps, summed by one
convolution per cell and divided by P(sum = N).

Source: Säilynoja, Bürkner & Vehtari (2021), arXiv 2103.10522, section 2.3, with the binomial steps replaced
by the equivalent conditioned Poisson steps (the same numbers, m convolutions instead of m matrices).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sbiflow.checks import check_count
from sbiflow.optional import deferred

stats = deferred("scipy.stats")

_BISECTIONS = 60


@dataclass(frozen=True)
class EcdfBand:
    """Band for the empirical distribution function on a grid.

    Attributes:
        z: grid points in (0, 1), shape (m,).
        low, high: the smallest and largest accepted fraction of values <= z, each (m,).
        gamma: the pointwise level that gives the simultaneous level alpha.
        n: number of values the band is for.
        alpha: probability that uniform values leave the band anywhere (at most).
    """

    z: np.ndarray
    low: np.ndarray
    high: np.ndarray
    gamma: float
    n: int
    alpha: float


def ecdf(u: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Fraction of values <= z: u (n,), z (m,) -> (m,)."""
    return np.searchsorted(np.sort(u), z, side="right") / len(u)


def grid_points(grid: int | np.ndarray) -> np.ndarray:
    """The inner edges i/K of K equal cells, or a given increasing grid inside (0, 1)."""
    if isinstance(grid, int | np.integer):
        cells = check_count(grid, "grid", 2)
        return np.arange(1, cells) / cells
    z = np.asarray(grid, dtype=float)
    if z.ndim != 1 or len(z) == 0 or not (z > 0).all() or not (z < 1).all() or (np.diff(z) <= 0).any():
        raise ValueError("grid: expected a number of cells or increasing points inside (0, 1)")
    return z


def _accepted(n: int, z: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest count whose two-sided pointwise p-value exceeds gamma, (m,) each.

    `pointwise_p` decides, not the quantile function, so that a band and a p-value can never disagree.
    """
    low = stats.binom.ppf(gamma / 2, n, z).astype(int)  # smallest count with P(C <= c) >= gamma/2
    low += (2 * stats.binom.cdf(low, n, z) <= gamma).astype(int)
    high = stats.binom.isf(gamma / 2, n, z).astype(int)  # smallest count with P(C > c) <= gamma/2
    high -= (2 * stats.binom.sf(high - 1, n, z) <= gamma).astype(int)
    return low, high


def pointwise_p(counts: np.ndarray, n: int, z: np.ndarray) -> np.ndarray:
    """Two-sided p-value of each count under Binomial(n, z): twice the smaller tail (it can exceed 1)."""
    return 2 * np.minimum(stats.binom.cdf(counts, n, z), stats.binom.sf(counts - 1, n, z))


def exit_probability(n: int, z: np.ndarray, gamma: float) -> float:
    """Exact probability that n uniforms leave the band of pointwise level gamma somewhere on the grid."""
    lows, highs = _accepted(n, z, gamma)
    if (lows > highs).any():
        return 1.0
    mass, first = np.ones(1), 0  # mass[j] = P(C = first + j, inside so far), in Poisson measure
    previous = 0.0
    for point, low, high in zip(z, lows, highs, strict=True):
        step = stats.poisson.pmf(np.arange(high - first + 1), n * (point - previous))
        spread = np.convolve(mass, step)[: high - first + 1]
        mass, first, previous = spread[max(low - first, 0) :], max(low, first), point
    left = n - (first + np.arange(len(mass)))
    inside = mass @ stats.poisson.pmf(left, n * (1 - previous)) / stats.poisson.pmf(n, n)
    return float(np.clip(1 - inside, 0.0, 1.0))


def simultaneous_band(n: int, grid: int | np.ndarray, alpha: float) -> EcdfBand:
    """The band that n uniform values leave anywhere on the grid with probability at most alpha.

    Args:
        n: number of values, >= 1.
        grid: number of equal cells K (points i/K), or the grid points themselves.
        alpha: in (0, 1); tested down to 1e-6.

    >>> round(simultaneous_band(1000, 100, 0.05).gamma, 5)
    0.00267
    """
    check_count(n, "n")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: expected a value in (0, 1), got {alpha}")
    return _band(int(n), tuple(grid_points(grid)), float(alpha))


@lru_cache(maxsize=64)
def _band(n: int, points: tuple[float, ...], alpha: float) -> EcdfBand:
    z = np.array(points)
    low, high = np.log(alpha / len(z)), 0.0  # gamma = alpha/m always keeps the level (Bonferroni)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if exit_probability(n, z, np.exp(middle)) <= alpha else (low, middle)
        if high - low < 1e-9:
            break
    gamma = float(np.exp(low))
    smallest, largest = _accepted(n, z, gamma)
    return EcdfBand(z, smallest / n, largest / n, gamma, n, alpha)


def ecdf_p_value(u: np.ndarray, grid: int | np.ndarray = 100) -> float:
    """Smallest alpha at which the simultaneous band rejects that u is uniform on (0, 1): an exact p-value.

    With g the smallest pointwise p-value of the counts on the grid, this is P(smallest pointwise p <= g) for
    uniform values. Below about 1e-12, where the difference 1 - P(inside) has lost its digits, the Bonferroni
    bound m g takes over.

    Args:
        u: values in [0, 1], shape (n,).
        grid: as in `simultaneous_band`.
    """
    u = np.asarray(u, dtype=float)
    if u.ndim != 1 or len(u) == 0 or not ((u >= 0) & (u <= 1)).all():
        raise ValueError(f"u: expected a vector of values in [0, 1], got shape {u.shape}")
    z = grid_points(grid)
    counts = np.searchsorted(np.sort(u), z, side="right")
    smallest = float(pointwise_p(counts, len(u), z).min())
    if smallest >= 1:
        return 1.0
    if smallest * len(z) < 1e-11:
        return smallest * len(z)
    return exit_probability(len(u), z, smallest)
