"""A triangular linear map: with parameters from the context, the conditional Gaussian of any covariance."""

from __future__ import annotations

import torch
from nflows.transforms.base import Transform
from torch import Tensor

from sbiflow.transforms.matrices import Triangle, multiply, solve
from sbiflow.transforms.parameters import Parameters
from sbiflow.transforms.splines import soft_clamp

LIMIT = 10.0  # of a log-scale: one such map has to zoom in alone


class Triangular(Transform):
    """y = S T (x - m), S diagonal and positive, T lower triangular (or `upper`) with a unit diagonal.

    With a standard normal base and a lower T that is the normal density with mean m whose precision is T' S² T, by the
    modified Cholesky factorisation (Pourahmadi 1999, Biometrika 86, 677): row i of T holds minus the coefficients of
    the regression of x_i on x_1..x_{i-1}, and 1 / S_ii is the standard deviation of what is left. So T is of order one
    however narrow the density is. The parameters, D + D + D (D - 1) / 2, come from the context, or are learned where
    C = 0. Inputs (..., D); starts as the identity; |log S_ii| < 10.
    """

    def __init__(
        self,
        dim: int,
        context: int = 0,
        hidden: int = 64,
        blocks: int = 2,
        dropout: float = 0.0,
        upper: bool = False,
    ) -> None:
        super().__init__()
        self.upper, self.triangle = upper, Triangle(dim, upper)
        self.sizes = [dim, dim, self.triangle.entries]
        self.params = Parameters(sum(self.sizes), context, hidden, blocks, dropout)

    def _factors(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """m (..., D), log S (..., D), T (..., D, D)."""
        mean, raw, entries = self.params(context).split(self.sizes, -1)
        return mean, soft_clamp(raw, LIMIT), self.triangle(entries, torch.ones_like(raw))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, log_scale, matrix = self._factors(context)
        outputs = torch.exp(log_scale) * multiply(matrix, inputs - mean)
        return outputs, log_scale.sum(-1).expand(inputs.shape[:-1])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, log_scale, matrix = self._factors(context)
        solved = solve(matrix, inputs * torch.exp(-log_scale), self.upper, unit=True)
        return solved + mean, -log_scale.sum(-1).expand(inputs.shape[:-1])
