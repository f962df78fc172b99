"""Bounded supports and R^D: elementwise bijections as nflows Transforms, and functions for the priors.

The result of an inverse always lies strictly inside the open support: where rounding would touch an edge, it
is the neighbouring float. Everything here works in the dtype of its input; `sbiflow.priors` uses float64.
"""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from typing import Any

import torch
from nflows.transforms.base import Transform
from torch import Tensor
from torch.nn.functional import logsigmoid

from sbiflow.checks import as_tensor

_LOG_ROOT_2PI = 0.5 * math.log(2.0 * math.pi)
_Z_MAX = {torch.float64: 37.5, torch.float32: 12.9}  # Phi(-z) is about the smallest normal number


def wrap(phase: Tensor) -> Tensor:
    """The phase in [-pi, pi) that differs from `phase` by a multiple of 2 pi.

    >>> wrap(torch.tensor([3.5, -3.25, 7.0]))
    tensor([-2.7832,  3.0332,  0.7168])
    """
    wrapped = torch.remainder(phase + math.pi, 2.0 * math.pi) - math.pi
    # a phase within the interval is left as it is: adding and taking away pi would round
    inside = (phase >= -math.pi) & (phase < math.pi)
    return torch.where(inside, phase, torch.where(wrapped >= math.pi, -math.pi, wrapped))


def normal_tails(z: Tensor) -> tuple[Tensor, Tensor]:
    """Phi(z) and Phi(-z), both to relative accuracy.

    Constant, and so never zero or subnormal, beyond |z| = 37.5 (12.9 in float32). `torch.special.ndtr` loses
    the lower tail: it is 0 from z = -9 on.
    """
    limit = _Z_MAX[z.dtype]
    scaled = z.clamp(-limit, limit) / math.sqrt(2.0)
    return 0.5 * torch.erfc(-scaled), 0.5 * torch.erfc(scaled)


def probit_from_tails(cdf: Tensor, sf: Tensor) -> Tensor:
    """z with Phi(z) = cdf and Phi(-z) = sf, from the smaller of the two; |z| <= 37.52 (13.0 in float32).

    >>> probit_from_tails(torch.tensor(1.0, dtype=torch.float64), torch.tensor(1e-20, dtype=torch.float64))
    tensor(9.2623, dtype=torch.float64)
    """
    lower = cdf < sf
    tail = torch.where(lower, cdf, sf)  # not `minimum`, whose gradient is zero at the median
    z = torch.special.ndtri(tail.clamp(min=torch.finfo(cdf.dtype).tiny))
    return torch.where(lower, z, -z)


def next_inside(low: float, high: float) -> tuple[float, float]:
    """The first and the last float64 in the open interval (low, high), never subnormal.

    >>> next_inside(0.0, 1.0)
    (2.2250738585072014e-308, 0.9999999999999999)
    """
    tiny = sys.float_info.min  # subnormal numbers are flushed to zero, an edge, on some devices
    first = tiny if low == 0.0 else math.nextafter(low, math.inf)
    last = -tiny if high == 0.0 else math.nextafter(high, -math.inf)
    return first, last


def clamp_inside(theta: Tensor, low: float, high: float) -> Tensor:
    """float64 theta, with what rounding has put on or across an edge moved to the nearest float inside."""
    return theta.clamp(*next_inside(low, high))


def _edges(value: Any, name: str) -> Tensor:
    edge = as_tensor(value, name, torch.float64)
    if edge.ndim > 1 or not bool(torch.isfinite(edge).all()):
        raise ValueError(f"{name}: expected finite numbers of shape () or (D,), got {value!r}")
    return edge


