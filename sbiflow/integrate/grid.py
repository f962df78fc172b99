"""A smooth adaptive grid: one monotone map per axis, refined as in VEGAS.

Every axis of the unit cube is cut into M bins that are to carry equal weight (Lepage 1978; refinement and damping of
arXiv 2009.05112, section II). Between the edges the map is a rational-quadratic spline instead of a straight line:
its density is continuous, so that what a flow on top has to learn has no steps at the edges, and the weights of the
grid alone have no saw teeth.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_DAMPING = 0.7  # exponent of the damped contributions; VEGAS' alpha
_FLOOR = 1e-12  # of a bin's share of the contributions
_POINTS = 32  # per bin, that are smoothed once
_MIN_WIDTH = 1e-9  # of a bin, so that its density stays finite


class Grid(nn.Module):
    """y (n, D) in the unit cube, the integrand's side, <-> g (n, D) in the unit cube, where draws are uniform.

    Starts as the identity. All in float64.
    """

    edges: Tensor
    mean: Tensor
    slope: Tensor

    def __init__(self, dim: int, bins: int) -> None:
        super().__init__()
        self.dim, self.bins = dim, bins
        edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64).repeat(dim, 1)
        self.register_buffer("edges", edges)
        self.register_buffer("mean", torch.ones(dim, bins, dtype=torch.float64), persistent=False)
        self.register_buffer("slope", torch.ones_like(edges), persistent=False)
        self._use(edges)

    def set_edges(self, edges: Tensor) -> None:
        """Take new edges (D, M + 1), rising from 0 to 1.

        Slopes at the edges are those of Gregory & Delbourgo 1982 (monotone, no overshoot).
        """
        widths = edges.diff(dim=1).clamp(min=_MIN_WIDTH)
        edges = torch.cat([torch.zeros_like(edges[:, :1]), widths.cumsum(1)], 1)
        self._use(edges / edges[:, -1:])

    def _use(self, edges: Tensor) -> None:
        width = edges.diff(dim=1)
        mean = 1 / (self.bins * width)
        (left, right), (low, high) = (width[:, :-1], width[:, 1:]), (mean[:, :-1], mean[:, 1:])
        inner = low * high * (left + right) / (left * low + right * high)
        first = mean[:, :1] ** 2 / inner[:, :1] if self.bins > 1 else mean
        last = mean[:, -1:] ** 2 / inner[:, -1:] if self.bins > 1 else mean
        self.edges.copy_(edges)
        self.mean.copy_(mean)
        self.slope.copy_(torch.cat([first, inner, last], 1))

    def _load_from_state_dict(self, *args: object) -> None:  # the slopes follow from the edges
        super()._load_from_state_dict(*args)
        self._use(self.edges.clone())

    def _at(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        start = self.edges.gather(1, index)
        width = self.edges.gather(1, index + 1) - start
        left, right = self.slope.gather(1, index), self.slope.gather(1, index + 1)
        return start, width, left, right, self.mean.gather(1, index)

    def to_grid(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """y -> g and log |dg/dy| (n,)."""
        rows = y.T.contiguous()
        index = (torch.searchsorted(self.edges, rows, right=True) - 1).clamp(0, self.bins - 1)
        start, width, left, right, mean = self._at(index)
        t = ((rows - start) / width).clamp(0, 1)
        bend = mean + (left + right - 2 * mean) * t * (1 - t)
        g = (index + t * (mean * t + left * (1 - t)) / bend) / self.bins
        return g.T, self._log_slope(t, left, right, mean).sum(0)

    def to_cube(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """g -> y and log |dg/dy| (n,): the density of y where g is uniform."""
        scaled = g.T * self.bins
        index = scaled.long().clamp(0, self.bins - 1)
        start, width, left, right, mean = self._at(index)
        p = (scaled - index).clamp(0, 1)
        q = 1 - p
        skew = (
            left * q - right * p
        )  # the root of the quadratic without cancellation, as in transforms/splines.py
        near = 2 * mean * torch.where(skew >= 0, p, q)
        t = near / (near + skew.abs() + torch.sqrt(skew * skew + 4 * mean * mean * p * q))
        t = torch.where(skew >= 0, t, 1 - t)
        return (start + t * width).T.clamp(0, 1), self._log_slope(t, left, right, mean).sum(0)

    @staticmethod
    def _log_slope(t: Tensor, left: Tensor, right: Tensor, mean: Tensor) -> Tensor:
        s = 1 - t
        rise = right * t * t + 2 * mean * t * s + left * s * s
        return 2 * mean.log() + rise.log() - 2 * (mean + (left + right - 2 * mean) * t * s).log()

    def refine(self, g: Tensor, log_contribution: Tensor) -> None:
        """Move the edges so that bins carry more equal contributions.

        Args:
            g: (n, D), uniform on the grid's side.
            log_contribution: (n,), log of the squared weights; −inf for none. Nothing moves if all are −inf.
        """
        top = log_contribution.max() if len(g) else log_contribution.new_tensor(-torch.inf)
        if not bool(top.isfinite()):
            return
        size = (log_contribution - top).exp()
        edges = [self._moved(axis, g[:, axis], size) for axis in range(self.dim)]
        self.set_edges(torch.stack(edges))

    def _moved(self, axis: int, g: Tensor, size: Tensor) -> Tensor:
        index = (g * self.bins).long().clamp(0, self.bins - 1)
        total = size.new_zeros(self.bins).index_add_(0, index, size)
        count = size.new_zeros(self.bins).index_add_(0, index, torch.ones_like(size))
        for _ in range(
            min(-(-_POINTS * self.bins // len(g)), self.bins)
        ):  # once, or more often if points are few
            total, count = _smooth(total), _smooth(count)
        share = torch.where(count > 0, total / count.clamp(min=1e-9), total.sum() / count.sum())
        share = (share / share.sum()).clamp(min=_FLOOR, max=1 - _FLOOR)
        damped = ((share - 1) / share.log()) ** _DAMPING
        return self._equalised(axis, damped)

    def _equalised(self, axis: int, share: Tensor) -> Tensor:
        """Edges that give every new bin the same sum of `share` (M,)."""
        total = torch.cat([share.new_zeros(1), share.cumsum(0)])
        total = total / total[-1]
        wanted = torch.linspace(0, 1, self.bins + 1, dtype=share.dtype, device=share.device)
        index = (torch.searchsorted(total, wanted, right=True) - 1).clamp(0, self.bins - 1)
        part = (wanted - total[index]) / (total[index + 1] - total[index])
        old = self.edges[axis]
        return old[index] + part * (old[index + 1] - old[index])

    @property
    def peakedness(self) -> float:
        """The largest marginal density, over the highest of a Gaussian whose central 68 % are as wide."""
        low, high = round(0.16 * self.bins), round(0.84 * self.bins)
        half = (self.edges[:, high] - self.edges[:, low]) / 2
        return float((self.mean.amax(1) * half).max()) * math.sqrt(2 * math.pi)

    def fit(self, y: Tensor) -> None:
        """Edges at the quantiles of points y (m, D), mixed with a tenth of the uniform density."""
        levels = torch.linspace(0, 1, self.bins + 1, dtype=torch.float64, device=y.device)
        places = torch.quantile(y, levels, dim=0).T.contiguous()
        places = torch.cat(
            [torch.zeros_like(places[:, :1]), places[:, 1:-1], torch.ones_like(places[:, :1])], 1
        )
        fine = torch.cat([places, levels.expand_as(places)], 1).sort(1).values
        below = torch.searchsorted(places, fine, right=True) - 1
        below = below.clamp(0, self.bins - 1)
        start, stop = places.gather(1, below), places.gather(1, below + 1)
        within = ((fine - start) / (stop - start).clamp(min=_MIN_WIDTH)).clamp(0, 1)
        mass = 0.9 * (below + within) / self.bins + 0.1 * fine
        index = (torch.searchsorted(mass, levels.expand_as(places).contiguous()) - 1).clamp(
            0, mass.shape[1] - 2
        )
        low, high = mass.gather(1, index), mass.gather(1, index + 1)
        part = ((levels - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
        self.set_edges(fine.gather(1, index) * (1 - part) + fine.gather(1, index + 1) * part)


def _smooth(values: Tensor) -> Tensor:
    """Each bin with an eighth of both its neighbours, as VEGAS does."""
    ends = torch.cat([values[:1], values, values[-1:]])
    return (ends[:-2] + 6 * ends[1:-1] + ends[2:]) / 8
