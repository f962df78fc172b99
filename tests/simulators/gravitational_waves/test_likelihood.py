"""Whittle likelihood and signal-to-noise ratios of whitened series."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from simulators.gravitational_waves.likelihood import (
    inner,
    log_likelihood,
    log_noise_evidence,
    matched_filter_snr,
    optimal_snr,
)


def series(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.view_as_complex(torch.randn(*shape, 2, generator=generator, dtype=torch.float64))


def test_is_the_density_of_independent_normal_numbers() -> None:
    data, model = series(7), series(3, 7, seed=2)
    residual = torch.view_as_real(data - model).numpy()
    want = stats.norm.logpdf(residual).sum((1, 2))
    assert log_likelihood(data, model).numpy() == pytest.approx(want, rel=1e-13)
    assert float(log_noise_evidence(data)) == pytest.approx(
        stats.norm.logpdf(torch.view_as_real(data)).sum(), rel=1e-13
    )


def test_one_observation_for_all_rows_or_one_each() -> None:
    data, model = series(4, 6), series(4, 6, seed=2)
    each = torch.cat([log_likelihood(data[i], model[i : i + 1]) for i in range(4)])
    assert torch.equal(log_likelihood(data, model), each)
    assert log_likelihood(data[0], model[:0]).shape == (0,)


def test_ratio_is_the_inner_products() -> None:
    data, model = series(6), series(5, 6, seed=2)
    ratio = log_likelihood(data, model) - log_noise_evidence(data)
    want = inner(model, data).real - optimal_snr(model).square() / 2
    assert torch.allclose(ratio, want, rtol=1e-12, atol=1e-12)


def test_snr_of_a_signal_without_noise_turns_with_its_phase() -> None:
    model = series(6)
    turned = model * torch.polar(torch.tensor(2.0), torch.tensor(0.7)).to(model)
    snr = matched_filter_snr(turned, model)
    assert float(snr.abs()) == pytest.approx(float(optimal_snr(turned)), rel=1e-6)
    assert float(snr.angle()) == pytest.approx(0.7, rel=1e-6)


def test_matched_filter_noise_has_unit_variance_per_quadrature() -> None:
    snr = matched_filter_snr(series(20_000, 8), series(8, seed=3))
    for part in (snr.real, snr.imag):
        assert stats.kstest(part.numpy(), "norm").pvalue > 1e-4  # false-alarm rate


def test_single_precision_is_summed_in_double() -> None:
    data, model = series(500).to(torch.complex64), series(2, 500, seed=2).to(torch.complex64)
    got = log_likelihood(data, model)
    want = log_likelihood(data.to(torch.complex128), model.to(torch.complex128))
    assert got.dtype == torch.float64
    assert torch.equal(got, want)


def test_gradient_flows_to_the_model() -> None:
    data, model = series(5), series(2, 5, seed=2).requires_grad_()
    (gradient,) = torch.autograd.grad(log_likelihood(data, model).sum(), model)
    assert torch.allclose(gradient, data - model, atol=1e-14)


def test_errors_name_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"model_w: expected shape \(n, F\)"):
        log_likelihood(series(5), series(5))
    with pytest.raises(ValueError, match=r"data_w: expected shape \(3, 5\)"):
        log_likelihood(series(2, 5), series(3, 5))
    with pytest.raises(ValueError, match="same number of bins, got 4 and 5"):
        log_likelihood(series(4), series(3, 5))
    with pytest.raises(ValueError, match="expected complex"):
        log_noise_evidence(torch.zeros(5))
    assert float(log_noise_evidence(series(0))) == -0.0 * math.pi
