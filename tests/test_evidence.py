"""Evidence from draws of a posterior, against closed forms.

False alarms: a pull above 4 has a probability of 6e-5 for a normal error.
"""

from __future__ import annotations

import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from sbiflow import (
    LogUniform,
    Normal,
    PeriodicUniform,
    PosteriorSamples,
    Prior,
    Sine,
    TruncatedNormal,
    Uniform,
)
from sbiflow.integrate import IntegralResult
from sbiflow.integrate.evidence import CubeLikelihood, evidence, to_cube
from sbiflow.integrate.iterations import Iteration
from simulators.benchmark import task
from tests.integrate.small import config
from tests.toys import LinearGaussian, TwoModes

TOY = LinearGaussian()
X = torch.tensor([1.0, -0.5, 0.8], dtype=torch.float64)
LARGEST = 4.0


def exact_draws(n: int = 4000, seed: int = 1, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Of the toy's posterior, `scale` times as wide and `shift` standard deviations away, (n, 2)."""
    generator = torch.Generator().manual_seed(seed)
    return TOY.exact_proposal(scale, shift).sample_and_log_prob(X[None], n, generator)[0][:, 0]


def of_toy(start: Tensor | PosteriorSamples, seed: int = 1, budget: int = 10_000) -> IntegralResult:
    return evidence(
        start, TOY.log_likelihood, budget, seed=seed, prior=TOY.prior, x=X, config=config(), progress=False
    )


def pull(found: IntegralResult, truth: float) -> float:
    return (found.log_mean - truth) / found.log_sdev


def samples(theta: Tensor) -> PosteriorSamples:
    return PosteriorSamples(theta, torch.full((len(theta),), math.nan), X, TOY.prior)


# --- converges


def test_linear_gaussian_of_many_seeds_has_honest_errors() -> None:
    """Mean square of eight pulls: beyond 3.27 with a probability of 0.1 %."""
    pulls = []
    for seed in range(8):
        found = of_toy(exact_draws(seed=seed), seed, 5000)
        assert found.reliable
        assert found.log_sdev < 0.01
        pulls.append(pull(found, float(TOY.log_evidence(X))))
    assert np.mean(np.square(pulls)) < 3.27
    assert np.std(pulls) > 0.2  # nor are they exaggerated: 1e-4


def test_a_uniform_prior_that_cuts_the_posterior() -> None:
    subject, x = task("gaussian_mixture"), torch.tensor([9.7, -3.0], dtype=torch.float64)
    draws = subject.reference(x, 4000, 1)
    found = evidence(
        draws,
        subject.log_likelihood,
        10_000,
        seed=1,
        prior=subject.prior,
        x=x,
        config=config(),
        progress=False,
    )
    assert found.reliable
    assert abs(pull(found, subject.log_evidence(x)[0])) < LARGEST


def metropolis(n: int, seed: int) -> np.ndarray:
    """A Markov chain of the toy's posterior, with the repetitions of rejected steps, (n, 2)."""
    rng = np.random.default_rng(seed)
    exact = torch.distributions.MultivariateNormal(*TOY.posterior(X))
    step = 1.7 * np.linalg.cholesky(TOY.posterior(X)[1].numpy())
    place = exact.mean.numpy()
    chain, height = [], float(exact.log_prob(torch.from_numpy(place)))
    for _ in range(n):
        other = place + step @ rng.standard_normal(2)
        value = float(exact.log_prob(torch.from_numpy(other)))
        if math.log(rng.random()) < value - height:
            place, height = other, value
        chain.append(place)
    return np.stack(chain)


def test_a_markov_chain_will_do() -> None:
    chain = metropolis(3000, 2)
    assert len(np.unique(chain, axis=0)) < 2500
    found = evidence(
        chain,
        TOY.log_likelihood,
        10_000,
        seed=3,
        prior=TOY.prior,
        x=X.numpy(),
        config=config(),
        progress=False,
    )
    assert found.reliable
    assert found.diagnostics.efficiency > 0.5
    assert abs(pull(found, float(TOY.log_evidence(X)))) < LARGEST


def von_mises(theta: Tensor, x: Tensor) -> Tensor:
    """An angle of concentration 20, and a unit normal."""
    angle, place = torch.deg2rad(theta[:, 0] - x[0]), theta[:, 1] - x[1]
    log_norm = 20.0 + math.log(float(torch.special.i0e(torch.tensor(20.0, dtype=torch.float64))))
    of_angle = 20.0 * angle.cos() - math.log(360.0) - log_norm
    return of_angle - 0.5 * place**2 - 0.5 * math.log(2 * math.pi)


def test_a_periodic_parameter_across_its_edge() -> None:
    """p(x) = 1/360 per degree times N(x; 0, 1 + 1)."""
    prior = Prior(PeriodicUniform("azimuth", -180.0, 180.0, "deg"), Normal("place", 0.0, 1.0))
    x = torch.tensor([179.0, 0.7], dtype=torch.float64)
    rng = np.random.default_rng(1)
    angle = np.rad2deg(rng.vonmises(np.deg2rad(179.0), 20.0, 4000))
    draws = np.stack([angle, rng.normal(0.35, math.sqrt(0.5), 4000)], 1)
    assert 0.1 < (angle < 0).mean() < 0.9
    found = evidence(draws, von_mises, 10_000, seed=1, prior=prior, x=x, config=config(), progress=False)
    truth = -math.log(360.0) - 0.25 * 0.7**2 - 0.5 * math.log(4 * math.pi)
    assert found.reliable
    assert found.diagnostics.efficiency > 0.8  # nothing is lost at the edge, which is none
    assert abs(pull(found, truth)) < LARGEST


def test_a_narrower_prior_than_that_of_the_draws() -> None:
    """Of the posterior's mass within the new prior, Z' = Z · mass / prior's mass there."""
    mean, covariance = TOY.posterior(X)
    draws = exact_draws()
    within = (draws[:, 0] > float(mean[0])).double()
    narrower = Prior(
        TruncatedNormal("t0", 0.5, 1.0, float(mean[0]), math.inf, "m"), Normal("t1", -1.0, 2.0, "m")
    )
    found = evidence(
        samples(draws), TOY.log_likelihood, 10_000, seed=1, prior=narrower, config=config(), progress=False
    )
    above = 0.5 * math.erfc((float(mean[0]) - 0.5) / math.sqrt(2.0))
    truth = float(TOY.log_evidence(X)) + math.log(0.5) - math.log(above)
    assert 0.45 < float(within.mean()) < 0.55
    assert covariance[0, 0] > 0
    assert found.reliable
    assert abs(pull(found, truth)) < LARGEST


def test_an_evidence_that_is_no_double() -> None:
    def tiny(theta: Tensor, x: Tensor) -> Tensor:
        return TOY.log_likelihood(theta, x) - 5000.0

    found = evidence(samples(exact_draws()), tiny, 10_000, seed=1, config=config(), progress=False)
    assert found.mean == 0.0
    assert abs(pull(found, float(TOY.log_evidence(X)) - 5000.0)) < LARGEST


# --- a wrong start


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 5.0), (0.2, 0.0), (0.2, 3.0), (5.0, 0.0)])
def test_a_wrong_start_converges(scale: float, shift: float) -> None:
    for seed in range(3):
        found = of_toy(exact_draws(scale=scale, shift=shift), seed, 20_000)
        assert found.reliable
        assert found.log_sdev < 0.05
        assert abs(pull(found, float(TOY.log_evidence(X)))) < LARGEST


