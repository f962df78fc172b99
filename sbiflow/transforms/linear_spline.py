"""Piecewise-linear maps: a density that is constant in bins (Müller et al. 2018, arXiv 1808.03856, sec. 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sbiflow.transforms.bins import Located
from sbiflow.transforms.splines import knots


@dataclass(frozen=True)
class LinearSpline:
    """y rises by free amounts over K equal bins of x in [-half_width, half_width]; the identity outside, and at zero.

    The slope is at least MIN_BIN K, and jumps at the knots.
    """

    bins: int = 8
    half_width: float = 5.0

    @property
    def size(self) -> int:
        return self.bins

    def __call__(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        y = knots(params, self.half_width)
        x = torch.linspace(
            -self.half_width, self.half_width, self.bins + 1, dtype=params.dtype, device=params.device
        )
        own = Located.among(torch.stack([x.expand_as(y), y], -2), inputs, self.half_width, inverse)
        log_slope = torch.log(own.height / own.width)
        return own.or_identity(inputs, own.outputs(own.share, inverse), -log_slope if inverse else log_slope)
