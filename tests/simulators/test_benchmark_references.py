"""Exact draws and evidences of the benchmark against quadrature and by simulation-based ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from analyses import benchmark_references as references
from simulators.benchmark import TwoMoons, task

CLOSED = ("gaussian_linear", "gaussian_linear_uniform", "gaussian_mixture", "two_moons")


def grid(low: list[float], high: list[float], n: int) -> tuple[Tensor, float]:
    """Midpoints (n^2, 2) of a rectangle and the area of a cell."""
    axes = [
        a + (b - a) * (torch.arange(n, dtype=torch.float64) + 0.5) / n for a, b in zip(low, high, strict=True)
    ]
    area = math.prod((b - a) / n for a, b in zip(low, high, strict=True))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2), area


def quadrature(
    subject: Any, x: Tensor, low: list[float], high: list[float], n: int
) -> tuple[float, Tensor, Tensor]:
    """Log-evidence, mean and sd of the posterior of a task of two parameters."""
    theta, area = grid(low, high, n)
    log_posterior = subject.log_likelihood(theta, x) + subject.prior.log_prob(theta)
    weight = log_posterior.softmax(0)[:, None]
    mean = (weight * theta).sum(0)
    sd = (weight * (theta - mean).square()).sum(0).sqrt()
    return float(log_posterior.logsumexp(0)) + math.log(area), mean, sd


def check_draws(draws: Tensor, mean: Tensor, sd: Tensor) -> float:
    """The largest |z| of means, and of sds taking their error as for a kurtosis of five or less."""
    n = len(draws)
    of_mean = (draws.mean(0) - mean) / (sd / math.sqrt(n))
    of_sd = (draws.std(0) / sd - 1) * math.sqrt(n)
    return max(float(of_mean.abs().max()), float(of_sd.abs().max()))


def rank_p_values(subject: Any, scale: float = 1.0) -> np.ndarray:
    """SBC: chi-squared p-value of the ranks of 300 true parameters among 39 draws, per parameter."""
    generator, n = torch.Generator().manual_seed(7), 300
    theta = subject.prior.sample(n, generator)
    x = subject.observe(subject.signal(theta), generator)
    draws = torch.stack([subject.reference(x[i], 39, i) for i in range(n)])
    centre = draws.mean(1, keepdim=True)
    ranks = (centre + scale * (draws - centre) < theta[:, None]).sum(1).numpy()
    counts = np.stack([np.bincount(column // 4, minlength=10) for column in ranks.T])
    return stats.chisquare(counts, axis=1).pvalue


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_are_calibrated(name):
    # alarm 1e-4 by the seed, over 2 or 10 parameters
    subject = task(name)
    p_values = rank_p_values(subject)
    assert p_values.min() > 1e-4 / len(p_values)
    if name != "two_moons":  # whose two moons no scale describes: see below
        assert rank_p_values(subject, 0.5).min() < 1e-4


@pytest.mark.parametrize("x", [(0.3, -1.0), (9.6, -9.9), (11.5, 0.0)])
def test_gaussian_mixture_against_quadrature(x):
    subject, x = task("gaussian_mixture"), torch.tensor(x, dtype=torch.float64)
    low = [max(-10.0, v - 6.0) for v in x.tolist()]
    high = [min(10.0, v + 6.0) for v in x.tolist()]
    evidence, mean, sd = quadrature(subject, x, low, high, 1200)
    assert subject.log_evidence(x) == (pytest.approx(evidence, abs=5e-5), 0.0)
    draws = subject.reference(x, 20_000, 1)
    assert subject.prior.inside(draws).all()
    assert check_draws(draws, mean, sd) < 5  # an alarm in 10^6
    assert check_draws(draws * 1.1, mean, sd) > 5


@pytest.mark.parametrize("x", [(-0.6, 0.2), (0.31, 0.05), (-1.05, -0.2)])
def test_two_moons_against_quadrature(x):
    subject, x = TwoMoons(), torch.tensor(x, dtype=torch.float64)
    evidence, mean, sd = quadrature(subject, x, [-1, -1], [1, 1], 2000)
    found, error = subject.log_evidence(x)
    assert found == pytest.approx(evidence, abs=4 * error + 3e-3)
    assert error < 1e-3
    draws = subject.reference(x, 20_000, 1)
    assert subject.prior.inside(draws).all()
    assert check_draws(draws, mean, sd) < 5
    one_moon = torch.where((draws.sum(1) > 0)[:, None], draws, -draws.flip(1))
    assert check_draws(one_moon, mean, sd) > 5


def test_two_moons_refuses_an_impossible_observation():
    x = torch.tensor([5.0, 5.0])
    assert TwoMoons().log_evidence(x)[0] == -math.inf
    with pytest.raises(ValueError, match="expected an observation that the prior can make"):
        TwoMoons().reference(x, 5, 1)


def test_gaussian_evidence_in_closed_form():
    x = torch.linspace(-0.9, 1.4, 10, dtype=torch.float64)
    normal = stats.norm(0, math.sqrt(0.2)).logpdf(x.numpy()).sum()
    assert task("gaussian_linear").log_evidence(x) == (pytest.approx(normal), 0.0)
    edges = [stats.norm(v, math.sqrt(0.1)) for v in x.tolist()]
    box = sum(math.log((edge.cdf(1) - edge.cdf(-1)) / 2) for edge in edges)
    assert task("gaussian_linear_uniform").log_evidence(x) == (pytest.approx(box), 0.0)


def test_adaptive_sampler_finds_a_closed_form():
    """z-scores below 5 for 21 figures: an alarm in 10^5."""
    subject = task("gaussian_linear_uniform")
    x = torch.linspace(-1.2, 1.2, 10, dtype=torch.float64)
    solved = references.solve(subject, x, seed=1, final=20_000)
    assert solved.diagnostics.reliable
    found = solved.diagnostics
    exact = subject.log_evidence(x)[0]
    assert abs(found.log_evidence - exact) < 5 * found.log_evidence_error < 0.1
    draws, right = solved.draws(5_000, 1), subject.reference(x, 200_000, 1)
    assert check_draws(draws, right.mean(0), right.std(0)) < 5
    assert check_draws(solved.draws(5_000, 1) * 0.9, right.mean(0), right.std(0)) > 5


def test_sir_against_quadrature():
    subject = task("sir")
    theta = torch.tensor([[0.6, 0.15]], dtype=torch.float64)
    x = subject.observe(subject.signal(theta), torch.Generator().manual_seed(1))[0]
    solved = references.solve(subject, x, seed=1, final=4_000)
    draws = solved.draws(2_000, 1)
    low, high = ((draws.mean(0) + k * draws.std(0)).tolist() for k in (-7, 7))
    evidence, mean, sd = quadrature(subject, x, low, high, 100)
    found = solved.diagnostics
    assert abs(found.log_evidence - evidence) < 5 * found.log_evidence_error < 0.1
    assert check_draws(draws, mean, sd) < 5


def test_slcp_has_four_equal_modes_and_one_evidence(monkeypatch):
    """With and without folding: two samplers that share neither coordinates nor modes."""
    subject = task("slcp")
    theta = torch.tensor([[0.7, -2.9, -1.2, 1.6, 0.6]], dtype=torch.float64)
    x = subject.observe(subject.signal(theta), torch.Generator().manual_seed(2))[0]
    folded = references.solve(subject, x, seed=1, final=20_000)
    draws = folded.draws(4_000, 1)
    quarters = np.unique(np.sign(draws[:, 2:4].numpy()), axis=0, return_counts=True)[1]
    assert stats.chisquare(quarters).pvalue > 1e-3
    assert subject.prior.inside(draws).all()
    monkeypatch.setattr(references, "FOLDED", {})
    plain = references.solve(subject, x, seed=2, final=20_000)
    ours, theirs = folded.diagnostics, plain.diagnostics
    assert ours.reliable
    assert ours.log_evidence_error < 0.02
    error = math.hypot(ours.log_evidence_error, theirs.log_evidence_error)
    assert abs(ours.log_evidence - theirs.log_evidence) < 5 * error < 0.3
    width = plain.draws(4_000, 1).abs()
    assert check_draws(draws.abs(), width.mean(0), width.std(0)) < 6  # both sides are draws
    hidden = task("slcp_distractors")
    hiding = torch.zeros(100, dtype=torch.float64)
    hiding[torch.argsort(hidden.permutation)[:8]] = x
    assert torch.equal(hidden.informative(hiding), x)
    monkeypatch.undo()
    torch.testing.assert_close(references.solve(hidden, hiding, seed=1, final=20_000).draws(4_000, 1), draws)


def test_unreliable_references_are_refused(monkeypatch):
    subject = task("slcp")
    x = torch.linspace(-3, 3, 8)
    few = references.solve(subject, x, seed=1, final=50)
    assert not few.diagnostics.reliable
    monkeypatch.setattr(references, "solve", lambda *_: few)
    with pytest.raises(RuntimeError, match="expected a reliable reference"):
        references.reference(subject, x, 10, 1)
    with pytest.raises(RuntimeError, match="expected a reliable reference"):
        references.log_evidence(subject, x)


def test_closed_forms_are_used_where_there_are_any():
    subject, x = task("gaussian_mixture"), torch.tensor([1.0, 2.0])
    assert torch.equal(references.reference(subject, x, 10, 3), subject.reference(x, 10, 3))
    assert references.log_evidence(subject, x) == subject.log_evidence(x)
