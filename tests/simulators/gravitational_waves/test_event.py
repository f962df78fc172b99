"""The exact likelihood of a real event against bilby, and what is refused."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from torch import Tensor

from sbiflow import datasets
from sbiflow.seeding import torch_generator
from simulators.gravitational_waves import likelihood, network
from simulators.gravitational_waves.data import read_gwosc
from simulators.gravitational_waves.event import Event, check_psd, load_event
from simulators.gravitational_waves.noise import PSD
from simulators.gravitational_waves.strain import Strain

FREQUENCIES = torch.arange(160, 4096, dtype=torch.float64) / 8
FREQUENCIES_WIDE = torch.arange(80, 5000, dtype=torch.float64) / 8
NEAR = torch.tensor(
    [[33.9, 0.71, -0.32, 0.9, 739.2, 0.127, 0.966, 5.76, 2.33e-3, 0.736, 3.73]], dtype=torch.float64
)
"""Parameters with ln L 269 above that of noise for GW150914."""


def synthetic(theta: Tensor = NEAR) -> Event:
    """A signal of signal-to-noise ratio 30 in white noise of the design's shape."""
    table = torch.arange(80, 8200, dtype=torch.float64) / 8
    design = PSD.design(table)
    psds = tuple(
        PSD(table, design.values * scale, name) for scale, name in ((12.0, "H1 psd"), (16.0, "L1 psd"))
    )
    noise = torch.randn(2, len(FREQUENCIES), 2, dtype=torch.float64, generator=torch_generator(3, 1))
    quiet = Event(torch.view_as_complex(noise), (psds[0], psds[1]), network.GW150914)
    return replace(quiet, whitened=quiet.whitened + quiet.model(theta)[0])


def strains(seconds: float = 16.0, rate: float = 4096.0) -> list[Strain]:
    values = torch.randn(2, int(seconds * rate), dtype=torch.float64, generator=torch_generator(4, 1)) * 1e-21
    start = network.GW150914 - 10.42
    return [Strain(name, start, rate, row) for name, row in zip(("H1", "L1"), values, strict=True)]


def real_strains_and_psds() -> tuple[list[Strain], list[PSD]]:
    try:
        files = [datasets.find(f"{i}-{i}1_LOSC_4_V2-1126259446-32.hdf5") for i in "HL"]
        tables = [datasets.find(f"GW150914_PSD_{i}1.txt") for i in "HL"]
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return [read_gwosc(path) for path in files], [PSD.from_file(path) for path in tables]


def draws(n: int, seed: int = 5) -> Tensor:
    return network.volume_prior(network.prior()).sample(n, torch_generator(seed, 1))


def around(n: int, seed: int = 6, width: float = 1.0) -> Tensor:
    """Draws near `NEAR`, inside the prior."""
    prior = network.prior()
    spread = torch.tensor([0.8, 0.1, 0.2, 0.1, 80, 0.3, 0.1, 0.3, 5e-4, 0.1, 0.3], dtype=torch.float64)
    step = torch.randn(4 * n, prior.dim, dtype=torch.float64, generator=torch_generator(seed, 1))
    found = NEAR + width * spread * step
    return found[prior.inside(found)][:n]


def test_equals_the_density_of_the_residual() -> None:
    event, theta = synthetic(), torch.cat([NEAR, draws(140)])  # more than one block
    residual = event.whitened - event.model(theta)
    expected = likelihood.log_noise_evidence(residual.flatten(1))
    torch.testing.assert_close(event.log_likelihood(theta), expected, rtol=0, atol=1e-7)
    alone = torch.cat([event.log_likelihood(row[None]) for row in theta[-3:]])
    torch.testing.assert_close(event.log_likelihood(theta)[-3:], alone, rtol=0, atol=1e-9)
    assert event.log_likelihood(theta[:0]).shape == (0,)


def test_noise_evidence_is_that_of_a_source_far_away() -> None:
    event, far = synthetic(), NEAR.clone()
    far[:, 4] = 1e12
    assert float(event.log_likelihood(far)) == pytest.approx(event.log_noise_evidence, abs=1e-6)


