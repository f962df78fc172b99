"""Lotka-Volterra: predators and prey, counted ten times with lognormal noise.

Appendix T.10 of arXiv 2101.04653: X' = alpha X - beta X Y, Y' = -gamma Y + delta X Y from (30, 1), seen at the times
0, 2.1, .., 18.9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sbiflow.priors import LogNormal, Prior
from simulators.benchmark.ode import exchange
from simulators.benchmark.task import (
    PlainParameters,
    checked_theta,
    noise_like,
    normal_log_density,
    numbered,
    pairs_of,
)

_START = (math.log(30.0), math.log(1.0))
_TIMES, _INTERVAL = 10, 2.1
_NOISE = 0.1
_PRIOR = Prior(
    LogNormal("alpha", -0.125, 0.5),
    LogNormal("beta", -3.0, 0.5),
    LogNormal("gamma", -0.125, 0.5),
    LogNormal("delta", -3.0, 0.5),
)


@dataclass(frozen=True)
class LotkaVolterra(PlainParameters):
    """alpha, gamma ~ LogNormal(-0.125, 0.5), beta, delta ~ LogNormal(-3, 0.5); x (20): prey, then predators."""

    name: str = "lotka_volterra"
    version: str = "1"
    prior: Prior = _PRIOR
    x_shape: tuple[int, ...] = (2 * _TIMES,)
    x_names: tuple[str, ...] = (*numbered("prey", _TIMES), *numbered("predators", _TIMES))

    def signal(self, theta: Tensor) -> Tensor:
        """Logarithms of both populations, (n, 4) -> (n, 20); NaN where the equations could not be solved."""
        theta = checked_theta(self, theta)
        return exchange(_START, theta, _INTERVAL, _TIMES).flatten(1).to(theta)

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        """Counts: e^signal with lognormal noise of 0.1."""
        return torch.exp(signal + _NOISE * noise_like(signal, generator))

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log-density of the counts: theta (n, 4), x (20,) or (n, 20) -> (n,); NaN where the signal is.

        Raises:
            ValueError: a count is not positive.
        """
        theta, x = pairs_of(self, theta, x)
        if not bool((x > 0).all()):
            raise ValueError(f"x: expected positive counts, got {float(x.min())}")
        return normal_log_density(x.log(), self.signal(theta), _NOISE**2) - x.log().sum(-1)

    def features(self, x: Tensor) -> Tensor:
        """Logarithms of the counts."""
        return torch.log(x)

    def raw(self, features: Tensor) -> Tensor:
        """Counts."""
        return torch.exp(features)
