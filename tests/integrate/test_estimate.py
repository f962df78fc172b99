"""The final stage: unbiased, with honest errors, within the budget, and in any units."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sbiflow.integrate.domain import Domain
from sbiflow.integrate.estimate import Estimate, estimate
from sbiflow.integrate.integrand import Integrand
from sbiflow.integrate.proposal import Proposal
from sbiflow.integrate.run import Run, times_exp
from tests.integrate.small import config, cube

DIM = 2
BUMP = math.pi * 0.01  # integral of the bump, but for 1e-12 cut off


def bump(x: np.ndarray) -> np.ndarray:
    return np.exp(-(((x - 0.5) / 0.1) ** 2).sum(1))


def rough(x: np.ndarray) -> np.ndarray:
    """Integral 1/4 (1 + 1/3): no help from the net beyond its first axis."""
    return ((x[:, 0] * 8 % 1 < 0.5) & (x[:, 1] * 8 % 1 < 0.5)) + 1 / 12


def run_of(f, budget: int, seed: int = 1, proposal: Proposal | None = None, **options) -> Run:
    settings = config()
    domain = Domain.from_bounds(cube(DIM))
    integrand = Integrand(f, domain, budget, calls="numpy", **options)
    integrand.prepare()
    return Run(proposal or narrow(), integrand, settings, seed, torch.device("cpu"), False)


def narrow() -> Proposal:
    """A grid that is denser in the middle, but not as narrow as the bump."""
    proposal = Proposal(Domain.from_bounds(cube(DIM)), config())
    points = 0.5 + 0.2 * np.random.default_rng(1).normal(size=(4000, DIM))
    proposal.parts[0].grid.fit(torch.from_numpy(points.clip(0, 1)))
    return proposal


def estimated(run: Run, rtol: float = 0.0, atol: float = 0.0, variance: float = math.inf) -> Estimate:
    with run.progress() as bar:
        return estimate(run, bar, variance, rtol, atol)


def value(found: Estimate, component: int = 0) -> tuple[float, float]:
    """Mean and standard deviation."""
    scale = math.exp(found.log_unit)
    sdev = math.sqrt(float(found.covariance[component, component]))
    return float(found.net_means.mean(0)[component]) * scale, sdev * scale


# --- unbiased, honest


REPEATS = 150
# (sum of squared pulls) of t-distributed pulls: mean and spread over simulations with R nets each
PULLS = np.random.default_rng(1).standard_t(31, (4000, REPEATS))
LOW, HIGH = np.quantile((PULLS**2).mean(1), (5e-4, 1 - 5e-4))


@pytest.mark.parametrize("f, truth", ((bump, BUMP), (rough, 1 / 3)))
def test_pulls(f, truth):
    """Mean square of the pulls within the 0.1 % gate of Student's t; with half the error it is far outside."""
    proposal = narrow()
    pairs = [value(estimated(run_of(f, 2055, seed, proposal))) for seed in range(REPEATS)]
    pulls = np.array([(mean - truth) / sdev for mean, sdev in pairs])
    assert LOW < (pulls**2).mean() < HIGH
    assert not LOW < ((2 * pulls) ** 2).mean() < HIGH
    assert abs(pulls.mean()) < 4 * pulls.std() / math.sqrt(REPEATS)  # unbiased: 6e-5
    covered = int((np.abs(pulls) < 2).sum())
    assert stats.binom.cdf(covered, REPEATS, 0.945) > 1e-3


def test_nets_are_better_than_independent_points():
    """The error of a smooth integrand is a fraction of that of the weights, and it is not an underestimate."""
    found = estimated(run_of(bump, 16_392))
    mean, sdev = value(found)
    w = torch.cat(found.log_weights).exp()
    assert sdev < 0.3 * float(w.std()) / math.sqrt(len(w))
    assert abs(mean - BUMP) < 5 * sdev


