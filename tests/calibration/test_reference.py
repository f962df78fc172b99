"""The Markov-chain reference against closed forms, and its honesty when it has not converged."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sbiflow.calibration import Reference, compare, emcee_reference
from sbiflow.calibration.space import ChainSpace
from sbiflow.priors import PeriodicUniform, Prior, Uniform
from tests.toys import LinearGaussian

TOY = LinearGaussian()
X = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


@pytest.fixture(scope="module")
def linear() -> Reference:
    return emcee_reference(TOY.log_likelihood, TOY.prior, X, seed=1, progress=False)


def test_linear_gaussian(linear: Reference) -> None:
    """ESS is above 2,500, so a mean is off by 0.1 sd and a variance by 14 % with probability < 1e-6."""
    assert linear.converged, linear.reasons
    mean, covariance = TOY.posterior(X)
    sd = covariance.diagonal().sqrt()
    assert ((linear.theta.mean(0) - mean).abs() / sd).max() < 0.1
    np.testing.assert_allclose(torch.cov(linear.theta.T), covariance, atol=0.14 * float(sd.max() ** 2))
    assert (linear.ess >= 2500).all()
    assert (linear.rhat <= 1.01).all()
    assert linear.n_steps >= 100 * linear.tau.max()


def test_samples_carry_no_density_and_no_warnings(linear: Reference) -> None:
    samples = linear.samples()
    assert samples.names == ("t0", "t1")
    assert samples.log_q.isnan().all()
    assert samples.warnings == ()
    assert "converged" in str(linear)


def test_compare_measures_shift_and_width(linear: Reference) -> None:
    draws, _ = TOY.exact_proposal(1.2, 0.5).sample_and_log_prob(
        X[None], 40_000, torch.Generator().manual_seed(1)
    )
    table = compare(draws[:, 0], linear)
    for row in table.rows:
        assert abs(row.shift - 0.5) < 5 * row.shift_error
        assert abs(row.width_ratio - 1.2) < 5 * row.width_error
        assert 0 < row.shift_error < 0.05
        assert 0 < row.width_error < 0.05
    assert not table.within(0.1, 0.05)
    wide, log_q = TOY.exact_proposal(1.5).sample_and_log_prob(
        X[None], 40_000, torch.Generator().manual_seed(2)
    )
    log_weights = TOY.exact_proposal().log_prob(wide[:, 0], X[None]) - log_q[:, 0]
    assert compare(wide[:, 0], linear, weights=log_weights.exp()).within(0.1, 0.05)
    assert "t0 [m]" in str(table)


def short_run(log_likelihood: Callable = TOY.log_likelihood, seed: int = 1) -> Reference:
    return emcee_reference(log_likelihood, TOY.prior, X, seed=seed, walkers=20, max_steps=400, progress=False)


def test_too_few_steps_say_so_and_every_likelihood_is_counted() -> None:
    seen = []

    def counting(theta: Tensor, x: Tensor) -> Tensor:
        seen.append(len(theta))
        return TOY.log_likelihood(theta, x)

    short = short_run(counting)
    assert sum(seen) == short.n_likelihood_calls
    assert not short.converged
    assert "shorter than 100 autocorrelation times" in short.reasons[0]
    assert "NOT CONVERGED" in str(short)
    assert "has not converged" in short.samples().warnings[0]
    assert not compare(short.theta, short).within(1.0, 1.0)
    assert "proves nothing" in str(compare(short.theta, short))
    again = short_run()
    assert torch.equal(again.theta, short.theta)  # the same seed gives the same chain


EDGE = Prior(
    Uniform("edge", 0.0, 1.0),
    Uniform("narrow", -50.0, 50.0),
    PeriodicUniform("azimuth", 0.0, math.pi),
    PeriodicUniform("free", 0.0, 2 * math.pi),
)


def edge_likelihood(theta: Tensor, x: Tensor) -> Tensor:
    edge, narrow, azimuth, _ = theta.T
    return -40 * edge - 0.5 * ((narrow - 7.0) / 0.1) ** 2 + 20 * (2 * (azimuth - 0.02)).cos()


@pytest.mark.parametrize("with_start", [False, True])
def test_bound_narrow_and_periodic(with_start: bool) -> None:
    """A density that ends at the prior's bound, one of 0.1 % of the prior's width, one across the cut, one flat."""
    start = None
    if with_start:  # draws off by one sd and of half the width
        rng = np.random.default_rng(1)
        columns = (
            rng.exponential(1 / 80, 400),
            rng.normal(7.1, 0.05, 400),
            rng.normal(0.1, 0.05, 400) % math.pi,
        )
        start = torch.from_numpy(np.stack([*columns, rng.uniform(0, 6.28, 400)], -1))
    reference = emcee_reference(edge_likelihood, EDGE, torch.zeros(1), seed=3, start=start, progress=False)
    assert reference.converged, reference.reasons
    assert EDGE.inside(reference.theta).all()
    edge, narrow, azimuth, free = reference.theta.numpy().T
    thin = slice(None, None, 8)  # nearly independent; Kolmogorov-Smirnov, false alarm 1e-4 each
    exact = stats.truncexpon(b=40, scale=1 / 40)
    phase = (2 * azimuth + math.pi) % (2 * math.pi) - math.pi
    assert stats.kstest(edge[thin], exact.cdf).pvalue > 1e-4
    assert stats.kstest(narrow[thin], stats.norm(7.0, 0.1).cdf).pvalue > 1e-4
    assert stats.kstest(phase[thin], stats.vonmises(20, loc=0.04).cdf).pvalue > 1e-4
    assert stats.kstest(free[thin], stats.uniform(0, 2 * math.pi).cdf).pvalue > 1e-4
    table = compare(reference.theta, reference)
    assert table.worst_shift == 0
    assert 0.0 < table.rows[2].sigma < 0.2  # and not the half period that a cut at zero would give


def test_two_modes_have_their_masses_or_the_result_says_not_converged() -> None:
    prior = Prior(Uniform("a", -10.0, 10.0), Uniform("b", -10.0, 10.0))

    def two(theta: Tensor, x: Tensor) -> Tensor:
        left = math.log(0.3) - 0.5 * ((theta - torch.tensor([-5.0, 2.0])) / 0.5).square().sum(1)
        right = math.log(0.7) - 0.5 * ((theta - torch.tensor([5.0, -3.0])) / 0.5).square().sum(1)
        return torch.logaddexp(left, right)

    reference = emcee_reference(
        two, prior, torch.zeros(1), seed=4, walkers=60, max_steps=6000, progress=False
    )
    mass = float((reference.theta[:, 0] > 0).double().mean())
    assert reference.converged, reference.reasons
    assert mass == pytest.approx(0.7, abs=0.05)  # ESS > 2500: 5 standard errors


def test_unmixed_modes_are_not_called_converged() -> None:
    """Narrow modes in many dimensions: nothing hops between them, so no run of this length is a reference."""
    dim = 6
    prior = Prior(*(Uniform(f"u{i}", -1.0, 1.0) for i in range(dim)))
    modes = torch.tensor(np.random.default_rng(0).uniform(-0.8, 0.8, (12, dim)))

    def many(theta: Tensor, x: Tensor) -> Tensor:
        return torch.logsumexp(-0.5 * ((theta[:, None] - modes) / 0.02).square().sum(-1), 1)

    reference = emcee_reference(
        many, prior, torch.zeros(1), seed=5, walkers=40, max_steps=400, progress=False
    )
    assert not reference.converged


def test_bad_input_gets_one_clear_line() -> None:
    def call(log_likelihood=TOY.log_likelihood, x=X, **options):
        return emcee_reference(log_likelihood, TOY.prior, x, **{"seed": 1, "progress": False, **options})

    with pytest.raises(ValueError, match="finite"):
        call(x=torch.tensor([1.0, math.nan, 0.0]))
    with pytest.raises(ValueError, match="even number"):
        call(walkers=31)
    with pytest.raises(ValueError, match="start"):
        call(start=torch.zeros(100, 3))
    with pytest.raises(ValueError, match="got none"):
        call(lambda theta, x: torch.full((len(theta),), -math.inf))
    with pytest.raises(ValueError, match=r"below \+inf"):
        call(lambda theta, x: torch.full((len(theta),), math.inf))
    with pytest.raises(ValueError, match="expected shape"):
        call(lambda theta, x: torch.zeros(3))


def test_nan_likelihoods_are_zero_and_told_of() -> None:
    def patchy(theta: Tensor, x: Tensor) -> Tensor:
        return torch.where(theta[:, 0] > 3.0, math.nan, TOY.log_likelihood(theta, x))

    reference = short_run(patchy, seed=6)
    assert "NaN for" in reference.warnings[-1]
    assert reference.theta[:, 0].max() <= 3.0


def test_chain_space_round_trip_and_radius() -> None:
    space, rng = ChainSpace(EDGE), np.random.default_rng(3)
    z = EDGE.unconstrain(EDGE.sample(50, torch.Generator().manual_seed(1)))[0].numpy()
    y = space.from_base(z, rng)
    assert y.shape == (50, 6)
    np.testing.assert_allclose(space.to_base(y), z, atol=1e-12)
    np.testing.assert_allclose(space.to_base(np.hstack([y[:, :2], 3 * y[:, 2:]])), z, atol=1e-12)
    unit = np.hstack([y[:, :2], y[:, 2:] / np.tile(np.hypot(y[:, 2:4], y[:, 4:6]), 2)])  # all radii one
    prior_part = EDGE.base_log_prob(torch.from_numpy(z)).numpy()
    difference = space.log_base(unit) - prior_part
    np.testing.assert_allclose(difference, difference[0], atol=1e-12)


def test_two_threads_give_the_same_chain() -> None:
    toy = LinearGaussian()
    x = torch.tensor([0.3, -0.2, 1.1], dtype=torch.float64)
    one, two = (
        emcee_reference(
            toy.log_likelihood, toy.prior, x, seed=3, max_steps=1000, threads=threads, progress=False
        )
        for threads in (1, 2)
    )
    assert torch.equal(one.theta, two.theta)
    assert one.n_likelihood_calls == two.n_likelihood_calls
