"""Properties every transform has, over the catalogue of all of them.

How close is close. A float cannot be inverted better than its rounding allows, so round trips are held to the
rounding errors of a computation with the transform's own Jacobian J, to first order:

    |f(f^-1(y)) - y| <= K eps (|y| + |J| (|x| + |J^-1| |y| + |J^-1| p)), for x: J and J^-1 exchanged, p for the last,

where p is what rounding the weights does to y (`parameter_rounding`: forward and inverse sum in different orders), and
with 4 (the half-width of the splines) added to |x| and |y|, because a spline's knots are rounded at that size. One
rule thus serves identity-like maps (a few eps), affine maps (slopes up to e^5), LU maps of any condition, and
splines, whose nearly flat pieces leave x undetermined in float32. Where a solver's tolerance is larger than eps (flow
matching), it takes the place of eps, except beside p (`Case.precision`). Where it promises less than two digits it says
nothing and is not applied. The tight absolute statement for splines is in `test_splines`.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec

import pytest
import torch
from nflows.transforms import CompositeTransform, RandomPermutation, Transform
from torch import Tensor

import sbiflow.transforms
from sbiflow.transforms.autoregressive import MaskedAutoregressive
from sbiflow.transforms.bounded import wrap
from sbiflow.transforms.coupling import Coupling
from sbiflow.transforms.elementwise import Affine, Chain, CircularSpline, Elementwise, Spline
from sbiflow.transforms.inverse import Inverse
from sbiflow.transforms.linear import LULinear, Permutation
from tests.transforms.case import HALF_WIDTH, Case, build, distance
from tests.transforms.catalogue import CATALOGUE

ROWS, K, MEANINGLESS = 48, 60.0, 1e-2
SHAKE = 1e-9  # relative change of weights, in float64, that measures what their rounding does
EXACT = 1e-9  # float64, same arithmetic in another order
ITERATIVE = (
    "Planar",
    "Sylvester",
    "mixture",
    "cubic",
    "residual",
    "zuko",
    "velocity",
)  # inverses by a solver
SEVERAL = ("composite", "LU,", "IAF, phases")
DTYPES, SCALES = (torch.float32, torch.float64), (1.0, 3.0, 6.0)


def named(names: Iterable[str]) -> list[object]:
    """As parameters of tests, slow ones marked."""
    return [pytest.param(name, marks=pytest.mark.slow) if CATALOGUE[name].is_slow else name for name in names]


every_transform = pytest.mark.parametrize("name", named(CATALOGUE))
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "float64"))
every_direction = pytest.mark.parametrize("from_base", [False, True], ids=("x", "u"))
every_scale = pytest.mark.parametrize("scale", SCALES)
conditional = [name for name, case in CATALOGUE.items() if case.context]
with_phases = [name for name, case in CATALOGUE.items() if case.periodic]


def _exchanged(case: Case) -> Transform:
    return Inverse(case.make())


EXCHANGED = {
    f"{name}, exchanged": replace(case, make=partial(_exchanged, case), reads_base=False)
    for name, case in CATALOGUE.items()
    if case.reads_base
}
CASES = CATALOGUE | EXCHANGED


def direct(name: str) -> str:
    """The case whose `forward` has its parameters at once: this, or the same with its directions exchanged."""
    return f"{name}, exchanged" if CATALOGUE[name].reads_base else name


def scales(name: str) -> tuple[float, ...]:
    return tuple(scale for scale in SCALES if scale <= CASES[name].largest)


def jacobian(transform: Transform, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """d outputs / d inputs (rows, D, D) by autograd, and the transform's own log-det; float64."""
    inputs = inputs.double().requires_grad_()
    outputs, logdet = transform(inputs, None if context is None else context.double())
    rows = [
        torch.autograd.grad(outputs[:, i].sum(), inputs, retain_graph=True)[0]
        for i in range(outputs.shape[-1])
    ]
    return torch.stack(rows, 1), logdet.detach()


@dataclass(frozen=True)
class Trip:
    """There and back again in one dtype, and how far rounding may lead astray.

    `start` and `end` are (rows, D), `logdets` those of forward and inverse, `allowed` is the module's rule, `exact`
    and `autograd` are log|det J| in float64 by the transform and by autograd, at the same x.
    """

    start: Tensor
    end: Tensor
    logdets: tuple[Tensor, Tensor]
    allowed: Tensor
    exact: Tensor
    autograd: Tensor


