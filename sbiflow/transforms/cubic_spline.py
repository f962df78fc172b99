"""Piecewise-cubic maps (Durkan et al. 2019, "Cubic-spline flows", arXiv 1906.02145).

Hermite cubics through free knots. The slopes at inner knots are Steffen's (1990, A&A 239, 443, eq. 11), at most twice
the smaller of the mean slopes beside them; those at the ends are free up to three times that of their bin. Both are
within what makes every cubic increase (Fritsch & Carlson 1980). In shares t of the width and q of the height, with
slopes l, r in units of the bin's mean slope and u = 1 - t,

    q = l t u² + (3 - r) t² u + t³,    dq/dt = l u² + 2 (3 - l - r) t u + r t²:

q is a sum of positive terms. Its inverse is found by Newton's method in a bracket: the closed forms of the three kinds
of roots lose digits where they meet, and one of these places is the identity, where a flow starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sbiflow.transforms.bins import Located
from sbiflow.transforms.roots import increasing_root
from sbiflow.transforms.splines import knots, soft_clamp

_MAX_RAW_END = 6.0
_STEPS = 20  # of the inverse: see tests/transforms/test_spline_kinds.py


@dataclass(frozen=True)
class CubicSpline:
    """K bins of free widths and heights on [-half_width, half_width] and the slopes at the ends.

    The identity outside, and at zero; the slope jumps at the ends of the interval.
    """

    bins: int = 8
    half_width: float = 5.0

    @property
    def size(self) -> int:
        return 2 * self.bins + 2

    def __call__(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        sizes, ends = params.split([2 * self.bins, 2], -1)
        grid = knots(sizes.unflatten(-1, (2, self.bins)), self.half_width)
        own = Located.among(grid, inputs, self.half_width, inverse)
        mean = own.height / own.width
        left, right = (slope / mean for slope in own.ends(_slopes(grid, ends)))
        share = own.share
        if inverse:
            zero = torch.zeros_like(share)
            share = increasing_root(partial(_cubic, left, right), share, zero, zero + 1, _STEPS)
        risen, slope = _cubic(left, right, share)
        log_slope = torch.log(mean * slope)
        outputs = own.outputs(share if inverse else risen, inverse)
        return own.or_identity(inputs, outputs, -log_slope if inverse else log_slope)


def _cubic(left: Tensor, right: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The share of the height at the share t of the width, and its derivative."""
    u = 1 - t
    value = t * (left * u * u + t * ((3 - right) * u + t))
    return value, left * u * u + 2 * (3 - left - right) * t * u + right * t * t


def _slopes(grid: Tensor, raw_ends: Tensor) -> Tensor:
    """Slopes at the knots, (..., K + 1), from knots (..., 2, K + 1) and raw slopes at both ends, (..., 2)."""
    width, height = (grid[..., 1:] - grid[..., :-1]).unbind(-2)
    mean = height / width
    before, after = mean[..., :-1], mean[..., 1:]
    parabola = (width[..., 1:] * before + width[..., :-1] * after) / (width[..., 1:] + width[..., :-1])
    inner = 2 * torch.minimum(torch.minimum(before, after), parabola / 2)
    share = torch.sigmoid(soft_clamp(raw_ends, _MAX_RAW_END) - math.log(2))  # a third at zero
    first, last = (3 * share * torch.stack([mean[..., 0], mean[..., -1]], -1)).split(1, -1)
    return torch.cat([first, inner, last], -1)
