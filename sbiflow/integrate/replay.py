"""Evaluations that were made so far, for the flow to learn from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbiflow.integrate.tempering import ess, normalised, tempered

_RECENT = 4  # batches that the flow learns from while the target still changes


@dataclass(frozen=True)
class Batch:
    """Points y (m, D) in the cube where f is not zero, log |f| there (Jacobian included) and log q of the draw.

    `n` counts the zeros too.
    """

    y: Tensor
    log_f: Tensor
    log_q: Tensor
    n: int

    @property
    def log_weights(self) -> Tensor:
        """log |f| / q, (m,)."""
        return self.log_f - self.log_q

    @property
    def share(self) -> float:
        """ESS over n."""
        return ess(self.log_weights) / self.n

    @property
    def log_integral(self) -> float:
        """log of the mean weight, of |f|."""
        return float(self.log_weights.logsumexp(0)) - math.log(self.n) if len(self.y) else -math.inf


@dataclass
class Replay:
    """The batches, in the order of drawing."""

    batches: list[Batch] = field(default_factory=list)

    def add(self, y: Tensor, log_f: Tensor, log_q: Tensor) -> Batch:
        """Keep a batch; rows of f = 0 are counted only."""
        rows = (log_f > -math.inf).nonzero()[:, 0]
        batch = Batch(y[rows], log_f[rows], log_q[rows], len(y))
        self.batches.append(batch)
        return batch

    def recent(self) -> list[Batch]:
        """Those to learn a tempered target from."""
        return [batch for batch in self.batches[-_RECENT:] if len(batch.y)]

    def all(self) -> list[Batch]:
        """Those to learn the integrand itself from. The early ones know its tails: they were drawn more broadly."""
        return [batch for batch in self.batches if len(batch.y)]

    def log_integral(self) -> float:
        """log ∫|f|: batches weighted by their effective sample sizes."""
        known = self.all()
        sizes = torch.tensor([batch.share * batch.n for batch in known], dtype=torch.float64)
        logs = torch.tensor([batch.log_integral for batch in known], dtype=torch.float64)
        return float(torch.logsumexp(logs + (sizes / sizes.sum()).log(), 0))


def row_weights(batches: list[Batch], beta: float) -> Tensor:
    """How often to learn from each row of the batches, for the target |f|^beta: (rows,), summing to one.

    Within a batch in proportion to |f|^beta / q; each batch counts by its effective sample size.
    """
    parts = []
    for batch in batches:
        w = normalised(tempered(batch.log_f, batch.log_q, beta))
        parts.append(w * (w.sum() / (w * w).sum()))
    total = torch.cat(parts)
    return total / total.sum()
