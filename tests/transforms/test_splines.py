"""Rational-quadratic splines by themselves: accuracy in float32, knots, tails."""

from __future__ import annotations

import math

import pytest
import torch

from sbiflow.transforms.elementwise import Spline
from sbiflow.transforms.splines import knots, rational_quadratic, slopes

every_dtype = pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=("float32", "float64"))
every_scale = pytest.mark.parametrize("scale", (1.0, 3.0, 6.0))


@every_scale
@pytest.mark.parametrize("spline", [Spline(8, 5.0), Spline(16, 5.0)], ids=("8 bins", "16 bins"))
def test_spline_residual_in_float32(spline: Spline, scale: float) -> None:
    """|f(f^-1(y)) - y| <= 1.2e-4: half a unit in the last place of x = 5 by the greatest slope, 2 / MIN_BIN."""
    generator = torch.Generator().manual_seed(1)
    params = scale * torch.randn(50_000, spline.size, generator=generator)
    y = spline.half_width * (2 * torch.rand(50_000, generator=generator) - 1)
    x, inverse_logdet = spline(y, params, inverse=True)
    again, _ = spline(x, params)
    assert (again - y).abs().max() <= 1.2e-4
    assert (again - y).abs().median() <= 2e-6
    exact, _ = spline(y.double(), params.double(), inverse=True)
    # x itself, where the spline is not nearly flat
    steep = inverse_logdet < math.log(50)
    assert steep.float().mean() > 0.97 and (x - exact)[steep].abs().max() <= 1e-4 * (1 if scale == 1 else 5)


@every_dtype
@every_scale
@pytest.mark.parametrize("inverse", [False, True], ids=("forward", "inverse"))
@pytest.mark.parametrize("circular", [False, True], ids=("line", "circle"))
def test_spline_at_its_knots(dtype: torch.dtype, scale: float, inverse: bool, circular: bool) -> None:
    """Knots go to knots with the slopes that were asked for, and all gradients there are finite."""
    half_width, bins = math.pi if circular else 4.0, 6
    generator = torch.Generator().manual_seed(2)
    raw = (scale * torch.randn(200, 1, 2, bins, generator=generator)).to(dtype).requires_grad_()
    raw_slopes = (scale * torch.randn(200, 1, bins + 1, generator=generator)).to(dtype).requires_grad_()
    slope = slopes(raw_slopes)
    grid = knots(raw, half_width).detach()
    inputs, expected = grid[:, 0].unbind(1)[:: -1 if inverse else 1]
    inputs = inputs.clone().requires_grad_()
    wide = raw.expand(-1, bins + 1, -1, -1)
    outputs, logdet = rational_quadratic(inputs, wide, slope.expand(-1, bins + 1, -1), half_width, inverse)
    close = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(outputs, expected, rtol=close, atol=close)
    sign = -1 if inverse else 1
    close = 1e-9 if dtype == torch.float64 else 1e-2
    torch.testing.assert_close(logdet, sign * torch.log(slope[:, 0]), rtol=close, atol=close)
    grads = torch.autograd.grad(outputs.sum() + logdet.sum(), [inputs, raw, raw_slopes])
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_spline_is_the_identity_outside() -> None:
    spline = Spline(8, 3.0)
    outside = torch.tensor([-1e6, -3.5, 3.0001, 8.0])
    outputs, logdet = spline(outside, torch.randn(4, spline.size))
    assert torch.equal(outputs, outside) and torch.count_nonzero(logdet) == 0
