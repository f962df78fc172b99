"""The truncated normal distribution with full relative accuracy at both edges, however far out in the tail.

Everything is in standard units y = (theta - mean) / sd with edges a < b. Masses are in units of
exp(-c^2 / 2), the density (up to sqrt(2 pi)) at c, the point of [a, b] nearest to 0, so that an interval at
50 sd underflows as little as one at 0.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sbiflow.transforms.bounded import probit_from_tails

_ROOT_HALF_PI = math.sqrt(0.5 * math.pi)
_NODES, _WEIGHTS = (tuple(map(float, values)) for values in np.polynomial.legendre.leggauss(12))
_FAR = 5.0  # from here on the starting point of the inverse comes from the tail's own expansion
_NEWTON_STEPS = 4
_INFINITY = 1e3  # standard units beyond the nearer of the other edge and zero


def nearest_to_zero(a: float, b: float) -> float:
    """The mode of the standard normal truncated to (a, b)."""
    return min(max(0.0, a), b)


def _mills(y: Tensor) -> Tensor:
    """Integral of exp((y^2 - t^2) / 2) over t > y >= 0."""
    return _ROOT_HALF_PI * torch.special.erfcx(y / math.sqrt(2.0))


def _density(y: Tensor, c: float) -> Tensor:
    return torch.exp(-0.5 * (y - c) * (y + c))


def _short_mass(start: Tensor, length: Tensor, c: float) -> Tensor:
    """Gauss-Legendre: relative accuracy on an interval within which the density changes by a few e-folds."""
    parts = (w * _density(start + 0.5 * length * (1.0 + x), c) for x, w in zip(_NODES, _WEIGHTS, strict=True))
    return 0.5 * length * sum(parts, torch.zeros_like(length))


def _long_mass(start: Tensor, stop: Tensor, length: Tensor, c: float) -> Tensor:
    """Difference of Mills' ratios (same sign) or sum of erf (both sides of 0): no cancellation if long."""
    inner, outer = torch.minimum(start.abs(), stop.abs()), torch.maximum(start.abs(), stop.abs())
    ratio = torch.exp(-0.5 * length * (inner + outer))
    one_side = _density(inner, c) * (_mills(inner) - ratio * _mills(outer))
    root = math.sqrt(2.0)
    straddling = _ROOT_HALF_PI * (torch.erf(stop / root) - torch.erf(start / root))  # then c = 0
    return torch.where((start <= 0) & (stop >= 0), straddling, one_side)


def mass(start: Tensor, stop: Tensor, length: Tensor, c: float) -> Tensor:
    """Integral of exp((c^2 - t^2) / 2) over (start, stop); `length` is stop - start, more accurately."""
    short = length * start.abs().clamp(min=1.0) < 1.0
    short_length = torch.where(short, length, torch.zeros_like(length))
    return torch.where(short, _short_mass(start, short_length, c), _long_mass(start, stop, length, c))


def _finite(a: float, b: float) -> tuple[float, float]:
    """The edges, an infinite one replaced by one beyond which no float64 has any mass."""
    return max(a, min(b, 0.0) - _INFINITY), min(b, max(a, 0.0) + _INFINITY)


def total_mass(a: float, b: float) -> float:
    """`mass` of the whole of (a, b), as a number."""
    low, high = (torch.tensor(edge, dtype=torch.float64) for edge in _finite(a, b))
    return float(mass(low, high, high - low, nearest_to_zero(a, b)))


def truncated_tails(y: Tensor, below: Tensor, above: Tensor, a: float, b: float) -> tuple[Tensor, Tensor]:
    """Masses below and above y, given the distances from both edges (standard units, infinite allowed)."""
    c, total, (low, high) = nearest_to_zero(a, b), total_mass(a, b), _finite(a, b)
    y = y.clamp(low, high)
    below = below if low == a else y - low
    above = above if high == b else high - y
    start, stop = torch.full_like(y, low), torch.full_like(y, high)
    return mass(start, y, below, c) / total, mass(y, stop, above, c) / total


def _start(cdf: Tensor, sf: Tensor, a: float, b: float) -> Tensor:
    """y with the given tails, to absolute accuracy."""
    if b <= -_FAR:
        return -_start(sf, cdf, -b, -a)
    if a < _FAR:
        below, above = 0.5 * math.erfc(-a / math.sqrt(2.0)), 0.5 * math.erfc(b / math.sqrt(2.0))
        total = total_mass(a, b) * math.exp(-0.5 * nearest_to_zero(a, b) ** 2) / math.sqrt(2.0 * math.pi)
        return probit_from_tails(below + total * cdf, above + total * sf)
    # far out: exp((a^2 - y^2) / 2) mills(y) = tail, by Newton in log tail, which is nearly linear in y^2
    mills_a, mills_b = _mills(torch.tensor([a, b], dtype=torch.float64)).tolist()
    beyond = math.exp(-0.5 * (b - a) * (b + a)) * mills_b
    log_tail = torch.log(total_mass(a, b) * sf + beyond)
    y = torch.sqrt((a * a + 2.0 * (math.log(mills_a) - log_tail)).clamp(min=a * a))
    for _ in range(_NEWTON_STEPS):
        ratio = _mills(y)
        y = (y + ratio * (torch.log(ratio) - 0.5 * (y - a) * (y + a) - log_tail)).clamp(min=a)
    return y


def _distance(target: Tensor, guess: Tensor, edge: Tensor, c: float) -> Tensor:
    """Distance above `edge` at which the mass is `target`, to relative accuracy, from a rougher guess.

    The last Newton step carries the gradient, d(distance) = d(target) / density; the others need none.
    """

    def step(distance: Tensor) -> Tensor:
        y = edge + distance
        return distance - (mass(edge, y, distance, c) - target) / _density(y, c)

    with torch.no_grad():
        linear = target / _density(edge, c)
        distance = torch.where(linear * edge.abs().clamp(min=1.0) < 1e-3, linear, guess)
        for _ in range(_NEWTON_STEPS - 1):
            distance = step(distance)
    return step(distance.detach())


def truncated_quantile(cdf: Tensor, sf: Tensor, a: float, b: float) -> tuple[Tensor, Tensor, Tensor]:
    """y with the given tails, its distance from the edge on its side of the median, and whether that is a.

    The distance is infinite, and y alone counts, where that edge is.
    """
    total, lower = total_mass(a, b), cdf < sf
    y = _start(cdf, sf, a, b)
    if math.isinf(a) and math.isinf(b):
        return y, torch.full_like(y, math.inf), lower
    # points on the side of an infinite edge are solved for the median, from the other edge, and then dropped
    edge = torch.where(lower, torch.full_like(y, a), torch.full_like(y, -b))
    near = torch.isfinite(edge)
    half = torch.full((1,), 0.5, dtype=y.dtype, device=y.device)
    median = _start(half, half, a, b)
    spare_edge, spare_guess = (a, median - a) if math.isfinite(a) else (-b, b - median)
    target = torch.where(near, total * torch.where(lower, cdf, sf), 0.5 * total)
    guess = torch.where(near, torch.where(lower, y - a, b - y), spare_guess)
    distance = _distance(target, guess, torch.where(near, edge, spare_edge), nearest_to_zero(a, b))
    return y, torch.where(near, distance, math.inf), lower
