"""The quadrature behind exact.py: masses, time and distance on panels, the phase in closed form.

With y = 1 / d_L, u the whitened waveform at 1 Mpc and

    z(m, t) = sum_f conj(u_f) d_f e^{2πi f t},    rho^2(m) = sum_f |u_f|^2,

the likelihood is

    ln L = -|d|^2 / 2 - F ln 2π + y |z| cos(2 phi - arg z) - y^2 rho^2 / 2,

and its mean over phi is I0(y |z|) times the rest. What is left is a sum over nodes in (m1, m2, t, y). The masses
are on square cells with mass_1 >= mass_2 (the mirror image counts double), in which all panels of both axes are
symmetric, so that a cell on the diagonal needs no special rule. Cells and panels more than `DROP` nats below the
best are left out; the others are halved until nothing changes (`refined`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from simulators.gravitational_waves.curve import Curve
from simulators.gravitational_waves.panels import NODES, ORDER, WEIGHTS, Panels
from simulators.gravitational_waves.phase import PhaseHistogram

Waveforms = Callable[[Tensor, Tensor], Tensor]
"""Masses (n,), (n,) -> whitened waveforms at 1 Mpc, phi_c = t_c = 0, complex (n, F)."""

DROP = 24.0
_WIDEST_MASS, _WIDEST_TIME, _WIDEST_SIGMA = 4.5, 1.5e-3, 3.0  # solar masses, s, standard errors of t_c and y
_SLACK = 10.0  # nats, for the volumes of the maxima and for a peak in the masses between nodes
_HALF_GAP = float(NODES.diff().max()) / 2  # of neighbouring nodes, in panels
_ROWS = 64  # of a block: temporaries of about a million values


@dataclass(frozen=True, eq=False)
class Event:
    """One observation: whitened data (F,) complex128, frequencies (F,), prior bounds, density of the distance."""

    data: Tensor
    frequencies: Tensor
    waveforms: Waveforms
    masses: tuple[float, float]
    times: tuple[float, float]
    distances: tuple[float, float]
    distance_density: Callable[[Tensor], Tensor]

    def overlaps(self, mass_1: Tensor, mass_2: Tensor) -> tuple[Tensor, Tensor]:
        """conj(u) d, (n, F), and rho^2, (n,), with the shape of the waveforms checked."""
        u = self.waveforms(mass_1, mass_2)
        if tuple(u.shape) != (len(mass_1), len(self.data)) or not u.is_complex():
            raise ValueError(
                f"waveforms: expected complex of shape {(len(mass_1), len(self.data))}, "
                f"got {u.dtype} {tuple(u.shape)}"
            )
        u = u.to(torch.complex128)
        return u.conj() * self.data, torch.view_as_real(u).square().sum((1, 2))

    def time_error(self, mass_1: Tensor, mass_2: Tensor, log_ratio: float) -> float:
        """Standard error [s] of t_c for one pair of masses (1,), (1,) and a log-likelihood ratio of SNR^2 / 2.

        Without a signal, what noise at an SNR of 3 would give: the structure of |z(t)| itself.
        """
        power = self.waveforms(mass_1, mass_2)[0].abs().square()
        mean = (power * self.frequencies).sum() / power.sum()
        spread = ((power * (self.frequencies - mean).square()).sum() / power.sum()).sqrt()
        return float(1 / (2 * math.pi * spread * math.sqrt(2 * max(log_ratio, 4.5))))  # inf for a single bin

    def shifts(self, times: Tensor) -> Tensor:
        """e^{2πi f t}: (...,) -> (..., F)."""
        angle = 2 * torch.pi * times[..., None] * self.frequencies
        return torch.polar(torch.ones_like(angle), angle)

    def log_prior(self, inverse: Panels) -> Tensor:
        """Log-density of y = 1 / d_L at the nodes of the panels, up to a constant."""
        return self.distance_density(1 / inverse.nodes).log() - 2 * inverse.nodes.log()

    def log_prior_norm(self) -> float:
        """Log of the integral of the distance's density, which may come unnormalised."""
        low, high = self.distances
        everything = Panels.spanning(1 / high, 1 / low, (1 / low - 1 / high) / 16)
        return float((self.log_prior(everything).exp() * everything.weights).sum().log())


