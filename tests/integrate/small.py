"""Proposals and settings small enough to be made and trained inside a test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from sbiflow.families import FlowConfig
from sbiflow.integrate.chart import Channel
from sbiflow.integrate.config import IntegratorConfig
from sbiflow.integrate.domain import Domain
from sbiflow.integrate.proposal import Proposal

FLOW = FlowConfig("spline_autoregressive", layers=1, hidden=24, blocks=1, bins=8, start="prior")


def config(**changes: Any) -> IntegratorConfig:
    """A small flow, trained for about a second."""
    return IntegratorConfig(**{"flow": FLOW, "rows": 60_000, **changes})


def cube(dim: int) -> list[tuple[float, float]]:
    """The unit cube's bounds."""
    return [(0.0, 1.0)] * dim


def power_channel(dim: int, power: float, name: str = "") -> Channel:
    """x = u^power on the unit cube: dense near 0 for power > 1."""

    def forward(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return u**power, (math.log(power) + (power - 1) * u.log()).sum(1)

    def inverse(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x ** (1 / power), ((1 / power - 1) * x.log() - math.log(power)).sum(1)

    return Channel(forward, inverse, name or f"power {power:g}, {dim}-D")


def random_proposal(
    dim: int,
    periodic: Sequence[int] = (),
    channels: Sequence[Channel] = (),
    learned: bool = True,
    strength: float = 0.3,
    seed: int = 1,
    **changes: Any,
) -> Proposal:
    """A proposal whose grids, whitening and flows are all far from the identity."""
    domain = Domain.from_bounds(cube(dim), periodic)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        proposal = Proposal(domain, config(**changes), tuple(channels))
    for chart in proposal.parts:
        for grid in (chart.grid, chart.first):
            points = torch.rand(500, dim, dtype=torch.float64, generator=generator) ** 1.5
            grid.fit(points)
        z = torch.randn(400, dim, dtype=torch.float64, generator=generator)
        z = z @ (torch.eye(dim, dtype=torch.float64) + 0.4) * 0.5 + 0.2
        chart.fit_whitening(z, torch.rand(400, dtype=torch.float64, generator=generator))
        for parameter in chart.flow.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * strength
            parameter.data += noise / math.sqrt(max(parameter.shape[-1] if parameter.ndim else 1, 1))
    if len(channels) > 1:
        proposal.logits.data += torch.randn(len(channels), dtype=torch.float64, generator=generator)
    proposal.use_flow(learned)
    return proposal
