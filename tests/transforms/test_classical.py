"""Linear maps and planar, radial and Sylvester flows against closed forms, other libraries and 40 digits.

Their round trips, log-dets and gradients in general are in `test_catalogue`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import product

import mpmath
import pytest
import torch
from nflows.transforms import HouseholderSequence, Transform
from torch import Tensor
from torch.func import functional_call

from sbiflow.families import FlowConfig, build_transform
from sbiflow.transforms import monotone
from sbiflow.transforms.convolution import Convolution
from sbiflow.transforms.diagonal import Diagonal
from sbiflow.transforms.householder import Householder, QRLinear, Reflections, reflect
from sbiflow.transforms.monotone import MIN_SLOPE, bell, log_derivative, positive, solve_tanh
from sbiflow.transforms.planar import Planar, constrained, planar
from sbiflow.transforms.radial import Radial
from sbiflow.transforms.sylvester import Sylvester
from sbiflow.transforms.triangular import Triangular
from tests.transforms.case import generator, randomise

numbers = partial(torch.tensor, dtype=torch.float64)
EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
every_dtype = pytest.mark.parametrize("dtype", EPS, ids=("float32", "float64"))


def normal(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def learned(transform: Transform, *parts: Tensor) -> Transform:
    """With these numbers for its parameters, in float64."""
    transform.double().params.exit.data = torch.cat([part.flatten().double() for part in parts])
    return transform


def matrix_of(transform: Transform, dim: int) -> Tensor:
    """A of the map y = A x + b."""
    zero = torch.zeros(1, dim, dtype=torch.float64)
    return (transform(torch.eye(dim, dtype=torch.float64))[0] - transform(zero)[0]).T.detach()


# --- planar

GRID = torch.cartesian_prod(*[torch.linspace(-4, 4, 33, dtype=torch.float64)] * 2)
W, U, B = numbers([5.0, 0.0]), numbers([1.0, 0.0]), numbers(0.0)


def test_planar_pushes_a_grid_away_from_a_line() -> None:
    """w = (5, 0), u = (1, 0), b = 0: the points leave the line z_1 = 0 by up to one."""
    y, logdet = planar(GRID, W, U, B)
    expected = [[z1 + math.tanh(5 * z1), z2] for z1, z2 in GRID.tolist()]
    slopes = [1 + 5 / math.cosh(5 * z1) ** 2 for z1, _ in GRID.tolist()]
    torch.testing.assert_close(y, numbers(expected), rtol=0, atol=1e-14)
    torch.testing.assert_close(logdet, numbers(slopes).log(), rtol=0, atol=1e-14)


def test_the_planar_transform_can_be_that_flow() -> None:
    """u is found from û = (1, 0): w'û = 5 = m(w'u)."""
    flow = Planar(2)
    along = math.log(math.expm1(6 - MIN_SLOPE)) - math.log(math.expm1(1 - MIN_SLOPE))
    flow = learned(flow, W - flow.direction, numbers([along / 5, 0.0]), B)
    with torch.no_grad():
        y, logdet = flow(GRID)
        z, back = flow.inverse(y)
    torch.testing.assert_close((y, logdet), planar(GRID, W, U, B), rtol=0, atol=1e-13)
    torch.testing.assert_close((z, back), (GRID, -logdet), rtol=0, atol=1e-13)


@every_dtype
@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_the_constraint_keeps_the_plane_from_folding(dtype: torch.dtype, size: float, scale: float) -> None:
    w, u = (size * normal(500, 4)).to(dtype), (scale * normal(500, 4, seed=4)).to(dtype)
    found, slope = constrained(w, u)
    assert torch.isfinite(found).all() and (slope >= MIN_SLOPE).all()
    rounding = 16 * EPS[dtype] * (w.abs() * (u.abs() + found.abs())).sum(-1)
    product = 1 + (w.double() * found.double()).sum(-1)
    assert ((product - slope.double()).abs() <= rounding + 4 * EPS[dtype]).all()
    assert (product >= MIN_SLOPE - rounding - 4 * EPS[dtype]).all()
    change = (found - u).double()
    side = change - w * (change * w).sum(-1, keepdim=True) / (w * w).sum(-1, keepdim=True).clamp(min=1e-30)
    assert (side.norm(dim=-1) <= 16 * EPS[dtype] * (1 + found.double().norm(dim=-1))).all(), "not along w"
    if scale == 0:
        assert found.abs().max() <= EPS[dtype] / max(size, 1e-12)


def test_without_the_constraint_a_plane_folds() -> None:
    """What the constraint is for: w'u = -2 takes two points to one."""
    z = torch.linspace(-3, 3, 1001, dtype=torch.float64)[:, None]
    w, free = numbers([1.0]), numbers([-2.0])
    folded = planar(z, w, free, B)[0][:, 0]
    kept = planar(z, w, constrained(w, free)[0], B)[0][:, 0]
    assert (folded.diff() < 0).any() and (kept.diff() > 0).all()


