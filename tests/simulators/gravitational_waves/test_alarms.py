"""What a network of setup (a) says about data that it was not trained for.

A small network, trained for half a minute. Every fault is one that data of a detector can have. Gross ones are found
before anything is computed (the novelty test), sources outside the prior also by the importance weights; what remains
below the novelty test's reach is found by the posterior-predictive check, whose discrepancy is that of the best fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Generator, Tensor

import sbiflow as sf
from sbiflow.calibration import PredictiveCheck, predictive_check
from sbiflow.pairs import draw_pairs
from simulators.gravitational_waves.binary import Binary
from simulators.gravitational_waves.data import frequency_series, in_band
from simulators.gravitational_waves.noise import PSD, coloured_noise, whiten
from simulators.gravitational_waves.setups import five_parameters
from simulators.gravitational_waves.strain import Strain

DRAWS = 4000
SOURCE = torch.tensor([[55.0, 48.0, 1.1, 0.02, 1600.0]], dtype=torch.float64)  # signal-to-noise ratio 34
TRAIN = sf.TrainConfig(steps=350, batch=256, validation=0.15, validate_every=350, patience=None, seed=1)


@dataclass(frozen=True)
class Setup:
    """A simulator and its network."""

    simulator: Binary
    posterior: sf.Posterior

    def answer(self, strain: Tensor) -> sf.WeightedSamples:
        """Reweighted draws for whitened strain (F,) complex."""
        x = self.simulator.prepare(torch.stack([strain.real, strain.imag])[None, None])[0]
        return self.posterior.sample(x, DRAWS, seed=1).reweight(self.simulator.log_likelihood, progress=False)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    simulator = five_parameters()
    path = tmp_path_factory.mktemp("alarms") / "simulations.h5"
    store = sf.simulate(simulator, 4000, path, seed=1, progress=False)
    flow = sf.FlowConfig(layers=6, hidden=64, structure=simulator.structure)
    posterior = sf.train(
        store, simulator, TRAIN, flow=flow, embedding=sf.EmbeddingConfig(svd_components=64), progress=False
    )
    torch.set_num_threads(threads)
    return Setup(simulator, posterior)


def noise(seed: int = 5) -> Tensor:
    """Whitened, (F,) complex: real and imaginary parts are standard normal."""
    parts = torch.randn(492, 2, generator=Generator().manual_seed(seed), dtype=torch.float64)
    return torch.view_as_complex(parts)


def warned(weighted: sf.WeightedSamples) -> str:
    """Everything that is said against the answer, "" if nothing is."""
    doubt = "" if weighted.diagnostics.reliable else weighted.diagnostics.verdict
    return " ".join([doubt, *weighted.warnings]).strip()


# --- data as they should be ------------------------------------------------------------------------------------


def test_clean_event(setup: Setup) -> None:
    weighted = setup.answer(setup.simulator.model(SOURCE)[0, 0] + noise())
    assert warned(weighted) == ""
    assert weighted.diagnostics.verdict.startswith("Trustworthy")
    assert "looks like the simulations" in str(weighted)


def test_twenty_clean_events(setup: Setup) -> None:
    """No alarm, at 20 x 0.3 % expected ones; the weights of so small a network may fail for one or two."""
    _, x, _ = draw_pairs(setup.simulator, 20, seed=11)
    draws = setup.posterior.sample(x, DRAWS, seed=2)
    assert draws.novelty is not None and not bool(draws.novelty.alarm.any())
    likelihood = setup.simulator.log_likelihood
    each = [draws.observation(i).reweight(likelihood, progress=False).diagnostics for i in range(20)]
    assert sum(found.reliable for found in each) >= 18


# --- noise and sources of another kind ----------------------------------------------------------------------------


def louder(below: float, factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Noise of `factor` times the amplitude that the PSD says, at frequencies [Hz] below some."""
    return lambda noise, f: torch.where(f < below, factor, 1.0) * noise


