"""The CRISP case: reading and scaling, its simulator, and the fit that the documentation states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits

from sbiflow.datasets import find
from simulators.crisp import (
    BEST_FIT,
    CONTINUUM_FACTOR,
    NOISE,
    WAVELENGTHS,
    CrispObservation,
    crisp_prior,
    crisp_simulator,
    load_crisp,
    synthetic_observation,
)
from tests.simulators import oracle


def write(path: Path, data: np.ndarray) -> Path:
    fits.writeto(path, data)
    return path


@pytest.fixture
def real() -> CrispObservation:
    try:
        return load_crisp(find("crisp/feobs.fits"))
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_load_scales_by_the_continuum(tmp_path: Path) -> None:
    data = np.array([[1.0, 2.0, 3.0], [4.0, 6.0, 5.0], [0.1, 0.3, -0.1], [0.2, -0.1, 0.4], [0.5, 0.5, 0.5]])
    path = write(tmp_path / "x.fits", data)
    seen = load_crisp(path)
    assert seen.wavelength.tolist() == [1.0, 2.0, 3.0]
    assert seen.continuum == pytest.approx(6 * CONTINUUM_FACTOR)
    assert (seen.stokes * seen.continuum).numpy() == pytest.approx(data[1:])
    far = np.array([0.3, -0.1, -0.1, 0.4])  # Q and U where I is 6 and 5
    assert seen.polarimetric_noise == pytest.approx(np.sqrt((far**2).mean()) / seen.continuum)
    assert load_crisp(path, continuum=2.0).stokes[0].tolist() == [2.0, 3.0, 2.5]


def test_load_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected 5 rows .* got shape \(4, 3\)"):
        load_crisp(write(tmp_path / "rows.fits", np.ones((4, 3))))
    data = np.ones((5, 3))
    data[2, 1] = np.nan
    with pytest.raises(ValueError, match="got 1 NaN"):
        load_crisp(write(tmp_path / "nan.fits", data))
    with pytest.raises(ValueError, match="continuum"):
        load_crisp(write(tmp_path / "dark.fits", np.zeros((5, 3))))


def test_simulator_has_the_documented_shape() -> None:
    simulator = crisp_simulator()
    assert simulator.x_shape == (4, 16) and simulator.prior.dim == len(BEST_FIT) == 11
    assert simulator.wavelengths.tolist() == list(WAVELENGTHS)
    assert tuple(simulator.noise[:, 0].tolist()) == NOISE
    assert crisp_simulator(noise_i=0.02, noise_pol=2e-3).noise[:, 5].tolist() == [0.02, 2e-3, 2e-3, 2e-3]
    assert simulator.signal(simulator.prior.sample(3)).dtype == torch.float32


def test_accuracy_over_the_prior() -> None:
    """float32 and float64 against brute-force convolution of the matrix solution, at the narrow corner too."""
    prior = crisp_prior()
    theta = prior.sample(12, torch.Generator().manual_seed(5))
    theta[:4, 4], theta[:4, 5], theta[2:4, 9] = (
        0.01501,
        199.0,
        0.01,
    )  # narrowest, strongest, no macroturbulence
    simulator = crisp_simulator()
    lam = simulator.wavelengths.numpy()
    want = []
    for row in theta.tolist():
        p = dict(zip(prior.names, row, strict=True))
        spread = np.hypot(lam * p["v_mac"] / oracle.LIGHT / np.sqrt(2), 0.055 / np.sqrt(8 * np.log(2)))
        stokes = oracle.broadened(lam, p, spread)
        stokes[3] += p["crosstalk"] * stokes[0]
        want.append(stokes)
    assert np.abs(simulator.signal(theta).numpy() - np.array(want)).max() < 5e-6
    simulator.precision = None
    assert np.abs(simulator.signal(theta).numpy() - np.array(want)).max() < 2e-6


def test_best_fit_of_the_real_spectrum(real: CrispObservation) -> None:
    """The chi^2 per point that crisp.py states, and the best fit well inside the prior."""
    simulator = crisp_simulator(real)
    assert (simulator.wavelengths - crisp_simulator().wavelengths).abs().max() < 5e-5
    assert 1e-3 < real.polarimetric_noise < 2e-3
    theta = torch.tensor([BEST_FIT], dtype=torch.float64)
    residual = real.stokes - simulator.signal(theta)[0]
    bare = torch.tensor([1e-2, 2e-3, 2e-3, 2e-3], dtype=torch.float64)[:, None]
    assert (residual / bare).square().mean() == pytest.approx(2.04, abs=0.05)
    assert (residual / simulator.noise).square().sum() == pytest.approx(50.1, abs=1)
    assert (residual / simulator.noise).abs().max() == pytest.approx(3.1, abs=0.1)
    rms = residual.square().mean(1).sqrt().tolist()
    assert rms == pytest.approx([1.5e-2, 1.3e-3, 4.3e-3, 1.9e-3], rel=0.05)
    z, _ = simulator.prior.unconstrain(theta)
    assert z[:, ~simulator.prior.periodic].abs().max() < 2


def test_synthetic_observation() -> None:
    simulator = crisp_simulator()
    x = synthetic_observation(simulator, torch.Generator().manual_seed(1))
    assert x.shape == (4, 16)
    theta = torch.tensor([BEST_FIT], dtype=torch.float64)
    chi2 = ((x - simulator.signal(theta)[0]) / simulator.noise).square().sum()
    assert 30 < chi2 < 110  # chi^2 of 64: false alarm 4e-4