def test_covariance_of_components():
    """Components x0, x1 and their sum: the covariance of the sum is the sum of covariances, exactly."""
    found = estimated(run_of(lambda x: np.stack([x[:, 0], x[:, 1], x.sum(1)], 1), 4000))
    c = found.covariance.numpy()
    assert c.shape == (3, 3)
    np.testing.assert_allclose(c[2], c[0] + c[1], rtol=1e-9, atol=1e-12 * c.max())
    np.testing.assert_allclose(c, np.cov(found.net_means.numpy().T) / len(found.net_means), rtol=1e-9)
    for component, truth in enumerate((0.5, 0.5, 1.0)):
        mean, sdev = value(found, component)
        assert abs(mean - truth) < 5 * sdev


# --- the budget


@pytest.mark.parametrize("budget", (100, 256, 1000, 1001, 4095, 4097, 33_333))
def test_budget(budget):
    run = run_of(bump, budget)
    left = run.integrand.remaining
    found = estimated(run)
    n, nets = sum(len(part) for part in found.log_weights), len(found.net_means)
    assert run.used <= budget and n > left * (1 - 1 / 32)
    assert n % nets == 0 and math.log2(n // nets).is_integer() and 32 <= nets <= 64
    assert sum(it.n for it in found.iterations) == n
    assert {it.phase for it in found.iterations} == {"final"}


@pytest.mark.parametrize("tolerance", ("rtol", "atol"))
def test_tolerance_ends_the_run_early(tolerance):
    unit = 1.0 if tolerance == "rtol" else BUMP
    used = []
    for limit in (0.05, 0.01, 1e-9):
        run = run_of(bump, 40_000)
        mean, sdev = value(estimated(run, **{tolerance: limit * unit}, variance=10.0))
        used.append(run.used)
        assert (sdev <= limit * unit * (mean if tolerance == "rtol" else 1.0)) == (limit > 1e-9)
    assert used[0] <= used[1] < used[2] and used[2] > 38_000
    assert tolerance == "atol" or used[0] < 8000


def test_without_a_tolerance_the_budget_is_spent():
    run = run_of(lambda x: np.ones(len(x)), 5000)
    estimated(run)
    assert run.used > 4800


def test_zeros_meet_no_relative_tolerance():
    """Nothing was hit yet: that is no reason to stop looking."""
    run = run_of(lambda x: np.where(x[:, 0] < 1e-3, 1.0, 0.0), 20_000)
    estimated(run, rtol=0.1)
    assert run.used > 10_000


# --- units


@pytest.mark.parametrize("offset", (0.0, -2000.0, 2000.0))
def test_any_scale_of_f(offset):
    found = estimated(run_of(lambda x: np.log(bump(x)) + offset, 4000, log=True))
    reference = estimated(run_of(bump, 4000))
    torch.testing.assert_close(
        found.net_means * math.exp(found.log_unit - offset - reference.log_unit),
        reference.net_means,
        rtol=1e-9,
        atol=0.0,
    )


@pytest.mark.parametrize("spread", (50.0, 5000.0))
def test_groups_of_very_different_weights(spread):
    """A log-likelihood so sharp that the groups differ by more than a double holds."""
    found = estimated(run_of(lambda x: -spread * (x[:, 0] + x[:, 1]) - 7.0, 1000, log=True))
    log_w = torch.cat(found.log_weights)
    want = float(log_w.logsumexp(0)) - math.log(len(log_w))
    assert math.log(float(found.net_means.mean())) + found.log_unit == pytest.approx(want, abs=1e-9)
    assert bool(torch.isfinite(found.net_means).all())


def test_nothing_but_zeros():
    found = estimated(run_of(lambda x: np.zeros(len(x)), 500))
    assert found.log_unit == 0.0 and float(found.net_means.abs().max()) == 0.0
    assert float(found.covariance) == 0.0


def test_times_exp():
    assert times_exp(0.0, 1e9) == 0.0 and times_exp(-2.0, 0.0) == -2.0
    assert times_exp(3.0, -2000.0) == 0.0 and times_exp(-3.0, 2000.0) == -math.inf
    assert times_exp(1e-300, 800.0) == pytest.approx(math.exp(800 + math.log(1e-300)))
