"""An axis with infinite limits as the image of (0, 1), by an algebraic map.

With v = 1 - u and s the scale,

    (a, ∞)     x = a + s u / v                 dx/du = s / v²
    (-∞, b)    x = b - s v / u                 dx/du = s / u²
    (-∞, ∞)    x = (3 s / 8) (1 / v - 1 / u)   dx/du = (3 s / 8) (1 / v² + 1 / u²)

so that uniform u makes x of median distance s from the finite limit, or of quartiles ±s, with tails of density
1/x², as a Cauchy distribution has. An integrand that falls as |x|^-p stays bounded in u for p >= 2, has an
integrable singularity at the wall for 1 < p < 2, and a finite variance under uniform u for p > 3/2; whatever
falls faster than 1/x² (exponentials, Gaussians) vanishes there. Each tail is computed from the distance to its
own wall, to a few ulp.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# u = 1 stands for its rounding cell, (1 - 2^-54, 1], and u = 0 for everything below 2^-500: |x| stays below
# 2e16 scales upwards and 4e150 downwards, whose square is still finite.
_NEAREST_TO_ONE, _NEAREST_TO_ZERO = 2.0**-54, 2.0**-500
_LARGEST, _LEAST_TAIL = torch.finfo(torch.float64).max, 1e-300
_WHOLE_LINE = 3.0 / 8.0  # makes the quartiles ±scale


def stretch(u: Tensor, low: float, high: float, scale: float) -> tuple[Tensor, Tensor]:
    """x and log dx/du at u in [0, 1], both (n,) float64; x is finite and in [low, high]."""
    below, above = u.clamp(min=_NEAREST_TO_ZERO), (1.0 - u).clamp(min=_NEAREST_TO_ONE)
    if math.isfinite(low):
        x = low + scale * (u / above)
    elif math.isfinite(high):
        x = high - scale * ((1.0 - u) / below)
    else:
        difference = 2.0 * (u - 0.5)  # exact around the middle, where u - (1 - u) is not
        x = (_WHOLE_LINE * scale) * (difference / above / below)
    return x.clamp(max(low, -_LARGEST), min(high, _LARGEST)), _log_slope(below, above, low, high, scale)


def shrink(x: Tensor, low: float, high: float, scale: float) -> tuple[Tensor, Tensor]:
    """The inverse: u and log dx/du (not negated) at finite x in [low, high]."""
    if math.isfinite(low):
        below, above = _share(x - low, scale), _share(scale, x - low)
    elif math.isfinite(high):
        below, above = _share(scale, high - x), _share(high - x, scale)
    else:
        y = x.abs() / (_WHOLE_LINE * scale)
        outer = 2.0 / (2.0 + y + torch.hypot(y, torch.full_like(y, 2.0)))
        below, above = torch.where(x < 0.0, outer, 1.0 - outer), torch.where(x < 0.0, 1.0 - outer, outer)
    tails = below.clamp(min=_LEAST_TAIL), above.clamp(min=_LEAST_TAIL)  # x / scale may overflow
    return below, _log_slope(*tails, low, high, scale)


def _log_slope(below: Tensor, above: Tensor, low: float, high: float, scale: float) -> Tensor:
    """log dx/du from u and 1 - u, each given to full relative accuracy."""
    if math.isfinite(low):
        return math.log(scale) - 2.0 * torch.log(above)
    if math.isfinite(high):
        return math.log(scale) - 2.0 * torch.log(below)
    both = torch.log(below**2 + above**2) - 2.0 * (torch.log(below) + torch.log(above))
    return math.log(scale) + math.log(_WHOLE_LINE) + both


def _share(part: Tensor | float, rest: Tensor | float) -> Tensor:
    """part / (part + rest) for values >= 0, without overflow."""
    return 1.0 / (1.0 + torch.as_tensor(rest / part))
