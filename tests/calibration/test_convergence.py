"""Convergence diagnostics, annealing and moves against closed forms and ArviZ."""

from __future__ import annotations

import math

import arviz
import emcee
import numpy as np
import pytest
from scipy import stats

from sbiflow.calibration.annealing import anneal, systematic_resample
from sbiflow.calibration.convergence import autocorrelation_time, rank_rhat
from sbiflow.calibration.moves import EllipticMove


def test_elliptic_move_keeps_a_curved_target() -> None:
    """A banana: a and b - a^2 are standard normal; moments by the ESS, 5 standard errors."""

    def banana(y: np.ndarray) -> np.ndarray:
        return -0.5 * (y[:, 0] ** 2 + (y[:, 1] - y[:, 0] ** 2) ** 2)

    rng = np.random.default_rng(1)
    rough = np.hstack([rng.standard_normal((800, 1)) ** 3 / 2, 1 + 2 * rng.standard_normal((800, 1))])
    move = EllipticMove(rough, banana(rough))
    sampler = emcee.EnsembleSampler(60, 2, banana, moves=move, vectorize=True)
    sampler.random_state = np.random.RandomState(1).get_state()
    sampler.run_mcmc(rng.standard_normal((60, 2)), 4000)
    chain = sampler.get_chain(discard=200)
    for value in (chain[..., 0], chain[..., 1] - chain[..., 0] ** 2):
        for moment, expected in ((value, 0.0), (value**2, 1.0)):
            error = moment.std() * math.sqrt(autocorrelation_time(moment) / moment.size)
            assert abs(moment.mean() - expected) < 5 * error
            assert error < 0.02


def test_elliptic_move_proposes_from_the_density_that_it_states() -> None:
    """Mean of proposals against the integral of the stated density, importance weighted; 5 standard errors."""
    rng = np.random.default_rng(2)
    sample = rng.standard_normal((600, 3)) @ np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.2]])
    move = EllipticMove(sample, -np.abs(sample[:, 0]))
    walkers = np.zeros((40_000, 3))
    proposed, factors = move.get_proposal(walkers, [], np.random.RandomState(3))
    broad = stats.multivariate_t(shape=4 * np.cov(sample.T), df=4, seed=4)
    points = broad.rvs(40_000)
    weights = np.exp(move.log_density(points) - broad.logpdf(points))
    weights /= weights.sum()
    ours, theirs = np.abs(proposed), np.abs(points)
    mean = weights @ theirs
    error = np.sqrt(weights**2 @ (theirs - mean) ** 2 + ours.var(0) / len(ours))
    assert (np.abs(ours.mean(0) - mean) < 5 * error).all()
    np.testing.assert_allclose(factors, move.log_density(walkers) - move.log_density(proposed))


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_autocorrelation_time_of_an_autoregression(rho: float) -> None:
    rng = np.random.default_rng(2)
    chain = np.empty((6000, 40))
    chain[0] = rng.standard_normal(40)
    for i in range(1, len(chain)):
        chain[i] = rho * chain[i - 1] + math.sqrt(1 - rho**2) * rng.standard_normal(40)
    assert autocorrelation_time(chain) == pytest.approx((1 + rho) / (1 - rho), rel=0.05, abs=0.03)
    chain[:, 0] += 20.0  # one walker stays elsewhere: the time says so
    assert autocorrelation_time(chain) > 500


def test_a_chain_that_never_moves_has_no_finite_time() -> None:
    assert autocorrelation_time(np.full((100, 4), 3.0)) == math.inf
    assert rank_rhat(np.stack([np.zeros(100), np.ones(100)])) > 2


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 1.0), (0.0, 1.5)])
def test_rhat_equals_arviz(shift: float, scale: float) -> None:
    rng = np.random.default_rng(4)
    chains = rng.standard_normal((2, 1001)) * np.array([[1.0], [scale]]) + np.array([[0.0], [shift]])
    assert rank_rhat(chains) == pytest.approx(float(arviz.rhat(chains, method="rank")), abs=1e-6)


def test_annealing_carries_the_prior_to_a_distant_narrow_target() -> None:
    """From N(0, 1) in 5-D to N(3, 0.05^2): moments of 1,000 members within 6 standard errors."""
    rng = np.random.default_rng(5)
    population = anneal(
        lambda y: -0.5 * (y**2).sum(1),
        lambda y: -0.5 * (((y - 3) / 0.05) ** 2).sum(1),
        rng.standard_normal((1000, 5)),
        rng,
    )
    np.testing.assert_allclose(population.y.mean(0), 3.0, atol=6 * 0.05 / math.sqrt(300))
    np.testing.assert_allclose(population.y.std(0), 0.05, rtol=0.2)
    assert population.n_temperatures > 5


def test_systematic_resampling_gives_each_its_share() -> None:
    counts = np.bincount(systematic_resample(np.log([0.5, 0.25, 0.2, 0.05]), np.random.default_rng(1)))
    np.testing.assert_allclose(counts, 4 * np.array([0.5, 0.25, 0.2, 0.05])[: len(counts)], atol=1)
