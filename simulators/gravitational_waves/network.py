"""Setup (c): eleven parameters of an aligned-spin binary in Hanford and Livingston, for a real event.

The coordinates are those that the two detectors measure, with the prior that the usual ones have:

- t_H1, arrival at Hanford relative to the trigger, uniform, instead of the time at the geocentre;
- the direction in the frame of the baseline, isotropic: the zenith angle from the line Hanford - Livingston alone
  sets the difference of arrival times;
- phi_H1, the phase of the signal in Hanford at `F_REF`, uniform since phi_c is, instead of phi_c;
- psi in [0, π/2): with phi_H1 given, psi + π/2 is the same signal (F+ and Fx change sign in both detectors).

`sky` turns draws into right ascension, declination and geocentric time. Distances are uniform in training, so that
the network learns near and far ones alike; `volume_prior` is the one to reweight to. Precession, higher modes and
calibration errors of the detectors are absent.

Data: `DURATION` = 8 s at the resolution of the PSD, whitened; the whitened series is cut to `CROP` around the trigger,
where the signal is. Cut white noise is white, but for the lowest frequencies: data whitened from `F_LOW` on have no
noise below, so that of the first bin has a variance of 0.6 and of the next few of 0.95 or more, where the simulator
has 1. About 1 % of the squared signal-to-noise ratio, which whitening at the lines of the spectrum spreads beyond the
cut, is lost to the network. The exact likelihood uses all 8 s, and the weights correct for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sbiflow.priors import PeriodicUniform, PowerLaw, Prior, Sine, Uniform
from simulators.gravitational_waves.alignment import MatchedFilter
from simulators.gravitational_waves.binary import Binary, Projection, fit_bases, unit_templates
from simulators.gravitational_waves.detector import (
    H1,
    L1,
    SPEED_OF_LIGHT,
    antenna_patterns,
    arrival_delay,
    baseline_to_sky,
    greenwich_sidereal_time,
)
from simulators.gravitational_waves.noise import PSD, whiten
from simulators.gravitational_waves.waveform import imrphenomd

RATE, DURATION, F_LOW = 1024.0, 8.0, 20.0
F_REF = 100.0
"""GW frequency that phi_H1 belongs to [Hz]."""
CROP = (-1.1, 0.15)
"""Seconds around the trigger that x covers; a signal of 25 solar masses of chirp mass enters 20 Hz 1.0 s before."""
GW150914 = 1126259462.42
"""Trigger [GPS s]: about the arrival at Hanford."""
LIGHT_TRAVEL = math.dist(H1.vertex, L1.vertex) / SPEED_OF_LIGHT

_BANK = (27.0, 31.0, 36.0)  # chirp masses of templates
_ROWS = 256  # waveforms of 8 s at a time
_COMPONENTS = 64


@dataclass(frozen=True)
class Crop:
    """From T seconds of whitened series in frequency to a part of them.

    Attributes:
        frequencies: (F,) [Hz] of the whole, multiples of 1 / DURATION from F_LOW.
        start, samples: of the part, relative to the time origin of the series.
    """

    frequencies: Tensor
    start: int
    samples: int

    @classmethod
    def around_trigger(cls, frequencies: Tensor) -> Crop:
        """That of setup (c)."""
        return cls(frequencies, round(CROP[0] * RATE), round((CROP[1] - CROP[0]) * RATE))

    @property
    def kept(self) -> Tensor:
        """Frequencies of the part that lie in the band [Hz]."""
        step = RATE / self.samples
        return torch.arange(math.ceil(F_LOW / step), int(RATE / 2 / step), dtype=torch.float64) * step

    def __call__(self, series: Tensor) -> Tensor:
        """(..., F) complex128, whitened -> (..., F') at `kept`; white unit noise stays so (orthonormal transforms)."""
        total = int(RATE * DURATION)
        whole = series.new_zeros(*series.shape[:-1], total // 2 + 1)
        first = round(float(self.frequencies[0]) * DURATION)
        whole[..., first : first + series.shape[-1]] = series
        time = torch.fft.irfft(whole, total, norm="ortho").roll(-self.start, -1)[..., : self.samples]
        part = torch.fft.rfft(time, norm="ortho")
        low = round(float(self.kept[0]) * self.samples / RATE)
        cycles = self.start / RATE * self.kept  # the part's origin back to that of the series
        return part[..., low : low + len(self.kept)] * torch.exp(-2j * math.pi * cycles)


def prior(chirp_mass: tuple[float, float] = (25.0, 40.0), time: float = 0.03) -> Prior:
    """Eleven parameters; chirp mass [solar masses, detector frame] and time [s] narrowed around GW150914."""
    return Prior(
        Uniform("chirp_mass", *chirp_mass, unit="M☉", label=r"$\mathcal{M}$"),
        Uniform("mass_ratio", 0.2, 1.0, label="$q$"),
        Uniform("chi_1", -0.99, 0.99, label=r"$\chi_1$"),
        Uniform("chi_2", -0.99, 0.99, label=r"$\chi_2$"),
        Uniform("d_L", 100.0, 1000.0, unit="Mpc", label="$d_L$"),
        Sine("theta_jn", unit="rad", label=r"$\theta_{JN}$"),
        PeriodicUniform("psi", 0.0, math.pi / 2, unit="rad", label=r"$\psi$"),
        PeriodicUniform("phi_H1", 0.0, 2 * math.pi, unit="rad", label=r"$\phi_\mathrm{H1}$"),
        Uniform("t_H1", -time, time, unit="s", label=r"$t_\mathrm{H1}$"),
        Sine("zenith", unit="rad", label=r"$\kappa$"),
        PeriodicUniform("azimuth", 0.0, 2 * math.pi, unit="rad", label=r"$\epsilon$"),
    )


def volume_prior(base: Prior) -> Prior:
    """The same with distances uniform in Euclidean volume."""
    changed = {"d_L": PowerLaw("d_L", 2.0, 100.0, 1000.0, unit="Mpc", label="$d_L$")}
    return Prior(*(changed.get(marginal.name, marginal) for marginal in base.marginals))


def component_masses(theta: Tensor) -> tuple[Tensor, Tensor]:
    """m1 >= m2 (n,) of theta (n, D) with chirp mass and mass ratio in its first columns."""
    chirp, ratio = theta[:, 0], theta[:, 1]
    first = chirp * (1 + ratio) ** 0.2 / ratio**0.6
    return first, ratio * first


def sky(theta: Tensor, trigger: float = GW150914) -> Tensor:
    """Right ascension, declination [rad] and geocentric time relative to the trigger [s], (n, 3)."""
    gmst = greenwich_sidereal_time(trigger)
    ra, dec = baseline_to_sky(theta[:, 9], theta[:, 10], H1, L1, gmst)
    return torch.stack([ra, dec, theta[:, 8] - arrival_delay(H1, ra, dec, gmst)], -1)


@dataclass(frozen=True)
class Network:
    """theta (n, 11) -> the `Projection` in H1 and L1 at a sidereal time [rad]."""

    gmst: float

    def __call__(self, theta: Tensor) -> Projection:
        cosine, psi, phase = torch.cos(theta[:, 5]), theta[:, 6], theta[:, 7]
        ra, dec = baseline_to_sky(theta[:, 9], theta[:, 10], H1, L1, self.gmst)
        response = []
        for one in (H1, L1):
            plus, cross = antenna_patterns(one, ra, dec, psi, self.gmst)
            response.append(torch.complex(plus * 0.5 * (1 + cosine**2), -cross * cosine))
        first = response[0].abs()
        # the phase in H1 is a parameter: that of its own response is taken out (where there is none, nothing is)
        unit = torch.where(first > 0, response[0].conj() / first, torch.ones_like(response[0]))
        turned = torch.polar(1 / theta[:, 4], phase) * unit
        between = -LIGHT_TRAVEL * torch.cos(theta[:, 9])
        delay = torch.stack([theta[:, 8], theta[:, 8] + between], -1)
        return Projection(torch.stack([response[0] * turned, response[1] * turned], -1), delay)


@dataclass(frozen=True, eq=False)
class Whitened:
    """theta (n, 11) -> whitened h22 at 1 Mpc over all of `DURATION`, (n, 2, F) complex128.

    Attributes:
        frequencies: (F,) [Hz].
        scale: sqrt(4 df / S) of both detectors, (2, F).
    """

    frequencies: Tensor
    scale: Tensor

    @classmethod
    def of(cls, psds: Sequence[PSD]) -> Whitened:
        """With the noise of H1 and L1."""
        frequencies = torch.arange(F_LOW, RATE / 2, 1 / DURATION, dtype=torch.float64)
        one = torch.ones_like(frequencies)
        return cls(frequencies, torch.stack([whiten(one, psd.at(frequencies), DURATION) for psd in psds]))

    def __call__(self, theta: Tensor) -> Tensor:
        spins = theta[:, 2], theta[:, 3]
        return (
            imrphenomd(*component_masses(theta), *spins, self.frequencies, f_ref=F_REF)[:, None] * self.scale
        )


@dataclass(frozen=True, eq=False)
class Cropped:
    """The same cut to `CROP`, (n, 2, F')."""

    whole: Whitened
    crop: Crop

    def __call__(self, theta: Tensor) -> Tensor:
        return torch.cat([self.crop(self.whole(rows)) for rows in theta.split(_ROWS)])


def eleven_parameters(
    psds: Sequence[PSD], trigger: float = GW150914, own_prior: Prior | None = None
) -> Binary:
    """The simulator of setup (c), of the noise of one event.

    Args:
        psds: of H1 and L1.
        trigger: GPS time [s].
        own_prior: `prior()` if not given.
    """
    chosen = prior() if own_prior is None else own_prior
    whole = Whitened.of(psds)
    waveform = Cropped(whole, Crop.around_trigger(whole.frequencies))
    bank = torch.zeros(len(_BANK), chosen.dim, dtype=torch.float64)
    bank[:, 0], bank[:, 1] = torch.tensor(_BANK), 0.9
    kept = waveform.crop.kept
    window = float(chosen.high[8]) + LIGHT_TRAVEL + 2e-3
    return Binary(
        name="binary-11-parameters-H1-L1",
        version="1-" + "-".join(psd.digest() for psd in psds),
        prior=chosen,
        extrinsic=("d_L", "theta_jn", "psi", "phi_H1", "t_H1", "zenith", "azimuth"),
        frequencies=kept,
        waveform=waveform,
        geometry=Network(greenwich_sidereal_time(trigger)),
        basis=fit_bases(waveform, chosen, _COMPONENTS),
        search=MatchedFilter(kept, unit_templates(waveform, bank), window, LIGHT_TRAVEL),
        anchored=(8, 7),
    )
