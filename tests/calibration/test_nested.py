"""Nested sampling against closed forms, and its honesty when it has not converged."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sbiflow.calibration import NestedReference, compare, nested_reference
from sbiflow.calibration.strands import NestedRun, bootstrap, compare_runs, strand_log_weights
from sbiflow.priors import Normal, PeriodicUniform, Prior, Uniform
from tests.toys import LinearGaussian, normal_prior

TOY = LinearGaussian()
X = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
SQUARE = Prior(Uniform("a", -10.0, 10.0), Uniform("b", -10.0, 10.0))


def run(
    likelihood: Callable, prior: Prior, x: Tensor = X, seed: int = 0, nlive: int = 150
) -> NestedReference:
    return nested_reference(likelihood, prior, x, seed=seed, nlive=nlive, progress=False)


def two_modes(theta: Tensor, x: Tensor) -> Tensor:
    """0.3 at (-5, 2) and 0.7 at (5, -3), 20 standard deviations apart; evidence 2 pi 0.25 / 400."""
    left = math.log(0.3) - 0.5 * ((theta - torch.tensor([-5.0, 2.0])) / 0.5).square().sum(1)
    right = math.log(0.7) - 0.5 * ((theta - torch.tensor([5.0, -3.0])) / 0.5).square().sum(1)
    return torch.logaddexp(left, right)


@pytest.mark.parametrize("seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 6))])
def test_linear_gaussian_evidence_and_moments(seed: int) -> None:
    """Evidence, means and variances within 4 of their errors: 5 figures, 3e-4 false alarms."""
    found = run(TOY.log_likelihood, TOY.prior, seed=seed)
    assert found.converged, found.reasons
    assert abs(found.log_evidence - float(TOY.log_evidence(X))) < 4 * found.log_evidence_error
    assert 0.02 < found.log_evidence_error < 0.15
    mean, covariance = TOY.posterior(X)
    size = np.minimum(found.ess, len(found.theta))
    sd = covariance.diagonal().sqrt()
    pulls = ((found.theta.mean(0) - mean) / sd).numpy() * np.sqrt(size)
    assert (np.abs(pulls) < 4).all(), pulls
    ratio = (found.theta.var(0) / sd**2).numpy()
    assert (np.abs(ratio - 1) < 4 * np.sqrt(2 / size)).all(), ratio


def test_evidence_of_another_model_is_rejected() -> None:
    """A likelihood e times too high moves the log evidence by 1: the check above is not vacuous."""
    found = run(lambda theta, x: TOY.log_likelihood(theta, x) + 1.0, TOY.prior, nlive=60)
    assert abs(found.log_evidence - float(TOY.log_evidence(X))) > 4 * found.log_evidence_error


def test_one_parameter() -> None:
    toy = LinearGaussian(matrix=((1.0,), (0.5,)), prior=normal_prior((0.5,), (2.0,)))
    x = torch.tensor([3.0, 0.2], dtype=torch.float64)
    found = run(toy.log_likelihood, toy.prior, x)
    assert found.converged, found.reasons
    assert abs(found.log_evidence - float(toy.log_evidence(x))) < 4 * found.log_evidence_error
    mean, covariance = toy.posterior(x)
    exact = stats.norm(float(mean), float(covariance.sqrt()))
    assert stats.kstest(found.theta[:, 0], exact.cdf).pvalue > 1e-4


@pytest.mark.parametrize("seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 6))])
def test_two_modes_have_their_masses(seed: int) -> None:
    """Mass and evidence within 4 of the errors that the result states: 1.3e-4 false alarms."""
    found = run(two_modes, SQUARE, torch.zeros(1), seed=seed, nlive=200)
    assert found.converged, found.reasons
    mass = float((found.theta[:, 0] > 0).double().mean())
    error = math.sqrt(0.21 / min(found.ess[0], len(found.theta)))
    assert abs(mass - 0.7) < 4 * error
    assert error < 0.025  # 0.5 would not pass
    assert abs(found.log_evidence - math.log(2 * math.pi * 0.25 / 400)) < 4 * found.log_evidence_error


def test_edge_of_the_prior_and_periodic_parameters() -> None:
    """A density that ends at the prior's bound, one across the cut of a period, one flat. KS: 1e-4 each."""
    prior = Prior(
        Uniform("edge", 0.0, 1.0),
        PeriodicUniform("azimuth", 0.0, math.pi),
        PeriodicUniform("free", 0.0, 2 * math.pi),
    )

    def likelihood(theta: Tensor, x: Tensor) -> Tensor:
        return -40 * theta[:, 0] + 20 * ((2 * (theta[:, 1] - 0.02)).cos() - 1)

    found = run(likelihood, prior, torch.zeros(1))
    assert found.converged, found.reasons
    assert prior.inside(found.theta).all()
    edge, azimuth, free = found.theta.numpy().T
    phase = (2 * azimuth + math.pi) % (2 * math.pi) - math.pi
    assert stats.kstest(edge, stats.truncexpon(b=40, scale=1 / 40).cdf).pvalue > 1e-4
    assert stats.kstest(phase, stats.vonmises(20, loc=0.04).cdf).pvalue > 1e-4
    assert stats.kstest(free, stats.uniform(0, 2 * math.pi).cdf).pvalue > 1e-4
    exact = math.log((1 - math.exp(-40)) / 40) + math.log(np.i0(20)) - 20
    assert abs(found.log_evidence - exact) < 4 * found.log_evidence_error


