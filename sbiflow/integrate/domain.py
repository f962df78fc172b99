"""The region of integration, and its map from the unit cube.

Finite axes are affine; an axis with an infinite limit is stretched by the algebraic maps of infinite.py, whose
tails of density 1/x² are heavier than those of exponentials and Gaussians.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sbiflow.checks import as_tensor
from sbiflow.integrate.infinite import shrink, stretch

_SLACK = 1e-12


@dataclass(frozen=True)
class Domain:
    """A box of D axes, each with finite or infinite limits; `from_bounds` is the usual constructor.

    Args:
        low, high: (D,) limits in physical units, ±inf allowed; low < high.
        periodic: (D,) whether the ends of an axis are the same point; needs finite limits.
        scale: (D,) > 0, of the axes with an infinite limit, in physical units; unused on the others.

    Raises:
        ValueError: an axis is not as described.

    >>> domain = Domain.from_bounds([(0.0, 2.0), (0.0, math.inf)])
    >>> x, log_jacobian = domain.to_x(torch.tensor([[0.25, 0.5]], dtype=torch.float64))
    >>> x.tolist(), round(math.exp(log_jacobian[0]), 12)
    ([[0.5, 1.0]], 8.0)
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    periodic: tuple[bool, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes = {len(self.low), len(self.high), len(self.periodic), len(self.scale)}
        if len(sizes) != 1 or sizes == {0}:
            raise ValueError(f"Domain: expected low, high, periodic, scale of one length >= 1, got {sizes}")
        for axis in range(self.dim):
            self._check_axis(axis)

    @classmethod
    def from_bounds(cls, bounds: Any, periodic: Sequence[int] = (), scales: Any = 1.0) -> Domain:
        """A domain from D pairs (low, high), the indices of the periodic axes, and one scale or D of them.

        Args:
            bounds: D pairs of numbers, or an array or tensor (D, 2); ±inf allowed.
            periodic: indices 0..D-1.
            scales: of the axes with an infinite limit: the distance from the finite limit (or from 0 on the
                whole line) within which half of the first, uniform points fall.

        Raises:
            ValueError: a wrong shape, NaN, low >= high, a periodic axis that is not there or not finite.
        """
        limits = _real(bounds, "bounds")
        if limits.ndim != 2 or limits.shape[1] != 2 or not len(limits):
            raise ValueError(f"bounds: expected D pairs (low, high), shape (D, 2), got {tuple(limits.shape)}")
        scale = _real(scales, "scales")
        if scale.ndim > 1 or (scale.ndim == 1 and len(scale) != len(limits)):
            raise ValueError(
                f"scales: expected a number or {len(limits)} of them, got shape {tuple(scale.shape)}"
            )
        wraps = _axes(periodic, len(limits))
        low, high = limits[:, 0].tolist(), limits[:, 1].tolist()
        return cls(tuple(low), tuple(high), wraps, tuple(scale.expand(len(limits)).tolist()))

    @property
    def dim(self) -> int:
        """Number of axes D."""
        return len(self.low)

    @cached_property
    def infinite_axes(self) -> tuple[int, ...]:
        """Indices of the axes with an infinite limit."""
        ends = zip(self.low, self.high, strict=True)
        return tuple(axis for axis, pair in enumerate(ends) if math.inf in (-pair[0], pair[1]))

    @cached_property
    def _log_widths(self) -> float:
        """log of the volume of the finite axes together."""
        finite = set(range(self.dim)) - set(self.infinite_axes)
        return math.fsum(math.log(self.high[axis] - self.low[axis]) for axis in finite)

    def to_x(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The points of the domain that belong to points of the unit cube.

        Args:
            u: (n, D) in [0, 1], computed with in float64.

        Returns:
            x (n, D) float64, finite and low <= x <= high, and log |dx/du| (n,), on the device of u. u = 0 and
            u = 1 are the limits themselves where these are finite; at infinite limits they are the farthest
            points that the map reaches (about 1e16 scales, or 1e150 towards -∞).

        Raises:
            ValueError: another shape, or u outside [0, 1] or NaN.
        """
        u = self._checked(u, "u")
        if not bool(((u >= 0.0) & (u <= 1.0)).all()):
            raise ValueError(f"u: expected values in [0, 1], got {u.min():.6g} to {u.max():.6g}")
        low, high = self._edges(u.device)
        x = torch.lerp(low, high, u).clamp(
            low, high
        )  # exact at both ends; torch promises no rounding of lerp
        log_jacobian = u.new_full((len(u),), self._log_widths)
        for axis in self.infinite_axes:
            x[:, axis], log_slope = stretch(u[:, axis], self.low[axis], self.high[axis], self.scale[axis])
            log_jacobian += log_slope
        return x, log_jacobian

    def to_u(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `to_x`; points of a periodic axis are wrapped into its limits first.

        Args:
            x: (n, D) in the domain, finite, in physical units.

        Returns:
            u (n, D) float64 in [0, 1] and its own log |du/dx| (n,): the NEGATIVE of what `to_x` gives, as for
            every inverse transform of this package. Close to an upper limit u is as fine as float64 is below 1;
            log |du/dx| has full precision there too.

        Raises:
            ValueError: another shape, a NaN, or a point outside the domain (periodic axes aside).
        """
        x = self._wrapped(self._checked(x, "x"))
        low, high = self._edges(x.device)
        u = ((x - low) / (high - low)).clamp(0.0, 1.0)  # a wrapped point may have been rounded over an end
        log_jacobian = u.new_full((len(u),), -self._log_widths)
        for axis in self.infinite_axes:
            u[:, axis], log_slope = shrink(x[:, axis], self.low[axis], self.high[axis], self.scale[axis])
            log_jacobian -= log_slope
        return u, log_jacobian

    def snapped(self, x: Tensor) -> Tensor:
        """x (n, D), with points that rounding has put beyond a limit, by 1e-12 of the width, on it."""
        low, high = (
            torch.tensor(ends, dtype=torch.float64, device=x.device) for ends in (self.low, self.high)
        )
        slack = _SLACK * torch.where(torch.isfinite(high - low), high - low, torch.tensor(self.scale).to(low))
        rounded = (x >= low - slack) & (x <= high + slack)
        return torch.where(rounded, x.clamp(low, high), x)

    def spec(self) -> dict[str, list[Any]]:
        """What `from_spec` needs, for strict JSON: null for an infinite limit."""
        return {
            "low": [value if math.isfinite(value) else None for value in self.low],
            "high": [value if math.isfinite(value) else None for value in self.high],
            "periodic": list(self.periodic),
            "scale": list(self.scale),
        }

    @classmethod
    def from_spec(cls, spec: dict[str, list[Any]]) -> Domain:
        """The domain whose `spec()` this is."""
        low = tuple(-math.inf if value is None else float(value) for value in spec["low"])
        high = tuple(math.inf if value is None else float(value) for value in spec["high"])
        return cls(low, high, tuple(spec["periodic"]), tuple(float(value) for value in spec["scale"]))

    def _check_axis(self, axis: int) -> None:
        low, high, scale = self.low[axis], self.high[axis], self.scale[axis]
        if not low < high or low == math.inf or high == -math.inf:
            raise ValueError(f"bounds: expected low < high on axis {axis}, got ({low}, {high})")
        if axis in self.infinite_axes:
            if self.periodic[axis]:
                raise ValueError(f"periodic: expected finite limits on axis {axis}, got ({low}, {high})")
            if not 0.0 < scale < math.inf:
                raise ValueError(f"scales: expected a finite value > 0 on axis {axis}, got {scale}")
        elif not math.isfinite(high - low):
            raise ValueError(f"bounds: expected a width below 1.8e308 on axis {axis}, got ({low}, {high})")

    def _checked(self, value: Tensor, name: str) -> Tensor:
        points = as_tensor(value, name, torch.float64)
        if points.ndim != 2 or points.shape[1] != self.dim:
            raise ValueError(f"{name}: expected shape (n, {self.dim}), got {tuple(points.shape)}")
        return points

    def _edges(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Limits (D,), with 0 and 1 on the infinite axes, whose columns are replaced."""
        low, high = list(self.low), list(self.high)
        for axis in self.infinite_axes:
            low[axis], high[axis] = 0.0, 1.0
        pair = torch.tensor([low, high], dtype=torch.float64, device=device)
        return pair[0], pair[1]

    def _wrapped(self, x: Tensor) -> Tensor:
        low, high = (torch.tensor(ends, dtype=x.dtype, device=x.device) for ends in (self.low, self.high))
        wraps = torch.tensor(self.periodic, device=x.device)
        outside = (x < low) | (x > high) | ~torch.isfinite(x)
        if bool((outside & ~(wraps & torch.isfinite(x))).any()):
            row, axis = (outside & ~(wraps & torch.isfinite(x))).nonzero()[0].tolist()
            limits = f"[{self.low[axis]}, {self.high[axis]}]"
            raise ValueError(
                f"x: expected values in {limits} on axis {axis}, got {x[row, axis]:.6g}, row {row}"
            )
        turned = low + torch.remainder(x - low, high - low)
        return torch.where(outside, turned, x)


def _real(value: Any, name: str) -> Tensor:
    tensor = as_tensor(value, name, torch.float64).cpu()
    if bool(torch.isnan(tensor).any()):
        raise ValueError(f"{name}: expected numbers, got NaN")
    return tensor


def _axes(periodic: Any, dim: int) -> tuple[bool, ...]:
    """Indices -> one bool per axis."""
    try:
        indices = [operator.index(axis) for axis in periodic if not isinstance(axis, bool)]
        refused = len(indices) < len(periodic)
    except TypeError:
        refused = True
    if refused or not set(indices) <= set(range(dim)):
        raise ValueError(f"periodic: expected indices of axes, 0 to {dim - 1}, got {periodic!r}")
    return tuple(axis in indices for axis in range(dim))
