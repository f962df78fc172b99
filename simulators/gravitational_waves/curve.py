"""A one-dimensional density in straight pieces: exact cdf, quantiles and Jensen-Shannon divergence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def linear_draw(a: Tensor, b: Tensor, uniform: Tensor) -> Tensor:
    """Draws on [0, 1] from a density that is linear, proportional to a at 0 and to b at 1: (n,) each -> (n,)."""
    root = (a.square() + uniform * (b.square() - a.square())).clamp(min=0).sqrt()
    return (uniform * (a + b) / (a + root).clamp(min=1e-300)).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Curve:
    """A normalised density of one parameter, straight between grid points: grid, density and cumulative (G,)."""

    grid: np.ndarray
    density: np.ndarray
    cumulative: np.ndarray

    @classmethod
    def normalised(cls, grid: np.ndarray, density: np.ndarray) -> Curve:
        """From any positive values on an ascending grid."""
        pieces = np.diff(grid) * (density[1:] + density[:-1]) / 2
        cumulative = np.concatenate([[0.0], np.cumsum(pieces)])
        return cls(grid, density / cumulative[-1], cumulative / cumulative[-1])

    def pdf(self, x: np.ndarray) -> np.ndarray:
        """Density, 0 off the grid."""
        return np.interp(x, self.grid, self.density, left=0.0, right=0.0)

    def cdf(self, x: np.ndarray) -> np.ndarray:
        """Probability below x, exact for the straight pieces."""
        x = np.clip(x, self.grid[0], self.grid[-1])
        i = np.clip(np.searchsorted(self.grid, x, side="right") - 1, 0, len(self.grid) - 2)
        return self.cumulative[i] + (x - self.grid[i]) * (self.density[i] + self.pdf(x)) / 2

    def quantile(self, p: np.ndarray) -> np.ndarray:
        """Inverse of the cdf."""
        p = np.asarray(p, dtype=float)
        if not ((p >= 0) & (p <= 1)).all():
            raise ValueError(f"p: expected probabilities in [0, 1], got {p}")
        i = np.clip(np.searchsorted(self.cumulative, p, side="right") - 1, 0, len(self.grid) - 2)
        a, b, low, high = (torch.from_numpy(v) for v in (self.density[i], self.density[i + 1],
                                                         self.cumulative[i], self.cumulative[i + 1]))  # fmt: skip
        share = ((torch.as_tensor(p) - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
        return self.grid[i] + (self.grid[i + 1] - self.grid[i]) * linear_draw(a, b, share).numpy()

    def jsd(self, other: Curve) -> float:
        """Jensen-Shannon divergence [nats] from another curve, on the points of both."""
        x = np.union1d(self.grid, other.grid)
        p, q = self.pdf(x), other.pdf(x)
        m = (p + q) / 2
        terms = [v * np.log(np.where(v > 0, v, 1.0) / np.where(v > 0, m, 1.0)) for v in (p, q)]
        return float(np.trapezoid(sum(terms) / 2, x))
