"""Summary figures against NumPy and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sbiflow.summary import (
    ParameterSummary,
    SummaryTable,
    circular_mean,
    summarise,
    unwrap,
    weighted_quantiles,
)

LEVELS = (0.05, 0.16, 0.5, 0.84, 0.95)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_equal_weights_give_numpys_hazen_quantiles(values: list[float]) -> None:
    array = np.array(values)
    expected = np.quantile(array, LEVELS, method="hazen")
    np.testing.assert_allclose(weighted_quantiles(array, None, LEVELS), expected, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(
        weighted_quantiles(array, np.full(len(array), 7.0), LEVELS), expected, rtol=1e-9, atol=1e-6
    )


def test_draws_without_weight_do_not_count() -> None:
    values, weights = np.array([1.0, 2.0, 500.0, 3.0, -500.0]), np.array([1.0, 2.0, 0.0, 1.0, 0.0])
    kept = weights > 0
    assert summarise(values, "a", "", None, weights) == summarise(values[kept], "a", "", None, weights[kept])


def test_weighted_figures_of_a_known_density() -> None:
    """A grid weighted by a normal density has the normal's moments and quantiles."""
    grid = np.linspace(-10, 14, 20_001)
    row = summarise(grid, "B", "G", None, stats.norm(2.0, 1.5).pdf(grid))
    expected = [*stats.norm(2.0, 1.5).ppf([0.5, 0.16, 0.84]), 2.0, 1.5]
    np.testing.assert_allclose([row.median, row.low, row.high, row.mean, row.sd], expected, atol=2e-6)


@pytest.mark.parametrize("centre", [0.01, 1.0, 3.1, -0.02])
def test_periodic_parameter_is_summarised_across_the_seam(centre: float) -> None:
    """A von Mises of period π: SciPy's circular mean, and the same figures wherever the seam is."""
    draws = stats.vonmises(50.0).rvs(4000, random_state=1) / 2
    wrapped = (draws + centre) % math.pi
    row = summarise(wrapped, "azimuth", "rad", (0.0, math.pi))
    assert row.mean == pytest.approx(stats.circmean(wrapped, math.pi, 0.0), abs=1e-9)
    assert 0 <= row.median < math.pi
    assert row.low < row.median < row.high
    plain = summarise(draws, "azimuth", "rad")
    assert row.high - row.low == pytest.approx(plain.high - plain.low, rel=1e-9)
    assert row.sd == pytest.approx(plain.sd, rel=1e-9)
    assert (row.median - plain.median - centre + 1) % math.pi == pytest.approx(1.0, abs=1e-9)


def test_weighted_circular_mean() -> None:
    values, weights = np.array([10.0, 350.0, 180.0]), np.array([1.0, 3.0, 0.0])
    expected = math.degrees(math.atan2(-2 * math.sin(math.radians(10)), 4 * math.cos(math.radians(10)))) % 360
    assert circular_mean(values, 0.0, 360.0, weights) == pytest.approx(expected)


def test_unwrap_moves_by_whole_periods_only() -> None:
    values = np.random.default_rng(0).uniform(-90, 90, 200)
    moved = unwrap(values, -90.0, 90.0, centre=80.0)
    np.testing.assert_allclose((moved - values) % 180.0 % 180.0, 0, atol=1e-9)
    assert (np.abs(moved - 80.0) <= 90.0).all()


def test_table_is_aligned_and_names_its_units() -> None:
    table = SummaryTable(
        (
            ParameterSummary("B", "G", 1234.5, 1200.4, 1260.1, 1233.0, 30.1),
            ParameterSummary("azimuth", "rad", 0.1, -0.05, 0.2, 0.11, 0.12, periodic=True),
        ),
        n=10_000,
        ess=812.4,
    )
    lines = str(table).splitlines()
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[1].split() == ["B", "G", "1234", "1200", "1260", "1233", "30"]
    assert lines[2].split() == ["azimuth*", "rad", "0.10", "-0.05", "0.20", "0.11", "0.12"]
    assert lines[3] == "10,000 draws, worth 812 independent ones"
    assert lines[4].startswith("* periodic")
    assert table["B"].unit == "G"
    assert [row.name for row in table] == ["B", "azimuth"]
    with pytest.raises(KeyError, match="the names are B, azimuth"):
        table["b"]