def test_a_chain_that_missed_a_mode_converges_or_warns() -> None:
    """The lost mode has 1 % of the prior: uniform exploration finds it, whatever the seed."""
    subject = TwoModes(
        LinearGaussian(noise_sd=0.1, prior=Prior(Normal("a", 0.0, 1.0), Normal("b", 0.0, 2.0)))
    )
    truth = torch.logaddexp(*(subject.linear.log_evidence(sign * X) for sign in (1, -1))) - math.log(2.0)
    generator = torch.Generator().manual_seed(1)
    one_mode = subject.linear.exact_proposal().sample_and_log_prob(X[None], 4000, generator)[0][:, 0]
    for seed in range(3):
        found = evidence(
            one_mode, subject.log_likelihood, 10_000, seed=seed, prior=subject.prior, x=X,
            progress=False,
        )  # fmt: skip
        assert found.iterations[0].phase == "explore"
        assert abs(pull(found, float(truth))) < LARGEST


# --- the start


def test_every_kind_of_prior_returns_from_the_cube() -> None:
    prior = Prior(
        Uniform("a", -1.0, 3.0), Normal("b", 2.0, 0.5), LogUniform("c", 1e-3, 1e3), Sine("d"),
        TruncatedNormal("e", 0.0, 1.0, -0.5, 2.0), PeriodicUniform("f", 0.0, 180.0),
    )  # fmt: skip
    theta = prior.sample(2000, torch.Generator().manual_seed(1))
    u = to_cube(prior, theta)
    assert bool(((u >= 0) & (u <= 1)).all())
    torch.testing.assert_close(prior.from_uniform(u.clamp(1e-300, 1 - 2**-53)), theta, rtol=1e-9, atol=1e-9)


def own_start(found: IntegralResult) -> Iteration:
    """The first points that come from the draws, after the look around."""
    return next(it for it in found.iterations if it.phase != "explore")


