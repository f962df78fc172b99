"""The map from the unit cube, against mpmath, quadrature and its own promises at the edges of floating point."""

import json
import math
import re

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from sbiflow.integrate.domain import Domain

INF = math.inf
AXES = {
    "finite": (-1.0, 3.0),
    "shifted": (1e6, 1e6 + 1e-3),
    "half": (0.0, INF),
    "half, shifted": (-2.5, INF),
    "half, upwards": (-INF, 0.0),
    "whole line": (-INF, INF),
}
# Both walls, both neighbours of the middle and everything between.
PLACES = [
    1e-300,
    1e-100,
    2.0**-54,
    1e-9,
    0.2,
    0.25,
    0.5 - 2.0**-54,
    0.5,
    0.5 + 2.0**-53,
    0.9,
    1 - 1e-9,
    1 - 2.0**-53,
]
FLOAT = torch.float64
EPS = 2.0**-52


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=FLOAT)[:, None]


def exact(u: float, low: float, high: float, scale: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """x and log dx/du at the float u, by the formulas of infinite.py in 60 digits."""
    u = mpmath.mpf(u)
    v = 1 - u
    if math.isfinite(low) and math.isfinite(high):
        width = mpmath.mpf(high) - mpmath.mpf(low)
        return low + width * u, mpmath.log(width)
    if math.isfinite(low):
        return low + scale * u / v, mpmath.log(scale / v**2)
    if math.isfinite(high):
        return high - scale * v / u, mpmath.log(scale / u**2)
    third = mpmath.mpf(3) * scale / 8
    return third * (1 / v - 1 / u), mpmath.log(third * (1 / v**2 + 1 / u**2))


def exact_u(x: float, low: float, high: float, scale: float) -> mpmath.mpf:
    """The inverse, the whole line by bisection in 400 digits."""
    x = mpmath.mpf(x)
    if math.isfinite(low):
        return (x - low) / (x - low + scale)
    if math.isfinite(high):
        return scale / (high - x + scale)
    if x == 0:
        return mpmath.mpf(1) / 2
    y = 8 * x / (3 * mpmath.mpf(scale))  # y u² + (2 - y) u - 1 = 0
    return ((y - 2) + mpmath.sqrt((2 - y) ** 2 + 4 * y)) / (2 * y)


# --- values


@pytest.mark.parametrize("name", AXES)
def test_x_and_its_jacobian_agree_with_60_digits(name):
    low, high = AXES[name]
    scale = 0.7
    x, log_jacobian = Domain.from_bounds([(low, high)], scales=scale).to_x(column(*PLACES))
    size = max(abs(value) for value in (low, high) if math.isfinite(value)) if name != "whole line" else 0.0
    with mpmath.workdps(60):
        for u, got, log_got in zip(PLACES, x[:, 0].tolist(), log_jacobian.tolist(), strict=True):
            if not math.isfinite(low) and u < 2.0**-500:
                continue  # beyond what the map reaches; tested below
            want, log_want = exact(u, low, high, scale)
            assert abs(got - want) <= 4 * EPS * max(abs(want), size), u
            assert abs(log_got - log_want) <= 4 * EPS * max(abs(log_want), 1), u


SIZES = [0.0, 1e-200, 1e-9, 0.3, 2.0, 1e5, 1e17, 1e150, 1e290]
FAR = [
    (name, x)
    for name in ("half", "half, shifted", "half, upwards", "whole line")
    for x in [*SIZES, *(-size for size in SIZES[1:])]
    if AXES[name][0] <= x <= AXES[name][1]
]


@pytest.mark.parametrize(("name", "x"), FAR)
def test_the_inverse_is_accurate_in_both_tails(name, x):
    low, high = AXES[name]
    u, log_jacobian = Domain.from_bounds([(low, high)], scales=0.7).to_u(column(x))
    with mpmath.workdps(400):
        want = exact_u(x, low, high, 0.7)
        _, log_want = exact(want, low, high, 0.7) if 0 < want < 1 else (None, mpmath.log(mpmath.mpf(0.7)))
        assert abs(float(u) - want) <= 4 * EPS * want  # relative: the lower tail is as fine as floats are
        assert abs(float(log_jacobian) + log_want) <= 4 * EPS * max(abs(log_want), 1)


@pytest.mark.parametrize("bounds", [(0.0, INF), (-3.0, INF), (-INF, 0.0), (-INF, 4.0), (-INF, INF)])
def test_the_scale_is_the_median_distance(bounds):
    low, high = bounds
    x, _ = Domain.from_bounds([bounds], scales=0.7).to_x(column(0.25, 0.5, 0.75))
    if math.isfinite(low):
        assert float(x[1]) == pytest.approx(low + 0.7, rel=1e-15)
    elif math.isfinite(high):
        assert float(x[1]) == pytest.approx(high - 0.7, rel=1e-15)
    else:
        assert x[:, 0].tolist() == pytest.approx([-0.7, 0.0, 0.7], rel=1e-15)


INTEGRALS = [
    (lambda x: math.exp(-0.5 * x * x), (-INF, INF), math.sqrt(2 * math.pi)),
    (lambda x: math.exp(-0.5 * (x - 3) ** 2), (-INF, 2.0), math.sqrt(2 * math.pi) * stats.norm.cdf(-1.0)),
    (lambda x: math.exp(-x) * math.sqrt(x), (0.0, INF), math.gamma(1.5)),
    (lambda x: 1 / (1 + x * x), (-INF, INF), math.pi),
    (lambda x: (1 + x) ** -1.75, (0.0, INF), 1 / 0.75),
    (lambda x: math.cos(x), (-1.0, 0.5), math.sin(0.5) + math.sin(1.0)),
]


@pytest.mark.parametrize("index", range(len(INTEGRALS)))
@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_integrals_are_kept(index, scale):
    f, bounds, truth = INTEGRALS[index]
    domain = Domain.from_bounds([bounds], scales=scale)

    def in_the_cube(u: float) -> float:
        x, log_jacobian = domain.to_x(column(u))
        return f(float(x)) * math.exp(float(log_jacobian))

    value, _ = integrate.quad(in_the_cube, 0.0, 1.0, limit=400, epsabs=1e-12, epsrel=1e-10)
    assert value == pytest.approx(truth, rel=1e-8)


@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
def test_power_laws_at_the_wall_are_as_described(power):
    """f = x^-p times dx/du goes as (1 - u)^(p - 2)."""
    distance = torch.logspace(-12, -6, 7, dtype=FLOAT)
    x, log_jacobian = Domain.from_bounds([(0.0, INF)]).to_x((1.0 - distance)[:, None])
    slope = np.polyfit(distance.log().numpy(), (log_jacobian - power * x[:, 0].log()).numpy(), 1)[0]
    assert slope == pytest.approx(power - 2.0, abs=1e-3)


def test_the_jacobian_is_that_of_autograd():
    domain = Domain.from_bounds(list(AXES.values()), scales=0.7)
    u = torch.rand(20, domain.dim, dtype=FLOAT, generator=torch.Generator().manual_seed(1))
    for row in u:
        jacobian = torch.autograd.functional.jacobian(lambda v: domain.to_x(v[None])[0][0], row)
        assert float(torch.linalg.slogdet(jacobian)[1]) == pytest.approx(
            float(domain.to_x(row[None])[1]), rel=1e-12
        )


# --- edges


@pytest.mark.parametrize("name", AXES)
def test_the_walls_of_the_cube_are_finite_points_of_the_domain(name):
    low, high = AXES[name]
    x, log_jacobian = Domain.from_bounds([(low, high)]).to_x(column(0.0, 5e-324, 1.0))
    assert bool(torch.isfinite(x).all() and torch.isfinite(log_jacobian).all())
    assert bool(torch.isfinite(x**2).all())  # a Gaussian there is 0, not NaN
    assert bool(((x >= low) & (x <= high)).all())
    first, _, last = x[:, 0].tolist()
    assert first == low if math.isfinite(low) else first < -1e150
    assert last == high if math.isfinite(high) else last > 6e15


@pytest.mark.parametrize("bounds", [(-1e16, 1.0), (-1.0, 1e16), (0.1, 0.3), (-0.7, 0.1), (1e16, 1e16 + 2)])
def test_finite_limits_are_reached_exactly(bounds):
    domain = Domain.from_bounds([bounds])
    x, _ = domain.to_x(column(0.0, 1.0))
    assert x[:, 0].tolist() == list(bounds)
    assert domain.to_u(x)[0][:, 0].tolist() == [0.0, 1.0]


def test_scales_that_take_x_over_the_largest_float():
    bounds = [(0.0, INF), (-INF, 0.0), (-INF, INF)]
    vast = Domain.from_bounds(bounds, scales=1e300)
    x, log_jacobian = vast.to_x(column(0.0, 1e-100, 1.0 - 2.0**-53, 1.0).expand(-1, 3))
    assert bool(torch.isfinite(x).all() and torch.isfinite(log_jacobian).all())
    tiny = Domain.from_bounds(bounds, scales=1e-5)
    u, log_jacobian = tiny.to_u(torch.tensor([[1e308, -1e308, 1e308], [1e308, -1e308, -1e308]], dtype=FLOAT))
    assert u.tolist() == pytest.approx(np.array([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    assert bool(torch.isfinite(log_jacobian).all())


@given(
    low=st.floats(-1e300, 1e300),
    width=st.floats(1e-300, 1e300),
    u=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20),
)
def test_finite_axes_never_leave_their_limits(low, width, u):
    high = low + width
    if not low < high:
        high = math.nextafter(low, INF)
    domain = Domain.from_bounds([(low, high)])
    x, log_jacobian = domain.to_x(column(*u))
    assert bool(((x >= low) & (x <= high)).all())
    assert bool(torch.isfinite(log_jacobian).all())
    back, _ = domain.to_u(x)
    rounding = EPS * (1.0 + max(abs(low), abs(high)) / (high - low))
    assert bool(((back - column(*u)).abs() <= 2.0 * rounding).all())


@given(
    limit=st.floats(-1e300, 1e300),
    scale=st.floats(1e-100, 1e100),
    u=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20),
)
def test_infinite_axes_never_leave_their_limits(limit, scale, u):
    domain = Domain.from_bounds([(limit, INF), (-INF, limit), (-INF, INF)], scales=scale)
    x, log_jacobian = domain.to_x(column(*u).expand(-1, 3))
    assert bool(torch.isfinite(x).all() and torch.isfinite(log_jacobian).all())
    assert bool((x[:, 0] >= limit).all() and (x[:, 1] <= limit).all())


@given(u=st.floats(1e-140, 1 - 2.0**-53), scale=st.floats(1e-3, 1e3))
def test_there_and_back(u, scale):
    domain = Domain.from_bounds([(0.0, INF), (-INF, 0.0), (-INF, INF), (0.0, 5.0)], scales=scale)
    x, log_jacobian = domain.to_x(torch.full((1, 4), u, dtype=FLOAT))
    back, log_back = domain.to_u(x)
    assert bool(((back - u).abs() <= 8 * EPS * u).all())
    # d log(dx/du) / dx is at most 2 per relative change of 1 - u, which x has to a few ulp
    assert float(log_jacobian + log_back) == pytest.approx(0.0, abs=1e-12)


def test_x_grows_with_u():
    u = torch.cat([torch.logspace(-300, -1, 400, dtype=FLOAT), torch.linspace(0.1, 1.0, 1000, dtype=FLOAT)])
    domain = Domain.from_bounds(list(AXES.values()))
    x, _ = domain.to_x(u[:, None].expand(-1, domain.dim))
    assert bool((x.diff(dim=0) >= 0.0).all())
    assert bool((x[1::100].diff(dim=0)[5:] > 0.0).all())


def test_the_unit_cube_stays_what_it_is():
    u = torch.rand(10_000, 3, dtype=FLOAT, generator=torch.Generator().manual_seed(1))
    x, log_jacobian = Domain.from_bounds([(0, 1)] * 3).to_x(u)
    assert torch.equal(x, u) and not bool(log_jacobian.any())


def test_the_jacobian_of_a_tiny_and_a_vast_box_is_in_log_space():
    for width, dim in ((1e-300, 5), (1e300, 5)):
        _, log_jacobian = Domain.from_bounds([(0.0, width)] * dim).to_x(
            torch.full((1, dim), 0.5, dtype=FLOAT)
        )
        assert float(log_jacobian) == pytest.approx(dim * math.log(width), rel=1e-15)


# --- periodic axes


def test_points_of_a_periodic_axis_are_wrapped():
    domain = Domain.from_bounds([(0.0, 2 * math.pi), (-1.0, 1.0)], periodic=[0])
    inside = torch.tensor([[0.0, 0.3], [1.0, 0.3], [2 * math.pi, 0.3]], dtype=FLOAT)
    u, _ = domain.to_u(inside)
    assert u[:, 0].tolist() == pytest.approx([0.0, 1 / (2 * math.pi), 1.0])
    turns = torch.tensor([[2 * math.pi, 0.0], [-4 * math.pi, 0.0], [200 * math.pi, 0.0]], dtype=FLOAT)
    wrapped, log_jacobian = domain.to_u(inside[1:2] + turns)
    assert wrapped.numpy() == pytest.approx(u[1:2].expand(3, -1).numpy(), abs=1e-13)
    assert log_jacobian.tolist() == pytest.approx([-math.log(4 * math.pi)] * 3)


def test_a_point_just_outside_a_periodic_axis_does_not_leave_the_cube():
    low, high = -1.71, 0.7
    assert low + (high - low) > high  # the width is rounded up
    just_outside = column(math.nextafter(low, -2.0), math.nextafter(high, 1.0))
    u, _ = Domain.from_bounds([(low, high)], periodic=[0]).to_u(just_outside)
    assert 1.0 - 1e-15 < float(u[0]) <= 1.0 and 0.0 <= float(u[1]) < 1e-15


# --- shapes, types, saving


def test_other_types_and_no_points():
    domain = Domain.from_bounds(np.array([[0, 2], [1, 3]]))
    want = [[1.0, 2.0]]
    for u in (torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.5]], dtype=FLOAT)):
        before = u.clone()
        x, log_jacobian = domain.to_x(u)
        assert x.dtype == log_jacobian.dtype == FLOAT and x.tolist() == want and torch.equal(u, before)
        assert domain.to_u(x)[0].tolist() == [[0.5, 0.5]]
    x, log_jacobian = domain.to_x(torch.empty(0, 2, dtype=FLOAT))
    assert x.shape == (0, 2) and log_jacobian.shape == (0,)
    assert domain.to_u(x)[0].shape == (0, 2)


