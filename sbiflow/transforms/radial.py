"""Radial flows: points move away from a centre or towards it, those near it most."""

from __future__ import annotations

import torch
from nflows.transforms.base import Transform
from torch import Tensor

from sbiflow.transforms.monotone import log_derivative, positive
from sbiflow.transforms.parameters import Parameters
from sbiflow.transforms.splines import soft_clamp

_LIMIT = 5.0  # of log α


class Radial(Transform):
    """y = z + β (z - z0) / (α + |z - z0|) (Rezende & Mohamed 2015, arXiv 1505.05770, eq. 14 and A.2).

    α > 0 and β > -α: β = (a - 1) α, where a = 1 + β / α > 1e-3 is the slope at the centre (the paper has
    β = -α + softplus; here zero parameters mean a = 1, the identity). z0 (D), log α and a come from the context, or are
    learned where C = 0; z0 starts at a random place (drawn from torch's global generator, kept in a buffer).
    Inputs (..., D).

    In units of α the radius r = |z - z0| becomes R = r (a + r) / (1 + r), so that r² + (a - R) r - R = 0: the inverse
    is the positive root. The slope along the radius is 1 + (a - 1) / (1 + r)², that across it 1 + (a - 1) / (1 + r).
    """

    centre: Tensor

    def __init__(
        self, dim: int, context: int = 0, hidden: int = 64, blocks: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.sizes = [dim, 1, 1]
        self.params = Parameters(sum(self.sizes), context, hidden, blocks, dropout)
        self.register_buffer("centre", torch.randn(dim))

    def _settings(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """z0 (..., D), α and a (..., 1)."""
        place, raw_width, raw_slope = self.params(context).split(self.sizes, -1)
        return self.centre + place, torch.exp(soft_clamp(raw_width, _LIMIT)), positive(raw_slope)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        centre, width, slope = self._settings(context)
        away = inputs - centre
        r = torch.linalg.vector_norm(away, dim=-1, keepdim=True) / width
        return centre + away * ((slope + r) / (1 + r)), _logdet(slope, r, inputs.shape[-1])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        centre, width, slope = self._settings(context)
        away = inputs - centre
        r = _radius(torch.linalg.vector_norm(away, dim=-1, keepdim=True) / width, slope)
        return centre + away * ((1 + r) / (slope + r)), -_logdet(slope, r, inputs.shape[-1])


def _radius(moved: Tensor, slope: Tensor) -> Tensor:
    """r >= 0 with r (slope + r) / (1 + r) = moved, by the form of a quadratic's root in which nothing cancels."""
    linear = slope - moved
    # above zero: linear and moved never both vanish
    half = (linear.abs() + torch.sqrt(linear * linear + 4 * moved)) / 2
    return torch.where(linear > 0, moved / half, half)


def _logdet(slope: Tensor, r: Tensor, dim: int) -> Tensor:
    """(..., 1) -> (...)."""
    near = 1 / (1 + r)
    across = log_derivative(slope, near, r * near)
    along = log_derivative(slope, near * near, r * (2 + r) * near * near)
    return ((dim - 1) * across + along)[..., 0]
