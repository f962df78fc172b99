"""Targets of the lecture examples and of "which flow?": draws follow the density that each of them states."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from analyses.targets import LINEAR, PLANE, POSTERIORS, Target, bent_posterior

every_target = pytest.mark.parametrize(
    "target", (*PLANE, *POSTERIORS, LINEAR), ids=lambda target: target.name
)


def draws(target: Target, n: int, seed: int = 1) -> torch.Tensor:
    return target.sample(n, torch.Generator().manual_seed(seed))


@every_target
def test_the_entropy_is_that_of_the_draws(target: Target) -> None:
    """Within 4 standard errors, false alarms 6e-5 each; the checkerboard's has none and is exact."""
    rows = draws(target, 40_000)
    assert rows.shape == (40_000, target.dim + target.given) and rows.dtype == torch.float64
    log_p = target.log_prob(rows)
    assert torch.isfinite(log_p).all()
    if target.entropy is not None:
        error = float(log_p.std()) / math.sqrt(len(rows))
        assert abs(float(log_p.mean()) + target.entropy) <= 4 * error + 1e-12


@pytest.mark.parametrize("target", PLANE, ids=lambda target: target.name)
def test_the_density_integrates_to_one_and_gives_the_draws_their_places(target: Target) -> None:
    """By cells of a fine grid; counts in 16 x 16 coarse cells by chi-square, false alarms 1e-5."""
    fine, side = 336, 8.4
    axis = (torch.arange(fine, dtype=torch.float64) + 0.5) / fine * side - side / 2
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    mass = torch.cat([target.log_prob(part) for part in points.split(20_000)]).exp() * (side / fine) ** 2
    assert float(mass.sum()) == pytest.approx(1, abs=2e-3)
    expected = mass.reshape(16, fine // 16, 16, fine // 16).sum((1, 3)).flatten() * 20_000
    cell = ((draws(target, 20_000) + side / 2) / side * 16).long().clamp(0, 15)
    counts = torch.bincount(cell[:, 0] * 16 + cell[:, 1], minlength=256).double()
    enough = expected > 20
    rest = torch.tensor([counts[~enough].sum(), expected[~enough].sum()])
    counts = torch.cat([counts[enough], rest[:1]]).numpy()
    expected = torch.cat([expected[enough], rest[1:]]).numpy() + 1e-9
    assert stats.chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > 1e-5


@pytest.mark.parametrize("target", [LINEAR, POSTERIORS[0]], ids=lambda target: target.name)
def test_draws_of_a_posterior_follow_its_density(target: Target) -> None:
    """Their mean log-density is minus the entropy, within 4 standard errors (6e-5), at any condition."""
    generator = torch.Generator().manual_seed(3)
    x = draws(target, 1, 5)[0, target.dim :]
    theta = target.posterior(x, 20_000, generator)
    log_p = target.log_prob(torch.cat([theta, x.expand(len(theta), -1)], -1))
    assert abs(float(log_p.mean()) + target.entropy) <= 4 * float(log_p.std()) / math.sqrt(len(log_p))


def test_a_posterior_is_joint_over_marginal() -> None:
    """log p(theta | x) - log p(theta) - log p(x | theta) is the same for every theta: minus the log-evidence of x."""
    target = bent_posterior(3)
    rows = draws(target, 2)
    theta = torch.cat([draws(target, 6, 2)[:, :3], rows[:1, :3]])
    x = rows[:1, 3:].expand(len(theta), -1)
    before = torch.cat([torch.zeros(len(theta), 1, dtype=torch.float64), theta[:, :-1]], -1)
    phi = theta - 0.7 * torch.sin(2 * before)
    matrix = torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) / math.sqrt(3)
    joint = -0.5 * phi.square().sum(-1) - 0.5 * ((x - phi @ matrix.T) / 0.5).square().sum(-1)
    gap = target.log_prob(torch.cat([theta, x], -1)) - joint
    torch.testing.assert_close(gap, gap[:1].expand_as(gap), rtol=1e-9, atol=1e-9)
