"""Likelihood, waveform and detectors together against bilby: the same data, the same numbers."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simulators.gravitational_waves.detector import (
    antenna_patterns,
    arrival_delay,
    detector,
    greenwich_sidereal_time,
)
from simulators.gravitational_waves.exact import exact_posterior
from simulators.gravitational_waves.likelihood import (
    LOG_2PI,
    log_likelihood,
    log_noise_evidence,
    matched_filter_snr,
    optimal_snr,
)
from simulators.gravitational_waves.noise import PSD, whiten
from simulators.gravitational_waves.waveform import imrphenomd

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("lal")
    pytest.importorskip("lalsimulation")
    bilby = pytest.importorskip("bilby.gw.detector")
    sources = pytest.importorskip("bilby.gw.source")
    waveform_generator = pytest.importorskip("bilby.gw.waveform_generator")
    gw_likelihood = pytest.importorskip("bilby.gw.likelihood")
    bilby_random = pytest.importorskip("bilby.core.utils.random")
logging.getLogger("bilby").setLevel(logging.ERROR)

pytestmark = pytest.mark.filterwarnings("ignore")  # of bilby and LAL

DURATION, RATE, START, F_REF = 4.0, 1024.0, 1126259460.0, 20.0
BAND = torch.arange(20.0, 512.0, 1 / DURATION, dtype=torch.float64)
DETECTORS = ("H1", "L1")

# bilby's names; d_L 250 to 900 Mpc
TRUTH = {
    "mass_1": 36.0, "mass_2": 29.0, "chi_1": 0.3, "chi_2": -0.4, "luminosity_distance": 500.0, "theta_jn": 0.6,
    "psi": 1.1, "phase": 0.9, "geocent_time": START + 2.3, "ra": 1.4, "dec": -1.2,
}  # fmt: skip


def near_truth(seed: int) -> Mapping[str, float]:
    """A draw that still matches the data, so that the likelihood tests phases and times, not rounding of zero."""
    rng = np.random.default_rng(seed)
    width = {"mass_1": 3, "mass_2": 3, "chi_1": 0.3, "chi_2": 0.3, "luminosity_distance": 200, "theta_jn": 0.5,
             "psi": 1.0, "phase": 1.0, "geocent_time": 0.003, "ra": 0.5, "dec": 0.3}  # fmt: skip
    return {name: value + width[name] * rng.uniform(-1, 1) for name, value in TRUTH.items()}


@cache
def bilby_case() -> Any:
    """bilby's two detectors with our design PSD, noise and a signal of bilby's own: detectors and likelihood."""
    bilby_random.seed(3)
    grid = np.arange(0, RATE / 2 + 1 / DURATION, 1 / DURATION)
    values = np.full(len(grid), 1e-40)
    values[grid >= 10] = PSD.design(grid[grid >= 10]).values.numpy()
    detectors = bilby.InterferometerList(list(DETECTORS))
    for one in detectors:
        one.minimum_frequency, one.maximum_frequency = 20.0, float(BAND[-1])
        one.power_spectral_density = bilby.PowerSpectralDensity(frequency_array=grid, psd_array=values)
    detectors.set_strain_data_from_power_spectral_densities(RATE, DURATION, start_time=START)
    generator = waveform_generator.WaveformGenerator(
        duration=DURATION,
        sampling_frequency=RATE,
        frequency_domain_source_model=sources.lal_binary_black_hole,
        waveform_arguments={"waveform_approximant": "IMRPhenomD", "reference_frequency": F_REF,
                            "minimum_frequency": 20.0, "maximum_frequency": RATE / 2},
    )  # fmt: skip
    detectors.inject_signal(waveform_generator=generator, parameters=in_bilby(TRUTH))
    likelihood = gw_likelihood.GravitationalWaveTransient(detectors, generator)
    return SimpleNamespace(detectors=detectors, likelihood=likelihood, generator=generator)


def in_bilby(p: Mapping[str, float]) -> dict[str, float]:
    chi = {"a_1": abs(p["chi_1"]), "a_2": abs(p["chi_2"]), "phi_12": 0.0, "phi_jl": 0.0}
    tilt = {f"tilt_{i}": 0.0 if p[f"chi_{i}"] >= 0 else math.pi for i in (1, 2)}
    return {k: v for k, v in p.items() if not k.startswith("chi")} | chi | tilt


def data(name: str) -> Tensor:
    """Whitened strain of bilby's detector in the band, phases from the segment's start."""
    one = next(d for d in bilby_case().detectors if d.name == name)
    assert torch.from_numpy(one.frequency_array[one.frequency_mask]).equal(BAND)
    strain = torch.from_numpy(one.frequency_domain_strain[one.frequency_mask])
    return whiten(strain, PSD.design(BAND).values, DURATION)


def response(p: Mapping[str, float], name: str) -> Tensor:
    """What orientation, phase, distance, sky and time make of h22 at 1 Mpc, whitened: (F,)."""
    site, gmst = detector(name), greenwich_sidereal_time(p["geocent_time"])
    ra, dec, psi = (torch.tensor(p[k]).double() for k in ("ra", "dec", "psi"))
    plus, cross = antenna_patterns(site, ra, dec, psi, gmst)
    cosine = math.cos(p["theta_jn"])
    orientation = torch.complex(plus * (1 + cosine**2) / 2, -cross * cosine) / p["luminosity_distance"]
    delay = p["geocent_time"] - START + arrival_delay(site, ra, dec, gmst)
    factor = orientation * torch.exp(2j * p["phase"] - 2j * math.pi * delay * BAND)
    return whiten(factor, PSD.design(BAND).values, DURATION)


def model(p: Mapping[str, float], name: str) -> Tensor:
    """Whitened signal in a detector, (1, F), from this package's parts alone."""
    masses_and_spins = (torch.tensor([p[k]]).double() for k in ("mass_1", "mass_2", "chi_1", "chi_2"))
    return imrphenomd(*masses_and_spins, BAND, f_ref=F_REF) * response(p, name)


