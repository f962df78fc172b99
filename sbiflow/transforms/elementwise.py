"""Elementwise monotone maps whose parameters a conditioner network supplies: the argument of couplings and
autoregressive transforms.

Each is a frozen dataclass with `size` (parameters per dimension), `init_scale` and
`__call__(inputs (..., d), params (..., d, size), inverse) -> (outputs, elementwise log-derivative)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from sbiflow.transforms.bounded import wrap
from sbiflow.transforms.spline_kernel import Form, spline
from sbiflow.transforms.splines import rational_quadratic, slopes, soft_clamp


class Elementwise(Protocol):
    """What a coupling or an autoregressive transform needs to know of its elementwise map."""

    @property
    def size(self) -> int: ...

    def __call__(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Additive:
    """y = x + t: NICE (Dinh et al. 2014, arXiv 1410.8516)."""

    size: int = 1

    def __call__(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        shift = params[..., 0]
        return inputs - shift if inverse else inputs + shift, torch.zeros_like(inputs)


@dataclass(frozen=True)
class Affine:
    """y = x exp(s) + t with |s| < limit: RealNVP and MAF (arXiv 1605.08803, 1705.07057)."""

    limit: float = 5.0
    size: int = 2

    def __call__(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        shift, log_scale = params[..., 0], soft_clamp(params[..., 1], self.limit)
        if inverse:
            return (inputs - shift) * torch.exp(-log_scale), -log_scale
        return inputs * torch.exp(log_scale) + shift, log_scale


@dataclass(frozen=True)
class Spline:
    """Rational-quadratic spline on [-half_width, half_width] with linear tails (arXiv 1906.04032)."""

    bins: int = 8
    half_width: float = 5.0

    @property
    def size(self) -> int:
        return 3 * self.bins - 1

    def __call__(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        return spline(Form(self.bins, self.half_width), self.reference, inputs, params, inverse)

    def reference(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """The same, one operation after another."""
        sizes, inner = params.split([2 * self.bins, self.bins - 1], -1)
        slope = pad(slopes(inner), (1, 1), value=1.0)
        raw = sizes.unflatten(-1, (2, self.bins))
        return rational_quadratic(inputs, raw, slope, self.half_width, inverse)


@dataclass(frozen=True)
class Chain:
    """One elementwise map after another."""

    first: Elementwise
    second: Elementwise

    @property
    def size(self) -> int:
        return self.first.size + self.second.size

    def __call__(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        if isinstance(self.first, Affine) and isinstance(self.second, Spline):
            form = Form(self.second.bins, self.second.half_width, zoom=self.first.limit)
            return spline(form, self.reference, inputs, params, inverse)
        return self.reference(inputs, params, inverse)

    def reference(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """The same, one operation after another."""
        stages = list(
            zip((self.first, self.second), params.split([self.first.size, self.second.size], -1), strict=True)
        )
        total = torch.zeros_like(inputs)
        for stage, own in reversed(stages) if inverse else stages:
            run = stage.reference if isinstance(stage, Spline) else stage
            inputs, logdet = run(inputs, own, inverse)
            total = total + logdet
        return inputs, total


@dataclass(frozen=True)
class Bounded:
    """A map whose raw parameters are softly bounded by ±limit, and with them how steep and how flat it gets.

    A float y tells x no better than eps |y| / slope. Where the conditioner is free, a rational-quadratic spline has
    slopes down to 1e-6; with a limit of 1.75 and 8 or 16 bins they are above 1e-4 whatever the parameters, so that
    float32 brings x back to 1e-3 (`tests/transforms/test_float32.py`).
    """

    own: Elementwise
    limit: float = 1.75

    @property
    def size(self) -> int:
        return self.own.size

    def __call__(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        return self.own(inputs, soft_clamp(params, self.limit), inverse)


@dataclass(frozen=True)
class CircularSpline:
    """Shift and spline on the circle [-π, π), with equal slopes at the seam (Rezende et al. 2020, arXiv 2002.02428)."""

    bins: int = 8

    @property
    def size(self) -> int:
        return 3 * self.bins + 1

    def __call__(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        form = Form(self.bins, math.pi, circular=True)
        return spline(form, self.reference, inputs, params, inverse)

    def reference(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """The same, one operation after another."""
        sizes, raw_slope, shift = params.split([2 * self.bins, self.bins, 1], -1)
        slope = slopes(torch.cat([raw_slope, raw_slope[..., :1]], -1))
        raw = sizes.unflatten(-1, (2, self.bins))
        if inverse:
            outputs, logdet = rational_quadratic(wrap(inputs), raw, slope, math.pi, inverse=True)
            return wrap(outputs - shift[..., 0]), logdet
        return rational_quadratic(wrap(inputs + shift[..., 0]), raw, slope, math.pi)


@dataclass(frozen=True)
class Mixed:
    """One map for real columns and another for periodic ones (phases in [-π, π))."""

    real: Elementwise
    circular: Elementwise
    periodic: tuple[bool, ...]

    @property
    def size(self) -> int:
        return max(self.real.size, self.circular.size)

    def __call__(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        # all columns of a kind at once: a call per column costs more than its arithmetic
        outputs, logdets = [], []
        for own, columns in ((self.real, self._columns(False)), (self.circular, self._columns(True))):
            part = Leading(own)(_take(inputs, columns, -1), _take(params, columns, -2), inverse)
            outputs.append(part[0])
            logdets.append(part[1])
        order = self._columns(False) + self._columns(True)
        back = [order.index(i) for i in range(len(order))]
        return _take(torch.cat(outputs, -1), back, -1), _take(torch.cat(logdets, -1), back, -1)

    def _columns(self, periodic: bool) -> list[int]:
        return [i for i, flag in enumerate(self.periodic) if flag == periodic]


def _take(values: Tensor, places: Sequence[int], dim: int) -> Tensor:
    """Some entries along a dimension, without the index tensor that a GPU would have to wait for."""
    return torch.stack([values.select(dim, i) for i in places], dim)


def column_map(elementwise: Elementwise, column: int) -> Elementwise:
    """The map of one column, which ignores parameters beyond its own size."""
    if not isinstance(elementwise, Mixed):
        return elementwise
    own = elementwise.circular if elementwise.periodic[column] else elementwise.real
    return Leading(own)


@dataclass(frozen=True)
class Leading:
    """A map that takes the first of a longer list of parameters."""

    own: Elementwise

    @property
    def size(self) -> int:
        return self.own.size

    def __call__(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        return self.own(inputs, params[..., : self.own.size], inverse)


def elementwise_for(real: Elementwise, circular: Elementwise, periodic: Sequence[bool]) -> Elementwise:
    """`real` where no column is periodic, `circular` where all are, else both."""
    if not any(periodic):
        return real
    return circular if all(periodic) else Mixed(real, circular, tuple(periodic))
