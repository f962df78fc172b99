"""Draws of roughly |f|, a posterior or a chain, as a start: the evidence of a posterior at little cost."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sbiflow.integrate import Integrator
from tests.integrate.small import config

DIM = 5
BOUNDS = [(-10.0, 10.0)] * DIM
CENTRE = np.array([1.0, -2.0, 0.5, 3.0, 0.0])
SCALE = np.array([0.1, 0.5, 1.0, 0.2, 0.05])
CORRELATION = 0.8 + 0.2 * np.eye(DIM)
COVARIANCE = CORRELATION * np.outer(SCALE, SCALE)
INVERSE = np.linalg.inv(COVARIANCE)
OFFSET = -1500.0  # exp of it is no double
TRUTH = OFFSET + 0.5 * np.linalg.slogdet(2 * math.pi * COVARIANCE)[1]
SETTINGS = config(rows=60_000)


def log_likelihood(x: np.ndarray) -> np.ndarray:
    d = x - CENTRE
    return OFFSET - 0.5 * np.einsum("ni,ij,nj->n", d, INVERSE, d)


def draws(n: int = 3000, seed: int = 1, stretch: float = 1.0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    points = CENTRE + shift * SCALE + stretch * rng.multivariate_normal(np.zeros(DIM), COVARIANCE, n)
    return np.clip(points, -9.99, 9.99)  # three times too wide, one in 3,000 would lie outside the bounds


def evidence(start, budget=5000, seed=1, settings=SETTINGS, f=log_likelihood, **options):
    integrator = Integrator(BOUNDS, config=settings)
    return integrator(f, budget, seed=seed, log=True, start=start, progress=False, **options)


def pull(result) -> float:
    return (result.log_mean - TRUTH) / result.log_sdev


@pytest.mark.parametrize("seed", range(3))
def test_evidence_of_a_posterior(seed):
    result = evidence(draws(seed=seed), seed=seed)
    assert result.reliable and abs(pull(result)) < 5 and result.log_sdev < 0.02
    assert result.mean == 0.0 and result.method == "flow"
    assert {it.phase for it in result.iterations} == {"explore", "flow", "final"}
    assert result.n_evals <= 5000 and result.diagnostics.efficiency > 0.5


def test_the_start_saves_what_finding_the_peak_costs():
    """The posterior fills 1e-7 of the prior: uniform points do not see it, the first draws of the flow do."""
    result = evidence(draws())
    looked, first, *_ = result.iterations
    assert looked.phase == "explore" and looked.n <= 500 and looked.ess < 0.01
    assert first.phase == "flow" and first.ess > 0.2


def test_a_markov_chain_repeats_its_points():
    """Random-walk Metropolis of 4,000 steps, with the 30 % or so of moves that it accepts."""
    rng, chain, x = np.random.default_rng(3), [], CENTRE.copy()
    step = np.linalg.cholesky(COVARIANCE) * 0.8
    log_p = float(log_likelihood(x[None])[0])
    for _ in range(4000):
        proposed = x + step @ rng.normal(size=DIM)
        log_new = float(log_likelihood(proposed[None])[0])
        if math.log(rng.uniform()) < log_new - log_p:
            x, log_p = proposed, log_new
        chain.append(x)
    assert 0.1 < len({tuple(point) for point in chain}) / 4000 < 0.7
    result = evidence(np.array(chain))
    assert result.reliable and abs(pull(result)) < 5 and result.log_sdev < 0.03


@pytest.mark.parametrize("stretch, shift", ((0.5, 0.0), (3.0, 0.0), (1.0, 3.0)))
def test_a_wrong_start_converges_or_warns(stretch, shift):
    result = evidence(draws(stretch=stretch, shift=shift))
    assert not result.reliable or abs(pull(result)) < 5


@pytest.mark.parametrize("m", (50, 200))
def test_few_draws(m):
    result = evidence(draws(m))
    assert not result.reliable or abs(pull(result)) < 5


def test_start_on_a_face_of_the_region():
    """A posterior that piles up at the edge of the prior."""
    start = np.abs(np.random.default_rng(1).normal(size=(2000, 2))) * 0.1
    start[:20] = 0.0
    integrator = Integrator([(0.0, 1.0)] * 2, config=SETTINGS)
    result = integrator(
        lambda x: -0.5 * ((x / 0.1) ** 2).sum(1), 4000, seed=1, log=True, start=start, progress=False
    )
    assert result.reliable and abs(result.log_mean - math.log(math.pi / 2 * 0.01)) < 5 * result.log_sdev


def test_periodic_start():
    """Draws around the end of a phase, some on either side; von Mises has the evidence 2 pi I0 e^-kappa."""
    kappa = 20.0
    start = np.random.default_rng(1).vonmises(math.pi, kappa, (2000, 1))
    integrator = Integrator([(-math.pi, math.pi)], periodic=(0,), config=SETTINGS)
    result = integrator(
        lambda x: kappa * (np.cos(x[:, 0] - math.pi) - 1), 3000, seed=1, log=True, start=start, progress=False
    )
    truth = math.log(2 * math.pi * np.i0(kappa)) - kappa
    assert result.reliable and abs(result.log_mean - truth) < 5 * result.log_sdev


def test_a_start_for_an_integrator_that_has_run():
    integrator = Integrator(BOUNDS, config=SETTINGS)
    integrator(lambda x: -0.01 * (x**2).sum(1), 1000, seed=1, log=True, progress=False)
    result = integrator(log_likelihood, 5000, seed=2, log=True, start=draws(), progress=False)
    assert not result.reliable or abs(pull(result)) < 5
    assert result.reliable


def test_the_grid_alone_makes_no_use_of_a_start():
    settings = config(method="grid")
    with_start, without = (evidence(start, settings=settings) for start in (draws(), None))
    assert with_start.log_mean == without.log_mean and with_start.method == "grid"
