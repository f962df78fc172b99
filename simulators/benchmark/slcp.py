"""SLCP, a simple likelihood with a complex posterior, without and with distractors.

Appendix T.3 and T.4 of arXiv 2101.04653; Papamakarios, Sterratt & Murray (2019), arXiv 1805.07226. Four points in the
plane share a mean (t1, t2), standard deviations (t3^2, t4^2) and the correlation tanh(t5), so the posterior is
symmetric in the signs of t3 and t4.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from sbiflow.checks import as_tensor
from sbiflow.priors import Prior, Uniform
from simulators.benchmark.distractors import Distractors, seeded_distractors
from simulators.benchmark.task import LOG_2PI, PlainData, PlainParameters, checked_theta, numbered, pairs_of

_POINTS, _INFORMATIVE, _ALL = 4, 8, 100
_SCALE = 10.0  # of the distractors' asinh features
_PRIOR = Prior([Uniform(name, -3.0, 3.0) for name in numbered("theta", 5)])
_SEED = 4


@dataclass(frozen=True)
class SLCP(PlainParameters, PlainData):
    """theta (5) ~ U[-3, 3]^5, x (8): four points of a two-dimensional normal distribution."""

    name: str = "slcp"
    version: str = "1"
    prior: Prior = _PRIOR
    x_shape: tuple[int, ...] = (_INFORMATIVE,)
    x_names: tuple[str, ...] = tuple(f"{axis}_{i}" for i in range(1, _POINTS + 1) for axis in "xy")

    def signal(self, theta: Tensor) -> Tensor:
        """(mean, mean, sd, sd, tanh^-1 of the correlation, 0, 0, 0), (n, 5) -> (n, 8)."""
        return _moments(checked_theta(self, theta), _INFORMATIVE)

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        """Four points with these moments."""
        return _points(signal, generator)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log of the four points' normal density: theta (n, 5), x (8,) or (n, 8) -> (n,)."""
        theta, x = pairs_of(self, theta, x)
        return _log_density(theta, x)


def _digest(distractors: Distractors, permutation: Tensor) -> str:
    arrays = (distractors.loc, distractors.scale, permutation.double())
    return hashlib.sha256(b"".join(a.numpy().tobytes() for a in arrays)).hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class SLCPDistractors(PlainParameters):
    """SLCP with 92 more columns that say nothing, x (100), all columns permuted.

    The distractors come from a mixture of 20 t distributions of two degrees of freedom; by default ours, from a
    fixed seed. With the published ones (`distractors.published_distractors`) the published observations can be used.

    Args:
        distractors: of dimension 92.
        permutation: (100,): x[i] is column permutation[i] of (8 informative, 92 distractors).

    Raises:
        ValueError: other shapes, or no permutation.
    """

    distractors: Distractors = field(default_factory=lambda: seeded_distractors(_SEED, _ALL - _INFORMATIVE))
    permutation: Tensor = field(
        default_factory=lambda: torch.randperm(_ALL, generator=torch.Generator().manual_seed(_SEED))
    )
    name: str = "slcp_distractors"
    version: str = field(init=False, default="1")
    prior: Prior = _PRIOR
    x_shape: tuple[int, ...] = (_ALL,)
    x_names: tuple[str, ...] = numbered("x", _ALL)

    def __post_init__(self) -> None:
        expected = _ALL - _INFORMATIVE
        if self.distractors.dim != expected:
            raise ValueError(f"distractors: expected dimension {expected}, got {self.distractors.dim}")
        if sorted(self.permutation.tolist()) != list(range(_ALL)):
            raise ValueError(
                f"permutation: expected one of {_ALL} columns, got {tuple(self.permutation.shape)}"
            )
        object.__setattr__(self, "version", "1." + _digest(self.distractors, self.permutation))

    def signal(self, theta: Tensor) -> Tensor:
        """As SLCP's, with more zeros, (n, 5) -> (n, 100)."""
        return _moments(checked_theta(self, theta), _ALL)

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        """Four points with these moments and 92 distractors, permuted."""
        noise = self.distractors.sample(signal, generator)
        return torch.cat([_points(signal, generator), noise], -1)[:, self.permutation.to(signal.device)]

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log-density of the eight informative columns: theta (n, 5), x (100,) or (n, 100) -> (n,).

        That of the distractors (`distractors.log_prob`) does not depend on theta and is left out: their scales are of
        condition 1e12 to 1e18, and rounding an observation to float32 moves it by 2000 nats.
        """
        theta, x = pairs_of(self, theta, x)
        return _log_density(theta, self.informative(x))

    def informative(self, x: Tensor) -> Tensor:
        """The SLCP observation within x, (..., 100) -> (..., 8): it has the same posterior."""
        return as_tensor(x, "x")[..., torch.argsort(self.permutation)[:_INFORMATIVE].to(x.device)]

    def features(self, x: Tensor) -> Tensor:
        """asinh(x / 10), which tames the heavy tails."""
        return torch.asinh(x / _SCALE)

    def raw(self, features: Tensor) -> Tensor:
        """10 sinh(features)."""
        return _SCALE * torch.sinh(features)


def _moments(theta: Tensor, width: int) -> Tensor:
    signal = theta.new_zeros((len(theta), width))
    signal[:, :2], signal[:, 2:4], signal[:, 4] = theta[:, :2], theta[:, 2:4].square(), theta[:, 4]
    return signal


def _points(signal: Tensor, generator: Generator | None) -> Tensor:
    shape = (len(signal), _POINTS, 2)
    unit = torch.randn(shape, generator=generator, dtype=signal.dtype, device=signal.device)
    correlation = torch.tanh(signal[:, 4, None])
    rest = 1.0 / torch.cosh(signal[:, 4, None])  # sqrt(1 - correlation^2)
    second = correlation * unit[..., 0] + rest * unit[..., 1]
    scaled = torch.stack([unit[..., 0], second], -1) * signal[:, None, 2:4]
    return (signal[:, None, :2] + scaled).flatten(1)


def _log_density(theta: Tensor, x: Tensor) -> Tensor:
    away = (x.unflatten(-1, (_POINTS, 2)) - theta[:, None, :2]) / theta[:, None, 2:4].square()
    first, second = away.unbind(-1)
    rest = torch.cosh(theta[:, 4, None])  # 1 / sqrt(1 - correlation^2)
    residual = rest * (second - torch.tanh(theta[:, 4, None]) * first)
    squares = (first.square() + residual.square()).sum(-1)
    log_scale = 2.0 * theta[:, 2:4].abs().log().sum(-1) - torch.log(rest[:, 0])
    return -0.5 * squares - _POINTS * (log_scale + LOG_2PI)
