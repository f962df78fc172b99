"""Bernoulli GLM and Bernoulli GLM raw: spikes of a neuron driven by white noise through a smooth filter.

Appendix T.5 and T.6 of arXiv 2101.04653. The input of time bin t is V[t] = (1, I[t], I[t - 1], .., I[t - 8]), with
zeros before the beginning; a spike comes with probability sigmoid(V[t] theta). The stimulus I is 100 standard normal
numbers of NumPy's legacy generator at seed 42, which is the published one.

The published prior of theta = (beta, f) is beta ~ N(0, 2) and f ~ N(0, (F^T F)^-1), smooth by second differences:
F[i, i] = 1 + sqrt((i - 1) / 9), F[i, i - 1] = -2, F[i, i - 2] = 1. Our priors are products of marginals, so the tasks
are posed in (beta, w) with w = F f ~ N(0, I); `published` is the linear map back to (beta, f).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from sbiflow.checks import as_tensor
from sbiflow.priors import Normal, Prior
from simulators.benchmark.task import PlainData, checked_theta, numbered, pairs_of

_BINS, _LAGS, _SEED = 100, 9, 42


def stimulus() -> np.ndarray:
    """The published white noise, (100,), in the float32 numbers of its publication."""
    return np.random.RandomState(_SEED).standard_normal(_BINS).astype(np.float32).astype(np.float64)


def design() -> Tensor:
    """The inputs V of all time bins, (100, 10) float64."""
    padded = np.concatenate([np.zeros(_LAGS - 1), stimulus()])
    lagged = [padded[_LAGS - 1 - lag : _LAGS - 1 - lag + _BINS] for lag in range(_LAGS)]
    return torch.from_numpy(np.stack([np.ones(_BINS), *lagged], -1))


def smoothness() -> Tensor:
    """F, (9, 9) float64, lower triangular: F f is white under the prior."""
    diagonal = 1.0 + torch.sqrt(torch.arange(_LAGS, dtype=torch.float64) / _LAGS)
    below = torch.diag(torch.full((_LAGS - 1,), -2.0, dtype=torch.float64), -1)
    return torch.diag(diagonal) + below + torch.diag(torch.ones(_LAGS - 2, dtype=torch.float64), -2)


_DESIGN, _SMOOTHNESS = design(), smoothness()
_PRIOR = Prior(Normal("beta", 0.0, math.sqrt(2.0)), [Normal(name, 0.0, 1.0) for name in numbered("w", _LAGS)])


class _Filter:
    """The map between the white parameters (beta, w) and the published (beta, f)."""

    def published(self, theta: Tensor) -> Tensor:
        """(beta, w) (..., 10) -> (beta, f) (..., 10), f = F^-1 w."""
        theta = as_tensor(theta, "theta", torch.float64)
        inverse = torch.linalg.solve_triangular(
            _SMOOTHNESS.to(theta.device),
            torch.eye(_LAGS, dtype=torch.float64, device=theta.device),
            upper=False,
        )
        return torch.cat([theta[..., :1], theta[..., 1:] @ inverse.T], -1)

    def from_published(self, theta: Tensor) -> Tensor:
        """(beta, f) (..., 10) -> (beta, w) (..., 10)."""
        theta = as_tensor(theta, "theta", torch.float64)
        return torch.cat([theta[..., :1], theta[..., 1:] @ _SMOOTHNESS.to(theta.device).T], -1)


@dataclass(frozen=True)
class BernoulliGLM(_Filter, PlainData):
    """theta = (beta, w) (10), x (10): V^T z, the sufficient statistics of 100 Bernoulli outcomes z."""

    name: str = "bernoulli_glm"
    version: str = "1"
    prior: Prior = _PRIOR
    x_shape: tuple[int, ...] = (10,)
    x_names: tuple[str, ...] = ("spikes", *numbered("stimulus sum", _LAGS))

    def signal(self, theta: Tensor) -> Tensor:
        """(beta, f), from which `observe` makes the spikes, (n, 10) -> (n, 10)."""
        theta = checked_theta(self, theta)
        return self.published(theta).to(theta.dtype)

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        """V^T z for spikes z drawn at the rates that the signal sets."""
        inputs = _DESIGN.to(signal)
        return _spikes(signal @ inputs.T, generator) @ inputs

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log-probability of x: theta (n, 10), x (10,) or (n, 10) -> (n,).

        No two outcomes z have the same V^T z (the stimulus is in general position), so that of x is that of z.
        """
        theta, x = pairs_of(self, theta, x)
        filters = self.published(theta)
        return (filters * x).sum(-1) - _log_partition(filters)


@dataclass(frozen=True)
class BernoulliGLMRaw(_Filter, PlainData):
    """theta = (beta, w) (10), x (100): the Bernoulli outcomes themselves."""

    name: str = "bernoulli_glm_raw"
    version: str = "1"
    prior: Prior = _PRIOR
    x_shape: tuple[int, ...] = (_BINS,)
    x_names: tuple[str, ...] = numbered("spike", _BINS)

    def signal(self, theta: Tensor) -> Tensor:
        """Log-odds of a spike in every time bin, (n, 10) -> (n, 100)."""
        theta = checked_theta(self, theta)
        return (self.published(theta) @ _DESIGN.to(theta.device).T).to(theta.dtype)

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        """Spikes, 0 or 1."""
        return _spikes(signal, generator)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log-probability of the spikes: theta (n, 10), x (100,) or (n, 100) -> (n,).

        Raises:
            ValueError: x holds anything but 0 and 1.
        """
        theta, x = pairs_of(self, theta, x)
        if bool(((x != 0) & (x != 1)).any()):
            raise ValueError(f"x: expected 0 and 1 only, got {float(x[(x != 0) & (x != 1)][0])}")
        filters = self.published(theta)
        statistics = x @ _DESIGN.to(x.device)
        return (filters * statistics).sum(-1) - _log_partition(filters)


def _spikes(log_odds: Tensor, generator: Generator | None) -> Tensor:
    chance = torch.rand(log_odds.shape, generator=generator, dtype=log_odds.dtype, device=log_odds.device)
    return (chance < torch.sigmoid(log_odds)).to(log_odds.dtype)


def _log_partition(filters: Tensor) -> Tensor:
    return torch.nn.functional.softplus(filters @ _DESIGN.to(filters.device).T).sum(-1)
