"""Measured strain: reading GWOSC files, Fourier series of segments, whitened time series for figures.

The Fourier transform of a segment of n samples from t_start on is h(f) = dt FFT = dt sum_j w_j h_j e^{-2 pi i f j dt}
with the window w. Its phases count time from t_start; with a reference time, from there:

    h_ref(f) = h(f) e^{+2 pi i f (t_ref - t_start)},

so that an impulse at t_ref has phase 0. What windows do to the likelihood is in noise.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from sbiflow.checks import check_shape
from simulators.gravitational_waves.noise import tukey, whole_samples
from simulators.gravitational_waves.strain import Strain, span

ROLL_OFF = 0.4
"""Length [s] of each ramp of the Tukey window, usual for segments of 4 and 8 s."""

QUALITY = ("DATA", "CBC_CAT1", "CBC_CAT2")
"""Flags that every second needs: data there, no severe fault, no disturbance of a known kind. CBC_CAT3 is a
statistical warning."""


def read_gwosc(
    path: str | Path,
    *,
    start: float | None = None,
    duration: float | None = None,
    quality: Sequence[str] = QUALITY,
) -> Strain:
    """Read a strain file of the Gravitational Wave Open Science Center (HDF5).

    Args:
        path: the file.
        start, duration: GPS time and length [s] of the part to read; all of it if not given. Only this part has to
            be complete and of good quality.
        quality: flags of `quality/simple` that every second must have, if the file has flags.

    Raises:
        ValueError: not a complete HDF5 file, no strain in it, samples missing or NaN, or seconds without a flag.
        FileNotFoundError: no such file.
    """
    try:
        with h5py.File(path, "r") as file:
            values, rate, begin, name = _contents(file, path)
            mask, names = _flags(file)
    except FileNotFoundError:  # h5py's text is three lines of its own
        raise FileNotFoundError(f"{path}: expected a strain file, got no such file") from None
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path}: expected a complete HDF5 file, got {error}") from None
    first_time = begin if start is None else start
    length = begin + len(values) / rate - first_time if duration is None else duration
    first, n = span(str(path), (begin, rate, len(values)), first_time, length)
    _check_quality(mask, names, quality, (begin, first_time, length), path)
    try:
        return Strain(name, begin + first / rate, rate, torch.from_numpy(values[first : first + n]))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_together(strains: Sequence[Strain]) -> None:
    """Raise unless strains can be analysed as one network: at least one, one rate, every detector once."""
    if not strains:
        raise ValueError("strains: expected at least one, got none")
    first = strains[0]
    for other in strains[1:]:
        if other.rate != first.rate:
            raise ValueError(
                f"{other.detector}: expected a sampling rate of {first.rate:g} Hz, as {first.detector} has, "
                f"got {other.rate:g} Hz"
            )
    names = [strain.detector for strain in strains]
    if len(set(names)) < len(names):
        raise ValueError(f"strains: expected every detector once, got {', '.join(names)}")


def frequency_series(
    strain: Strain,
    start: float,
    duration: float,
    *,
    roll_off: float = ROLL_OFF,
    reference: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The Fourier transform of a segment.

    Args:
        strain: what contains the segment.
        start: GPS time [s] of its first sample.
        duration: T [s].
        roll_off: length [s] of each ramp of the Tukey window; 0 for none.
        reference: GPS time [s] from which phases count; the segment's start if not given.

    Returns:
        Frequencies k / T [Hz], (n // 2 + 1,) from 0 to the Nyquist frequency, and the series [1/Hz], complex128.

    Raises:
        ValueError: not inside the strain, not on its samples, or a window longer than the segment.
    """
    part = strain.segment(start, duration)
    if not 0 <= 2 * roll_off <= duration:
        raise ValueError(f"roll_off: expected 0 to {duration / 2:g} s, got {roll_off} s")
    window = tukey(len(part.values), 2 * roll_off / duration)
    frequencies = torch.arange(len(part.values) // 2 + 1, dtype=torch.float64) / duration
    series = torch.fft.rfft(window * part.values) / strain.rate
    return frequencies, shift(series, frequencies, 0.0 if reference is None else part.start - reference)


def network_series(
    strains: Sequence[Strain],
    start: float,
    duration: float,
    *,
    roll_off: float = ROLL_OFF,
    reference: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`frequency_series` of one segment of several detectors: frequencies (n // 2 + 1,), series (I, n // 2 + 1)."""
    check_together(strains)
    both = [frequency_series(one, start, duration, roll_off=roll_off, reference=reference) for one in strains]
    return both[0][0], torch.stack([series for _, series in both])


def shift(series: Tensor, frequencies: Tensor, delay: float) -> Tensor:
    """A series delayed by `delay` [s]: times e^{-2 pi i f delay}."""
    return series * torch.polar(torch.ones_like(frequencies), -2 * math.pi * delay * frequencies)


def in_band(frequencies: Tensor, low: float, high: float) -> Tensor:
    """Mask of low <= f < high.

    Raises:
        ValueError: none of the frequencies is in the band.
    """
    mask = (frequencies >= low) & (frequencies < high)
    if not bool(mask.any()):
        raise ValueError(f"band: expected low <= f < high for some frequency, got {low} to {high} Hz")
    return mask


def whitened_time_series(
    whitened: Tensor, frequencies: Tensor, rate: float, duration: float, *, start: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Whitened strain against time, band-passed to the given frequencies.

    White noise over the whole band has variance 1 per sample; F of the n / 2 bins leave it 2 F / n.

    Args:
        whitened: (..., F) as of `noise.whiten`.
        frequencies: (F,) [Hz], multiples of 1 / duration between 0 and the Nyquist frequency, both left out.
        rate: of the result [Hz].
        duration: T [s].
        start: time [s] of the segment's start after the time from which the phases of `whitened` count.

    Returns:
        Times [s] (n,), counted as `start` is, and values (..., n).

    Raises:
        ValueError: frequencies that are no such multiples.
    """
    n = whole_samples(duration, rate, "duration")
    check_shape(frequencies, "frequencies", (whitened.shape[-1],))
    bins = (frequencies * duration).round().long()
    off_grid = (frequencies * duration - bins).abs().max() > 1e-6
    if bool(off_grid) or not bool(((bins > 0) & (2 * bins < n)).all()):
        raise ValueError(
            f"frequencies: expected multiples of {1 / duration:g} Hz above 0 and below {rate / 2:g} Hz, "
            f"got {float(frequencies.min()):g} to {float(frequencies.max()):g} Hz"
        )
    spectrum = whitened.new_zeros((*whitened.shape[:-1], n // 2 + 1))
    spectrum[..., bins] = shift(whitened, frequencies, -start) * math.sqrt(n / 2)
    times = start + torch.arange(n, dtype=torch.float64, device=whitened.device) / rate
    return times, torch.fft.irfft(spectrum, n)


def _contents(file: h5py.File, path: str | Path) -> tuple[np.ndarray, float, float, str]:
    """Samples, rate, GPS start, and the detector's name."""
    for needed in ("strain/Strain", "meta/GPSstart", "meta/Detector"):
        if needed not in file:
            raise ValueError(
                f"{path}: expected the dataset {needed} (GWOSC), got only {', '.join(_datasets(file))}"
            )
    strain = file["strain/Strain"]
    step = strain.attrs.get("Xspacing")
    if strain.ndim != 1 or step is None or not step > 0:
        raise ValueError(
            f"{path}: expected a series with Xspacing > 0, got shape {strain.shape} and spacing {step}"
        )
    rate, start = _whole(1 / float(step)), float(file["meta/GPSstart"][()])
    values = np.asarray(strain[()], dtype=np.float64)
    if "meta/Duration" in file and len(values) != round(float(file["meta/Duration"][()]) * rate):
        raise ValueError(
            f"{path}: expected {file['meta/Duration'][()]} s at {rate:g} Hz, got {len(values)} samples"
        )
    return values, rate, start, str(file["meta/Detector"].asstr()[()])


def _whole(rate: float) -> float:
    """Rates are whole numbers, whose inverses files hold rounded."""
    return float(round(rate)) if abs(rate - round(rate)) < 1e-6 * rate else rate


def _flags(file: h5py.File) -> tuple[np.ndarray, list[str]]:
    """Data quality, one bit mask per second, and the names of its bits; empty if the file has none."""
    if "quality/simple/DQmask" not in file or "quality/simple/DQShortnames" not in file:
        return np.zeros(0, dtype=np.int64), []
    names = [bytes(name).decode() for name in file["quality/simple/DQShortnames"][()]]
    return np.asarray(file["quality/simple/DQmask"][()], dtype=np.int64), names


def _check_quality(
    mask: np.ndarray,
    names: Sequence[str],
    wanted: Sequence[str],
    part: tuple[float, float, float],
    path: str | Path,
) -> None:
    """Raise where a second of the part (file's start, part's start, length) lacks a flag."""
    if not names:
        return
    begin, start, length = part
    first, last = math.floor(start - begin), math.ceil(start + length - begin)
    for flag in wanted:
        if flag not in names:
            raise ValueError(f"{path}: expected the quality flag {flag}, got {', '.join(names)}")
        bad = np.flatnonzero((mask[first:last] >> names.index(flag)) & 1 == 0) + first
        if len(bad):
            raise ValueError(
                f"{path}: expected {flag} throughout, got {len(bad)} seconds without it "
                f"between GPS {begin + bad[0]:.0f} and {begin + bad[-1] + 1:.0f}"
            )


def _datasets(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found
