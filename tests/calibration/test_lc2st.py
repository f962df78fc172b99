"""Local C2ST: the exact posterior passes everywhere, a fault is found, and found only where it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Generator, Tensor

from sbiflow.calibration.lc2st import local_c2st
from sbiflow.calibration.whitening import whiten, whitening
from sbiflow.priors import Normal, PeriodicUniform, Prior
from tests.toys import GaussianProposal, LinearGaussian

TOY = LinearGaussian()
X = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
SMALL = {"n": 2000, "n_null": 199, "n_eval": 500, "n_features": 200}


def observations(n: int, seed: int) -> Tensor:
    generator = Generator().manual_seed(seed)
    return TOY.observe(TOY.signal(TOY.prior.sample(n, generator)), generator)


def test_p_values_of_the_exact_posterior_are_uniform() -> None:
    """25 observations and seeds; Kolmogorov-Smirnov, false alarm 1e-3."""
    exact = TOY.exact_proposal()
    p = [local_c2st(exact, TOY, x, seed=i, **SMALL).p_value for i, x in enumerate(observations(25, 1))]
    assert stats.kstest(p, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("scale", "shift"),
    [(0.7, 0.0), (1.4, 0.0), (1.0, 0.4), (1.0, -0.4)],
    ids=["narrow", "wide", "high", "low"],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_wrong_posteriors_are_found(scale: float, shift: float, seed: int) -> None:
    result = local_c2st(TOY.exact_proposal(scale, shift), TOY, X, seed=seed, **SMALL)
    assert result.p_value == 1 / 200
    assert result.statistic > result.null.max()
    assert not result.passed(0.05)
    assert "wrong at this observation" in result.reading


def test_the_prior_as_posterior_is_found() -> None:
    assert local_c2st(TOY.prior_proposal(), TOY, X, seed=1, **SMALL).p_value == 1 / 200


@dataclass(frozen=True)
class WrongOnOneSide(GaussianProposal):
    """The exact posterior where x_0 < 0; shifted by one of its sd elsewhere."""

    def sample_and_log_prob(
        self, x: Tensor, n: int, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        theta, log_q = self.simulator.exact_proposal().sample_and_log_prob(x, n, generator)
        sd = self.distribution(x).covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
        return theta + sd * (x[:, :1] > 0), log_q


def test_a_fault_is_found_where_it_is_and_not_elsewhere() -> None:
    """On average over x this posterior is wrong, and no global test says where. Six seeds on the good side: median
    p below 0.05 has a probability of 2e-3."""
    wrong = WrongOnOneSide(TOY)
    good, bad = torch.tensor([[-2.5, -1.0, 0.0], [2.0, -1.0, 0.0]], dtype=torch.float64)
    on_good = [local_c2st(wrong, TOY, good, seed=s, **SMALL) for s in range(6)]
    on_bad = [local_c2st(wrong, TOY, bad, seed=s, **SMALL) for s in range(3)]
    assert max(r.p_value for r in on_bad) == 1 / 200
    assert np.median([r.p_value for r in on_good]) > 0.05
    assert max(r.statistic for r in on_good) < 0.2 * min(r.statistic for r in on_bad)


def test_one_parameter_and_a_constant_feature() -> None:
    prior = Prior(Normal("t0", 0.5, 1.0))
    toy = LinearGaussian(matrix=((1.0,), (0.0,), (2.0,)), prior=prior)

    class WithConstant:
        """A fourth feature that is always 7."""

        prior, x_shape = toy.prior, (4,)

        def signal(self, theta: Tensor) -> Tensor:
            return torch.cat([toy.signal(theta), 7 * torch.ones(len(theta), 1)], 1)

        def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
            return torch.cat([toy.observe(signal[:, :3], generator), signal[:, 3:]], 1)

    @dataclass(frozen=True)
    class Blind(GaussianProposal):
        def sample_and_log_prob(
            self, x: Tensor, n: int, generator: Generator | None = None
        ) -> tuple[Tensor, Tensor]:
            return super().sample_and_log_prob(x[:, :3], n, generator)

    x = torch.tensor([0.3, 0.1, 0.7, 7.0])
    assert local_c2st(Blind(toy), WithConstant(), x, seed=1, **SMALL).p_value > 1e-2
    assert local_c2st(Blind(toy, 1.0, 0.5), WithConstant(), x, seed=1, **SMALL).p_value == 1 / 200
    only = local_c2st(Blind(toy), WithConstant(), x, seed=1, embed=lambda v: v[:, 2:3], **SMALL)
    assert only.p_value > 1e-2


def test_an_observation_far_from_all_simulations_is_told_of() -> None:
    result = local_c2st(TOY.exact_proposal(), TOY, 40 * X, seed=1, **SMALL)
    assert result.neighbours < 1
    assert "the test is weak" in result.reading or not result.passed(0.05)
    near = local_c2st(TOY.exact_proposal(), TOY, X, seed=1, **SMALL)
    assert near.neighbours > 100
    assert "weak" not in near.reading


def test_same_seed_same_result_and_simulations_are_counted() -> None:
    first, second = (local_c2st(TOY.exact_proposal(), TOY, X, seed=3, **SMALL) for _ in range(2))
    assert first.statistic == second.statistic
    assert np.array_equal(first.null, second.null)
    assert (first.n_simulations, first.n_failed, len(first.null)) == (2000, 0, 199)
    assert first.p_value == (1 + (first.null >= first.statistic).sum()) / 200


def test_whitening_across_the_cut_of_a_circle() -> None:
    """A narrow phase about pi and a correlated pair become uncorrelated with unit variance."""
    prior = Prior(PeriodicUniform("azimuth", 0.0, math.pi), Normal("t0", 0.0, 1.0))
    raw = torch.randn(5000, 1, 2, generator=Generator().manual_seed(1), dtype=torch.float64)
    z = torch.stack([0.2 * raw[..., 0] + math.pi, raw[..., 0] + 0.1 * raw[..., 1]], -1)
    z[..., 0] = torch.remainder(z[..., 0] + math.pi, 2 * math.pi) - math.pi
    u = whiten(z, *whitening(z, prior), prior)[:, 0]
    torch.testing.assert_close(torch.cov(u.T), torch.eye(2).double(), atol=0.02, rtol=0)


def test_draws_that_are_all_equal_do_not_break_it() -> None:
    z = torch.ones(50, 3, 2, dtype=torch.float64)
    assert torch.isfinite(whiten(z, *whitening(z, TOY.prior), TOY.prior)).all()


def test_bad_input_gets_one_clear_line() -> None:
    def call(proposal: object = TOY.exact_proposal(), x: Tensor = X, **options: object) -> None:
        local_c2st(proposal, TOY, x, **{"seed": 1, **SMALL, **options})

    other = LinearGaussian(prior=Prior(Normal("t0", 0.5, 1.0), Normal("t1", -1.0, 2.5)))
    with pytest.raises(ValueError, match="x_observed: expected shape"):
        call(x=X[:2])
    with pytest.raises(ValueError, match="x_observed: expected finite"):
        call(x=X * math.nan)
    with pytest.raises(ValueError, match="the simulator's prior"):
        call(other.exact_proposal())
    with pytest.raises(ValueError, match="n_features"):
        call(n_features=1000)
    with pytest.raises(ValueError, match="n_null"):
        call(n_null=3)