def line(amplitude: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A line of the power grid, so many times the noise in its bin, that the PSD does not have."""
    return lambda noise, f: noise + amplitude * torch.exp(torch.tensor(0.4j)) * (f == 60)


def glitch(centre: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A sine-Gaussian of signal-to-noise ratio 15 at some frequency [Hz], Q = 9, 30 ms before the merger."""

    def add(noise: Tensor, f: Tensor) -> Tensor:
        width = centre / 9 / math.sqrt(2)
        burst = torch.exp(-0.5 * ((f - centre) / width) ** 2) * torch.exp(2j * math.pi * f * 0.01)
        return noise + 15 * burst / burst.abs().square().sum().sqrt()

    return add


GROSS = {
    "noise 1.5 times louder": louder(512.0, 1.5),
    "noise 2 times louder below 100 Hz": louder(100.0, 2.0),
    "a line of 25 sigma": line(25.0),
    "a glitch at 150 Hz": glitch(150.0),
    "a glitch at 300 Hz": glitch(300.0),
}
SUBTLE = {
    "noise 1.5 times louder below 100 Hz": louder(100.0, 1.5),
    "a line of 15 sigma": line(15.0),
    "a glitch in the signal's band": glitch(100.0),
}


@pytest.mark.parametrize("fault", GROSS.values(), ids=GROSS.keys())
def test_gross_faults_are_novel(setup: Setup, fault: Callable[[Tensor, Tensor], Tensor]) -> None:
    weighted = setup.answer(setup.simulator.model(SOURCE)[0, 0] + fault(noise(), setup.simulator.frequencies))
    assert "unlike the simulations" in warned(weighted)
    assert "misspecified" in warned(weighted)


def predicted(setup: Setup, weighted: sf.WeightedSamples) -> PredictiveCheck:
    return predictive_check(
        weighted.theta, weighted.weights, setup.simulator, weighted.x, seed=3, n=1000, alpha=2e-3
    )


@pytest.mark.parametrize("fault", SUBTLE.values(), ids=SUBTLE.keys())
def test_subtle_faults_are_outside_what_the_posterior_predicts(
    setup: Setup, fault: Callable[[Tensor, Tensor], Tensor]
) -> None:
    weighted = setup.answer(setup.simulator.model(SOURCE)[0, 0] + fault(noise(), setup.simulator.frequencies))
    found = predicted(setup, weighted)
    assert not found.inside and "OUTSIDE" in found.verdict


def test_clean_event_is_inside_what_the_posterior_predicts(setup: Setup) -> None:
    found = predicted(setup, setup.answer(setup.simulator.model(SOURCE)[0, 0] + noise()))
    assert found.inside and 0.05 < found.p_value < 0.95


@pytest.mark.parametrize(
    ("mass", "distance"), [(20.0, 500.0), (150.0, 3000.0)], ids=["lighter than the prior", "heavier"]
)
def test_source_outside_the_prior(setup: Setup, mass: float, distance: float) -> None:
    """Equal masses outside of 35 to 80: novel, and the weights fail, for no draw fits the data."""
    theta = SOURCE.clone()
    theta[0, 0] = theta[0, 1] = mass
    theta[0, 4] = distance
    signal = setup.simulator.model(theta)[0, 0]
    assert 20 < float(signal.abs().square().sum().sqrt()) < 60
    weighted = setup.answer(signal + noise())
    assert "unlike the simulations" in warned(weighted)
    assert weighted.diagnostics.verdict.startswith("Do not use")


# --- a wrong sampling rate -------------------------------------------------------------------------------------


def recorded(simulator: Binary, rate: float) -> Tensor:
    """Strain of `SOURCE` in design noise, sampled at `rate` for 1 s, merger at 0.5 s, (rate,)."""
    f = torch.arange(1.0, rate / 2, dtype=torch.float64)
    series = torch.zeros(int(rate) // 2 + 1, dtype=torch.complex128)
    band = in_band(f, 20.0, rate / 2)
    psd = PSD.design(f[band]).at(f[band])
    inside = coloured_noise(psd, 1.0, generator=Generator().manual_seed(6))
    own = len(simulator.frequencies)
    h = simulator.model(SOURCE)[0, 0] / whiten(torch.ones(own), psd[:own], 1.0)
    inside[:own] += h * torch.exp(-1j * math.pi * simulator.frequencies)
    series[1:-1][band] = inside
    return torch.fft.irfft(series * rate)


def whitened(simulator: Binary, strain: Strain) -> Tensor:
    """As an analysis of setup (a) does it: one second, phases from its middle."""
    f, series = frequency_series(strain, 0.0, 1.0, roll_off=0.0, reference=0.5)
    band = in_band(f, 20.0, 512.0)
    return whiten(series[band], PSD.design(f[band]).at(f[band]), 1.0)


def test_right_sampling_rate(setup: Setup) -> None:
    for rate in (1024.0, 2048.0):
        weighted = setup.answer(
            whitened(setup.simulator, Strain("H1", 0.0, rate, recorded(setup.simulator, rate)))
        )
        assert warned(weighted) == ""
        assert abs(float(weighted.summary()["t_c"].median) - 0.02) < 3e-3


def test_rate_said_to_be_half(setup: Setup) -> None:
    """2,048 Hz read as 1,024 Hz: every frequency is halved."""
    values = recorded(setup.simulator, 2048.0)
    weighted = setup.answer(whitened(setup.simulator, Strain("H1", 0.0, 1024.0, values)))
    assert "unlike the simulations" in warned(weighted)


def test_rate_too_low_for_the_band(setup: Setup) -> None:
    """512 Hz ends at 256 Hz: fewer bins than the simulator has, and an error that says so."""
    low = recorded(setup.simulator, 1024.0)[::2]
    with pytest.raises(ValueError, match="expected"):
        setup.answer(whitened(setup.simulator, Strain("H1", 0.0, 512.0, low)))


def test_fewer_bins_than_the_network_knows(setup: Setup) -> None:
    with pytest.raises(ValueError, match="992"):
        setup.posterior.sample(torch.zeros(480), 10)
