"""What the ten tasks share: the shape checks of their likelihoods, and the two maps that most of them leave plain.

A task is a frozen, picklable `Simulator` with a likelihood and, on top of that,

- `published(theta)`: parameters in the published parametrisation, in which draws are compared;
- `features(x)` and `raw(features)`: the fixed invertible map from an observation to a network's input, and back;
- where it has a closed form, `reference(x, n, seed)` and `log_evidence(x)`.

Source of every definition: Lueckmann, Boelts, Greenberg, Gonçalves & Macke (2021), arXiv 2101.04653, appendix T.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from sbiflow.checks import as_tensor, check_finite, check_shape
from sbiflow.priors import Prior

LOG_2PI = math.log(2.0 * math.pi)


class Task(Protocol):
    """What every task of the benchmark has."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def prior(self) -> Prior: ...
    @property
    def x_shape(self) -> tuple[int, ...]: ...
    @property
    def x_names(self) -> tuple[str, ...]: ...

    def signal(self, theta: Tensor) -> Tensor:
        """What the noise needs to know of theta, (n, D) -> (n, *x_shape)."""
        ...

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        """One draw of x for every row, (n, *x_shape) -> (n, *x_shape)."""
        ...

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log p(x | theta), normalised over x; theta (n, D), x (*x_shape) or (n, *x_shape) -> (n,) float64."""
        ...

    def published(self, theta: Tensor) -> Tensor:
        """Parameters as the benchmark publishes them, (..., D) -> (..., D)."""
        ...

    def features(self, x: Tensor) -> Tensor:
        """A network's input, (..., *x_shape) -> (..., *x_shape)."""
        ...

    def raw(self, features: Tensor) -> Tensor:
        """The observation of a network's input: the inverse of `features`."""
        ...


class PlainParameters:
    """The prior is in the published parameters."""

    def published(self, theta: Tensor) -> Tensor:
        """The identity."""
        return theta


class PlainData:
    """The network sees the observation as it is."""

    def features(self, x: Tensor) -> Tensor:
        """The identity."""
        return x

    def raw(self, features: Tensor) -> Tensor:
        """The identity."""
        return features


def numbered(prefix: str, n: int) -> tuple[str, ...]:
    """prefix_1 .. prefix_n."""
    return tuple(f"{prefix}_{i}" for i in range(1, n + 1))


def pairs_of(task: Task, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """theta (n, D) and x (1 or n, *x_shape) in float64 on the device of theta, for a likelihood.

    Raises:
        ValueError: another shape, or an x that is not finite.
    """
    theta = as_tensor(theta, "theta", torch.float64)
    check_shape(theta, "theta", ("n", task.prior.dim))
    x = as_tensor(x, "x", torch.float64).to(theta.device)
    check_shape(x, "x", task.x_shape if x.ndim == len(task.x_shape) else (len(theta), *task.x_shape))
    check_finite(x, "x")
    return theta, x if x.ndim > len(task.x_shape) else x.unsqueeze(0)


def one_observation(task: Task, x: Tensor) -> np.ndarray:
    """x (*x_shape) as float64 numpy.

    Raises:
        ValueError: another shape, or not finite.
    """
    x = as_tensor(x, "x", torch.float64).detach().cpu()
    check_shape(x, "x", task.x_shape)
    check_finite(x, "x")
    return x.numpy()


def normal_log_density(x: Tensor, mean: Tensor, variance: float) -> Tensor:
    """log N(x; mean, variance I) summed over the last axis, with broadcasting."""
    distance = (x - mean).square()
    return (-0.5 * distance / variance - 0.5 * (LOG_2PI + math.log(variance))).sum(-1)


def noise_like(signal: Tensor, generator: Generator | None) -> Tensor:
    """Standard normal numbers in the shape, the dtype and on the device of `signal`."""
    return torch.randn(signal.shape, generator=generator, dtype=signal.dtype, device=signal.device)


def checked_theta(task: Task, theta: Tensor) -> Tensor:
    """theta (n, D) as it is.

    Raises:
        ValueError: another shape.
    """
    theta = as_tensor(theta, "theta")
    check_shape(theta, "theta", ("n", task.prior.dim))
    return theta
