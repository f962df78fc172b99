"""What the tests of the integrands share: rows where one is not zero, and accurate quadrature."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from scipy import integrate, stats

from analyses.integrands import Integrand

Function = Callable[[float], float]


def box_of(integrand: Integrand) -> np.ndarray:
    """Finite limits (D, 2): an infinite one is put 60 from the origin."""
    return np.clip(np.array(integrand.bounds), -60.0, 60.0)


def rows(integrand: Integrand, centre: np.ndarray | None, n: int = 20, seed: int = 3) -> np.ndarray:
    """3n rows at three distances from `centre`, or from where |f| is largest of many rows."""
    random = np.random.default_rng(seed)
    low, high = box_of(integrand).T
    if centre is None:
        tried = random.uniform(low, high, (20_000, integrand.dim))
        centre = tried[np.argmax(abs(integrand.f(tried)))]
    steps = np.repeat([1e-3, 1e-2, 0.1], n)[:, None] * random.normal(size=(3 * n, integrand.dim))
    edge = 1e-9 * (high - low)  # sqrt1 is infinite at its limit
    return np.clip(centre + steps * np.minimum(high - low, 20.0), low + edge, high - edge)


def integral(f: Callable[..., float], low: float, high: float, *points: float) -> float:
    """∫ f by adaptive quadrature, the interval broken at `points`."""
    ends = [low, *points, high]
    pieces = (
        integrate.quad(f, a, b, epsabs=0, epsrel=1e-12, limit=500)[0] for a, b in itertools.pairwise(ends)
    )
    return sum(pieces)


def legendre(low: float, high: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on [low, high], (n,) each."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return low + (high - low) * (nodes + 1) / 2, weights * (high - low) / 2


def one_factor(dim: int, sigma: float, rho: float) -> float:
    """P(all x_i in [0, 1]) of N(½, σ² R): given z_0, x_i = ½ + σ (√ρ z_0 + √(1 − ρ) z_i) are independent."""
    edge = 0.5 / sigma

    def given(common: float) -> float:
        ends = stats.norm.cdf((np.array([-edge, edge]) - np.sqrt(rho) * common) / np.sqrt(1 - rho))
        return stats.norm.pdf(common) * float(ends[1] - ends[0]) ** dim

    return integral(given, -12, 12, -4, 0, 4)


def equicorrelated(dim: int, sigma: float, rho: float, centre: float) -> stats.rv_continuous:
    """N(centre, σ² R) as SciPy has it."""
    covariance = sigma**2 * ((1 - rho) * np.eye(dim) + rho)
    return stats.multivariate_normal(np.full(dim, centre), covariance)


def two_shells_integral(dim: int) -> float:
    """Mean over [−6, 6]^D of the two shells: quadrature over y_1, cut at ±6, and the rest's radius."""
    sphere = 2 * np.pi ** ((dim - 1) / 2) / _gamma_half(dim - 1)
    along, w_along = legendre(-6, 6, 1500)
    across, w_across = legendre(0, 3, 800)
    total = 0.0
    for centre in (-3.5, 3.5):
        radius = np.hypot(along[:, None] - centre, across)
        shell = np.exp(-((radius - 2) ** 2) / 0.02) / np.sqrt(0.02 * np.pi)
        total += w_along @ (shell * across ** (dim - 2)) @ w_across
    return float(sphere * total / 12**dim)


def _gamma_half(n: int) -> float:
    """Γ(n/2)."""
    return float(np.prod(np.arange(n / 2 - 1, 0, -1)) * (np.sqrt(np.pi) if n % 2 else 1.0))


def rosenbrock_pair() -> float:
    """Mean over [−5, 5] × [−2, 10] of exp(−½(u − 1)² − 20(v − u²)²): the integral over v is a normal's."""
    u, weights = legendre(-5, 5, 800)
    share = stats.norm.cdf((10 - u**2) * np.sqrt(40)) - stats.norm.cdf((-2 - u**2) * np.sqrt(40))
    return float(weights @ (np.exp(-((u - 1) ** 2) / 2) * share) * np.sqrt(np.pi / 20) / 120)


def corner_peak_integral(dim: int, slope: float) -> float:
    """From (1 + s)^{−(D+1)} = ∫ t^D e^{−t(1 + s)} dt / D!: the axes separate under the integral over t."""
    factorial = float(np.prod(np.arange(1, dim + 1)))

    def given(t: float) -> float:
        return t**dim * np.exp(-t) * (-np.expm1(-slope * t) / (slope * t)) ** dim / factorial

    return integral(given, 0, 200, 5, 10, 20, 50)