@cache
def trip(name: str, dtype: torch.dtype, scale: float, from_base: bool) -> Trip:
    """x -> u -> x, or u -> x -> u."""
    case = CASES[name]
    transform, context = build(case, dtype, scale), case.condition(ROWS, dtype, seed=7)
    start = (case.base if from_base else case.inputs)(ROWS, dtype, seed=11)
    there, back = transform.forward, transform.inverse
    if from_base:
        there, back = back, there
    with torch.no_grad():
        middle, logdet = there(start, context)
        end, back_logdet = back(middle, context)
    ahead, exact = jacobian(build(case, torch.float64, scale), middle if from_base else start, context)
    behind, autograd = torch.linalg.inv(ahead).abs(), torch.linalg.slogdet(ahead)[1]
    ahead = ahead.abs()
    if from_base:
        ahead, behind, logdet, back_logdet = behind, ahead, back_logdet, logdet
    sizes = [(value.double().abs() + HALF_WIDTH)[..., None] for value in (start, middle)]
    shaken = parameter_rounding(name, scale, middle if from_base else start, context)[..., None]
    precision = case.precision(dtype)
    shaken = shaken * (torch.finfo(dtype).eps / precision)
    allowed = sizes[0] + behind @ (sizes[1] + ahead @ sizes[0] + (ahead @ shaken if from_base else shaken))
    allowed = K * precision * allowed[..., 0]
    return Trip(start, end, (logdet, back_logdet), allowed, exact, autograd)


@torch.no_grad()
def parameter_rounding(name: str, scale: float, x: Tensor, context: Tensor | None) -> Tensor:
    """|change of u| per eps of relative rounding in every weight, (rows, D), float64: what a network's sums lose."""
    case = CASES[name]
    transform, condition = build(case, torch.float64, scale), None if context is None else context.double()
    exact = transform(x.double(), condition)[0]
    generator = torch.Generator().manual_seed(5)
    for parameter in transform.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.mul_(1 + SHAKE * noise)
    return distance(case, transform(x.double(), condition)[0], exact) / SHAKE


def test_every_transform_is_in_the_catalogue() -> None:
    modules = [
        importlib.import_module(f"sbiflow.transforms.{found.name}")
        for found in pkgutil.iter_modules(sbiflow.transforms.__path__)
    ]
    expected = {
        item
        for module in modules
        for _, item in inspect.getmembers(module, inspect.isclass)
        if issubclass(item, Transform)
        and item.__module__ == module.__name__
        and not item.__name__.startswith("_")
        and find_spec(getattr(item, "needs", "torch"))
    }
    assert len(expected) >= 9
    assert expected <= {type(case.make()) for case in CATALOGUE.values()}


@every_transform
@every_dtype
@every_direction
def test_round_trip(name: str, dtype: torch.dtype, from_base: bool) -> None:
    for scale in scales(name):
        way = trip(name, dtype, scale, from_base)
        assert way.end.dtype == dtype and torch.isfinite(way.end).all()
        error = distance(CATALOGUE[name], way.start, way.end)
        ratio = torch.where(way.allowed < MEANINGLESS, error / way.allowed, 0.0)
        assert ratio.max() <= 1, f"scale {scale}: {float(ratio.max()):.3g} times what rounding explains"


@every_transform
def test_round_trip_in_absolute_terms(name: str) -> None:
    """float64, parameters of standard deviation 3, not excused by conditioning: 1e-8, 1e-5 where a solver is at work.

    With `-s` as a table. Ten times that for several layers, a random matrix, and a spline that each column steers anew.
    """
    case = CATALOGUE[name]
    ways = [trip(name, torch.float64, min(3.0, case.largest), from_base) for from_base in (False, True)]
    errors = [float(distance(case, way.start, way.end).detach().max()) for way in ways]
    print(f"\n{name:60} x -> u -> x {errors[0]:.0e}, u -> x -> u {errors[1]:.0e}", end="")
    gate = 1e-5 if any(part in name for part in ITERATIVE) else 1e-8
    assert max(errors) <= gate * (10 if any(part in name for part in SEVERAL) else 1)


@every_dtype
@every_direction
def test_the_round_trip_rule_has_something_to_say(dtype: torch.dtype, from_base: bool) -> None:
    share = [
        (trip(name, dtype, 1.0, from_base).allowed < MEANINGLESS).double().mean().item()
        for name, case in CATALOGUE.items()
        if not case.is_slow
    ]
    assert sum(share) / len(share) > (0.99 if dtype == torch.float64 else 0.7)


