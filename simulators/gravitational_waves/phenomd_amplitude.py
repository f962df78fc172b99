"""Amplitude of IMRPhenomD, Khan et al. (arXiv 1508.07253) Secs. V and VI, in y = M f.

Relative to the Newtonian amplitude A_0 y^-7/6 it is

    inspiral, y < 0.014          1 + post-Newtonian terms + rho_1 y^7/3 + rho_2 y^8/3 + rho_3 y^3       Eqs. 29, 30
    intermediate                 the quartic through 3 values and 2 slopes                              Eqs. 21-26
    merger-ringdown, y > f_peak  gamma_1 w exp(-gamma_2 u / w) / (u^2 + w^2), u = y - f_RD, w = gamma_3 f_damp
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simulators.gravitational_waves.phenomd import Binary, Fits, Remnant
from simulators.gravitational_waves.series import Series

INSPIRAL_END = 0.014


@dataclass(frozen=True, eq=False)
class Amplitude:
    """inspiral below `first`, then intermediate, from `second` on the Lorentzian; all without A_0 y^-7/6."""

    inspiral: Series
    intermediate: Series
    height: Tensor  # gamma_1 w
    decay: Tensor  # gamma_2 / w
    centre: Tensor
    width: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, binary: Binary, fits: Fits, remnant: Remnant) -> Amplitude:
        inspiral = _inspiral(binary, fits)
        width = fits.gamma[2] * remnant.damp
        decay, height = fits.gamma[1] / width, fits.gamma[0] * width
        first, second = torch.full_like(binary.eta, INSPIRAL_END), _peak(fits, remnant, width)
        offset = second - remnant.ring
        bell = height * torch.exp(-decay * offset) / (offset**2 + width**2)
        fall = bell * (-decay - 2 * offset / (offset**2 + width**2))
        ends = (inspiral.value(first), inspiral.slope(first)), (bell, fall)
        quartic = _quartic(first, second, ends[0], fits.v_2, ends[1])
        return cls(inspiral, quartic, height, decay, remnant.ring, width, first, second)


def _peak(fits: Fits, remnant: Remnant, width: Tensor) -> Tensor:
    """Eq. 20: where the Lorentzian is largest; for gamma_2 > 1, where it has no maximum, LAL drops the root."""
    gamma_2 = fits.gamma[1]
    bound = gamma_2 < 1
    root = torch.where(bound, torch.where(bound, 1 - gamma_2**2, 1.0).sqrt(), 0.0)
    return (remnant.ring + width * (root - 1) / gamma_2).abs()


def _quartic(
    first: Tensor, last: Tensor, start: tuple[Tensor, Tensor], middle: Tensor, end: tuple[Tensor, Tensor]
) -> Series:
    """Quartic with (value, slope) `start` and `end` at the ends and the value `middle` half way, Eqs. 21-26.

    With t = (y - first) / (last - first): v_0 + s_0 t + b t^2 + c t^3 + d t^4.
    """
    span = last - first
    slope, final = start[1] * span, end[1] * span
    rise, half = end[0] - start[0], middle - start[0]
    d = 2 * (final - slope) + 16 * half - 8 * rise
    c = final + slope - 2 * rise - 2 * d
    b = rise - slope - c - d
    return _shifted([start[0], slope, b, c, d], first, span)


def _shifted(coefficients: list[Tensor], origin: Tensor, span: Tensor) -> Series:
    """sum_k c_k ((y - origin) / span)^k as a series in y."""
    order = len(coefficients)
    scaled = [value / span**k for k, value in enumerate(coefficients)]
    terms = [
        [math.comb(k, j) * scaled[k] * (-origin) ** (k - j) for k in range(j, order)] for j in range(order)
    ]
    return Series.of(*((j, torch.stack(row).sum(0)) for j, row in enumerate(terms)))


def _inspiral(binary: Binary, fits: Fits) -> Series:
    """Re-expanded post-Newtonian amplitude to 3PN (Appendix B) and the three fitted terms."""
    third, pi = 1 / 3, math.pi
    eta, chi = binary.eta, binary.chi
    share = 2.0 * binary.fraction  # 1 + delta, 1 - delta
    turn = torch.stack([binary.delta, -binary.delta])
    one = (chi * (81.0 * share - 44.0 * eta)).sum(0) / 48.0
    four = -27312085.0 - 10287648.0 * (chi**2 * share).sum(0) + 35371056.0 * eta**2
    four = four + 24.0 * eta * (-1975055.0 + 857304.0 * (chi**2).sum(0) - 994896.0 * chi.prod(0))
    five = (chi * (285197.0 * share - eta * (367608.0 + 6316.0 * turn + 35632.0 * eta))).sum(0)
    five = five + 42840.0 * pi * (4.0 * eta - 1.0)
    return Series.of(
        (0, torch.ones_like(eta)),
        (2 * third, (1804 * eta - 969) / 672 * pi ** (2 / 3)),
        (1, one * pi),
        (4 * third, four / 8128512 * pi ** (4 / 3)),
        (5 * third, five / 32256 * pi ** (5 / 3)),
        (2, _three_pn(binary) * pi**2),
        (7 * third, fits.rho[0]),
        (8 * third, fits.rho[1]),
        (3, fits.rho[2]),
    )


def _three_pn(binary: Binary) -> Tensor:
    """Coefficient of (pi y)^2."""
    pi, eta, chi = math.pi, binary.eta, binary.chi
    share, square, cross = 2.0 * binary.fraction, chi**2, chi.prod(0)
    turn = torch.stack([binary.delta, -binary.delta])
    constant = -177520268561.0 + (share * (107414046432.0 * square + 11087290368.0 * pi * chi)).sum(0)
    linear = -545384828789.0 + 21384760320.0 * pi**2 - 176491177632.0 * cross
    linear = linear + (5841690624.0 * pi * chi + square * (202603761360.0 + 77287373856.0 * turn)).sum(0)
    quadratic = -3248849057.0 + 2943675504.0 * square.sum(0) - 3339284256.0 * cross
    total = 7.0 * constant - eta * (12.0 * linear - eta * (336.0 * quadratic + 324322727232.0 * eta))
    return total / 60085960704.0