def test_zero_likelihood_over_half_of_the_prior_and_nan_in_a_corner() -> None:
    def half(theta: Tensor, x: Tensor) -> Tensor:
        inside = torch.where(theta[:, 0] > 0, -0.5 * (theta / 2).square().sum(1), -math.inf)
        return torch.where((theta > 9).all(1), math.nan, inside)

    found = run(half, SQUARE, torch.zeros(1))
    assert found.converged, found.reasons
    assert float(found.theta[:, 0].min()) > 0
    assert abs(found.log_evidence - math.log(math.pi * 4 / 400)) < 4 * found.log_evidence_error
    assert "NaN for" in found.warnings[-1]


def test_flat_likelihood_gives_the_prior() -> None:
    found = run(lambda theta, x: torch.zeros(len(theta)), SQUARE, torch.zeros(1), nlive=100)
    assert found.log_evidence == pytest.approx(0.0, abs=0.02)  # 1 / nlive
    assert not found.converged  # 200 draws are too few
    assert stats.kstest(found.theta[:, 0], stats.uniform(-10, 20).cdf).pvalue > 1e-4


def test_same_seed_same_result_and_every_likelihood_is_counted() -> None:
    seen = []

    def counting(theta: Tensor, x: Tensor) -> Tensor:
        seen.append(len(theta))
        return TOY.log_likelihood(theta, x)

    one = nested_reference(counting, TOY.prior, X, seed=3, nlive=50, dlogz=3.0, progress=False)
    two = nested_reference(TOY.log_likelihood, TOY.prior, X, seed=3, nlive=50, dlogz=3.0, progress=False)
    assert torch.equal(one.theta, two.theta)
    assert one.log_evidence == two.log_evidence
    assert sum(seen) == one.n_likelihood_calls
    assert len(torch.unique(one.theta, dim=0)) == len(one.theta)  # no draw is there twice


def test_unfinished_says_so() -> None:
    short = nested_reference(
        TOY.log_likelihood, TOY.prior, X, seed=1, nlive=100, max_calls=6000, progress=False
    )
    assert not short.converged
    assert "stopped by max_calls" in short.reasons[0]
    assert any("effective sample size below 400" in reason for reason in short.reasons)
    assert "NOT CONVERGED" in str(short)
    assert "has not converged" in short.samples().warnings[0]
    assert "proves nothing" in str(compare(short.theta, short))
    assert short.samples().log_q.isnan().all()


def test_runs_that_found_different_modes_disagree() -> None:
    """Two runs that see one mode each, equal in evidence: only the parameters tell them apart."""
    rng = np.random.default_rng(0)

    def one_mode(centre: float) -> NestedRun:
        u = np.clip(centre + 0.01 * rng.standard_normal((1000, 1)), 0, 1)
        logl = np.sort(rng.exponential(size=1000))
        return NestedRun(u, bootstrap(logl, np.arange(1000) % 100, 100, rng), True, ())

    prior = Prior(Normal("a", 0.0, 1.0))
    same, apart = [one_mode(0.3), one_mode(0.3)], [one_mode(0.3), one_mode(0.7)]
    assert compare_runs(same, prior)[1][0] < 4  # 6e-5 false alarms for each of two figures
    assert compare_runs(apart, prior)[1][0] > 10


def test_strands_count_as_often_as_they_are_drawn() -> None:
    """Every strand twice has the volumes of every strand once with twice the live points."""
    rng = np.random.default_rng(1)
    logl, strand = np.zeros(600), np.concatenate([rng.permutation(20) for _ in range(30)])
    once = np.exp(strand_log_weights(logl, strand, np.ones(20, dtype=int)))
    twice = np.exp(strand_log_weights(logl, strand, 2 * np.ones(20, dtype=int)))
    assert once.sum() == pytest.approx(1, abs=0.03)  # the whole prior
    assert twice.sum() == pytest.approx(1, abs=0.03)
    half = np.exp(strand_log_weights(logl, strand, np.arange(20) % 2 * 2))
    assert (half[strand % 2 == 0] == 0).all()


def test_bad_input_gets_one_clear_line() -> None:
    def call(log_likelihood: Callable = TOY.log_likelihood, x: Tensor = X, **options: object) -> None:
        nested_reference(log_likelihood, TOY.prior, x, **{"seed": 1, "progress": False, **options})

    with pytest.raises(ValueError, match="finite"):
        call(x=torch.tensor([1.0, math.nan, 0.0]))
    with pytest.raises(ValueError, match="nlive"):
        call(nlive=10)
    with pytest.raises(ValueError, match="dlogz"):
        call(dlogz=0.0)
    with pytest.raises(ValueError, match="seed"):
        call(seed=-1)
    with pytest.raises(ValueError, match=r"below \+inf"):
        call(lambda theta, x: torch.full((len(theta),), math.inf))
    with pytest.raises(ValueError, match="expected shape"):
        call(lambda theta, x: torch.zeros(3))
    with pytest.raises(ValueError, match="log_likelihood: expected one that nested sampling can climb"):
        call(lambda theta, x: torch.full((len(theta),), -math.inf), nlive=50)