@dataclass(frozen=True, eq=False)
class Grid:
    """Cells (C, 2): places of their panels on the two mass axes, the first not below the second."""

    cells: Tensor
    masses: Panels
    times: Panels
    inverse: Panels  # of 1 / d_L

    @property
    def multiplicity(self) -> Tensor:
        """2 for a cell with a mirror image, 1 on the diagonal: (C,)."""
        return 1.0 + (self.cells[:, 0] != self.cells[:, 1]).double()

    def mass_nodes(self) -> tuple[Tensor, Tensor]:
        """mass_1 and mass_2 at the nodes, cell by cell: (C ORDER^2,) each."""
        x, y = (self.masses.left[self.cells[:, i], None] + self.masses.width * NODES for i in (0, 1))
        shape = (len(x), ORDER, ORDER)
        return x[:, :, None].expand(shape).flatten(), y[:, None, :].expand(shape).flatten()

    def refined(self, level: Level) -> Grid:
        """What matters, with the masses' panels halved; those of time and distance fit from the start."""
        best = level.log_mass.amax((1, 2))
        cells = 2 * self.cells[best > best.max() - DROP]
        children = torch.cat([cells + torch.tensor([i, j]) for i in (0, 1) for j in (0, 1)])
        return Grid(
            children[children[:, 0] >= children[:, 1]],
            self.masses.split(2),
            self.times.kept(level.log_time, DROP + _SLACK),
            self.inverse.kept(level.log_inverse, DROP + _SLACK),
        )


@dataclass(frozen=True, eq=False)
class Level:
    """Integrals over a grid: log-densities at the nodes, unnormalised.

    log_mass (C, ORDER, ORDER); log_time, log_inverse (P, ORDER); phase: curve on [0, 2π]; log_evidence without
    the constants of noise, ln L(no signal).
    """

    log_mass: Tensor
    log_time: Tensor
    log_inverse: Tensor
    phase: Curve
    log_evidence: float


def first_grid(event: Event) -> Grid:
    """Panels over the prior, less what is hopeless by the likelihood maximised over phase and distance.

    Given the masses, the errors of t_c and 1 / d_L are 1 / (2π sigma_f SNR) and 1 / rho (Cramér and Rao; sigma_f is
    the spread of the signal's frequencies), so that the width of their panels is known beforehand.
    """
    masses = Panels.spanning(*event.masses, _WIDEST_MASS)
    times = Panels.spanning(*event.times, _WIDEST_TIME)
    cells = torch.tril_indices(len(masses.left), len(masses.left)).T
    low, high = 1 / event.distances[1], 1 / event.distances[0]
    whole = Grid(cells, masses, times, Panels.spanning(low, high, high - low))
    found, rho2 = _profiles(event, whole)
    best = int(found.amax(1).argmax())
    mass_1, mass_2 = (nodes[best : best + 1] for nodes in whole.mass_nodes())
    sigma = event.time_error(mass_1, mass_2, float(found.max()))
    slack = _SLACK + (_HALF_GAP * times.width / sigma) ** 2 / 2  # the peak may fall between two nodes
    possible = times.kept(found.amax(0).view(-1, ORDER), DROP + slack)
    in_cells = found.amax(1).view(len(cells), -1).amax(1)
    kept = in_cells > in_cells.max() - DROP - slack
    sigma_inverse = float(rho2.view(len(cells), -1)[kept].amax()) ** -0.5
    return Grid(
        cells[kept],
        masses,
        Panels.spanning(*event.times, _WIDEST_SIGMA * sigma).meeting(possible),
        Panels.spanning(low, high, _WIDEST_SIGMA * sigma_inverse, fewest=2),
    )


