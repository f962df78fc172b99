"""One named parameter: its prior, its unit, and the exact map to a base variable z.

In z the prior is a standard normal, z = Phi^-1(cdf), or, for a periodic parameter, a phase uniform on
[-pi, pi). The Jacobian then needs no further code: log |dz / dtheta| = log prior(theta) - log base(z), an
identity also where theta had to be rounded. A flow that lives in z cannot leave the prior's support.

All arithmetic is float64. Next to an edge the tails are taken from that edge, so that nothing is lost up to
|z| = 37.5; beyond, theta stays where it is there, inside the support.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import fields
from typing import ClassVar

import torch
from torch import Tensor

from sbiflow.checks import as_tensor
from sbiflow.transforms.bounded import clamp_inside, next_inside, normal_tails, probit_from_tails

LOG_ROOT_2PI = 0.5 * math.log(2.0 * math.pi)
_LOG_2PI = math.log(2.0 * math.pi)


class Marginal(ABC):
    """One named parameter with its prior. Every method takes any shape and returns the same shape in float64.

    A distribution gives its support, its log-density and the way to z and back, for valid input and up to
    rounding at the edges; this class checks what comes in and keeps what goes out inside the support.
    """

    name: str
    unit: str
    label: str
    periodic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"{type(self).__name__}: expected a name, got {self.name!r}")
        for name in self.parameters():
            value = getattr(self, name)
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = math.nan
            if math.isnan(number):
                raise ValueError(f"{self.name}: expected a number as {name}, got {value!r}")
            object.__setattr__(self, name, number)
        self._check()

    @classmethod
    def parameters(cls) -> list[str]:
        """Names of the distribution's numbers, in the constructor's order."""
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        return [name for name in names if name not in ("name", "unit", "label")]

    @property
    @abstractmethod
    def support(self) -> tuple[float, float]:
        """(low, high), open; [low, high) for a periodic parameter."""

    @abstractmethod
    def _check(self) -> None:
        """Raise ValueError for numbers that define no distribution."""

    @abstractmethod
    def _log_density(self, theta: Tensor) -> Tensor: ...

    @abstractmethod
    def _to_base(self, theta: Tensor) -> Tensor: ...

    @abstractmethod
    def _from_base(self, z: Tensor) -> Tensor: ...

    @abstractmethod
    def _from_uniform(self, u: Tensor) -> Tensor: ...

    def inside(self, theta: Tensor) -> Tensor:
        """Whether theta lies in the support (bool; False for NaN)."""
        low, high = self.support
        return ((theta >= low) if self.periodic else (theta > low)) & (theta < high)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Normalised log-density in 1 / unit; -inf outside the support."""
        theta = as_tensor(theta, self.name, torch.float64)
        inside = self.inside(theta)
        median = self._from_uniform(theta.new_full((), 0.5))  # anything inside, for a finite gradient
        safe = torch.where(inside, theta, median)
        return torch.where(inside, self._log_density(safe), -math.inf)

    def to_base(self, theta: Tensor) -> Tensor:
        """z of theta.

        Raises:
            ValueError: a value is outside the support.
        """
        theta = as_tensor(theta, self.name, torch.float64)
        outside = ~self.inside(theta)
        if bool(outside.any()):
            first, count = float(theta[outside].reshape(-1)[0]), int(outside.sum())
            raise ValueError(
                f"{self.title}: expected values in {self.interval}, got {count} outside, the first {first!r}"
            )
        return self._to_base(theta)

    def from_base(self, z: Tensor) -> Tensor:
        """theta of any finite z, strictly inside the support; NaN stays NaN."""
        return self._keep_inside(self._from_base(as_tensor(z, self.name, torch.float64)))

    def from_uniform(self, u: Tensor) -> Tensor:
        """Inverse distribution function of u in (0, 1)."""
        return self._keep_inside(self._from_uniform(as_tensor(u, self.name, torch.float64)))

    def base_log_prob(self, z: Tensor) -> Tensor:
        """Log-density of the base: standard normal, or uniform in the phase for a periodic parameter."""
        z = as_tensor(z, self.name, torch.float64)
        return torch.full_like(z, -_LOG_2PI) if self.periodic else -0.5 * z * z - LOG_ROOT_2PI

    def _keep_inside(self, theta: Tensor) -> Tensor:
        low, high = self.support
        if self.periodic:  # the upper edge is the lower one
            return torch.where(theta >= high, low, theta.clamp(min=low))
        return clamp_inside(theta, low, high)

    @property
    def title(self) -> str:
        """The name with its unit in brackets, if it has one."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name

    @property
    def interval(self) -> str:
        """The support as text."""
        low, high = self.support
        return f"{'[' if self.periodic else '('}{low:.10g}, {high:.10g})"

    def _check_interval(self, lowest: float = -math.inf, highest: float = math.inf) -> None:
        low, high = self.support
        if not (lowest <= low < high <= highest) or not math.isfinite(high - low):
            limits = f" in [{lowest:.10g}, {highest:.10g}]" if math.isfinite(lowest) else ""
            raise ValueError(f"{self.name}: expected finite low < high{limits}, got low={low}, high={high}")
        self._check_room()

    def _check_room(self) -> None:
        first, last = next_inside(*self.support)
        if first >= last:
            raise ValueError(
                f"{self.name}: expected room between low and high, got adjacent floats {self.support}"
            )

    def _check_scale(self, location: str, scale: str) -> None:
        mean, sd = getattr(self, location), getattr(self, scale)
        if not math.isfinite(mean) or not 0.0 < sd < math.inf:
            expected = f"finite {location} and {scale} > 0"
            raise ValueError(f"{self.name}: expected {expected}, got {location}={mean}, {scale}={sd}")


class TailedMarginal(Marginal):
    """A distribution known by the masses below and above theta; z = Phi^-1 of the smaller one."""

    low: float
    high: float

    @property
    def support(self) -> tuple[float, float]:
        return self.low, self.high

    @abstractmethod
    def _tails(self, theta: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _quantile(self, cdf: Tensor, sf: Tensor) -> Tensor: ...

    def _to_base(self, theta: Tensor) -> Tensor:
        return probit_from_tails(*self._tails(theta))

    def _from_base(self, z: Tensor) -> Tensor:
        return self._quantile(*normal_tails(z))

    def _from_uniform(self, u: Tensor) -> Tensor:
        return self._quantile(u, 1.0 - u)
