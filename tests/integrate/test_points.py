"""Weighted and unweighted points: the accepted ones follow the target, whatever the bound, and the wrong one is seen.

The statistical gates: p > 1e-4 in Kolmogorov-Smirnov tests of what must pass (with fixed seeds), p < 1e-6 for what
must fail; five standard deviations for means (false alarm 6e-7).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor

from sbiflow.integrate.points import UnweightedPoints, WeightedPoints
from sbiflow.integrate.unweighting import maximum_weight, unweight, unweight_from
from sbiflow.seeding import torch_generator

INF = math.inf
PASS, FAIL = 1e-4, 1e-6


def peaked(x: Tensor) -> Tensor:
    """1 / (0.02 + (x - 0.3)²): weights from 2 to 50 about a mean of 17.7."""
    return 1 / (0.02 + (x - 0.3) ** 2)


def wave(x: Tensor) -> Tensor:
    return torch.sin(2 * torch.pi * x) + 0.3


def uniform_points(f: Callable[[Tensor], Tensor], n: int, seed: int) -> WeightedPoints:
    x = torch.rand(n, 1, generator=torch_generator(seed), dtype=torch.float64)
    values = f(x[:, 0])
    return WeightedPoints(x, values, values, torch.zeros(n, dtype=torch.float64))


def weighted(*weights: float) -> WeightedPoints:
    w = torch.tensor(weights, dtype=torch.float64)
    return WeightedPoints(torch.arange(len(w), dtype=torch.float64)[:, None], w, w, torch.zeros_like(w))


def cdf(f: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    """Of |f| on [0, 1], by a fine trapezoidal rule."""
    grid = np.linspace(0, 1, 200_001)
    density = np.abs(f(torch.from_numpy(grid)).numpy())
    mass = integrate.cumulative_trapezoid(density, grid, initial=0.0)
    return lambda x: np.interp(x, grid, mass / mass[-1])


# --- weighted points


def test_integral_and_its_error_are_the_sample_mean_and_its_error():
    points = uniform_points(peaked, 5000, seed=0)
    weights = points.weights.numpy()
    mean, sdev = points.integral
    assert mean == pytest.approx(weights.mean(), rel=1e-13)
    assert sdev == pytest.approx(stats.sem(weights), rel=1e-12)
    log_mean, error = points.log_integral
    assert (log_mean, error) == (pytest.approx(math.log(mean)), pytest.approx(sdev / mean))
    assert abs(mean - integrate.quad(lambda x: 1 / (0.02 + (x - 0.3) ** 2), 0, 1)[0]) < 5 * sdev
    assert points.ess == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_sums_of_tiny_and_huge_weights_stay_finite(scale):
    points = weighted(*(scale * np.array([1.0, 2.0, -4.0])))
    assert points.ess == pytest.approx(49 / 21)
    assert points.integral == (pytest.approx(-scale / 3), pytest.approx(scale * math.sqrt(31 / 9)))
    assert maximum_weight(points.weights) == 4 * scale
    assert len(unweight(points, seed=0, w_max=scale)) == 3


def test_a_common_factor_that_no_double_can_hold():
    points = replace(weighted(1.0, 3.0), log_scale=-2000.0)
    assert points.integral == (0.0, 0.0)
    assert points.log_integral == (pytest.approx(math.log(2) - 2000), pytest.approx(0.5))
    assert replace(points, log_scale=2000.0).integral == (INF, INF)
    assert unweight(points, seed=0).log_scale == -2000.0
    assert replace(points, log_scale=math.log(5)).integral == (pytest.approx(10), pytest.approx(5))


def test_points_of_zero_weight_and_a_single_point():
    zeros = weighted(0.0, 0.0, 0.0)
    assert zeros.ess == 0 and zeros.integral == (0.0, 0.0) and zeros.log_integral == (-INF, INF)
    one = weighted(2.5)
    assert (len(one), one.ess) == (1, 1.0)
    assert one.integral == (2.5, INF) and one.log_integral == (pytest.approx(math.log(2.5)), INF)


def test_to_numpy_makes_a_histogram_of_the_integral():
    points = uniform_points(peaked, 4000, seed=1)
    x, weights = points.to_numpy()
    counts, _ = np.histogram(x[:, 0], bins=10, weights=weights / len(x))
    assert counts.sum() == pytest.approx(points.integral[0])


def test_resampled_points_follow_the_target_and_not_the_proposal():
    drawn = uniform_points(peaked, 200_000, seed=2).resample(4000, seed=3)[:, 0].numpy()
    assert stats.kstest(drawn, cdf(peaked)).pvalue > PASS
    assert stats.kstest(drawn, "uniform").pvalue < FAIL
    assert (weighted(0.0, 1.0, 0.0).resample(100, seed=0) == 1).all()
    equal = weighted(1.0, 1.0).resample(10_000, seed=0)
    assert abs(float(equal.mean()) - 0.5) < 5 * 0.5 / 100


def test_resampling_is_refused_without_positive_weights():
    with pytest.raises(ValueError, match="got negative ones"):
        weighted(1.0, -1.0).resample(5, seed=0)
    with pytest.raises(ValueError, match="expected one that is not zero, got 2 zeros"):
        weighted(0.0, 0.0).resample(5, seed=0)
    with pytest.raises(ValueError, match="n: expected a whole number >= 1, got 0"):
        weighted(1.0).resample(0, seed=0)


def test_shapes_and_weights_that_are_no_numbers():
    good = weighted(1.0, 2.0)
    for name, value in (("x", good.weights), ("weights", good.weights[:1]), ("log_q", good.x)):
        with pytest.raises(ValueError, match=f"{name}: expected shape"):
            replace(good, **{name: value})
    with pytest.raises(ValueError, match="values: expected shape"):
        replace(good, values=torch.zeros(3))
    assert replace(good, values=torch.zeros(2, 7)).values.shape == (2, 7)
    for bad in (math.nan, INF):
        with pytest.raises(ValueError, match="weights: expected finite values, got 1 NaN or inf"):
            weighted(1.0, bad)


# --- the bound


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-50, 50), min_size=1, max_size=30).filter(any),
    st.sampled_from([0.0, 1e-3, 0.1, 0.25, 0.5, 0.9, 1 - 1e-13]),
)
def test_the_bound_is_the_smallest_weight_that_leaves_the_share(weights, share):
    """Against the definition, in integers."""
    sizes = [abs(w) for w in weights]
    above = {bound: sum(w for w in sizes if w > bound) for bound in sizes if bound}
    allowed = min(bound for bound, total in above.items() if total <= share * sum(sizes) * (1 + 1e-9))
    assert maximum_weight(torch.tensor(weights, dtype=torch.float64), share) == pytest.approx(
        allowed, rel=1e-14
    )


def test_bounds_that_are_refused():
    for share in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="overweight_share: expected a share in"):
            maximum_weight(torch.ones(3), share)
    with pytest.raises(ValueError, match="got 3 zeros"):
        maximum_weight(torch.zeros(3))
    with pytest.raises(ValueError, match="got 0 zeros"):
        maximum_weight(torch.zeros(0))
    with pytest.raises(ValueError, match="expected finite values"):
        maximum_weight(torch.tensor([1.0, INF]))
    with pytest.raises(ValueError, match=r"weights: expected shape \(n,\)"):
        maximum_weight(torch.ones(3, 1))


# --- unweighting


def test_accepted_points_follow_the_target_and_not_another_one():
    found = unweight(uniform_points(peaked, 200_000, seed=4), seed=5, overweight_share=0.0)
    x = found.x[:, 0].numpy()[:20_000]
    assert stats.kstest(x, cdf(peaked)).pvalue > PASS
    assert stats.kstest(x, cdf(lambda t: peaked(t) ** 1.1)).pvalue < FAIL
    assert stats.kstest(x, "uniform").pvalue < FAIL
    assert (found.signs == 1).all() and (found.weights == 1).all()


def test_the_efficiency_is_the_mean_weight_over_the_bound():
    points = uniform_points(peaked, 100_000, seed=6)
    found = unweight(points, seed=7, w_max=60.0)
    expected = float(points.weights.mean()) / 60.0
    assert found.efficiency == len(found) / 100_000 and found.n_tried == 100_000
    assert abs(found.efficiency - expected) < 5 * math.sqrt(expected / 100_000)
    assert (found.w_max, found.overweight_fraction, found.overweight_share) == (60.0, 0.0, 0.0)


@pytest.mark.parametrize("w_max", [0.5, 10.0, 35.0, 80.0])
def test_sums_with_residual_weights_do_not_depend_on_the_bound(w_max):
    """w_max / n_tried Σ signs weights g(x) estimates ∫ f g, here with g = x."""
    points = uniform_points(peaked, 200_000, seed=8)
    found = unweight(points, seed=9, w_max=w_max)
    terms = found.signs * found.weights * found.x[:, 0]
    estimate = w_max / found.n_tried * float(terms.sum())
    sdev = w_max / found.n_tried * math.sqrt(float((terms**2).sum()))
    truth = integrate.quad(lambda x: x / (0.02 + (x - 0.3) ** 2), 0, 1)[0]
    assert abs(estimate - truth) < 5 * sdev
    plain = w_max / found.n_tried * float(found.x.sum())  # without the residual weights
    assert (abs(plain - truth) > 5 * sdev) == (w_max < 40)


def test_overweight_points_are_counted_and_keep_their_weight():
    points = uniform_points(peaked, 50_000, seed=10)
    found = unweight(points, seed=11, overweight_share=0.2)
    weights = points.weights
    over = weights > found.w_max
    assert 0.19 < found.overweight_share <= 0.2
    assert found.overweight_share == pytest.approx(float(weights[over].sum() / weights.sum()))
    assert found.overweight_fraction == int(over.sum()) / len(found)
    assert int((found.weights > 1).sum()) == int(over.sum())  # all of them are kept
    torch.testing.assert_close(
        found.weights[found.weights > 1].sort().values, (weights[over] / found.w_max).sort().values
    )


def test_signed_weights_give_signs():
    found = unweight(uniform_points(wave, 200_000, seed=12), seed=13)
    x = found.x[:, 0]
    assert stats.kstest(x.numpy()[:20_000], cdf(wave)).pvalue > PASS
    assert (found.signs == wave(x).sign()).all() and {-1.0, 1.0} == set(found.signs.tolist())
    terms = found.signs * found.weights
    sdev = found.w_max / found.n_tried * math.sqrt(len(found))
    assert abs(found.w_max / found.n_tried * float(terms.sum()) - 0.3) < 5 * sdev


def test_equal_weights_are_all_accepted():
    for value in (3.0, -3.0):
        found = unweight(weighted(*[value] * 50), seed=0)
        assert (found.efficiency, found.w_max, found.overweight_share) == (1.0, 3.0, 0.0)
        assert len(found) == 50 and (found.signs == np.sign(value)).all()
    assert len(unweight(weighted(2.0), seed=0)) == 1


def test_points_of_zero_weight_are_never_accepted():
    found = unweight(weighted(*[0.0, 1.0] * 500), seed=0)
    assert found.efficiency == 0.5 and (found.x % 2 == 1).all()


def test_as_many_as_asked_for():
    points = uniform_points(peaked, 10_000, seed=14)
    every = unweight(points, seed=15)
    some = unweight(points, 100, seed=15)
    assert torch.equal(some.x, every.x[:100]) and some.n_tried < 10_000
    assert torch.equal(some.x[-1], points.x[some.n_tried - 1])  # it stops at the last one
    assert some.efficiency == 100 / some.n_tried
    with pytest.raises(
        ValueError, match=f"expected at most {len(every)}, accepted of 10000 points, got 9999"
    ):
        unweight(points, 9999, seed=15)


def test_the_seed_decides():
    points = uniform_points(peaked, 2000, seed=16)
    assert torch.equal(unweight(points, seed=1).x, unweight(points, seed=1).x)
    assert not torch.equal(unweight(points, 500, seed=1).x, unweight(points, 500, seed=2).x)


@pytest.mark.parametrize("w_max", [0.0, -1.0, math.nan, INF])
def test_bounds_that_are_no_weight(w_max):
    with pytest.raises(ValueError, match="w_max: expected a finite weight > 0"):
        unweight(weighted(1.0), seed=0, w_max=w_max)


def test_nothing_to_unweight():
    for w_max in (None, 1.0):
        with pytest.raises(ValueError, match="expected one that is not zero, got 2 zeros"):
            unweight(weighted(0.0, 0.0), seed=0, w_max=w_max)
    with pytest.raises(ValueError, match="seed"):
        unweight(weighted(1.0), seed=-1)


# --- unweighting as they come


def stream(f: Callable[[Tensor], Tensor], scales: tuple[float, ...] = (0.0,)) -> tuple[list[int], Callable]:
    """A source of uniform points, and the sizes that it was asked for; its batches are in units exp(scales)."""
    sizes: list[int] = []

    def draw(n: int, seed: int) -> WeightedPoints:
        points, log_scale = uniform_points(f, n, seed), scales[len(sizes) % len(scales)]
        sizes.append(n)
        factor = math.exp(-log_scale)
        return replace(
            points, weights=points.weights * factor, values=points.values * factor, log_scale=log_scale
        )

    return sizes, draw


def test_a_stream_gives_n_points_of_the_target():
    sizes, draw = stream(peaked)
    found = unweight_from(draw, 30_000, seed=17)
    assert len(found) == 30_000 and len(sizes) > 1 and found.n_tried <= sum(sizes)
    x = found.x[:, 0].numpy()
    assert len(np.unique(x)) == 30_000  # no batch came twice
    assert stats.kstest(x, cdf(peaked)).pvalue > PASS
    assert stats.kstest(x, cdf(lambda t: peaked(t) ** 1.1)).pvalue < FAIL
    assert found.efficiency == 30_000 / found.n_tried
    assert found.overweight_share == pytest.approx(1e-3, rel=0.5)
    assert sum(sizes) < 1.2 * found.n_tried + 2000  # not many more than needed


def test_batches_in_units_of_their_own():
    """The same points whether or not each batch comes with a common factor of its own."""
    _, plain = stream(peaked)
    _, scaled = stream(peaked, scales=(-3.0, 5.0, 0.7))
    one, other = (unweight_from(draw, 25_000, seed=18) for draw in (plain, scaled))
    assert torch.equal(one.x, other.x)
    assert one.w_max == pytest.approx(other.w_max * math.exp(other.log_scale))
    torch.testing.assert_close(one.weights, other.weights)


def test_a_stream_with_cuts_and_signs():
    def cut_wave(x: Tensor) -> Tensor:
        return torch.where((x * 1000 % 50) < 1, wave(x), 0.0)  # one point in fifty counts

    _, draw = stream(cut_wave)
    found = unweight_from(draw, 3000, seed=19)
    assert len(found) == 3000 and found.efficiency < 0.02
    estimate = found.w_max / found.n_tried * float((found.signs * found.weights).sum())
    truth = float(cut_wave((torch.arange(10**6, dtype=torch.float64) + 0.5) / 10**6).mean())
    assert abs(estimate - truth) < 5 * found.w_max / found.n_tried * math.sqrt(3000)


def test_a_few_points_take_the_first_draws_only():
    sizes, draw = stream(peaked)
    found = unweight_from(draw, 10, seed=20)
    assert len(found) == 10 and len(sizes) == 1 and found.n_tried < 100


def test_a_stream_gives_up():
    _, draw = stream(lambda x: (x < 1e-4).double())
    with pytest.raises(ValueError, match=r"expected 5000 accepted points, got \d+ of 50000 tried"):
        unweight_from(draw, 5000, seed=21, max_tried=50_000)
    _, nothing = stream(torch.zeros_like)
    with pytest.raises(ValueError, match="expected one that is not zero"):
        unweight_from(nothing, 5, seed=21)
    for bad in (0, -3, 1.5):
        with pytest.raises(ValueError, match="n: expected a whole number"):
            unweight_from(draw, bad, seed=21)


def test_a_given_bound_is_kept_for_the_stream():
    _, draw = stream(peaked)
    found = unweight_from(draw, 25_000, seed=22, w_max=100.0)
    assert found.w_max == 100.0 and found.overweight_share == 0
    assert abs(found.efficiency - 0.1769) < 0.005


def test_it_says_what_it_cost():
    found = UnweightedPoints(
        torch.zeros(20, 1), torch.ones(20), torch.ones(20), 1600, 0.0125, 2.0, 0.05, 0.001
    )
    assert str(found) == (
        "20 of 1,600 points accepted: unweighting efficiency 1.250%; overweight: 5.00% of them, 0.10% of the weight"
    )
