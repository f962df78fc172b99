"""Piecewise-quadratic maps: a density that is linear in bins (Müller et al. 2018, arXiv 1808.03856, sec. 4.2).

With slopes l and r at a bin's ends, the share q of the bin's height that is reached at the share t of its width is

    q = (2 l t + (r - l) t²) / (l + r),    dy/dx = l + (r - l) t = sqrt(l² (1 - q) + r² q),

so that t = q (l + r) / (l + dy/dx): the inverse without a difference of nearly equal numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from sbiflow.transforms.bins import Located
from sbiflow.transforms.splines import MAX_RAW, MIN_SLOPE, knots, soft_clamp


@dataclass(frozen=True)
class QuadraticSpline:
    """K bins of free widths and slopes at K - 1 knots; slope one at the ends of [-half_width, half_width].

    The identity outside, and at zero. Slopes are at least MIN_SLOPE.
    """

    bins: int = 8
    half_width: float = 5.0

    @property
    def size(self) -> int:
        return 2 * self.bins - 1

    def __call__(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        grid, slope = self.table(params)
        own = Located.among(grid, inputs, self.half_width, inverse)
        left, right = own.ends(slope)
        if inverse:
            here = torch.sqrt(left * left * (1 - own.share) + right * right * own.share)
            share = own.share * (left + right) / (left + here)
        else:
            here = left + (right - left) * own.share
            share = own.share * (left + here) / (left + right)
        log_slope = torch.log(here)
        return own.or_identity(inputs, own.outputs(share, inverse), -log_slope if inverse else log_slope)

    def table(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Knots of x and y (..., 2, K + 1) and the slopes there (..., K + 1)."""
        raw_widths, raw_slopes = params.split([self.bins, self.bins - 1], -1)
        x = knots(raw_widths, self.half_width)
        width = (x[..., 1:] - x[..., :-1]) / (2 * self.half_width)
        free = torch.exp(soft_clamp(raw_slopes, MAX_RAW))
        # The mean slope is one. With slope one at both ends, the inner slopes have the rest to share.
        rest = 1 - (width[..., :1] + width[..., -1:]) / 2
        total = (free * (width[..., 1:] + width[..., :-1]) / 2).sum(-1, keepdim=True)
        slope = pad(MIN_SLOPE + (1 - MIN_SLOPE) * rest * free / total, (1, 1), value=1.0)
        rise = width * (slope[..., 1:] + slope[..., :-1]) * self.half_width
        y = torch.cumsum(rise[..., :-1], -1) - self.half_width
        y = pad(pad(y, (1, 0), value=-self.half_width), (0, 1), value=self.half_width)
        return torch.stack([x, y], -2), slope