SCALE = 6.0
ROUND_TRIPS = {
    "planar": (Planar, 1e-11),
    "radial": (Radial, 1e-11),
    "sylvester": (Sylvester, 1e-8),
}


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("name", ROUND_TRIPS)
@torch.no_grad()
def test_inverse_at_extreme_parameters(name: str, dim: int) -> None:
    """max |f(f^-1(y)) - y| at a parameter scale of 6, over 500 parameter sets of 20 points each, float64."""
    kind, allowed = ROUND_TRIPS[name]
    flow = randomise(kind(dim, context=3, hidden=16, blocks=1).double(), SCALE, seed=2)
    context, y = normal(500, 3, seed=6), 4 * normal(20, 500, dim)
    z, back = flow.inverse(y, context)
    again, logdet = flow(z, context)
    assert float((again - y).abs().max()) < allowed
    torch.testing.assert_close(back, -logdet, rtol=0, atol=1e-7)


# --- the root and the log-derivative of s + (a - 1) tanh s

SLOPES = (1e-3, 1.1e-3, 0.01, 0.3, 0.999, 1.0, 1.001, 2.0, 30.0, 1e3, 1e6, 1e12)
TARGETS = (0.0, 1e-300, 1e-9, 1e-5, 1e-3, 0.02, 0.3, 1.0, 2.0, 5.0, 30.0, 999.0, 1e3, 1e6, 1e12)


def exact_root(target: float, slope: float) -> mpmath.mpf:
    """By bisection, to 40 digits."""
    with mpmath.workdps(60):
        low, high = mpmath.mpf(0), mpmath.mpf(target) / min(slope, 1)
        for _ in range(1200 if 0 < target < 1e-100 else 200):
            middle = (low + high) / 2
            if middle + (mpmath.mpf(slope) - 1) * mpmath.tanh(middle) < target:
                low = middle
            else:
                high = middle
        return low


@every_dtype
def test_the_root_is_right_to_rounding(dtype: torch.dtype) -> None:
    """|s - s*| within 8 units of rounding of the terms, over the slope there."""
    largest = 1e6 if dtype == torch.float32 else 1e12
    for slope, target in product(SLOPES, TARGETS):
        own = torch.tensor(slope, dtype=dtype), torch.tensor(target, dtype=dtype)
        if max(slope, target) > largest:
            continue
        found = solve_tanh(own[1], own[0])
        assert float(solve_tanh(-own[1], own[0])) == -float(found)
        exact = exact_root(float(own[1]), float(own[0]))
        steep = 1 + (float(own[0]) - 1) / math.cosh(min(float(exact), 300.0)) ** 2
        terms = float(own[1]) + float(exact) + abs(float(own[0]) - 1) * math.tanh(float(exact))
        assert abs(float(found) - float(exact)) <= 8 * EPS[dtype] * terms / steep, (slope, target)