@every_transform
@every_dtype
def test_log_det(name: str, dtype: torch.dtype) -> None:
    """The log-det against autograd's in float64, and each dtype's own against that; the inverse's is its negative.

    In float32 a log-det inherits the error of the position in its bin and of the parameters, so the allowance
    grows with the parameters' scale.

    Where parameters are read from u (`reads_base`) a log-det at x inherits the error of u, which is as large as the
    Jacobian's condition: what each dtype gives is then held against the log-det at a given u.
    """
    for scale, coarse in zip(scales(name), (2e-3, 1e-2, 5e-2), strict=False):
        close = coarse if dtype == torch.float32 else 1e-8
        for from_base in (False, True):
            way = trip(name, dtype, scale, from_base)
            torch.testing.assert_close(way.exact, way.autograd, rtol=1e-7, atol=1e-7)
            way = trip(direct(name), dtype, scale, from_base)
            assert way.logdets[0].shape == (ROWS,) and way.logdets[0].dtype == dtype
            torch.testing.assert_close(way.logdets[0].double(), way.exact, rtol=close / 10, atol=close)
        # u -> x -> u: both log-dets are taken at the same float x
        torch.testing.assert_close(way.logdets[1], -way.logdets[0], rtol=close / 10, atol=close)


@every_transform
def test_jacobian_structure(name: str) -> None:
    case = CATALOGUE[name]
    transform, context = build(case, scale=3.0), case.condition(ROWS, torch.float64, seed=7)
    inputs = case.inputs(ROWS, torch.float64, seed=11)
    matrix, _ = jacobian(transform, inputs, context)
    kept = list(case.kept)
    assert torch.equal(transform(inputs, context)[0][:, kept], inputs[:, kept])
    if case.triangular or case.diagonal:
        assert torch.count_nonzero(matrix.triu(1)) == 0
        assert (matrix.diagonal(dim1=1, dim2=2) != 0).all()
    if case.diagonal:
        assert torch.count_nonzero(matrix.tril(-1)) == 0
    if case.triangular:
        read = (matrix != 0).any(0)
        assert torch.equal(read, read.new_ones(read.shape).tril()), "an output ignores an earlier input"


@every_transform
@every_dtype
def test_finite_gradients(name: str, dtype: torch.dtype) -> None:
    """On, just inside and outside the edges of a spline's interval, at extreme parameters, both ways."""
    case = CATALOGUE[name]
    transform = build(case, dtype, scale=scales(name)[-1]).requires_grad_()
    edge = torch.tensor([HALF_WIDTH, math.pi], dtype=dtype)
    points = torch.cat([edge, torch.nextafter(edge, 0 * edge), torch.nextafter(edge, 9 * edge), 9 * edge])
    points = torch.cat([points, -points, points.new_zeros(1)])
    if case.diagonal:
        points = points[points.abs() < 5]  # further out, the point of a bounded support would be its edge
    points = points[:, None].repeat(1, case.dim)
    phases = torch.tensor([i in case.periodic for i in range(case.dim)])
    points = torch.where(phases, wrap(points), points)
    context = case.condition(len(points), dtype, seed=7)
    for direction, start in ((transform.forward, case.domain(points).to(dtype)), (transform.inverse, points)):
        leaves = [start.requires_grad_(), *transform.parameters()]
        outputs, logdet = direction(start, context)
        grads = torch.autograd.grad(outputs.sum() + logdet.sum(), leaves, allow_unused=True)
        assert torch.isfinite(outputs).all() and torch.isfinite(logdet).all()
        assert all(torch.isfinite(grad).all() for grad in grads if grad is not None)
        assert grads[0] is not None


