"""Marginal Jensen-Shannon divergence against integrals, its floor against chi^2, its p-value's level."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sbiflow.calibration.jsd import marginal_jsd


def exact_jsd(mean: float, sd: float) -> float:
    """JSD [nats] of N(0, 1) and N(mean, sd^2) by the trapezoidal rule."""
    x = np.linspace(-12, 12, 200_001)
    p, q = stats.norm.pdf(x), stats.norm.pdf(x, mean, sd)
    m = (p + q) / 2 + 1e-300
    density = (p * np.log(p / m + 1e-300) + q * np.log(q / m + 1e-300)) / 2
    return float(np.trapezoid(density, x))


@pytest.mark.parametrize(("mean", "sd"), [(0.3, 1.0), (0.0, 0.8), (1.0, 1.0), (3.0, 0.5)])
def test_two_normals(mean: float, sd: float) -> None:
    """The estimate less its floor within 3 % + 4 standard errors (of the mean of 4 repetitions)."""
    rng = np.random.default_rng(1)
    reference = rng.standard_normal((10_000, 4))
    found = marginal_jsd(reference, mean + sd * rng.standard_normal((10_000, 4)), seed=1, n_null=199)
    values = np.array([row.excess for row in found.rows])
    expected = exact_jsd(mean, sd)
    assert abs(values.mean() - expected) < 0.03 * expected + 4 * values.std(ddof=1) / 2
    assert all(row.p_value == 1 / 200 for row in found.rows)
    assert all(row.jsd > row.floor_95 > row.floor > 0 for row in found.rows)


def test_disjoint_sets_have_ln_2_and_a_monotonic_map_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 500, 1))
    assert marginal_jsd(x, y + 50, seed=1).rows[0].jsd == pytest.approx(math.log(2))
    assert marginal_jsd(x, y, seed=1) == marginal_jsd(np.exp(x), np.exp(y), seed=1)


def test_floor_is_that_of_chi_square() -> None:
    """2 (n + m) JSD has chi^2 with B - 1 degrees of freedom; 999 deals give its median within 2 %."""
    x, y = np.random.default_rng(3).standard_normal((2, 10_000, 1))
    found = marginal_jsd(x, y, seed=1)
    freedom = found.cells - 1
    assert found.rows[0].floor * 40_000 == pytest.approx(stats.chi2.median(freedom), rel=0.03)
    assert found.rows[0].floor_95 * 40_000 == pytest.approx(stats.chi2.ppf(0.95, freedom), rel=0.04)


@pytest.mark.parametrize("kind", ["normal", "rounded", "unequal"])
def test_p_values_are_uniform_for_equal_distributions(kind: str) -> None:
    """150 parameters; Kolmogorov-Smirnov, false alarm 1e-4; a shift of 1 sd is seen in all of them."""
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((200, 150)), rng.standard_normal((300 if kind == "unequal" else 200, 150))
    if kind == "rounded":  # ties: p-values on a grid, so only their level is tested
        x, y = x.round(), y.round()
    p = np.array([row.p_value for row in marginal_jsd(x, y, seed=5, n_null=199).rows])
    if kind == "rounded":
        assert (p <= 0.05).sum() <= stats.binom.ppf(1 - 1e-4, 150, 0.05)
    else:
        assert stats.kstest(p, "uniform").pvalue > 1e-4
    shifted = marginal_jsd(x, y + 1.0, seed=5, n_null=199)
    assert max(row.p_value for row in shifted.rows) < 0.05


def test_a_circle_may_be_cut_anywhere() -> None:
    """A von Mises shifted by 0.2 rad is nearly a normal shifted by 0.2 sqrt(8) = 0.566 sd; wherever zero lies, the
    estimate is the same, and without the period it loses."""
    rng = np.random.default_rng(6)
    x, y = rng.vonmises(0.0, 8.0, (8000, 1)), rng.vonmises(0.2, 8.0, (8000, 1))
    period = 2 * math.pi

    def found(turn: float, periods: tuple[float | None]) -> float:
        return marginal_jsd((x + turn) % period, (y + turn) % period, periods=periods, seed=1).rows[0].excess

    values = [found(turn, (period,)) for turn in (0.0, 1.0, math.pi)]
    np.testing.assert_allclose(values, values[0], rtol=0.01)
    assert values[0] == pytest.approx(exact_jsd(0.566, 1.0), rel=0.1)
    assert found(0.0, (None,)) < 0.95 * values[0]


def test_names_table_and_worst() -> None:
    x, y = np.random.default_rng(7).standard_normal((2, 1000, 2))
    y[:, 1] *= 1.5
    found = marginal_jsd(x, y, names=("mass", "spin"), seed=1)
    assert found.worst.name == "spin"
    assert "mass" in str(found)
    assert found.mean == pytest.approx((found.rows[0].jsd + found.rows[1].jsd) / 2)
    assert found.cells == 20


def test_all_draws_equal() -> None:
    """A constant in both sets is no difference; in one of them it is the largest there is but for the ties."""
    ones = np.ones((100, 1))
    same = marginal_jsd(ones, ones, seed=1).rows[0]
    assert (same.jsd, same.p_value) == (0.0, 1.0)
    assert (
        marginal_jsd(np.random.default_rng(8).standard_normal((100, 1)), ones, seed=1).rows[0].p_value < 0.01
    )


def test_bad_input_gets_one_clear_line() -> None:
    x, y = np.random.default_rng(9).standard_normal((2, 60, 2))
    broken = x.copy()
    broken[0, 0] = math.inf
    for reference, samples, options, message in [
        (x, y[:, :1], {}, "samples: expected shape"),
        (broken, y, {}, "reference: expected finite"),
        (x[:10], y, {}, "draws in reference"),
        (x, y, {"names": ("a",)}, "names: expected 2"),
        (x, y, {"cells": 1}, "cells"),
        (x, y, {"periods": (None,)}, "periods: expected 2"),
        (x, y, {"periods": (None, -1.0)}, "period: expected"),
        (x, y, {"n_null": 5}, "n_null"),
    ]:
        with pytest.raises(ValueError, match=message):
            marginal_jsd(reference, samples, **{"seed": 1, **options})
