"""The setups (a), five parameters, and (b), eight, of one detector with the design noise of Advanced LIGO.

(a) is the test case of Green, Simpson & Gair (2020, arXiv 2002.07656): non-spinning black holes, one detector, sky
position and orientation fixed, one second of data at 1,024 Hz. The source is overhead and face-on, with F+ = 1 and
Fx = 0, so the signal is e^{2 i phi_c} h22 / d_L. The prior of the distance is uniform in volume, d_L^2, between 1 and 3
Gpc. Times are relative to the trigger; the second of data is periodic, as the discrete Fourier transform has it.

(b) adds aligned spins, uniform in (-0.99, 0.99), and the inclination, isotropic. The detector has F+ = 0.8 and
Fx = -0.5: with Fx = 0 distance and inclination would be one parameter.

Swapping the two bodies changes nothing, nor does turning phi_c by π: both are symmetries of the posterior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbiflow.priors import PeriodicUniform, PowerLaw, Prior, Sine, Uniform
from simulators.gravitational_waves.alignment import MatchedFilter
from simulators.gravitational_waves.binary import Binary, Projection, fit_bases, unit_templates
from simulators.gravitational_waves.noise import PSD, whiten
from simulators.gravitational_waves.waveform import imrphenomd

RATE, DURATION, F_LOW = 1024.0, 1.0, 20.0
F_REF = 75.0
"""GW frequency that phi_c belongs to [Hz]: about the mean frequency of the signal, where its phase is measured best."""
PATTERN = (0.8, -0.5)
"""F+ and Fx of setup (b)."""

_BANK = (38.0, 48.0, 60.0, 75.0)  # solar masses of each of the equal bodies of a template
_COMPONENTS = {5: 32, 8: 64}


def five_parameters() -> Binary:
    """Setup (a): mass_1, mass_2, phi_c, t_c, d_L."""
    return _one_detector(Prior(*_common()), Orientation(), ((0,), (1,)))


def eight_parameters() -> Binary:
    """Setup (b): those of (a), then chi_1, chi_2, theta_jn."""
    spins = [Uniform(f"chi_{i}", -0.99, 0.99, label=rf"$\chi_{i}$") for i in (1, 2)]
    prior = Prior(*_common(), *spins, Sine("theta_jn", unit="rad", label=r"$\theta_{JN}$"))
    return _one_detector(prior, Orientation(PATTERN), ((0, 5), (1, 6)))


@dataclass(frozen=True)
class Orientation:
    """theta (n, D) -> the `Projection` in one detector: e^{2 i phi_c} / d_L, times the response to an inclined source.

    Attributes:
        pattern: F+ and Fx, with the inclination in the eighth column; None for a face-on source with F+ = 1, Fx = 0.
    """

    pattern: tuple[float, float] | None = None

    def __call__(self, theta: Tensor) -> Projection:
        factor = torch.polar(1 / theta[:, 4:5], 2 * theta[:, 2:3])
        if self.pattern is not None:
            plus, cross = self.pattern
            cosine = torch.cos(theta[:, 7:8])
            factor = factor * torch.complex(plus * 0.5 * (1 + cosine**2), -cross * cosine)
        return Projection(factor, theta[:, 3:4])


@dataclass(frozen=True, eq=False)
class Whitened:
    """theta (n, D) -> whitened h22 at 1 Mpc, (n, 1, F) complex128; spins in columns 5 and 6 if there are any.

    Attributes:
        frequencies: (F,) [Hz].
        scale: sqrt(4 df / S), (F,).
    """

    frequencies: Tensor
    scale: Tensor

    def __call__(self, theta: Tensor) -> Tensor:
        chi_1, chi_2 = theta[:, 5:7].unbind(1) if theta.shape[1] > 5 else torch.zeros_like(theta[:, :2]).T
        h = imrphenomd(theta[:, 0], theta[:, 1], chi_1, chi_2, self.frequencies, f_ref=F_REF)
        return (h * self.scale)[:, None]


def _common() -> tuple[Uniform | PeriodicUniform | PowerLaw, ...]:
    return (
        Uniform("mass_1", 35.0, 80.0, unit="M☉", label="$m_1$"),
        Uniform("mass_2", 35.0, 80.0, unit="M☉", label="$m_2$"),
        PeriodicUniform("phi_c", 0.0, 2 * math.pi, unit="rad", label=r"$\phi_c$"),
        Uniform("t_c", -0.1, 0.1, unit="s", label="$t_c$"),
        PowerLaw("d_L", 2.0, 1000.0, 3000.0, unit="Mpc", label="$d_L$"),
    )


def _one_detector(
    prior: Prior, geometry: Orientation, swap: tuple[tuple[int, ...], tuple[int, ...]]
) -> Binary:
    frequencies = torch.arange(F_LOW, RATE / 2, 1 / DURATION, dtype=torch.float64)
    psd = PSD.design(frequencies)
    waveform = Whitened(frequencies, whiten(torch.ones_like(frequencies), psd.at(frequencies), DURATION))
    bank = torch.zeros(len(_BANK), prior.dim, dtype=torch.float64)
    bank[:, 0] = bank[:, 1] = torch.tensor(_BANK)
    extrinsic = tuple(name for name in prior.names if name in ("phi_c", "t_c", "d_L", "theta_jn"))
    return Binary(
        name=f"binary-{prior.dim}-parameters",
        version=f"1-{psd.digest()}",
        prior=prior,
        extrinsic=extrinsic,
        frequencies=frequencies,
        waveform=waveform,
        geometry=geometry,
        basis=fit_bases(waveform, prior, _COMPONENTS[prior.dim]),
        search=MatchedFilter(frequencies, unit_templates(waveform, bank), window=0.11),
        anchored=(3, 2),
        phase_periods=2,
        swap=swap,
    )
