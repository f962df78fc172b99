"""What a map keeps of the draws of each pixel: quantiles, directions, and the misfit at the draws.

Quantiles are Hazen's, as in `summary.py`: interpolated between two order statistics. Order statistics commute with
a monotone map, so they are taken in the base space, and only the six that are used go through the prior's bijection:
the result is that of constraining every draw.

The misfit chi2 = sum ((x - signal(theta)) / sigma)^2 over the N data of a pixel is taken at posterior draws. If
model, Gaussian noise and posterior are right, (theta, x) with theta ~ p(theta | x) is distributed as with the true
theta, so that chi2 at one draw is a chi-square variable of N degrees of freedom, with no parameter to subtract
(Johnson 2007, Bayesian Analysis 2, 719, doi 10.1214/07-BA229). Of k draws the mean of the k tail probabilities is
kept: the posterior-predictive p-value of the realised misfit (Gelman, Meng & Stern 1996, Statistica Sinica 6, 733),
which is at most alpha for at most 2 alpha of the prior's simulations (Meng 1994, Annals of Statistics 22, 1142), and
with k = 1 for exactly alpha of them. That is an average over the prior, as in any statement about a posterior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbiflow.contracts import Simulator
from sbiflow.observing import noiseless
from sbiflow.priors import Prior
from sbiflow.priors.marginal import Marginal
from sbiflow.summary import LEVELS

_TWO_PI = 2 * math.pi


class DrawSummary(NamedTuple):
    """Statistics of the draws of B observations; D parameters, of which P are periodic. All float64."""

    low: np.ndarray  # (D, B)
    median: np.ndarray  # (D, B)
    high: np.ndarray  # (D, B)
    circular_mean: np.ndarray  # (P, B)
    concentration: np.ndarray  # (P, B)


def summarise_draws(z: Tensor, prior: Prior) -> DrawSummary:
    """Of draws z (n, B, D) in the prior's base space, in physical units; what is NaN in z may be anything here."""
    draws = np.ascontiguousarray(z.permute(2, 1, 0).numpy())  # (D, B, n): sorted along memory
    means, lengths = [], []
    for column in np.flatnonzero(prior.periodic.numpy()):
        angle, length = _direction(draws[column])
        draws[column] -= _TWO_PI * np.round((draws[column] - angle[:, None]) / _TWO_PI)
        means.append(_from_phase(angle, *prior.marginals[column].support))
        lengths.append(length)
    draws.sort(-1)
    quantiles = np.stack([_quantiles(d, m) for d, m in zip(draws, prior.marginals, strict=True)])  # (D, 3, B)
    low, median, high = np.moveaxis(quantiles, 1, 0)
    none = np.empty((0, z.shape[1]))
    return DrawSummary(
        low, median, high, np.stack(means) if means else none, np.stack(lengths) if lengths else none
    )


@dataclass(frozen=True)
class Predictive:
    """The misfit of observations at posterior draws.

    Attributes:
        simulator: with `signal`.
        prior: of the draws.
        noise: standard deviations of the Gaussian noise, x_shape, float64.
        draws: k, simulator calls per observation.
    """

    simulator: Simulator
    prior: Prior
    noise: Tensor
    draws: int

    def __call__(self, x: Tensor, z: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Observations x (B, *x_shape) and draws z (n, B, D), n >= k -> chi2 / N and its p-value, (B,) each.

        Both are NaN where the simulator fails.
        """
        count = len(x)
        chosen = z[: self.draws].reshape(-1, self.prior.dim).double()
        pairs = zip(self.prior.marginals, chosen.unbind(-1), strict=True)
        theta = torch.stack([marginal.from_base(column) for marginal, column in pairs], -1)
        signal = torch.as_tensor(self.simulator.signal(theta)).detach().cpu()
        clean = noiseless(self.simulator, theta, signal).cpu().double()
        residual = (x - clean.reshape(self.draws, count, *x.shape[1:])) / self.noise
        chi2 = residual.square().reshape(self.draws, count, -1).sum(-1)
        half = torch.tensor(self.noise.numel() / 2, dtype=torch.float64)
        p = torch.special.gammaincc(half, chi2 / 2)
        return (chi2.mean(0) / self.noise.numel()).numpy(), p.mean(0).numpy()


def _direction(phases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angle and length of the mean unit vector of phases (B, n), (B,) each."""
    x, y = (part(phases).mean(-1, dtype=np.float64) for part in (np.cos, np.sin))
    return np.arctan2(y, x), np.hypot(x, y)


def _quantiles(ordered: np.ndarray, marginal: Marginal) -> np.ndarray:
    """16, 50 and 84 % of sorted draws (B, n) of one parameter, (3, B); its phase is unwrapped if it is periodic."""
    n = ordered.shape[-1]
    place = np.clip(np.asarray(LEVELS) * n - 0.5, 0, n - 1)
    below = np.floor(place).astype(int)
    pair = ordered[:, [below, np.minimum(below + 1, n - 1)]].astype(np.float64)  # (B, 2, 3)
    if marginal.periodic:
        low, high = marginal.support
        theta = 0.5 * (low + high) + pair * ((high - low) / _TWO_PI)
    else:
        theta = marginal.from_base(torch.from_numpy(pair)).numpy()
    found = theta[:, 0] + (place - below) * (theta[:, 1] - theta[:, 0])
    if marginal.periodic:  # by whole periods, so that the median is in the support
        found -= (high - low) * np.floor((found[:, 1:2] - low) / (high - low))
    return found.T


def _from_phase(angle: np.ndarray, low: float, high: float) -> np.ndarray:
    """A phase in [-pi, pi] as a value in [low, high)."""
    value = 0.5 * (low + high) + angle * ((high - low) / _TWO_PI)
    return np.where(value >= high, low, value)
