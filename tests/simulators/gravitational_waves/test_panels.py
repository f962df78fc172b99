"""Panels of Gauss-Legendre nodes and piecewise linear densities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from simulators.gravitational_waves.curve import Curve, linear_draw
from simulators.gravitational_waves.panels import ORDER, Panels
from simulators.gravitational_waves.phase import PhaseHistogram


def log_normal(x: Tensor, mean: float = 0.0) -> Tensor:
    return -0.5 * (x - mean).square()


def uniform(n: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(n))


def test_panels_three_sigma_wide_integrate_a_normal_to_1e_6() -> None:
    panels = Panels.spanning(-9.1, 8.7, 3.0)
    total = (log_normal(panels.nodes).exp() * panels.weights).sum()
    assert panels.width <= 3.0
    assert float(total) == pytest.approx((2 * np.pi) ** 0.5, rel=1e-6)


def test_curve_is_the_normal_where_it_is_cut() -> None:
    """A truncated density: the panels end where it does not vanish."""
    panels = Panels.spanning(-0.5, 6.0, 3.0)
    curve, want = panels.curve(log_normal(panels.nodes)), stats.truncnorm(-0.5, 6.0)
    x = np.linspace(-1, 7, 997)
    assert np.abs(curve.cdf(x) - want.cdf(x)).max() < 2e-4
    p = np.linspace(0, 1, 101)
    assert np.abs(curve.quantile(p)[:-1] - want.ppf(p)[:-1]).max() < 1e-3
    assert curve.cdf(np.array([-0.5, 6.0, 9.0])).tolist() == [0.0, 1.0, 1.0]


def test_curve_with_a_gap_holds_both_modes() -> None:
    everything = Panels.spanning(-30.0, 30.0, 2.0)
    value = torch.logaddexp(log_normal(everything.nodes, -20.0), log_normal(everything.nodes, 20.0))
    panels = everything.kept(value, 30.0)
    assert len(panels.left) == 16  # 30 nats are 7.7 standard deviations
    value = torch.logaddexp(log_normal(panels.nodes, -20.0), log_normal(panels.nodes, 20.0))
    curve = panels.curve(value)
    assert float(curve.cdf(np.array([0.0]))[0]) == pytest.approx(0.5, abs=1e-6)
    assert float(curve.pdf(np.array([20.0]))[0]) == pytest.approx(0.5 / (2 * np.pi) ** 0.5, rel=1e-3)
    draws = panels.draw(value.expand(20_000, *value.shape), uniform(20_000)).numpy()
    assert stats.kstest(draws, curve.cdf).pvalue > 1e-4


def test_split_panels_tile_their_parents() -> None:
    panels = Panels(torch.tensor([0.0, 4.0], dtype=torch.float64), 2.0)
    assert panels.split(4).left.tolist() == [0.0, 0.5, 1.0, 1.5, 4.0, 4.5, 5.0, 5.5]
    assert panels.split(4).weights.sum() == pytest.approx(4.0)


def test_draws_of_every_row_follow_its_own_density() -> None:
    panels = Panels.spanning(-8.0, 12.0, 2.5)
    means = torch.tensor([0.0, 4.0], dtype=torch.float64).repeat(20_000)
    draws = panels.draw(log_normal(panels.nodes, means[:, None, None]) - 900.0, uniform(40_000)).numpy()
    for i, mean in enumerate((0.0, 4.0)):
        assert stats.kstest(draws[i::2], stats.norm(mean).cdf).pvalue > 1e-4  # false-alarm rate


def test_draws_reach_both_ends() -> None:
    panels = Panels.spanning(2.0, 5.0, 1.0)
    ends = panels.draw(
        torch.zeros(2, 3, ORDER, dtype=torch.float64), torch.tensor([0.0, 1.0 - 1e-16]).double()
    )
    assert ends.tolist() == pytest.approx([2.0, 5.0])


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.0, 2.0), (3.0, 0.0), (1.0, 1.0 + 1e-12)])
def test_linear_draws_invert_the_cdf(a: float, b: float) -> None:
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    x = linear_draw(torch.full_like(u, a), torch.full_like(u, b), u)
    assert torch.allclose((a * x + (b - a) * x**2 / 2) / ((a + b) / 2), u, atol=1e-12)


def test_jsd_of_two_normals_equals_its_integral() -> None:
    x = np.linspace(-9, 9.5, 4001)
    p, q = stats.norm.pdf(x), stats.norm.pdf(x, 0.5)
    m = (p + q) / 2
    want = np.trapezoid(p * np.log(p / m) + q * np.log(q / m), x) / 2
    one, other = Curve.normalised(x, p), Curve.normalised(x[::3], q[::3])
    assert one.jsd(other) == pytest.approx(want, rel=1e-4)
    assert one.jsd(one) == 0.0
    far = Curve.normalised(x + 100, p)
    assert one.jsd(far) == pytest.approx(np.log(2), rel=1e-6)


def test_quantiles_refuse_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match="expected probabilities"):
        Curve.normalised(np.array([0.0, 1.0]), np.ones(2)).quantile(np.array([1.2]))


@pytest.mark.parametrize("kappa", [0.0, 0.3, 7.0, 900.0])
def test_phase_is_a_mixture_of_von_mises_densities(kappa: float) -> None:
    """Nodes over 0.1 rad: one alone is off by half a cell at most, which averages out over a few."""
    angles = torch.linspace(1.95, 2.05, 51, dtype=torch.float64)
    histogram = PhaseHistogram.empty()
    histogram.add(torch.ones(51, 1).double(), angles, torch.full((51, 1), kappa).double())
    curve = histogram.curve()
    parts = [
        stats.vonmises.pdf(2 * curve.grid, kappa, loc=a) if kappa else np.ones_like(curve.grid)
        for a in angles.tolist()
    ]
    assert curve.jsd(Curve.normalised(curve.grid, np.mean(parts, 0))) < 1e-6  # nats
    assert curve.cdf(np.array([np.pi]))[0] == pytest.approx(0.5, abs=1e-9)
