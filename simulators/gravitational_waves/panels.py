"""Densities on an interval in equal panels of Gauss-Legendre nodes: integrals, interpolation, exact draws.

A panel carries `ORDER` nodes. A smooth log-density is, within a panel, its interpolating polynomial; where panels
are at most three standard deviations wide, integrals and interpolation are good to 1e-6. Panels need not be
adjacent: `refined` drops those where the density is negligible and halves the rest, until nothing changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simulators.gravitational_waves.curve import Curve, linear_draw

ORDER = 6
STEPS = 32  # straight pieces per panel for draws and curves: at most a tenth of a standard deviation each
_X, _W = (torch.from_numpy(v / 2) for v in np.polynomial.legendre.leggauss(ORDER))
NODES, WEIGHTS = _X + 0.5, _W  # on [0, 1]
FLOOR = 40.0  # log-densities are cut this far below their maximum, where underflow and pruning leave zeros


def _interpolation(at: Tensor) -> Tensor:
    """(k,) places in [0, 1] -> (k, ORDER): the matrix from values at the nodes to values there."""
    others = [[j for j in range(ORDER) if j != i] for i in range(ORDER)]
    factors = [(at[:, None] - NODES[j]) / (NODES[i] - NODES[j]) for i, j in enumerate(others)]
    return torch.stack([f.prod(1) for f in factors], 1)


TO_STEPS = _interpolation(torch.linspace(0, 1, STEPS + 1, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class Panels:
    """Panels [left, left + width): left (P,), ascending, float64."""

    left: Tensor
    width: float

    @classmethod
    def spanning(cls, low: float, high: float, widest: float, fewest: int = 1) -> Panels:
        """Adjacent panels from low to high, none wider than `widest`."""
        count = max(fewest, math.ceil((high - low) / widest))
        width = (high - low) / count
        return cls(low + width * torch.arange(count, dtype=torch.float64), width)

    @property
    def nodes(self) -> Tensor:
        """(P, ORDER)."""
        return self.left[:, None] + self.width * NODES

    @property
    def weights(self) -> Tensor:
        """Quadrature weights of the nodes, (P, ORDER)."""
        return (self.width * WEIGHTS).expand(len(self.left), ORDER)

    def split(self, parts: int) -> Panels:
        """Every panel in equal parts."""
        width = self.width / parts
        return Panels((self.left[:, None] + width * torch.arange(parts)).flatten(), width)

    def kept(self, log_density: Tensor, drop: float) -> Panels:
        """The panels where the log-density (P, ORDER) comes within `drop` of its maximum."""
        best = log_density.amax(1)
        return Panels(self.left[best > best.max() - drop], self.width)

    def meeting(self, others: Panels) -> Panels:
        """Those that overlap one of the others."""
        left, right = others.left + 1e-9 * self.width, others.left + others.width - 1e-9 * self.width
        overlap = (self.left[:, None] < right) & (self.left[:, None] + self.width > left)
        return Panels(self.left[overlap.any(1)], self.width)

    def curve(self, log_density: Tensor) -> Curve:
        """The density as straight pieces: values (P, ORDER), normalised or not."""
        steps = (floored(log_density) @ TO_STEPS.T).exp()
        x = self.left[:, None] + self.width * torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)
        last = torch.ones_like(self.left, dtype=torch.bool)
        last[:-1] = (self.left[1:] - self.left[:-1]) > 1.5 * self.width  # no neighbour that begins here
        keep = torch.ones_like(x, dtype=torch.bool)
        keep[:, -1] = last
        return Curve.normalised(x[keep].numpy(), steps[keep].numpy())

    def draw(self, log_density: Tensor, uniform: Tensor) -> Tensor:
        """One draw per row: unnormalised log-densities (n, P, ORDER), uniform numbers (n,) -> (n,)."""
        steps = (floored(log_density) @ TO_STEPS.T).exp()
        start, stop = (side.flatten(1) for side in (steps[..., :-1], steps[..., 1:]))
        cumulative = ((start + stop) / 2).cumsum(1)
        target = uniform[:, None] * cumulative[:, -1:]
        piece = torch.searchsorted(cumulative, target, right=True).clamp(max=start.shape[1] - 1)
        a, b, end = (v.gather(1, piece)[:, 0] for v in (start, stop, cumulative))
        inside = linear_draw(a, b, (1 - (end - target[:, 0]) / ((a + b) / 2)).clamp(0, 1))
        panel, step = piece[:, 0] // STEPS, piece[:, 0] % STEPS
        return self.left[panel] + self.width / STEPS * (step + inside)


def floored(log_density: Tensor) -> Tensor:
    """Values (..., P, ORDER) less the maximum of each density, cut at -`FLOOR`."""
    return (log_density - log_density.amax((-2, -1), keepdim=True)).clamp(min=-FLOOR)
