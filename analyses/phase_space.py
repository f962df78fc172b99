"""Maps between the unit cube and the phase space of n massless particles.

Phase space dΦ_n = Π d³p_i / ((2π)³ 2E_i) · (2π)⁴ δ⁴(P - Σ p_i) is a chain of two-body decays Q_1 → p_1 + Q_2,
Q_2 → p_2 + Q_3, …, with s_k = Q_k² (Byckling & Kajantie, Nucl. Phys. B 9 (1969) 568):

    dΦ_n = Π_{k=1}^{n-2} ds_{k+1} / 2π · Π_{k=1}^{n-1} (1 - s_{k+1} / s_k) / 8π · dΩ_k / 4π,    s_n = 0,

dΩ_k the direction of p_k in the rest frame of Q_k. Each map takes 3n - 4 numbers: the n - 2 masses, then cos θ and φ of
every decay. Masses that follow dΦ_n and isotropic directions are RAMBO on diet (Plätzer, arXiv 1308.2922): its weight is
constant. Masses ∝ 1 / (s + s_0) and directions uniform in rapidity about the beam follow the poles of QCD instead: the
multi-peripheral chain, whose poles are in s_k and in t_k = (p_a - p_1 - … - p_k)².

Momenta are rows (E, p_x, p_y, p_z) in GeV; the beams a and b run along +z and -z in the centre-of-mass frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor

from sbiflow.checks import check_count, check_positive, check_shape

_EDGE = 1e-15  # this much of every side of the cube is left out: momenta there are zero or parallel


def volume(n: int, sqrt_s: float) -> float:
    """Φ_n of n >= 2 massless particles [GeV^(2n-4)]: (2π)^(4-3n) (π/2)^(n-1) s^(n-2) / ((n-1)! (n-2)!).

    Source: Kleiss, Stirling & Ellis, Comput. Phys. Commun. 40 (1986) 359, whose volume has no powers of 2π.
    """
    bare = (math.pi / 2) ** (n - 1) * sqrt_s ** (2 * n - 4) / math.factorial(n - 1) / math.factorial(n - 2)
    return bare / (2 * math.pi) ** (3 * n - 4)


@dataclass(frozen=True)
class FlatMass:
    """The mass of m particles as dΦ has it: v = s' / s with density m (m - 1) v^(m-2) (1 - v)."""

    def forward(self, s: Tensor, m: int, r: Tensor) -> tuple[Tensor, Tensor]:
        """s' and (1 - v) ds'/dr [GeV²] at the cumulative probability r = v^(m-1) (m - (m - 1) v)."""
        if m == 2:
            v = r / (1 + torch.sqrt(1 - r))
        elif m == 3:  # a cubic, in the form that keeps its precision at small r
            angle = 2 / 3 * torch.asin(torch.sqrt(r))
            v = torch.sin(angle / 2) ** 2 + math.sqrt(0.75) * torch.sin(angle)
        else:
            v = torch.from_numpy(betaincinv(m - 1, 2, r.cpu().numpy())).to(r)
        return s * v, s / (m * (m - 1) * v ** (m - 2))

    def inverse(self, s: Tensor, following: Tensor, m: int) -> Tensor:
        """r of s'."""
        v = following / s
        return v ** (m - 1) * (m - (m - 1) * v)


@dataclass(frozen=True)
class PoleMass:
    """The mass of the rest with density ∝ 1 / (s' + scale) on (0, s); scale in GeV²."""

    scale: float

    def __post_init__(self) -> None:
        check_positive(self.scale, "scale")

    def forward(self, s: Tensor, m: int, r: Tensor) -> tuple[Tensor, Tensor]:
        """s' and (1 - s'/s) ds'/dr [GeV²]."""
        growth = torch.log1p(s / self.scale)
        following = torch.minimum(self.scale * torch.expm1(r * growth), s)
        return following, (1 - following / s) * (following + self.scale) * growth

    def inverse(self, s: Tensor, following: Tensor, m: int) -> Tensor:
        """r of s'."""
        return torch.log1p(following / self.scale) / torch.log1p(s / self.scale)


