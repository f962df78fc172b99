"""Linear, quadratic and cubic splines by themselves: nflows' functions, edges, inverses, and as an option of flows."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch
from nflows.transforms.splines import cubic_spline, linear_spline, quadratic_spline
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from sbiflow.embedding import EmbeddingConfig
from sbiflow.families import FlowConfig
from sbiflow.families.spline_kinds import SPLINES
from sbiflow.flows import ConditionalFlow
from sbiflow.transforms.cubic_spline import CubicSpline
from sbiflow.transforms.linear_spline import LinearSpline
from sbiflow.transforms.quadratic_spline import QuadraticSpline
from sbiflow.transforms.splines import knots, soft_clamp
from tests.transforms.case import randomise

Map = LinearSpline | QuadraticSpline | CubicSpline
WIDTH, BINS, ROWS = 0.5, 6, 2000  # nflows' functions are on [0, 1]
KINDS: dict[str, Map] = {
    "linear": LinearSpline(BINS, WIDTH),
    "quadratic": QuadraticSpline(BINS, WIDTH),
    "cubic": CubicSpline(BINS, WIDTH),
}
every_kind = pytest.mark.parametrize("name", KINDS)
every_direction = pytest.mark.parametrize("inverse", [False, True], ids=("forward", "inverse"))
every_dtype = pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=("float32", "float64"))


def draw(
    own: Map, scale: float, rows: int = ROWS, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Points in the interval and parameters of a scale."""
    generator = torch.Generator().manual_seed(1)
    params = scale * torch.randn(rows, own.size, generator=generator, dtype=torch.float64)
    points = own.half_width * (2 * torch.rand(rows, generator=generator, dtype=torch.float64) - 1)
    return points.to(dtype), params.to(dtype)


def by_nflows(name: str, params: Tensor, inputs: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """The same spline on [0, 1] by nflows, from sizes of bins and slopes instead of raw parameters."""
    # softmax(log sizes) = sizes
    log_sizes = torch.log(knots(params[..., :BINS], WIDTH).diff(dim=-1))
    if name == "linear":
        torch.set_default_dtype(torch.float64)  # its inverse has knots of the default dtype
        try:
            return linear_spline(inputs, log_sizes, inverse=inverse)
        finally:
            torch.set_default_dtype(torch.float32)
    if name == "quadratic":
        slope = KINDS["quadratic"].table(params)[1]
        raw = slope + torch.log(-torch.expm1(-slope + 1e-3)) - 1e-3  # softplus(raw) + 1e-3 = slope
        return quadratic_spline(inputs, log_sizes, raw, inverse, min_bin_width=0.0, min_bin_height=0.0)
    heights = torch.log(knots(params[..., BINS : 2 * BINS], WIDTH).diff(dim=-1))
    ends = soft_clamp(params[..., -2:], 6.0) - math.log(2)
    left, right = ends.split(1, -1)
    limits = {"min_bin_width": 0.0, "min_bin_height": 0.0}
    return cubic_spline(inputs, log_sizes, heights, left, right, inverse, **limits)


@every_kind
@every_direction
def test_values_are_those_of_nflows(name: str, inverse: bool) -> None:
    """In float64, but for two faults of nflows: its search for a bin moves the last knot by 1e-6, which its inverse
    linear spline then reads; and its inverse cubic takes a wrong root near the ends of a bin, and cubics with a small
    leading coefficient for quadratics, so that all but 1 % of its values are compared, to 1e-6."""
    own = KINDS[name]
    points, params = draw(own, 1.0)
    expected = by_nflows(name, params, points + WIDTH, inverse)
    found = own(points, params, inverse)
    for value, reference in zip((found[0] + WIDTH, found[1]), expected, strict=True):
        gap = (value - reference).abs()
        if name == "linear" and inverse:
            gap = gap[points < knots(params, WIDTH)[:, -2]]
        if name == "cubic" and inverse:
            assert torch.quantile(gap, 0.99) < 1e-6
        else:
            assert gap.max() < 1e-9


@every_kind
@every_dtype
def test_it_starts_as_the_identity(name: str, dtype: torch.dtype) -> None:
    own = KINDS[name]
    x = torch.linspace(-0.6, 0.6, 121, dtype=dtype)
    for inverse in (False, True):
        y, log_slope = own(x, x.new_zeros(121, own.size), inverse)
        close = 20 * torch.finfo(dtype).eps
        torch.testing.assert_close(y, x, rtol=0, atol=close)
        torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0, atol=close)


@every_kind
@every_direction
@every_dtype
def test_edges(name: str, inverse: bool, dtype: torch.dtype) -> None:
    """The ends are fixed points; a rounding beyond them and far out the map is the identity, with finite gradients."""
    own, edge = KINDS[name], torch.tensor(WIDTH, dtype=dtype)
    outside = torch.stack([torch.nextafter(edge, 2 * edge), 3 * edge, 1e6 * edge])
    points = torch.cat([torch.stack([edge, -edge]), outside, -outside]).requires_grad_()
    _, params = draw(own, 6.0, len(points), dtype)
    params.requires_grad_()
    y, log_slope = own(points, params, inverse)
    torch.testing.assert_close(y[:2], points[:2], rtol=0, atol=4 * torch.finfo(dtype).eps)
    assert torch.equal(y[2:], points[2:]) and torch.count_nonzero(log_slope[2:]) == 0
    grads = torch.autograd.grad(y.sum() + log_slope.sum(), (points, params))
    assert all(torch.isfinite(grad).all() for grad in grads) and torch.count_nonzero(grads[1][2:]) == 0