def test_bounds_as_a_tensor_and_infinite_axes():
    domain = Domain.from_bounds(torch.tensor([[0.0, INF], [0.0, 1.0], [-INF, INF]]), scales=[1.0, 2.0, 3.0])
    assert domain.infinite_axes == (0, 2) and domain.dim == 3
    assert domain.low == (0.0, 0.0, -INF) and domain.scale == (1.0, 2.0, 3.0)


def test_saved_and_restored():
    domain = Domain.from_bounds(
        [(0.1, 0.3), (-INF, 1 / 3), (2.0, INF), (-INF, INF)], periodic=(0,), scales=[1, 1e-5, 0.1, 1e9]
    )
    text = json.dumps(domain.spec(), allow_nan=False)
    assert Domain.from_spec(json.loads(text)) == domain
    assert domain.periodic == (True, False, False, False)


@pytest.mark.gpu
@pytest.mark.parametrize("name", AXES)
def test_a_gpu_gives_the_same_points(name):
    domain = Domain.from_bounds([AXES[name]], scales=0.7)
    u = column(*PLACES)
    x, log_jacobian = domain.to_x(u.cuda())
    assert x.is_cuda and log_jacobian.is_cuda
    on_cpu, log_on_cpu = domain.to_x(u)
    torch.testing.assert_close(x.cpu(), on_cpu, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(log_jacobian.cpu(), log_on_cpu, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(domain.to_u(x)[0].cpu(), domain.to_u(on_cpu)[0], rtol=1e-14, atol=0.0)


# --- what is refused


@pytest.mark.parametrize(
    ("bounds", "arguments", "message"),
    [
        ([0.0, 1.0], {}, "bounds: expected D pairs (low, high), shape (D, 2), got (2,)"),
        ([], {}, "shape (D, 2), got (0,)"),
        (np.zeros((0, 2)), {}, "shape (D, 2), got (0, 2)"),
        ([(0, 1, 2)], {}, "shape (D, 2), got (1, 3)"),
        ([(0, 1), (0,)], {}, "bounds: expected numbers, got list"),
        ([("a", "b")], {}, "bounds: expected numbers, got list"),
        ([(0, None)], {}, "bounds: expected numbers, got list"),
        ([(0, 1), (0, math.nan)], {}, "bounds: expected numbers, got NaN"),
        ([(0, 1), (1, 1)], {}, "bounds: expected low < high on axis 1, got (1.0, 1.0)"),
        ([(2, 1)], {}, "expected low < high on axis 0, got (2.0, 1.0)"),
        ([(INF, INF)], {}, "expected low < high on axis 0, got (inf, inf)"),
        ([(INF, -INF)], {}, "expected low < high on axis 0"),
        ([(-1e308, 1e308)], {}, "expected a width below 1.8e308 on axis 0"),
        ([(0, 1)], {"periodic": [1]}, "periodic: expected indices of axes, 0 to 0, got [1]"),
        ([(0, 1)], {"periodic": [-1]}, "periodic: expected indices"),
        ([(0, 1)], {"periodic": [True]}, "periodic: expected indices"),
        ([(0, 1)], {"periodic": [0.0]}, "periodic: expected indices"),
        ([(0, 1)], {"periodic": 0}, "periodic: expected indices"),
        ([(0, 1), (0, INF)], {"periodic": [1]}, "periodic: expected finite limits on axis 1, got (0.0, inf)"),
        ([(0, INF)], {"scales": 0.0}, "scales: expected a finite value > 0 on axis 0, got 0.0"),
        ([(0, INF)], {"scales": INF}, "scales: expected a finite value > 0"),
        ([(0, INF)], {"scales": math.nan}, "scales: expected numbers, got NaN"),
        ([(0, INF)], {"scales": [1.0, 2.0]}, "scales: expected a number or 1 of them, got shape (2,)"),
    ],
)
def test_refused_bounds(bounds, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Domain.from_bounds(bounds, **arguments)


def test_refused_by_the_constructor():
    with pytest.raises(ValueError, match="of one length >= 1"):
        Domain((0.0,), (1.0, 2.0), (False,), (1.0,))
    with pytest.raises(ValueError, match="of one length >= 1"):
        Domain((), (), (), ())


@pytest.mark.parametrize(
    ("u", "message"),
    [
        ([[0.5]], "u: expected shape (n, 2), got (1, 1)"),
        ([0.5, 0.5], "u: expected shape (n, 2), got (2,)"),
        ([[0.5, 1.0 + EPS]], "u: expected values in [0, 1], got 0.5 to 1"),
        ([[-5e-324, 0.5]], "u: expected values in [0, 1]"),
        ([[0.5, math.nan]], "u: expected values in [0, 1], got nan"),
    ],
)
def test_refused_points_of_the_cube(u, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Domain.from_bounds([(0, 1), (0, INF)]).to_x(torch.tensor(u, dtype=FLOAT))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([0.5], "x: expected shape (n, 3), got (1,)"),
        ([[0.5, 1.0, 0.5], [1.5, 1.0, 0.5]], "x: expected values in [0.0, 1.0] on axis 0, got 1.5, row 1"),
        ([[0.5, -1e-9, 0.5]], "x: expected values in [0.0, inf] on axis 1, got -1e-09, row 0"),
        ([[0.5, INF, 0.5]], "on axis 1, got inf, row 0"),
        ([[0.5, math.nan, 0.5]], "on axis 1, got nan, row 0"),
        ([[0.5, 1.0, INF]], "on axis 2, got inf, row 0"),  # periodic, but nowhere
    ],
)
def test_refused_points(x, message):
    domain = Domain.from_bounds([(0, 1), (0, INF), (0, 1)], periodic=[2])
    with pytest.raises(ValueError, match=re.escape(message)):
        domain.to_u(torch.tensor(x, dtype=FLOAT))
