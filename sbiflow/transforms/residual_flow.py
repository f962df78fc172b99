"""Residual flow: y = x + g(x, c) with a contraction g (Behrmann et al. 2019, arXiv 1811.00995; Chen et al. 2019,
arXiv 1906.02735).

**Inverse.** x - (x + g(x) - y) is a contraction with the constant L of g, so the miss m(x) = x + g(x) - y shrinks by L
at least in each of Banach's steps x - m. Newton's step x - (1 + J)^-1 m is tried beside it and the one that misses by
less is taken: guaranteed as the one, quadratic as the other. A row is done when its miss no longer falls by L: that
is rounding. The gradient is that of the implicit function, by one more Newton step.

**Log-determinant.** Exact, log det (1 + J) with J from the layers' products, except in training beyond
`EXACT_UP_TO` columns. Time of a step with 256 rows and 64 units on one core, exact and estimate: 6 and 29 ms for
D = 5, 63 and 41 ms for 64, 120 and 42 ms for 100; the estimate's standard deviation at 64 is 0.2 nats a row.

The estimate is of the power series tr log(1 + J) = sum_k (-1)^(k+1) tr(J^k) / k, without bias: traces by one vector
of random signs a row (Hutchinson), the sum up to a random N, with terms divided by P(N >= k) (Russian roulette; Chen
et al., eq. 6). N is drawn for every row: `ALWAYS` terms and a geometric number, P(N >= ALWAYS + m) = q^m. The k-th
term is of order L^k, so value and gradient have a finite variance where q > L²; q = (1 + L²) / 2. (The paper's 1/2 is
cheaper, and the variance may be infinite from L = 0.71 on.) The gradient is the Neumann series of eq. 8,
d tr log(1 + J) = tr((1 + J)^-1 dJ), whose left vector is summed without a graph: memory does not grow with N.
"""

from __future__ import annotations

import math

import torch
from nflows.transforms.base import Transform
from torch import Tensor

from sbiflow.transforms.lipschitz import Field, LipschitzNet

EXACT_UP_TO = 64  # columns
ALWAYS = 4  # terms of the power series that are never left out


class ResidualFlow(Transform):
    """y = x + g(x, c), |g(x, c) - g(x', c)| <= lipschitz |x - x'|; starts as the identity.

    Slopes lie within 1 ± lipschitz, less what the activations lose: put linear maps between layers to zoom.
    Derivatives of the inverse are right to first order, those of its second derivatives are not.

    Args:
        dim: D.
        context: C, number of context features; 0 for none.
        hidden, layers: width and number of hidden layers of g.
        blocks: residual blocks of the network that reads the context.
        lipschitz: bound in (0, 1).
    """

    def __init__(
        self, dim: int, context: int, hidden: int, layers: int = 2, blocks: int = 1, lipschitz: float = 0.97
    ) -> None:
        super().__init__()
        self.net = LipschitzNet(dim, context, hidden, layers, blocks, lipschitz)
        self.lipschitz = lipschitz
        self.is_random = dim > EXACT_UP_TO

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        field = self.net.at(inputs, context)
        value, slopes = field.with_slopes(inputs)
        if self.is_random and self.training:
            return inputs + value, self._estimate(field, inputs, None)
        return inputs + value, _log_det(field.jacobian(slopes))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        field = self.net.at(inputs, context)
        with torch.no_grad():
            outputs = _solve(field, inputs, self.lipschitz)
        if torch.is_grad_enabled():
            value, slopes = field.with_slopes(outputs)
            outputs = outputs - _newton(field.jacobian(slopes).detach(), outputs + value - inputs)
        return outputs, -_log_det(field.jacobian(field.with_slopes(outputs)[1]))

    def log_det_estimate(
        self, inputs: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """An unbiased estimate of the forward log-determinant and of its gradient, (...); see the module."""
        return self._estimate(self.net.at(inputs, context), inputs, generator)

    def _estimate(self, field: Field, inputs: Tensor, generator: torch.Generator | None) -> Tensor:
        _, slopes = field.with_slopes(inputs)
        survival = (1 + self.lipschitz**2) / 2
        with torch.no_grad():
            shape, device = slopes[0].shape[:-1], inputs.device
            probe = torch.randint(2, (*shape, inputs.shape[-1]), generator=generator, device=device)
            probe = (2 * probe - 1).to(inputs)
            # 1 - u lies in (0, 1], in double precision: the tail of N is not cut short where it matters
            luck = 1 - torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
            extra = torch.floor(torch.log(luck) / math.log(survival))
            value, left = _series(field, slopes, probe, extra, survival)
        carrier = (left * field.push(slopes, probe)).sum(-1)
        return value + carrier - carrier.detach()


def _series(
    field: Field, slopes: list[Tensor], probe: Tensor, extra: Tensor, survival: float
) -> tuple[Tensor, Tensor]:
    """The two weighted series in w_k = (Jᵀ)^k v: of log det (...), and vᵀ (1 + J)^-1 (..., D)."""
    power, left, value = probe, probe.clone(), probe.new_zeros(probe.shape[:-1])
    last = ALWAYS + int(extra.max()) if extra.numel() else 0
    for k in range(1, last + 1):
        power = field.pull(slopes, power)
        weight = (extra >= k - ALWAYS).to(probe) * (-1.0) ** (k + 1) / survival ** max(k - ALWAYS, 0)
        value = value + weight / k * (power * probe).sum(-1)
        left = left - weight[..., None] * power
    return value, left


def _log_det(jacobian: Tensor) -> Tensor:
    """log det (1 + J) > -inf, (...), for the Jacobian (..., D, D) of a contraction."""
    return torch.linalg.slogdet(jacobian + torch.eye(jacobian.shape[-1]).to(jacobian))[1]


def _newton(jacobian: Tensor, miss: Tensor) -> Tensor:
    """(1 + J)^-1 m, (..., D)."""
    return torch.linalg.solve(jacobian + torch.eye(miss.shape[-1]).to(miss), miss)


def _solve(field: Field, outputs: Tensor, lipschitz: float) -> Tensor:
    """x with x + g(x) = y to the last digits, (..., D); NaN where y or g is."""
    miss, slopes = field.with_slopes(outputs)
    # of the shape of both: contexts may outnumber the rows of y
    x = outputs + 0 * miss
    size = miss.norm(dim=-1)
    live = size > 0
    # each turn of a living row shrinks its miss by `lipschitz`, and floats have a smallest one: the loop ends
    while bool(live.any()):
        trials = torch.stack([x - _newton(field.jacobian(slopes), miss), x - miss])
        misses = trials + field(trials) - outputs
        sizes, which = misses.norm(dim=-1).nan_to_num(nan=math.inf).min(0)
        better = (live & (sizes < size))[..., None]
        x = torch.where(better, _pick(trials, which), x)
        live = live & (sizes <= lipschitz * size) & (sizes > 0)
        value, slopes = field.with_slopes(x)
        miss = x + value - outputs
        size = torch.minimum(sizes, size)
    return x


def _pick(pair: Tensor, which: Tensor) -> Tensor:
    """pair[which], row by row."""
    return torch.where((which == 1)[..., None], pair[1], pair[0])