@every_transform
@pytest.mark.parametrize("way", ["forward", "inverse"])
def test_shapes(name: str, way: str) -> None:
    """A row alone, any leading shape with a broadcast context, and no rows at all equal the flat batch."""
    case = CATALOGUE[name]
    transform = build(case, scale=3.0)
    direction = getattr(transform, way)
    start = (case.inputs if way == "forward" else case.base)(6, torch.float64, seed=11)
    context = case.condition(3, torch.float64, seed=7)
    each = None if context is None else context.repeat(2, 1)
    with torch.no_grad():
        outputs, logdet = direction(start, each)
        for i in range(6):
            row = direction(start[i : i + 1], None if each is None else each[i : i + 1])
            torch.testing.assert_close(row, (outputs[i : i + 1], logdet[i : i + 1]), rtol=EXACT, atol=EXACT)
        none = direction(start[:0], None if each is None else each[:0])
        assert none[0].shape == (0, case.dim) and none[1].shape == (0,)
        if "composite" in name:  # nflows' own transforms take (rows, D) only
            return
        alone = direction(start[0], None if each is None else each[0])
        torch.testing.assert_close(alone, (outputs[0], logdet[0]), rtol=EXACT, atol=EXACT)
        cube = direction(start.view(2, 3, -1), context)
        expected = outputs.view(2, 3, -1), logdet.view(2, 3)
        torch.testing.assert_close(cube, expected, rtol=EXACT, atol=EXACT)
        none = direction(start.view(2, 3, -1)[:0], context)
        assert none[0].shape == (0, 3, case.dim) and none[1].shape == (0, 3)


@every_transform
def test_state_dict(name: str) -> None:
    """All that a density depends on is in the constructor's arguments and the state dict."""
    case = CATALOGUE[name]
    one, other = build(case), build(case)
    for value in other.state_dict().values():
        value.zero_()
    state = {key: value.clone() for key, value in one.state_dict().items()}
    other.load_state_dict(state)
    start, context = case.inputs(8, torch.float64, seed=3), case.condition(8, torch.float64, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(one(start, context), other(start, context), strict=True))


@every_transform
def test_composes_with_nflows(name: str) -> None:
    case = CATALOGUE[name]
    transform = build(case)
    both = CompositeTransform([transform, RandomPermutation(case.dim)])
    start, context = case.inputs(8, torch.float64, seed=3), case.condition(8, torch.float64, seed=3)
    with torch.no_grad():
        (outputs, logdet), (alone, expected) = both(start, context), transform(start, context)
        again, back = both.inverse(outputs, context)
    assert torch.equal(outputs.sort(-1)[0], alone.sort(-1)[0])
    torch.testing.assert_close(logdet.to(expected), expected)
    torch.testing.assert_close(back, -logdet.to(back), rtol=1e-6, atol=1e-6)
    assert distance(case, again, start).max() < 1e-4


@pytest.mark.parametrize("name", with_phases)
@pytest.mark.parametrize("way", ["forward", "inverse"])
def test_phases_wrap(name: str, way: str) -> None:
    case = CATALOGUE[name]
    direction, context = getattr(build(case), way), case.condition(ROWS, torch.float64, seed=7)
    start = case.inputs(ROWS, torch.float64, seed=11)
    outputs, logdet = direction(start, context)
    for column in case.periodic:
        turned = start.clone()
        turned[:, column] += 2 * math.pi * torch.tensor([1.0, -1.0, 3.0], dtype=start.dtype).repeat(ROWS // 3)
        again, same = direction(turned, context)
        assert distance(case, again, outputs).max() < 1e-8
        torch.testing.assert_close(same, logdet, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", named(conditional))
def test_every_moved_column_depends_on_the_context(name: str) -> None:
    case = CATALOGUE[name]
    transform = build(case)
    start = case.inputs(ROWS, torch.float64, seed=3)
    one, other = (transform(start, case.condition(ROWS, torch.float64, seed))[0] for seed in (3, 4))
    moved = [i for i in range(case.dim) if i not in case.kept]
    assert (distance(case, one, other)[:, moved].amax(0) > 1e-6).all()


@pytest.mark.parametrize("elementwise", [Affine(), Chain(Affine(), Spline()), CircularSpline()], ids=repr)
def test_a_fresh_transform_is_the_identity(elementwise: Elementwise) -> None:
    for transform in (
        Coupling(3, [0, 2], 2, elementwise, hidden=8, blocks=0),
        MaskedAutoregressive(3, 2, elementwise, hidden=8, blocks=1),
        LULinear(3),
    ):
        start = torch.rand(7, 3)
        outputs, logdet = transform(start, torch.randn(7, 2))
        torch.testing.assert_close(outputs, start, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logdet, torch.zeros(7), rtol=0, atol=1e-5)


def test_bad_columns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"permutation of 0\.\.2, got \[0, 0, 1\]"):
        Permutation([0, 0, 1])
    for moved in ([], [3], [0, 0]):
        with pytest.raises(ValueError, match="distinct columns"):
            Coupling(3, moved, 0, Affine(), 8, 1)
    with pytest.raises(ValueError, match="at least one unit per dimension"):
        MaskedAutoregressive(5, 0, Affine(), hidden=4, blocks=1)
