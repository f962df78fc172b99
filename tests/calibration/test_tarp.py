"""TARP: uniform for exact posteriors whatever the reference points, and it sees every fault.

False alarms 1e-4 or less for every test, fixed seeds.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sbiflow.calibration.ecdf import ecdf
from sbiflow.calibration.regression import forward_error, forward_prediction, regression_targets
from sbiflow.calibration.tarp import area_to_curve, random_linear, reference_offsets, tarp_ranks, tarp_test
from sbiflow.pairs import draw_pairs
from sbiflow.priors import Normal, PeriodicUniform, Prior, Uniform
from sbiflow.seeding import torch_generator
from tests.toys import LinearGaussian, TwoModes, normal_prior

ALPHA = 1e-4
TOY, MODES = LinearGaussian(), TwoModes()
ONE = LinearGaussian(matrix=((1.0,), (0.5,)), prior=normal_prior((0.5,), (1.0,)))


def masses(toy: object, proposal: object, seed: int, n: int = 1000, draws: int = 150) -> np.ndarray:
    theta, x, _ = draw_pairs(toy, n, seed=seed)
    generator = torch_generator(seed, 5)
    drawn, _ = proposal.sample_and_log_prob(x, draws, generator)
    return tarp_ranks(theta, x, drawn, toy.prior, generator).numpy()


@pytest.mark.parametrize("toy", [TOY, MODES, ONE], ids=["2-D", "two modes", "1-D"])
def test_exact_posterior_gives_uniform_independent_masses(toy: object) -> None:
    f = np.concatenate([masses(toy, toy.exact_proposal(), seed, n=500) for seed in range(10)])
    assert tarp_test(f).passed(ALPHA)
    assert abs(area_to_curve(f)) < 0.01
    neighbours = stats.pearsonr(f[1:], f[:-1])
    assert neighbours.pvalue > ALPHA


def test_level_is_kept() -> None:
    """40 exact posteriors at alpha = 0.25: more than 22 rejections have probability 2e-5."""
    p = [tarp_test(masses(TOY, TOY.exact_proposal(), seed, 100, 100)).p_value for seed in range(40)]
    assert sum(value <= 0.25 for value in p) <= 22
    assert stats.kstest(p, "uniform").pvalue > ALPHA  # p-values of a continuous statistic are uniform


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("toy", "proposal", "word"),
    [
        (TOY, TOY.exact_proposal(0.8), "too narrow"),
        (TOY, TOY.exact_proposal(1.25), "nearer to the reference"),
        (TOY, TOY.exact_proposal(1.0, 0.3), "shifted"),
        (TOY, TOY.exact_proposal(1.0, -0.3), "shifted"),
        (TOY, TOY.prior_proposal(), "blind to x"),
        (ONE, ONE.prior_proposal(), "blind to x"),
        (MODES, MODES.exact_proposal(0.7), "wrong weights of modes"),
        (MODES, MODES.exact_proposal(0.3), "wrong weights of modes"),
    ],
    ids=["narrow", "wide", "high", "low", "prior", "prior 1-D", "mode 0.7", "mode 0.3"],
)
def test_faults_are_seen(toy: object, proposal: object, word: str, seed: int) -> None:
    test = tarp_test(masses(toy, proposal, seed))
    assert not test.passed(ALPHA)
    assert word in test.reading


def test_reference_points_that_ignore_x_would_pass_the_prior() -> None:
    """Why they must not: the same ranks with x replaced by noise."""
    theta, _, _ = draw_pairs(TOY, 1000, seed=4)
    generator = torch_generator(4, 5)
    noise = torch.randn((1000, 3), generator=generator, dtype=torch.float64)
    drawn = TOY.prior.sample(100 * 1000, generator).reshape(100, 1000, 2)
    assert tarp_test(tarp_ranks(theta, noise, drawn, TOY.prior, generator).numpy()).passed(ALPHA)


def test_a_reference_point_never_sees_its_own_truth_or_later_ones() -> None:
    rng = np.random.default_rng(1)
    residual, features = rng.standard_normal((200, 2)), rng.standard_normal((200, 3))
    before = reference_offsets(residual, features, 2, torch_generator(1, 1))
    for row in (0, 60, 150, 199):
        changed = residual.copy()
        changed[row:] += 5.0
        after = reference_offsets(changed, features, 2, torch_generator(1, 1))
        np.testing.assert_array_equal(after[: row + 1], before[: row + 1])
    changed = residual.copy()
    changed[:90] += 5.0
    assert (
        np.abs(reference_offsets(changed, features, 2, torch_generator(1, 1))[100:] - before[100:]).min()
        > 0.1
    )


def test_periodic_parameters_are_points_on_the_circle() -> None:
    """A posterior across the cut: turning the circle changes nothing; a shift and a wrong width are seen."""
    prior = Prior(PeriodicUniform("azimuth", 0.0, math.pi), Uniform("b", -1.0, 1.0))
    generator = torch_generator(7, 1)

    def draw(centre: Tensor, n: int, width: float, shift: float) -> Tensor:
        noise = torch.randn((n, len(centre)), generator=generator, dtype=torch.float64)
        azimuth = torch.remainder(centre + shift + width * noise, math.pi)
        b = 2 * torch.rand((n, len(centre)), generator=generator, dtype=torch.float64) - 1
        return torch.stack([azimuth, b], -1)

    centre = math.pi * torch.rand(1000, generator=generator, dtype=torch.float64)
    theta = draw(centre, 1, 0.1, 0.0)[0]
    x = torch.stack([(2 * centre).cos(), (2 * centre).sin()], -1)
    results = {
        (width, shift): tarp_test(
            tarp_ranks(theta, x, draw(centre, 150, width, shift), prior, generator).numpy()
        ).passed(ALPHA)
        for width, shift in [(0.1, 0.0), (0.06, 0.0), (0.17, 0.0), (0.1, 0.06)]
    }
    assert list(results.values()) == [True, False, False, False]


@pytest.mark.parametrize("same", [True, False])
def test_draws_that_all_agree(same: bool) -> None:
    """Ties of everything are an exact posterior if the truth is tied too, and the worst one if it is not."""
    prior = Prior(Normal("a", 0.0, 1.0))
    theta = torch.zeros(300, 1, dtype=torch.float64) if same else prior.sample(300, torch_generator(1, 2))
    f = tarp_ranks(
        theta, torch.ones(300, 1), torch.zeros(99, 300, 1).double(), prior, torch_generator(1, 3)
    ).numpy()
    assert np.isfinite(f).all()
    assert tarp_test(f).passed(ALPHA) == same


def test_extreme_features_and_one_row() -> None:
    theta, x, _ = draw_pairs(TOY, 60, seed=1)
    drawn, _ = TOY.exact_proposal().sample_and_log_prob(x, 30, torch_generator(1, 4))
    wild = torch.cat([x * 1e100, torch.full((60, 1), 4.2), x * 1e-100], 1)
    f = tarp_ranks(theta, wild, drawn, TOY.prior, torch_generator(1, 5))
    assert bool(((f > 0) & (f < 1)).all())
    assert tarp_ranks(theta[:1], x[:1], drawn[:, :1], TOY.prior, torch_generator(1, 6)).shape == (1,)


def test_wrong_shapes_get_one_clear_line() -> None:
    theta = torch.zeros(5, 2).double()
    with pytest.raises(ValueError, match="at least 9"):
        tarp_ranks(theta, theta, torch.zeros(8, 5, 2), TOY.prior)
    with pytest.raises(ValueError, match="draws: expected shape"):
        tarp_ranks(theta, theta, torch.zeros(20, 4, 2), TOY.prior)
    with pytest.raises(ValueError, match="theta_star"):
        tarp_ranks(theta[:, :1], theta, torch.zeros(20, 5, 1), TOY.prior)


def test_area_to_curve_of_known_curves() -> None:
    u = (np.arange(1000) + 0.5) / 1000
    assert area_to_curve(u) == pytest.approx(0.0, abs=1e-3)
    assert area_to_curve(np.zeros(10)) == pytest.approx(1 / 8)
    assert area_to_curve(u**2) == pytest.approx((2 / 3) * (1 - 0.5**1.5) - 3 / 8, abs=1e-3)  # ECP = sqrt(z)
    assert area_to_curve(np.sqrt(u)) < 0


def test_two_sample_test_of_the_curve_against_its_grid_is_no_p_value() -> None:
    """Uniform masses: a p-value below 1/2 has probability 1/2, yet that of sbi's `check_tarp` never is."""
    grid = np.linspace(0, 1, 50)
    rng = np.random.default_rng(6)
    samples = rng.uniform(size=(30, 1000))
    assert min(stats.ks_2samp(ecdf(f, grid), grid).pvalue for f in samples) > 0.9
    assert min(tarp_test(f).p_value for f in samples) < 0.5