def _profiles(event: Event, grid: Grid) -> tuple[Tensor, Tensor]:
    """Log-likelihood ratio maximised over phase and distance at all masses and times, (n, T), and rho^2, (n,)."""
    shifts = event.shifts(grid.times.nodes.flatten()).T
    low, high = 1 / event.distances[1], 1 / event.distances[0]
    found, power = [], []
    for mass_1, mass_2 in _blocks(grid):
        overlap, rho2 = event.overlaps(mass_1, mass_2)
        found.append(profile((overlap @ shifts).abs(), rho2, low, high))
        power.append(rho2)
    return torch.cat(found), torch.cat(power)


def profile(size: Tensor, rho2: Tensor, low: float, high: float) -> Tensor:
    """max over y in [low, high] of y |z| - y^2 rho^2 / 2: (n, T), (n,) -> (n, T)."""
    y = (size / rho2[:, None]).clamp(low, high)
    return y * (size - y * rho2[:, None] / 2)


def _blocks(grid: Grid) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(*(nodes.split(_ROWS) for nodes in grid.mass_nodes()), strict=True)


def integrate(event: Event, grid: Grid) -> Level:
    """All integrals over a grid."""
    times, inverse = grid.times.nodes.flatten(), grid.inverse.nodes.flatten()
    shifts = event.shifts(times).T
    prior = event.log_prior(grid.inverse).flatten() - event.log_prior_norm()
    measure = _measure(event, grid)
    log_mass, sums = [], _Sums(torch.zeros_like(times), torch.zeros_like(inverse), PhaseHistogram.empty())
    for (mass_1, mass_2), mass_weight in zip(_blocks(grid), measure.split(_ROWS), strict=True):
        overlap, rho2 = event.overlaps(mass_1, mass_2)
        z = overlap @ shifts
        best = profile(z.abs(), rho2, float(inverse[0]), float(inverse[-1]))
        peak = best.amax(1)
        row, column = (best > peak[:, None] - DROP).nonzero(as_tuple=True)
        kappa = z.abs()[row, column, None] * inverse
        exponent = kappa - rho2[row, None] / 2 * inverse.square() + (prior - peak[row, None])
        weight = exponent.exp_() * torch.special.i0e(kappa)
        weight *= grid.inverse.weights.flatten() * grid.times.weights.flatten()[column, None]
        log_mass.append(torch.zeros_like(peak).index_add(0, row, weight.sum(1)).log() + peak)
        sums.rescale(float(peak.max()))
        weight *= (mass_weight * (peak - sums.scale).exp())[row, None]
        sums.add(column, weight, z[row, column].angle(), kappa)
    return sums.level(torch.cat(log_mass), grid)


def _measure(event: Event, grid: Grid) -> Tensor:
    """Prior probability of every mass node times that of 1 s: (C ORDER^2,)."""
    area = (grid.masses.width / (event.masses[1] - event.masses[0])) ** 2
    square = area * WEIGHTS[:, None] * WEIGHTS / (event.times[1] - event.times[0])
    return (grid.multiplicity[:, None] * square.flatten()).flatten()


@dataclass(eq=False)
class _Sums:
    """Marginals summed block by block, all times e^-scale."""

    time: Tensor
    inverse: Tensor
    phase: PhaseHistogram
    scale: float = -math.inf

    def rescale(self, scale: float) -> None:
        """To a scale not below the given one: no block overflows."""
        new = max(scale, self.scale)
        factor = math.exp(self.scale - new)
        for total in (self.time, self.inverse, self.phase.counts):
            total *= factor
        self.scale = new

    def add(self, column: Tensor, weight: Tensor, angle: Tensor, kappa: Tensor) -> None:
        """Pairs of a mass and a time: column (N,), angle of z (N,), weight and kappa (N, number of distances)."""
        self.time.index_add_(0, column, weight.sum(1))
        self.inverse += weight.sum(0)
        self.phase.add(weight, angle, kappa)

    def level(self, log_mass: Tensor, grid: Grid) -> Level:
        """The sums as densities at the nodes."""
        return Level(
            log_mass.view(-1, ORDER, ORDER),
            (self.time.view(-1, ORDER) / grid.times.weights).log(),
            (self.inverse.view(-1, ORDER) / grid.inverse.weights).log(),
            self.phase.curve(),
            float(self.inverse.sum().log()) + self.scale,
        )
