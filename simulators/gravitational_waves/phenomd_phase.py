"""Phase of IMRPhenomD, Khan et al. (arXiv 1508.07253) Secs. V and VI, in y = M f.

    inspiral, y < 0.018           TaylorF2 (3.5PN, aligned spins) + (sigma_1 y + 3/4 sigma_2 y^4/3 + ...) / eta
    intermediate                  (beta_1 y + beta_2 ln y - beta_3 / 3 y^3) / eta
    merger-ringdown, y > f_RD/2   (alpha_1 y - alpha_2 / y + 4/3 alpha_3 y^3/4 + alpha_4 atan(...)) / eta

each with a constant and a linear term that make phase and slope continuous. The TaylorF2 coefficients are those of
LAL as the model was tuned: spin-spin terms at 2PN only (LAL adds those of 3PN and IMRPhenomD subtracts them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simulators.gravitational_waves.phenomd import Binary, Fits, Remnant
from simulators.gravitational_waves.series import Series, Term

INSPIRAL_END = 0.018
THIRD = 1 / 3


@dataclass(frozen=True, eq=False)
class Phase:
    """inspiral below `first`, then intermediate, from `second` on ringdown + swing atan((y - centre) / width)."""

    inspiral: Series
    intermediate: Series
    ringdown: Series
    ansatz: Series  # the ringdown before it was joined
    swing: Tensor  # (n,), as all that follow
    centre: Tensor
    width: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, binary: Binary, fits: Fits, remnant: Remnant) -> Phase:
        """The three pieces, joined with continuous slope; the phase and the time origin are still arbitrary."""
        swing, centre = fits.alpha[3] / binary.eta, fits.alpha[4] * remnant.ring
        first, second = torch.full_like(binary.eta, INSPIRAL_END), remnant.ring / 2
        inspiral, ansatz = _inspiral(binary, fits), _ringdown(binary, fits)
        middle = _joined(_intermediate(binary, fits), first, inspiral.value(first), inspiral.slope(first))
        phase = cls(inspiral, middle, ansatz, ansatz, swing, centre, remnant.damp, first, second)
        value = middle.value(second) - phase.arc(second)
        slope = middle.slope(second) - phase.arc_slope(second)
        return replace(phase, ringdown=_joined(ansatz, second, value, slope))

    def arc(self, y: Tensor) -> Tensor:
        """The arctangent (n,) of the ringdown at y (n,)."""
        return self.swing * torch.atan((y - self.centre) / self.width)

    def arc_slope(self, y: Tensor) -> Tensor:
        """Its derivative."""
        return self.swing * self.width / (self.width**2 + (y - self.centre) ** 2)

    def value(self, y: Tensor) -> Tensor:
        """The phase (n,) at y (n,)."""
        late = torch.where(y < self.second, self.intermediate.value(y), self.ringdown.value(y) + self.arc(y))
        return torch.where(y < self.first, self.inspiral.value(y), late)

    def time_of(self, y: Tensor) -> Tensor:
        """LAL's time of y (n,) in units of M / 2 pi: the slope of the ringdown without the term that joins it."""
        return self.ansatz.slope(y) + self.arc_slope(y)

    def plus(self, constant: Tensor, linear: Tensor) -> Phase:
        """The phase + constant + linear y."""
        added = (0, constant), (1, linear)
        return replace(
            self,
            inspiral=self.inspiral.plus(*added),
            intermediate=self.intermediate.plus(*added),
            ringdown=self.ringdown.plus(*added),
        )


def _joined(piece: Series, y: Tensor, value: Tensor, slope: Tensor) -> Series:
    """The piece with a constant and a linear term that give it this value and slope at y."""
    linear = slope - piece.slope(y)
    return piece.plus((0, value - piece.value(y) - linear * y), (1, linear))


