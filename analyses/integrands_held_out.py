"""Further integrands of the kinds of integrands.py: on these nothing may be tuned.

Same conventions. Some have physical or infinite limits, one dimension, both signs, a spike that is hard to
find, or logarithms beyond the range of float64. The families of Genz (1984, "Testing multidimensional
integration routines") have closed forms; densities that end many standard deviations inside their limits
integrate to 1.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from scipy import special

from analyses import genz
from analyses.integrands import (
    Array,
    Integrand,
    circles,
    circles2,
    corner_peak,
    correlated_gaussian,
    erf,
    gaussians,
    gaussians_integral,
    like,
    log_correlated_gaussian,
    moments,
    namespace,
    rosen6,
    rosenbrock,
    shell_indicator,
    two_shells,
    unit_cube,
)

INF = math.inf


def normals(
    x: Array,
    centres: tuple[tuple[float, ...], ...],
    sigmas: tuple[float, ...],
    shares: tuple[float, ...] = (1.0,),
    flat: float = 0.0,
) -> Array:
    """flat + Σ_m share_m N(x; centre_m, σ_m² 1)."""
    xp, total = namespace(x), flat
    for centre, sigma, share in zip(centres, sigmas, shares, strict=True):
        square = moments((x - like(centre, x)) / sigma)[1]
        total = total + xp.exp(-square / 2) * (share * (sigma * math.sqrt(2 * math.pi)) ** -x.shape[1])
    return total


def rod(x: Array, start: tuple[float, ...], end: tuple[float, ...], sigma: float) -> Array:
    """Mean over t in [0, 1] of N(x; start + t (end − start), σ² 1)."""
    xp, direction = namespace(x), np.subtract(end, start)
    length = float(np.linalg.norm(direction))
    offset = x - like(start, x)
    along = offset @ like(tuple(direction / length), x)
    across = moments(offset)[1] - along**2
    share = erf(along / (sigma * math.sqrt(2))) - erf((along - length) / (sigma * math.sqrt(2)))
    norm = (sigma * math.sqrt(2 * math.pi)) ** (1 - x.shape[1])
    return share / (2 * length) * norm * xp.exp(across * (-0.5 / sigma**2))


def reflected_normal(x: Array, sigmas: tuple[float, ...], normal: tuple[float, ...]) -> Array:
    """N(½, H diag(σ²) H), H the reflection at the plane across `normal`: every pair of axes is correlated."""
    v = like(tuple(np.array(normal) / np.linalg.norm(normal)), x)
    y = x - 0.5
    y = (y - 2 * (y @ v)[:, None] * v) / like(sigmas, x)
    norm = math.prod(sigmas) * (2 * math.pi) ** (len(sigmas) / 2)
    return namespace(x).exp(-moments(y)[1] / 2) / norm


def twisted(x: Array, sigma: float, bend: float, width: float) -> Array:
    """Π over pairs of N(u; 0, σ²) N(v; bend (σ² − u²), width²) (Haario et al. 1999)."""
    u, v = x[:, 0::2], x[:, 1::2]
    exponent = (u / sigma) ** 2 + ((v - bend * (sigma**2 - u * u)) / width) ** 2
    return namespace(x).exp(exponent.sum(1) / -2) * (2 * math.pi * sigma * width) ** (-x.shape[1] // 2)


def shell(x: Array, radius: float, width: float) -> Array:
    """exp(−(|x − ½| − r)²/2w²)/√(2πw²)."""
    xp = namespace(x)
    distance = xp.sqrt(moments(x - 0.5)[1])
    return xp.exp((distance - radius) ** 2 * (-0.5 / width**2)) / math.sqrt(2 * math.pi * width**2)


def simplex(x: Array, total: float) -> Array:
    """1 where Σ x_i <= total, else 0."""
    first = x.sum(1)
    return (first <= total) * namespace(x).ones_like(first)


def simplex_integral(dim: int, total: float) -> float:
    """The distribution function of Irwin and Hall."""
    terms = ((-1) ** k * math.comb(dim, k) * (total - k) ** dim for k in range(int(total) + 1))
    return sum(terms) / math.factorial(dim)


def box_indicator(x: Array, low: tuple[float, ...], side: float) -> Array:
    """1 where low_i <= x_i < low_i + side, else 0."""
    y = x - like(low, x)
    return ((y >= 0) & (y < side)).all(1) * namespace(x).ones_like(x[:, 0])


def slab(x: Array, half: float) -> Array:
    """1 where |x_1 − x_2| < half, else 0."""
    distance = abs(x[:, 0] - x[:, 1])
    return (distance < half) * namespace(x).ones_like(distance)


def fringes(x: Array, sigma: float, wave: tuple[float, ...], contrast: float) -> Array:
    """N(x; ½, σ² 1) (1 + contrast cos k·(x − ½)): both signs where contrast > 1."""
    y = x - 0.5
    return normals(y, ((0.0,) * x.shape[1],), (sigma,)) * (1 + contrast * namespace(x).cos(y @ like(wave, x)))


def unbounded(x: Array) -> Array:
    """A gamma density (k = 3), N(3, 2²), two correlated normals (ρ = 0.9), an exponential below 1."""
    a, b, c, d, e = (x[:, i] for i in range(5))
    square = ((b - 3) / 2) ** 2 + (c * c - 1.8 * c * d + d * d) / 0.19
    norm = 2 * math.sqrt(2 * math.pi) * 2 * 2 * math.pi * math.sqrt(0.19)
    return a * a * namespace(x).exp(-a + (e - 1) - square / 2) / norm


def far_normal(x: Array) -> Array:
    """N((40, 40, 40), 5² R) on all of R³, ρ = 0.9: neither at the origin nor of scale 1."""
    return correlated_gaussian(x, sigma=5.0, rho=0.9, centre=40.0)


def log_evidence(x: Array, peak: float) -> Array:
    """Log-likelihood that underflows: peak + ln N(x; 1, 0.1² R), ρ = 0.8."""
    return peak + log_correlated_gaussian(x, sigma=0.1, rho=0.8, centre=1.0)


def log_circles(x: Array, peak: float) -> Array:
    """Logarithm of `circles` and a constant that overflows."""
    return peak + namespace(x).log(circles(x))


def corner_cusp(x: Array, scale: float) -> Array:
    """exp(−|x|/s) at the corner where all x_i = 0."""
    xp = namespace(x)
    return xp.exp(xp.sqrt(moments(x)[1]) / -scale)


def root(x: Array, at: float) -> Array:
    """|x − at|^{-1/2}: the variance under a uniform density is infinite."""
    return abs(x[:, 0] - at) ** -0.5


def resonances(x: Array, at: float, width: float) -> Array:
    """Π over pairs of (w/π)/((s − s0)² + w²): a Breit-Wigner in s = u v lies along a hyperbola."""
    s = x[:, 0::2] * x[:, 1::2]
    return (width / math.pi / ((s - at) ** 2 + width**2)).prod(1)


def waves(x: Array, kappa: float) -> Array:
    """exp(κ (cos 2πΣx_i − 1)): crests across the cube, periodic in every axis."""
    return namespace(x).exp(kappa * (namespace(x).cos(2 * math.pi * x.sum(1)) - 1))


P6, P5 = (0.62, 0.35, 0.71, 0.44, 0.28, 0.57), (0.33, 0.7, 0.45, 0.61, 0.52)
MODES = ((0.25, 0.3, 0.7, 0.6, 0.35, 0.75), (0.7, 0.75, 0.3, 0.4, 0.6, 0.3), (0.5, 0.25, 0.3, 0.75, 0.7, 0.6))
GENZ = (
    Integrand("oscillatory6", partial(genz.oscillatory, slopes=(2.0, 1.5, 3.0, 1.0, 2.0, 2.5)), unit_cube(6), genz.oscillatory_integral((2.0, 1.5, 3.0, 1.0, 2.0, 2.5)), about="Genz: both signs"),
    Integrand("productpeak5", partial(genz.product_peak, slopes=(5.0, 10.0, 20.0, 8.0, 15.0), centres=P5), unit_cube(5), genz.product_peak_integral((5.0, 10.0, 20.0, 8.0, 15.0), P5), about="Genz: factorises, heavy tails"),
    Integrand("cornerpeak4", partial(corner_peak, slopes=(3.0,) * 4), unit_cube(4), genz.corner_peak_integral(4, 3.0), about="Genz: steeper"),
    Integrand("cornerpeak12", partial(corner_peak, slopes=(0.5,) * 12), unit_cube(12), genz.corner_peak_integral(12, 0.5), about="Genz: more dimensions"),
    Integrand("genzgauss10", partial(genz.gaussian, slopes=(2.0, 4.0, 6.0, 3.0, 5.0) * 2, centres=P5 + P5), unit_cube(10), genz.gaussian_integral((2.0, 4.0, 6.0, 3.0, 5.0) * 2, P5 + P5), about="Genz: unequal widths"),
    Integrand("kink6", partial(genz.kink, slopes=(3.0, 6.0, 9.0, 4.0, 8.0, 5.0), centres=P6), unit_cube(6), genz.kink_integral((3.0, 6.0, 9.0, 4.0, 8.0, 5.0), P6), about="Genz: continuous, no derivative"),
    Integrand("cliff6", partial(genz.cliff, slopes=(2.0, 3.0, 1.0, 2.0, 3.0, 1.0), edges=(0.4, 0.6)), unit_cube(6), genz.cliff_integral((2.0, 3.0, 1.0, 2.0, 3.0, 1.0), (0.4, 0.6)), about="Genz: discontinuous"),
)  # fmt: skip
SHAPES = (
    Integrand("gauss6", partial(gaussians, centres=(0.3,), width=0.05), unit_cube(6), gaussians_integral(6, (0.3,), 0.05), about="narrow, off the centre"),
    Integrand("camel12", partial(gaussians, centres=(0.25, 0.7), width=0.12), unit_cube(12), gaussians_integral(12, (0.25, 0.7), 0.12), about="narrower and further apart than camel8"),
    Integrand("modes6", partial(normals, centres=MODES, sigmas=(0.05, 0.03, 0.04), shares=(0.6, 0.3, 0.1)), unit_cube(6), 1.0, about="three unequal modes"),
    Integrand("rod5", partial(rod, start=(0.2, 0.8, 0.3, 0.7, 0.25), end=(0.8, 0.2, 0.7, 0.3, 0.75), sigma=0.025), unit_cube(5), 1.0, about="a rod along no diagonal"),
    Integrand("corrgauss4", partial(correlated_gaussian, sigma=0.07, rho=0.99), unit_cube(4), 1.0, about="stronger correlation"),
    Integrand("corrgauss12", partial(correlated_gaussian, sigma=0.06, rho=0.99), unit_cube(12), 1.0, about="stronger correlation, more dimensions"),
    Integrand("reflected6", partial(reflected_normal, sigmas=(0.002, 0.004, 0.01, 0.02, 0.04, 0.06), normal=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)), unit_cube(6), 1.0, about="a Gaussian of six scales, turned"),
    Integrand("banana4", partial(twisted, sigma=2.0, bend=0.5, width=0.3), ((-13.0, 13.0), (-85.0, 5.0)) * 2, 1.0, about="two bananas in wide physical limits"),
    Integrand("rosen10", rosenbrock, unit_cube(10), rosen6.truth ** (5 / 3), about="five bananas"),
    Integrand("shell3", partial(shell, radius=0.35, width=0.005), unit_cube(3), 4 * math.pi * (0.35**2 + 0.005**2), about="a thin shell"),
    Integrand("shells8", partial(two_shells, radius=2.0, width=0.1, offset=3.5, half=6.0), unit_cube(8), 2.0359247359926040e-05, about="shells5 in eight dimensions"),
    Integrand("waves3", partial(waves, kappa=50.0), unit_cube(3), float(special.i0e(50.0)), about="periodic crests across the cube"),
    Integrand("resonance4", partial(resonances, at=0.3, width=0.003), unit_cube(4), 1.4429440441828678, about="Breit-Wigner along hyperbolas"),
)  # fmt: skip
EDGES = (
    Integrand("simplex5", partial(simplex, total=1.3), unit_cube(5), simplex_integral(5, 1.3), about="a corner cut off"),
    Integrand("ball6", partial(shell_indicator, inner=0.0, outer=0.45), unit_cube(6), math.pi**3 / 6 * 0.45**6, about="the indicator of a ball"),
    Integrand("slab2", partial(slab, half=0.005), unit_cube(2), 0.01 - 0.005**2, about="a thin cut along the diagonal"),
    Integrand("fringes4", partial(fringes, sigma=0.05, wave=(30.0, -20.0, 25.0, 10.0), contrast=3.0), unit_cube(4), 1 + 3 * math.exp(-0.05**2 / 2 * 2025), about="interference: both signs"),
    Integrand("unbounded5", unbounded, ((0.0, INF), (-INF, INF), (-INF, INF), (-INF, INF), (-INF, 1.0)), 1.0, about="limits at infinity"),
    Integrand("far3", far_normal, ((-INF, INF),) * 3, 1.0, about="limits at infinity, far from the origin"),
    Integrand("logevidence6", partial(log_evidence, peak=-12_000.0), ((-1.0, 3.0),) * 6, -12_000.0, about="logarithm: underflows", log=True),
    Integrand("logcircles2", partial(log_circles, peak=5_000.0), unit_cube(2), 5_000 + math.log(circles2.truth), about="logarithm: overflows", log=True),
    Integrand("spike6", partial(normals, centres=(P6,), sigmas=(0.01,)), unit_cube(6), 1.0, about="a spike: hard to find"),
    Integrand("needle6", partial(box_indicator, low=P6, side=0.12), unit_cube(6), 0.12**6, about="3e-6 of the volume, zero elsewhere: found or warned of"),
    Integrand("pedestal5", partial(normals, centres=(P5,), sigmas=(0.03,), shares=(0.5,), flat=0.5), unit_cube(5), 1.0, about="half of the integral in 3e-5 of the volume"),
    Integrand("corner6", partial(corner_cusp, scale=0.02), unit_cube(6), math.pi**3 * 120 * 0.02**6 / 64, about="a cusp in a corner"),
    Integrand("sqrt1", partial(root, at=0.0), unit_cube(1), 2.0, about="one dimension, singular at the limit"),
    Integrand("cusp1", partial(root, at=1 / 3), unit_cube(1), 2 * (math.sqrt(1 / 3) + math.sqrt(2 / 3)), about="one dimension, singular inside"),
)  # fmt: skip
HELD_OUT = GENZ + SHAPES + EDGES
