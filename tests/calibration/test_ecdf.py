"""The simultaneous band against published levels, enumeration and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from sbiflow.calibration.ecdf import (
    ecdf,
    ecdf_p_value,
    exit_probability,
    grid_points,
    pointwise_p,
    simultaneous_band,
)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.05, 2.67e-3), (1e-4, 3.42e-6)])
def test_published_levels(alpha: float, gamma: float) -> None:
    assert simultaneous_band(1000, 100, alpha).gamma == pytest.approx(gamma, rel=2e-3)


@pytest.mark.parametrize("gamma", [0.02, 0.15, 0.4])
def test_exit_probability_equals_enumeration(gamma: float) -> None:
    n, z = 6, np.array([0.2, 0.5, 0.55, 0.9])
    cells = np.diff([0, *z, 1])
    total = 0.0
    for split in product(range(n + 1), repeat=len(cells)):
        if sum(split) == n:
            counts = np.cumsum(split)[:-1]
            if (pointwise_p(counts, n, z) <= gamma).any():
                total += stats.multinomial.pmf(split, n, cells)
    assert exit_probability(n, z, gamma) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize(("n", "alpha"), [(50, 0.05), (1000, 1e-6), (20_000, 0.3)])
def test_band_keeps_its_level_and_no_wider_one_does(n: int, alpha: float) -> None:
    band = simultaneous_band(n, 100, alpha)
    assert (
        exit_probability(n, band.z, band.gamma)
        <= alpha
        < exit_probability(n, band.z, band.gamma * 1.001 + 1e-2)
    )
    assert (band.low < band.z).all()
    assert (band.high > band.z).all()


def test_band_and_p_value_agree() -> None:
    rng = np.random.default_rng(0)
    for u in rng.random((60, 200)) ** rng.uniform(0.8, 1.25, (60, 1)):
        band = simultaneous_band(200, 50, 0.05)
        inside = ((ecdf(u, band.z) >= band.low - 1e-12) & (ecdf(u, band.z) <= band.high + 1e-12)).all()
        assert inside == (ecdf_p_value(u, 50) > 0.05)


def test_p_values_are_uniform_under_the_null() -> None:
    rng = np.random.default_rng(1)
    p = np.array([ecdf_p_value(u, 40) for u in rng.random((1500, 300))])
    for level in (0.01, 0.1, 0.5):  # binomial, false alarm 1e-4 each side
        low, high = stats.binom.ppf([1e-4, 1 - 1e-4], len(p), level)
        assert low <= (p <= level).sum() <= high


def test_p_value_of_hopeless_ranks_is_tiny_but_ordered() -> None:
    worse, bad = ecdf_p_value(np.full(1000, 0.5)), ecdf_p_value(np.linspace(0.2, 0.8, 1000))
    assert 0 <= worse < bad < 1e-12


@pytest.mark.parametrize("grid", [1, 0, [0.5, 0.4], [0.0, 0.5], [0.5, 1.0], []])
def test_bad_grids_are_refused(grid: object) -> None:
    with pytest.raises(ValueError, match="grid"):
        grid_points(grid if isinstance(grid, int) else np.array(grid))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha"):
        simultaneous_band(10, 5, 1.0)
    with pytest.raises(ValueError, match="u: expected"):
        ecdf_p_value(np.array([0.2, np.nan]))