def _inspiral(binary: Binary, fits: Fits) -> Series:
    sigma = [value / binary.eta for value in fits.sigma]
    plain, logs = _taylor_f2(binary)
    fitted = (1, sigma[0]), (4 * THIRD, sigma[1] * 3 / 4), (5 * THIRD, sigma[2] * 3 / 5), (2, sigma[3] / 2)
    return Series.of(*plain, *fitted, logs=logs)


def _intermediate(binary: Binary, fits: Fits) -> Series:
    beta = [value / binary.eta for value in fits.beta]
    zero = torch.zeros_like(binary.eta)
    return Series.of((0, zero), (1, beta[0]), (-3, -beta[2] / 3), logs=[(0, beta[1])])


def _ringdown(binary: Binary, fits: Fits) -> Series:
    alpha = [value / binary.eta for value in fits.alpha]
    zero = torch.zeros_like(binary.eta)
    return Series.of((0, zero), (1, alpha[0]), (-1, -alpha[1]), (3 / 4, alpha[2] * 4 / 3))


def _taylor_f2(binary: Binary) -> tuple[list[Term], list[Term]]:
    """TaylorF2 - pi/4 by powers of y: plain and times ln y (v = (pi y)^1/3, 3 / (128 eta) v^-5 sum_k p_k v^k)."""
    third = math.pi ** (1 / 3)
    eta = binary.eta
    scaled = [term * 3 / (128 * eta) * third ** (k - 5) for k, term in enumerate(_post_newtonian(binary))]
    newton, _, one, one_half, two, two_half, three, three_half = scaled
    log_six = -6848 / 21 * 3 / (128 * eta) * third / 3  # ln v = (ln pi + ln y) / 3
    plain: list[Term] = [
        (-5 * THIRD, newton),
        (-1, one),
        (-2 * THIRD, one_half),
        (-THIRD, two),
        (0, two_half * (1 + math.log(math.pi)) - math.pi / 4),  # p_5 v^5 (1 + 3 ln v)
        (THIRD, three + log_six * math.log(math.pi)),
        (2 * THIRD, three_half),
    ]
    return plain, [(0, two_half), (THIRD, log_six)]


def _post_newtonian(binary: Binary) -> list[Tensor]:
    """p_0 ... p_7 (n,): arXiv 0907.0700 Eq. 3.18, spin-orbit 1303.7412 Eqs. 3.15, 3.16, spin-spin 0810.5336 Eq. 6.24.

    p_5 comes with (1 + 3 ln v), p_6 with its logarithm -6848/21 ln v apart.
    """
    pi, eta, m = math.pi, binary.eta, binary.fraction
    tail = 11583231236531 / 4694215680 - 640 / 3 * pi**2 - 6848 / 21 * (0.5772156649015329 + math.log(4))

    def spins(coefficient: Tensor) -> Tensor:
        return (m * coefficient * binary.chi).sum(0)

    return [
        torch.ones_like(eta),
        torch.zeros_like(eta),
        5 / 9 * (743 / 84 + 11.0 * eta),
        spins(25.0 + 38 / 3 * m) - 16 * pi,
        5 / 72 * (3058673 / 7056 + eta * (5429 / 7 + 617.0 * eta))
        - 395 / 4 * eta * binary.chi.prod(0)
        - 405 / 8 * spins(m * binary.chi),
        5 / 9 * pi * (7729 / 84 - 13.0 * eta)
        - spins(13915 / 84 - eta * (10 / 3) + m * (12760 / 81 + eta * (170 / 9))),
        tail
        + eta * (-15737765635 / 3048192 + 2255 / 12 * pi**2 + eta * (76055 / 1728 - eta * (127825 / 1296)))
        + pi * spins(1490 / 3 + 260.0 * m),
        pi * (77096675 / 254016 + eta * (378515 / 1512 - eta * (74045 / 756)))
        + spins(
            -170978035 / 48384
            + eta * (2876425 / 672 + eta * (4735 / 144))
            + m * (-7189233785 / 1524096 + eta * (458555 / 3024 - eta * (5345 / 72)))
        ),
    ]