@dataclass(frozen=True)
class Isotropic:
    """cos θ uniform about z."""

    about_beam = False

    def forward(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """cos θ and d(cos θ)/dr / 2."""
        return 2 * r - 1, torch.ones_like(r)

    def inverse(self, cosine: Tensor) -> Tensor:
        """r of cos θ."""
        return (cosine + 1) / 2


@dataclass(frozen=True)
class UniformRapidity:
    """cos θ = tanh(y) / tanh(Y), y uniform in (-Y, Y), about the axis opposite to beam b in the decaying frame."""

    limit: float
    about_beam = True

    def __post_init__(self) -> None:
        check_positive(self.limit, "limit")

    def forward(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """cos θ and d(cos θ)/dr / 2."""
        t = torch.tanh((2 * r - 1) * self.limit)
        edge = math.tanh(self.limit)
        return t / edge, self.limit * (1 - t**2) / edge

    def inverse(self, cosine: Tensor) -> Tensor:
        """r of cos θ."""
        return (torch.atanh(cosine * math.tanh(self.limit)) / self.limit + 1) / 2


@dataclass(frozen=True)
class Chain:
    """A chain of decays as a map between the unit cube and phase space; RAMBO on diet unless told otherwise.

    Args:
        sqrt_s: centre-of-mass energy [GeV].
        n: number of massless particles, >= 2.
        mass: law of the masses of what follows.
        angle: law of the polar angles.
    """

    sqrt_s: float
    n: int = 4
    mass: FlatMass | PoleMass = FlatMass()
    angle: Isotropic | UniformRapidity = Isotropic()

    def __post_init__(self) -> None:
        check_count(self.n, "n", 2)
        check_positive(self.sqrt_s, "sqrt_s")

    @property
    def dim(self) -> int:
        """Of the cube: 3n - 4."""
        return 3 * self.n - 4

    @property
    def azimuths(self) -> tuple[int, ...]:
        """The columns that are azimuths in turns, hence periodic."""
        return tuple(range(self.n - 1, self.dim, 2))

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Momenta (rows, n, 4) [GeV] and dΦ_n/du (rows,) [GeV^(2n-4)] of u (rows, 3n - 4) in [0, 1]; float64."""
        check_shape(u, "u", ("rows", self.dim))
        r = u.double().clamp(_EDGE, 1 - _EDGE).T.contiguous()
        s = torch.full_like(r[0], self.sqrt_s**2)
        q = torch.stack([torch.sqrt(s), *[torch.zeros_like(s)] * 3])
        weight, momenta = torch.ones_like(s), []
        for k in range(self.n - 1):
            following, factor = self._mass(s, k, r)
            cosine, stretch = self.angle.forward(r[self.n - 2 + 2 * k])
            direction = about(self._axes(q, s), cosine, 2 * math.pi * r[self.n - 1 + 2 * k])
            momentum, q = decay(q, s, following, direction)
            momenta.append(momentum)
            s = following
            weight = weight * factor * stretch / (8 * math.pi)
        return torch.stack([*momenta, q]).permute(2, 0, 1), weight

    def inverse(self, momenta: Tensor) -> Tensor:
        """u (rows, 3n - 4) of momenta (rows, n, 4) in their centre-of-mass frame; azimuths in [0, 1)."""
        check_shape(momenta, "momenta", ("rows", self.n, 4))
        p = momenta.double().permute(1, 2, 0)
        rest = p.flip(0).cumsum(0).flip(0)  # Q_k = p_k + … + p_n
        s = [torch.zeros_like(p[0, 0])]
        for k in reversed(range(self.n - 1)):  # from products: the difference of squares has no precision
            s.insert(0, s[0] + 2 * dot(p[k], rest[k + 1]))
        masses = [self.mass.inverse(s[k], s[k + 1], self.n - 1 - k) for k in range(self.n - 2)]
        turns: list[Tensor] = []
        for k in range(self.n - 1):
            vector = boost_back(p[k], rest[k], s[k])[1:]
            x, y, z = ((vector * axis).sum(0) for axis in self._axes(rest[k], s[k]))
            turns.append(self.angle.inverse(z / torch.sqrt(x**2 + y**2 + z**2)))
            turns.append(torch.remainder(torch.atan2(y, x) / (2 * math.pi), 1.0))
        return torch.stack([*masses, *turns], -1)

    def cube_of(self, other: Chain, u: Tensor) -> tuple[Tensor, Tensor]:
        """The same momenta in the cube of another chain, and log |du'/du|: (rows, 3n - 4) -> the same, (rows,)."""
        momenta, weight = self.forward(u)
        there = other.inverse(momenta).clamp(0.0, 1.0)
        return there, torch.log(weight / other.forward(there)[1])

    def _mass(self, s: Tensor, k: int, r: Tensor) -> tuple[Tensor, Tensor]:
        """s_{k+2} and its factor of dΦ; the last decay is into two massless particles."""
        if k == self.n - 2:
            return torch.zeros_like(s), torch.ones_like(s)
        following, factor = self.mass.forward(s, self.n - 1 - k, r[k])
        return following, factor / (2 * math.pi)

    def _axes(self, q: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three orthogonal unit vectors, each (3, rows) or (3, 1), in the rest frame of q; the third is the pole."""
        if not self.angle.about_beam:
            x, y, z = torch.eye(3, dtype=q.dtype, device=q.device)[:, :, None]
            return x, y, z
        return beam_axes(q, s)


def beam_axes(q: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three orthogonal unit vectors (3, rows) in the rest frame of q; the third is opposite to beam b there."""
    beam = torch.zeros_like(q)
    beam[0], beam[3] = 1.0, -1.0
    pole = -boost_back(beam, q, s)[1:]
    return _basis(pole / torch.sqrt((pole**2).sum(0)))


def _basis(pole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two unit vectors orthogonal to `pole` (3, rows), and itself (Duff et al., JCGT 6 (2017) 1)."""
    x, y, z = pole
    sign = torch.copysign(torch.ones_like(z), z)
    a = -1 / (sign + z)
    b = x * y * a
    first = torch.stack([1 + sign * x**2 * a, sign * b, -sign * x])
    return first, torch.stack([b, sign + y**2 * a, -y]), pole


def about(axes: tuple[Tensor, Tensor, Tensor], cosine: Tensor, azimuth: Tensor) -> Tensor:
    """The unit vector (3, rows) at cos θ from the third axis and φ [rad] from the first."""
    sine = torch.sqrt(((1 - cosine) * (1 + cosine)).clamp(min=0.0))
    return sine * (torch.cos(azimuth) * axes[0] + torch.sin(azimuth) * axes[1]) + cosine * axes[2]


def decay(q: Tensor, s: Tensor, following: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """q (4, rows) with q² = s into a massless particle along `direction` (3, rows) of its rest frame, and the rest."""
    root = 2 * torch.sqrt(s)
    energy, other = (s - following) / root, (s + following) / root
    return boost(energy, energy * direction, q, s), boost(other, -energy * direction, q, s)


def dot(p: Tensor, q: Tensor) -> Tensor:
    """Minkowski product of (4, rows)."""
    return p[0] * q[0] - (p[1:] * q[1:]).sum(0)


def boost(energy: Tensor, vector: Tensor, q: Tensor, s: Tensor) -> Tensor:
    """A four-vector from the rest frame of q (q² = s) to where its momentum is q; (rows,), (3, rows), (4, rows) -> (4, rows)."""
    root = torch.sqrt(s)
    boosted = (q[0] * energy + (q[1:] * vector).sum(0)) / root
    return torch.cat([boosted[None], vector + q[1:] * ((energy + boosted) / (q[0] + root))])


def boost_back(p: Tensor, q: Tensor, s: Tensor) -> Tensor:
    """p (4, rows) in the rest frame of q."""
    return boost(p[0], p[1:], torch.cat([q[:1], -q[1:]]), s)
