"""Detector noise: power spectral densities, whitening, Gaussian noise, windows, and Welch's estimate.

Conventions. S(f) is one-sided, in 1/Hz for strain: the variance of a time series is the integral of S over f > 0.
The Fourier transform of T seconds of noise, n(f) = dt FFT, has E |n(f)|^2 = T S(f) / 2. Whitened it is

    n_w(f) = n(f) sqrt(4 df / S(f)),   df = 1 / T,

whose real and imaginary part are independent N(0, 1); the inner product of two series, 4 Re sum conj(a) b df / S
(Finn 1992, arXiv gr-qc/9209010), is Re sum conj(a_w) b_w.

Windows. A window is applied to the data and to nothing else: neither series nor PSD are rescaled by its mean power.
That leaves the posterior unbiased where the window does not touch the signal, whereas scaling the PSD biases it;
the absolute likelihood is off, since the windowed noise has the mean power of the window, 0.94 for 8 s and a roll-off
of 0.4 s (Talbot et al. 2025, arXiv 2508.11091; bilby 2.8 does the same). Welch's estimate, which has only noise,
is normalised by the power of its own window.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy import signal
from torch import Tensor

from sbiflow.checks import as_tensor, check_count, check_finite, check_positive, check_shape

_NO_DATA = 1e25
"""A value that exceeds the smallest by this factor stands for "not measured": estimates from strain span 1e15, up to
1e24 if it was decimated, and a placeholder such as 1 is 1e46 away. The smallest, since placeholders can be most of
a file."""

_DESIGN_FREQUENCY = 245.48  # [Hz]


@dataclass(frozen=True, eq=False)
class PSD:
    """A one-sided power spectral density.

    Values that are not finite, not positive or placeholders (1e25 times the smallest or more) are kept and only
    reported when a band that needs them is asked for.

    Attributes:
        frequencies: (n,) float64 [Hz], ascending, >= 0.
        values: (n,) float64 [1/Hz].
        name: what it is, for messages and figures.

    Raises:
        ValueError: other shapes, frequencies that do not ascend, or no usable value.
    """

    frequencies: Tensor
    values: Tensor
    name: str = "PSD"

    def __post_init__(self) -> None:
        check_shape(self.frequencies, f"{self.name}: frequencies", ("n",))
        check_shape(self.values, f"{self.name}: values", (len(self.frequencies),))
        check_finite(self.frequencies, f"{self.name}: frequencies")
        object.__setattr__(self, "frequencies", self.frequencies.double().cpu())
        object.__setattr__(self, "values", self.values.double().cpu())
        steps = self.frequencies.diff()
        if len(steps) < 1 or not bool((steps > 0).all()) or not self.frequencies[0] >= 0:
            raise ValueError(f"{self.name}: expected two or more frequencies, ascending from >= 0 Hz")
        if not bool(self._usable().any()):
            raise ValueError(f"{self.name}: expected finite values > 0, got none")

    @classmethod
    def from_file(cls, path: str | Path, name: str | None = None) -> PSD:
        """Read a text file with the columns frequency [Hz] and density [1/Hz]; # begins a comment.

        Raises:
            ValueError: not two columns of numbers.
        """
        try:
            table = np.loadtxt(path, dtype=np.float64, ndmin=2)
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: expected two columns of numbers, got {error}") from None
        if table.shape[1:] != (2,):
            raise ValueError(f"{path}: expected two columns (frequency, density), got shape {table.shape}")
        columns = torch.from_numpy(table.T.copy())
        return cls(columns[0], columns[1], Path(path).name if name is None else name)

    @classmethod
    def design(cls, frequencies: Any) -> PSD:
        """A fit to Advanced LIGO's design (zero detuning, high power) at frequencies (n,) > 0 [Hz].

        Ajith 2011 (arXiv 1107.1267), with x = f / 245.48 Hz. Copies of the fit in other codes have 245.4 Hz, which
        changes S by 0.13 % at most (below 20 Hz) and by less than 0.06 % from 50 to 2000 Hz.
        """
        f = as_tensor(frequencies, "frequencies", torch.float64)
        if not bool((f > 0).all()):
            raise ValueError(f"frequencies: expected values > 0 Hz, got {float(f.min())} as the smallest")
        x = f / _DESIGN_FREQUENCY
        shape = 0.0152 * x**-4 + 0.2935 * x**2.25 + 2.7951 * x**1.5 - 6.5080 * x**0.75 + 17.7622
        return cls(f, 1e-48 * shape, "aLIGO design")

    def at(self, frequencies: Any) -> Tensor:
        """S [1/Hz] at frequencies (F,) [Hz], by linear interpolation -> (F,) float64.

        Raises:
            ValueError: a frequency outside the table, or next to a value that is not usable.
        """
        f = as_tensor(frequencies, "frequencies", torch.float64).cpu()
        check_shape(f, "frequencies", ("F",))
        first, last = float(self.frequencies[0]), float(self.frequencies[-1])
        if len(f) and not bool(((f >= first) & (f <= last)).all()):
            raise ValueError(
                f"{self.name}: expected frequencies in [{first:g}, {last:g}] Hz, "
                f"got {float(f.min()):g} to {float(f.max()):g}"
            )
        right = torch.searchsorted(self.frequencies, f).clamp(min=1)
        left = right - 1
        weight = (f - self.frequencies[left]) / (self.frequencies[right] - self.frequencies[left])
        usable = self._usable()
        bad = (~usable[left] & (weight < 1)) | (~usable[right] & (weight > 0))
        if bool(bad.any()):
            raise ValueError(
                f"{self.name}: expected finite values > 0 in the band, got {int(bad.sum())} frequencies without, "
                f"{float(f[bad].min()):g} to {float(f[bad].max()):g} Hz"
            )
        return torch.lerp(self._clean(left), self._clean(right), weight)

    def digest(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the numbers (not the name)."""
        numbers = torch.stack([self.frequencies, self.values]).numpy().astype("<f8")
        return hashlib.sha256(numbers.tobytes()).hexdigest()[:16]

    def _usable(self) -> Tensor:
        positive = self.values.isfinite() & (self.values > 0)
        smallest = torch.where(positive, self.values, math.inf).min()
        return positive & (self.values < _NO_DATA * smallest)

    def _clean(self, rows: Tensor) -> Tensor:
        """Values with 0 for the unusable ones, which have weight 0 (0 times inf is NaN)."""
        return torch.where(self._usable(), self.values, 0.0)[rows]


