"""Ranks, coverage masses and contraction on cases whose law is known. False alarms 1e-4 or less, fixed seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sbiflow.calibration.contraction import Contraction, posterior_spread
from sbiflow.calibration.coverage import coverage_test, hpd_mass
from sbiflow.calibration.regression import (
    forward_prediction,
    regression_ranks,
    regression_targets,
    ridge_prediction,
)
from sbiflow.calibration.sbc import (
    SbcResult,
    data_test,
    describe,
    fractional_rank,
    log_likelihood_ranks,
    rank_test,
    sbc_ranks,
)
from sbiflow.pairs import draw_pairs
from sbiflow.priors import Normal, PeriodicUniform, Prior, Uniform
from sbiflow.seeding import torch_generator
from tests.toys import LinearGaussian

ALPHA = 1e-4


def generator(seed: int) -> torch.Generator:
    return torch_generator(seed, 99)


def test_ranks_of_one_of_the_draws_are_uniform_with_ties() -> None:
    values = torch.randint(0, 3, (8, 4000), generator=generator(1)).double()
    u = fractional_rank(values[0], values[1:], generator(2)).numpy()
    assert rank_test("coin", u).passed(ALPHA)
    assert 0 < u.min() < u.max() < 1


def test_rank_counts_the_draws_below() -> None:
    draws = torch.arange(9.0).reshape(9, 1)
    u = fractional_rank(torch.tensor([4.5]), draws, generator(3))
    assert 0.5 <= float(u) <= 0.6


def test_periodic_ranks_do_not_depend_on_where_the_circle_is_cut() -> None:
    noise = 0.2 * torch.randn(50, 3000, 1, generator=generator(4), dtype=torch.float64)
    centre = torch.rand(3000, 1, generator=generator(5), dtype=torch.float64) * math.pi
    theta = torch.remainder(centre + noise, math.pi)
    turned = torch.remainder(centre + noise + 1.0, math.pi)
    first = sbc_ranks(theta[0], theta[1:], generator(6), [math.pi])
    second = sbc_ranks(turned[0], turned[1:], generator(6), [math.pi])
    torch.testing.assert_close(first, second, atol=1e-9, rtol=0)
    assert rank_test("angle", first[:, 0].numpy()).passed(ALPHA)
    shifted = sbc_ranks(torch.remainder(theta[0] + 0.05, math.pi), theta[1:], generator(6), [math.pi])
    assert not rank_test("angle", shifted[:, 0].numpy()).passed(ALPHA)


@pytest.mark.parametrize(
    ("scale", "shift", "word"),
    [(0.8, 0.0, "narrow"), (1.25, 0.0, "wide"), (1.0, 0.3, "biased high"), (1.0, -0.3, "biased low")],
)
def test_readings_name_the_fault(scale: float, shift: float, word: str) -> None:
    star = torch.randn(1000, generator=generator(7))
    draws = shift + scale * torch.randn(500, 1000, generator=generator(8))
    test = rank_test("z", fractional_rank(star, draws, generator(9)).numpy())
    assert not test.passed(ALPHA)
    assert word in test.reading


def test_reading_of_uniform_ranks_accuses_nobody() -> None:
    assert describe((np.arange(1000) + 0.5) / 1000).startswith("neither")


def test_hpd_mass_of_a_normal_is_that_of_its_symmetric_interval() -> None:
    normal = torch.distributions.Normal(0.0, 1.0)
    draws = torch.randn(20_000, 1, generator=generator(10)).expand(-1, 3)
    star = torch.tensor([0.0, 1.0, -2.0])
    mass = hpd_mass(normal.log_prob(star), normal.log_prob(draws), generator(11))
    torch.testing.assert_close(mass, torch.tensor([0.0, 0.6827, 0.9545]).double(), atol=0.015, rtol=0)


def test_coverage_reading() -> None:
    assert "overconfident" in coverage_test(np.linspace(0.3, 0.99, 100)).reading
    assert "underconfident" in coverage_test(np.linspace(0.01, 0.7, 100)).reading


def test_bonferroni() -> None:
    u = (np.arange(500) + 0.5) / 500
    result = SbcResult((rank_test("a", u), rank_test("b", u**1.3)), 0.02)
    assert result.alpha_each == 0.01
    assert [t.name for t in result.failures] == ["b"]
    assert not result.passed
    assert result.band().alpha == 0.01


def test_spread_of_the_prior_is_null_and_of_known_posteriors_is_known() -> None:
    prior = Prior(Normal("a", 3.0, 2.0), Uniform("b", 0.0, 1.0), PeriodicUniform("c", 0.0, math.pi))
    null = prior.sample(200 * 400, generator(12)).reshape(200, 400, 3)
    variance, distance2 = posterior_spread(null, prior)
    np.testing.assert_allclose(variance.mean(0), 1.0, atol=4 * math.sqrt(2 / 200 / 400))
    np.testing.assert_allclose(distance2.mean(0), 0.0, atol=4 * math.sqrt(1 / 45) / 200 / math.sqrt(400))
    narrow = null.clone()
    narrow[..., 0] = 3.0 + 0.5 * (null[..., 0] - 3.0)
    narrow[..., 2] = (1.0 + 0.1 * (null[..., 2] - math.pi / 2)) % math.pi
    variance, distance2 = posterior_spread(narrow, prior)
    arc = 0.1 * math.pi  # phases uniform within +- 0.1 pi: mean resultant length sin(arc) / arc
    expected = [0.25, 1.0, 1 - (math.sin(arc) / arc) ** 2]
    np.testing.assert_allclose(variance.mean(0), expected, rtol=0.02)
    assert distance2.mean(0)[[0, 2]].min() > 0.005


def test_two_modes_with_the_variance_of_the_prior_count_as_learned() -> None:
    prior = Prior(Normal("a", 0.0, 1.0))
    draws = torch.where(torch.rand(100, 300, 1, generator=generator(13)) < 0.5, 1.0, -1.0).double()
    draws = draws + 0.05 * torch.randn(draws.shape, generator=generator(14), dtype=torch.float64)
    variance, distance2 = posterior_spread(draws, prior)
    row = Contraction("a", 1 - float(variance.mean()), 0.0, math.sqrt(float(distance2.mean())), 0.0, 0.01)
    assert abs(row.contraction) < 0.03
    assert row.learned


def test_ridge_recovers_a_line_and_does_not_fit_noise() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((400, 300)) * 10.0 ** rng.uniform(-3, 3, 300)
    x[:, 7] = 4.2  # a constant feature
    line = x[:, :1] / x[:, :1].std()
    signal = ridge_prediction(x[:350], line[:350], x[350:])
    assert np.mean((signal - line[350:]) ** 2) < 0.7
    noise = rng.standard_normal((400, 1))
    assert np.mean((ridge_prediction(x[:350], noise[:350], x[350:]) - noise[350:]) ** 2) < 2.0
    few = ridge_prediction(x[:350, :5], 2 * line[:350] + 1, x[350:, :5])
    np.testing.assert_allclose(few, 2 * line[350:] + 1, atol=1e-5)


@pytest.mark.parametrize("seed", [1, 2])
def test_data_dependent_ranks(seed: int) -> None:
    """Uniform for the exact posterior; the prior fits worse, a narrow posterior better. False alarm 1e-4 each."""
    toy = LinearGaussian()
    theta, x, _ = draw_pairs(toy, 600, seed=seed)
    targets = regression_targets(theta, toy.prior)
    predicted = forward_prediction(x.numpy(), targets.reshape(600, -1)).reshape(targets.shape)

    def both(proposal: object) -> tuple:
        draws, _ = proposal.sample_and_log_prob(x, 50, generator(20 + seed))
        likelihood = log_likelihood_ranks(toy.log_likelihood, theta, x, draws, generator(30))
        distance = regression_ranks(targets, predicted, draws, toy.prior, generator(31))
        return data_test("L", likelihood.numpy(), 1.0), data_test("r", distance.numpy(), 0.0)

    assert all(test.passed(ALPHA) for test in both(toy.exact_proposal()))
    for proposal, word in ((toy.prior_proposal(), "blind to x"), (toy.exact_proposal(0.6), "too narrow")):
        for test in both(proposal):
            assert not test.passed(ALPHA)
            assert word in test.reading


def test_likelihood_ranks_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = LinearGaussian()
    theta, x, _ = draw_pairs(toy, 40, seed=3)
    draws, _ = toy.exact_proposal().sample_and_log_prob(x, 20, generator(4))
    seen: list[int] = []
    first = log_likelihood_ranks(toy.log_likelihood, theta, x, draws, generator(5), seen.append)
    monkeypatch.setattr("sbiflow.calibration.sbc._LIKELIHOODS", 100)
    second = log_likelihood_ranks(toy.log_likelihood, theta, x, draws, generator(5), seen.append)
    torch.testing.assert_close(first, second)
    assert sum(seen) == 80


def test_nan_likelihood_is_refused_and_zero_likelihood_ranked_last() -> None:
    theta, draws = torch.zeros(4, 1), torch.zeros(30, 4, 1)
    with pytest.raises(ValueError, match="124 NaN"):
        log_likelihood_ranks(lambda t, x: t[:, 0] * math.nan, theta, theta, draws, generator(1))
    worst = log_likelihood_ranks(
        lambda t, x: torch.where(t[:, 0] == 0, -math.inf, 0.0), theta, theta, draws + 1, generator(1)
    )
    assert worst.max() < 1 / 30
