"""Macroturbulence and instrumental profile: convolution with a kernel that differs from row to row.

Macroturbulence v_mac is the 1/e half-width [km/s] of a Gaussian distribution of velocities, so its kernel is
exp(-(x / d)^2), d = lambda v_mac / c: the same meaning as the Doppler width of a line.

With an instrument, the spectrum is computed on a fine grid of step h around the wanted wavelengths and the
integral is the trapezoidal rule, whose error falls exponentially with 1/h. The kernel of row r at distance
x is the Fourier series of the instrument's transfer function times that of the macroturbulence,

    K_r(x) = sum_f T(f) exp(-(pi d_r f)^2) exp(2 pi i f x) / period,   f = 0, +-1/period, ...

one matrix product for all rows and valid down to d = 0. Without an instrument the kernel may be arbitrarily
narrow; then every wavelength gets its own nodes x = d t, and the weights exp(-t^2) are the same for all rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

LIGHT = 299_792.458
"""Speed of light [km/s]."""

_REACH = 3.8  # where Gaussian kernels are cut, in 1/e half-widths: 8e-8 of their area lies beyond
_TRANSFER_FLOOR = 1e-10  # frequencies beyond which the transfer function stays below this are left out
_TRANSFER_EDGE = 1e-4  # what it may be at most at the highest frequency of the grid, 1 / (2 step)


class Instrument(Protocol):
    """A spectral transmission profile."""

    def reach(self, macro: float) -> float:
        """Distance [Å] beyond which it is negligible, with a Gaussian of 1/e half-width `macro` on top."""
        ...

    def transfer(self, frequency: np.ndarray) -> np.ndarray:
        """Fourier transform of the unit-area profile at frequencies [1/Å], complex."""
        ...


@dataclass(frozen=True)
class GaussianInstrument:
    """A Gaussian profile of a full width at half maximum [Å]."""

    fwhm: float

    def __post_init__(self) -> None:
        if not self.fwhm > 0:
            raise ValueError(f"instrument: expected a FWHM > 0, got {self.fwhm}")

    @property
    def _e_width(self) -> float:
        return self.fwhm / (2 * math.sqrt(math.log(2)))

    def reach(self, macro: float) -> float:
        return _REACH * math.hypot(self._e_width, macro)

    def transfer(self, frequency: np.ndarray) -> np.ndarray:
        return np.exp(-((math.pi * self._e_width * frequency) ** 2)) + 0j


@dataclass(frozen=True)
class TabulatedInstrument:
    """A measured profile: transmission (any scale) at increasing distances from the nominal wavelength [Å].

    Between the entries it is a cubic spline, outside it is zero; an asymmetric or shifted profile stays so. A
    positive distance means that light of a longer wavelength is let through.
    """

    distance: tuple[float, ...]
    transmission: tuple[float, ...]

    def __post_init__(self) -> None:
        x, t = np.asarray(self.distance, float), np.asarray(self.transmission, float)
        if x.ndim != 1 or x.shape != t.shape or len(x) < 4 or not (np.diff(x) > 0).all():
            raise ValueError("instrument: expected at least 4 increasing distances and as many transmissions")
        if not (np.isfinite(x).all() and np.isfinite(t).all() and np.trapezoid(t, x) > 0):
            raise ValueError("instrument: expected finite transmissions with a positive integral")

    def reach(self, macro: float) -> float:
        return max(abs(self.distance[0]), abs(self.distance[-1])) + _REACH * macro

    def transfer(self, frequency: np.ndarray) -> np.ndarray:
        x = np.linspace(self.distance[0], self.distance[-1], 4001)
        t = CubicSpline(self.distance, self.transmission)(x)
        t[[0, -1]] *= 0.5  # trapezoidal rule
        return np.exp(-2j * math.pi * np.multiply.outer(frequency, x)) @ t / t.sum()


class Broadening(Protocol):
    """Where the spectrum has to be known (at `n_nodes` places a row) and what the detector sees of it."""

    n_nodes: int

    def nodes(self, centre: float, v_mac: Tensor) -> Tensor:
        """Distances [Å] of the nodes from `centre`, (1 or n, M), for v_mac (n or 1, 1)."""
        ...

    def apply(self, spectrum: Tensor, v_mac: Tensor) -> Tensor:
        """(n, s, M) at the nodes -> (n, s, n_wavelengths)."""
        ...


class Unbroadened:
    """The spectrum as it is."""

    def __init__(self, wavelengths: Tensor) -> None:
        self._wavelengths = wavelengths
        self.n_nodes = len(wavelengths)

    def nodes(self, centre: float, v_mac: Tensor) -> Tensor:
        return (self._wavelengths - centre).to(v_mac)[None]

    def apply(self, spectrum: Tensor, v_mac: Tensor) -> Tensor:
        return spectrum


class ScaledNodes:
    """Macroturbulence alone: nodes at distances proportional to it around every wavelength."""

    def __init__(self, wavelengths: Tensor, v_mac_max: float, step: float) -> None:
        self._wavelengths = wavelengths
        widest = float(wavelengths.max()) * v_mac_max / LIGHT
        half = math.ceil(_REACH / min(0.5, step / widest))
        t = torch.linspace(-_REACH, _REACH, 2 * half + 1, dtype=torch.float64)
        weight = torch.exp(-t * t)
        self._weight = weight / weight.sum()
        self._reach = (wavelengths[:, None] / LIGHT * t).flatten()  # Å per km/s of v_mac
        self.n_nodes = len(self._reach)

    def nodes(self, centre: float, v_mac: Tensor) -> Tensor:
        start = (self._wavelengths - centre).repeat_interleave(len(self._weight))
        return start.to(v_mac) + self._reach.to(v_mac) * v_mac

    def apply(self, spectrum: Tensor, v_mac: Tensor) -> Tensor:
        return spectrum.unflatten(-1, (-1, len(self._weight))) @ self._weight.to(spectrum)


class FineGrid:
    """An instrument, and macroturbulence if there is any, on one fine grid for all rows."""

    def __init__(self, wavelengths: Tensor, instrument: Instrument, v_mac_max: float, step: float) -> None:
        lam = wavelengths.numpy()
        half = instrument.reach(lam.max() * v_mac_max / LIGHT)
        self._nodes = torch.from_numpy(_lattice(lam, half, step))
        self.n_nodes = len(self._nodes)
        frequency, transfer = _series(instrument, 2.1 * half, step)
        distance = self._nodes.numpy() - lam[:, None]
        phase = 2 * math.pi * frequency[:, None, None] * distance
        # light at distance x from the nominal wavelength is let through with T(x): series of T at x
        series = transfer.real[:, None, None] * np.cos(phase) - transfer.imag[:, None, None] * np.sin(phase)
        self._series = torch.from_numpy(series * (np.abs(distance) <= half))  # (F, n_wavelengths, M)
        self._damping = torch.from_numpy(
            (math.pi * frequency[:, None] * lam / LIGHT) ** 2
        )  # (F, n_wavelengths)

    def nodes(self, centre: float, v_mac: Tensor) -> Tensor:
        return (self._nodes - centre).to(v_mac)[None]

    def apply(self, spectrum: Tensor, v_mac: Tensor) -> Tensor:
        transfer = torch.exp(
            -self._damping.to(spectrum) * v_mac[..., None].square()
        )  # (n or 1, F, n_wavelengths)
        kernel = torch.einsum("nfj,fjm->njm", transfer, self._series.to(spectrum))
        return spectrum @ (kernel / kernel.sum(-1, keepdim=True)).mT


def _lattice(wavelengths: np.ndarray, half: float, step: float) -> np.ndarray:
    """Multiples of `step` (from the first wavelength) within `half` of a wavelength."""
    start = wavelengths.min() - half
    lattice = start + step * np.arange(math.ceil((wavelengths.max() + half - start) / step) + 1)
    near = (np.abs(lattice[:, None] - wavelengths) <= half).any(1)
    return lattice[near]


def _series(instrument: Instrument, period: float, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies n / period, n >= 0, and the coefficients of the profile's real Fourier series."""
    frequency = np.arange(math.ceil(0.5 * period / step) + 1) / period
    transfer = instrument.transfer(frequency)
    if abs(transfer[-1]) > _TRANSFER_EDGE:
        raise ValueError(f"grid_step: expected a smaller value for this narrow instrument, got {step} Å")
    transfer[1:] *= 2  # +f and -f
    count = int(np.flatnonzero(np.abs(transfer) > _TRANSFER_FLOOR).max()) + 1
    return frequency[:count], transfer[:count]


def broadening(
    wavelengths: Tensor, instrument: Instrument | None, v_mac_max: float, step: float
) -> Broadening:
    """The cheapest scheme for an instrument (or none) and macroturbulence up to v_mac_max [km/s]."""
    if instrument is None and v_mac_max == 0:
        return Unbroadened(wavelengths)
    if not step > 0:
        raise ValueError(
            f"grid_step: expected a value > 0, such as 0.4 of the smallest Doppler width, got {step}"
        )
    if not math.isfinite(v_mac_max):
        raise ValueError("v_mac: expected a prior with an upper bound")
    if instrument is None:
        return ScaledNodes(wavelengths, v_mac_max, step)
    return FineGrid(wavelengths, instrument, v_mac_max, step)
