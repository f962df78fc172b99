"""Planar flows: a step along one direction, by how far a point is from a plane."""

from __future__ import annotations

import torch
from nflows.transforms.base import Transform
from torch import Tensor

from sbiflow.transforms.monotone import bell, log_derivative, positive, solve_tanh
from sbiflow.transforms.parameters import Parameters


def planar(inputs: Tensor, w: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """z + u tanh(w'z + b), (..., D), and its log|det|, (...); w, u (..., D), b (...).

    It is invertible where w'u > -1: Rezende & Mohamed 2015 (arXiv 1505.05770), eqs. 10-12. u is taken as it is.
    """
    return _step(inputs, w, u, b, 1 + (w * u).sum(-1))


def _step(inputs: Tensor, w: Tensor, u: Tensor, b: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The same, given slope = 1 + w'u, of which a sum would have lost digits near zero."""
    s = (w * inputs).sum(-1) + b
    return inputs + u * torch.tanh(s)[..., None], log_derivative(slope, *bell(s))


def constrained(w: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """û, which is u with its part along w changed so that w'û > -1, and 1 + w'û (arXiv 1505.05770, appendix A.1).

    û = u + (m(w'u) - w'u) w / |w|², m(x) = -1 + 1e-3 + softplus(x + c). The paper has neither 1e-3, a floor under the
    map's slope, nor c: with it m(0) = 0, so that u = 0 is the identity.
    """
    along, square = (w * u).sum(-1), (w * w).sum(-1)
    slope = positive(along)
    # at w = 0 any û will do: there the numerator is zero too
    change = (slope - 1 - along) / square.clamp(min=torch.finfo(w.dtype).tiny)
    return u + change[..., None] * w, slope


class Planar(Transform):
    """y = z + û tanh(w'z + b) (Rezende & Mohamed 2015, arXiv 1505.05770, sec. 4.1 and A.1).

    w, u (D each) and b come from the context, or are learned where C = 0. Inputs (..., D). Starts as the identity,
    û = 0, with w a random direction (drawn from torch's global generator, kept in a buffer).

    The inverse: s = w'z + b solves s + w'û tanh s = w'y + b, by Newton's method to float precision; z = y - û tanh s.
    """

    direction: Tensor

    def __init__(
        self, dim: int, context: int = 0, hidden: int = 64, blocks: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.sizes = [dim, dim, 1]
        self.params = Parameters(sum(self.sizes), context, hidden, blocks, dropout)
        self.register_buffer("direction", torch.nn.functional.normalize(torch.randn(dim), dim=0))

    def _settings(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """w, û (..., D), b, 1 + w'û (...)."""
        turn, free, offset = self.params(context).split(self.sizes, -1)
        w = self.direction + turn
        u, slope = constrained(w, free)
        return w, u, offset[..., 0], slope

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _step(inputs, *self._settings(context))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        w, u, b, slope = self._settings(context)
        s = solve_tanh((w * inputs).sum(-1) + b, slope)
        return inputs - u * torch.tanh(s)[..., None], -log_derivative(slope, *bell(s))