def test_forward_prediction_learns_and_its_error_shrinks() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((400, 2))
    targets = np.stack([x @ [1.0, -0.5], np.zeros(400)], -1)[:, None]  # one parameter, (N, 1, 2)
    predicted = forward_prediction(x, targets.reshape(400, 2)).reshape(targets.shape)
    np.testing.assert_array_equal(predicted[:12], 0.0)
    np.testing.assert_allclose(predicted[100:], targets[100:], atol=1e-3)
    error = forward_error(targets, predicted)
    assert error[0] == 1.0
    assert error[-1] < 0.2 * error[12]
    assert error.min() > 0


def test_prior_has_unit_variance_in_the_coordinates() -> None:
    prior = Prior(Uniform("a", 3.0, 9.0), PeriodicUniform("b", 0.0, 2.0))
    y = regression_targets(prior.sample(20_000, torch_generator(1, 8)), prior)
    np.testing.assert_allclose((y**2).sum(-1).mean(0), 1.0, atol=0.04)  # 4 standard errors


def test_random_linear_has_unit_variance() -> None:
    rng = np.random.default_rng(5)
    features = rng.standard_normal((2000, 50)) * 10.0 ** rng.uniform(-5, 5, 50)
    features[:, 3] = 1.0
    values = random_linear(features, 40, torch_generator(1, 9))
    assert values.mean(0) == pytest.approx(np.zeros(40), abs=1e-9)
    assert values.var() == pytest.approx(49 / 50, abs=0.15)
