"""A perceptron whose Lipschitz constant in its inputs is below a bound; the context enters without one.

Behrmann et al. 2019 (arXiv 1811.00995, sec. 2.1) with the activation of Chen et al. 2019 (arXiv 1906.02735, sec. 3.2):

    h_0 = x,    h_i = LipSwish(W_i h_{i-1} + b_i + s_i(c)),    g(x, c) = W_n h_{n-1} + b_n + s_n(c),

where LipSwish has slopes below one and every matrix is divided by what its largest singular value exceeds its share
kappa = bound^(1/n) by: W_i min(1, kappa / sigma_max(W_i)). The shifts s_i come from a network of the context alone.

The singular value is exact, from a decomposition at every call (64 units: 1.4 ms with its gradient). Power iteration,
usual for the large matrices of images, approaches it from below, so that the bound is broken by what is missing, and
keeps a vector from call to call, so that a density would depend on the calls before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from sbiflow.transforms.networks import ResidualNet

_STEEPEST = 1.1  # swish has slopes below 1.09984, whatever its sharpness


def lipswish(inputs: Tensor, sharpness: Tensor) -> tuple[Tensor, Tensor]:
    """x sigmoid(beta x) / 1.1 and its slope, which lies in (-0.1, 1)."""
    gate = torch.sigmoid(sharpness * inputs)
    slope = gate * (1 + sharpness * inputs * (1 - gate))
    return inputs * gate / _STEEPEST, slope / _STEEPEST


def bounded(weight: Tensor, bound: float) -> Tensor:
    """The matrix, scaled down to a largest singular value of `bound` if its own is larger."""
    return weight / torch.clamp(torch.linalg.matrix_norm(weight, ord=2) / bound, min=1.0)


@dataclass(frozen=True)
class Field:
    """g at given contexts: for inputs (..., D), whose leading shape the shifts broadcast against.

    Attributes:
        weights: the bounded matrices, (out, in).
        shifts: what is added after each, (..., out).
        sharpness: of each activation, scalars.
    """

    weights: Sequence[Tensor]
    shifts: Sequence[Tensor]
    sharpness: Sequence[Tensor]

    def __call__(self, inputs: Tensor) -> Tensor:
        """g(x), (..., D)."""
        return self.with_slopes(inputs)[0]

    def with_slopes(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """g(x), and the slopes of the activations at x, which `push`, `pull` and `jacobian` take."""
        slopes = []
        for weight, shift, sharpness in zip(self.weights, self.shifts, self.sharpness, strict=False):
            inputs, slope = lipswish(linear(inputs, weight) + shift, sharpness)
            slopes.append(slope)
        return linear(inputs, self.weights[-1]) + self.shifts[-1], slopes

    def push(self, slopes: Sequence[Tensor], tangent: Tensor) -> Tensor:
        """J v, (..., D), for v (..., D)."""
        for weight, slope in zip(self.weights, slopes, strict=False):
            tangent = linear(tangent, weight) * slope
        return linear(tangent, self.weights[-1])

    def pull(self, slopes: Sequence[Tensor], cotangent: Tensor) -> Tensor:
        """Jᵀ w, (..., D), for w (..., D)."""
        cotangent = cotangent @ self.weights[-1]
        for weight, slope in zip(reversed(self.weights[:-1]), reversed(slopes), strict=True):
            cotangent = (cotangent * slope) @ weight
        return cotangent

    def jacobian(self, slopes: Sequence[Tensor]) -> Tensor:
        """dg_i / dx_j, (..., D, D)."""
        unit = torch.eye(self.weights[0].shape[1]).to(self.weights[0])
        return self.push([slope[..., None, :] for slope in slopes], unit).mT


class LipschitzNet(nn.Module):
    """The parameters of g; zero before training.

    Args:
        dim: D, of inputs and outputs.
        context: C; 0 for none.
        hidden, layers: width and number of hidden layers.
        blocks: residual blocks of the network of the context.
        bound: of |g(x, c) - g(x', c)| / |x - x'|, below one.
    """

    def __init__(self, dim: int, context: int, hidden: int, layers: int, blocks: int, bound: float) -> None:
        super().__init__()
        if not 0 < bound < 1:
            raise ValueError(f"Lipschitz bound: expected a number in (0, 1), got {bound}")
        if min(dim, hidden, layers) < 1:
            raise ValueError(
                f"Lipschitz network: expected positive sizes, got {dim} columns, {layers} x {hidden}"
            )
        self.sizes = [hidden] * layers + [dim]
        self.share = bound ** (1 / len(self.sizes))
        widths = [dim] + [hidden] * layers
        pairs = itertools.pairwise(widths)
        self.layers = cast(Sequence[nn.Linear], nn.ModuleList(nn.Linear(*pair) for pair in pairs))
        self.exit = nn.Linear(hidden, dim)
        self.sharpness = nn.Parameter(torch.full((layers,), 0.5))
        self.shifts = ResidualNet(0, sum(self.sizes), context, hidden, blocks) if context else None
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def at(self, inputs: Tensor, context: Tensor | None) -> Field:
        """g for contexts (..., C) that broadcast against inputs (..., D), of which only the shape is read."""
        linears = [*self.layers, self.exit]
        shifts = [layer.bias for layer in linears]
        if self.shifts is not None:
            # once per context, however many inputs share it
            rows = inputs if context is None else context
            own = self.shifts(rows, context).split(self.sizes, -1)
            shifts = [bias + shift for bias, shift in zip(shifts, own, strict=True)]
        weights = [bounded(layer.weight, self.share) for layer in linears]
        return Field(weights, shifts, softplus(self.sharpness).unbind())