def test_psi_is_periodic_with_half_pi() -> None:
    event, theta = synthetic(), torch.cat([NEAR, draws(20)])
    turned = theta.clone()
    turned[:, 6] += math.pi / 2
    turned[:, 10] += 2 * math.pi
    torch.testing.assert_close(event.log_likelihood(turned), event.log_likelihood(theta), rtol=0, atol=1e-8)


def bilby_log_likelihood_ratio(theta: Tensor, event: Event, both: list[Strain]) -> Tensor:
    """The same by bilby: its detectors, LAL's waveform, windowed data from SciPy and NumPy."""
    pytest.importorskip("lalsimulation")
    bilby = pytest.importorskip("bilby")
    bilby.core.utils.logger.setLevel("ERROR")
    network_of = bilby.gw.detector.InterferometerList(["H1", "L1"])
    first = round((event.trigger - 6 - both[0].start) * both[0].rate)
    start = both[0].start + first / both[0].rate
    for one, strain, psd in zip(network_of, both, event.psds, strict=True):
        one.minimum_frequency, one.maximum_frequency = 20.0, 512.0 - 1 / 16
        one.power_spectral_density = bilby.gw.detector.PowerSpectralDensity(
            frequency_array=psd.frequencies.numpy(), psd_array=psd.values.numpy()
        )
        part = strain.values.numpy()[first : first + round(8 * strain.rate)]
        series = np.fft.rfft(part * scipy.signal.windows.tukey(len(part), 0.1)) / strain.rate
        one.set_strain_data_from_frequency_domain_strain(
            series, sampling_frequency=strain.rate, duration=8.0, start_time=start
        )
    generator = bilby.gw.WaveformGenerator(
        duration=8.0,
        sampling_frequency=both[0].rate,
        frequency_domain_source_model=bilby.gw.source.lal_binary_black_hole,
        parameter_conversion=bilby.gw.conversion.convert_to_lal_binary_black_hole_parameters,
        waveform_arguments={
            "waveform_approximant": "IMRPhenomD", "reference_frequency": 100.0, "minimum_frequency": 20.0
        },
    )  # fmt: skip
    like = bilby.gw.GravitationalWaveTransient(network_of, generator)
    heavy, light = network.component_masses(theta)
    ratios = [
        like.log_likelihood_ratio(bilby_parameters(row, m1, m2, event, network_of[0]))
        for row, m1, m2 in zip(theta, heavy.tolist(), light.tolist(), strict=True)
    ]
    return torch.tensor(ratios, dtype=torch.float64)


