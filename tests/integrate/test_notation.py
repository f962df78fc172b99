"""1.2345(67): against gvar, which writes it for vegas, and where no double can hold the number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sbiflow.integrate.notation import with_error

INF, NAN = math.inf, math.nan


def test_it_is_what_gvar_prints():
    """Errors from 1e-10 of the value up to the value, values over 24 decades."""
    gvar = pytest.importorskip("gvar")
    rng = np.random.default_rng(0)
    values = rng.normal(size=5000) * 10 ** rng.uniform(-12, 12, 5000)
    errors = np.abs(values) * 10 ** rng.uniform(-10, 0, 5000)
    for value, error in zip(values.tolist(), errors.tolist(), strict=True):
        assert with_error(value, error) == str(gvar.gvar(value, error))


def test_gvar_reads_it_back_also_with_errors_beyond_the_value():
    """Half a unit of the last digit of value and error, the error having two."""
    gvar = pytest.importorskip("gvar")
    rng = np.random.default_rng(1)
    values = rng.normal(size=2000) * 10 ** rng.uniform(-100, 100, 2000)
    errors = np.abs(values) * 10 ** rng.uniform(-10, 6, 2000)
    for value, error in zip(values.tolist(), errors.tolist(), strict=True):
        found = gvar.gvar(with_error(value, error))
        assert found.sdev == pytest.approx(error, rel=0.0501)
        assert abs(found.mean - value) <= 0.0501 * error


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.0, 1.2, "0.0(1.2)"),
        (-1e-12, 0.3, "0.00(30)"),  # no negative zero
        (0.0, 0.0, "0(0)"),
        (-0.0, 0.0, "0(0)"),
        (2.5, 0.0, "2.5(0)"),
        (1.0, 1e-17, "1(0)"),  # rounding
        (1e-9, 0.0, "1(0)e-09"),
        (1.0, 3e8, "0.0(3.0)e+08"),
        (0.99999, 0.00123, "1.0000(12)"),
        (0.5, 0.0996, "0.50(10)"),
        (9.97e-6, 1.2e-7, "9.97(12)e-06"),
        (12.34, 5.6, "12.3(5.6)"),
        (1234.0, 56.0, "1234(56)"),
        (12345.0, 567.0, "1.234(57)e+04"),
        (1e308, 1e308, "1.0(1.0)e+308"),
        (0.5, INF, "0.5(?)"),
        (1.23456789e-9, NAN, "1.23457(?)e-09"),
        (NAN, 0.1, "nan"),
        (INF, 1.0, "inf"),
        (-INF, NAN, "-inf"),
    ],
)
def test_edges(value, error, text):
    assert with_error(value, error) == text


@pytest.mark.parametrize(
    ("value", "error", "log_value", "log_error", "text"),
    [
        (0.0, 0.0, -1234.567, 0.012, "e^(-1234.567(12))"),
        (-0.0, 0.0, -1234.567, 0.012, "e^(-1234.567(12))"),  # the sign of an underflowed number is not known
        (0.0, INF, -1234.567, INF, "e^(-1234.57(?))"),
        (INF, INF, 1234.5, 0.3, "e^(1234.50(30))"),
        (-INF, INF, 1234.5, 0.3, "-e^(1234.50(30))"),
        (5e-320, 1e-321, -734.0, NAN, "e^(-734.000(20))"),  # the error of the logarithm is the relative one
        (0.0, 0.3, -INF, INF, "0.00(30)"),  # a true zero
        (1e-200, 1e-203, -460.5, 0.1, "1.0000(10)e-200"),  # a double can hold it
    ],
)
def test_where_the_number_is_no_double(value, error, log_value, log_error, text):
    assert with_error(value, error, log_value, log_error) == text
