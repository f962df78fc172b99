"""The families of Genz with their integrals over the unit cube.

Genz 1984, "Testing multidimensional integration routines".
Functions take rows (n, D), NumPy or torch, and return (n,); `slopes` and `centres` have one entry an axis.
"""

from __future__ import annotations

import math

import numpy as np

from analyses.integrands import Array, like, moments, namespace


def oscillatory(x: Array, slopes: tuple[float, ...]) -> Array:
    """cos(Σ a_i x_i)."""
    return namespace(x).cos(x @ like(slopes, x))


def oscillatory_integral(slopes: tuple[float, ...]) -> float:
    """Re Π (e^{i a} − 1)/(i a)."""
    a = np.array(slopes)
    return float(np.cos(a.sum() / 2) * np.prod(np.sin(a / 2) / (a / 2)))


def product_peak(x: Array, slopes: tuple[float, ...], centres: tuple[float, ...]) -> Array:
    """Π 1/(a_i^{-2} + (x_i − c_i)²), a product of Breit-Wigner resonances."""
    return 1 / (like([a**-2 for a in slopes], x) + (x - like(centres, x)) ** 2).prod(1)


def product_peak_integral(slopes: tuple[float, ...], centres: tuple[float, ...]) -> float:
    """Π a (arctan a(1 − c) + arctan ac)."""
    pairs = zip(slopes, centres, strict=True)
    return math.prod(a * (math.atan(a * (1 - c)) + math.atan(a * c)) for a, c in pairs)


def corner_peak_integral(dim: int, slope: float) -> float:
    """Of integrands.corner_peak with equal slopes: 1/(D! a^D) Σ_k (−1)^k C(D, k)/(1 + k a)."""
    terms = ((-1) ** k * math.comb(dim, k) / (1 + k * slope) for k in range(dim + 1))
    return math.fsum(terms) / (math.factorial(dim) * slope**dim)


def gaussian(x: Array, slopes: tuple[float, ...], centres: tuple[float, ...]) -> Array:
    """exp(−Σ a_i² (x_i − c_i)²)."""
    return namespace(x).exp(-moments((x - like(centres, x)) * like(slopes, x))[1])


def gaussian_integral(slopes: tuple[float, ...], centres: tuple[float, ...]) -> float:
    """Π √π/(2a) (erf a(1 − c) + erf ac)."""
    pairs = zip(slopes, centres, strict=True)
    return math.prod(
        math.sqrt(math.pi) / (2 * a) * (math.erf(a * (1 - c)) + math.erf(a * c)) for a, c in pairs
    )


def kink(x: Array, slopes: tuple[float, ...], centres: tuple[float, ...]) -> Array:
    """Continuous, with a kink: exp(−Σ a_i |x_i − c_i|)."""
    return namespace(x).exp(-(abs(x - like(centres, x)) @ like(slopes, x)))


def kink_integral(slopes: tuple[float, ...], centres: tuple[float, ...]) -> float:
    """Π (2 − e^{−ac} − e^{−a(1 − c)})/a."""
    pairs = zip(slopes, centres, strict=True)
    return math.prod((2 - math.exp(-a * c) - math.exp(-a * (1 - c))) / a for a, c in pairs)


def cliff(x: Array, slopes: tuple[float, ...], edges: tuple[float, float]) -> Array:
    """Discontinuous: exp(Σ a_i x_i) where x_1 < edge_1 and x_2 < edge_2, else 0."""
    return namespace(x).exp(x @ like(slopes, x)) * ((x[:, 0] < edges[0]) & (x[:, 1] < edges[1]))


def cliff_integral(slopes: tuple[float, ...], edges: tuple[float, float]) -> float:
    """Π (e^{a end} − 1)/a, each axis up to its end."""
    ends = (*edges, *[1.0] * (len(slopes) - 2))
    return math.prod(math.expm1(a * end) / a for a, end in zip(slopes, ends, strict=True))
