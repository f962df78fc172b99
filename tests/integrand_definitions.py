"""The definitions of the held-out integrands, written again row by row, and where they are not zero."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from analyses.integrands_held_out import MODES, P5, P6
from tests import integrand_points as points
from tests.test_integrands import circles, rosenbrock, shells

normal = stats.norm.pdf
SLOPES = {
    "oscillatory6": (2.0, 1.5, 3.0, 1.0, 2.0, 2.5),
    "productpeak5": (5.0, 10.0, 20.0, 8.0, 15.0),
    "genzgauss10": (2.0, 4.0, 6.0, 3.0, 5.0) * 2,
    "kink6": (3.0, 6.0, 9.0, 4.0, 8.0, 5.0),
    "cliff6": (2.0, 3.0, 1.0, 2.0, 3.0, 1.0),
}
WAVE = (30.0, -20.0, 25.0, 10.0)
START, END = np.array([0.2, 0.8, 0.3, 0.7, 0.25]), np.array([0.8, 0.2, 0.7, 0.3, 0.75])


def isotropic(x: np.ndarray, centre: tuple[float, ...] | np.ndarray, sigma: float) -> float:
    return math.prod(normal(x, centre, sigma))


def bump(x: np.ndarray, c: float, a: float) -> float:
    return math.prod(math.exp(-(((xi - c) / a) ** 2)) / (a * math.sqrt(math.pi)) for xi in x)


def cliff(x: np.ndarray) -> float:
    return math.exp(sum(SLOPES["cliff6"] * x)) if x[0] < 0.4 and x[1] < 0.6 else 0.0


def rod(x: np.ndarray) -> float:
    nearest = float(np.clip((x - START) @ (END - START) / ((END - START) @ (END - START)), 0.01, 0.99))
    return points.integral(lambda t: isotropic(x, START + t * (END - START), 0.025), 0, 1, nearest)


def reflected() -> stats.rv_continuous:
    v = np.arange(1.0, 7.0)
    turn = np.eye(6) - 2 * np.outer(v, v) / (v @ v)
    return stats.multivariate_normal(
        np.full(6, 0.5), turn @ np.diag([0.002, 0.004, 0.01, 0.02, 0.04, 0.06]) ** 2 @ turn
    )


def banana(x: np.ndarray) -> float:
    first, second = (normal(x[k], 0, 2) * normal(x[k + 1], 0.5 * (4 - x[k] ** 2), 0.3) for k in (0, 2))
    return first * second


def unbounded(x: np.ndarray) -> float:
    pair = points.equicorrelated(2, 1.0, 0.9, 0.0).pdf(x[2:4])
    return stats.gamma(3).pdf(x[0]) * normal(x[1], 3, 2) * pair * math.exp(x[4] - 1)


def fringes(x: np.ndarray) -> float:
    return isotropic(x, (0.5,) * 4, 0.05) * (1 + 3 * math.cos(sum((x - 0.5) * WAVE)))


def resonances(x: np.ndarray) -> float:
    return math.prod(stats.cauchy(0.3, 0.003).pdf(x[k] * x[k + 1]) for k in (0, 2))


DEFINITIONS: dict[str, Callable[[np.ndarray], float]] = {
    "oscillatory6": lambda x: math.cos(sum(SLOPES["oscillatory6"] * x)),
    "productpeak5": lambda x: math.prod(
        1 / (a**-2 + (xi - c) ** 2) for xi, a, c in zip(x, SLOPES["productpeak5"], P5, strict=True)
    ),
    "cornerpeak4": lambda x: (1 + 3 * sum(x)) ** -5,
    "cornerpeak12": lambda x: (1 + 0.5 * sum(x)) ** -13,
    "genzgauss10": lambda x: math.exp(-sum((np.array(SLOPES["genzgauss10"]) * (x - (P5 + P5))) ** 2)),
    "kink6": lambda x: math.exp(-sum(SLOPES["kink6"] * abs(x - P6))),
    "cliff6": cliff,
    "gauss6": lambda x: bump(x, 0.3, 0.05),
    "camel12": lambda x: (bump(x, 0.25, 0.12) + bump(x, 0.7, 0.12)) / 2,
    "modes6": lambda x: sum(
        share * isotropic(x, c, s)
        for share, c, s in zip((0.6, 0.3, 0.1), MODES, (0.05, 0.03, 0.04), strict=True)
    ),
    "rod5": rod,
    "corrgauss4": lambda x: points.equicorrelated(4, 0.07, 0.99, 0.5).pdf(x),
    "corrgauss12": lambda x: points.equicorrelated(12, 0.06, 0.99, 0.5).pdf(x),
    "reflected6": lambda x: reflected().pdf(x),
    "banana4": banana,
    "rosen10": rosenbrock,
    "shell3": lambda x: normal(math.dist(x, (0.5,) * 3), 0.35, 0.005),
    "shells8": shells,
    "waves3": lambda x: math.exp(50 * math.cos(2 * math.pi * sum(x)) - 50),
    "resonance4": resonances,
    "simplex5": lambda x: float(sum(x) <= 1.3),
    "ball6": lambda x: float(math.dist(x, (0.5,) * 6) <= 0.45),
    "slab2": lambda x: float(abs(x[0] - x[1]) < 0.005),
    "fringes4": fringes,
    "unbounded5": unbounded,
    "far3": lambda x: points.equicorrelated(3, 5.0, 0.9, 40.0).pdf(x),
    "logevidence6": lambda x: points.equicorrelated(6, 0.1, 0.8, 1.0).logpdf(x) - 12_000,
    "logcircles2": lambda x: 5_000 + math.log(circles(x)),
    "spike6": lambda x: isotropic(x, P6, 0.01),
    "needle6": lambda x: float(all(c <= xi < c + 0.12 for xi, c in zip(x, P6, strict=True))),
    "pedestal5": lambda x: 0.5 + 0.5 * isotropic(x, P5, 0.03),
    "corner6": lambda x: math.exp(-math.hypot(*x) / 0.02),
    "sqrt1": lambda x: 1 / math.sqrt(x[0]),
    "cusp1": lambda x: 1 / math.sqrt(abs(x[0] - 1 / 3)),
}
CENTRES = {
    "rod5": (START + END) / 2,
    "corrgauss12": np.full(12, 0.5),
    "reflected6": np.full(6, 0.5),
    "banana4": np.array([0.0, 2.0, 1.0, 1.5]),
    "rosen10": np.array([0.6, 0.25] * 5),
    "shells8": np.array([0.5 + 1.5 / 12] + [0.5] * 7),
    "unbounded5": np.array([2.0, 3.0, 0.0, 0.0, 0.5]),
    "far3": np.full(3, 40.0),
    "spike6": np.array(P6),
    "needle6": np.array(P6) + 0.06,
}
