"""Phase and distance integrated out: against sums over grids of both."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sbiflow.seeding import torch_generator
from simulators.gravitational_waves import network
from simulators.gravitational_waves.marginal import MarginalLikelihood
from simulators.gravitational_waves.reduced import ReducedLikelihood
from tests.simulators.gravitational_waves.test_event import NEAR, draws, synthetic

KEPT = [0, 1, 2, 3, 5, 6, 8, 9, 10]
DISTANCES = 100 + 0.1 * (torch.arange(9000, dtype=torch.float64) + 0.5)  # cells of 0.1 Mpc
PHASES = torch.arange(240, dtype=torch.float64) * (2 * math.pi / 240)


@pytest.fixture(scope="module")
def marginal() -> MarginalLikelihood:
    reduced = ReducedLikelihood.build(synthetic(), network.prior(), components=60, draws=300)
    return MarginalLikelihood(reduced, network.volume_prior(network.prior()))


def filled(nine: Tensor, distance: float, phase: float) -> Tensor:
    """(1, 9) with distance and phase, (1, 11)."""
    value = torch.tensor([[distance], [phase]], dtype=torch.float64)
    return torch.cat([nine[:, :4], value[:1], nine[:, 4:6], value[1:], nine[:, 6:]], 1)


def on_grid(marginal: MarginalLikelihood, nine: Tensor) -> Tensor:
    """Log of likelihood times prior density of distance, (distances, phases)."""
    k, r = marginal.reduced.products(filled(nine, 1.0, 0.0))
    turned = (k * torch.polar(torch.ones_like(PHASES), PHASES)).real
    like = turned / DISTANCES[:, None] - 0.5 * r / DISTANCES[:, None].square()
    like = like + marginal.reduced.event.log_noise_evidence
    for i, j in ((0, 0), (4000, 100), (8999, 239)):
        expected = marginal.reduced(filled(nine, float(DISTANCES[i]), float(PHASES[j])))
        assert float(like[i, j]) == pytest.approx(float(expected), abs=1e-6)
    return like + marginal.full.marginals[4].log_prob(DISTANCES)[:, None]


@pytest.mark.parametrize("row", [0, 1, 2, 3])
def test_equals_the_sum_over_a_grid(marginal: MarginalLikelihood, row: int) -> None:
    nine = torch.cat([NEAR, draws(3)])[row : row + 1, KEPT]
    cell = math.log(0.1 / len(PHASES))
    expected = torch.logsumexp(on_grid(marginal, nine).flatten() + cell, 0)
    assert float(marginal(nine)[0]) == pytest.approx(float(expected), abs=1e-4)


def test_completed_draws_have_the_conditional_density(marginal: MarginalLikelihood) -> None:
    nine = NEAR[:, KEPT]
    theta = marginal.complete(nine.expand(5000, -1), torch_generator(2, 1))
    assert torch.equal(theta[:, KEPT], nine.expand(5000, -1))
    assert bool(marginal.full.inside(theta).all())
    share = torch.softmax(on_grid(marginal, nine).flatten(), 0).reshape(len(DISTANCES), len(PHASES))
    distance_cdf = np.cumsum(share.sum(1).numpy()) - share.sum(1).numpy() / 2
    found = stats.kstest(theta[:, 4].numpy(), lambda d: np.interp(d, DISTANCES.numpy(), distance_cdf))
    assert found.pvalue > 1e-4
    # rolled, lest the phase's peak lies on the edge
    middle = float(np.angle((share.sum(0) * torch.exp(1j * PHASES)).sum().numpy()))
    offset = np.remainder(theta[:, 7].numpy() - middle + math.pi, 2 * math.pi)
    grid = np.remainder(PHASES.numpy() - middle + math.pi, 2 * math.pi)
    order = np.argsort(grid)
    mass = share.sum(0).numpy()[order]
    found = stats.kstest(offset, lambda p: np.interp(p, grid[order], np.cumsum(mass) - mass / 2))
    assert found.pvalue > 1e-4


def test_parameters_that_are_left(marginal: MarginalLikelihood) -> None:
    assert marginal.prior.names == tuple(
        name for name in marginal.full.names if name not in ("d_L", "phi_H1")
    )
    with pytest.raises(ValueError, match="theta: expected shape"):
        marginal(NEAR)
