"""Bounded bijections against scipy, autograd and their own edges."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nflows.transforms import Transform
from scipy import special, stats

from sbiflow.transforms.bounded import (
    Logit,
    LowerBounded,
    Probit,
    UpperBounded,
    clamp_inside,
    next_inside,
    normal_tails,
    probit_from_tails,
    wrap,
)

LOW, HIGH = [-1.0, 0.0, 3.0], [2.0, 1e-3, 3e4]
MAKERS: dict[str, Callable[[], Transform]] = {
    "Probit": lambda: Probit(LOW, HIGH),
    "Logit": lambda: Logit(LOW, HIGH),
    "LowerBounded": lambda: LowerBounded(LOW),
    "UpperBounded": lambda: UpperBounded(HIGH),
    "one for all": lambda: Logit(-0.1, 0.2),
}
DTYPES = [torch.float32, torch.float64]
every_map = pytest.mark.parametrize("name", MAKERS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def normal(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


@every_map
@every_dtype
def test_round_trip_and_inverse_log_det(name: str, dtype: torch.dtype) -> None:
    transform, z = MAKERS[name](), normal(200, 3, dtype=dtype)
    x, log_slope = transform.inverse(z)
    assert x.dtype == log_slope.dtype == dtype and x.shape == (200, 3) and log_slope.shape == (200,)
    again, log_inverse = transform.forward(x)
    tolerance = (
        1e-9 if dtype == torch.float64 else 2e-3
    )  # UpperBounded: x = 3e4 - exp(-z) keeps 3 digits of exp(-z)
    close = again if name != "UpperBounded" or dtype == torch.float64 else again[:, :2]
    torch.testing.assert_close(close, z[:, : close.shape[1]], rtol=tolerance, atol=tolerance)
    if close is again:
        torch.testing.assert_close(log_inverse, -log_slope, rtol=tolerance, atol=3 * tolerance)


@every_map
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_log_det_matches_autograd(name: str, scale: float) -> None:
    transform, z = MAKERS[name](), normal(30, 3, scale=scale)
    x, log_slope = transform.inverse(z)
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda v: transform.inverse(v)[0], row) for row in z]
    )
    assert bool((jacobian == torch.diag_embed(jacobian.diagonal(dim1=-2, dim2=-1))).all())  # elementwise
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_slope, rtol=1e-9, atol=1e-9)
    x = x.requires_grad_()
    z, log_inverse = transform.forward(x)
    (slope,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(slope.log().sum(-1), log_inverse, rtol=1e-9, atol=1e-7)


@every_map
@every_dtype
@settings(max_examples=60, deadline=None, derandomize=True)
@given(size=st.floats(0, 1e4, width=32), sign=st.sampled_from([-1.0, 1.0]))
def test_inverse_never_touches_an_edge(name: str, dtype: torch.dtype, size: float, sign: float) -> None:
    transform = MAKERS[name]()
    z = torch.full((1, 3), sign * size, dtype=dtype, requires_grad=True)
    x, log_slope = transform.inverse(z)
    low, high = torch.broadcast_tensors(transform.low, transform.high)
    assert bool(((x.double() > low) & (x.double() < high)).all()), x
    assert bool(torch.isfinite(log_slope).all())
    (gradient,) = torch.autograd.grad(x.sum() / x.detach().abs().max(), z)
    assert bool(torch.isfinite(gradient).all())
    again, log_inverse = transform.forward(x.detach())
    assert bool(torch.isfinite(again).all()) and bool(torch.isfinite(log_inverse).all())


def test_values_match_scipy() -> None:
    x = torch.tensor([[-0.999999, 1e-30, 4.0], [1.9999999, 9.9e-4, 29999.0]], dtype=torch.float64)
    low, high = np.array(LOW), np.array(HIGH)
    unit = (x.numpy() - low) / (high - low)
    np.testing.assert_allclose(Probit(LOW, HIGH).forward(x)[0], stats.norm.ppf(unit), rtol=1e-7)
    np.testing.assert_allclose(Logit(LOW, HIGH).forward(x)[0], special.logit(unit), rtol=1e-7)
    np.testing.assert_allclose(LowerBounded(LOW).forward(x)[0], np.log(x.numpy() - low), rtol=1e-12)
    np.testing.assert_allclose(UpperBounded(HIGH).forward(x)[0], -np.log(high - x.numpy()), rtol=1e-12)


@every_map
def test_maps_are_increasing(name: str) -> None:
    z = torch.linspace(-8, 8, 50, dtype=torch.float64).unsqueeze(-1).expand(-1, 3)
    assert bool((MAKERS[name]().inverse(z)[0].diff(dim=0) > 0).all())


def test_uniform_becomes_normal() -> None:
    """Kolmogorov-Smirnov, 5,000 draws, p > 1e-6, three columns: false alarms below 3e-6."""
    u = torch.rand(5000, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = torch.tensor(LOW) + u * (torch.tensor(HIGH) - torch.tensor(LOW))
    z, _ = Probit(LOW, HIGH).forward(x)
    assert all(stats.kstest(column.numpy(), "norm").pvalue > 1e-6 for column in z.T)


@every_map
def test_any_leading_shape_and_no_use_of_context(name: str) -> None:
    transform, z = MAKERS[name](), normal(2, 5, 3)
    x, log_slope = transform.inverse(z, torch.ones(2, 5, 7))
    assert x.shape == (2, 5, 3) and log_slope.shape == (2, 5)
    rows, flat_slope = transform.inverse(z.reshape(10, 3))
    assert bool((rows.reshape(2, 5, 3) == x).all()) and bool((flat_slope.reshape(2, 5) == log_slope).all())


@every_map
def test_edges_travel_in_the_state_dict(name: str) -> None:
    transform, other = MAKERS[name](), MAKERS[name]()
    other.low.add_(1.0), other.high.add_(5.0)
    other.load_state_dict(transform.state_dict())
    z = normal(4, 3)
    assert bool((transform.inverse(z)[0] == other.inverse(z)[0]).all())
    assert not list(transform.parameters())


@every_map
def test_outside_is_refused(name: str) -> None:
    transform = MAKERS[name]()
    edge = torch.where(torch.isfinite(transform.low), transform.low, transform.high).expand(3)
    for bad in (edge, torch.full((3,), math.nan)):
        with pytest.raises(ValueError, match=r"expected inputs in .* got 3 outside, the first"):
            transform.forward(bad.unsqueeze(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Logit(1.0, 1.0), "bounds: expected low < high"),
        (lambda: Probit([0.0, 2.0], [1.0, 1.0]), "bounds: expected low < high"),
        (lambda: Probit(0.0, math.inf), "high: expected finite numbers"),
        (lambda: LowerBounded(math.nan), "low: expected finite numbers"),
        (lambda: UpperBounded([[1.0]]), r"high: expected finite numbers of shape \(\) or \(D,\)"),
        (lambda: Logit(1.0, math.nextafter(1.0, 2.0)), "bounds: expected room between them"),
        (
            lambda: Logit(1e6, 1e6 + 0.05).forward(torch.full((1, 1), 1e6 + 0.02)),
            "expected .*float64.*, got torch.float32",
        ),
    ],
)
def test_bad_edges_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_narrow_edges_work_in_float64() -> None:
    x, _ = Logit(1e6, 1e6 + 0.05).inverse(torch.tensor([[-50.0], [0.0], [50.0]], dtype=torch.float64))
    assert bool(((x > 1e6) & (x < 1e6 + 0.05)).all()) and float(x[1]) == pytest.approx(1e6 + 0.025, abs=1e-9)


@every_dtype
def test_tails_match_scipy(dtype: torch.dtype) -> None:
    reach = 37.0 if dtype == torch.float64 else 12.5
    z = torch.linspace(-reach, reach, 1001, dtype=dtype)
    cdf, sf = normal_tails(z)
    rounding = 4 * (1 + reach**2) * torch.finfo(dtype).eps  # Phi(z (1 + eps)) differs from Phi(z) by z^2 eps
    np.testing.assert_allclose(cdf, special.ndtr(z.double().numpy()), rtol=rounding)
    np.testing.assert_allclose(sf, special.ndtr(-z.double().numpy()), rtol=rounding)
    torch.testing.assert_close(probit_from_tails(cdf, sf), z, rtol=20 * torch.finfo(dtype).eps, atol=1e-7)


@every_dtype
def test_tails_saturate_without_zeros(dtype: torch.dtype) -> None:
    z = torch.tensor([-1e4, -40.0, 40.0, 1e4], dtype=dtype)
    for tail in normal_tails(z):
        assert bool((tail >= torch.finfo(dtype).tiny).all())
    zero = torch.zeros(1, dtype=dtype)
    assert bool(torch.isfinite(probit_from_tails(zero, 1 - zero)).all())
    assert float(probit_from_tails(zero, 1 - zero)) == -float(probit_from_tails(1 - zero, zero)) < -12


def test_slope_of_the_probit_at_the_median() -> None:
    u = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(probit_from_tails(u, 1 - u), u)
    assert float(slope) == pytest.approx(math.sqrt(2 * math.pi))


@every_dtype
@settings(max_examples=200, deadline=None, derandomize=True)
@given(value=st.floats(-1e6, 1e6, width=32), turns=st.integers(-5, 5))
def test_wrap(dtype: torch.dtype, value: float, turns: int) -> None:
    phase = torch.tensor(value, dtype=dtype)
    wrapped = wrap(phase)
    pi = torch.tensor(math.pi, dtype=dtype)
    assert -pi <= wrapped < pi and wrapped.dtype == dtype
    assert wrap(wrapped) == wrapped
    rounding = 4 * torch.finfo(dtype).eps * (1 + abs(value) + 7 * abs(turns))
    for other in (phase, wrap(phase + 2 * math.pi * turns)):
        assert abs(math.remainder(float(wrapped) - float(other), 2 * math.pi)) <= 4 * rounding
    assert (
        wrap(pi) == -pi
        and wrap(-pi) == -pi
        and wrap(torch.nextafter(pi, 0 * pi)) == torch.nextafter(pi, 0 * pi)
    )


def test_wrap_has_slope_one() -> None:
    phase = torch.linspace(-20, 20, 101, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(wrap(phase).sum(), phase)
    assert bool((slope == 1).all())


def test_next_inside_is_inside_and_normal() -> None:
    assert next_inside(0.0, 1.0) == (2.2250738585072014e-308, math.nextafter(1.0, 0.0))
    assert next_inside(-1.0, 0.0) == (math.nextafter(-1.0, 0.0), -2.2250738585072014e-308)
    assert next_inside(-math.inf, math.inf) == (-1.7976931348623157e308, 1.7976931348623157e308)
    clamped = clamp_inside(
        torch.tensor([-9.0, -1.0, 0.5, 2.0, math.inf, math.nan], dtype=torch.float64), -1.0, 2.0
    )
    first, last = next_inside(-1.0, 2.0)
    assert clamped[:5].tolist() == [first, first, 0.5, last, last] and bool(torch.isnan(clamped[5]))
