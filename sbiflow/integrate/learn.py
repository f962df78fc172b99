"""Training of the flows on a replay of evaluations.

With d = log(|f|/I) − log q, I the integral of |f|, at rows drawn from p = |f|/I:

    while annealing   mean d: maximum likelihood, the KL divergence of p from q up to a constant;
    afterwards        mean (exp d − 1 − d) = χ²(p, q) − KL(p, q): the variance of the weights, less the divergence.

The second uses the known values of f, not only where points fell: each row's own gradient vanishes where q matches p,
so that 10^5 evaluations determine the flow without the noise of a density estimate. It grows exponentially where the
proposal is too small (d > 0), which is what ruins an estimate; beyond `_CAP` it is continued as a straight line.
Variance losses for this purpose: Müller et al. 1808.03856, MadNIS 2311.01548.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbiflow.integrate.config import IntegratorConfig
from sbiflow.integrate.proposal import Proposal
from sbiflow.integrate.replay import Batch, row_weights
from sbiflow.training.optimiser import build_optimisers

_CAP = 4.0
_CLIP = 10.0  # largest norm of a gradient


def likelihood(d: Tensor) -> Tensor:
    """Forward KL divergence up to a constant."""
    return d.mean()


def variance(d: Tensor) -> Tensor:
    """χ² − KL; see the module."""
    capped = d.clamp(max=_CAP)
    return (capped.exp() * (1 + d - capped) - 1 - d).mean()


@dataclass(frozen=True)
class Rows:
    """What the flows see: inputs v (m, D) per chart, and log|dv/dy| − log(|f|^β / I) per chart, both float32."""

    inputs: list[Tensor]
    offsets: list[Tensor]
    weights: Tensor


@dataclass
class Learner:
    """The optimiser of a proposal, kept from one round to the next.

    Attributes:
        skipped: steps whose loss was not finite; they change nothing.
    """

    proposal: Proposal
    config: IntegratorConfig
    generator: torch.Generator
    skipped: int = 0

    def __post_init__(self) -> None:
        self.optimisers = build_optimisers(self.proposal, "muon", self.config.rate)
        self.whitened = False

    def fit(
        self,
        batches: list[Batch],
        beta: float,
        log_integral: float,
        loss: Callable[[Tensor], Tensor],
        steps: int,
        rate: Callable[[float], float],
    ) -> float:
        """Train on |f|^beta for some steps; `rate` maps progress 0..1 to a factor. Returns the mean loss."""
        if not self.whitened:
            self._whiten(batches, beta)
            self.whitened = beta == 1.0
        rows = self._rows(batches, beta, log_integral)
        edges = rows.weights.cumsum(0)
        total = 0.0
        for step in range(steps):
            u = torch.rand(self.config.batch, generator=self.generator, dtype=torch.float64) * edges[-1]
            chosen = torch.searchsorted(edges, u.to(edges.device)).clamp(max=len(edges) - 1)
            total += self._step(rows, chosen, loss, rate(step / steps))
        return total / max(steps, 1)

    def _step(self, rows: Rows, chosen: Tensor, loss: Callable[[Tensor], Tensor], rate: float) -> float:
        value = loss(self._log_ratio(rows, chosen))
        for optimiser in self.optimisers:
            optimiser.zero_grad()
            for group in optimiser.param_groups:
                group["lr"] = self.config.rate * rate
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.proposal.parameters(), _CLIP)
        if not bool(norm.isfinite()):
            self.skipped += 1
            return 0.0
        for optimiser in self.optimisers:
            optimiser.step()
        return float(value.detach())

    def _log_ratio(self, rows: Rows, chosen: Tensor) -> Tensor:
        """d of the rows, (batch,)."""
        parts = [
            chart.flow_log_prob(v[chosen]) + offset[chosen]
            for chart, v, offset in zip(self.proposal.parts, rows.inputs, rows.offsets, strict=True)
        ]
        if len(parts) == 1:
            return -parts[0]
        return -torch.logsumexp(torch.stack(parts) + self.proposal.log_shares.float()[:, None], 0)

    @torch.no_grad()
    def _rows(self, batches: list[Batch], beta: float, log_integral: float) -> Rows:
        y = torch.cat([batch.y for batch in batches])
        target = beta * torch.cat([batch.log_f for batch in batches]) - log_integral
        inputs, offsets = [], []
        for chart in self.proposal.parts:
            z, log_jacobian = chart.to_z(y)
            inputs.append(chart.whiten(z))
            offsets.append((log_jacobian - chart.log_scale - target).float())
        weights = row_weights(batches, beta)
        if beta == 1.0 and self.config.tail_share:
            tail = row_weights(batches, self.config.tail_power)
            weights = weights + self.config.tail_share * (tail - weights)
        return Rows(inputs, offsets, weights)

    @torch.no_grad()
    def _whiten(self, batches: list[Batch], beta: float) -> None:
        y, weights = torch.cat([batch.y for batch in batches]), row_weights(batches, beta)
        if len(self.proposal.parts) == 1:
            self.proposal.parts[0].fit_whitening(self.proposal.parts[0].to_z(y)[0], weights)
            return
        own = torch.stack([chart.log_prob(y) for chart in self.proposal.parts])
        shares = torch.softmax(own + self.proposal.log_shares[:, None], 0)  # whose point is it
        for chart, share in zip(self.proposal.parts, shares, strict=True):
            if float((weights * share).sum()) > 1e-6:
                chart.fit_whitening(chart.to_z(y)[0], weights * share)


def falling(progress: float) -> float:
    """Rate from one to zero in a straight line."""
    return 1.0 - progress


def settling(progress: float) -> float:
    """Rate from one to a tenth, so that every round ends with a settled flow to draw from."""
    return 1.0 - 0.9 * progress
