"""The proposal: a mixture of channels and a uniform defence.

q(y) = (1 − ε) Σ_c α_c q_c(y) + ε. A point is weighted with the whole mixture whatever part drew it (the balance
heuristic, Veach & Guibas 1995; multi-channel sampling, Kleiss & Pittau 1994), so no weight exceeds f / ε. Which part
draws a point is one more coordinate of the net: the shares are exact to one point in n, and the points of each part
remain evenly spread.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sbiflow.integrate.chart import Base, Channel, Chart, Map
from sbiflow.integrate.config import IntegratorConfig, default_flow
from sbiflow.integrate.domain import Domain

_FAR = 700.0
_MIN_SHARE = 0.01  # of a channel; of a tenth of all if there are many


class Proposal(nn.Module):
    """A density on the unit cube of a domain, with exact draws."""

    def __init__(self, domain: Domain, config: IntegratorConfig, channels: tuple[Channel, ...] = ()) -> None:
        super().__init__()
        self.dim, self.defence = domain.dim, config.defence
        self.names = [channel.name or f"channel {i}" for i, channel in enumerate(channels)] or ["flow"]
        base = Base(domain.periodic, config.wide_share, config.wide_scale)
        maps: list[tuple[Map | None, Map | None]] = [_cube_maps(domain, own) for own in channels]
        self.charts = nn.ModuleList(
            Chart(domain.periodic, config.grid_bins, config.flow or default_flow(domain.dim), base, *pair)
            for pair in maps or [(None, None)]
        )
        self.logits = nn.Parameter(torch.zeros(len(self.charts), dtype=torch.float64))

    @property
    def parts(self) -> list[Chart]:
        """The charts, typed."""
        return [chart for chart in self.charts if isinstance(chart, Chart)]

    @property
    def log_shares(self) -> Tensor:
        """log α (C,), each at least 1 %."""
        count = len(self.charts)
        floor = min(_MIN_SHARE, 0.1 / count) if count > 1 else 0.0
        return torch.log(floor + (1 - floor * count) * torch.softmax(self.logits, 0))

    @property
    def learned(self) -> bool:
        """Whether the flows are in use; the grids alone otherwise."""
        return self.parts[0].learned

    def use_flow(self, learned: bool) -> None:
        """Draw from the flows, or from the grids alone."""
        for chart in self.parts:
            chart.learned = learned

    def with_defence(self, log_prob: Tensor) -> Tensor:
        """log of (1 − ε) exp(log_prob) + ε."""
        uniform = torch.full_like(log_prob, math.log(self.defence))
        return torch.logaddexp(log_prob + math.log1p(-self.defence), uniform)

    @torch.no_grad()
    def log_prob(self, y: Tensor) -> Tensor:
        """log q(y), (n,) float64, for y (n, D) in the unit cube."""
        own = torch.stack([chart.log_prob(y) for chart in self.parts])
        return self.with_defence(torch.logsumexp(own + self.log_shares[:, None], 0))

    @torch.no_grad()
    def reweigh(self, y: Tensor, log_w: Tensor) -> None:
        """Shares α_c in proportion to α_c sqrt(∫ w² q_c), w = f/q at draws y from here (Kleiss & Pittau 1994)."""
        own = torch.stack([chart.log_prob(y) for chart in self.parts])
        part = torch.logsumexp(own + 2 * log_w - self.log_prob(y), 1)
        if bool(part.max() > -math.inf):
            self.logits.copy_((self.log_shares + 0.5 * part).clamp(min=-_FAR))

    @torch.no_grad()
    def draw(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points of the unit cube (n, D + 1), independent or a net -> y (n, D), log q(y) (n,), part (n,).

        The last coordinate chooses the part: −1 for the defence, else the number of the channel.
        """
        latent, select = points[:, :-1], points[:, -1]
        edges = self.defence + (1 - self.defence) * self.log_shares.exp().cumsum(0)
        part = torch.where(select < self.defence, -1, torch.searchsorted(edges, select.contiguous()))
        part = part.clamp(max=len(self.charts) - 1)
        starts = torch.cat([edges.new_full((1,), self.defence), edges[:-1]])
        y, log_q = latent.clone(), latent.new_full((len(latent),), -math.inf)
        for number, chart in enumerate(self.parts):
            rows = (part == number).nonzero()[:, 0]
            within = (select[rows] - starts[number]) / (edges[number] - starts[number])
            y[rows], log_q[rows] = chart.draw(latent[rows], within)
        if len(self.charts) > 1:
            return y, self.log_prob(y), part
        rows = (part < 0).nonzero()[:, 0]
        log_q[rows] = self.parts[0].log_prob(y[rows])
        return y, self.with_defence(log_q), part


def _cube_maps(domain: Domain, channel: Channel) -> tuple[Map, Map]:
    """A user's channel, which speaks of x, as maps between unit cubes."""

    def to_cube(c: Tensor) -> tuple[Tensor, Tensor]:
        x, log_forward = channel.forward(c)
        y, log_back = domain.to_u(domain.snapped(x))
        return y, log_forward + log_back

    def from_cube(y: Tensor) -> tuple[Tensor, Tensor]:
        x, log_forward = domain.to_x(y)
        c, log_back = channel.inverse(x)
        return c, log_forward + log_back

    return to_cube, from_cube
