"""Priors against 400-digit arithmetic (mpmath), scipy.stats and autograd."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from sbiflow.priors import (
    Cosine,
    LogNormal,
    LogUniform,
    Marginal,
    Normal,
    PeriodicUniform,
    PowerLaw,
    Prior,
    Sine,
    TruncatedNormal,
    Uniform,
    isotropic_direction,
)
from sbiflow.priors.joint import _KINDS

INF = math.inf
Primitive = Callable[[Any], Any]


@dataclass(frozen=True)
class Case:
    """A marginal, the integral of its (unnormalised) density as an mpmath function, and scipy's version."""

    marginal: Marginal
    primitive: Primitive
    reference: Any = None
    smooth: bool = True  # density neither 0 nor infinite at an edge that floats cannot resolve

    @property
    def id(self) -> str:
        numbers = [f"{getattr(self.marginal, name):g}" for name in self.marginal.parameters()]
        return f"{type(self.marginal).__name__}({','.join(numbers)})"


def power(k: float) -> Primitive:
    return mpmath.log if k == 0 else lambda t: t ** mpmath.mpf(k) / mpmath.mpf(k)


def truncated(mean: float, sd: float, low: float, high: float) -> Case:
    a, b = (low - mean) / sd, (high - mean) / sd
    frozen = stats.truncnorm(a, b, loc=mean, scale=sd)
    marginal = TruncatedNormal("t", mean, sd, low, high)

    def primitive(t: Any) -> Any:  # from the side on which the tail is small, for enough digits at 50 sd
        y = (t - mpmath.mpf(mean)) / mpmath.mpf(sd)
        return -mpmath.erfc(y / mpmath.sqrt(2)) if a > 0 else mpmath.erfc(-y / mpmath.sqrt(2))

    return Case(marginal, primitive, frozen)


CASES = [
    Case(Uniform("u", 0.0, 5000.0), lambda t: t, stats.uniform(0, 5000)),
    Case(Uniform("u", -3.0, 0.0), lambda t: t, stats.uniform(-3, 3)),
    Case(Uniform("u", 1e6, 1e6 + 1e-3), lambda t: t),
    Case(LogUniform("l", 1e-6, 1e4), mpmath.log, stats.loguniform(1e-6, 1e4)),
    Case(LogUniform("l", 1.0, 1.0 + 1e-9), mpmath.log),
    Case(PowerLaw("p", 2.0, 0.0, 1e3), power(3.0), stats.powerlaw(3.0, scale=1e3)),
    Case(PowerLaw("p", -0.75, 0.0, 2.0), power(0.25), stats.powerlaw(0.25, scale=2.0)),
    Case(PowerLaw("p", -2.35, 0.1, 100.0), power(-2.35 + 1), stats.truncpareto(1.35, 1e3, scale=0.1)),
    Case(PowerLaw("p", -1.0, 0.5, 8.0), power(0.0), stats.loguniform(0.5, 8.0)),
    Case(PowerLaw("p", -1.0 + 1e-9, 0.5, 8.0), power(-1.0 + 1e-9 + 1.0)),
    Case(PowerLaw("p", 3.0, 0.5, 8.0), power(4.0)),
    Case(PowerLaw("p", -80.0, 1.0, 1e6), power(-79.0)),
    Case(PowerLaw("p", 80.0, 1e-6, 1.0), power(81.0), smooth=False),
    Case(Normal("n", -3.0, 0.2), lambda t: mpmath.ncdf(t, -3, mpmath.mpf(0.2)), stats.norm(-3, 0.2)),
    Case(
        LogNormal("m", 1.0, 0.5),
        lambda t: mpmath.ncdf(mpmath.log(t), 1, mpmath.mpf(0.5)) if t > 0 else mpmath.mpf(0),
        stats.lognorm(0.5, scale=math.e),
    ),
    truncated(0.0, 1.0, -1.0, 2.0),
    truncated(5.0, 1.0, 0.0, 100.0),
    truncated(0.0, 3.0, 0.0, INF),
    truncated(2.0, 0.5, -INF, 3.0),
    truncated(0.0, 1.0, 3.0, 4.0),
    truncated(0.0, 1.0, 8.0, 12.0),
    truncated(0.0, 1.0, 50.0, INF),
    truncated(10.0, 0.1, -INF, 0.0),
    truncated(0.0, 1.0, -1e-6, 1e-6),
    truncated(0.0, 1.0, -INF, INF),
    Case(Sine("s"), lambda t: -mpmath.cos(t), smooth=False),
    Case(Sine("s", 0.3, 1.2), lambda t: -mpmath.cos(t)),
    Case(Cosine("c"), mpmath.sin, smooth=False),
    Case(Cosine("c", -0.2, 0.1), mpmath.sin),
]
PERIODIC = [
    PeriodicUniform("a"),
    PeriodicUniform("a", 0.0, 180.0, "deg"),
    PeriodicUniform("a", -math.pi, math.pi),
]
MARGINALS = [case.marginal for case in CASES] + PERIODIC
Z_GRID = torch.tensor(
    [-37, -30, -20, -8.5, -5, -2, -1, -0.3, 0, 0.4, 1, 3, 6, 8.5, 20, 37], dtype=torch.float64
)