def test_weights_are_used_where_they_can_be_trusted() -> None:
    """Draws four times as wide as the posterior: reweighted, they are a start as good as exact ones."""
    theta, log_q = TOY.exact_proposal(4.0).sample_and_log_prob(X[None], 20_000, torch.Generator())
    wide = PosteriorSamples(theta[:, 0], log_q[:, 0], X, TOY.prior)
    weighted = wide.reweight(TOY.log_likelihood, progress=False)
    assert weighted.diagnostics.reliable
    found = of_toy(weighted)
    assert own_start(found).ess > 2 * own_start(of_toy(wide)).ess
    assert abs(pull(found, float(TOY.log_evidence(X)))) < LARGEST


def test_weights_of_a_few_draws_are_not_used() -> None:
    theta, log_q = TOY.exact_proposal(0.3, 3.0).sample_and_log_prob(X[None], 1000, torch.Generator())
    weighted = PosteriorSamples(theta[:, 0], log_q[:, 0], X, TOY.prior).reweight(
        TOY.log_likelihood, progress=False
    )
    assert not weighted.diagnostics.reliable
    plain = PosteriorSamples(theta[:, 0], log_q[:, 0], X, TOY.prior)
    assert of_toy(weighted, budget=3000).log_mean == of_toy(plain, budget=3000).log_mean


def test_the_budget_counts_every_likelihood_and_the_seed_decides() -> None:
    rows = []

    def counted(theta: Tensor, x: Tensor) -> Tensor:
        rows.append(len(theta))
        return TOY.log_likelihood(theta, x)

    start = samples(exact_draws())
    found = [evidence(start, counted, 3000, seed=s, config=config(), progress=False) for s in (4, 4, 5)]
    assert sum(rows) == sum(one.n_evals for one in found)
    assert all(one.n_evals <= 3000 for one in found)
    assert found[0].log_mean == found[1].log_mean != found[2].log_mean


def test_points_of_the_result_are_of_the_posterior() -> None:
    found = of_toy(exact_draws())
    theta = TOY.prior.from_uniform(found.unweight(4000, seed=1).x)
    mean, covariance = TOY.posterior(X)
    z = (theta.mean(0) - mean) / (covariance.diagonal() / 4000).sqrt()
    assert float(z.abs().max()) < LARGEST


def test_the_integrand_can_be_sent_to_a_process() -> None:
    target = CubeLikelihood(TOY.log_likelihood, TOY.prior, X)
    u = torch.tensor([[0.0, 1.0], [0.3, 0.6]], dtype=torch.float64)  # the faces count too
    values = pickle.loads(pickle.dumps(target))(u)
    assert bool(values.isfinite().all())
    assert float(values[1]) == float(TOY.log_likelihood(TOY.prior.from_uniform(u[1:]), X)[0])


def test_a_likelihood_that_fails_in_places_says_so() -> None:
    def broken(theta: Tensor, x: Tensor) -> Tensor:
        return torch.where(theta[:, 0] > 0.4, torch.nan, TOY.log_likelihood(theta, x))

    found = evidence(samples(exact_draws()), broken, 5000, seed=1, config=config(), progress=False)
    assert found.diagnostics.n_nan > 100
    assert not found.reliable
    assert "NaN" in found.verdict


FAR = Prior(Normal("t0", -30.0, 1.0, unit="m"), Normal("t1", -1.0, 2.0, unit="m"))


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        (exact_draws(), {"prior": None}, "prior, x: expected both"),
        (exact_draws(), {"x": None}, "prior, x: expected both"),
        (exact_draws()[:, :1], {}, "draws: expected shape"),
        (exact_draws(10), {}, "expected at least 20 points, got 10"),
        (exact_draws() * torch.nan, {}, "draws: expected finite values"),
        (exact_draws(), {"x": X * torch.inf}, "x: expected finite values"),
        (exact_draws(), {"prior": FAR}, "t0: expected draws within 7 sd of its prior, got 100% beyond"),
        (exact_draws(), {"rtol": -1.0}, "rtol"),
    ],
)
def test_what_is_refused(start: Tensor, options: dict, message: str) -> None:
    arguments = {"prior": TOY.prior, "x": X, "progress": False} | options
    with pytest.raises(ValueError, match=message):
        evidence(start, TOY.log_likelihood, 3000, seed=1, **arguments)


def test_draws_for_several_observations_are_refused() -> None:
    both = dataclasses.replace(samples(exact_draws()), theta=torch.zeros(50, 2, 2), log_q=torch.zeros(50, 2),
                               x=torch.zeros(2, 3))  # fmt: skip
    with pytest.raises(ValueError, match="draws: expected shape"):
        evidence(both, TOY.log_likelihood, 3000, seed=1)
