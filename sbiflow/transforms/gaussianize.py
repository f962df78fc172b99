"""y = Φ⁻¹(mean_k Φ(exp(a_k) x + b_k)) on the whole line: the map of Gaussianization flows (Meng et al. 2020,
arXiv 2003.01941).

zuko's is the textbook's formula times (1 - 1e-6): its image ends at ±4.9, so that the base's draws beyond (more after
a linear map) have no x, and its slope is zero from |exp(a) x + b| = 9 on (5.5 in float32). Here the smaller of the
two tails is carried by its logarithm, which has no end.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from sbiflow.transforms.splines import soft_clamp

LIMIT = 5.0  # of |a|
_TURNS = 12  # of Newton's method: quadratic from the left of a concave function; nine suffice at -1e30


class Gaussianize(Transform):
    """Increasing, elementwise, for parameters b (..., K) and a (..., K).

    Args:
        shift: b.
        scale: a before a soft bound of ±5; its exponential is the slope of a component.
    """

    domain = codomain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.shift, self.scale = shift, scale

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.call_and_ladj(x)[1]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx."""
        # In double precision: far out, float32 leaves nothing of torch's derivatives of log_ndtr and erfcx.
        y, logdet = self._map(x.double(), self.shift.double(), soft_clamp(self.scale, LIMIT).double())
        return y.to(x), logdet.to(x)

    def _map(self, x: Tensor, shift: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
        z = x[..., None] * torch.exp(log_slope) + shift
        below, above = torch.special.log_ndtr(z), torch.special.log_ndtr(-z)
        # Either tail gives y; the larger is rounded to all there is.
        side = torch.where(log_mean_exp(below) < log_mean_exp(above), 1.0, -1.0).to(x)
        tails = torch.where(side[..., None] > 0, below, above)
        y = normal_quantile(log_mean_exp(tails))
        # dy/dx: the mean of the components' slopes times hazards, weighted by their tails, over the hazard of y
        hazards = torch.exp(log_slope) * hazard(side[..., None] * z)
        slope = (torch.softmax(tails, -1) * hazards).sum(-1)
        return side * y, torch.log(slope) - torch.log(hazard(y))


def log_mean_exp(values: Tensor) -> Tensor:
    """Over the last dimension."""
    return torch.logsumexp(values, -1) - math.log(values.shape[-1])


def hazard(z: Tensor) -> Tensor:
    """The normal density over its distribution function, phi(z) / Φ(z); to all digits however far z lies below zero."""
    low, high = z.clamp(max=0), z.clamp(min=0)
    left = math.sqrt(2 / math.pi) / torch.special.erfcx(-low / math.sqrt(2))
    right = torch.exp(-0.5 * high * high) / math.sqrt(2 * math.pi) / torch.special.ndtr(high)
    return torch.where(z < 0, left, right)


def normal_quantile(log_probability: Tensor) -> Tensor:
    """y with log Φ(y) = log_probability, for probabilities up to one half; the others are taken for that."""
    target = log_probability.clamp(max=math.log(0.5))
    with torch.no_grad():
        y = -torch.sqrt(-2 * target)
        for _ in range(_TURNS):
            y = _step(y, target)
    return _step(y, target)  # the same once more, with the implicit function's gradient


def _step(y: Tensor, target: Tensor) -> Tensor:
    """Newton's for log Φ(y) = target."""
    return y - (torch.special.log_ndtr(y) - target) / hazard(y).detach()