class _Bounded(Transform):
    """Elementwise map of (low, high), an edge possibly infinite, onto R; the edges are () or (D,) buffers.

    A map is given by z(x), x(z) up to rounding, and the slope log dx/dz as a function of z. Inputs (..., D),
    log|det| (...).
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        low, high = torch.broadcast_tensors(low, high)
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())
        if not bool((low < high).all()):
            raise ValueError(f"bounds: expected low < high, got low={low.tolist()}, high={high.tolist()}")
        # float32 has no number between 1e6 and 1e6 + 0.05: such bounds are for float64 only
        self._dtypes = tuple(dtype for dtype in _Z_MAX if bool(self._has_room(dtype).all()))
        if not self._dtypes:
            raise ValueError(f"bounds: expected room between them, got {low.tolist()} and {high.tolist()}")

    @abstractmethod
    def _to_real(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor: ...

    @abstractmethod
    def _to_bounded(self, z: Tensor, low: Tensor, high: Tensor) -> Tensor: ...

    @abstractmethod
    def _log_slope(self, z: Tensor, low: Tensor, high: Tensor) -> Tensor: ...

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x in the open support -> z, log |dz / dx|.

        Raises:
            ValueError: an input is outside the support, or of a dtype too coarse for it.
        """
        low, high = self._cast(inputs)
        outside = ~((inputs > low) & (inputs < high))
        if bool(outside.any()):
            raise ValueError(
                f"{type(self).__name__}: expected inputs in ({self.low.tolist()}, {self.high.tolist()}), "
                f"got {int(outside.sum())} outside, the first {float(inputs.detach()[outside][0])!r}"
            )
        z = self._to_real(inputs, low, high)
        return z, -self._log_slope(z, low, high).sum(-1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z -> x strictly inside the support for any finite z, log |dx / dz|."""
        low, high = self._cast(inputs)
        x = self._to_bounded(inputs, low, high).clamp(*_first_and_last(low, high))
        return x, self._log_slope(inputs, low, high).sum(-1)

    def _cast(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if inputs.dtype not in self._dtypes:
            raise ValueError(f"{type(self).__name__}: expected {self._dtypes}, got {inputs.dtype}")
        return self.low.to(inputs), self.high.to(inputs)

    def _has_room(self, dtype: torch.dtype) -> Tensor:
        first, last = _first_and_last(self.low.to(dtype), self.high.to(dtype))
        return first < last


def _first_and_last(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """`next_inside` for tensors, in their own dtype."""
    tiny = torch.finfo(low.dtype).tiny
    up, down = torch.full_like(low, math.inf), torch.full_like(low, -math.inf)
    first = torch.where(low == 0, tiny, torch.nextafter(low, up))
    return first, torch.where(high == 0, -tiny, torch.nextafter(high, down))


class Probit(_Bounded):
    """(low, high) -> R by z = Phi^-1((x - low) / (high - low)): uniform becomes standard normal."""

    def __init__(self, low: Any, high: Any) -> None:
        super().__init__(_edges(low, "low"), _edges(high, "high"))

    def _to_real(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return probit_from_tails((x - low) / (high - low), (high - x) / (high - low))

    def _to_bounded(self, z: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return _from_nearer_edge(*normal_tails(z), low, high)

    def _log_slope(self, z: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.log(high - low) - 0.5 * z * z - _LOG_ROOT_2PI


class Logit(_Bounded):
    """(low, high) -> R by z = log((x - low) / (high - x))."""

    def __init__(self, low: Any, high: Any) -> None:
        super().__init__(_edges(low, "low"), _edges(high, "high"))

    def _to_real(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.log(x - low) - torch.log(high - x)

    def _to_bounded(self, z: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return _from_nearer_edge(torch.sigmoid(z), torch.sigmoid(-z), low, high)

    def _log_slope(self, z: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.log(high - low) + logsigmoid(z) + logsigmoid(-z)


class LowerBounded(_Bounded):
    """(low, inf) -> R by z = log(x - low)."""

    def __init__(self, low: Any) -> None:
        low = _edges(low, "low")
        super().__init__(low, torch.full_like(low, math.inf))

    def _to_real(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.log(x - low)

    def _to_bounded(self, z: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return low + _exp(z)

    def _log_slope(self, z: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return z


class UpperBounded(_Bounded):
    """(-inf, high) -> R by z = -log(high - x)."""

    def __init__(self, high: Any) -> None:
        high = _edges(high, "high")
        super().__init__(torch.full_like(high, -math.inf), high)

    def _to_real(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return -torch.log(high - x)

    def _to_bounded(self, z: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return high - _exp(-z)

    def _log_slope(self, z: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return -z


def _from_nearer_edge(cdf: Tensor, sf: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.where(cdf < sf, low + (high - low) * cdf, high - (high - low) * sf)


def _exp(value: Tensor) -> Tensor:
    """exp without overflow, whose gradient would be NaN."""
    return torch.exp(value.clamp(max=0.999 * math.log(torch.finfo(value.dtype).max)))