def test_newton_arrives_long_before_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 15 steps as in 100, up to slopes of a million; in 5 it does not (so the check can fail)."""
    slope = torch.logspace(-3, 6, 91, dtype=torch.float64)[:, None]
    target = torch.cat([torch.zeros(1), torch.logspace(-9, 7, 400)]).double()
    exact = solve_tanh(target, slope)
    monkeypatch.setattr(monotone, "_STEPS", 15)
    assert torch.equal(solve_tanh(target, slope), exact)
    monkeypatch.setattr(monotone, "_STEPS", 5)
    assert not torch.allclose(solve_tanh(target, slope), exact, rtol=1e-3)


@every_dtype
def test_the_log_derivative_is_exact_into_the_tail(dtype: torch.dtype) -> None:
    """Relative error of log(1 + (a - 1) sech² s) below 16 units of rounding as it falls to 1e-30 (float32) or 1e-250;
    near its zero crossing (a = 1) and where it is of order one, the same absolute error."""
    furthest = 34.0 if dtype == torch.float32 else 287.0
    for slope, s in product((1e-3, 0.1, 0.4, 0.7, 1.5, 4.0, 1e3), (0.0, 1e-3, 0.5, 3.0, 9.0, 18.0, furthest)):
        own, at = torch.tensor(slope, dtype=dtype), torch.tensor(s, dtype=dtype)
        found = float(log_derivative(own, *bell(at)))
        with mpmath.workdps(300):
            near = mpmath.sech(mpmath.mpf(float(at))) ** 2
            exact = mpmath.log(1 + (mpmath.mpf(float(own)) - 1) * near)
            # exp(-2 s) has the relative error 2 s eps, and the slope's own rounding counts in a - 1
            units = 16 + 4 * s + 4 * slope / abs(slope - 1)
            error = abs(found - exact) / (min(abs(exact), 1) if near < 0.1 else 1)
        assert error <= units * EPS[dtype], (slope, s, float(error))


@pytest.mark.parametrize("kind", [Planar, Radial, Sylvester])
def test_gradients_through_the_inverse(kind: Callable[..., Transform]) -> None:
    """To inputs and parameters, against finite differences."""
    flow = randomise(kind(3).double(), 1.0, seed=4)
    inputs, values = normal(4, 3).requires_grad_(), flow.params.exit.detach().clone().requires_grad_()

    class Inverse(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flow = flow

        def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.flow.inverse(y)

    def inverse(y: Tensor, exits: Tensor) -> tuple[Tensor, Tensor]:
        return functional_call(Inverse(), {"flow.params.exit": exits}, (y,))

    assert torch.autograd.gradcheck(inverse, (inputs, values), eps=1e-6, atol=1e-6, rtol=1e-6)


# --- radial


def test_radial_at_its_centre() -> None:
    """z0 stays; the slope there is a in every direction; gradients are finite both ways."""
    flow = learned(Radial(3), torch.zeros(3), numbers([0.4, 2.0]))
    centre = flow.centre.double().clone().requires_grad_()
    slope = float(positive(numbers(2.0)))
    for way, sign in ((flow.forward, 1), (flow.inverse, -1)):
        there, logdet = way(centre)
        torch.testing.assert_close(there, centre, rtol=0, atol=1e-15)
        assert logdet.item() == pytest.approx(sign * 3 * math.log(slope), abs=1e-14)
        leaves = [centre, flow.params.exit]
        grads = torch.autograd.grad(there.sum() + logdet, leaves)
        assert all(torch.isfinite(grad).all() for grad in grads)


def test_radial_is_the_published_map() -> None:
    """f(z) = z + β h (z - z0), h = 1 / (α + r); log-det (D - 1) log(1 + β h) + log(1 + β h + β h' r)."""
    raw_width, raw_slope, place = 0.7, -1.3, normal(4)
    flow = learned(Radial(4), place, numbers([raw_width, raw_slope]))
    alpha = math.exp(raw_width / (1 + raw_width / 5))
    beta = alpha * (float(positive(numbers(raw_slope))) - 1)
    z, z0 = 3 * normal(50, 4, seed=8), flow.centre.double() + place
    r = (z - z0).norm(dim=-1, keepdim=True)
    h = 1 / (alpha + r)
    y, logdet = flow(z)
    torch.testing.assert_close(y, z + beta * h * (z - z0), rtol=0, atol=1e-13)
    expected = 3 * torch.log1p(beta * h) + torch.log(1 + beta * h - beta * h**2 * r)
    torch.testing.assert_close(logdet, expected[:, 0], rtol=0, atol=1e-13)
    assert -alpha < beta < 0


# --- Sylvester


def test_sylvester_of_one_unit_is_planar() -> None:
    free, (b, raw_slope, raw_diagonal) = normal(4 * 4), (0.3, 1.2, -0.8)
    flow = learned(Sylvester(5, units=1), numbers([b, raw_slope, raw_diagonal]), free)
    q = reflect(flow.reflections(free), torch.eye(5, dtype=torch.float64)[0])
    inner = torch.exp(numbers(raw_diagonal / (1 - raw_diagonal / 3)))
    slope = positive(numbers(raw_slope))
    z = 2 * normal(50, 5, seed=9)
    expected = planar(z, inner * q, (slope - 1) / inner * q, numbers(b))
    torch.testing.assert_close(flow(z), expected, rtol=0, atol=1e-13)


def test_sylvester_is_the_published_map() -> None:
    """z + Q R tanh(V Q' z + b) with whole matrices."""
    flow = randomise(Sylvester(4, units=3).double(), 1.0, seed=3)
    last, first, shift, slope, vectors = flow._settings(None)
    q = reflect(vectors, torch.eye(4, dtype=torch.float64)).T[:, :3]
    torch.testing.assert_close(q.T @ q, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-14)
    assert torch.equal(last, last.triu()) and torch.equal(first, first.triu())
    torch.testing.assert_close(last.diagonal() * first.diagonal(), slope - 1, rtol=1e-12, atol=1e-14)
    z = normal(30, 4)
    expected = z + torch.tanh(z @ q @ first.T + shift) @ last.T @ q.T
    torch.testing.assert_close(flow(z)[0], expected, rtol=0, atol=1e-13)


# --- linear maps


def test_diagonal_is_scale_and_shift() -> None:
    flow = learned(Diagonal(2), numbers([[1.5, 0.2], [-2.0, -0.4]]))
    x = normal(20, 2)
    scale = numbers([0.2 / (1 + 0.2 / 5), -0.4 / (1 + 0.4 / 5)])
    y, logdet = flow(x)
    torch.testing.assert_close(y, x * scale.exp() + numbers([1.5, -2.0]), rtol=0, atol=1e-13)
    torch.testing.assert_close(logdet, scale.sum().expand(20), rtol=0, atol=1e-13)


@pytest.mark.parametrize("upper", [False, True])
def test_triangular_is_any_gaussian(upper: bool) -> None:
    """Its factors from a covariance give that normal density, lower or upper."""
    covariance = torch.cov(normal(4, 30)) * torch.outer(*[numbers([1.0, 0.1, 3.0, 20.0])] * 2)
    mean = normal(4, seed=5)
    flip = (lambda a: a.flip(0, 1)) if upper else (lambda a: a)
    root = flip(torch.linalg.inv(torch.linalg.cholesky(flip(covariance))))  # precision = root' root
    log_scale = root.diagonal().log()
    unit = root / root.diagonal()[:, None]
    places = torch.ones(4, 4).bool().triu(1) if upper else torch.ones(4, 4).bool().tril(-1)
    raw = log_scale / (1 - log_scale.abs() / 10)
    flow = learned(Triangular(4, upper=upper), mean, raw, unit[places])
    x = mean + normal(40, 4, seed=6) * covariance.diagonal().sqrt()
    u, logdet = flow(x)
    ours = torch.distributions.Normal(0.0, 1.0).log_prob(u).sum(-1) + logdet
    theirs = torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dim", [2, 3, 5])
@torch.no_grad()
def test_reflections_against_nflows(dim: int) -> None:
    flow = randomise(Householder(dim).double(), 2.0, seed=1)
    vectors = flow.reflections(flow.params(None))
    theirs = HouseholderSequence(dim, len(vectors)).double()
    theirs.q_vectors.data = vectors.flip(0)  # nflows applies the first one first
    x = normal(20, dim)
    torch.testing.assert_close(flow(x)[0], theirs(x)[0], rtol=0, atol=1e-13)
    q = matrix_of(flow, dim)
    torch.testing.assert_close(q.T @ q, torch.eye(dim, dtype=torch.float64), rtol=0, atol=1e-13)
    assert float(torch.linalg.det(q)) == pytest.approx(1.0)


@pytest.mark.parametrize("dim", [2, 3, 4, 5, 8])
def test_the_default_reflections_turn_every_way(dim: int) -> None:
    """d Q / d parameters spans all D (D - 1) / 2 directions of the rotations; one pair fewer does not."""

    def rank(count: int | None) -> int:
        own = Reflections(dim, count)
        turn = torch.autograd.functional.jacobian(
            lambda numbers: reflect(own(numbers), torch.eye(dim, dtype=torch.float64)), normal(own.size)
        )
        return int(torch.linalg.matrix_rank(turn.flatten(0, 1), rtol=1e-9))

    assert rank(None) == dim * (dim - 1) // 2
    if dim > 3:
        assert rank(dim - dim % 2 - 2) < dim * (dim - 1) // 2


def test_qr_has_the_factors_of_its_matrix() -> None:
    flow = randomise(QRLinear(4).double(), 1.0, seed=2)
    matrix = matrix_of(flow, 4)
    q, r = torch.linalg.qr(matrix)
    sign = r.diagonal().sign()
    _, log_scale, unit, vectors = flow._factors(None)
    torch.testing.assert_close(log_scale.exp()[:, None] * unit, sign[:, None] * r, rtol=0, atol=1e-12)
    turned = reflect(vectors, torch.eye(4, dtype=torch.float64)).T
    torch.testing.assert_close(turned, q * sign, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rotated", [False, True])
def test_convolution_against_torch(rotated: bool) -> None:
    """conv1d with a kernel of one place, and length times the log-determinant of the matrix."""
    torch.manual_seed(4)
    flow = Convolution(3, 7, rotated=rotated).double()
    start = matrix_of(flow, 21).view(3, 7, 3, 7)[:, 2, :, 2]
    torch.testing.assert_close(start.T @ start, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert bool((start - torch.eye(3)).abs().max() > 0.1) == rotated
    randomise(flow, 0.7, seed=3)
    shift, _, lower, upper = flow._factors(None)
    kernel = (lower @ upper).index_select(0, flow.order)
    x = normal(10, 21)
    y, logdet = flow(x)
    expected = torch.nn.functional.conv1d(x.view(10, 3, 7), kernel[..., None], shift)
    torch.testing.assert_close(y, expected.flatten(1), rtol=0, atol=1e-12)
    whole = torch.linalg.slogdet(matrix_of(flow, 21))[1].expand(10)
    torch.testing.assert_close(logdet, whole, rtol=0, atol=1e-12)


# --- all of them

EVERY: dict[str, Callable[..., Transform]] = {
    "diagonal": partial(Diagonal, 4),
    "triangular": partial(Triangular, 4),
    "upper": partial(Triangular, 4, upper=True),
    "householder": partial(Householder, 4),
    "qr": partial(QRLinear, 4),
    "convolution": partial(Convolution, 2, 2),
    "planar": partial(Planar, 4),
    "radial": partial(Radial, 4),
    "sylvester": partial(Sylvester, 4),
}


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("name", EVERY)
def test_all_start_as_the_identity_and_can_leave_it(name: str, context: int) -> None:
    """Zero parameters are the identity but no stationary point: a gradient leads away."""
    torch.manual_seed(0)
    flow = EVERY[name](context=context, hidden=8, blocks=1).double()
    x, condition = normal(7, 4), normal(7, 3) if context else None
    for way in (flow.forward, flow.inverse):
        y, logdet = way(x, condition)
        torch.testing.assert_close(y, x, rtol=0, atol=1e-7)
        torch.testing.assert_close(logdet, torch.zeros(7).double(), rtol=0, atol=1e-7)
    y, logdet = flow(x, condition)
    loss = (y**3 * torch.arange(1, 5)).sum() - logdet.sum()
    grads = torch.autograd.grad(loss, list(flow.parameters()), allow_unused=True)
    assert any(bool((grad != 0).any()) for grad in grads if grad is not None)
    if context:
        with pytest.raises(ValueError, match="context: expected one to read the parameters from, got none"):
            flow(x)


def test_the_linear_family_is_one_map_however_many_layers() -> None:
    sizes = [
        sum(p.numel() for p in build_transform(FlowConfig("linear", layers=n), (False,) * 3, 2).parameters())
        for n in (1, 4)
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (partial(Householder, 1), "at least two columns to rotate, got 1"),
        (partial(Householder, 4, reflections=3), "an even number, got 3"),
        (partial(QRLinear, 4, reflections=-2), "an even number, got -2"),
        (partial(Sylvester, 4, units=0), "between 1 and 4, got 0"),
        (partial(Sylvester, 4, units=5), "between 1 and 4, got 5"),
        (partial(Convolution, 0, 3), "channels and places, got 0 and 3"),
        (partial(build_transform, FlowConfig("planar"), (True, False), 2), "expected no periodic parameters, got 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
