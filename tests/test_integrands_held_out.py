"""The held-out integrands: each function against its definition, each truth by a second route."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from numpy.polynomial import Polynomial
from scipy import integrate, stats

from analyses.integrands import Integrand
from analyses.integrands_held_out import HELD_OUT, MODES, P5, P6
from tests import integrand_points as points
from tests.integrand_definitions import CENTRES, DEFINITIONS, END, SLOPES, START, WAVE, normal, reflected

Function = Callable[[float], float]


def by_axes(axis: Callable[[float, float], Function], parameters: list[tuple[float, float]]) -> float:
    """Π of one-dimensional quadratures, each broken at the second parameter."""
    return math.prod(points.integral(axis(a, c), 0, 1, c) for a, c in parameters)


def pairs(name: str, centres: tuple[float, ...]) -> list[tuple[float, float]]:
    return list(zip(SLOPES[name], centres, strict=True))


def oscillatory() -> float:
    """Re Π ∫ e^{iax} dx, real and imaginary part by quadrature."""
    product = 1 + 0j
    for a in SLOPES["oscillatory6"]:
        real, imaginary = (
            points.integral(partial(lambda g, a, x: g(a * x), g, a), 0, 1) for g in (math.cos, math.sin)
        )
        product *= complex(real, imaginary)
    return product.real


def inside(centre: tuple[float, ...] | np.ndarray, sigma: float) -> float:
    """Share of an isotropic normal in the unit cube."""
    return math.prod(stats.norm.cdf(1, c, sigma) - stats.norm.cdf(0, c, sigma) for c in centre)


def cliff_integral() -> float:
    ends = zip(SLOPES["cliff6"], (0.4, 0.6, 1.0, 1.0, 1.0, 1.0), strict=True)
    return math.prod(points.integral(partial(lambda a, x: math.exp(a * x), a), 0, end) for a, end in ends)


def reflected_outside() -> float:
    """The sum of the tails of the axes bounds what the cube leaves out."""
    return 1 - sum(2 * stats.norm.sf(0.5 / s) for s in np.sqrt(np.diag(reflected().cov)))


def banana_pair() -> float:
    def given(u: float) -> float:
        ends = stats.norm.cdf([5, -85], 0.5 * (4 - u * u), 0.3)
        return normal(u, 0, 2) * (ends[0] - ends[1])

    return points.integral(given, -13, 13, -4, 0, 4)


def simplex(dim: int, total: float) -> float:
    """V_n(t) = ∫_{t−1}^t V_{n−1}, for 1 <= t < 2 from its two pieces on [0, 1] and [1, 2]."""
    lower, upper = Polynomial([0, 1]), Polynomial([1])
    shift = Polynomial([-1, 1])
    for _ in range(dim - 1):
        below, above = lower.integ(), upper.integ()
        lower, upper = below, below(1) - below(shift) + above - above(1)
    return float(upper(total))


def ball(dim: int, radius: float) -> float:
    """V_n = V_{n−1} ∫ (1 − x²)^{(n−1)/2} dx."""
    volume = 1.0
    for n in range(1, dim + 1):
        volume *= 2 * points.integral(partial(lambda n, t: math.cos(t) ** n, n), 0, math.pi / 2)
    return volume * radius**dim


def fringes_integral() -> float:
    """1 + 3 Re Π ∫ N(y; 0, σ²) e^{iky} dy; beyond the cube are 1e-22."""

    def wave(k: float, y: float) -> float:
        return normal(y, 0, 0.05) * math.cos(k * y)

    waves = [points.integral(partial(wave, k), -0.5, 0.5, 0) for k in WAVE]
    return 1 + 3 * math.prod(waves)


def resonance_pair() -> float:
    """∫∫ g(uv) du dv = ∫ −ln s g(s) ds."""
    density = stats.cauchy(0.3, 0.003).pdf
    return points.integral(lambda s: -math.log(s) * density(s), 0, 1, 0.25, 0.29, 0.3, 0.31, 0.35)


def unbounded_integral() -> float:
    def pair(d: float) -> float:
        return points.integral(
            lambda c: points.equicorrelated(2, 1.0, 0.9, 0.0).pdf([c, d]), d - 12, d + 12, d
        )

    gamma = points.integral(lambda a: a * a * math.exp(-a) / 2, 0, 80, 2, 10)
    last = points.integral(lambda e: math.exp(e - 1), -60, 1, -5)
    nodes, weights = points.legendre(-9, 9, 60)
    return gamma * last * float(weights @ [pair(d) for d in nodes])


def corner() -> float:
    """1/64 of all directions; beyond the distance 1 is less than 6e-16 of it."""
    return math.pi**3 / 64 * points.integral(lambda r: r**5 * math.exp(-r / 0.02), 0, 1, 0.1, 0.3)


def root(at: float) -> float:
    """With x = at ± t² nothing is singular."""
    return sum(points.integral(lambda t: 2.0, 0, math.sqrt(side)) for side in (at, 1 - at))


ORACLES: dict[str, tuple[Callable[[], float], float]] = {
    "oscillatory6": (oscillatory, 1e-12),
    "productpeak5": (
        lambda: by_axes(lambda a, c: lambda x: 1 / (a**-2 + (x - c) ** 2), pairs("productpeak5", P5)),
        1e-12,
    ),
    "cornerpeak4": (lambda: points.corner_peak_integral(4, 3.0), 1e-12),
    "cornerpeak12": (lambda: points.corner_peak_integral(12, 0.5), 1e-10),
    "genzgauss10": (
        lambda: by_axes(
            lambda a, c: lambda x: math.exp(-((a * (x - c)) ** 2)), pairs("genzgauss10", P5 + P5)
        ),
        1e-12,
    ),
    "kink6": (lambda: by_axes(lambda a, c: lambda x: math.exp(-a * abs(x - c)), pairs("kink6", P6)), 1e-12),
    "cliff6": (cliff_integral, 1e-12),
    "gauss6": (lambda: inside((0.3,) * 6, 0.05 / math.sqrt(2)), 1e-12),
    "camel12": (
        lambda: (inside((0.25,) * 12, 0.12 / math.sqrt(2)) + inside((0.7,) * 12, 0.12 / math.sqrt(2))) / 2,
        1e-12,
    ),
    "modes6": (
        lambda: 0.6 * inside(MODES[0], 0.05) + 0.3 * inside(MODES[1], 0.03) + 0.1 * inside(MODES[2], 0.04),
        1e-6,
    ),
    "rod5": (lambda: points.integral(lambda t: inside(START + t * (END - START), 0.025), 0, 1), 1e-12),
    "corrgauss4": (lambda: points.one_factor(4, 0.07, 0.99), 1e-11),
    "corrgauss12": (lambda: points.one_factor(12, 0.06, 0.99), 1e-11),
    "reflected6": (reflected_outside, 1e-11),
    "banana4": (lambda: banana_pair() ** 2, 1e-9),
    "rosen10": (lambda: points.rosenbrock_pair() ** 5, 1e-11),
    "shell3": (
        lambda: points.integral(lambda r: 4 * math.pi * r**2 * normal(r, 0.35, 0.005), 0.25, 0.45, 0.35),
        1e-12,
    ),
    "shells8": (lambda: points.two_shells_integral(8), 1e-9),
    "waves3": (
        lambda: (
            2 * points.integral(lambda s: math.exp(50 * (math.cos(2 * math.pi * s) - 1)), 0, 0.5, 0.05, 0.2)
        ),
        1e-12,
    ),
    "resonance4": (lambda: resonance_pair() ** 2, 1e-10),
    "simplex5": (lambda: simplex(5, 1.3), 1e-12),
    "ball6": (lambda: ball(6, 0.45), 1e-12),
    "slab2": (
        lambda: points.integral(lambda a: min(a + 0.005, 1) - max(a - 0.005, 0), 0, 1, 0.005, 0.995),
        1e-12,
    ),
    "fringes4": (fringes_integral, 1e-12),
    "unbounded5": (unbounded_integral, 1e-9),
    "far3": (lambda: 1.0, 0.0),  # a density on all of R³: that it is one is what its definition says
    "logevidence6": (lambda: -12_000 + math.log(points.one_factor(6, 0.025, 0.8)), 1e-15),
    "logcircles2": (lambda: 5_000 + math.log(0.013684776725), 1e-15),
    "spike6": (lambda: inside(P6, 0.01), 1e-12),
    "needle6": (lambda: math.prod(points.integral(lambda x: 1.0, c, c + 0.12) for c in P6), 1e-12),
    "pedestal5": (lambda: 0.5 + 0.5 * inside(P5, 0.03), 1e-12),
    "corner6": (corner, 1e-12),
    "sqrt1": (lambda: root(0.0), 1e-12),
    "cusp1": (lambda: root(1 / 3), 1e-12),
}


def test_every_integrand_has_an_oracle() -> None:
    names = {integrand.name for integrand in HELD_OUT}
    assert set(DEFINITIONS) == set(ORACLES) == names


@pytest.mark.parametrize("integrand", HELD_OUT, ids=lambda integrand: integrand.name)
def test_function_is_the_definition(integrand: Integrand) -> None:
    x = points.rows(integrand, CENTRES.get(integrand.name))
    want = np.array([DEFINITIONS[integrand.name](row) for row in x])
    assert (want != 0).sum() >= 20
    np.testing.assert_allclose(integrand.f(x), want, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("integrand", HELD_OUT, ids=lambda integrand: integrand.name)
def test_truth_by_another_route(integrand: Integrand) -> None:
    oracle, accuracy = ORACLES[integrand.name]
    assert oracle() == pytest.approx(integrand.truth, rel=accuracy, abs=0)


def test_signed_integrands_have_both_signs() -> None:
    for integrand in HELD_OUT:
        values = integrand.f(points.rows(integrand, CENTRES.get(integrand.name)))
        signed = bool((values < 0).any()) and not integrand.log
        assert signed == (integrand.name in ("fringes4", "oscillatory6")), integrand.name


def test_the_singular_ones_by_quadrature_with_a_weight() -> None:
    found = integrate.quad(lambda x: 1.0, 0, 1, weight="alg", wvar=(-0.5, 0))[0]
    assert found == pytest.approx(root(0.0), rel=1e-12)
