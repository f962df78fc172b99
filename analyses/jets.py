"""Jets at a collider: p_T, η, ΔR of massless momenta, the cuts on them, and phase space in these coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from analyses.phase_space import Isotropic, UniformRapidity, about, beam_axes, decay, dot
from sbiflow.checks import check_count, check_positive, check_shape


def transverse_momenta(momenta: Tensor) -> Tensor:
    """p_T (rows, n) [GeV] of momenta (rows, n, 4)."""
    return torch.hypot(momenta[..., 1], momenta[..., 2])


def pseudorapidities(momenta: Tensor) -> Tensor:
    """η (rows, n); ±inf along the beam."""
    return torch.asinh(momenta[..., 3] / transverse_momenta(momenta))


def separations(momenta: Tensor) -> Tensor:
    """ΔR = √(Δη² + Δφ²), (rows, n (n - 1) / 2), of the pairs of momenta (rows, n, 4)."""
    i, j = torch.triu_indices(momenta.shape[1], momenta.shape[1], 1)
    eta, phi = pseudorapidities(momenta), torch.atan2(momenta[..., 2], momenta[..., 1])
    turn = torch.remainder(phi[:, i] - phi[:, j] + math.pi, 2 * math.pi) - math.pi
    return torch.hypot(eta[:, i] - eta[:, j], turn)


@dataclass(frozen=True)
class Cuts:
    """Every particle a jet: p_T > `pt` [GeV], |η| < `eta`, and ΔR > `dr` of every pair."""

    pt: float = 60.0
    eta: float = 2.5
    dr: float = 0.4

    def passed(self, momenta: Tensor) -> Tensor:
        """(rows,) bool of momenta (rows, n, 4); False where they are NaN."""
        central = transverse_momenta(momenta).amin(-1) > self.pt
        central &= pseudorapidities(momenta).abs().amax(-1) < self.eta
        return central & (separations(momenta).amin(-1) > self.dr)


@dataclass(frozen=True)
class JetCoordinates:
    """The n - 2 softest jets by p_T, η and φ; the two hardest by the decay of what is left.

    d³p / ((2π)³ 2E) = p_T dp_T dη dφ / (2 (2π)³), and the last two have dΦ_2 = dΩ / 32π². p_T is drawn ∝ p_T^-3 between the
    cut and √s / 2, η flat inside the cut, the last direction by `angle`. Valid for integrands that are symmetric in the n
    particles: of their orders only those are covered in which no other jet is harder than the last two, with
    n (n - 1) / 2 as weight. Outside the cuts on p_T and η of the soft jets nothing is covered.

    Args:
        sqrt_s: centre-of-mass energy [GeV].
        n: number of jets, >= 3.
        cuts: of which p_T and η limit the coordinates.
        angle: law of the last decay.
    """

    sqrt_s: float
    n: int = 4
    cuts: Cuts = field(default_factory=Cuts)
    angle: Isotropic | UniformRapidity = field(default_factory=lambda: UniformRapidity(1.75))

    def __post_init__(self) -> None:
        check_count(self.n, "n", 3)
        check_positive(self.sqrt_s, "sqrt_s")

    @property
    def dim(self) -> int:
        """Of the cube: 3n - 4."""
        return 3 * self.n - 4

    @property
    def azimuths(self) -> tuple[int, ...]:
        """The columns that are azimuths in turns, hence periodic."""
        return (*range(2, self.dim - 2, 3), self.dim - 1)

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Momenta (rows, n, 4) [GeV] and dΦ_n/du (rows,) of u (rows, 3n - 4) in [0, 1]; float64.

        Weights are zero, and momenta NaN, where the soft jets leave too little energy, or are not the softest.
        """
        check_shape(u, "u", ("rows", self.dim))
        r = u.double().T.contiguous()
        soft, weight = zip(*(self._jet(*r[k : k + 3]) for k in range(0, self.dim - 2, 3)), strict=True)
        rest = -sum(soft)
        rest[0] += self.sqrt_s
        s = dot(rest, rest)
        cosine, stretch = self.angle.forward(r[-2])
        pair = decay(rest, s, torch.zeros_like(s), about(beam_axes(rest, s), cosine, 2 * math.pi * r[-1]))
        momenta = torch.stack([*soft, *pair]).permute(2, 0, 1)
        pt = transverse_momenta(momenta)
        valid = (s > 0) & (rest[0] > 0) & (pt[:, :-2].amax(-1) < pt[:, -2:].amin(-1))
        total = math.prod(weight) * stretch * (self.n * (self.n - 1) / 2 / (8 * math.pi))
        return torch.where(valid[:, None, None], momenta, torch.nan), torch.where(valid, total, 0.0)

    def _jet(self, *r: Tensor) -> tuple[Tensor, Tensor]:
        """One momentum (4, rows) and d³p / ((2π)³ 2E) over its part of du."""
        low, high = self.cuts.pt**-2, (self.sqrt_s / 2) ** -2
        pt = (low + (high - low) * r[0]) ** -0.5
        eta, phi = (2 * r[1] - 1) * self.cuts.eta, 2 * math.pi * r[2]
        momentum = pt * torch.stack([torch.cosh(eta), torch.cos(phi), torch.sin(phi), torch.sinh(eta)])
        area = (low - high) / 2 * pt**3 * 2 * self.cuts.eta * 2 * math.pi
        return momentum, pt * area / (2 * (2 * math.pi) ** 3)