def bilby_parameters(row: Tensor, m1: float, m2: float, event: Event, hanford: Any) -> dict[str, float]:
    ra, dec, delay = network.sky(row[None], event.trigger)[0].tolist()
    _, _, chi_1, chi_2, distance, inclination, psi, phase = row[:8].tolist()
    time, cosine = event.trigger + delay, math.cos(inclination)
    plus, cross = (hanford.antenna_response(ra, dec, time, psi, mode) for mode in ("plus", "cross"))
    seen = plus * 0.5 * (1 + cosine**2) - 1j * cross * cosine  # its phase is part of phi_H1
    return {
        "mass_1": m1, "mass_2": m2, "chi_1": chi_1, "chi_2": chi_2, "luminosity_distance": distance,
        "theta_jn": inclination, "psi": psi, "phase": (phase - float(np.angle(seen))) / 2 % (2 * math.pi),
        "ra": ra, "dec": dec, "geocent_time": time,
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of bilby, LAL and their dependencies
def test_gw150914_against_bilby() -> None:
    both, psds = real_strains_and_psds()
    event, theta = load_event(both, psds), torch.cat([NEAR, around(25), draws(15)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = bilby_log_likelihood_ratio(theta, event, both)
    got = event.log_likelihood(theta) - event.log_noise_evidence
    assert float(got[0]) == pytest.approx(269.45, abs=0.05)
    # bilby's GPS times are rounded to 1.2e-7 s: phases by 2 pi 150 Hz 1.2e-7 = 1e-4, times <d|h> of up to 600
    torch.testing.assert_close(got, expected, rtol=0, atol=0.05)


def test_gw150914_in_the_frame_of_the_network() -> None:
    both, psds = real_strains_and_psds()
    event, simulator = load_event(both, psds), network.eleven_parameters(psds)
    power = event.whitened.abs().square().mean(1) / 2
    # the window leaves 0.94 of the noise's power; 3,936 bins give the mean an error of 0.016
    assert bool(((power > 0.88) & (power < 1.04)).all())
    x = event.x(simulator)
    assert x.shape == simulator.x_shape
    cut = network.Crop.around_trigger(event.frequencies)(event.whitened)
    restored = simulator.strain(x[None])[0]
    torch.testing.assert_close(torch.complex(restored[:, 0], restored[:, 1]), cut, rtol=0, atol=1e-9)
    # what the network sees has the same likelihood ratios but for what the cut loses; these parameters differ by more
    # than those of the posterior do
    theta = around(60, width=0.3)
    exact, seen = event.log_likelihood(theta), simulator.log_likelihood(theta, x)
    good = exact > exact.max() - 15
    assert int(good.sum()) >= 10
    assert float((exact - seen)[good].std()) < 1.0  # 0.66; ln L itself varies by 15


def test_an_impulse_at_the_trigger_has_no_phase() -> None:
    quiet = strains()
    sample = round(10.42 * 4096)
    trigger = quiet[0].start + sample / 4096
    pulse = [replace(s, values=torch.zeros_like(s.values)) for s in quiet]
    for strain in pulse:
        strain.values[sample] = 1e-18
    event = load_event(pulse, [PSD.design(FREQUENCIES_WIDE)] * 2, trigger)
    assert float(event.whitened.angle().abs().max()) < 1e-6
    expected = 1e-18 / 4096 * event.scale
    torch.testing.assert_close(event.whitened.abs(), expected, rtol=1e-9, atol=0)


def test_data_that_do_not_fit_are_refused() -> None:
    both, psds = strains(), [PSD.design(FREQUENCIES_WIDE)] * 2
    load_event(both, psds)
    with pytest.raises(ValueError, match="expected one of each of H1, L1, got L1, H1"):
        load_event(both[::-1], psds)
    with pytest.raises(ValueError, match=r"expected a sampling rate of 4096 Hz.*got 2048 Hz"):
        load_event([both[0], replace(both[1], rate=2048.0)], psds)
    with pytest.raises(ValueError, match="rate: expected at least 1024 Hz, got 512 Hz"):
        load_event([replace(one, rate=512.0) for one in both], psds)
    with pytest.raises(ValueError, match="expected a segment inside"):
        load_event(both, psds, network.GW150914 + 5)
    with pytest.raises(ValueError, match="expected frequencies in"):
        load_event(both, [psds[0], PSD.design(FREQUENCIES_WIDE[:3000])])
    holed = both[0].values.clone()
    holed[7000:7100] = math.nan
    with pytest.raises(ValueError, match="expected strain without gaps, got 100"):
        load_event([replace(both[0], values=holed), both[1]], psds)


def test_a_network_belongs_to_its_psds() -> None:
    event = synthetic()
    version = "1-" + "-".join(psd.digest() for psd in event.psds)
    check_psd(version, event.psds)
    for others in (event.psds[::-1], event.psds[:1], (event.psds[0], PSD.design(FREQUENCIES_WIDE))):
        with pytest.raises(ValueError, match="expected those that the simulator was made for"):
            check_psd(version, others)


def test_parameters_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="theta: expected shape"):
        synthetic().log_likelihood(torch.zeros(3, 8))
    with pytest.raises(ValueError, match="whitened: expected shape"):
        replace(synthetic(), whitened=torch.zeros(2, 7, dtype=torch.complex128))
