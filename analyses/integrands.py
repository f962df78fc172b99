"""The integrands by which the integrator is judged, with their integrals (issue 5).

All live on the unit cube. A function takes rows x of shape (n, D), NumPy or torch, float64, and returns
(n,) of the same kind; none of them makes a copy of x that it does not need. Truths are closed forms where
there is one; tests/test_integrands.py computes each of them again by another route. Integrands that nobody
tunes for are in integrands_held_out.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import special

Array = Any  # np.ndarray or torch.Tensor


@dataclass(frozen=True)
class Integrand:
    """An integrand and what is known of its integral.

    Args:
        name: identifier; also the name of this object in its module.
        f: rows (n, D), float64, NumPy or torch -> (n,); their logarithm if `log`.
        bounds: D pairs (low, high).
        truth: the integral, in the units of f times those of the volume; its logarithm if `log`.
        floor, reach: relative errors at 1e6 evaluations that the issue requires and hopes for; None: not
            stated.
        vegas_published: actual relative rms error of vegas 6.4 at 1e6 evaluations as the issue has it;
            None: not stated.
        about: what makes it hard, in a line.
        log: f is the logarithm of a non-negative integrand.
    """

    name: str
    f: Callable[[Array], Array] = field(repr=False)
    bounds: tuple[tuple[float, float], ...] = field(repr=False)
    truth: float
    floor: float | None = None
    reach: float | None = None
    vegas_published: float | None = None
    about: str = ""
    log: bool = False

    @property
    def dim(self) -> int:
        """D."""
        return len(self.bounds)

    def relative(self, mean: float, sdev: float, log_mean: float, log_sdev: float) -> tuple[float, float]:
        """(estimate / truth - 1, its standard error / |truth|), of a log integrand from the logarithms."""
        if self.log:
            ratio = math.exp(min(log_mean - self.truth, 700.0))
            return ratio - 1, log_sdev * ratio
        return (mean - self.truth) / abs(self.truth), sdev / abs(self.truth)


def namespace(x: Array) -> Any:
    """The module that computes with x: torch for a tensor, NumPy otherwise."""
    return torch if isinstance(x, torch.Tensor) else np


def erf(x: Array) -> Array:
    """The error function, NumPy or torch."""
    return torch.erf(x) if isinstance(x, torch.Tensor) else special.erf(x)


def like(values: Sequence[float], x: Array) -> Array:
    """Constants (m,) as an array of the kind, type and device of x."""
    return (
        torch.tensor(values, dtype=torch.float64).to(x) if isinstance(x, torch.Tensor) else np.array(values)
    )


def moments(x: Array) -> tuple[Array, Array]:
    """Σ x_i and Σ x_i² of each row, (n,) each, without a temporary of the size of x."""
    return x.sum(1), namespace(x).einsum("ij,ij->i", x, x)


def unit_cube(dim: int) -> tuple[tuple[float, float], ...]:
    return ((0.0, 1.0),) * dim


def gaussians(x: Array, centres: tuple[float, ...], width: float) -> Array:
    """Mean over c of (a√π)^-D exp(−Σ(x_i − c)²/a²), the centres c on the diagonal, a = `width`."""
    dim = x.shape[1]
    first, second = moments(x)
    squares = (second - (2 * c) * first + dim * c**2 for c in centres)
    total = sum(namespace(x).exp(-square / width**2) for square in squares)
    return total * ((width * math.sqrt(math.pi)) ** -dim / len(centres))


def gaussians_integral(dim: int, centres: tuple[float, ...], width: float) -> float:
    """Of `gaussians` over the unit cube."""
    edges = ((math.erf((1 - c) / width) + math.erf(c / width)) / 2 for c in centres)
    return sum(edge**dim for edge in edges) / len(centres)


def circles(x: Array) -> Array:
    """x2³ e^{−250|(x2−.6)²+(x1−.4)²−1/16|} + (1−x2)³ e^{−250|(x2−.4)²+(x1−.6)²−1/16|}."""
    xp, a, b = namespace(x), x[:, 0], x[:, 1]
    first = b**3 * xp.exp(-250 * abs((b - 0.6) ** 2 + (a - 0.4) ** 2 - 1 / 16))
    return first + (1 - b) ** 3 * xp.exp(-250 * abs((b - 0.4) ** 2 + (a - 0.6) ** 2 - 1 / 16))


def shell_indicator(x: Array, inner: float, outer: float) -> Array:
    """1 where inner <= |x − centre of the cube| <= outer, else 0."""
    first, second = moments(x)
    square = second - first + x.shape[1] / 4
    inside = (square >= inner**2) & (square <= outer**2)
    return inside * namespace(x).ones_like(first)


def parabolas(x: Array) -> Array:
    """Σ (x_i − x_i²)."""
    first, second = moments(x)
    return first - second


def ridge(x: Array, low: float, high: float, rate: float) -> Array:
    """Mean over t in [low, high] of (k/π)^{D/2} exp(−k Σ(x_i − t)²), k = `rate`: the integral over t is done.

    With the mean x̄ of a row, Σ(x_i − t)² = Σ(x_i − x̄)² + D (t − x̄)².
    """
    dim = x.shape[1]
    first, second = moments(x)
    mean, sharp = first / dim, math.sqrt(rate * dim)
    along = erf(sharp * (high - mean)) - erf(sharp * (low - mean))
    scale = (rate / math.pi) ** (dim / 2) * math.sqrt(math.pi) / (2 * sharp * (high - low))
    return along * namespace(x).exp(-rate * (second - first * mean)) * scale


def log_correlated_gaussian(x: Array, sigma: float, rho: float, centre: float = 0.5) -> Array:
    """Log-density of N(centre, σ² R), R with ones on the diagonal and ρ elsewhere.

    R⁻¹ = (1 − J ρ / λ) / (1 − ρ) and det R = (1 − ρ)^{D−1} λ, with λ = 1 + (D − 1) ρ and J of ones.
    """
    dim = x.shape[1]
    first, second = moments(x)
    total = first - dim * centre
    largest = 1 + (dim - 1) * rho
    chi2 = (second - 2 * centre * first + dim * centre**2 - total * total * (rho / largest)) / (1 - rho)
    log_norm = dim * math.log(2 * math.pi * sigma**2) + (dim - 1) * math.log(1 - rho) + math.log(largest)
    return -chi2 / (2 * sigma**2) - log_norm / 2


def correlated_gaussian(x: Array, sigma: float, rho: float, centre: float = 0.5) -> Array:
    """Density of N(centre, σ² R), R with ones on the diagonal and ρ elsewhere."""
    return namespace(x).exp(log_correlated_gaussian(x, sigma, rho, centre))


def two_shells(x: Array, radius: float, width: float, offset: float, half: float) -> Array:
    """Σ over c = ±offset e1 of exp(−(|y − c| − r)²/2w²)/√(2πw²) at y = half (2x − 1)."""
    xp = namespace(x)
    first, second = moments(x)
    square = half**2 * (4 * (second - first) + x.shape[1])  # |y|²
    along = 2 * offset * half * (2 * x[:, 0] - 1)  # 2 y·c
    distances = (xp.sqrt(abs(square + offset**2 + sign * along)) for sign in (-1, 1))
    total = sum(xp.exp((r - radius) ** 2 * (-0.5 / width**2)) for r in distances)
    return total / math.sqrt(2 * math.pi * width**2)


def rosenbrock(x: Array) -> Array:
    """Π over pairs of exp(−½(u − 1)² − 20(v − u²)²), u in [−5, 5] even axes, v in [−2, 10] odd ones."""
    u, v = 10 * x[:, 0::2] - 5, 12 * x[:, 1::2] - 2
    return namespace(x).exp((-0.5 * (u - 1) ** 2 - 20 * (v - u * u) ** 2).sum(1))


def corner_peak(x: Array, slopes: tuple[float, ...]) -> Array:
    """(1 + Σ a_i x_i)^{−(D+1)} (Genz 1984)."""
    return (1 + x @ like(slopes, x)) ** -(len(slopes) + 1)


MASSES_SQUARED = (0.0, 0.0, 0.0, 125.0**2)  # GeV²: three massless legs and a Higgs boson
S12, S23, TOP_MASS = 130.0**2, -(130.0**2) / 2, 175.0  # GeV², GeV², GeV
SECTORS = ((S23, S12, 1, 2, 3, 0), (S12, S23, 2, 3, 0, 1), (S23, S12, 3, 0, 1, 2), (S12, S23, 0, 1, 2, 3))


def box_sector(x: Array, s: float, t: float, *legs: int) -> Array:
    """F(s, t; a, b, c, d) of the issue, GeV²."""
    t1, t2, t3 = x[:, 0], x[:, 1], x[:, 2]
    a, b, c, d = (MASSES_SQUARED[leg] for leg in legs)
    mass = TOP_MASS**2 * (1 + t1 + t2 + t3) ** 2
    return mass - s * t2 - t * t1 * t3 - a * t1 - b * t1 * t2 - c * t2 * t3 - d * t3


def box(x: Array) -> Array:
    """Scalar one-loop box with a top quark in the loop, GeV⁻⁴: Σ over four sectors of 1/F²."""
    return sum(box_sector(x, *sector) ** -2 for sector in SECTORS)


gauss16 = Integrand("gauss16", partial(gaussians, centres=(0.5,), width=0.2), unit_cube(16), 0.9935086032227194, 1.3e-3, 5e-4, 8.8e-4, "one wide Gaussian: factorises")  # fmt: skip
camel8 = Integrand("camel8", partial(gaussians, centres=(1 / 3, 2 / 3), width=0.2), unit_cube(8), 0.9286347527493557, 1.2e-3, 3e-4, 2.9e-3, "two modes on the diagonal: a grid sees 2^8")  # fmt: skip
camel16 = Integrand("camel16", partial(gaussians, centres=(1 / 3, 2 / 3), width=0.2), unit_cube(16), 0.862362504013857, 3e-3, 5e-4, 5.3e-2, "two modes on the diagonal: a grid sees 2^16")  # fmt: skip
circles2 = Integrand("circles2", circles, unit_cube(2), 0.013684776725, 4e-4, 1e-4, 2.8e-4, "two rings with a crease")  # fmt: skip
annulus2 = Integrand("annulus2", partial(shell_indicator, inner=0.2, outer=0.45), unit_cube(2), math.pi * (0.45**2 - 0.2**2), 2.4e-4, 1e-4, 1.6e-4, "discontinuous")  # fmt: skip
poly18 = Integrand("poly18", parabolas, unit_cube(18), 3.0, 2.7e-5, 1e-5, 1.8e-5, "almost constant: nothing to learn")  # fmt: skip
ridge8 = Integrand("ridge8", partial(ridge, low=0.25, high=0.75, rate=100.0), unit_cube(8), 0.9998852226811982, 2e-3, 3e-4, 9.9e-3, "a rod along the diagonal")  # fmt: skip
corrgauss8 = Integrand("corrgauss8", partial(correlated_gaussian, sigma=0.08, rho=0.95), unit_cube(8), 1.0, 1e-3, 1e-4, 0.80, "correlated: vegas is wrong and does not see it")  # fmt: skip
shells5 = Integrand("shells5", partial(two_shells, radius=2.0, width=0.1, offset=3.5, half=6.0), unit_cube(5), 0.0034354710295570016, 2e-3, 1e-3, 3.7e-3, "two thin Gaussian shells")  # fmt: skip
rosen6 = Integrand("rosen6", rosenbrock, unit_cube(6), 5.417006303902198e-7, 3e-3, 5e-4, 0.41, "three bananas")  # fmt: skip
cornerpeak8 = Integrand("cornerpeak8", partial(corner_peak, slopes=(5 / 8,) * 8), unit_cube(8), 4.301411003200867e-5, 4e-4, 2e-4, 2.5e-4, "smooth, largest at a corner (Genz)")  # fmt: skip
box3 = Integrand("box3", box, unit_cube(3), 1.9369640238683377e-10, 2e-5, 1e-5, 1.4e-5, "one-loop box, GeV⁻⁴: smooth and small in value")  # fmt: skip

INTEGRANDS = (gauss16, camel8, camel16, circles2, annulus2, poly18, ridge8, corrgauss8, shells5, rosen6, cornerpeak8, box3)  # fmt: skip


def by_names(names: str, among: tuple[Integrand, ...] = INTEGRANDS) -> list[Integrand]:
    """Those of a comma-separated list, in the order of `among`; all for an empty one.

    Raises:
        ValueError: a name is not among them.
    """
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    unknown = wanted - {integrand.name for integrand in among}
    if unknown:
        known = ", ".join(integrand.name for integrand in among)
        raise ValueError(f"integrands: expected some of {known}; got {', '.join(sorted(unknown))}")
    return [integrand for integrand in among if not wanted or integrand.name in wanted]