@every_kind
@pytest.mark.parametrize("scale", (1.0, 6.0, 200.0))
def test_round_trips(name: str, scale: float) -> None:
    """20,000 draws. In float64 to 1e-10 both ways (at least), in float32 f(f^-1(y)) to the slope's half unit."""
    own = type(KINDS[name])(8, 5.0)
    points, params = draw(own, scale, 20_000)
    for way in (False, True):
        there, log_slope = own(points, params, way)
        back, log_back = own(there, params, not way)
        assert (back - points).abs().max() < 1e-10
        torch.testing.assert_close(log_back, -log_slope, rtol=0, atol=1e-9)
    points, params = points.float(), params.float()
    x, _ = own(points, params, inverse=True)
    assert (own(x, params)[0] - points).abs().max() <= 2.5e-4


@every_kind
@every_direction
def test_gradcheck(name: str, inverse: bool) -> None:
    """First and second derivatives against finite differences."""
    own = KINDS[name]
    points, params = draw(own, 0.7, 3)
    points, params = (0.9 * points).requires_grad_(), params.requires_grad_()

    def run(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return own(x, p, inverse)

    assert torch.autograd.gradcheck(run, (points, params))
    assert torch.autograd.gradgradcheck(run, (points, params), atol=1e-4)


@pytest.mark.parametrize("name", ("quadratic", "cubic"))
def test_the_slope_is_continuous_at_inner_knots(name: str) -> None:
    own = KINDS[name]
    _, params = draw(own, 1.0, 300)
    inner = knots(params[:, :BINS], WIDTH)[:, 1:-1]
    wide = params[:, None].expand(-1, BINS - 1, -1)
    (_, before), (_, after) = own(inner - 1e-9, wide), own(inner + 1e-9, wide)
    torch.testing.assert_close(before, after, rtol=0, atol=1e-4)


def test_cubics_rise_everywhere() -> None:
    """With slopes at the limits of the Fritsch-Carlson box and neighbouring bins of very different slope."""
    own = CubicSpline(6, 5.0)
    x, params = draw(own, 20.0, 50_000)
    _, log_slope = own(x, params)
    assert torch.isfinite(log_slope).all()
    order = torch.linspace(-5, 5, 4001, dtype=torch.float64)
    for row in params[:30]:
        assert own(order, row.expand(4001, -1))[0].diff().min() > 0


def flow(family: str, spline: str, periodic: tuple[bool, ...] = (False, True, False)) -> ConditionalFlow:
    torch.manual_seed(0)
    config = FlowConfig(family, layers=2, hidden=12, blocks=1, bins=5, spline=spline, start="prior")
    return ConditionalFlow(config, EmbeddingConfig("none"), periodic, (3,))


@pytest.mark.parametrize("family", ("spline_coupling", "spline_autoregressive"))
@pytest.mark.parametrize("spline", SPLINES)
def test_flows_of_every_kind(family: str, spline: str) -> None:
    """Untrained the base; the density of draws is the one returned."""
    own, z = flow(family, spline), torch.rand(20, 3, generator=torch.Generator().manual_seed(1))
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(own.log_prob(z, x), own.base_log_prob(z), rtol=1e-4, atol=1e-4)
    randomise(own, 0.6, seed=1)
    own.double()
    draws, log_q = own.sample_and_log_prob(x[:2].double(), 5, torch.Generator().manual_seed(3))
    torch.testing.assert_close(own.log_prob(draws, x[:2].double()), log_q, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("spline", [name for name in SPLINES if name != "rational_quadratic"])
def test_the_density_is_one_graph(spline: str) -> None:
    """fullgraph=True raises at a graph break; a second batch compiles nothing again. (The other: test_compiled.)"""
    torch._dynamo.reset()
    own, counter = randomise(flow("spline_coupling", spline), 0.6, seed=1), CompileCounter()
    compiled = torch.compile(own.log_prob, backend=counter, fullgraph=True, dynamic=False)
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        z, x = torch.randn(20, 3, generator=generator).clamp(-3, 3), torch.randn(20, 3, generator=generator)
        torch.testing.assert_close(compiled(z, x), own.log_prob(z, x), rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


@pytest.mark.parametrize("spline", SPLINES)
def test_densities_integrate_to_one(spline: str) -> None:
    """Midpoint rule on 20,000 cells: each jump of a linear spline's density costs half a cell."""
    own = randomise(flow("spline_coupling", spline, (False,)).double(), 0.6, seed=1)
    z = torch.linspace(-30, 30, 20_001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        mass = torch.exp(own.log_prob(z, torch.randn(3, generator=torch.Generator().manual_seed(4)).double()))
    assert float(mass.sum() * 60 / 20_000) == pytest.approx(1, abs=2e-3)


def test_the_option() -> None:
    with pytest.raises(ValueError, match=r"flow spline: expected one of rational_quadratic.*got 'bezier'"):
        FlowConfig(spline="bezier")
    spec = asdict(FlowConfig(spline="cubic"))
    assert FlowConfig.from_spec(spec).spline == "cubic"
    del spec["spline"]  # a model saved before there was a choice
    assert FlowConfig.from_spec(spec).spline == "rational_quadratic"