def test_every_kind_is_in_the_catalogue() -> None:
    assert {type(marginal) for marginal in MARGINALS} == set(_KINDS.values())


def exact_tails(case: Case, theta: float) -> tuple[Any, Any]:
    """cdf and sf of theta with 400 digits, so that differences of the primitive may cancel 300 of them."""
    with mpmath.workdps(400):
        low, high = (case.primitive(mpmath.mpf(edge)) for edge in case.marginal.support)
        at = case.primitive(mpmath.mpf(theta))
        return (at - low) / (high - low), (high - at) / (high - low)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_base_variable_matches_400_digits(case: Case) -> None:
    theta = case.marginal.from_base(Z_GRID)
    for value, z in zip(theta.tolist(), case.marginal.to_base(theta).tolist(), strict=True):
        cdf, sf = exact_tails(case, value)
        tail = float(mpmath.log(min(cdf, sf)))
        got = float(mpmath.log(mpmath.ncdf(-abs(mpmath.mpf(z)))))
        assert got == pytest.approx(tail, rel=1e-12, abs=1e-9), (value, z)
        assert (z < 0) == (cdf < sf) or abs(z) < 1e-6


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_density_is_the_derivative_of_the_distribution(case: Case) -> None:
    theta = case.marginal.from_base(Z_GRID[Z_GRID.abs() < 9])
    with mpmath.workdps(150):
        low, high = (case.primitive(mpmath.mpf(edge)) for edge in case.marginal.support)
        for value, got in zip(theta.tolist(), case.marginal.log_prob(theta).tolist(), strict=True):
            step = mpmath.mpf(value or 1.0) * mpmath.mpf(10) ** -60
            change = case.primitive(value + step) - case.primitive(value - step)
            expected = float(mpmath.log(change / (2 * step) / (high - low)))
            assert got == pytest.approx(expected, rel=1e-12, abs=1e-9), value


