"""The twelve integrands of the issue: each function against its definition, each truth by a second route."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from analyses.integrands import INTEGRANDS, Integrand, by_names
from analyses.integrands_held_out import HELD_OUT
from tests import integrand_points as points

ALL = INTEGRANDS + HELD_OUT
M2 = (0.0, 0.0, 0.0, 125.0**2)


def bump(x: np.ndarray, c: float) -> float:
    return (0.2 * math.sqrt(math.pi)) ** -len(x) * math.exp(-sum((xi - c) ** 2 for xi in x) / 0.04)


def camel(x: np.ndarray) -> float:
    return 0.5 * (bump(x, 1 / 3) + bump(x, 2 / 3))


def circles(x: np.ndarray) -> float:
    a, b = x
    first = b**3 * math.exp(-250 * abs((b - 0.6) ** 2 + (a - 0.4) ** 2 - 1 / 16))
    return first + (1 - b) ** 3 * math.exp(-250 * abs((b - 0.4) ** 2 + (a - 0.6) ** 2 - 1 / 16))


def ridge(x: np.ndarray) -> float:
    def along(t: float) -> float:
        return math.exp(-100 * float(((x - t) ** 2).sum()))

    return 2 * (100 / math.pi) ** 4 * points.integral(along, 0.25, 0.75, float(x.mean().clip(0.26, 0.74)))


def shells(x: np.ndarray) -> float:
    total, y = 0.0, 12 * x - 6
    for centre in (-3.5, 3.5):
        distance = math.dist(y, [centre] + [0.0] * (len(x) - 1))
        total += stats.norm.pdf(distance, 2.0, 0.1)
    return total


def rosenbrock(x: np.ndarray) -> float:
    total = 0.0
    for k in range(0, len(x), 2):
        u, v = 10 * x[k] - 5, 12 * x[k + 1] - 2
        total += 0.5 * (u - 1) ** 2 + 20 * (v - u**2) ** 2
    return math.exp(-total)


def sector(t: Any, s: float, u: float, legs: tuple[int, int, int, int]) -> Any:
    t1, t2, t3 = t
    a, b, c, d = (M2[leg] for leg in legs)
    value = -s * t2 - u * t1 * t3 - a * t1 - b * t1 * t2 - c * t2 * t3 - d * t3
    return value + (1 + t1 + t2 + t3) ** 2 * 175.0**2


def box(x: np.ndarray) -> float:
    s12, s23 = 130.0**2, -(130.0**2) / 2
    first = 1 / sector(x, s23, s12, (1, 2, 3, 0)) ** 2 + 1 / sector(x, s12, s23, (2, 3, 0, 1)) ** 2
    return first + 1 / sector(x, s23, s12, (3, 0, 1, 2)) ** 2 + 1 / sector(x, s12, s23, (0, 1, 2, 3)) ** 2


DEFINITIONS: dict[str, Callable[[np.ndarray], float]] = {
    "gauss16": lambda x: bump(x, 0.5),
    "camel8": camel,
    "camel16": camel,
    "circles2": circles,
    "annulus2": lambda x: float(0.2 <= math.dist(x, (0.5, 0.5)) <= 0.45),
    "poly18": lambda x: sum(xi - xi**2 for xi in x),
    "ridge8": ridge,
    "corrgauss8": lambda x: points.equicorrelated(8, 0.08, 0.95, 0.5).pdf(x),
    "shells5": shells,
    "rosen6": rosenbrock,
    "cornerpeak8": lambda x: (1 + 5 / 8 * sum(x)) ** -9,
    "box3": box,
}
CENTRES = {
    "corrgauss8": np.full(8, 0.5),
    "rosen6": np.array([0.6, 0.25] * 3),
    "annulus2": np.array([0.5, 0.705]),
}


def gaussian_axis(c: float) -> float:
    return points.integral(lambda x: math.exp(-((x - c) ** 2) / 0.04), 0, 1, c) / (0.2 * math.sqrt(math.pi))


def circles_integral() -> float:
    """Twice the first term (a rotation by π gives the second) in a disc that the square holds.

    Outside of the disc the two have less than 2π/250 exp(−250 (0.16 − 1/16)) = 6.5e-13 in all, 5e-11 of the
    truth.
    """

    def ring(r: float) -> float:  # ∫ (0.6 + r sin φ)³ dφ = 2π 0.6³ + 3π 0.6 r²
        return r * (2 * math.pi * 0.6**3 + 3 * math.pi * 0.6 * r**2) * math.exp(-250 * abs(r**2 - 1 / 16))

    return 2 * points.integral(ring, 0, 0.4, 0.15, 0.25, 0.3)


def annulus_integral() -> float:
    """By strips: 4 ∫ (height of the disc − height of the hole) dx over a quarter."""

    def height(x: float, r: float) -> float:
        return math.sqrt(max(r**2 - x**2, 0.0))

    return 4 * (
        points.integral(lambda x: height(x, 0.45), 0, 0.45)
        - points.integral(lambda x: height(x, 0.2), 0, 0.2)
    )


def ridge_integral() -> float:
    """For each t the axes separate: 2 ∫ dt (½ erf(10 (1 − t)) + ½ erf(10 t))^8."""

    def inside(t: float) -> float:
        ends = stats.norm.cdf([1, 0], t, math.sqrt(1 / 200))
        return (ends[0] - ends[1]) ** 8

    return 2 * points.integral(inside, 0.25, 0.75, 0.5)


def box_integral(nodes: int = 24) -> float:
    t, w = points.legendre(0, 1, nodes)
    grid = np.stack([axis.ravel() for axis in np.meshgrid(t, t, t, indexing="ij")])
    weights = np.einsum("i,j,k->ijk", w, w, w).ravel()
    sides = ((-(130.0**2) / 2, 130.0**2), (130.0**2, -(130.0**2) / 2))
    legs = ((1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2), (0, 1, 2, 3))
    return float(sum(weights @ sector(grid, *sides[i % 2], legs[i]) ** -2 for i in range(4)))


# truth by another route, and the relative accuracy that the two together have
ORACLES: dict[str, tuple[Callable[[], float], float]] = {
    "gauss16": (lambda: gaussian_axis(0.5) ** 16, 1e-13),
    "camel8": (lambda: (gaussian_axis(1 / 3) ** 8 + gaussian_axis(2 / 3) ** 8) / 2, 1e-13),
    "camel16": (lambda: (gaussian_axis(1 / 3) ** 16 + gaussian_axis(2 / 3) ** 16) / 2, 1e-13),
    "circles2": (circles_integral, 1e-10),
    "annulus2": (annulus_integral, 1e-10),
    "poly18": (lambda: 18 * points.integral(lambda x: x - x**2, 0, 1), 1e-14),
    "ridge8": (ridge_integral, 1e-12),
    "corrgauss8": (lambda: points.one_factor(8, 0.08, 0.95), 4e-9),  # the truth leaves the tails out
    "shells5": (lambda: points.two_shells_integral(5), 1e-9),  # the truth forgets the cut at the limits
    "rosen6": (lambda: points.rosenbrock_pair() ** 3, 1e-12),
    "cornerpeak8": (lambda: points.corner_peak_integral(8, 5 / 8), 1e-12),
    "box3": (box_integral, 1e-13),
}


def test_every_integrand_has_an_oracle() -> None:
    names = [integrand.name for integrand in INTEGRANDS]
    assert list(DEFINITIONS) == list(ORACLES) == names


@pytest.mark.parametrize("integrand", INTEGRANDS, ids=lambda integrand: integrand.name)
def test_function_is_the_definition(integrand: Integrand) -> None:
    x = points.rows(integrand, CENTRES.get(integrand.name))
    want = np.array([DEFINITIONS[integrand.name](row) for row in x])
    assert (want != 0).sum() >= 20
    np.testing.assert_allclose(integrand.f(x), want, rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("integrand", INTEGRANDS, ids=lambda integrand: integrand.name)
def test_truth_by_another_route(integrand: Integrand) -> None:
    oracle, accuracy = ORACLES[integrand.name]
    assert oracle() == pytest.approx(integrand.truth, rel=accuracy, abs=0)


def test_the_box_is_smooth_enough_for_its_quadrature() -> None:
    assert box_integral(16) == pytest.approx(box_integral(24), rel=1e-13, abs=0)


@pytest.mark.parametrize("name, nodes", [("circles2", 2000), ("box3", 60), ("annulus2", 2000)])
def test_function_integrates_to_the_truth(name: str, nodes: int) -> None:
    """Midpoints in two and three dimensions: of the function itself, to the accuracy that its edges allow."""
    (integrand,) = by_names(name)
    axis = (np.arange(nodes) + 0.5) / nodes
    x = np.stack([one.ravel() for one in np.meshgrid(*[axis] * integrand.dim, indexing="ij")], 1)
    assert integrand.f(x).mean() == pytest.approx(integrand.truth, rel=2e-4, abs=0)


@pytest.mark.parametrize("integrand", ALL, ids=lambda integrand: integrand.name)
def test_torch_and_numpy_agree_and_rows_are_independent(integrand: Integrand) -> None:
    x = points.rows(integrand, None)
    values = integrand.f(x)
    assert values.shape == (len(x),) and values.dtype == np.float64
    tensor = integrand.f(torch.from_numpy(x))
    assert tensor.shape == (len(x),) and tensor.dtype == torch.float64
    np.testing.assert_allclose(tensor.numpy(), values, rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(np.concatenate([integrand.f(row[None]) for row in x]), values, rtol=1e-12)


@pytest.mark.parametrize("integrand", ALL, ids=lambda integrand: integrand.name)
def test_an_integrand_travels_to_another_process(integrand: Integrand) -> None:
    x = points.rows(integrand, None)
    again = pickle.loads(pickle.dumps(integrand))
    np.testing.assert_array_equal(again.f(x), integrand.f(x))
    assert again.truth == integrand.truth and again.bounds == integrand.bounds


def test_names_are_unique_and_the_issue_is_whole() -> None:
    names = [integrand.name for integrand in ALL]
    assert len(set(names)) == len(names)
    assert len(INTEGRANDS) == 12 and len(HELD_OUT) >= 12
    for integrand in INTEGRANDS:
        assert integrand.reach and integrand.floor and integrand.vegas_published
        assert integrand.bounds == ((0.0, 1.0),) * integrand.dim


def test_relative_error() -> None:
    (plain,), (log,) = by_names("poly18"), by_names("logevidence6", HELD_OUT)
    nan: Any = math.nan
    assert plain.relative(3.3, 0.6, nan, nan) == pytest.approx((0.1, 0.2))
    assert log.relative(nan, nan, -12_000 + math.log(1.1), 0.2) == pytest.approx((0.1, 0.22))
    assert log.relative(nan, nan, 1e9, 0.1)[0] > 1e300  # far off is far off, not an overflow


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"expected some of gauss16.*got nonsense"):
        by_names("gauss16,nonsense")
    assert [integrand.name for integrand in by_names("rosen6, camel8")] == ["camel8", "rosen6"]
    assert by_names("") == list(INTEGRANDS)
