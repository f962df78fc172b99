"""gg → (n-2) g at a fixed partonic energy: the antenna approximation of the squared amplitude, and its cross-section.

The helicity amplitudes with two gluons i, j of one helicity and n - 2 of the other are known for any n (Parke & Taylor,
Phys. Rev. Lett. 56 (1986) 2459). At leading colour, summed over colours, those helicities, and all i < j,

    Σ|M|² = 2 h g^(2n-4) N^(n-2) (N² - 1) · Σ_{i<j} s_ij⁴ · Σ_rings 1 / (s_12 s_23 … s_n1),          s_ij = 2 p_i·p_j,

with the sum over the (n-1)!/2 rings, that is orders of the n gluons on a circle, without orientation, and h = 2 for the
conjugate helicities (1 for n = 4, whose two sets are the same). Incoming gluons stand in the rings like outgoing ones.
This is exact for n = 4; from n = 5 on it leaves out terms of relative order 1/N² and, for n >= 6, all helicities with
three or more gluons of either sign. What remains is the antenna structure of QCD that phase-space generators are built
for (SARGE: hep-ph/0004047; with the incoming momenta: hep-ph/0008068; HAAG: hep-ph/0204055). It is not a prediction for
the LHC: no parton densities, one fixed α_s, no jet algorithm.

    σ = (ħc)² / 2s · 1 / (4 (N² - 1)²) · 1 / (n-2)! · ∫ dΦ_{n-2} Σ|M|² Θ(cuts)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import combinations
from typing import TypeVar

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from analyses.jets import Cuts, JetCoordinates
from analyses.phase_space import Chain

Array = TypeVar("Array", Tensor, np.ndarray)

COLOURS = 3
GEV2_PB = 0.3893793721e9  # (ħc)² [GeV² pb], CODATA 2018
ROWS = 8192  # at a time: what stays in a core's cache

SQRT_S = 1000.0  # GeV
ALPHA_S = 0.118

# σ [pb] within the default cuts: the weighted mean of 1776.84 ± 0.47 in `JetCoordinates(SQRT_S)` and 1775.68 ± 0.85 in
# `Chain(SQRT_S, angle=UniformRapidity(1.5))`, each from 96 scrambled Sobol' sequences of 2^20 points.
CROSS_SECTION, CROSS_SECTION_ERROR = 1776.57, 0.41


def invariants(momenta: Tensor, sqrt_s: float) -> dict[tuple[int, int], Tensor]:
    """s_ij (rows,) [GeV²] for i < j of the beams, which are 0 and 1, and the momenta (rows, n, 4)."""
    beam = torch.full_like(momenta[:, 0], 0.0)
    beam[:, 0] = sqrt_s / 2
    beams = [beam + beam.new_tensor([0, 0, 0, sign * sqrt_s / 2]) for sign in (1, -1)]
    p = torch.stack([*beams, *momenta.unbind(1)]).permute(0, 2, 1).contiguous()
    return {
        (i, j): 2 * (p[i, 0] * p[j, 0] - (p[i, 1:] * p[j, 1:]).sum(0))
        for i, j in combinations(range(len(p)), 2)
    }


def sum_over_rings(link: dict[tuple[int, int], Tensor]) -> Tensor:
    """Σ over the (n-1)!/2 rings of the products of the links (rows,) between neighbours.

    By the recursion of Held and Karp (1962) over the sets that a path from 0 has visited, and where it ends: 2^n n²
    products in place of n!.
    """
    n = max(j for _, j in link) + 1
    paths = {(frozenset([v]), v): link[0, v] for v in range(1, n)}
    for size in range(2, n):
        paths = {
            (visited, v): sum(paths[visited - {v}, u] * link[min(u, v), max(u, v)] for u in visited - {v})
            for visited in map(frozenset, combinations(range(1, n), size))
            for v in visited
        }
    return sum(path * link[0, v] for (_, v), path in paths.items()) / 2


def antenna(s: dict[tuple[int, int], Tensor]) -> Tensor:
    """Σ s_ij⁴ · Σ_rings 1 / (s_12 s_23 … s_n1) [GeV^(8-2n)]."""
    return sum(value**4 for value in s.values()) * sum_over_rings(
        {pair: 1 / value for pair, value in s.items()}
    )


@dataclass(frozen=True)
class GluonScattering:
    """dσ/du [pb] of gg → n gluons in the unit cube of a phase-space map; zero outside the cuts.

    Called with u (rows, 3n - 4), a tensor or an array of any floating type; answers (rows,) of the same kind.
    """

    phase_space: Chain | JetCoordinates = field(default_factory=lambda: Chain(SQRT_S))
    cuts: Cuts = field(default_factory=Cuts)
    alpha_s: float = ALPHA_S

    @property
    def dim(self) -> int:
        """Of the cube."""
        return self.phase_space.dim

    def __call__(self, u: Array) -> Array:
        if isinstance(u, np.ndarray):
            return self(torch.from_numpy(np.ascontiguousarray(u))).numpy()
        return torch.cat([self._block(rows) for rows in u.split(ROWS)]).to(u)

    def _block(self, u: Tensor) -> Tensor:
        momenta, weight = self.phase_space.forward(u)
        passed = (self.cuts.passed(momenta) & (weight > 0)).nonzero()[:, 0]
        inside = antenna(invariants(momenta[passed], self.phase_space.sqrt_s))
        return torch.zeros_like(weight).index_copy_(0, passed, inside * weight[passed] * self.factor)

    @property
    def factor(self) -> float:
        """What multiplies the antenna and dΦ: couplings, colours, averages, flux [pb GeV²]."""
        n, gluons = self.phase_space.n + 2, COLOURS**2 - 1
        helicities = 1 if n == 4 else 2
        squared = 2 * helicities * (4 * math.pi * self.alpha_s) ** (n - 2) * COLOURS ** (n - 2) * gluons
        average = 4 * gluons**2 * math.factorial(n - 2)
        return squared / average * GEV2_PB / (2 * self.phase_space.sqrt_s**2)


def randomised_qmc(f: GluonScattering, log2_points: int, repeats: int, seed: int) -> tuple[float, float]:
    """Integral over the cube and its error, from independently scrambled Sobol' sequences of 2^log2_points points."""
    means = []
    for child in np.random.SeedSequence(seed).spawn(repeats):
        points = qmc.Sobol(f.dim, rng=np.random.default_rng(child)).random_base2(log2_points)
        means.append(float(f(torch.from_numpy(points)).mean()))
    return float(np.mean(means)), float(np.std(means, ddof=1) / math.sqrt(repeats))
