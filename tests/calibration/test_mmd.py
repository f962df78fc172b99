"""Maximum mean discrepancy against the closed form for normals, a direct sum, and its p-value's level."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sbiflow.calibration.mmd import _permutation, _unbiased, mmd


def exact_mmd2(mean: np.ndarray, sd: np.ndarray, h: float) -> float:
    """Of N(0, 1) and N(mean, diag sd^2): E k(a, b) for a - b ~ N(m, v) is prod sqrt(h^2 / (h^2 + v)) exp(-m^2 / 2
    (h^2 + v)), a Gaussian integral."""

    def expected(m: np.ndarray, v: np.ndarray) -> float:
        return float(np.prod(np.sqrt(h**2 / (h**2 + v)) * np.exp(-0.5 * m**2 / (h**2 + v))))

    zero = np.zeros_like(mean)
    return expected(zero, 2 + zero) + expected(zero, 2 * sd**2) - 2 * expected(mean, 1 + sd**2)


@pytest.mark.parametrize(
    ("mean", "sd"), [([0.0], [1.0]), ([0.5], [1.0]), ([0.0, 0.3], [1.0, 0.7]), ([1.0] * 5, [1.0] * 5)]
)
def test_two_normals(mean: list[float], sd: list[float]) -> None:
    """Mean of 10 repetitions within 4.5 standard errors; for equal distributions also: the estimate is unbiased."""
    rng, h = np.random.default_rng(1), 1.3
    shape = (1000, len(mean))
    values = [
        mmd(rng.standard_normal(shape), mean + sd * rng.standard_normal(shape), seed=1, bandwidth=h, scale=False,
            n_test=10, n_null=19).mmd2
        for _ in range(10)
    ]  # fmt: skip
    expected = exact_mmd2(np.array(mean), np.array(sd), h)
    assert abs(np.mean(values) - expected) < 4.5 * np.std(values, ddof=1) / math.sqrt(10)


def test_blocks_signs_and_a_direct_sum_agree() -> None:
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(2, 1300, 2, generator=generator, dtype=torch.float64)
    observed, _ = _permutation(x, y + 0.3, 1.7, 19, generator)
    assert observed == pytest.approx(_unbiased(x, y + 0.3, 1.7), rel=1e-9)
    kernel = torch.exp(-((x[:30, None] - x[None, :30]) ** 2).sum(-1) / 2 / 1.7**2)
    within = float(kernel.sum() - 30) / (30 * 29)
    across = torch.exp(-((x[:30, None] - y[None, :40]) ** 2).sum(-1) / 2 / 1.7**2).mean()
    other = torch.exp(-((y[:40, None] - y[None, :40]) ** 2).sum(-1) / 2 / 1.7**2)
    expected = within + float(other.sum() - 40) / (40 * 39) - 2 * float(across)
    assert _unbiased(x[:30], y[:40], 1.7) == pytest.approx(expected, abs=1e-12)


def test_bandwidth_is_the_median_distance() -> None:
    """|a - b| of two unit normals: median sqrt(2) 0.6745; 2,000 draws give it within 3 %."""
    x, y = np.random.default_rng(3).standard_normal((2, 5000, 1)) * 1e5
    assert mmd(x, y, seed=1, n_null=19).bandwidth == pytest.approx(0.9539, rel=0.04)
    assert mmd(x, y, seed=1, n_null=19, scale=False).bandwidth == pytest.approx(0.9539e5, rel=0.04)


def test_p_values_are_uniform_and_faults_are_seen() -> None:
    """200 null repetitions, Kolmogorov-Smirnov at 1e-4; a shift, a width and a correlation have the smallest p."""
    rng = np.random.default_rng(4)
    p = [mmd(*rng.standard_normal((2, 60, 2)), seed=s, n_null=99).p_value for s in range(200)]
    assert stats.kstest(p, "uniform").pvalue > 1e-4
    x, y = rng.standard_normal((2, 1000, 2))
    for wrong in (y + 0.3, 0.7 * y, np.stack([y[:, 0], 0.8 * y[:, 0] + 0.6 * y[:, 1]], 1)):
        found = mmd(x, wrong, seed=5, n_null=199)
        assert found.p_value == 1 / 200
        assert found.mmd2 > found.null_95
    assert "MMD^2" in str(found)
    assert found == mmd(x, wrong, seed=5, n_null=199)


def test_sets_of_unequal_size_and_ties() -> None:
    rng = np.random.default_rng(6)
    found = mmd(rng.integers(0, 3, (300, 2)), rng.integers(0, 3, (100, 2)), seed=1, n_null=99)
    assert (found.n_reference, found.n_samples, found.n_test) == (300, 100, 100)
    assert found.p_value > 1e-2


def test_bad_input_gets_one_clear_line() -> None:
    x, y = np.random.default_rng(7).standard_normal((2, 60, 2))
    broken = y.copy()
    broken[0, 0] = math.nan
    for reference, samples, options, message in [
        (x, y[:, :1], {}, "samples: expected shape"),
        (x, broken, {}, "samples: expected finite"),
        (x[:5], y, {}, "draws in reference"),
        (np.ones((60, 2)), y, {}, "constant columns"),
        (np.ones((60, 2)), y, {"scale": False}, "median distance of the reference"),
        (x, y, {"bandwidth": -1.0}, "bandwidth"),
        (x, y, {"n_null": 5}, "n_null"),
    ]:
        with pytest.raises(ValueError, match=message):
            mmd(reference, samples, **{"seed": 1, **options})
