"""The spline as one autograd function: the reference's values and gradients, and all that autograd promises.

The reference is held to autograd and to round trips in `test_catalogue` and `test_splines`; here the kernel is held to
the reference, in float64 to rounding and in float32 to the same distance from float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sbiflow.transforms.elementwise import Affine, Chain, CircularSpline, Spline

Map = Spline | Chain | CircularSpline
MAPS: dict[str, Map] = {
    "line": Spline(8, 4.0),
    "two bins": Spline(2, 3.0),
    "zoomed": Chain(Affine(), Spline(5, 4.0)),
    "circle": CircularSpline(6),
}
every_map = pytest.mark.parametrize("name", MAPS)
every_direction = pytest.mark.parametrize("inverse", [False, True], ids=("forward", "inverse"))
every_scale = pytest.mark.parametrize("scale", (0.0, 1.0, 6.0, 200.0))


def case(
    name: str, shape: tuple[int, ...], scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Map, Tensor, Tensor]:
    """A map, inputs in and out of its interval, and parameters of a scale; both require gradients."""
    own, generator = MAPS[name], torch.Generator().manual_seed(3)
    width = math.pi if isinstance(own, CircularSpline) else 5.0
    inputs = width * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)
    params = scale * torch.randn((*shape, own.size), generator=generator, dtype=torch.float64)
    return own, inputs.to(dtype).requires_grad_(), params.to(dtype).requires_grad_()


def with_gradients(function: Callable, inputs: Tensor, params: Tensor, inverse: bool) -> list[Tensor]:
    """Outputs, log-derivative, and the gradient of a random combination of them to inputs and params."""
    generator = torch.Generator().manual_seed(4)
    results = function(inputs, params, inverse)
    weights = [torch.randn(inputs.shape, generator=generator).to(result) for result in results]
    return [*(r.detach() for r in results), *torch.autograd.grad(results, (inputs, params), weights)]


@every_map
@every_direction
@every_scale
def test_values_and_gradients_are_the_references(name: str, inverse: bool, scale: float) -> None:
    own, inputs, params = case(name, (400, 3), scale)
    for got, expected in zip(
        with_gradients(own, inputs, params, inverse),
        with_gradients(own.reference, inputs, params, inverse),
        strict=True,
    ):
        assert got.shape == expected.shape and got.dtype == expected.dtype
        # 2e-8: torch's softplus is the identity beyond 20, where its derivative would be 1 - 2e-9
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=2e-8 if scale == 200.0 else 1e-9)


@every_map
@every_direction
@pytest.mark.parametrize("scale", (1.0, 6.0))
def test_float32_is_as_accurate_as_the_reference(name: str, inverse: bool, scale: float) -> None:
    """Median and 99 % of the distance from float64; the quantiles of 20,000 values are known to a few per cent."""
    own, inputs, params = case(name, (20_000, 1), scale, torch.float32)
    wide = [values.detach().double().requires_grad_() for values in (inputs, params)]
    exact = with_gradients(own.reference, wide[0], wide[1], inverse)
    levels = torch.tensor([0.5, 0.99], dtype=torch.float64)
    for got, reference, truth in zip(
        with_gradients(own, inputs, params, inverse),
        with_gradients(own.reference, inputs, params, inverse),
        exact,
        strict=True,
    ):
        errors = [
            torch.quantile((values.double() - truth).abs().flatten()[:100_000], levels)
            for values in (got, reference)
        ]
        assert (errors[0] <= 1.3 * errors[1] + 1e-7).all(), errors


@every_map
@every_direction
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=("float32", "float64"))
def test_edges(name: str, inverse: bool, dtype: torch.dtype) -> None:
    """On the interval's ends, a rounding to either side, far out, and no number at all."""
    own, generator = MAPS[name], torch.Generator().manual_seed(5)
    edge = torch.tensor([3.0, 4.0, math.pi], dtype=dtype)
    points = torch.cat([edge, torch.nextafter(edge, 0 * edge), torch.nextafter(edge, 9 * edge), 1e6 * edge])
    points = torch.cat([points, -points, torch.tensor([0.0, torch.nan], dtype=dtype)])
    params = (0.5 * torch.randn(own.size, generator=generator)).to(dtype).expand(len(points), -1)
    if isinstance(own, Chain):
        params = params.index_fill(-1, torch.tensor([0, 1]), 0.0)  # so that the points are the spline's ends
    got, expected = own(points, params, inverse), own.reference(points, params, inverse)
    close = 1e-12 if dtype == torch.float64 else 2e-5
    for value, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=close, atol=close, equal_nan=True)
    if not isinstance(own, CircularSpline):
        outside = points.abs() > own.half_width if isinstance(own, Spline) else points.abs() > 4.0
        assert torch.equal(got[0][outside], points[outside]) and torch.count_nonzero(got[1][outside]) == 0


