"""The prior distributions. Constructor: name, the distribution's numbers, unit, label (for axes)."""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sbiflow.priors import tails
from sbiflow.priors.marginal import LOG_ROOT_2PI, Marginal, TailedMarginal
from sbiflow.priors.truncated_normal import nearest_to_zero, total_mass, truncated_quantile, truncated_tails
from sbiflow.transforms.bounded import wrap


@dataclass(frozen=True)
class Uniform(TailedMarginal):
    """Constant density on (low, high)."""

    name: str
    low: float
    high: float
    unit: str = ""
    label: str = ""

    def _check(self) -> None:
        self._check_interval()

    def _log_density(self, theta: Tensor) -> Tensor:
        return 0.0 * theta - math.log(self.high - self.low)  # differentiable

    def _tails(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return tails.uniform_tails(theta, self.low, self.high)

    def _quantile(self, cdf: Tensor, sf: Tensor) -> Tensor:
        return tails.uniform_quantile(cdf, sf, self.low, self.high)


class _Power(TailedMarginal):
    """Density proportional to theta^(k - 1) on (low, high)."""

    @property
    @abstractmethod
    def _k(self) -> float: ...

    def _check(self) -> None:
        if not math.isfinite(self._k):
            raise ValueError(f"{self.name}: expected a finite exponent, got {self._k - 1.0}")
        self._check_interval(lowest=0.0)
        if self.low == 0.0 and self._k <= 0.0:
            raise ValueError(f"{self.name}: expected low > 0 for exponent {self._k - 1.0:.10g}, got low=0")

    def _log_density(self, theta: Tensor) -> Tensor:
        return (self._k - 1.0) * torch.log(theta) - tails.power_log_norm(self.low, self.high, self._k)

    def _tails(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return tails.power_tails(theta, self.low, self.high, self._k)

    def _quantile(self, cdf: Tensor, sf: Tensor) -> Tensor:
        return tails.power_quantile(cdf, sf, self.low, self.high, self._k)


@dataclass(frozen=True)
class LogUniform(_Power):
    """Density proportional to 1 / theta on (low, high), 0 < low."""

    name: str
    low: float
    high: float
    unit: str = ""
    label: str = ""

    @property
    def _k(self) -> float:
        return 0.0


@dataclass(frozen=True)
class PowerLaw(_Power):
    """Density proportional to theta^exponent on (low, high), 0 <= low; low = 0 needs exponent > -1."""

    name: str
    exponent: float
    low: float
    high: float
    unit: str = ""
    label: str = ""

    @property
    def _k(self) -> float:
        return self.exponent + 1.0


@dataclass(frozen=True)
class Normal(Marginal):
    """Normal density; z = (theta - mean) / sd."""

    name: str
    mean: float
    sd: float
    unit: str = ""
    label: str = ""

    @property
    def support(self) -> tuple[float, float]:
        return -math.inf, math.inf

    def _check(self) -> None:
        self._check_scale("mean", "sd")

    def _log_density(self, theta: Tensor) -> Tensor:
        return -0.5 * self._to_base(theta).square() - math.log(self.sd) - LOG_ROOT_2PI

    def _to_base(self, theta: Tensor) -> Tensor:
        return (theta - self.mean) / self.sd

    def _from_base(self, z: Tensor) -> Tensor:
        return self.mean + self.sd * z

    def _from_uniform(self, u: Tensor) -> Tensor:
        return self._from_base(torch.special.ndtri(u))


@dataclass(frozen=True)
class LogNormal(Marginal):
    """log(theta) is normal; z = (log theta - mean_log) / sd_log."""

    name: str
    mean_log: float
    sd_log: float
    unit: str = ""
    label: str = ""

    @property
    def support(self) -> tuple[float, float]:
        return 0.0, math.inf

    def _check(self) -> None:
        self._check_scale("mean_log", "sd_log")

    def _log_density(self, theta: Tensor) -> Tensor:
        z = self._to_base(theta)
        return -0.5 * z * z - torch.log(theta) - math.log(self.sd_log) - LOG_ROOT_2PI

    def _to_base(self, theta: Tensor) -> Tensor:
        return (torch.log(theta) - self.mean_log) / self.sd_log

    def _from_base(self, z: Tensor) -> Tensor:
        # the largest exponent without overflow, whose gradient would be NaN
        return torch.exp((self.mean_log + self.sd_log * z).clamp(max=math.log(sys.float_info.max)))

    def _from_uniform(self, u: Tensor) -> Tensor:
        return self._from_base(torch.special.ndtri(u))


@dataclass(frozen=True)
class TruncatedNormal(TailedMarginal):
    """Normal density of the given mean and sd, before truncation, on (low, high); an edge may be infinite."""

    name: str
    mean: float
    sd: float
    low: float
    high: float
    unit: str = ""
    label: str = ""

    def _check(self) -> None:
        self._check_scale("mean", "sd")
        if not self.low < self.high or self.low == math.inf or self.high == -math.inf:
            raise ValueError(f"{self.name}: expected low < high, got low={self.low}, high={self.high}")
        self._check_room()

    @property
    def _edges(self) -> tuple[float, float]:
        return (self.low - self.mean) / self.sd, (self.high - self.mean) / self.sd

    def _log_density(self, theta: Tensor) -> Tensor:
        y, mode = (theta - self.mean) / self.sd, nearest_to_zero(*self._edges)
        return -0.5 * (y - mode) * (y + mode) - math.log(total_mass(*self._edges) * self.sd)

    def _tails(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        below, above = (theta - self.low) / self.sd, (self.high - theta) / self.sd
        return truncated_tails((theta - self.mean) / self.sd, below, above, *self._edges)

    def _quantile(self, cdf: Tensor, sf: Tensor) -> Tensor:
        y, distance, lower = truncated_quantile(cdf, sf, *self._edges)
        from_edge = torch.where(lower, self.low + self.sd * distance, self.high - self.sd * distance)
        return torch.where(torch.isfinite(distance), from_edge, self.mean + self.sd * y)


class _Polar(TailedMarginal):
    """Density proportional to the sine of the polar angle theta + offset."""

    _offset: ClassVar[float]

    @staticmethod
    @abstractmethod
    def _sin_cos(theta: float) -> tuple[float, float]:
        """Sine and cosine of the polar angle."""

    @property
    def _mass(self) -> float:
        return tails.polar_mass(self.low + self._offset, self.high + self._offset)

    def _check(self) -> None:
        self._check_interval(-self._offset, math.pi - self._offset)

    def _tails(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        edges = self._sin_cos(self.low), self._sin_cos(self.high)
        return tails.polar_tails(theta - self.low, self.high - theta, *edges, self._mass)

    def _quantile(self, cdf: Tensor, sf: Tensor) -> Tensor:
        return tails.polar_quantile(cdf, sf, self.low + self._offset, self.high + self._offset) - self._offset


@dataclass(frozen=True)
class Sine(_Polar):
    """Density proportional to sin(theta) on (low, high) within [0, pi] [rad]: an isotropic polar angle."""

    _offset: ClassVar[float] = 0.0

    name: str
    low: float = 0.0
    high: float = math.pi
    unit: str = ""
    label: str = ""

    @staticmethod
    def _sin_cos(theta: float) -> tuple[float, float]:
        return math.sin(theta), math.cos(theta)

    def _log_density(self, theta: Tensor) -> Tensor:
        return torch.log(torch.sin(theta)) - math.log(2.0 * self._mass)


@dataclass(frozen=True)
class Cosine(_Polar):
    """Density proportional to cos(theta) on (low, high) within [-pi/2, pi/2] [rad]: an isotropic latitude."""

    _offset: ClassVar[float] = 0.5 * math.pi

    name: str
    low: float = -0.5 * math.pi
    high: float = 0.5 * math.pi
    unit: str = ""
    label: str = ""

    @staticmethod
    def _sin_cos(theta: float) -> tuple[float, float]:
        return math.cos(theta), -math.sin(theta)

    def _log_density(self, theta: Tensor) -> Tensor:
        return torch.log(torch.cos(theta)) - math.log(2.0 * self._mass)


@dataclass(frozen=True)
class PeriodicUniform(Marginal):
    """Uniform on [low, high), whose ends are the same point; z is the phase in [-pi, pi)."""

    periodic: ClassVar[bool] = True

    name: str
    low: float = 0.0
    high: float = 2.0 * math.pi
    unit: str = ""
    label: str = ""

    @property
    def support(self) -> tuple[float, float]:
        return self.low, self.high

    def _check(self) -> None:
        self._check_interval()

    def _log_density(self, theta: Tensor) -> Tensor:
        return 0.0 * theta - math.log(self.high - self.low)  # differentiable

    def _to_base(self, theta: Tensor) -> Tensor:
        return wrap((theta - 0.5 * (self.low + self.high)) * (2.0 * math.pi / (self.high - self.low)))

    def _from_base(self, z: Tensor) -> Tensor:
        return 0.5 * (self.low + self.high) + wrap(z) * ((self.high - self.low) / (2.0 * math.pi))

    def _from_uniform(self, u: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * u


def isotropic_direction(
    azimuth_name: str, polar_name: str, polar: str = "cosine"
) -> tuple[Marginal, Marginal]:
    """An isotropic direction [rad]: azimuth in [0, 2 pi), and latitude ("cosine") or colatitude ("sine").

    Raises:
        ValueError: `polar` is neither.
    """
    kinds: dict[str, type[Sine] | type[Cosine]] = {"sine": Sine, "cosine": Cosine}
    if polar not in kinds:
        raise ValueError(f"polar: expected 'cosine' or 'sine', got {polar!r}")
    return PeriodicUniform(azimuth_name, unit="rad"), kinds[polar](polar_name, unit="rad")