def whiten(series: Tensor, psd_values: Tensor, duration: float) -> Tensor:
    """Frequency series (..., F) [1/Hz] -> whitened, dimensionless; S (F,) at the same frequencies, T = duration [s]."""
    return series * _scale(series, psd_values, duration)


def unwhiten(whitened: Tensor, psd_values: Tensor, duration: float) -> Tensor:
    """The inverse of `whiten`."""
    return whitened / _scale(whitened, psd_values, duration)


def coloured_noise(
    psd_values: Tensor, duration: float, shape: tuple[int, ...] = (), generator: torch.Generator | None = None
) -> Tensor:
    """Gaussian noise of a segment, S (F,) -> (*shape, F) complex128 [1/Hz], on the device of S.

    For bins between 0 and the Nyquist frequency (the transform at those two is real).
    """
    size = (*shape, *psd_values.shape, 2)
    parts = torch.randn(size, generator=generator, dtype=torch.float64, device=psd_values.device)
    return unwhiten(torch.view_as_complex(parts), psd_values, duration)


def tukey(n: int, alpha: float) -> Tensor:
    """Tukey window of n samples, (n,) float64: cosine ramps over the fraction alpha in all, symmetric as in bilby.

    Raises:
        ValueError: alpha outside [0, 1].
    """
    check_count(n, "n")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected 0 <= alpha <= 1, got {alpha}")
    return torch.from_numpy(signal.windows.tukey(n, alpha))


def welch(
    strain: Any,
    rate: float,
    segment: float,
    *,
    overlap: float = 0.5,
    window: str | tuple[str, float] = "hann",
    average: Literal["median", "mean"] = "median",
    name: str = "Welch estimate",
) -> PSD:
    """Power spectral density of a time series (n,) sampled at `rate` [Hz], from segments of `segment` [s].

    Each segment loses its mean and is windowed; the periodograms, 2 |dt FFT|^2 / (dt sum w^2), are averaged. The
    median (robust against transients) is divided by its bias for as many independent segments as there are
    (Allen et al. 2012, arXiv gr-qc/0509116, App. B). Overlapping segments depend on each other, which leaves a bias
    of the median of about 1 % for 15 segments and less for more. The bins 0 and Nyquist, real and thus of
    another distribution, are inf: not estimated.

    Args:
        overlap: fraction of a segment that is shared with the next.
        window: a name of `scipy.signal.get_window`, or ("tukey", alpha).

    Raises:
        ValueError: NaN, a segment that is no whole number of samples or longer than the series, a wrong overlap.
    """
    values = as_tensor(strain, "strain", torch.float64)
    check_shape(values, "strain", ("n",))
    check_finite(values, "strain")
    n = whole_samples(segment, rate, "segment")
    if n > len(values):
        raise ValueError(f"segment: expected at most {len(values) / rate:g} s (the series), got {segment} s")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap: expected 0 <= overlap < 1, got {overlap}")
    if average not in ("median", "mean"):
        raise ValueError(f"average: expected median or mean, got {average!r}")
    shared = min(int(overlap * n), n - 1)
    frequencies, density = signal.welch(
        values.cpu().numpy(), rate, window, n, shared, detrend="constant", average=average
    )
    density[0] = math.inf
    density[-1] = density[-1] if n % 2 else math.inf
    return PSD(torch.from_numpy(frequencies), torch.from_numpy(density), name)


def whole_samples(seconds: float, rate: float, name: str) -> int:
    """The number of samples of a duration; ValueError unless it is a whole number >= 2."""
    check_positive(rate, "rate")
    n = round(seconds * rate) if math.isfinite(seconds * rate) else 0
    if n < 2 or abs(n - seconds * rate) > 1e-6:
        raise ValueError(f"{name}: expected a whole number of samples at {rate} Hz, got {seconds} s")
    return n


def _scale(series: Tensor, psd_values: Tensor, duration: float) -> Tensor:
    """sqrt(4 df / S)"""
    check_positive(duration, "duration")
    check_shape(psd_values, "psd_values", (series.shape[-1],))
    if psd_values.dtype != torch.float64:  # in single precision 1e-46 is 0
        raise ValueError(f"psd_values: expected float64, got {psd_values.dtype}")
    return (4 / duration) ** 0.5 * psd_values.rsqrt()
