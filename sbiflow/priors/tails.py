"""Distribution functions of the priors, each as a pair of tails, and their inverses.

A distribution function alone loses everything above its median: 1 - 1e-20 is 1 in float64. Every function
here therefore speaks of two masses, cdf below theta and sf above it, each with full relative accuracy, from
the distances to both edges of the support, which are exact in floating point next to the edge.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def uniform_tails(theta: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Masses below and above theta of the uniform density on (low, high)."""
    return (theta - low) / (high - low), (high - theta) / (high - low)


def uniform_quantile(cdf: Tensor, sf: Tensor, low: float, high: float) -> Tensor:
    """Inverse of `uniform_tails`, from the nearer edge."""
    return torch.where(cdf < sf, low + (high - low) * cdf, high - (high - low) * sf)


def log_span(low: float, high: float) -> float:
    """log(high / low), accurate for close edges; infinite for low = 0."""
    if low == 0.0:
        return math.inf
    return math.log1p((high - low) / low) if high < 2.0 * low else math.log(high) - math.log(low)


def _log_ratio(theta: Tensor, edge: float) -> Tensor:
    """log(theta / edge), accurate next to the edge; infinite for edge = 0."""
    if edge == 0.0:
        return torch.full_like(theta, math.inf)
    excess = (theta - edge) / edge
    return torch.where(
        excess.abs() < 0.5, torch.log1p(excess.clamp(-0.5, 0.5)), torch.log(theta) - math.log(edge)
    )


def power_tails(theta: Tensor, low: float, high: float, k: float) -> tuple[Tensor, Tensor]:
    """Masses below and above theta of the density theta^(k - 1) on (low, high), 0 <= low.

    log theta is a truncated exponential of rate |k|, from the dense edge: high for k > 0, low for k < 0.
    """
    span, above, below = log_span(low, high), _log_ratio(theta, low), -_log_ratio(theta, high)
    if k == 0.0:
        return above / span, below / span
    rate = abs(k)
    near, far = (below, above) if k > 0 else (above, below)
    total = math.expm1(-rate * span)
    near_mass = torch.expm1(-rate * near) / total
    far_mass = torch.exp(-rate * near) * torch.expm1(-rate * far) / total
    return (far_mass, near_mass) if k > 0 else (near_mass, far_mass)


def power_quantile(cdf: Tensor, sf: Tensor, low: float, high: float, k: float) -> Tensor:
    """Inverse of `power_tails`."""
    span = log_span(low, high)
    if k == 0.0:
        return torch.where(cdf < sf, low * torch.exp(span * cdf), high * torch.exp(-span * sf))
    rate = abs(k)
    near, far = (sf, cdf) if k > 0 else (cdf, sf)
    distance = -torch.log1p(near.clamp(max=1.0 - 2.0**-53) * math.expm1(-rate * span)) / rate
    if rate * span > 1.0:  # otherwise the first form is accurate all the way
        from_far = -torch.log(far + near * math.exp(-rate * span)) / rate
        distance = torch.where(near < far, distance, from_far)
    return high * torch.exp(-distance) if k > 0 else low * torch.exp(distance)


def power_log_norm(low: float, high: float, k: float) -> float:
    """log of the integral of theta^(k - 1) over (low, high)."""
    span = log_span(low, high)
    if k == 0.0:
        return math.log(span)
    dense_edge = high if k > 0 else low
    return k * math.log(dense_edge) + math.log(-math.expm1(-abs(k) * span)) - math.log(abs(k))


def polar_mass(low: float, high: float) -> float:
    """Half the integral of sin over (low, high), without cancellation."""
    return math.sin(0.5 * (high + low)) * math.sin(0.5 * (high - low))


def polar_tails(
    below: Tensor, above: Tensor, low: tuple[float, float], high: tuple[float, float], mass: float
) -> tuple[Tensor, Tensor]:
    """Masses of the density sin, given the distances from both edges and (sin, cos) of each edge.

    cos a - cos b = 2 sin((a + b) / 2) sin((b - a) / 2), the first sine by the addition theorem from the edge,
    which may be the float next to pi, of sine 1.2e-16.
    """
    sin_below, sin_above = torch.sin(0.5 * below), torch.sin(0.5 * above)
    from_low = low[0] * torch.cos(0.5 * below) + low[1] * sin_below
    from_high = high[0] * torch.cos(0.5 * above) - high[1] * sin_above
    return from_low * sin_below / mass, from_high * sin_above / mass


def polar_quantile(cdf: Tensor, sf: Tensor, low: float, high: float) -> Tensor:
    """Polar angle of given tails, from sin^2 and cos^2 of its half, both sums of positive terms."""
    mass = polar_mass(low, high)
    sin_squared = math.sin(0.5 * low) ** 2 + mass * cdf
    cos_squared = math.cos(0.5 * high) ** 2 + mass * sf
    return 2.0 * torch.atan2(torch.sqrt(sin_squared), torch.sqrt(cos_squared))
