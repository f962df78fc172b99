"""The three setups: priors as documented, loudness, and their strain against LAL's."""

from __future__ import annotations

import math
import warnings
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from sbiflow.priors import Prior
from simulators.gravitational_waves import network, setups
from simulators.gravitational_waves.binary import Binary
from simulators.gravitational_waves.detector import H1, L1, greenwich_sidereal_time

MEGAPARSEC = 1e6 * 3.0856775814913673e16  # m
ROWS = 40


@pytest.fixture(scope="module")
def simulators() -> dict[str, Binary]:
    return {"a": setups.five_parameters(), "b": setups.eight_parameters()}


@pytest.fixture(scope="module")
def lalsimulation() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of LAL's SWIG bindings, at import
        pytest.importorskip("lal")
        return pytest.importorskip("lalsimulation")


def seeded(seed: int = 1) -> Generator:
    return torch.Generator().manual_seed(seed)


def polarisations(
    lalsimulation: ModuleType, masses: tuple[float, float], spins: tuple[float, float], distance: float,
    inclination: float, phase: float, f_ref: float, step: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """h+ and hx [1/Hz] from 20 Hz to below 512 Hz; masses in solar masses, distance in Mpc."""
    import_lal = pytest.importorskip("lal")
    kilograms = [m * import_lal.MSUN_SI for m in masses]
    found = lalsimulation.SimInspiralChooseFDWaveform(
        *kilograms, 0.0, 0.0, spins[0], 0.0, 0.0, spins[1], distance * MEGAPARSEC, inclination, phase,
        0.0, 0.0, 0.0, step, 20.0, 512.0, f_ref, None, lalsimulation.IMRPhenomD,
    )  # fmt: skip
    band = slice(round(20 / step), round(512 / step))
    plus, cross = (series.data.data[band] for series in found)
    return plus, cross


def mismatch(a: Tensor, b: Tensor) -> Tensor:
    """1 - Re <a|b> / (|a| |b|), without any freedom in time or phase: (..., F) -> (...)."""
    norms = [v.abs().square().sum(-1).sqrt() for v in (a, b)]
    return 1 - (a.conj() * b).sum(-1).real / (norms[0] * norms[1])


# --- priors ----------------------------------------------------------------------------------------------------


def check_support(prior: Prior, expected: dict[str, tuple[float, float]]) -> None:
    found = {m.name: m.support for m in prior.marginals}
    for name, support in expected.items():
        assert found[name] == pytest.approx(support), name


COMMON = {
    "mass_1": (35.0, 80.0),
    "mass_2": (35.0, 80.0),
    "phi_c": (0.0, 2 * math.pi),
    "t_c": (-0.1, 0.1),
    "d_L": (1000.0, 3000.0),
}
FURTHER = {"chi_1": (-0.99, 0.99), "chi_2": (-0.99, 0.99), "theta_jn": (0.0, math.pi)}


def test_priors(simulators: dict[str, Binary]) -> None:
    assert simulators["a"].prior.names == tuple(COMMON)
    assert simulators["b"].prior.names == (*COMMON, *FURTHER)
    check_support(simulators["a"].prior, COMMON)
    check_support(simulators["b"].prior, COMMON | FURTHER)
    assert [bool(flag) for flag in simulators["b"].prior.periodic] == [i == 2 for i in range(8)]
    assert simulators["a"].prior.units == ("M☉", "M☉", "rad", "s", "Mpc")
    for one in simulators.values():
        theta = torch.stack([one.prior.sample(1, seeded())[0]] * 2)
        theta[:, 4] = torch.tensor([1200.0, 2400.0])  # uniform in volume: d^2
        near, far = one.prior.log_prob(theta)
        assert float((far - near).exp()) == pytest.approx(4.0, rel=1e-6)
    theta[:, 4], theta[:, 7] = 1500.0, torch.tensor([math.pi / 2, math.pi / 6])  # isotropic: sin
    edge_on, inclined = simulators["b"].prior.log_prob(theta)
    assert float((inclined - edge_on).exp()) == pytest.approx(0.5, rel=1e-6)


def test_eleven_parameters_prior() -> None:
    prior = network.prior()
    assert prior.dim == 11 and [m.name for m in prior.marginals if m.periodic] == ["psi", "phi_H1", "azimuth"]
    expected = {
        "chirp_mass": (25.0, 40.0),
        "mass_ratio": (0.2, 1.0),
        "d_L": (100.0, 1000.0),
        "t_H1": (-0.03, 0.03),
    }
    expected |= {"psi": (0.0, math.pi / 2), "zenith": (0.0, math.pi), "azimuth": (0.0, 2 * math.pi)} | FURTHER
    check_support(prior, expected)
    volume = network.volume_prior(prior)
    assert prior.covers(volume) == []  # draws may be reweighted to it
    theta = prior.sample(2, seeded())
    theta[1] = theta[0]
    theta[:, 4] = torch.tensor([300.0, 600.0])
    assert float(prior.log_prob(theta).diff().exp()) == pytest.approx(1.0, rel=1e-6)
    assert float(volume.log_prob(theta).diff().exp()) == pytest.approx(4.0, rel=1e-6)


def test_component_masses() -> None:
    theta = network.prior().sample(100, seeded())
    first, second = network.component_masses(theta)
    assert bool((first >= second).all())
    chirp = (first * second) ** 0.6 / (first + second) ** 0.2
    torch.testing.assert_close(torch.stack([chirp, second / first], -1), theta[:, :2])


@pytest.mark.parametrize(
    ("setup", "low", "median", "high"), [("a", 14, (24, 27), 80), ("b", 4, (13, 17), 75)]
)
def test_loudness(
    simulators: dict[str, Binary], setup: str, low: float, median: tuple[float, float], high: float
) -> None:
    """Signal-to-noise ratios over the prior; nothing in (a) is too faint to be seen."""
    one = simulators[setup]
    snr = one.model(one.prior.sample(2000, seeded())).abs().square().sum((1, 2)).sqrt()
    assert low < float(snr.min()) and float(snr.max()) < high
    assert median[0] < float(snr.median()) < median[1]


# --- strain against LAL ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("setup", ["a", "b"])
def test_one_detector_against_lal(
    simulators: dict[str, Binary], lalsimulation: ModuleType, setup: str
) -> None:
    """F+ h+ + Fx hx, whitened by the formula of the design noise, later by t_c."""
    one = simulators[setup]
    theta, f = one.prior.sample(ROWS, seeded(2)), np.arange(20.0, 512.0)
    x = f / 245.48
    psd = 1e-48 * (0.0152 * x**-4 + 0.2935 * x**2.25 + 2.7951 * x**1.5 - 6.5080 * x**0.75 + 17.7622)
    pattern = (1.0, 0.0) if setup == "a" else setups.PATTERN
    for row, model in zip(theta.tolist(), one.model(theta)[:, 0], strict=True):
        spins, inclination = ((row[5], row[6]), row[7]) if setup == "b" else ((0.0, 0.0), 0.0)
        plus, cross = polarisations(
            lalsimulation, (row[0], row[1]), spins, row[4], inclination, row[2], setups.F_REF, 1.0
        )
        strain = (
            (pattern[0] * plus + pattern[1] * cross) * np.exp(-2j * np.pi * f * row[3]) * np.sqrt(4 / psd)
        )
        want = torch.from_numpy(strain)
        assert float(mismatch(model, want)) < 1e-9
        assert float(model.abs().square().sum() / want.abs().square().sum()) == pytest.approx(1.0, rel=1e-6)


def test_network_against_lal(lalsimulation: ModuleType) -> None:
    """The strain in both detectors from LAL's patterns and delays at the parameters that `sky` returns."""
    lal = pytest.importorskip("lal")
    theta, trigger = network.prior().sample(ROWS, seeded(3)), network.GW150914
    gps, gmst = lal.LIGOTimeGPS(trigger), greenwich_sidereal_time(trigger)
    f = torch.arange(20.0, 512.0, 0.5, dtype=torch.float64)
    h = network.imrphenomd(*network.component_masses(theta), theta[:, 2], theta[:, 3], f, f_ref=network.F_REF)
    factor, delay = network.Network(gmst)(theta)
    own = h[:, None] * factor[..., None] * torch.exp(-2j * math.pi * delay[..., None] * f)
    masses = torch.stack(network.component_masses(theta), -1).tolist()
    for row, mass, where, ours in zip(theta.tolist(), masses, network.sky(theta).tolist(), own, strict=True):
        ra, dec, time = where
        plus, cross = polarisations(
            lalsimulation, tuple(mass), (row[2], row[3]), row[4], row[5], 0.0, network.F_REF, 0.5
        )
        strain = []
        for detector in (H1, L1):
            lals = lal.cached_detector_by_prefix[detector.name]
            pattern = lal.ComputeDetAMResponse(
                lals.response, ra, dec, row[6], lal.GreenwichMeanSiderealTime(gps)
            )
            arrival = time + lal.TimeDelayFromEarthCenter(lals.location, ra, dec, gps)
            strain.append(
                (pattern[0] * plus + pattern[1] * cross) * np.exp(-2j * np.pi * f.numpy() * arrival)
            )
        want = torch.from_numpy(np.stack(strain))
        # the phase in H1 is a parameter: LAL's, at phi_ref = 0, is turned to it, and both detectors with it
        response = complex(want[0, 0] / own_h22(plus, row[5])[0]) * np.exp(2j * np.pi * 20.0 * row[8])
        want = want * np.exp(1j * (row[7] - np.angle(response)))
        assert mismatch(ours.flatten(), want.flatten()) < 1e-8
        torch.testing.assert_close(
            ours.abs().square().sum(-1), want.abs().square().sum(-1), rtol=1e-5, atol=0
        )


def own_h22(plus: np.ndarray, inclination: float) -> np.ndarray:
    """h22 of h+ = (1 + cos^2) / 2 h22."""
    return plus / (0.5 * (1 + math.cos(inclination) ** 2))


def test_psi_and_a_quarter_turn_are_the_same_signal() -> None:
    theta = network.prior().sample(50, seeded(4))
    turned = theta.clone()
    turned[:, 6] += math.pi / 2
    first, second = (network.Network(1.0)(one) for one in (theta, turned))
    torch.testing.assert_close(first.factor, second.factor)
    assert torch.equal(first.delay, second.delay)
    assert first.factor[:, 0].angle() == pytest.approx(
        (torch.remainder(theta[:, 7] + math.pi, 2 * math.pi) - math.pi).numpy(), abs=1e-9
    )


# --- the crop of setup (c) -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crop() -> network.Crop:
    frequencies = torch.arange(network.F_LOW, network.RATE / 2, 1 / network.DURATION, dtype=torch.float64)
    return network.Crop.around_trigger(frequencies)


def test_cropped_noise_is_white(crop: network.Crop) -> None:
    """Covariance of the bins kept, from all unit noise in the band: none is below 20 Hz, so the first bin lacks
    0.4 of its variance and the next three 0.05 or less; from 23 Hz on it is white to 0.02."""
    unit = torch.eye(len(crop.frequencies), dtype=torch.complex128)
    parts = torch.cat([torch.view_as_real(crop(unit)), torch.view_as_real(crop(1j * unit))])  # (2 F, F', 2)
    variance = parts.square().sum(0)
    assert float(variance[0].min()) > 0.55 and float(variance[1:].min()) > 0.95
    inner = parts[:, 4:].flatten(1)
    assert (inner.T @ inner - torch.eye(inner.shape[1], dtype=torch.float64)).abs().max() < 0.02


def test_crop_keeps_the_time_origin(crop: network.Crop) -> None:
    """A short burst at the trigger, later by t, is e^{-2πi f t} times itself in the bins kept."""

    def burst(f: Tensor, t: float) -> Tensor:
        return torch.exp(-0.5 * ((f - 200.0) / 20.0) ** 2) * torch.exp(-2j * math.pi * f * t)

    for t in (0.0, 0.012, -0.5):
        scale = math.sqrt(
            crop.samples / (network.RATE * network.DURATION)
        )  # orthonormal transforms of two lengths
        want = burst(crop.kept, t)
        torch.testing.assert_close(crop(burst(crop.frequencies, t)) * scale, want, rtol=0, atol=1e-6)
