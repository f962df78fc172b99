"""The mixture of logistics by itself: closed forms, tails, the inverse at extreme parameters, the start."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sbiflow.transforms.elementwise import Affine, Chain
from sbiflow.transforms.mixture_cdf import MixtureCDF

OWN = MixtureCDF(6)
every_dtype = pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=("float32", "float64"))


def draw(
    scale: float, rows: int, dtype: torch.dtype = torch.float64, width: float = 5.0
) -> tuple[Tensor, Tensor]:
    """Points within ±width and parameters of a scale."""
    generator = torch.Generator().manual_seed(1)
    params = scale * torch.randn(rows, OWN.size, generator=generator, dtype=torch.float64)
    points = width * (2 * torch.rand(rows, generator=generator, dtype=torch.float64) - 1)
    return points.to(dtype), params.to(dtype)


@every_dtype
def test_it_starts_as_the_identity(dtype: torch.dtype) -> None:
    x = torch.linspace(-30, 30, 201, dtype=dtype)
    for inverse in (False, True):
        y, log_slope = OWN(x, x.new_zeros(201, OWN.size), inverse)
        close = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(y, x, rtol=close, atol=close)
        torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0, atol=8 * close)


def test_components_part_from_the_start() -> None:
    """At the identity all components are alike; after two steps of gradient descent no two of them are."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(500, 1, generator=generator) * torch.tensor([0.3]) + torch.randn(500, 1).sign() * 1.5
    params = torch.zeros(OWN.size, requires_grad=True)
    for _ in range(2):
        y, log_slope = OWN(x, params.expand(500, 1, -1))
        (step,) = torch.autograd.grad((y * y / 2 - log_slope).mean(), params)
        params = (params - 0.3 * step).detach().requires_grad_()
    mixture = OWN.mixture(params.detach()[2:])
    for values in (mixture.mean[:-1], mixture.scale[:-1]):
        assert values.sort()[0].diff().min() > 1e-5


def test_values_are_those_of_the_formula() -> None:
    """Eqs. 9-12 of Ho et al. written down, where nothing under- or overflows."""
    x, params = draw(1.0, 2000)
    own = OWN.mixture(params[:, 2:])
    z = (x[:, None] - own.mean) / own.scale
    cdf = (own.log_weight.exp() * torch.sigmoid(z)).sum(-1)
    density = (own.log_weight.exp() * torch.sigmoid(z) * torch.sigmoid(-z) / own.scale).sum(-1)
    y, log_slope = OWN(x, params)
    log_scale = params[:, 1] / (1 + params[:, 1].abs() / OWN.limit)
    torch.testing.assert_close(y, log_scale.exp() * torch.logit(cdf) + params[:, 0], rtol=1e-9, atol=1e-9)
    expected = log_scale + torch.log(density / (cdf * (1 - cdf)))
    torch.testing.assert_close(log_slope, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(own.log_weight.exp().sum(-1), torch.ones_like(x))


@pytest.mark.parametrize("x", (-80.0, -45.0, -5.0, 0.3, 45.0, 80.0))
def test_tails_against_many_digits(x: float) -> None:
    """One minus the distribution function would be zero in float64 from x = 37 s on."""
    mpmath = pytest.importorskip("mpmath")
    _, params = draw(1.0, 5)
    with mpmath.workdps(80):
        for row in params:
            own = OWN.mixture(row[2:])
            parts = [[mpmath.mpf(float(v)) for v in part] for part in own]
            total = sum(mpmath.exp(w) for w in parts[0])
            tails = [
                sum(
                    mpmath.exp(w) / (1 + mpmath.exp(sign * (x - m) / s))
                    for w, m, s in zip(*parts, strict=True)
                )
                / total
                for sign in (-1, 1)
            ]
            found = own.log_tails(torch.tensor(x, dtype=torch.float64))
            for value, tail in zip(found, tails, strict=True):
                close = {"rel": 1e-12} if tail < 0.5 else {"abs": 1e-15}
                assert float(value) == pytest.approx(float(mpmath.log(tail)), **close)


@pytest.mark.parametrize("dtype, close", ((torch.float32, 2e-5), (torch.float64, 1e-12)))
@pytest.mark.parametrize("scale", (1.0, 6.0, 200.0))
@pytest.mark.parametrize("width", (5.0, 1000.0))
def test_the_inverse_converges(dtype: torch.dtype, close: float, scale: float, width: float) -> None:
    """f(f^-1(y)) = y, relative to the sizes of y, of x times the slope and of the shift: 20,000 draws.

    Thirty steps; a bisection of the same number would leave 1e-9 of a bracket that is a thousand wide.
    """
    y, params = draw(scale, 20_000, dtype, width)
    x, inverse_slope = OWN(y, params, inverse=True)
    again, log_slope = OWN(x, params)
    size = 1 + y.abs() + params[:, 0].abs() + torch.exp(log_slope) * x.abs()
    assert torch.isfinite(x).all() and ((again - y).abs() / size).max() <= close
    assert torch.equal(log_slope, -inverse_slope)


def test_derivatives_through_the_inverse() -> None:
    """First and second, to y and to parameters, against finite differences."""
    own = MixtureCDF(2)
    y, params = draw(0.7, 2)
    y.requires_grad_()
    params = params[:, : own.size].clone().requires_grad_()

    def run(y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return own(y, params, True)

    assert torch.autograd.gradcheck(run, (y, params))
    assert torch.autograd.gradgradcheck(run, (y, params))


@pytest.mark.parametrize("apart", (20.0, 50.0, 200.0))
def test_x_is_kept_between_narrow_components(apart: float) -> None:
    """Two spikes far apart: the wide logistic's share keeps the gap from being flat."""
    params = torch.zeros(1, OWN.size, dtype=torch.float64)
    params[:, 2 + 6 : 2 + 12] = torch.tensor([apart, -apart] * 3)
    params[:, 2 + 12 :] = -1e6
    x = 0.4 * apart * torch.linspace(-1, 1, 401, dtype=torch.float64)
    y, log_slope = OWN(x, params.expand(401, -1))
    assert log_slope.min() > math.log(1e-7)
    again, _ = OWN(y, params.expand(401, -1), inverse=True)
    assert (again - x).abs().max() < 1e-8


def test_shapes_and_chains() -> None:
    own = Chain(Affine(), OWN)
    for shape in ((), (3,), (2, 3), (0, 3)):
        params = torch.randn(*shape, own.size, dtype=torch.float64)
        x = torch.randn(shape, dtype=torch.float64)
        y, log_slope = own(x, params)
        assert y.shape == log_slope.shape == shape
        torch.testing.assert_close(own(y, params, inverse=True)[0], x, rtol=1e-9, atol=1e-9)
