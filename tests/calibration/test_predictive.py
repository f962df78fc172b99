"""The posterior-predictive check: silent on the simulator's own data, loud on anything else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from sbiflow.calibration import PredictiveCheck, predictive_check
from sbiflow.priors import Normal, Prior
from sbiflow.simulate import simulator_from_function
from tests.toys import LinearGaussian

TOY = LinearGaussian(matrix=tuple((math.cos(i), math.sin(i)) for i in range(20)))


class WithoutLikelihood:
    prior, x_shape = TOY.prior, TOY.x_shape

    def signal(self, theta: Tensor) -> Tensor:
        return TOY.signal(theta)

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        return TOY.observe(signal, generator)


def check(simulator: object, x: Tensor, seed: int = 1) -> PredictiveCheck:
    theta, _ = TOY.exact_proposal().sample_and_log_prob(x[None], 2000, torch.Generator().manual_seed(seed))
    return predictive_check(theta[:, 0], None, simulator, x, seed)


def observations(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return TOY.observe(TOY.signal(TOY.prior.sample(n, generator)), generator)


@pytest.mark.parametrize("simulator", [TOY, WithoutLikelihood()], ids=["likelihood", "distance"])
def test_own_data_lie_inside(simulator: object) -> None:
    """100 observations at 1 %: more than 5 alarms have a probability of 5e-4."""
    alarms = [not check(simulator, x).inside for x in observations(100)]
    assert sum(alarms) <= 5


@pytest.mark.parametrize("simulator", [TOY, WithoutLikelihood()], ids=["likelihood", "distance"])
def test_an_outlier_and_excess_noise_lie_outside(simulator: object) -> None:
    x = observations(1)[0]
    outlier = x.clone()
    outlier[7] += 8 * TOY.noise_sd
    found = check(simulator, outlier)
    assert not found.inside
    assert found.worst_feature == (7,)
    assert found.worst_z > 5
    assert "OUTSIDE" in found.verdict
    noisy = TOY.signal(TOY.prior.sample(1, torch.Generator().manual_seed(3)))[0]
    noisy = noisy + 2.5 * TOY.noise_sd * torch.randn(20, generator=torch.Generator().manual_seed(4))
    assert check(simulator, noisy).excess > 5
    assert not check(simulator, noisy).inside


def test_data_without_noise_are_told_of() -> None:
    found = check(TOY, TOY.signal(torch.tensor([[0.3, -1.0]], dtype=torch.float64))[0])
    assert found.inside
    assert "too high" in found.verdict


def test_weights_choose_the_draws() -> None:
    """Prior draws with importance weights judge as posterior draws do; all weight on a bad draw does not."""
    x = observations(1)[0]
    theta = TOY.prior.sample(20_000, torch.Generator().manual_seed(6))
    weights = (TOY.log_likelihood(theta, x) - TOY.log_evidence(x)).exp()
    weighted = predictive_check(theta, weights, TOY, x, 1)
    assert weighted.p_value == pytest.approx(check(TOY, x).p_value, abs=0.1)
    only = torch.zeros(len(theta))
    only[int((theta - theta.mean(0)).norm(dim=1).argmax())] = 1.0
    assert not predictive_check(theta, only, TOY, x, 1).inside


def test_p_value_is_that_of_chi_square_when_the_parameters_are_known() -> None:
    """One value of theta: D(x_rep) is chi-square with 20 degrees of freedom, and so is its p-value; 5 errors."""
    theta = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    x = TOY.signal(theta)[0] + TOY.noise_sd * torch.full((20,), 1.1)
    found = predictive_check(theta, None, TOY, x, 2, n=4000)
    exact = float(torch.special.gammaincc(torch.tensor(10.0), torch.tensor(20 * 1.1**2 / 2)))
    assert abs(found.p_value - exact) < 5 * math.sqrt(exact * (1 - exact) / 4000)


def test_row_simulator() -> None:
    prior = Prior(Normal("m", 0.0, 1.0))
    rows = simulator_from_function(_row, prior, x_shape=(3,))
    theta = 0.1 * torch.randn(200, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert predictive_check(theta, None, rows, torch.tensor([0.1, -0.2, 0.05]), 1, n=200).inside
    assert not predictive_check(theta, None, rows, torch.tensor([9.0, -0.2, 0.05]), 1, n=200).inside


def _row(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return theta[0] + rng.standard_normal(3)


def test_bad_input_gets_one_clear_line() -> None:
    x, theta = torch.zeros(20), torch.zeros(50, 2)
    with pytest.raises(ValueError, match="x: expected shape"):
        predictive_check(theta, None, TOY, torch.zeros(3), 1)
    with pytest.raises(ValueError, match="finite"):
        predictive_check(theta, None, TOY, torch.full((20,), math.nan), 1)
    with pytest.raises(ValueError, match="weights"):
        predictive_check(theta, torch.zeros(50), TOY, x, 1)
    with pytest.raises(ValueError, match="theta"):
        predictive_check(torch.zeros(50, 3), None, TOY, x, 1)


def test_an_impossible_observation_has_the_smallest_p_value_and_a_short_verdict() -> None:
    """(1 + k) / (1 + n): never zero, which no number of replicas could show."""
    found = check(WithoutLikelihood(), observations(1)[0] + 1e9)
    assert found.p_value == 1 / 2001
    assert len(found.verdict) < 400


class WithConstant(WithoutLikelihood):
    """A feature that is 0.1 in every simulation."""

    x_shape = (21,)

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        x = TOY.observe(signal, generator)
        return torch.cat([x, torch.full((len(x), 1), 0.1, dtype=x.dtype)], -1)


def test_rounding_of_a_constant_feature_is_no_misfit_and_a_deviation_is() -> None:
    x = torch.cat([observations(1)[0], torch.tensor([0.1])]).float().double()  # 0.1 as float32 has it
    theta, _ = TOY.exact_proposal().sample_and_log_prob(x[None, :-1], 500, torch.Generator().manual_seed(1))
    assert predictive_check(theta[:, 0], None, WithConstant(), x, 1, n=500).inside
    x[-1] = 0.11
    found = predictive_check(theta[:, 0], None, WithConstant(), x, 1, n=500)
    assert not found.inside and found.worst_feature == (20,)


class Undefined(WithoutLikelihood):
    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        return torch.full((len(theta),), math.nan)


def test_a_likelihood_that_is_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="log_likelihood: expected numbers, got NaN"):
        predictive_check(torch.zeros(5, 2), None, Undefined(), torch.zeros(20), 1)
