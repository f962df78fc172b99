"""One channel of the proposal: from the unit cube of the domain to the flow's base and back.

    y (cube) -- user's map --> c (cube) -- grid --> g (cube) -- stretch --> z -- whitening --> v -- flow --> base

The stretch is z = 2 asinh(probit(g) / 2). With the probit alone an integrand that does not vanish at a face of the cube
has the tail of a standard normal there, and a flow of any narrower scale would have a lighter one: weights without
bound, from mass close to the faces that no draw finds. The asinh makes the integrand's tail lighter than every normal.

Axes that are periodic skip stretch and whitening: there z is a phase in [-π, π) and the flow uses circular splines.
The flow runs in float32, everything around it in float64; each density belongs to the rounded point that is
evaluated, so rounding costs no accuracy, only evenness of the net.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sbiflow.families import FlowConfig, build_transform
from sbiflow.integrate.grid import Grid
from sbiflow.transforms.bounded import wrap

Map = Callable[[Tensor], tuple[Tensor, Tensor]]

_LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)
_LOG_2PI = math.log(2 * math.pi)
_INSIDE = 1e-15  # distance from the faces of the cube at which the probit is cut
_BEND = 2.0  # where the stretch leaves the probit, in its standard deviations
_RIDGE = 1e-6  # added to the covariance of z, in units of the base
_PEAKED = 10.0  # marginal density over that of a Gaussian as wide
_ROWS = 16_384


@dataclass(frozen=True)
class Channel:
    """A map of the user's that makes the integrand flat where it peaks, one of several (Kleiss & Pittau 1994).

    Args:
        forward: u (n, D) in the unit cube -> x (n, D) in the bounds and log |dx/du| (n,).
        inverse: x (n, D) -> u and log |du/dx|.
        name: shown with its share.
    """

    forward: Map
    inverse: Map
    name: str = ""


class Base:
    """Normal per real column, uniform per phase; a share of the draws has wider normals.

    Args:
        periodic: (D,).
        share, scale: of the wide part.
    """

    def __init__(self, periodic: tuple[bool, ...], share: float, scale: float) -> None:
        self.real = [i for i, wraps in enumerate(periodic) if not wraps]
        self.dim, self.scale = len(periodic), scale
        self.share = share if self.real else 0.0

    def log_prob(self, u: Tensor) -> Tensor:
        """(n, D) -> (n,)."""
        count = len(self.real)
        square = (u * u).sum(-1) if count == self.dim else (u[:, self.real] ** 2).sum(-1)
        constant = -count * _LOG_ROOT_2PI - (self.dim - count) * _LOG_2PI
        narrow = constant - 0.5 * square
        if not self.share:
            return narrow
        wide = constant - 0.5 * square / self.scale**2 - count * math.log(self.scale)
        return torch.logaddexp(narrow + math.log1p(-self.share), wide + math.log(self.share))

    def place(self, latent: Tensor, select: Tensor) -> Tensor:
        """Points of the unit cube (n, D) and a uniform number each, which chooses the width -> u (n, D)."""
        u = 2 * math.pi * (latent - 0.5)
        normal = torch.special.ndtri(latent[:, self.real])
        u[:, self.real] = torch.where((select < self.share)[:, None], self.scale * normal, normal)
        return u


class Chart(nn.Module):
    """A channel with its own grid and flow; densities are of y, in the cube of the domain.

    Args:
        periodic: (D,) axes whose ends meet.
        to_cube, from_cube: the user's map, c -> y and y -> c with their log-Jacobians; None for the identity.
    """

    mean: Tensor
    factor: Tensor

    def __init__(
        self,
        periodic: tuple[bool, ...],
        bins: int,
        flow: FlowConfig,
        base: Base,
        to_cube: Map | None = None,
        from_cube: Map | None = None,
    ) -> None:
        super().__init__()
        self.base, self.to_cube, self.from_cube = base, to_cube, from_cube
        self.real = base.real
        self.grid = Grid(len(periodic), bins)  # the proposal while no flow is learned
        self.first = Grid(len(periodic), bins)  # the flow's first layer
        self.flow = build_transform(flow, periodic, 0)
        self.learned = False  # until then the grid alone is the proposal
        self.register_buffer("mean", torch.zeros(len(self.real), dtype=torch.float64))
        self.register_buffer("factor", torch.eye(len(self.real), dtype=torch.float64))

    # -- between the cube and z -------------------------------------------------------------------------------------

    def to_z(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """y (n, D) -> z (n, D) float64 and log |dz/dy| (n,)."""
        c, log_map = (y, y.new_zeros(len(y))) if self.from_cube is None else self.from_cube(y)
        g, log_slope = self.first.to_grid(c)
        z, log_probit = self._stretch(g)
        return z, log_map + log_slope + log_probit

    def _stretch(self, g: Tensor) -> tuple[Tensor, Tensor]:
        z = 2 * math.pi * (g - 0.5)
        normal = torch.special.ndtri(g[:, self.real].clamp(_INSIDE, 1 - _INSIDE))
        z[:, self.real] = _BEND * torch.asinh(normal / _BEND)
        log_slope = 0.5 * normal * normal + _LOG_ROOT_2PI - 0.5 * torch.log1p((normal / _BEND) ** 2)
        return z, log_slope.sum(1) + (z.shape[1] - len(self.real)) * _LOG_2PI

    def _from_z(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z -> y and log |dz/dy|, at the y that is returned; inf beyond the cut, where a weight has to be zero."""
        g = wrap(z) / (2 * math.pi) + 0.5
        inner = torch.special.ndtr(_BEND * torch.sinh(z[:, self.real] / _BEND))
        g[:, self.real] = inner.clamp(_INSIDE, 1 - _INSIDE)
        beyond = ((inner < _INSIDE) | (inner > 1 - _INSIDE)).any(1)
        log_probit = torch.where(beyond, math.inf, self._stretch(g)[1])
        c, log_slope = self.first.to_cube(g)
        return self._mapped(c, log_slope + log_probit)

    def _mapped(self, c: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        if self.to_cube is None:
            return c, log_density
        y, log_map = self.to_cube(c)
        return y, log_density - log_map

    def lay_grid(self) -> None:
        """Put the grid below the flow where whitening and splines cannot zoom as far.

        A grid is refined from few points; where it is not needed its steps are noise that the flow has to undo.
        """
        if self.grid.peakedness > _PEAKED:
            self.first.set_edges(self.grid.edges.clone())

    # -- whitening --------------------------------------------------------------------------------------------------

    def fit_whitening(self, z: Tensor, weight: Tensor) -> None:
        """Mean and covariance of weighted points z (n, D) become the centre and scale of the flow's input."""
        share = weight / weight.sum()
        part = z[:, self.real]
        mean = share @ part
        away = part - mean
        covariance = (away * share[:, None]).T @ away
        # few effective points: nearer to a diagonal; many: the narrowest ridge is followed
        noise = (len(self.real) * float((share * share).sum())) ** 2
        diagonal = covariance.diagonal()
        self.mean.copy_(mean)
        self.factor.copy_(torch.linalg.cholesky(covariance + (noise * diagonal + _RIDGE).diag()))

    def whiten(self, z: Tensor) -> Tensor:
        """z -> v, the flow's input, float32."""
        part = torch.linalg.solve_triangular(self.factor, (z[:, self.real] - self.mean).T, upper=False).T
        if len(self.real) == z.shape[1]:
            return part.float()
        return z.index_copy(1, torch.tensor(self.real, dtype=torch.long, device=z.device), part).float()

    def _unwhiten(self, v: Tensor) -> Tensor:
        z = v.clone()
        z[:, self.real] = v[:, self.real] @ self.factor.T + self.mean
        return z

    @property
    def log_scale(self) -> float:
        """log |dz/dv|."""
        return float(self.factor.diagonal().log().sum())

    # -- density and draws ------------------------------------------------------------------------------------------

    def flow_log_prob(self, v: Tensor) -> Tensor:
        """log-density of v (n, D), (n,) float32, with gradients; that of z is this less `log_scale`."""
        u, log_slope = self.flow(v)
        return log_slope + self.base.log_prob(u)

    @torch.no_grad()
    def log_prob(self, y: Tensor) -> Tensor:
        """log q(y), (n,) float64."""
        if not self.learned:
            c, log_map = (y, y.new_zeros(len(y))) if self.from_cube is None else self.from_cube(y)
            return log_map + self.grid.to_grid(c)[1]
        z, log_jacobian = self.to_z(y)
        parts = [self.flow_log_prob(rows).double() for rows in self.whiten(z).split(_ROWS)]
        return torch.cat(parts) - self.log_scale + log_jacobian

    @torch.no_grad()
    def draw(self, latent: Tensor, select: Tensor) -> tuple[Tensor, Tensor]:
        """Points of the unit cube (n, D) and a uniform number each -> y (n, D) and log q(y), float64."""
        if not self.learned:
            return self._mapped(*self.grid.to_cube(latent))
        u = self.base.place(latent, select).float()
        parts = [(*self.flow.inverse(rows), self.base.log_prob(rows)) for rows in u.split(_ROWS)]
        v, log_slope, log_base = (torch.cat(part).double() for part in zip(*parts, strict=True))
        y, log_jacobian = self._from_z(self._unwhiten(v))
        return y, log_base - log_slope - self.log_scale + log_jacobian
