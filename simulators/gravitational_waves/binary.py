"""Black-hole binaries as seen by one or several detectors: the simulator of the gravitational-wave setups.

What is expensive, the whitened waveform of masses and spins, is stored as coefficients in a reduced basis. What is
cheap, where the source is and when it merges, multiplies it by one complex number per detector and shifts it: it is
drawn anew for every training batch, and so is the noise. An observation is whitened strain in the frame of its own
matched filter (`alignment`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from sbiflow.checks import check_shape
from sbiflow.priors import Prior
from sbiflow.structure import Anchor, Structure
from simulators.gravitational_waves.alignment import MatchedFilter, Pose, shift
from simulators.gravitational_waves.basis import ReducedBasis
from simulators.gravitational_waves.likelihood import log_likelihood

DISTANCE = 1000.0  # Mpc: stored waveforms are of order 1 in float32
_ROWS = 512  # waveforms at a time: what a core's cache holds
_BASIS_DRAWS, _BASIS_CHECKS, _BASIS_SEED = 3000, 1000, 0x6277


class Projection(NamedTuple):
    """What detectors make of a waveform: complex factors (n, I) for 1 Mpc, and arrival times [s] (n, I)."""

    factor: Tensor
    delay: Tensor


@dataclass(frozen=True, eq=False)
class Binary:
    """A `Simulator` of black-hole binaries.

    Attributes:
        name, version: as stores and models record them; the version tells the noise by its digest.
        prior: D parameters.
        extrinsic: those that the waveform does not depend on.
        frequencies: of x, (F,) [Hz].
        waveform: theta (n, D) -> whitened h22 of I detectors at 1 Mpc, (n, I, F) complex128.
        geometry: theta (n, D) -> factors and delays.
        basis: of each detector's waveforms.
        search: the matched filter.
        anchored: columns of the parameters that time and phase of the first detector estimate.
        phase_periods: h22 turns by so many times the phase's base-space column.
        swap: see `Structure`.
    """

    name: str
    version: str
    prior: Prior
    extrinsic: tuple[str, ...]
    frequencies: Tensor
    waveform: Callable[[Tensor], Tensor]
    geometry: Callable[[Tensor], Projection]
    basis: tuple[ReducedBasis, ...]
    search: MatchedFilter
    anchored: tuple[int, int]
    phase_periods: int = 1
    swap: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    @property
    def detectors(self) -> int:
        """Number of detectors, I."""
        return len(self.basis)

    @property
    def signal_shape(self) -> tuple[int, ...]:
        """Coefficients in the reduced basis, real and imaginary."""
        return (self.detectors, 2, self.basis[0].vectors.shape[1])

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Aligned whitened strain (I, 2, F), then the columns of `_columns`."""
        return (2 * self.detectors * len(self.frequencies) + 4 * self.detectors + 4,)

    @property
    def structure(self) -> Structure:
        """The filter's time and phase anchor two parameters."""
        first = 2 * self.detectors * len(self.frequencies) + 4 * self.detectors
        time, phase = self.anchored
        anchors = (Anchor(time, first, first + 1), Anchor(phase, first + 2, slopes=((time, first + 3),)))
        turns = ((phase, self.phase_periods),) if self.phase_periods > 1 else ()
        return Structure(anchors, self.swap, turns)

    def signal(self, theta: Tensor) -> Tensor:
        """Coefficients of the whitened waveform at `DISTANCE`, (n, D) -> (n, I, 2, K)."""
        blocks = []
        for rows in theta.split(_ROWS):
            h = self.waveform(rows) / DISTANCE
            c = torch.stack([b.coefficients(h[:, i]) for i, b in enumerate(self.basis)], 1)
            blocks.append(torch.stack([c.real, c.imag], 2))
        return torch.cat(blocks)

    def project(self, theta: Tensor, signal: Tensor) -> Tensor:
        """Whitened signal in the detectors, (n, D), (n, I, 2, K) -> (n, I, 2, F), in the dtype of `signal`."""
        factor, delay = self.geometry(theta)
        factor = DISTANCE * factor
        parts = []
        for i, basis in enumerate(self.basis):
            vectors = basis.vectors.to(signal.device)
            real = torch.cat([vectors.real.mT, -vectors.imag.mT]).to(signal.dtype)
            imaginary = torch.cat([vectors.imag.mT, vectors.real.mT]).to(signal.dtype)
            cosine, sine = (part[:, i, None].to(signal.dtype) for part in (factor.real, factor.imag))
            a, b = signal[:, i].unbind(1)
            turned = torch.cat([a * cosine - b * sine, a * sine + b * cosine], -1)
            parts.append(torch.stack([turned @ real, turned @ imaginary], 1))
        return shift(torch.stack(parts, 1), delay.to(signal.device), self.frequencies)

    def observe(self, projected: Tensor, generator: Generator | None) -> Tensor:
        """Whitened strain with noise, aligned, (n, I, 2, F) -> (n, *x_shape)."""
        noise = torch.randn(
            projected.shape, generator=generator, device=projected.device, dtype=projected.dtype
        )
        return self.prepare(projected + noise)

    def noiseless(self, projected: Tensor) -> Tensor:
        """The same without noise."""
        return self.prepare(projected)

    def prepare(self, strain: Tensor) -> Tensor:
        """x of whitened strain (n, I, 2, F), n observations' real and imaginary parts at `frequencies`.

        Raises:
            ValueError: another number of detectors or frequencies (another sampling rate or duration).
        """
        check_shape(strain, "strain", ("n", self.detectors, 2, len(self.frequencies)))
        aligned, pose = self.search.align(strain)
        return torch.cat([aligned.flatten(1), self._columns(pose)], -1)

    def strain(self, x: Tensor) -> Tensor:
        """Whitened strain (n, I, 2, F) of x (n, *x_shape): the inverse of `prepare`."""
        size = 2 * self.detectors * len(self.frequencies)
        aligned = x[:, :size].unflatten(-1, (self.detectors, 2, -1))
        _, cosine, sine, time = x[:, size : size + 4 * self.detectors].chunk(4, -1)
        return self.search.restore(aligned, time * self.search.window, torch.atan2(sine, cosine))

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """ln p(strain | theta), normalised over the whitened strain (of which x is a turned and shifted copy)."""
        data = self.strain(x.reshape(-1, self.x_shape[0]).to(theta)).expand(len(theta), -1, -1, -1)
        pairs = zip(theta.split(_ROWS), data.split(_ROWS), strict=True)
        return torch.cat([self._log_likelihood(rows, own) for rows, own in pairs])

    def model(self, theta: Tensor) -> Tensor:
        """Whitened signal in the detectors without the reduced basis, (n, D) -> (n, I, F) complex128."""
        factor, delay = self.geometry(theta)
        cycles = delay[..., None] * self.frequencies
        return self.waveform(theta) * factor[..., None] * torch.exp(-2j * math.pi * cycles)

    def _log_likelihood(self, theta: Tensor, data: Tensor) -> Tensor:
        series = torch.complex(*data.unbind(2))
        return log_likelihood(series.flatten(1), self.model(theta).flatten(1))

    def _columns(self, pose: Pose) -> Tensor:
        """What the filter found, (n, 4 I + 4): log-SNR, cosine, sine, time of each detector; then the anchors'.

        Expected errors (Cramér and Rao): 1 / (2π σ_f ρ) for the time, with σ_f the spread of frequency in the signal;
        the phase at the mean frequency does not depend on the time to first order, hence the slope.
        """
        mean, spread = self.search.moments
        time = self.anchored[0]
        low, high = (float(edge[time]) for edge in (self.prior.low, self.prior.high))
        rho = pose.snr[:, 0].clamp(min=4.0)
        error = 1 / (2 * math.pi * spread * rho)
        inside = pose.time[:, 0].double().clamp(low + 1e-3 * (high - low), high - 1e-3 * (high - low))
        z = torch.special.ndtri((inside - low) / (high - low))
        stretch = math.sqrt(2 * math.pi) / (high - low) * torch.exp(0.5 * z * z)  # dz / dt of a uniform prior
        # base space has a phase's zero in the middle of its interval
        turned = pose.phase[:, 0] - math.pi * self.phase_periods
        anchors = [z.to(rho), torch.log(error * stretch.to(rho)), turned, 2 * math.pi * mean * error]
        own = [torch.log(pose.snr.clamp(min=1e-3)), torch.cos(pose.phase), torch.sin(pose.phase)]
        own.append(pose.time / self.search.window)
        return torch.cat([*own, torch.stack(anchors, -1)], -1)


def fit_bases(waveform: Callable[[Tensor], Tensor], prior: Prior, count: int) -> tuple[ReducedBasis, ...]:
    """A reduced basis of the waveforms of prior draws for each detector, with its worst mismatch on others.

    In a corner of the prior where few draws fall it may be a thousand times that (2e-5 for 35 + 35 solar masses in
    setup (a)). Training alone uses it; likelihoods use the waveforms.
    """
    draws = prior.sample(_BASIS_DRAWS + _BASIS_CHECKS, torch.Generator().manual_seed(_BASIS_SEED))
    found = torch.cat([waveform(rows) for rows in draws.split(_ROWS)])
    return tuple(
        ReducedBasis.fit(found[:_BASIS_DRAWS, i], count=count, held_out=found[_BASIS_DRAWS:, i])
        for i in range(found.shape[1])
    )


def unit_templates(waveform: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """Normalised templates (I, K, F) of parameters (K, D)."""
    found = waveform(theta).transpose(0, 1)
    return found / found.abs().square().sum(-1, keepdim=True).sqrt()
