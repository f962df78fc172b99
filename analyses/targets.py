"""Distributions with exact densities for density estimation: four in the plane, posteriors in 5 and 15 dimensions.

Every one draws by `sample(n, generator)` and knows `log_prob`, so a flow's distance from it, E[log p - log q] over
fresh draws, is an estimate of KL(p || q) that needs no other method.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

_NODES = 400  # of the quadrature along a moon; its error is far below float32


@dataclass(frozen=True)
class Target:
    """A distribution of the rows (n, D), or of the first D columns given the others.

    Attributes:
        given: number of columns, the last ones, that are conditioned on; 0 for none.
        entropy: [nats], where there is a closed form.
        half_width: of the square that holds it, for figures.
        posterior: x (given,), n, generator -> (n, D), draws for one condition, where that is known.
    """

    name: str
    dim: int
    sample: Callable[[int, Generator], Tensor]
    log_prob: Callable[[Tensor], Tensor]
    given: int = 0
    entropy: float | None = None
    half_width: float = 4.0
    posterior: Callable[[Tensor, int, Generator], Tensor] | None = None


def _normal(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _uniform(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def checkerboard() -> Target:
    """Uniform on the 8 black cells of side 2 of a board from -4 to 4: log p = -ln 32 on them."""

    def sample(n: int, generator: Generator) -> Tensor:
        column = torch.randint(4, (n,), generator=generator)
        row = 2 * torch.randint(2, (n,), generator=generator) + column % 2
        return 2 * (torch.stack([column, row], -1) + _uniform((n, 2), generator)) - 4

    def log_prob(x: Tensor) -> Tensor:
        cell = torch.floor((x + 4) / 2)
        inside = (x.abs() < 4).all(-1) & (cell.sum(-1) % 2 == 0)
        return torch.where(inside, -math.log(32) + x.new_zeros(()), -math.inf)

    return Target("checkerboard", 2, sample, log_prob, entropy=math.log(32))


def ring(modes: int = 8, radius: float = 2.0, sd: float = 0.1) -> Target:
    """Equal normals on a circle, so far apart (15 sd) that their entropy is ln(modes) + ln(2 pi e sd^2)."""
    angles = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
    centres = radius * torch.stack([angles.cos(), angles.sin()], -1)

    def sample(n: int, generator: Generator) -> Tensor:
        return centres[torch.randint(modes, (n,), generator=generator)] + sd * _normal((n, 2), generator)

    def log_prob(x: Tensor) -> Tensor:
        squares = (x[..., None, :] - centres).square().sum(-1) / sd**2
        return torch.logsumexp(-0.5 * squares, -1) - math.log(2 * math.pi * sd**2 * modes)

    entropy = math.log(modes) + math.log(2 * math.pi * math.e * sd**2)
    return Target("ring of Gaussians", 2, sample, log_prob, entropy=entropy, half_width=2.6)


def two_moons(sd: float = 0.1) -> Target:
    """Points of two half circles, blurred; the density is an integral along them, by quadrature."""
    nodes = math.pi * (torch.arange(_NODES, dtype=torch.float64) + 0.5) / _NODES

    def place(angle: Tensor, upper: Tensor) -> Tensor:
        x = torch.where(upper, angle.cos(), 1 - angle.cos())
        y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
        return torch.stack([x - 0.5, y - 0.25], -1)

    curves = torch.cat([place(nodes, torch.tensor(flag)) for flag in (True, False)])

    def sample(n: int, generator: Generator) -> Tensor:
        upper = torch.rand(n, generator=generator) < 0.5
        return place(math.pi * _uniform((n,), generator), upper) + sd * _normal((n, 2), generator)

    def log_prob(x: Tensor) -> Tensor:
        squares = torch.cdist(x, curves).square() / sd**2
        return torch.logsumexp(-0.5 * squares, -1) - math.log(2 * math.pi * sd**2 * len(curves))

    return Target("two moons", 2, sample, log_prob, half_width=2.0)


def pinwheel(arms: int = 5, twist: float = 1.2) -> Target:
    """Narrow normals of radial sd 0.3 and tangential sd 0.1, turned by an angle that grows with the radius.

    A rotation by an angle that depends on the radius alone keeps areas, so the density is the normals' own.
    """
    sd = torch.tensor([0.3, 0.1], dtype=torch.float64)
    starts = 2 * math.pi * torch.arange(arms, dtype=torch.float64) / arms

    def turn(v: Tensor, angle: Tensor) -> Tensor:
        c, s = angle.cos(), angle.sin()
        return torch.stack([c * v[..., 0] - s * v[..., 1], s * v[..., 0] + c * v[..., 1]], -1)

    def sample(n: int, generator: Generator) -> Tensor:
        v = _normal((n, 2), generator) * sd + torch.tensor([1.0, 0.0], dtype=torch.float64)
        arm = starts[torch.randint(arms, (n,), generator=generator)]
        return 2 * turn(v, arm + twist * v.norm(dim=-1))

    def log_prob(x: Tensor) -> Tensor:
        v = x / 2
        back = turn(v[..., None, :], -(starts + twist * v.norm(dim=-1, keepdim=True)))
        offset = (back - torch.tensor([1.0, 0.0], dtype=torch.float64)) / sd
        log_norm = math.log(2 * math.pi * float(sd.prod()) * arms * 4)
        return torch.logsumexp(-0.5 * offset.square().sum(-1), -1) - log_norm

    return Target("pinwheel", 2, sample, log_prob)


def bent_posterior(dim: int, noise: float = 0.5, bend: float = 0.7) -> Target:
    """p(theta | x) of x = A phi + noise, phi ~ N(0, 1), theta a bent phi: every x has a posterior of another shape.

    theta_1 = phi_1 and theta_i = phi_i + bend sin(2 theta_(i-1)), a map of unit Jacobian, so the posterior of theta
    is the normal posterior of phi, bent. Rows are (theta, x), D = dim and dim columns given.
    """
    matrix = _normal((dim, dim), torch.Generator().manual_seed(dim)) / math.sqrt(dim)
    covariance = torch.linalg.inv(torch.eye(dim, dtype=torch.float64) + matrix.T @ matrix / noise**2)
    gain, factor = covariance @ matrix.T / noise**2, torch.linalg.cholesky(covariance)
    entropy = 0.5 * dim * math.log(2 * math.pi * math.e) + float(factor.diagonal().log().sum())

    def bent(phi: Tensor) -> Tensor:
        columns = [phi[:, 0]]
        for i in range(1, dim):
            columns.append(phi[:, i] + bend * torch.sin(2 * columns[-1]))
        return torch.stack(columns, -1)

    def sample(n: int, generator: Generator) -> Tensor:
        phi = _normal((n, dim), generator)
        x = phi @ matrix.T + noise * _normal((n, dim), generator)
        return torch.cat([bent(phi), x], -1)

    def posterior(x: Tensor, n: int, generator: Generator) -> Tensor:
        return bent(gain @ x + _normal((n, dim), generator) @ factor.T)

    def log_prob(rows: Tensor) -> Tensor:
        theta, x = rows.split(dim, -1)
        before = torch.cat([theta.new_zeros(len(theta), 1), theta[:, :-1]], -1)
        offset = theta - bend * torch.sin(2 * before) - x @ gain.T
        white = torch.linalg.solve_triangular(factor, offset.T, upper=False)
        return -0.5 * (white.square().sum(0) + dim * math.log(2 * math.pi)) - factor.diagonal().log().sum()

    name = f"bent posterior, {dim}-D" if bend else f"linear Gaussian, {dim}-D"
    return Target(name, dim, sample, log_prob, given=dim, entropy=entropy, posterior=posterior)


PLANE: tuple[Target, ...] = (checkerboard(), ring(), two_moons(), pinwheel())
LINEAR = bent_posterior(3, bend=0.0)
POSTERIORS: tuple[Target, ...] = (bent_posterior(5), bent_posterior(15))
