"""Several maps of the user's, mixed with weights that are trained."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sbiflow.integrate import Channel, Integrator
from tests.integrate.small import config, cube, power_channel

FLOW, GRID = config(method="flow", rows=40_000), config(method="grid")


def call(channels, f, bounds, budget=5000, seed=1, settings=FLOW, **options):
    integrator = Integrator(bounds, channels=channels, config=settings)
    return integrator, integrator(f, budget, seed=seed, progress=False, **options)


def shares(integrator: Integrator) -> list[float]:
    return integrator.proposal.log_shares.exp().tolist()


def edge(x: np.ndarray) -> np.ndarray:
    """Diverges at both faces through the origin; its integral is one."""
    return (0.5 / np.sqrt(x)).prod(1)


def peak_channel(centre: float, width: float, low: float, high: float) -> Channel:
    """Cauchy's distribution on (low, high) along both axes, as for a propagator."""
    start, stop = (math.atan((end - centre) / width) for end in (low, high))

    def density(x: torch.Tensor) -> torch.Tensor:
        return -torch.log(width * (1 + ((x - centre) / width) ** 2) * (stop - start)).sum(1)

    def forward(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = (centre + width * torch.tan(start + (stop - start) * u)).clamp(low, high)
        return x, -density(x)

    def inverse(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        u = (torch.atan((x - centre) / width) - start) / (stop - start)
        return u.clamp(0.0, 1.0), density(x)

    return Channel(forward, inverse, f"peak at {centre:g}")


def propagators(x: np.ndarray) -> np.ndarray:
    """Two resonances on [-2, 3]², 0.7 and 0.3 of the integral of one."""
    total = np.zeros(len(x))
    for centre, share in ((-1.0, 0.7), (1.5, 0.3)):
        span = math.atan((3 - centre) / 0.02) - math.atan((-2 - centre) / 0.02)
        total += share * (1 / (0.02 * (1 + ((x - centre) / 0.02) ** 2) * span)).prod(1)
    return total


def test_a_channel_that_fits_draws_the_integrand_itself():
    """x = u² flattens 1/sqrt(x): the weights are flat but for the defence."""
    _, result = call((power_channel(2, 2.0),), edge, cube(2), settings=GRID)
    assert abs(result.mean - 1.0) < 5 * result.sdev and result.reliable
    assert result.diagnostics.efficiency > 0.98


def test_the_share_of_the_good_channel_grows():
    channels = (power_channel(2, 0.5, "bad"), power_channel(2, 2.0, "good"))
    integrator, result = call(channels, edge, cube(2))
    assert integrator.proposal.names == ["bad", "good"]
    assert abs(result.mean - 1.0) < 5 * result.sdev and result.reliable
    assert shares(integrator)[1] > 0.6 > 0.5 > shares(integrator)[0] > 0.0
    assert sum(shares(integrator)) == pytest.approx(1.0)


@pytest.mark.parametrize("settings", (GRID, FLOW), ids=("grid", "flow"))
def test_two_resonances(settings):
    """On bounds that are not the unit cube. Without channels this budget finds neither."""
    channels = (peak_channel(-1.0, 0.02, -2, 3), peak_channel(1.5, 0.02, -2, 3))
    integrator, result = call(channels, propagators, [(-2, 3)] * 2, settings=settings)
    assert abs(result.mean - 1.0) < 5 * result.sdev and result.reliable
    assert result.diagnostics.efficiency > 0.7
    if settings is FLOW:
        assert shares(integrator)[0] == pytest.approx(0.7, abs=0.15)
    points = result.sample(5000, seed=1)
    mean, sdev = points.integral
    assert abs(mean - 1.0) < 4 * sdev
    assert bool(((points.x >= -2) & (points.x <= 3)).all())


def test_unbiased_with_channels():
    """Pulls of 24 seeds: mean square below the 0.1 % gate of Student's t with 31 degrees of freedom."""
    channels = (power_channel(2, 2.0), power_channel(2, 1.0))
    pulls = np.array([
        (result.mean - 1.0) / result.sdev
        for _, result in (call(channels, edge, cube(2), 1500, seed, GRID) for seed in range(24))
    ])  # fmt: skip
    gate = np.quantile((np.random.default_rng(1).standard_t(31, (20_000, 24)) ** 2).mean(1), 0.999)
    assert (pulls**2).mean() < gate < (9 * pulls**2).mean()


def test_many_channels_and_a_small_budget():
    """Some draw no point at all in an iteration of the grid."""
    channels = tuple(power_channel(2, 1.0 + 0.01 * k) for k in range(40))
    _, result = call(channels, lambda x: 1 + x[:, 0], cube(2), 300, settings=GRID)
    assert abs(result.mean - 1.5) < 5 * result.sdev


def test_warm_start_with_channels():
    rng = np.random.default_rng(1)
    channels = (power_channel(2, 2.0, "good"), power_channel(2, 1.0, "flat"))
    start = rng.uniform(size=(2000, 2)) ** 2  # of density 1/sqrt(x) along both axes
    _, result = call(channels, edge, cube(2), 2000, start=start)
    assert abs(result.mean - 1.0) < 5 * result.sdev and result.diagnostics.efficiency > 0.7


def test_channels_are_given_again_when_loading(tmp_path):
    channels = (power_channel(2, 2.0), power_channel(2, 1.0))
    integrator, _ = call(channels, edge, cube(2), 1000, settings=GRID)
    integrator.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="channels: expected the 2 of the saved one, got 0"):
        Integrator.load(tmp_path / "saved")
    loaded = Integrator.load(tmp_path / "saved", channels=channels)
    assert shares(loaded) == shares(integrator)
    results = [own(edge, 1000, seed=5, progress=False) for own in (integrator, loaded)]
    assert results[0].mean == results[1].mean


def test_a_map_that_rounds_over_the_end_of_the_region():
    """Log-uniform on (1e5, 1.1e5): exp(log 1.1e5) is above 1.1e5 by one unit in the last place, or below 1e5."""
    low, high = 1e5, 1.1e5
    start, span = math.log(low), math.log(high) - math.log(low)

    def forward(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.exp(start + span * u) * (1 + 2e-16 * (u - 0.5).sign())
        return x, (math.log(span) + x.log()).sum(1)

    def inverse(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (x.log() - start) / span, -(math.log(span) + x.log()).sum(1)

    integrator = Integrator([(low, high)] * 2, channels=(Channel(forward, inverse),), config=GRID)
    proposal = integrator.proposal
    points = torch.full((2, 3), 0.5, dtype=torch.float64)
    points[0, :2], points[1, :2] = 1e-12, 1 - 1e-12
    for learned in (False, True):
        proposal.use_flow(learned)
        proposal.parts[0].factor.copy_(3 * torch.eye(2, dtype=torch.float64))
        y, log_q, _ = proposal.draw(points)
        assert bool(((y >= 0) & (y <= 1)).all()) and not bool(log_q.isnan().any())