@pytest.mark.parametrize("case", [case for case in CASES if case.reference], ids=lambda case: case.id)
def test_density_and_quantiles_match_scipy(case: Case) -> None:
    u = np.array([1e-12, 1e-4, 0.03, 0.2, 0.5, 0.7, 0.96, 0.9999])
    theta = case.marginal.from_uniform(torch.as_tensor(u))
    np.testing.assert_allclose(theta, case.reference.ppf(u), rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(
        case.marginal.log_prob(theta), case.reference.logpdf(theta), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_theta_to_z_and_back(case: Case) -> None:
    """To relative accuracy in both tails, next to an edge at zero too."""
    theta = case.marginal.from_base(torch.linspace(-37.0, 37.0, 2961, dtype=torch.float64))
    again = case.marginal.from_base(case.marginal.to_base(theta))
    torch.testing.assert_close(
        again, theta, rtol=5e-12, atol=1e-300 if 0.0 in case.marginal.support else 1e-14
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_z_to_theta_and_back(case: Case) -> None:
    """z survives to +-37 where theta can resolve it: at an edge at zero and in an infinite tail."""
    low, high = case.marginal.support
    bottom, top = (-37.0 if low in (0.0, -INF) else -5.0), (37.0 if high in (0.0, INF) else 5.0)
    if low == 0.0:  # theta = 1e-1198 has no float
        bottom = max(bottom, float(case.marginal.to_base(torch.tensor(1e-300, dtype=torch.float64))))
    z = torch.linspace(bottom, top, 1500, dtype=torch.float64)
    theta = case.marginal.from_base(z)
    slope = torch.exp(case.marginal.log_prob(theta) - case.marginal.base_log_prob(z))
    unit = (
        theta.abs() if not isinstance(case.marginal, Cosine) else torch.ones_like(theta)
    )  # rounded with pi/2
    rounding = slope * torch.as_tensor(np.spacing(unit.numpy()))
    error = (case.marginal.to_base(theta) - z).abs()
    assert bool((error <= 1e-11 * (1 + z.abs()) + 8 * rounding).all())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_log_jacobian_matches_autograd(case: Case) -> None:
    """Both ways. Where the density vanishes at an edge, theta is too coarse a number from |z| = 8 on."""
    reach = 37.0 if case.smooth else 6.0
    prior = Prior(case.marginal)
    z = torch.linspace(-reach, reach, 149, dtype=torch.float64).unsqueeze(-1).requires_grad_()
    theta, log_slope = prior.constrain(z)
    (slope,) = torch.autograd.grad(theta.sum(), z)
    resolved = slope[:, 0] > 0  # a saturated theta has no slope
    assert bool(resolved[z[:, 0].abs() < 5].all())
    torch.testing.assert_close(log_slope[resolved], slope[resolved, 0].log(), rtol=1e-9, atol=1e-8)

    theta = theta.detach().requires_grad_()
    z, log_slope = prior.unconstrain(theta)
    (slope,) = torch.autograd.grad(z.sum(), theta)
    near = z[:, 0].abs() < 6
    torch.testing.assert_close(log_slope[near], slope[near, 0].log(), rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_gradient_of_the_density_matches_differences(case: Case) -> None:
    theta = case.marginal.from_base(torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(case.marginal.log_prob(theta).sum(), theta)
    scale = torch.minimum(theta.detach().abs(), theta.detach().std())
    with torch.no_grad():
        ahead, behind = (case.marginal.log_prob(theta + sign * 1e-4 * scale) for sign in (1, -1))
    torch.testing.assert_close(gradient * scale, (ahead - behind) / 2e-4, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("marginal", MARGINALS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_z_stays_inside_with_finite_gradients(marginal: Marginal, dtype: torch.dtype) -> None:
    prior = Prior(marginal)
    sizes = torch.tensor(
        [0.0, 1e-300, 3.0, 8.3, 12.9, 13.1, 37.4, 37.6, 38.5, 40.0, 709.0, 1e4, 1e6], dtype=dtype
    )
    z = torch.cat([sizes, -sizes]).unsqueeze(-1).requires_grad_()
    theta, log_slope = prior.constrain(z)
    assert theta.dtype == log_slope.dtype == torch.float64
    assert bool(prior.inside(theta).all())
    assert bool(torch.isfinite(theta).all()) and bool(torch.isfinite(log_slope).all())
    (gradient,) = torch.autograd.grad((theta / theta.detach().abs().clamp(min=1.0)).sum(), z)
    assert bool(torch.isfinite(gradient).all())
    again, log_inverse = prior.unconstrain(theta.detach())
    assert bool(torch.isfinite(again).all()) and bool(torch.isfinite(log_inverse).all())
    low, _ = marginal.support
    flushed = (
        theta.detach().abs() >= 2.2250738585072014e-308
    )  # no subnormal number, which a device may flush to 0
    assert bool((flushed | (theta.detach() == 0)).all()) and (
        low != 0.0 or marginal.periodic or bool(flushed.all())
    )


@pytest.mark.parametrize("marginal", MARGINALS, ids=str)
def test_results_stay_on_the_device(marginal: Marginal) -> None:
    """The meta device refuses what a GPU would: a tensor left on the CPU."""
    prior, z = Prior(marginal), torch.zeros(5, 1, device="meta")
    theta, log_slope = prior.constrain(z)
    assert theta.device.type == log_slope.device.type == prior.log_prob(theta).device.type == "meta"
    assert (
        marginal._to_base(theta[:, 0]).device.type == marginal.from_uniform(theta[:, 0]).device.type == "meta"
    )


@pytest.mark.parametrize("marginal", MARGINALS, ids=str)
def test_prior_plus_jacobian_is_the_base(marginal: Marginal) -> None:
    prior = Prior(marginal)
    z = torch.linspace(-40.0, 40.0, 81, dtype=torch.float64).unsqueeze(-1)
    theta, log_slope = prior.constrain(z)
    expected = (
        torch.full((81,), -math.log(2 * math.pi), dtype=torch.float64)
        if marginal.periodic
        else torch.as_tensor(stats.norm.logpdf(z[:, 0]))
    )
    torch.testing.assert_close(prior.log_prob(theta) + log_slope, expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("marginal", MARGINALS, ids=str)
def test_outside_has_no_density_and_raises(marginal: Marginal) -> None:
    prior, (low, high) = Prior(marginal), marginal.support
    edges = [edge for edge in (low if not marginal.periodic else -INF, high) if math.isfinite(edge)]
    beyond = [math.nextafter(low, -INF)] * math.isfinite(low) + [math.nextafter(high, INF)] * math.isfinite(
        high
    )
    for value in [*edges, *beyond, math.nan, -INF, INF]:
        theta = torch.tensor([[value]], dtype=torch.float64)
        assert not bool(prior.inside(theta))
        assert float(prior.log_prob(theta)) == -INF
        with pytest.raises(ValueError, match=rf"^{marginal.name}.*expected values in.*got 1 outside"):
            prior.unconstrain(theta)
    inside = [
        math.nextafter(edge, target) for edge, target in ((low, INF), (high, -INF)) if math.isfinite(edge)
    ]
    z, log_slope = prior.unconstrain(torch.tensor(inside, dtype=torch.float64).unsqueeze(-1))
    assert bool(torch.isfinite(z).all()) and bool(torch.isfinite(log_slope).all())


def test_samples_follow_the_distribution() -> None:
    """Kolmogorov-Smirnov on 5,000 draws of each kind, p > 1e-6: false alarms below 3e-5 in all."""
    generator = torch.Generator().manual_seed(4)
    for case in CASES:
        if case.reference is not None:
            draws = Prior(case.marginal).sample(5000, generator)[:, 0].numpy()
            assert stats.kstest(draws, case.reference.cdf).pvalue > 1e-6, case.id
    for marginal, cdf in (
        (Sine("s"), lambda t: 0.5 * (1 - np.cos(t))),
        (Cosine("c"), lambda t: 0.5 * (1 + np.sin(t))),
        (PeriodicUniform("a", 1.0, 4.0), lambda t: (t - 1) / 3),
    ):
        draws = Prior(marginal).sample(5000, generator)[:, 0].numpy()
        assert stats.kstest(draws, cdf).pvalue > 1e-6, marginal


def test_isotropic_direction_has_no_preferred_axis() -> None:
    """Second moments of the unit vector are 1/3: 6 sigma of 0.3 / sqrt(20,000), false alarms below 2e-8."""
    for kind, latitude in (("cosine", lambda t: t), ("sine", lambda t: 0.5 * math.pi - t)):
        prior = Prior(isotropic_direction("ra", "dec", kind))
        azimuth, polar = prior.sample(20_000, torch.Generator().manual_seed(9)).unbind(-1)
        b = latitude(polar)
        vector = torch.stack([b.cos() * azimuth.cos(), b.cos() * azimuth.sin(), b.sin()])
        assert prior.names == ("ra", "dec") and prior.units == ("rad", "rad")
        torch.testing.assert_close(vector @ vector.T / 20_000, torch.eye(3).double() / 3, rtol=0, atol=0.0128)
    with pytest.raises(ValueError, match="expected 'cosine' or 'sine', got 'tangent'"):
        isotropic_direction("ra", "dec", "tangent")


@pytest.mark.parametrize("marginal", PERIODIC, ids=str)
def test_phase_wraps(marginal: PeriodicUniform) -> None:
    prior, period = Prior(marginal), marginal.high - marginal.low
    z = torch.linspace(-3.1, 3.1, 41, dtype=torch.float64).unsqueeze(-1)
    theta, _ = prior.constrain(z)
    for turns in (-3, 1, 1000):
        torch.testing.assert_close(
            prior.constrain(z + 2 * math.pi * turns)[0], theta, rtol=1e-10, atol=1e-11 * period
        )
    torch.testing.assert_close(prior.unconstrain(theta)[0], z, rtol=1e-12, atol=1e-14)
    z, log_slope = prior.unconstrain(torch.tensor([[marginal.low]], dtype=torch.float64))
    assert float(z) == -math.pi and float(log_slope) == pytest.approx(math.log(2 * math.pi / period))
    assert (
        float(prior.constrain(torch.tensor([[math.pi]], dtype=torch.float64))[0]) == marginal.low
    )  # never the upper end


NUMBERS = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)
WIDTHS = st.floats(1e-6, 1e6)
EXPONENTS = st.floats(-30, 30)


@st.composite
def marginals(draw: st.DrawFn) -> Marginal:
    """Any distribution with any numbers; bounds at least 1e-6 apart, so at least 1,000 floats of room."""
    kind = draw(st.sampled_from(sorted(_KINDS)))
    low, width = draw(NUMBERS), draw(WIDTHS)
    if kind in ("Uniform", "PeriodicUniform"):
        return _KINDS[kind]("x", low, low + width)
    if kind in ("Normal", "LogNormal"):
        return _KINDS[kind](
            "x", low if kind == "Normal" else low % 20, width if kind == "Normal" else 1 + width % 5
        )
    if kind == "LogUniform":
        return LogUniform("x", abs(low) + 1e-6, abs(low) + 1e-6 + width)
    if kind == "PowerLaw":
        return PowerLaw("x", draw(EXPONENTS), abs(low) + 1e-6, abs(low) + 1e-6 + width)
    if kind == "TruncatedNormal":
        distance = draw(st.floats(-60, 60))
        return TruncatedNormal(
            "x", low + distance * width / 10, width / draw(st.floats(0.1, 100)), low, low + width
        )
    start, stop = sorted(draw(st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True)))
    stop = min(max(stop, start + 1e-3), 1.0)
    offset = 0.5 * math.pi if kind == "Cosine" else 0.0
    return _KINDS[kind](
        "x", (stop - 1e-3 if stop - start < 1e-3 else start) * math.pi - offset, stop * math.pi - offset
    )


@example(TruncatedNormal("x", 0.1, 1.0, 0.0, 1.0), [0.0])
@example(TruncatedNormal("x", 0.0, 1 / 38, 0.0, 1.0), [38.0])
@settings(max_examples=300, deadline=None, derandomize=True)
@given(marginals(), st.lists(st.one_of(st.floats(-40, 40), st.floats(-1e4, 1e4)), min_size=1, max_size=8))
def test_any_prior_any_z(marginal: Marginal, values: list[float]) -> None:
    """Inside the support, monotone, finite, and theta -> z -> theta closes within rounding of theta."""
    prior = Prior(marginal)
    z = torch.tensor(sorted(values), dtype=torch.float64).unsqueeze(-1)
    theta, log_slope = prior.constrain(z)
    assert bool(prior.inside(theta).all()) and bool(torch.isfinite(log_slope).all())
    scale = max([abs(edge) for edge in marginal.support if math.isfinite(edge)], default=1.0)
    if not marginal.periodic:
        assert bool((theta.diff(dim=0) >= -1e-12 * scale).all())
    again, log_inverse = prior.unconstrain(theta)
    closed, _ = prior.constrain(again)
    torch.testing.assert_close(closed, theta, rtol=1e-10, atol=1e-13 * scale)
    torch.testing.assert_close(log_inverse, prior.log_prob(theta) - prior.base_log_prob(again))


JOINT = Prior(
    Uniform("B", 0, 5000, "G", "field"),
    LogUniform("width", 0.01, 0.5, "Å"),
    TruncatedNormal("v", 0, 2, -INF, 5.0, "km/s"),
    PeriodicUniform("azimuth", 0, 180, "deg"),
)


def test_joint_prior_is_the_product() -> None:
    theta = JOINT.sample(6, torch.Generator().manual_seed(0))
    assert theta.shape == (6, 4) and theta.dtype == torch.float64
    parts = torch.stack([m.log_prob(theta[:, i]) for i, m in enumerate(JOINT.marginals)]).sum(0)
    torch.testing.assert_close(JOINT.log_prob(theta), parts)
    grid = theta.reshape(2, 3, 4)
    assert JOINT.log_prob(grid).shape == JOINT.inside(grid).shape == (2, 3)
    z, log_slope = JOINT.unconstrain(grid)
    assert z.shape == (2, 3, 4) and log_slope.shape == (2, 3)
    torch.testing.assert_close(JOINT.constrain(z)[0], grid)
    torch.testing.assert_close(JOINT.constrain(z)[1], -log_slope)
    assert JOINT.dim == 4 and JOINT.names == ("B", "width", "v", "azimuth")
    assert JOINT.units == ("G", "Å", "km/s", "deg") and JOINT.labels == ("field", "width", "v", "azimuth")
    assert JOINT.low.tolist() == [0, 0.01, -INF, 0] and JOINT.high.tolist() == [5000, 0.5, 5, 180]
    assert JOINT.periodic.tolist() == [False, False, False, True]
    assert JOINT.sample(0).shape == (0, 4)
    one = theta.clone()
    one[2, 0] = 5000.0
    assert JOINT.inside(one).tolist() == [True, True, False, True, True, True]
    with pytest.raises(ValueError, match=r"^B \[G\]: expected values in \(0, 5000\), got 1 outside"):
        JOINT.unconstrain(one)


def test_from_uniform_takes_arrays_and_refuses_edges() -> None:
    u = np.full((3, 4), 0.5)
    assert JOINT.from_uniform(u)[0, 0] == 2500.0
    assert bool(JOINT.inside(JOINT.from_uniform(np.full((1, 4), 2.0**-54))).all())
    assert bool(JOINT.inside(JOINT.from_uniform(np.full((1, 4), 1 - 2.0**-53))).all())
    for bad in (0.0, 1.0, math.nan, -0.1):
        u[1, 2] = bad
        with pytest.raises(ValueError, match="u: expected values in the open interval"):
            JOINT.from_uniform(u)


@pytest.mark.parametrize(
    "method", ["log_prob", "inside", "unconstrain", "constrain", "base_log_prob", "from_uniform"]
)
def test_wrong_shape_is_named(method: str) -> None:
    with pytest.raises(ValueError, match=r"expected shape \(\.\.\., 4\), got \(2, 3\)"):
        getattr(JOINT, method)(torch.full((2, 3), 0.5))


def test_nan_stays_nan() -> None:
    theta, log_slope = JOINT.constrain(torch.full((1, 4), math.nan))
    assert bool(torch.isnan(theta).all()) and not bool(torch.isfinite(log_slope).any())


def test_same_seed_same_draws() -> None:
    draws = [JOINT.sample(5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert bool((draws[0] == draws[1]).all()) and not bool((draws[0] == draws[2]).any())


def test_rows_do_not_depend_on_the_batch() -> None:
    """The store's rows are the same bytes whatever the block they are computed in."""
    prior = Prior(
        [type(m)(f"p{i}", *(getattr(m, p) for p in m.parameters())) for i, m in enumerate(MARGINALS)]
    )
    u = torch.rand(37, prior.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = prior.from_uniform(u)
    assert bool((torch.cat([prior.from_uniform(u[i : i + 1]) for i in range(37)]) == whole).all())


def test_spec_round_trip_through_json_and_pickle() -> None:
    prior = Prior(
        *(
            type(m)(f"p{i}", *(getattr(m, p) for p in m.parameters()), "km", "l")
            for i, m in enumerate(MARGINALS)
        )
    )
    text = json.dumps(prior.spec(), allow_nan=False)
    assert Prior.from_spec(json.loads(text)) == prior
    assert pickle.loads(pickle.dumps(prior)) == prior
    assert prior != JOINT and hash(prior) != hash(JOINT)
    assert Prior(Uniform("a", 0, 1)) != Prior(Uniform("a", 0, 2)) and Prior(Uniform("a", 0, 1)) == Prior(
        [Uniform("a", 0.0, 1.0)]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "Cauchy"}, "expected a kind among Uniform, .*got 'Cauchy'"),
        ({"width": 3}, r"expected the fields \['high', 'label', 'low', 'name', 'unit'\], got .*'width'"),
        ({"low": 7000}, "B: expected finite low < high"),
        ({"low": "wide"}, "B: expected a number as low, got 'wide'"),
    ],
)
def test_foreign_spec_is_refused(change: dict[str, Any], message: str) -> None:
    spec = JOINT.spec()
    spec[0].update(change)
    with pytest.raises(ValueError, match=message):
        Prior.from_spec(spec)


def test_covers() -> None:
    def changed(*marginals: Marginal) -> list[str]:
        return JOINT.covers(Prior(*JOINT.marginals[: 4 - len(marginals)], *marginals))

    azimuth = JOINT.marginals[3]
    assert JOINT.covers(JOINT) == []
    assert changed(Normal("v", 0, 1, "km/s"), azimuth) == [
        "v [km/s]: expected a support within (-inf, 5), got (-inf, inf), which is wider"
    ]
    assert changed(Uniform("v", -1, 5, "km/s"), azimuth) == []
    assert changed(Uniform("azimuth", 0, 180, "deg")) == []
    assert changed(PeriodicUniform("azimuth", -90, 90, "deg")) == [
        "azimuth [deg]: expected a support within [0, 180), got [-90, 90), which is wider"
    ]
    assert changed(PeriodicUniform("azimuth", 0, 180, "rad")) == ["azimuth: expected the unit deg, got rad"]
    (text,) = JOINT.covers(Prior(*reversed(JOINT.marginals)))
    assert text == "expected the parameters B, width, v, azimuth, got azimuth, v, width, B"


def test_text_shows_names_units_and_supports() -> None:
    lines = str(JOINT).splitlines()
    assert lines[1] == "B          G     Uniform(low=0, high=5000)                        (0, 5000)"
    assert (
        len(
            {
                line.find(word)
                for line, word in zip(lines[1:], ("(0, 5", "(0.01, 0.5)", "(-inf, 5)", "[0"), strict=True)
            }
        )
        == 1
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform("a", 1, 1), "a: expected finite low < high, got low=1.0, high=1.0"),
        (lambda: Uniform("a", 2, 1), "expected finite low < high"),
        (lambda: Uniform("a", 0, INF), "expected finite low < high"),
        (lambda: Uniform("a", -1e308, 1e308), "expected finite low < high"),
        (lambda: Uniform("a", math.nan, 1), "a: expected a number as low, got nan"),
        (lambda: Uniform("a", None, 1), "a: expected a number as low, got None"),
        (lambda: Uniform("a", 1.0, math.nextafter(1.0, 2.0)), "expected room between low and high"),
        (lambda: Uniform("", 0, 1), "Uniform: expected a name, got ''"),
        (lambda: LogUniform("a", 0, 1), "a: expected low > 0"),
        (lambda: LogUniform("a", -1, 1), r"expected finite low < high in \[0, inf\]"),
        (lambda: PowerLaw("a", -1, 0, 1), "expected low > 0 for exponent -1"),
        (lambda: PowerLaw("a", INF, 1, 2), "expected a finite exponent"),
        (lambda: Normal("a", 0, 0), "a: expected finite mean and sd > 0, got mean=0.0, sd=0.0"),
        (lambda: Normal("a", INF, 1), "expected finite mean and sd > 0"),
        (lambda: LogNormal("a", 0, -1), "expected finite mean_log and sd_log > 0"),
        (lambda: TruncatedNormal("a", 0, 1, 3, 2), "a: expected low < high"),
        (lambda: TruncatedNormal("a", 0, INF, 0, 2), "expected finite mean and sd > 0"),
        (lambda: Sine("a", -0.1, 1), "expected finite low < high in"),
        (lambda: Cosine("a", 0, 1.6), "expected finite low < high in"),
        (lambda: PeriodicUniform("a", 1, 0), "expected finite low < high"),
        (lambda: Prior(), "prior: expected at least one marginal, got none"),
        (lambda: Prior("a"), "prior: expected marginals, got str"),  # type: ignore[arg-type]
        (
            lambda: Prior(Uniform("a", 0, 1), Normal("a", 0, 1)),
            "expected distinct names, got a more than once",
        ),
        (lambda: JOINT.sample(-1), "n: expected a whole number >= 0, got -1"),
    ],
)
def test_bad_numbers_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
