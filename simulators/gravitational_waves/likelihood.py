"""The Whittle likelihood and signal-to-noise ratios of whitened frequency series.

A series is whitened by d_w(f) = d~(f) sqrt(4 Δf / S(f)), so that the noise-weighted inner product of Finn (1992,
arXiv gr-qc/9209010, eq. 2.4; here complex, its real part is Finn's)

    <a|b> = 4 Δf sum_f conj(a~) b~ / S = sum_f conj(a_w) b_w

is a plain sum, and the real and imaginary parts of whitened Gaussian noise are independent N(0, 1). The density of
these 2 F numbers is

    ln L = -1/2 sum_f |d_w - h_w|^2 - F ln 2π.

Several detectors are one series: join their bins along the last dimension. bilby's log-likelihood leaves out
F ln 2π for every detector; likelihood ratios are the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbiflow.checks import check_shape

LOG_2PI = math.log(2 * math.pi)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a|b>, complex: whitened (..., F) and (..., F), leading dimensions broadcast -> (...)."""
    _check_bins(a, b)
    return (a.to(torch.complex128).conj() * b).sum(-1)


def log_likelihood(data_w: Tensor, model_w: Tensor) -> Tensor:
    """ln L, normalised over the data: whitened data (F,) or (n, F), whitened model (n, F) -> (n,), float64."""
    check_shape(model_w, "model_w", ("n", "F"))
    if data_w.ndim != 1:
        check_shape(data_w, "data_w", tuple(model_w.shape))
    _check_bins(data_w, model_w)
    return log_noise_evidence(data_w.to(torch.complex128) - model_w)


def log_noise_evidence(data_w: Tensor) -> Tensor:
    """ln L of noise alone: whitened (..., F) -> (...), float64."""
    _check_complex(data_w, "data_w")
    return -0.5 * _power(data_w) - data_w.shape[-1] * LOG_2PI


def optimal_snr(model_w: Tensor) -> Tensor:
    """sqrt <h|h>: whitened model (..., F) -> (...), float64."""
    _check_complex(model_w, "model_w")
    return _power(model_w).sqrt()


def matched_filter_snr(data_w: Tensor, model_w: Tensor) -> Tensor:
    """<h|d> / sqrt <h|h>, complex as in bilby; its modulus is the SNR maximised over the model's phase.

    Shapes:
        whitened data (..., F), whitened model (..., F), leading dimensions broadcast -> (...)
    """
    return inner(model_w, data_w) / optimal_snr(model_w)


def _power(series: Tensor) -> Tensor:
    return torch.view_as_real(series.to(torch.complex128).resolve_conj()).square().sum((-2, -1))


def _check_complex(series: Tensor, name: str) -> None:
    if not series.is_complex() or series.ndim == 0:
        raise ValueError(
            f"{name}: expected complex of shape (..., F), got {series.dtype} {tuple(series.shape)}"
        )


def _check_bins(a: Tensor, b: Tensor) -> None:
    _check_complex(a, "first series")
    _check_complex(b, "second series")
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"series: expected the same number of bins, got {a.shape[-1]} and {b.shape[-1]}")
