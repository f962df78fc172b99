"""P-P plot: p-values of known levels, combinations under independence and dependence, bands."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sbiflow.calibration.ecdf import ecdf
from sbiflow.calibration.pp import pp_plot

RNG = np.random.default_rng(1)


def test_uniform_levels_pass_and_wrong_ones_fail() -> None:
    """False alarm 1e-4 each."""
    u = RNG.uniform(size=(1000, 3))
    good = pp_plot(["a", "b", "c"], u)
    assert min(good.p_values) > 1e-4
    assert good.fisher > 1e-4 and good.bonferroni > 1e-4
    bad = pp_plot(["a", "b", "c"], np.c_[u[:, :2], stats.norm.cdf(stats.norm.ppf(u[:, 2]) + 0.3)])
    assert bad.p_values[:2] == good.p_values[:2]
    assert bad.p_values[2] < 1e-6
    assert bad.fisher < 1e-4 and bad.bonferroni < 1e-4


def test_p_values_are_those_of_scipy() -> None:
    found = pp_plot(["a", "b"], RNG.uniform(size=(50, 2)))
    expected = [stats.kstest(column, "uniform").pvalue for column in found.levels.T]
    assert found.p_values == pytest.approx(expected)
    assert found.p_by_name == dict(zip(("a", "b"), found.p_values, strict=True))
    chi2 = -2 * np.log(expected).sum()
    assert found.fisher == pytest.approx(stats.chi2.sf(chi2, 4))
    assert found.bonferroni == pytest.approx(min(1, 2 * min(expected)))


def test_fisher_needs_independence_and_bonferroni_does_not() -> None:
    """Ten copies of one parameter, level 0.01, 120 trials: Fisher rejects at p < 0.153; gates at 4 standard errors."""
    trials = [pp_plot(list("abcdefghij"), np.repeat(RNG.uniform(size=(40, 1)), 10, 1)) for _ in range(120)]
    assert np.mean([t.bonferroni <= 0.01 for t in trials]) < 0.01 + 4 * np.sqrt(0.01 / 120)
    assert np.mean([t.fisher <= 0.01 for t in trials]) > 0.153 - 4 * np.sqrt(0.153 * 0.847 / 120)


def test_one_parameter_one_row_and_extremes() -> None:
    one = pp_plot(["a"], np.array([[0.5]]))
    assert one.p_values == pytest.approx((1.0,))
    assert one.bonferroni == pytest.approx(one.p_values[0])
    assert one.curves.shape == (1, 101)
    extreme = pp_plot(["a", "b"], np.zeros((2000, 2)))
    assert 0 <= extreme.fisher < 1e-300 and extreme.bonferroni < 1e-300
    assert np.isfinite(extreme.fisher)


def test_bands_have_the_probabilities_of_one_two_three_sigma() -> None:
    """Share of uniform samples that leave each band anywhere, 4 standard errors of 800 trials."""
    bands = pp_plot(["a"], RNG.uniform(size=(200, 1))).bands()
    curves = [ecdf(RNG.uniform(size=200), bands[0].z) for _ in range(800)]
    for band, level in zip(bands, (0.3173, 0.0455, 0.0027), strict=True):
        assert band.alpha == pytest.approx(level, rel=0.01)
        left = np.mean([((c < band.low) | (c > band.high)).any() for c in curves])
        assert left <= level + 4 * np.sqrt(level / 800)
    assert left < 0.02
    assert (bands[0].low >= bands[1].low).all() and (bands[1].high <= bands[2].high).all()


def test_bad_levels_get_one_clear_line() -> None:
    with pytest.raises(ValueError, match=r"expected shape \(N, 2\), got \(5, 3\)"):
        pp_plot(["a", "b"], np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        pp_plot(["a"], np.array([[1.2]]))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        pp_plot(["a"], np.array([[np.nan]]))
