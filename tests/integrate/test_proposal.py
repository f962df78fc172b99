"""The mixture of channels and the uniform defence: one normalised density with exact draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sbiflow.integrate.domain import Domain
from sbiflow.integrate.nets import net
from sbiflow.integrate.proposal import Proposal
from tests.integrate.small import config, cube, power_channel, random_proposal

FLOAT = torch.float64
TWO = (power_channel(2, 0.6, "high"), power_channel(2, 1.0, "flat"))
# name: dimension, periodic axes, channels
KINDS = {
    "one": (2, (), ()),
    "one axis": (1, (), ()),
    "phases": (2, (0, 1), ()),
    "two channels": (2, (), TWO),
}


def made(kind: str, learned: bool, **options) -> Proposal:
    dim, periodic, channels = KINDS[kind]
    return random_proposal(dim, periodic, channels, learned, **options)


def uniform(n: int, dim: int, seed: int = 5) -> torch.Tensor:
    return torch.rand(n, dim, dtype=FLOAT, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("learned", (False, True))
@pytest.mark.parametrize("kind", KINDS)
def test_the_density_of_a_draw_is_the_density_there(kind, learned):
    proposal = made(kind, learned)
    y, log_q, part = proposal.draw(uniform(4000, proposal.dim + 1))
    assert y.dtype == log_q.dtype == FLOAT and y.shape == (4000, proposal.dim)
    assert float(y.min()) >= 0.0 and float(y.max()) <= 1.0
    assert set(part.tolist()) == set(range(-1, len(proposal.parts)))
    error = (proposal.log_prob(y) - log_q)[torch.isfinite(log_q)]
    assert len(error) > 3990 and proposal.log_prob(y).dtype == FLOAT
    assert float(error.abs().quantile(0.99)) < (1e-3 if learned else 1e-12)
    assert abs(float(error.exp().mean()) - 1) < 2e-5


@pytest.mark.parametrize("learned", (False, True))
@pytest.mark.parametrize("kind", KINDS)
def test_the_density_integrates_to_one(kind, learned):
    proposal = made(kind, learned)
    means = torch.stack([proposal.log_prob(net(9, proposal.dim, 3, key)).exp().mean() for key in range(16)])
    error = float(means.std()) / 4
    assert error < 0.05 and abs(float(means.mean()) - 1) < 5 * error + 1e-6  # 15 degrees of freedom: 1.6e-4


@pytest.mark.parametrize("learned", (False, True))
@pytest.mark.parametrize("kind", KINDS)
def test_draws_follow_the_density(kind, learned):
    """1/q integrates to one, and to its volume over a part of the cube (4 errors: false alarms 6e-5 each)."""
    proposal = made(kind, learned)
    y, log_q, _ = proposal.draw(uniform(5000, proposal.dim + 1, 9))
    for part, volume in ((y[:, 0] < 2, 1.0), ((y < 0.4).all(1), 0.4**proposal.dim), (y[:, 0] > 0.8, 0.2)):
        w = torch.where(part, (-log_q).exp(), 0.0)
        assert abs(float(w.mean()) - volume) < 4 * float(w.std()) / math.sqrt(len(w))


@pytest.mark.parametrize("learned", (False, True))
@pytest.mark.parametrize("kind", KINDS)
def test_no_density_below_the_defence(kind, learned):
    """Also in corners, and where flow and grid are as narrow as they come."""
    proposal = made(kind, learned, defence=0.03)
    for chart in proposal.parts:
        chart.factor.mul_(1e-3)
        chart.grid.fit(0.5 + 1e-4 * uniform(100, proposal.dim))
    corners = torch.tensor([[0.0] * proposal.dim, [1.0] * proposal.dim], dtype=FLOAT).clamp(1e-300, 1.0)
    log_q = proposal.log_prob(torch.cat([uniform(2000, proposal.dim), corners]))
    assert float(log_q.min()) >= math.log(0.03) - 1e-12
    if learned and proposal.parts[0].real:
        assert float(log_q.exp().median()) == pytest.approx(0.03, rel=1e-3)
    assert float(proposal.draw(uniform(2000, proposal.dim + 1))[1].min()) >= math.log(0.03) - 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_shares_are_exact(kind):
    """The part is a coordinate of the net: its count is within one of n times its share."""
    proposal = made(kind, True, defence=0.1)
    part = proposal.draw(net(12, proposal.dim + 1, 1, 1))[2]
    shares = 0.9 * proposal.log_shares.exp().detach()
    for number, share in ((-1, 0.1), *enumerate(shares.tolist())):
        assert abs(int((part == number).sum()) - share * 2**12) <= 1.0


def test_the_defence_draws_uniformly():
    """Its points are the net's own coordinates, so they stay evenly spread."""
    proposal = made("one", True, defence=0.25)
    points = net(12, 3, 1, 1)
    y, _, part = proposal.draw(points)
    assert torch.equal(y[part == -1], points[part == -1][:, :2])
    count = np.histogram(y[part == -1][:, 0].numpy(), bins=64, range=(0, 1))[0]
    assert count.min() >= 15 and count.max() <= 17


def test_the_ends_of_the_last_coordinate():
    for kind in KINDS:
        proposal = made(kind, True)
        points = torch.full((3, proposal.dim + 1), 0.3, dtype=FLOAT)
        points[:, -1] = torch.tensor([1e-12, 0.5, 1 - 1e-12])
        y, log_q, part = proposal.draw(points)
        assert bool(torch.isfinite(y).all() & torch.isfinite(log_q).all())
        assert int(part[0]) == -1 and int(part[2]) == len(proposal.parts) - 1


@pytest.mark.parametrize("count", (1, 2, 20, 150))
@pytest.mark.parametrize("spread", (0.0, 3.0, 300.0))
def test_shares_of_channels(count, spread):
    """Positive, adding up to one and in the order of their logits, however many channels and far apart."""
    identity = power_channel(1, 1.0)
    flow = config().flow
    proposal = Proposal(Domain.from_bounds(cube(1)), config(flow=flow, grid_bins=2), (identity,) * count)
    proposal.logits.data = torch.from_numpy(np.random.default_rng(1).normal(size=count) * spread)
    shares = proposal.log_shares.exp().detach()
    assert float(shares.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(shares.min()) >= min(0.01, 0.1 / count) * (1 - 1e-12)
    ordered = shares[proposal.logits.argsort()]
    assert bool((ordered.diff() >= -1e-15).all())


def test_names():
    assert made("one", False).names == ["flow"]
    assert made("two channels", False).names == ["high", "flat"]


def test_reload_gives_the_same_draws():
    for kind in KINDS:
        proposal, other = made(kind, True), made(kind, True, seed=2)
        points = uniform(100, proposal.dim + 1)
        assert not torch.equal(other.draw(points)[0], proposal.draw(points)[0])
        other.load_state_dict(proposal.state_dict())
        for one, two in zip(proposal.draw(points), other.draw(points), strict=True):
            assert torch.equal(one, two)
