"""SIR: an epidemic in a million people, of whom a thousand are tested on ten days.

Appendix T.9 of arXiv 2101.04653: S' = -beta S I / N, I' = beta S I / N - gamma I, one infected on day 0, tests on the
days 0, 17, .., 153. On day 0 the infected are one in a million whatever theta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sbiflow.priors import LogNormal, Prior
from simulators.benchmark.ode import exchange
from simulators.benchmark.task import PlainParameters, checked_theta, pairs_of

_PEOPLE, _TESTS = 1e6, 1000
_TIMES, _INTERVAL = 10, 17.0
_START = (
    math.log1p(-1.0 / _PEOPLE),
    -math.log(_PEOPLE),
)  # log of the susceptible and of the infected fraction

_PRIOR = Prior(LogNormal("beta", math.log(0.4), 0.5), LogNormal("gamma", math.log(0.125), 0.2))


@dataclass(frozen=True)
class SIR(PlainParameters):
    """beta ~ LogNormal(log 0.4, 0.5), gamma ~ LogNormal(log 1/8, 0.2); x (10): infected among 1000 tested."""

    name: str = "sir"
    version: str = "1"
    prior: Prior = _PRIOR
    x_shape: tuple[int, ...] = (_TIMES,)
    x_names: tuple[str, ...] = tuple(f"day {round(i * _INTERVAL)}" for i in range(_TIMES))

    def signal(self, theta: Tensor) -> Tensor:
        """The infected fraction, (n, 2) -> (n, 10); NaN where the equations could not be solved."""
        theta = checked_theta(self, theta)
        return self._log_fraction(theta).exp().to(theta)

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        """Positive tests of 1000, binomial; NaN where the signal is."""
        known = signal.isfinite()
        count = torch.full_like(signal, float(_TESTS))
        positive = torch.binomial(count, torch.where(known, signal, 0.0), generator)
        return torch.where(known, positive, math.nan)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log-probability of the positive tests: theta (n, 2), x (10,) or (n, 10) -> (n,); NaN where the signal is.

        Raises:
            ValueError: x holds anything but whole numbers from 0 to 1000.
        """
        theta, x = pairs_of(self, theta, x)
        if not bool(((x == x.round()) & (x >= 0) & (x <= _TESTS)).all()):
            raise ValueError(f"x: expected whole numbers from 0 to {_TESTS}, got {x[0].tolist()}")
        total = x.new_tensor(_TESTS + 1.0)
        ways = torch.lgamma(total) - torch.lgamma(x + 1.0) - torch.lgamma(total - x)
        log_infected = self._log_fraction(theta)
        log_other = torch.log1p(-log_infected.exp())
        return (ways + x * log_infected + (_TESTS - x) * log_other).sum(-1)

    def features(self, x: Tensor) -> Tensor:
        """log((x + 1/2) / (1000 - x + 1/2)): log-odds of the tests."""
        return torch.log((x + 0.5) / (_TESTS - x + 0.5))

    def raw(self, features: Tensor) -> Tensor:
        """Positive tests, rounded to whole numbers."""
        return ((_TESTS + 1.0) * torch.sigmoid(features) - 0.5).round()

    @staticmethod
    def _log_fraction(theta: Tensor) -> Tensor:
        beta, gamma = theta.double().unbind(-1)
        rates = torch.stack([torch.zeros_like(beta), beta, gamma, beta], -1)
        return exchange(_START, rates, _INTERVAL, _TIMES)[:, 1]
