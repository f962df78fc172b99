"""Scalar monotone maps of slope one far away and of any positive slope in the middle: planar, radial, Sylvester flows.

Such a derivative is 1 + (slope - 1) q, where q falls from one in the middle to zero far away.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

MIN_SLOPE = 1e-3
_UNIT_RAW = math.log(math.expm1(1 - MIN_SLOPE))  # raw value of a unit slope
_STEPS = 100  # never reached: 11 for slopes from 1e-3 to 1e6


def positive(raw: Tensor) -> Tensor:
    """A slope above MIN_SLOPE, one at zero: MIN_SLOPE + softplus(raw + constant)."""
    return MIN_SLOPE + softplus(raw + _UNIT_RAW)


def log_derivative(slope: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """log(1 + (slope - 1) near), given far = 1 - near as well.

    Precise to rounding both relative to a small result (near -> 0) and where the derivative is small.
    """
    excess = (slope - 1) * near
    return torch.where(excess > -0.5, torch.log1p(excess), torch.log(far + slope * near))


def bell(s: Tensor) -> tuple[Tensor, Tensor]:
    """The derivative of tanh, 1 - tanh² s, without cancellation in the tails; and tanh² s."""
    falling = torch.exp(-2 * s.abs())
    return 4 * falling / (1 + falling) ** 2, torch.tanh(s) ** 2


def solve_tanh(target: Tensor, slope: Tensor) -> Tensor:
    """s with s + (slope - 1) tanh s = target, to float precision; slope > 0 broadcasts against the target.

    The gradient is that of the root by the implicit function theorem: a last Newton step is differentiable.
    """
    with torch.no_grad():
        root = torch.copysign(_newton(target.abs(), slope), target)
    near, far = bell(root)
    return root - (root + (slope - 1) * torch.tanh(root) - target) / (far + slope * near)


def _newton(target: Tensor, slope: Tensor) -> Tensor:
    """The root for a target >= 0.

    On s >= 0 the function is concave for slopes above one, and convex below. From the bound on the root that lies
    where the curve is steeper, Newton's steps then never pass the root: no bracket is needed, and the first step the
    other way tells that a row has arrived at rounding. Each row stops for itself, whatever its batch.
    """
    excess = slope - 1
    # |tanh s| <= 1 and tanh s <= s
    bounds = target - excess, target / slope
    s = torch.where(excess > 0, torch.maximum(*bounds), torch.minimum(*bounds))
    for _ in range(_STEPS):
        near, far = bell(s)
        step = (target - s - excess * torch.tanh(s)) / (far + slope * near)
        moved = torch.where(step * excess > 0, s + step, s)
        if torch.equal(moved, s):
            break
        s = moved
    return s
