"""Gaussian linear, Gaussian linear uniform and Gaussian mixture: conjugate up to the edges of the prior.

Appendix T.1, T.2 and T.7 of arXiv 2101.04653. 0.1 is a variance, of prior and noise alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import log_ndtr, logsumexp
from scipy.stats import truncnorm
from torch import Generator, Tensor

from sbiflow.checks import check_count
from sbiflow.priors import Normal, Prior, Uniform
from simulators.benchmark.task import (
    PlainData,
    PlainParameters,
    Task,
    checked_theta,
    noise_like,
    normal_log_density,
    numbered,
    one_observation,
    pairs_of,
)

_VARIANCE = 0.1  # of the noise and of the Gaussian prior
_DIM = 10
_MIXTURE_VARIANCES = (1.0, 0.01)
_EDGE = 10.0  # of the mixture's prior
_GAUSSIAN_PRIOR = Prior([Normal(name, 0.0, math.sqrt(_VARIANCE)) for name in numbered("theta", _DIM)])
_UNIFORM_PRIOR = Prior([Uniform(name, -1.0, 1.0) for name in numbered("theta", _DIM)])
_MIXTURE_PRIOR = Prior([Uniform(name, -_EDGE, _EDGE) for name in numbered("theta", 2)])


class _UnitMatrix(PlainParameters, PlainData, Task):
    """x ~ N(theta, 0.1 I), whatever the prior."""

    def signal(self, theta: Tensor) -> Tensor:
        """The mean: theta."""
        return checked_theta(self, theta)

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        """The mean plus its noise."""
        return signal + math.sqrt(_VARIANCE) * noise_like(signal, generator)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log N(x; theta, 0.1 I): theta (n, 10), x (10,) or (n, 10) -> (n,)."""
        theta, x = pairs_of(self, theta, x)
        return normal_log_density(x, theta, _VARIANCE)


@dataclass(frozen=True)
class GaussianLinear(_UnitMatrix):
    """theta (10) ~ N(0, 0.1 I), x ~ N(theta, 0.1 I)."""

    name: str = "gaussian_linear"
    version: str = "1"
    prior: Prior = _GAUSSIAN_PRIOR
    x_shape: tuple[int, ...] = (_DIM,)
    x_names: tuple[str, ...] = numbered("x", _DIM)

    def reference(self, x: Tensor, n: int, seed: int) -> Tensor:
        """n independent draws of the posterior N(x / 2, 0.05 I), (n, 10) float64."""
        rng = np.random.default_rng(check_count(seed, "seed", 0))
        noise = rng.standard_normal((check_count(n, "n"), _DIM))
        return torch.from_numpy(0.5 * one_observation(self, x) + math.sqrt(0.5 * _VARIANCE) * noise)

    def log_evidence(self, x: Tensor) -> tuple[float, float]:
        """log N(x; 0, 0.2 I), and its error, 0."""
        point = torch.from_numpy(one_observation(self, x))
        return float(normal_log_density(point, torch.zeros(()), 2.0 * _VARIANCE)), 0.0


@dataclass(frozen=True)
class GaussianLinearUniform(_UnitMatrix):
    """theta (10) ~ U[-1, 1]^10, x ~ N(theta, 0.1 I)."""

    name: str = "gaussian_linear_uniform"
    version: str = "1"
    prior: Prior = _UNIFORM_PRIOR
    x_shape: tuple[int, ...] = (_DIM,)
    x_names: tuple[str, ...] = numbered("x", _DIM)

    def reference(self, x: Tensor, n: int, seed: int) -> Tensor:
        """n independent draws of the posterior, ten truncated normals, (n, 10) float64."""
        rng = np.random.default_rng(check_count(seed, "seed", 0))
        return torch.from_numpy(
            _truncated(one_observation(self, x), _VARIANCE, 1.0, check_count(n, "n"), rng)
        )

    def log_evidence(self, x: Tensor) -> tuple[float, float]:
        """log of the product of the normal masses within the prior over its volume, and its error, 0."""
        mass = _log_mass(one_observation(self, x), _VARIANCE, 1.0)
        return float(mass.sum()) - _DIM * math.log(2.0), 0.0


@dataclass(frozen=True)
class GaussianMixture(PlainParameters, PlainData):
    """theta (2) ~ U[-10, 10]^2, x ~ 0.5 N(theta, I) + 0.5 N(theta, 0.01 I)."""

    name: str = "gaussian_mixture"
    version: str = "1"
    prior: Prior = _MIXTURE_PRIOR
    x_shape: tuple[int, ...] = (2,)
    x_names: tuple[str, ...] = numbered("x", 2)

    def signal(self, theta: Tensor) -> Tensor:
        """The mean: theta."""
        return checked_theta(self, theta)

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        """The mean plus noise of the one or the other width, by the toss of a coin."""
        coin = torch.rand((len(signal), 1), generator=generator, dtype=signal.dtype, device=signal.device)
        wide, narrow = (math.sqrt(variance) for variance in _MIXTURE_VARIANCES)
        return signal + torch.where(coin < 0.5, wide, narrow) * noise_like(signal, generator)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log of the mixture's density: theta (n, 2), x (2,) or (n, 2) -> (n,)."""
        theta, x = pairs_of(self, theta, x)
        parts = [normal_log_density(x, theta, variance) for variance in _MIXTURE_VARIANCES]
        return torch.logaddexp(*parts) - math.log(2.0)

    def reference(self, x: Tensor, n: int, seed: int) -> Tensor:
        """n independent draws of the posterior, a mixture of two pairs of truncated normals, (n, 2) float64."""
        rng, point = np.random.default_rng(check_count(seed, "seed", 0)), one_observation(self, x)
        log_mass = self._log_masses(point)
        wide = rng.random(check_count(n, "n")) < np.exp(log_mass[0] - logsumexp(log_mass))
        draws = [_truncated(point, variance, _EDGE, n, rng) for variance in _MIXTURE_VARIANCES]
        return torch.from_numpy(np.where(wide[:, None], *draws))

    def log_evidence(self, x: Tensor) -> tuple[float, float]:
        """log of the mean mass of both components within the prior over its area, and its error, 0."""
        log_mass = self._log_masses(one_observation(self, x))
        return float(logsumexp(log_mass)) - math.log(2.0) - 2.0 * math.log(2.0 * _EDGE), 0.0

    @staticmethod
    def _log_masses(point: np.ndarray) -> np.ndarray:
        return np.array([_log_mass(point, variance, _EDGE).sum() for variance in _MIXTURE_VARIANCES])


def _log_mass(mean: np.ndarray, variance: float, edge: float) -> np.ndarray:
    """log of the mass of N(mean, variance) within (-edge, edge), elementwise."""
    sd = math.sqrt(variance)
    low, high = (-edge - mean) / sd, (edge - mean) / sd
    low, high = (
        np.where(low > 0, -high, low),
        np.where(low > 0, -low, high),
    )  # towards the tail that log_ndtr has
    return log_ndtr(high) + np.log1p(-np.exp(log_ndtr(low) - log_ndtr(high)))


def _truncated(
    mean: np.ndarray, variance: float, edge: float, n: int, rng: np.random.Generator
) -> np.ndarray:
    """n draws (n, D) of N(mean, variance I) within (-edge, edge)^D."""
    sd = math.sqrt(variance)
    low, high = (-edge - mean) / sd, (edge - mean) / sd
    draws = truncnorm.rvs(low, high, loc=mean, scale=sd, size=(n, len(mean)), random_state=rng)
    inside = np.nextafter(edge, 0.0)
    return np.clip(draws, -inside, inside)  # rounding may reach the edge, which the prior leaves out