@every_direction
def test_no_gradient_to_parameters_from_outside(inverse: bool) -> None:
    own, inputs, params = case("line", (50, 2), 3.0, torch.float32)
    inputs = (inputs.detach() + 10 * inputs.detach().sign()).requires_grad_()
    outputs, logdet = own(inputs, params, inverse)
    to_inputs, to_params = torch.autograd.grad((3 * outputs + logdet).sum(), (inputs, params))
    assert torch.equal(to_inputs, torch.full_like(inputs, 3.0)) and torch.count_nonzero(to_params) == 0


SHAPES = [(), (1,), (7,), (50, 3), (3, 50), (4, 5, 2), (2, 1, 9), (0, 3), (5, 0)]


@every_map
@every_direction
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(name: str, inverse: bool, shape: tuple[int, ...]) -> None:
    own, inputs, params = case(name, shape)
    got, expected = (with_gradients(function, inputs, params, inverse) for function in (own, own.reference))
    for value, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-9, atol=1e-9)


@every_map
def test_strides(name: str) -> None:
    """Parameters with their last axis first in memory, and one row for all."""
    own, inputs, params = case(name, (6, 2))
    expected = own(inputs, params)
    rows = params.movedim(-1, 0).contiguous().movedim(0, -1)
    assert not rows.is_contiguous()
    for value, reference in zip(own(inputs.t().contiguous().t(), rows), expected, strict=True):
        torch.testing.assert_close(value, reference)
    one = params[:1]
    shared = own(inputs, one.expand(6, -1, -1))
    torch.testing.assert_close(shared, own(inputs, one.repeat(6, 1, 1)))


@every_map
@every_direction
def test_gradcheck(name: str, inverse: bool) -> None:
    """First and second derivatives against finite differences."""
    own, inputs, params = case(name, (2, 1), 0.7)
    inputs = (0.6 * inputs).detach().requires_grad_()  # away from the ends, where the second derivative jumps

    def run(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return own(x, p, inverse)

    assert torch.autograd.gradcheck(run, (inputs, params))
    assert torch.autograd.gradgradcheck(run, (inputs, params))


@every_map
@every_direction
def test_only_the_gradients_asked_for(name: str, inverse: bool) -> None:
    own, inputs, params = case(name, (20, 3))
    both = with_gradients(own, inputs, params, inverse)[2:]
    for place in (0, 1):
        one = [inputs.detach(), params.detach()]
        one[place].requires_grad_()
        results = own(*one, inverse)
        generator = torch.Generator().manual_seed(4)
        weights = [torch.randn(inputs.shape, generator=generator).to(result) for result in results]
        torch.testing.assert_close(torch.autograd.grad(results, one[place], weights)[0], both[place])
    with torch.no_grad():
        assert not any(result.requires_grad for result in own(inputs, params, inverse))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, in forward mode
@every_map
@every_direction
def test_functional_transforms(name: str, inverse: bool) -> None:
    """`torch.func`, vectorised Jacobians and Hessians find the same derivatives."""
    own, inputs, params = case(name, (4,), 0.7)
    inputs = (0.6 * inputs).detach()

    def run(x: Tensor) -> Tensor:
        return sum(own(x, params.detach(), inverse))

    expected = torch.autograd.functional.jacobian(run, inputs)
    assert (expected.diagonal() != 0).all()
    for found in (
        torch.autograd.functional.jacobian(run, inputs, vectorize=True),
        torch.func.jacrev(run)(inputs),
        torch.func.jacfwd(run)(inputs),
    ):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.vmap(run)(inputs.repeat(3, 1)), run(inputs).repeat(3, 1))
    hessian = torch.autograd.functional.hessian(lambda x: run(x).sum(), inputs)
    reference = torch.func.hessian(lambda x: run(x).sum())(inputs)
    torch.testing.assert_close(hessian, reference)
    assert (hessian.diagonal() != 0).all()


def test_one_node_in_the_graph_and_none_when_compiled() -> None:
    own, inputs, params = case("zoomed", (10, 2))
    outputs, _ = own(inputs, params)
    assert outputs.grad_fn is not None and outputs.grad_fn.name() == "_SplineBackward"
    compiled = torch.compile(lambda x, p: own(x, p), backend="eager", fullgraph=True)  # a break would raise
    torch.testing.assert_close(compiled(inputs, params), own.reference(inputs, params))


def test_mixed_precision_is_left_to_the_reference() -> None:
    own, inputs, params = case("line", (10, 2))
    outputs, _ = own(inputs, params.float())
    torch.testing.assert_close(outputs, own.reference(inputs, params.float())[0], rtol=0, atol=0)
