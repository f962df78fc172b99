"""A real event in Hanford and Livingston: its whitened data and its exact likelihood, for setup (c).

The network sees the data cut around the trigger (`network.CROP`); the likelihood here is that of all T seconds at the
resolution 1 / T, so importance weights correct for the cut as well. With s_I = sqrt(4 / (T S_I)), the factor and the
delay of `network.Network`, and h22 at 1 Mpc, the whitened model is

    h_I(f) = factor_I s_I(f) h22(f) e^{-2 pi i f delay_I},

and the likelihood that of `likelihood.py`, expanded, since <h|h> needs neither phase nor delay:

    ln L = sum_I Re <d_I|h_I> - <h_I|h_I> / 2 - <d_I|d_I> / 2 - F ln 2 pi.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbiflow.checks import as_tensor, check_finite, check_positive, check_shape
from simulators.gravitational_waves import likelihood, network
from simulators.gravitational_waves.binary import Binary
from simulators.gravitational_waves.data import ROLL_OFF, in_band, network_series
from simulators.gravitational_waves.detector import greenwich_sidereal_time
from simulators.gravitational_waves.noise import PSD, whiten
from simulators.gravitational_waves.strain import Strain
from simulators.gravitational_waves.waveform import imrphenomd

DETECTORS = ("H1", "L1")
BAND = (network.F_LOW, network.RATE / 2)
"""Frequencies low <= f < high that are used [Hz]."""
DIM = 11
_ROWS = 128  # waveforms at a time


@dataclass(frozen=True, eq=False)
class Event:
    """Whitened strain of Hanford and Livingston around a trigger.

    Attributes:
        whitened: (2, F) complex128 at `frequencies`, phases counting from the trigger.
        psds: of H1 and L1.
        trigger: GPS time [s].
        duration: T [s].

    Raises:
        ValueError: another shape, NaN, or PSDs that do not cover the band.
    """

    whitened: Tensor
    psds: tuple[PSD, PSD]
    trigger: float
    duration: float = network.DURATION

    def __post_init__(self) -> None:
        check_positive(self.duration, "duration")
        check_shape(self.whitened, "whitened", (2, len(self.frequencies)))
        check_finite(torch.view_as_real(self.whitened), "whitened")
        check_shape(self.scale, "scale", (2, len(self.frequencies)))

    @cached_property
    def frequencies(self) -> Tensor:
        """Multiples of 1 / T in `BAND`, (F,) [Hz]."""
        first, last = (math.ceil(edge * self.duration - 1e-9) for edge in BAND)
        return torch.arange(first, last, dtype=torch.float64) / self.duration

    @cached_property
    def scale(self) -> Tensor:
        """What whitens a series in each detector, (2, F)."""
        one = torch.ones_like(self.frequencies)
        return torch.stack([whiten(one, psd.at(self.frequencies), self.duration) for psd in self.psds])

    @cached_property
    def geometry(self) -> network.Network:
        """Factors and delays in the detectors."""
        return network.Network(greenwich_sidereal_time(self.trigger))

    @cached_property
    def log_noise_evidence(self) -> float:
        """ln L of noise alone."""
        return float(likelihood.log_noise_evidence(self.whitened).sum())

    def mode(self, theta: Tensor) -> Tensor:
        """h22 at 1 Mpc, not whitened, (n, 11) -> (n, F) complex128."""
        masses = network.component_masses(theta)
        return imrphenomd(*masses, theta[:, 2], theta[:, 3], self.frequencies, f_ref=network.F_REF)

    def model(self, theta: Tensor) -> Tensor:
        """Whitened signal in the detectors, (n, 11) -> (n, 2, F) complex128."""
        theta = _checked(theta)
        factor, delay = self.geometry(theta)
        turned = torch.exp(-2j * math.pi * delay[..., None] * self.frequencies)
        return factor[..., None] * turned * self.mode(theta)[:, None] * self.scale

    def log_likelihood(self, theta: Tensor, x: Tensor | None = None) -> Tensor:
        """ln p(data | theta), normalised over the whitened data: (n, 11) -> (n,) float64.

        Args:
            theta: of the parameters of `network.prior`.
            x: not used: the data are these, not what the network sees of them.
        """
        return torch.cat([self._log_likelihood(rows) for rows in _checked(theta).split(_ROWS)])

    def x(self, simulator: Binary) -> Tensor:
        """What the network of `simulator` sees, (*x_shape).

        Raises:
            ValueError: a simulator of other PSDs, or another duration than the simulator's.
        """
        check_psd(simulator.version, self.psds)
        if self.duration != network.DURATION:
            raise ValueError(f"duration: expected {network.DURATION:g} s, got {self.duration:g} s")
        cut = network.Crop.around_trigger(self.frequencies)(self.whitened)
        return simulator.prepare(torch.view_as_real(cut).movedim(-1, 1)[None])[0]

    @cached_property
    def _weighted(self) -> Tensor:
        """conj(d_I) s_I, (2, F): <d_I|h_I> is its sum with the model before whitening."""
        return self.whitened.conj() * self.scale

    def _log_likelihood(self, theta: Tensor) -> Tensor:
        factor, delay = self.geometry(theta)
        h = self.mode(theta)
        norm = torch.view_as_real(h).square().sum(-1) @ self.scale.square().mT
        cross = torch.stack(
            [((h * own) * self._turn(delay[:, i])).sum(-1) for i, own in enumerate(self._weighted)], 1
        )
        signal = (factor * cross).real - 0.5 * factor.abs().square() * norm
        return signal.sum(1) + self.log_noise_evidence

    def _turn(self, delay: Tensor) -> Tensor:
        """e^{-2 pi i f delay}, (n,) -> (n, F): frequencies are equidistant, so it is an outer product of short ones."""
        short = 64
        step = -2j * math.pi * delay[:, None] / self.duration
        fine = torch.exp(step * torch.arange(short, dtype=torch.float64))
        first = float(self.frequencies[0]) * self.duration
        coarse = torch.exp(
            step * (first + torch.arange(0, len(self.frequencies), short, dtype=torch.float64))
        )
        return (coarse[:, :, None] * fine[:, None]).flatten(1)[:, : len(self.frequencies)]


def load_event(
    strains: Sequence[Strain],
    psds: Sequence[PSD],
    trigger: float = network.GW150914,
    *,
    duration: float = network.DURATION,
    post_trigger: float = 2.0,
    roll_off: float = ROLL_OFF,
) -> Event:
    """The event in measured strain: segment, Tukey window, Fourier transform, whitening.

    Args:
        strains: of H1 and L1, at one rate of at least 1,024 Hz.
        psds: of H1 and L1.
        trigger: GPS time [s], from which phases count.
        duration: T [s].
        post_trigger: how much of it lies after the trigger [s]; the segment begins with the sample next to that.
        roll_off: length of each ramp of the window [s].

    Raises:
        ValueError: other detectors, different or too low rates, a segment outside the strain, or PSDs that do not
            cover the band.
    """
    names = tuple(strain.detector for strain in strains)
    if names != DETECTORS or len(psds) != len(DETECTORS):
        raise ValueError(
            f"strains, psds: expected one of each of {', '.join(DETECTORS)}, got {', '.join(names) or 'none'} "
            f"and {len(psds)} PSDs"
        )
    first = strains[0]
    if first.rate < 2 * BAND[1]:
        raise ValueError(f"rate: expected at least {2 * BAND[1]:g} Hz, got {first.rate:g} Hz")
    wanted = trigger + post_trigger - duration
    start = first.start + round((wanted - first.start) * first.rate) / first.rate
    frequencies, series = network_series(strains, start, duration, roll_off=roll_off, reference=trigger)
    band = in_band(frequencies, *BAND)
    values = torch.stack([psd.at(frequencies[band]) for psd in psds])
    whitened = torch.stack([whiten(d, s, duration) for d, s in zip(series[:, band], values, strict=True)])
    return Event(whitened, (psds[0], psds[1]), trigger, duration)


def check_psd(version: str, psds: Sequence[PSD]) -> None:
    """Raise unless a simulator of this version has the noise of these PSDs: a network belongs to one pair.

    Args:
        version: `Binary.version`, or of a trained model `posterior.info.simulator_version`.
    """
    expected, got = version.split("-")[1:], [psd.digest() for psd in psds]
    if expected != got:
        names = ", ".join(psd.name for psd in psds)
        raise ValueError(
            f"PSDs: expected those that the simulator was made for ({', '.join(expected)}), got {names} "
            f"({', '.join(got)}): a network knows the noise of one pair of PSDs only"
        )


def _checked(theta: Tensor) -> Tensor:
    values = as_tensor(theta, "theta", torch.float64).cpu()
    check_shape(values, "theta", ("n", DIM))
    return values
