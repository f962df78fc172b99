"""Strain in the frame of its own matched filter.

A signal that arrives later is the same signal, shifted; one of another coalescence phase is the same, turned. A network
that has to learn this from examples spends most of its capacity on it. Here every observation is shifted and turned by
the time and phase of its own matched filter, and both numbers are handed on as columns of x: nothing is lost, since
whitened stationary noise is white whatever it is shifted by, and the likelihood is that of the shifted data.

The filter is a small bank of templates, each normalised. The time is where the sum of their squared signal-to-noise
ratios is largest, refined by a parabola; the phase that of the middle template there. It need not be the best
estimate, only one that moves with the signal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

_BAND = 300.0  # Hz: the filter's time is read from frequencies below; it need not be sharp


class Pose(NamedTuple):
    """Where and how the filter found a signal: time [s], phase [rad], signal-to-noise ratio; (n, I) each."""

    time: Tensor
    phase: Tensor
    snr: Tensor


@dataclass(frozen=True, eq=False)
class MatchedFilter:
    """A bank of templates for I detectors.

    Attributes:
        frequencies: (F,) [Hz].
        templates: whitened, (I, K, F) complex, sum of |.|^2 over F equal to 1; the middle one gives the phase.
        window: half-width of the search in time [s].
        light_travel: no two detectors' times may differ by more [s].
        step: of the search [s].
    """

    frequencies: Tensor
    templates: Tensor
    window: float
    light_travel: float = 0.0
    step: float = 2e-3
    times: Tensor = field(init=False)
    matrix: Tensor = field(init=False)
    band: int = field(init=False)

    def __post_init__(self) -> None:
        count = math.ceil(self.window / self.step)
        times = torch.linspace(-self.window, self.window, 2 * count + 1, dtype=torch.float64)
        band = self.frequencies <= _BAND
        turn = torch.exp(2j * math.pi * self.frequencies[band] * times[:, None])
        filters = self.templates[:, :, None, band].conj() * turn  # (I, K, T, B)
        # <u(t)|d> as a real matrix on (Re d, Im d), so that the search is one product
        real = torch.cat([filters.real, -filters.imag], -1)
        imaginary = torch.cat([filters.imag, filters.real], -1)
        matrix = torch.stack([real, imaginary], 1).flatten(1, 3)  # (I, 2 K T, 2 B)
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "band", int(band.sum()))

    @property
    def middle(self) -> Tensor:
        """The template of the phase, (I, F)."""
        return self.templates[:, self.templates.shape[1] // 2]

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of frequency in the first detector's middle template [Hz]."""
        power = self.middle[0].abs().square()
        mean = float((power * self.frequencies).sum())
        return mean, float((power * (self.frequencies - mean).square()).sum().sqrt())

    def align(self, strain: Tensor) -> tuple[Tensor, Pose]:
        """Whitened strain (n, I, 2, F), real and imaginary parts -> the same shifted and turned, and its pose."""
        time = self._time(strain)
        shifted = shift(strain, -time, self.frequencies)
        series = torch.complex(*shifted.unbind(2))
        found = torch.einsum("if,nif->ni", self.middle.conj().to(series), series)
        pose = Pose(time, torch.angle(found), found.abs())
        return turn(shifted, -pose.phase), pose

    def restore(self, aligned: Tensor, time: Tensor, phase: Tensor) -> Tensor:
        """The inverse of `align`: (n, I, 2, F), (n, I), (n, I) -> (n, I, 2, F)."""
        return shift(turn(aligned, phase), time, self.frequencies)

    def _time(self, strain: Tensor) -> Tensor:
        power = self._power(strain)
        times, best = self.times.to(power), power.argmax(-1)
        if power.shape[1] > 1:  # the louder detector says where the others may look
            loudest = power.amax(-1).argmax(-1)
            centre = times[best.gather(1, loudest[:, None])]
            near = (times - centre[..., None]).abs() <= self.light_travel + self.step
            best = torch.where(near, power, -1.0).argmax(-1)
        inner = best.clamp(1, len(times) - 2)
        left, peak, right = (power.gather(-1, (inner + k)[..., None])[..., 0] for k in (-1, 0, 1))
        curvature = (2 * peak - left - right).clamp(min=1e-6)
        moved = (0.5 * (right - left) / curvature).clamp(-1, 1)
        return times[inner] + (times[1] - times[0]) * moved

    def _power(self, strain: Tensor) -> Tensor:
        """Sum over the bank of the squared signal-to-noise ratio, (n, I, T)."""
        banded = strain[..., : self.band].flatten(2)  # (n, I, 2 B)
        found = torch.einsum("nib,irb->nir", banded, self.matrix.to(strain))
        return found.unflatten(-1, (-1, len(self.times))).square().sum(-2)


def shift(strain: Tensor, delay: Tensor, frequencies: Tensor) -> Tensor:
    """Delay (n, I) [s] of strain (n, I, 2, F)."""
    # the angle in float64: in float32 it loses what a large f t has before the comma
    cycles = delay[..., None].double() * frequencies.to(delay.device)
    angle = ((cycles - cycles.round()) * (-2 * math.pi)).to(strain.dtype)
    return _multiply(strain, torch.cos(angle), torch.sin(angle))


def turn(strain: Tensor, phase: Tensor) -> Tensor:
    """Multiply strain (n, I, 2, F) by e^{i phase}, phase (n, I)."""
    return _multiply(strain, torch.cos(phase)[..., None], torch.sin(phase)[..., None])


def _multiply(strain: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    real, imaginary = strain.unbind(-2)
    return torch.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], -2)