@pytest.mark.parametrize("seed", range(6))
def test_signal_to_noise_ratios_agree_to_a_thousandth(seed: int) -> None:
    p = TRUTH if seed == 0 else near_truth(seed)
    polarisations = bilby_case().generator.frequency_domain_strain(in_bilby(p))
    for one in bilby_case().detectors:
        signal = one.get_detector_response(polarisations, in_bilby(p))
        ours = model(p, one.name)
        optimal = math.sqrt(one.optimal_snr_squared(signal).real)
        matched = complex(one.matched_filter_snr(signal))
        assert float(optimal_snr(ours)[0]) == pytest.approx(optimal, rel=1e-3)
        got = complex(matched_filter_snr(data(one.name), ours)[0])
        assert abs(got - matched) < 1e-3 * abs(matched)


@pytest.mark.parametrize("seed", range(6))
def test_log_likelihoods_agree_to_a_hundredth(seed: int) -> None:
    """bilby's noise evidence lacks F ln 2π per detector; the ratio has no constant."""
    p = TRUTH if seed == 0 else near_truth(seed)
    likelihood = bilby_case().likelihood
    both = torch.cat([data(name) for name in DETECTORS])
    joined = torch.cat([model(p, name) for name in DETECTORS], 1)
    noise = float(log_noise_evidence(both))
    assert noise + len(both) * LOG_2PI == pytest.approx(likelihood.noise_log_likelihood(), abs=0.01)
    want = float(likelihood.log_likelihood_ratio(in_bilby(p)))
    assert abs(want) > 1  # there is something to compare
    assert float(log_likelihood(both, joined)[0]) - noise == pytest.approx(want, abs=0.01)


def test_the_exact_posterior_has_bilbys_conventions() -> None:
    """ln p(theta | d) of exact.py less ln prior is bilby's ln L of one detector, up to one constant."""
    one = bilby_case().detectors[0]
    alone = gw_likelihood.GravitationalWaveTransient(bilby.InterferometerList([one]), bilby_case().generator)
    reference = {**TRUTH, "chi_1": 0.0, "chi_2": 0.0, "luminosity_distance": 1.0, "phase": 0.0}
    factor = response(reference, one.name)

    def waveforms(mass_1: Tensor, mass_2: Tensor) -> Tensor:
        return imrphenomd(mass_1, mass_2, 0 * mass_1, 0 * mass_2, BAND, f_ref=F_REF) * factor

    posterior = exact_posterior(
        data(one.name), waveforms, BAND, masses=(30.0, 34.0), times=(-2e-3, 2e-3), distances=(450.0, 550.0)
    )
    theta = posterior.sample(8, 1)
    theta[:, 3] = (theta[:, 3] * 2**22).round() / 2**22  # what a GPS time in double precision resolves
    found = posterior.log_prob(theta) - 2 * theta[:, 4].log()
    want = []
    for mass_1, mass_2, phi, t, d in theta.tolist():
        masses = {"mass_1": max(mass_1, mass_2), "mass_2": min(mass_1, mass_2)}
        p = {**reference, **masses, "phase": phi, "luminosity_distance": d}
        p["geocent_time"] += t
        want.append(float(alone.log_likelihood_ratio(in_bilby(p))))
    assert np.ptp(want) > 1
    assert np.ptp(found.numpy() - np.array(want)) < 0.01
