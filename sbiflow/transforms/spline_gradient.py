"""A bin of the rational-quadratic spline and the derivatives of a loss to it, written out by hand.

With the bin's lower knot (x_k, y_k), the slopes l, r at its ends, mean slope s = height / width, t = (x - x_k) / width,
u = 1 - t, a = s t + l u, b = s u + r t, D = s + (l + r - 2 s) t u and A = t b + u a, the spline and its log-derivative
are (Durkan et al. 2019, arXiv 1906.04032, eqs. 4-5)

    y = y_k + height q,    q = t a / D,    L = log dy/dx = log(s² A / D²).

Differentiated, with no term that cancels in q:

    q_t = s A / D²    q_l = t u² b / D²    q_r = -t² u a / D²    q_s = t u (t b - u a) / D²
    L_t = 2 (b - a) / A - 2 (l + r - 2 s) (u - t) / D
    L_l = u² / A - 2 t u / D    L_r = t² / A - 2 t u / D    L_s = 2 / s + 2 t u / A - 2 (1 - 2 t u) / D.

Let X, Y, Λ be the loss's derivatives to x_k (at fixed t), to y_k and to L. Everything follows from these, for t solves
x = x_k + width t or y = y_k + height q, and that leaves

    X width + Y height q_t + Λ L_t = 0.

The forward direction knows Y and Λ; the derivative to its input x is -X. The inverse knows X and Λ (the negative of
the one to log dx/dy = -L), and the derivative to its input y is -Y: the implicit function theorem, which needs no
derivative of a square root.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sbiflow.transforms.splines import root


class Bin(NamedTuple):
    """The bin that each point is in, and where in it: (d, n) each, `low` and `size` (d, 2, n) for x and y.

    `bottom` is D, `top` is A and `bend` is l + r - 2 s.
    """

    low: Tensor
    size: Tensor
    mean: Tensor
    bend: Tensor
    t: Tensor
    u: Tensor
    a: Tensor
    b: Tensor
    bottom: Tensor
    top: Tensor

    @classmethod
    def around(cls, value: Tensor, corners: Tensor, inverse: bool) -> Bin:
        """At x = value, or at y = value if inverse; from x, y and slope at both ends, (d, 3, 2, n)."""
        low, slope = corners[:, :2, 0], corners[:, 2]
        size = corners[:, :2, 1] - low
        (width, height), (left, right), axis = size.unbind(1), slope.unbind(1), int(inverse)
        mean = height / width
        t = (value - low[:, axis]) / size[:, axis]
        if inverse:
            t = root(t, left, right, mean)
        u, bend = 1 - t, left + right - 2 * mean
        a, b = mean * t + left * u, mean * u + right * t
        return cls(low, size, mean, bend, t, u, a, b, mean + bend * (t * u), t * b + u * a)

    def evaluate(self, inverse: bool) -> tuple[Tensor, Tensor]:
        """y and log dy/dx, or x and log dx/dy."""
        log_slope = torch.log(self.mean * self.mean * self.top / (self.bottom * self.bottom))
        if inverse:
            return self.low[:, 0] + self.t * self.size[:, 0], -log_slope
        return self.low[:, 1] + self.size[:, 1] * self.t * self.a / self.bottom, log_slope

    def pull(self, known: Tensor, of_log: Tensor, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
        """From Y (X if inverse) and Λ: derivatives to the lower knot, the bin's sizes and its slopes, (d, 2, n)."""
        (width, height), mean = self.size.unbind(1), self.mean
        t, u, tu = self.t, self.u, self.t * self.u
        per_top, per_bottom = of_log / self.top, 2 * of_log / self.bottom
        through_log = 2 * per_top * (self.b - self.a) - per_bottom * self.bend * (u - t)
        rise = height / (self.bottom * self.bottom)
        if inverse:
            of_x, of_y = known, (known * width + through_log) / (-mean * self.top * rise)
        else:
            of_x, of_y = (known * mean * self.top * rise + through_log) / -width, known
        by_q, both = of_y * rise * tu, per_bottom * tu
        left = by_q * u * self.b + per_top * u * u - both
        right = per_top * t * t - by_q * t * self.a - both
        of_mean = by_q * (t * self.b - u * self.a) + 2 * (per_top * tu + both + of_log / mean) - per_bottom
        of_ratio = of_mean / width
        size = [of_x * t - of_ratio * mean, of_y * t * self.a / self.bottom + of_ratio]
        return torch.stack([of_x, of_y], 1), torch.stack(size, 1), torch.stack([left, right], 1)
