"""The marginal of the coalescence phase: a mixture of von Mises densities, summed as a histogram.

Given everything else, 2 phi_c is von Mises about arg z with concentration kappa = |z| / d_L. The weights of all
nodes are counted in cells of arg z and ln(1 + kappa) (shared linearly between two values of kappa), and each kappa
is then convolved with its density, whose Fourier coefficients are I_n(kappa) / I_0(kappa).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.special import ive
from torch import Tensor

from simulators.gravitational_waves.curve import Curve

_ANGLES, _KAPPAS, _STEP = 4096, 240, 0.06  # kappa up to 1.7 million, an SNR of 1,300


@dataclass(frozen=True, eq=False)
class PhaseHistogram:
    """counts (kappas, angles), filled in place."""

    counts: Tensor

    @classmethod
    def empty(cls) -> PhaseHistogram:
        """Without any counts."""
        return cls(torch.zeros(_KAPPAS, _ANGLES, dtype=torch.float64))

    def add(self, weight: Tensor, angle: Tensor, kappa: Tensor) -> None:
        """weight (N, M), arg z (N,), kappa (N, M)."""
        matters = weight > 1e-5 * weight.mean()  # loses less than 1e-5 of the sum
        row, column = matters.nonzero(as_tuple=True)
        weight, kappa = weight[row, column], kappa[row, column]
        place = kappa.log1p_().mul_(1 / _STEP)
        low = place.long().clamp_(max=_KAPPAS - 2)
        upper = (place - low).clamp_(max=1.0).mul_(weight)
        turn = (angle * (_ANGLES / (2 * torch.pi))).round().long().remainder(_ANGLES)
        bins = low.mul_(_ANGLES).add_(turn[row])
        for part, shift in ((weight - upper, 0), (upper, _ANGLES)):
            self.counts.view(-1).index_add_(0, bins + shift, part)

    def curve(self) -> Curve:
        """Density of phi_c on [0, 2π]: that of 2 phi_c, twice around."""
        spectrum = (np.fft.rfft(self.counts.numpy()) * _von_mises_spectra()).sum(0)
        turn = np.fft.irfft(spectrum, _ANGLES).clip(min=0.0)
        density = np.concatenate([turn, turn, turn[:1]])
        return Curve.normalised(np.linspace(0, 2 * np.pi, 2 * _ANGLES + 1), density)


@cache
def _von_mises_spectra() -> np.ndarray:
    """I_n(kappa) / I_0(kappa): (kappas, angles // 2 + 1)."""
    kappa = np.expm1(_STEP * np.arange(_KAPPAS))
    return ive(np.arange(_ANGLES // 2 + 1), kappa[:, None]) / ive(0, kappa[:, None])
