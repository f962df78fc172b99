"""Voigt and Faraday-Voigt functions, H + iL = w(z) with z = v + ia, a >= 0 (Faddeeva function w).

The trapezoidal rule for w(z) = (iz/pi) integral of exp(-t^2) / (z^2 - t^2) dt, with the residue of the pole
at z that lies between the path and its shift (Matta & Reichel 1971; error bounds: Al Azah & Chandler-Wilde
2021). With nodes t_k = (k + o) h and D_k = |z^2 - t_k^2|^2 the real and imaginary parts are

    H = (2 h a / pi) sum_k exp(-t_k^2) (|z|^2 + t_k^2) / D_k + Re r,
    L = (2 h v / pi) sum_k exp(-t_k^2) (|z|^2 - t_k^2) / D_k + Im r,
    r = 2 exp(-z^2) / (1 +- exp(-2 pi i z / h))   for a < pi / h, otherwise 0,

so that H keeps its relative precision in the far wings and for a -> 0: every term of its sum is positive.
The offset o is 0 or 1/2, whichever keeps the nodes away from v. N + 1 nodes of step sqrt(pi / (N + 1))
leave an error of exp(-pi (N + 1)): 7e-9 for N = 5 (float32) and 2e-14 for N = 9 (float64). No branch is
taken on data.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_LAST_NODE = {torch.float32: 5, torch.float64: 9}
_NO_EXP = {torch.float32: 80.0, torch.float64: 700.0}
"""From this x on exp(-x) counts as zero: it would bring subnormal numbers, a hundred times slower."""
_TWO_OVER_SQRT_PI = 2.0 / math.sqrt(math.pi)


def voigt(a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """H(a, v) and L(a, v), broadcast over a and v; H(0, v) = exp(-v^2), not divided by sqrt(pi).

    Both are functions of a dimensionless damping a >= 0 and a dimensionless distance v from the line centre,
    float32 or float64. Differentiable to any order, through w' = -2 z w + 2i / sqrt(pi).
    """
    return _Voigt.apply(a, v)


class _Voigt(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return _faddeeva(a, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor, grad_l: Tensor) -> tuple[Tensor, Tensor]:
        real, imag = _derivative(*ctx.saved_tensors)  # dw/dv; dw/da = i dw/dv
        grad_a, grad_v = grad_l * real - grad_h * imag, grad_h * real + grad_l * imag
        return grad_a.sum_to_size(ctx.saved_tensors[0].shape), grad_v.sum_to_size(ctx.saved_tensors[1].shape)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], a: Tensor, v: Tensor) -> Any:
        args = [x if dim is None else x.movedim(dim, -1) for x, dim in zip((a, v), in_dims, strict=True)]
        args = [x.unsqueeze(-1) if dim is None else x for x, dim in zip(args, in_dims, strict=True)]
        return _Voigt.apply(*args), (-1, -1)


def _derivative(a: Tensor, v: Tensor, h: Tensor, l: Tensor) -> tuple[Tensor, Tensor]:
    """w' = -2 z w + 2i / sqrt(pi); absolute error of a few roundings of 1, also in the far wings."""
    return 2 * (a * l - v * h), _TWO_OVER_SQRT_PI - 2 * (v * l + a * h)


def _faddeeva(a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    last = _LAST_NODE[v.dtype]
    h = math.sqrt(math.pi / (last + 1))
    phase = v * (2 * math.pi / h)
    cos = torch.cos(phase)
    half = (cos > 0).to(v.dtype)  # 1 for v near a multiple of h: nodes at (k + 1/2) h; else 0: nodes at k h
    z2_real, z2_imag = (v - a) * (v + a), 2 * a * v
    z2_imag_squared, half = z2_imag * z2_imag, half.expand_as(z2_imag)
    plain, weighted = torch.zeros_like(z2_real), torch.zeros_like(z2_real)
    for k in range(last + 1):  # sums of exp(-t^2) / D and exp(-t^2) d / D, d = Re z^2 - t^2
        whole, mid = (k * h) ** 2, ((k + 0.5) * h) ** 2
        whole_weight, mid_weight = math.exp(-whole) * (0.5 if k == 0 else 1.0), math.exp(-mid)
        d = torch.add(z2_real, half, alpha=whole - mid).sub_(whole)
        term = half.mul(mid_weight - whole_weight).add_(whole_weight)
        term.div_(torch.addcmul(z2_imag_squared, d, d))
        plain.add_(term)
        weighted.addcmul_(term, d)
    scale = 2 * h / math.pi
    real, imag = _residue(a, cos, torch.sin(phase), z2_real, z2_imag, h)
    real.addcmul_(torch.addcmul(-weighted, plain, v * v, value=2), a, value=scale)
    imag.addcmul_(weighted.addcmul_(plain, a * a, value=2), v, value=scale)
    return real, imag


def _residue(
    a: Tensor, cos: Tensor, sin: Tensor, z2_real: Tensor, z2_imag: Tensor, h: float
) -> tuple[Tensor, Tensor]:
    """2 exp(-z^2) e / (1 + e) with e = exp(2 pi i z / h), or its negative where that has a negative real part
    (nodes at k h); 0 from a = pi / h on."""
    inside = (a < math.pi / h) & (z2_real < _NO_EXP[a.dtype])
    decay = torch.exp(a.clamp(max=math.pi / h) * (-2 * math.pi / h))
    real, imag = cos.abs() * decay, sin * torch.sign(cos) * decay  # of +-e
    decay2 = decay * decay
    size = (
        torch.exp(torch.where(inside, -z2_real, 0.0)).mul_(inside).mul_(2).div_((2 * real).add_(decay2 + 1))
    )
    real.add_(decay2).mul_(size)
    imag.mul_(size)
    cos2, sin2 = torch.cos(z2_imag), torch.sin(z2_imag)  # exp(-z^2) = exp(-Re z^2) (cos2 - i sin2)
    return (real * cos2).addcmul_(imag, sin2), (imag * cos2).addcmul_(real, sin2, value=-1)
