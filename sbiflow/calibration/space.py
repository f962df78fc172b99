"""The unbounded, connected space in which the reference Markov chains move.

A parameter that is not periodic is its base coordinate z (standard normal under the prior). A periodic one is
a point (a, b) of the plane: its angle is the phase, its radius an auxiliary variable with density
proportional to r exp(-(r - 1)^2 / 2 s^2), independent of everything else. The plane has no edge to get stuck
at and an ensemble move along a straight line can turn the angle by any amount. Every radial density gives the
same law of the angle; this one is smooth at the origin: in the plane it is exp(-(r - 1)^2 / 2 s^2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sbiflow.importance import LogLikelihood
from sbiflow.priors import Prior

RADIUS_SD = 0.25
_CHUNK = 4096


@dataclass(frozen=True)
class ChainSpace:
    """Map between chain coordinates y (m, E) and base coordinates z (m, D), E = D + number of periodic ones.

    y holds the non-periodic z in the order of the prior, then every a, then every b.
    """

    prior: Prior

    @cached_property
    def periodic(self) -> np.ndarray:
        return self.prior.periodic.numpy()

    @cached_property
    def dim(self) -> int:
        return int(self.prior.dim + self.periodic.sum())

    def to_base(self, y: np.ndarray) -> np.ndarray:
        """(m, E) -> (m, D); periodic coordinates in [-pi, pi]."""
        wraps = self.periodic
        plain, turning = int((~wraps).sum()), int(wraps.sum())
        z = np.empty((len(y), self.prior.dim))
        z[:, ~wraps] = y[:, :plain]
        z[:, wraps] = np.arctan2(y[:, plain + turning :], y[:, plain : plain + turning])
        return z

    def from_base(self, z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(m, D) -> (m, E) with radii about 1."""
        wraps = self.periodic
        radius = np.abs(rng.normal(1.0, RADIUS_SD, (len(z), int(wraps.sum()))))
        return np.hstack([z[:, ~wraps], radius * np.cos(z[:, wraps]), radius * np.sin(z[:, wraps])])

    def log_base(self, y: np.ndarray) -> np.ndarray:
        """Log density of prior and radii in chain coordinates, up to a constant: (m, E) -> (m,).

        Standard normal in every plain coordinate; uniform in a phase, so that only its radius counts.
        """
        turning = int(self.periodic.sum())
        plain = y.shape[1] - 2 * turning
        a, b = y[:, plain : plain + turning], y[:, plain + turning :]
        offset = (np.hypot(a, b) - 1) / RADIUS_SD
        return -0.5 * ((y[:, :plain] ** 2).sum(1) + (offset**2).sum(1))


@dataclass
class ChainTarget:
    """Log posterior in chain coordinates, counting what it costs and what went wrong.

    A NaN log-likelihood counts as zero likelihood and is counted in `n_nan`.
    """

    space: ChainSpace
    log_likelihood: LogLikelihood
    x: Tensor
    n_rows: int = field(default=0, init=False)
    n_nan: int = field(default=0, init=False)

    def theta(self, y: np.ndarray) -> Tensor:
        """(m, E) -> parameters (m, D), float64, inside the support."""
        z = torch.from_numpy(self.space.to_base(y))
        columns = [m.from_base(column) for m, column in zip(self.space.prior.marginals, z.T, strict=True)]
        return torch.stack(columns, -1)  # prior.constrain without its Jacobian, which is not needed here

    def __call__(self, y: np.ndarray) -> np.ndarray:
        """(m, E) -> (m,); -inf where the likelihood is zero or NaN.

        Raises:
            ValueError: the log-likelihood is +inf or has a wrong shape.
        """
        with torch.no_grad():
            parts = [self.log_likelihood(block, self.x) for block in self.theta(y).split(_CHUNK)]
        values = torch.cat(parts).detach().double().cpu().numpy()
        if values.shape != (len(y),):
            raise ValueError(f"log_likelihood: expected shape ({len(y)},), got {values.shape}")
        if np.isposinf(values).any():
            raise ValueError("log_likelihood: expected values below +inf, got +inf")
        self.n_rows += len(y)
        self.n_nan += int(np.isnan(values).sum())
        values = np.where(np.isnan(values), -np.inf, values)
        return values + self.space.log_base(y)
