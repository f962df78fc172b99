"""Monotonic rational-quadratic splines as pure functions (Durkan et al. 2019, arXiv 1906.04032, eqs. 4-8).

Static shapes, no boolean indexing and no assertion: values are clamped into the interval before the bin is looked
up and replaced by the identity after, so the functions compile to one graph and never synchronise a GPU. Bin
sizes and slopes are bounded away from zero and the inverse is free of cancellation: in float32 f(f^-1(y)) is y to
about 1e-4 however large the raw parameters are. x itself is known as well as the slope allows: where a spline is
nearly flat (a slope down to 1e-6 at extreme parameters), many x have the same float32 y.

`spline_kernel` computes the same with a gradient by hand; these functions are its reference.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

MIN_BIN = 4e-3  # smallest bin, as a fraction of the interval: a bin's mean slope is in [MIN_BIN, 1 / MIN_BIN]
MIN_SLOPE = 4e-3
MAX_SLOPE = 1 / MIN_SLOPE
MAX_RAW = 12.0
UNIT_RAW = math.log(math.expm1(1 - MIN_SLOPE))  # raw slope parameter 0 is mapped to a slope of one


def soft_clamp(value: Tensor, limit: float) -> Tensor:
    """The identity near zero, bounded by ±limit: value / (1 + |value| / limit)."""
    return value / (1 + value.abs() / limit)


def knots(raw_sizes: Tensor, half_width: float) -> Tensor:
    """Knot positions on [-half_width, half_width] from unconstrained sizes, (..., K) -> (..., K + 1)."""
    bins = raw_sizes.shape[-1]
    # bounded, so no softmax is needed: twice as fast
    weight = torch.exp(soft_clamp(raw_sizes, MAX_RAW))
    sizes = MIN_BIN + (1 - MIN_BIN * bins) * weight / weight.sum(-1, keepdim=True)
    inner = 2 * half_width * torch.cumsum(sizes[..., :-1], -1) - half_width
    return pad(pad(inner, (1, 0), value=-half_width), (0, 1), value=half_width)


def slopes(raw_slopes: Tensor) -> Tensor:
    """Slopes at knots, within [MIN_SLOPE, MAX_SLOPE]; one at zero."""
    return (MIN_SLOPE + softplus(raw_slopes + UNIT_RAW)).clamp(max=MAX_SLOPE)


def slope_derivative(raw_slopes: Tensor) -> Tensor:
    """The derivative of `slopes` to its argument."""
    return torch.sigmoid(raw_slopes + UNIT_RAW) * (raw_slopes <= MAX_SLOPE - MIN_SLOPE - UNIT_RAW)


def root(p: Tensor, left: Tensor, right: Tensor, mean: Tensor) -> Tensor:
    """Where in a bin the spline has risen by a share p of the bin's height, both in [0, 1].

    Args:
        left, right, mean: slopes at the bin's ends, and its height over its width.
    """
    # From the nearer knot and as a sum of squares: nothing cancels, and the square root never meets zero, where its
    # gradient would be infinite.
    q = 1 - p
    skew = left * q - right * p
    near = 2 * mean * torch.where(skew >= 0, p, q)
    t = near / (near + skew.abs() + torch.sqrt(skew * skew + 4 * mean * mean * p * q))
    return torch.where(skew >= 0, t, 1 - t)


def rational_quadratic(
    inputs: Tensor, raw_sizes: Tensor, slope: Tensor, half_width: float, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Elementwise spline on [-half_width, half_width], the identity outside.

    Args:
        inputs: (...,).
        raw_sizes: (..., 2, K), unconstrained widths and heights.
        slope: (..., K + 1), positive slopes at the knots.

    Returns:
        outputs (...,) and the elementwise log|d outputs / d inputs| (...,).
    """
    grid = knots(raw_sizes, half_width)  # (..., 2, K + 1)
    inside = (inputs >= -half_width) & (inputs <= half_width)
    value = inputs.clamp(-half_width, half_width)[..., None]
    axis = grid[..., 1, :] if inverse else grid[..., 0, :]
    index = (value >= axis[..., 1:-1]).sum(-1, keepdim=True)  # the bin: how many inner knots lie at or below
    both = index[..., None, :].expand(*grid.shape[:-1], 1)
    low = torch.gather(grid, -1, both)[..., 0]
    size = torch.gather(grid, -1, both + 1)[..., 0] - low
    left = torch.gather(slope, -1, index)[..., 0]
    right = torch.gather(slope, -1, index + 1)[..., 0]
    (x0, y0), (width, height) = low.unbind(-1), size.unbind(-1)
    mean = height / width
    bend = left + right - 2 * mean
    value = value[..., 0]

    if inverse:
        t = root((value - y0) / height, left, right, mean)
        outputs = x0 + t * width
    else:
        t = (value - x0) / width
        outputs = y0 + height * t * (mean * t + left * (1 - t)) / (mean + bend * t * (1 - t))

    s = 1 - t
    denominator = mean + bend * t * s
    numerator = right * t * t + 2 * mean * t * s + left * s * s
    logdet = 2 * torch.log(mean) + torch.log(numerator) - 2 * torch.log(denominator)
    logdet = -logdet if inverse else logdet
    return torch.where(inside, outputs, inputs), torch.where(inside, logdet, torch.zeros_like(logdet))
