"""A time series of measured strain: its segments, and the same at a lower rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import signal
from torch import Tensor

from sbiflow.checks import check_positive, check_shape
from simulators.gravitational_waves.noise import whole_samples

_ATTENUATION = 120.0  # [dB] of what would be folded back; the ripple in the pass band is as small, 1e-6
_PASS_BAND = 0.9  # of the new Nyquist frequency
_ON_GRID = 1e-3  # samples; GPS times near 1e9 s are good to 1e-7 s


@dataclass(frozen=True, eq=False)
class Strain:
    """A time series of one detector without gaps.

    Attributes:
        detector: its name, e.g. H1.
        start: GPS time [s] of the first sample.
        rate: samples per second [Hz].
        values: (n,) float64.

    Raises:
        ValueError: rate not positive, no samples, or samples that are NaN or infinite (how many, and when).
    """

    detector: str
    start: float
    rate: float
    values: Tensor

    def __post_init__(self) -> None:
        check_positive(self.rate, f"{self.detector}: rate")
        check_shape(self.values, f"{self.detector}: strain", ("n",))
        object.__setattr__(self, "values", self.values.double().cpu())
        missing = (~self.values.isfinite()).nonzero().flatten()
        if not len(self.values):
            raise ValueError(f"{self.detector}: expected strain, got no samples")
        if len(missing):
            raise ValueError(
                f"{self.detector}: expected strain without gaps, got {len(missing)} of {len(self.values)} samples NaN "
                f"or inf between GPS {self.start + int(missing[0]) / self.rate:.3f} "
                f"and {self.start + int(missing[-1] + 1) / self.rate:.3f}"
            )

    @property
    def duration(self) -> float:
        """[s]"""
        return len(self.values) / self.rate

    def segment(self, start: float, duration: float) -> Strain:
        """A part of it, from GPS time `start` on.

        Raises:
            ValueError: not inside the series, or not on its samples.
        """
        first, n = span(self.detector, (self.start, self.rate, len(self.values)), start, duration)
        return Strain(
            self.detector, self.start + first / self.rate, self.rate, self.values[first : first + n]
        )

    def decimated(self, rate: float) -> Strain:
        """The same strain at a lower rate [Hz], without shift in time.

        A Kaiser-windowed FIR filter of zero phase passes frequencies up to 0.9 of the new Nyquist frequency and holds
        back all that would be folded, from the new Nyquist frequency on, both to 1e-6 (120 dB). Samples that would
        need strain from outside are left out, 79 of the new rate at each end, so that every sample is exact: decimate
        first, then cut segments.

        Raises:
            ValueError: not a whole fraction of the present rate, or a series too short for the filter.
        """
        factor = round(self.rate / rate) if rate > 0 else 0
        if factor < 1 or abs(factor * rate - self.rate) > 1e-9 * self.rate:
            raise ValueError(f"rate: expected {self.rate:g} Hz or a whole fraction of it, got {rate} Hz")
        if factor == 1:
            return self
        taps = _anti_alias(factor)
        edge = len(taps) // 2 // factor  # samples of the new rate that the filter lacks at each end
        if len(self.values) < len(taps):
            raise ValueError(
                f"{self.detector}: expected at least {len(taps) / self.rate:.3f} s for the filter to {rate:g} Hz, "
                f"got {self.duration:.3f} s"
            )
        kept = signal.upfirdn(taps, self.values.numpy(), 1, factor)[2 * edge :]
        n = (len(self.values) - len(taps)) // factor + 1
        return Strain(
            self.detector, self.start + edge * factor / self.rate, rate, torch.from_numpy(kept[:n].copy())
        )


def span(name: str, series: tuple[float, float, int], start: float, duration: float) -> tuple[int, int]:
    """First sample and number of samples of a segment, in a series of (GPS start, rate [Hz], number of samples).

    Raises:
        ValueError: not inside the series, or not on its samples.
    """
    begin, rate, total = series
    n = whole_samples(duration, rate, "duration")
    offset = (start - begin) * rate
    first = round(offset) if math.isfinite(offset) else -1
    if first < 0 or first + n > total:
        raise ValueError(
            f"{name}: expected a segment inside GPS {begin:.3f} to {begin + total / rate:.3f}, "
            f"got {start:.3f} to {start + duration:.3f}"
        )
    if abs(offset - first) > _ON_GRID:
        raise ValueError(f"start: expected the time of a sample at {rate:g} Hz, got GPS {start:.6f}")
    return first, n


def _anti_alias(factor: int) -> np.ndarray:
    """Symmetric low-pass filter from 0.9 to 1 of the new Nyquist frequency; half its length divides by the factor."""
    least, beta = signal.kaiserord(_ATTENUATION, (1 - _PASS_BAND) / factor)
    half = factor * math.ceil(least / 2 / factor)
    cut = (1 + _PASS_BAND) / 2 / factor
    taps = signal.firwin(2 * half + 1, cut, window=("kaiser", beta))
    return np.asarray(taps, dtype=np.float64)
