"""Two moons: a crescent of width 0.01 whose position folds the plane, so that the posterior is two crescents.

Appendix T.8 of arXiv 2101.04653; Greenberg, Nonnenmacher & Macke (2019), arXiv 1905.07488.

The crescent is p = (r cos a + 1/4, r sin a) with a uniform on (-pi/2, pi/2) and r ~ N(0.1, 0.01^2). From (r, a) to
the plane the Jacobian is |r|, so the density of x at distance rho from the centre is N(r; 0.1, 0.01^2) / (pi |r|),
with r = rho in the right half-plane and r = -rho in the left one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from sbiflow.checks import check_count
from sbiflow.priors import Prior, Uniform
from simulators.benchmark.task import (
    LOG_2PI,
    PlainData,
    PlainParameters,
    checked_theta,
    numbered,
    one_observation,
    pairs_of,
)

_RADIUS, _WIDTH = 0.1, 0.01
_OFFSET = 0.25
_PRIOR = Prior([Uniform(name, -1.0, 1.0) for name in numbered("theta", 2)])
_ANGLES, _RADII = 16_384, 512  # nodes of the evidence's quadrature


@dataclass(frozen=True)
class TwoMoons(PlainParameters, PlainData):
    """theta (2) ~ U[-1, 1]^2, x = crescent + (-|theta_1 + theta_2|, theta_2 - theta_1) / sqrt(2)."""

    name: str = "two_moons"
    version: str = "1"
    prior: Prior = _PRIOR
    x_shape: tuple[int, ...] = (2,)
    x_names: tuple[str, ...] = numbered("x", 2)

    def signal(self, theta: Tensor) -> Tensor:
        """The centre of the crescent's circle, (n, 2) -> (n, 2)."""
        first, second = checked_theta(self, theta).unbind(-1)
        return torch.stack(
            [_OFFSET - (first + second).abs() / math.sqrt(2), (second - first) / math.sqrt(2)], -1
        )

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        """A point of the crescent around its centre."""
        n, kind, place = len(signal), signal.dtype, signal.device
        angle = math.pi * (torch.rand(n, generator=generator, dtype=kind, device=place) - 0.5)
        radius = _RADIUS + _WIDTH * torch.randn(n, generator=generator, dtype=kind, device=place)
        return signal + torch.stack([radius * angle.cos(), radius * angle.sin()], -1)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log N(r; 0.1, 0.01^2) - log(pi |r|): theta (n, 2), x (2,) or (n, 2) -> (n,); +inf at r = 0."""
        theta, x = pairs_of(self, theta, x)
        away = x - self.signal(theta)
        distance = torch.hypot(away[:, 0], away[:, 1])
        radius = torch.where(away[:, 0] < 0, -distance, distance)
        normal = -0.5 * ((radius - _RADIUS) / _WIDTH).square() - 0.5 * LOG_2PI - math.log(_WIDTH)
        return normal - math.log(math.pi) - distance.log()

    def reference(self, x: Tensor, n: int, seed: int) -> Tensor:
        """n independent draws of the posterior, (n, 2) float64, exact.

        theta -> centre folds the plane along theta_1 + theta_2 = 0 and is otherwise a rotation, so a crescent
        drawn backwards from x, on either side of the fold and within the prior, is a draw of the posterior.

        Raises:
            ValueError: no draw of a million falls into the prior: x has almost no evidence.
        """
        point, rng = one_observation(self, x), np.random.default_rng(check_count(seed, "seed", 0))
        kept: list[np.ndarray] = []
        tried = found = 0
        while found < check_count(n, "n"):
            size = max(2 * (n - found), 10_000)
            angle = math.pi * (rng.random(size) - 0.5)
            side = np.where(rng.random(size) < 0.5, -1.0, 1.0)
            theta, inside = _backwards(point, rng.normal(_RADIUS, _WIDTH, size), angle, side)
            kept.append(theta[inside])
            tried, found = tried + size, found + int(inside.sum())
            if tried >= 1_000_000 and not found:
                raise ValueError(f"x: expected an observation that the prior can make, got {point.tolist()}")
        return torch.from_numpy(np.concatenate(kept)[:n])

    def log_evidence(self, x: Tensor) -> tuple[float, float]:
        """log of half the share of the backward crescent that the prior holds, and the quadrature's error.

        p(x) = integral of p(x | theta) / 4 over the square, 2 sides times that share over 4; midpoints in angle
        and radius; the error is the difference from a quarter of the nodes.
        """
        point = one_observation(self, x)
        fine, coarse = (_share(point, _ANGLES // k, _RADII // k) for k in (1, 2))
        error = abs(fine - coarse) / fine if fine > 0 else math.inf
        return (math.log(0.5 * fine) if fine > 0 else -math.inf), error


def _backwards(
    point: np.ndarray, radius: np.ndarray, angle: np.ndarray, side: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """theta (..., 2) that puts x at (radius, angle) of its crescent, and whether the prior holds it."""
    fold = -(point[0] - _OFFSET - radius * np.cos(angle))  # |theta_1 + theta_2| / sqrt 2
    across = point[1] - radius * np.sin(angle)
    theta = np.stack([side * fold - across, side * fold + across], -1) / math.sqrt(2)
    return theta, (fold >= 0) & (np.abs(theta) < 1).all(-1)


def _share(point: np.ndarray, n_angles: int, n_radii: int) -> float:
    angle = math.pi * ((np.arange(n_angles) + 0.5) / n_angles - 0.5)
    deviation = 16.0 * ((np.arange(n_radii) + 0.5) / n_radii - 0.5)
    weight = np.exp(-0.5 * deviation**2)
    inside = [_backwards(point, _RADIUS + _WIDTH * d, angle, 1.0)[1].mean() for d in deviation]
    return float(weight @ np.array(inside) / weight.sum())
