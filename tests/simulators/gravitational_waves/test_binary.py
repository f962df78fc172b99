"""`Binary`, on the setup of five parameters: reduced basis, likelihood, anchors, symmetries, and the contract."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from sbiflow.contracts import Simulator
from sbiflow.observing import extrinsic_columns, observe, signal_shape
from sbiflow.transforms.structure import Known, known_transform
from simulators.gravitational_waves.alignment import shift, turn
from simulators.gravitational_waves.binary import Binary
from simulators.gravitational_waves.setups import five_parameters

LOUD = torch.tensor([[62.0, 47.0, 2.2, 0.031, 1050.0]], dtype=torch.float64)  # signal-to-noise ratio 57


@pytest.fixture(scope="module")
def simulator() -> Binary:
    return five_parameters()


def seeded(seed: int = 1) -> Generator:
    return torch.Generator().manual_seed(seed)


def prior_draws(simulator: Binary, n: int, seed: int = 1) -> Tensor:
    return simulator.prior.sample(n, seeded(seed))


def series(strain: Tensor) -> Tensor:
    """(n, I, 2, F) -> (n, I, F) complex."""
    return torch.complex(*strain.unbind(2))


def raw_strain(simulator: Binary, theta: Tensor, seed: int = 2) -> Tensor:
    """Signal without the reduced basis, and noise: (n, I, 2, F)."""
    model = simulator.model(theta)
    strain = torch.stack([model.real, model.imag], 2)
    return strain + torch.randn(strain.shape, generator=seeded(seed), dtype=strain.dtype)


def changed(theta: Tensor, **columns: float | Tensor) -> Tensor:
    theta = theta.clone()
    for name, value in columns.items():
        theta[:, ["mass_1", "mass_2", "phi_c", "t_c", "d_L"].index(name)] = value
    return theta


# --- signal and projection -------------------------------------------------------------------------------------


def test_contract(simulator: Binary) -> None:
    theta = prior_draws(simulator, 3)
    signal = simulator.signal(theta)
    assert isinstance(simulator, Simulator)
    assert signal.shape == (3, *signal_shape(simulator)) and signal.dtype == torch.float64
    assert extrinsic_columns(simulator) == (2, 3, 4)
    assert simulator.x_shape == (2 * 492 + 8,)
    for dtype in (torch.float32, torch.float64):
        x = observe(simulator, theta, signal.to(dtype), seeded())
        assert x.shape == (3, *simulator.x_shape) and x.dtype == dtype and bool(x.isfinite().all())
    again = observe(simulator, theta, signal, seeded())
    assert torch.equal(again, observe(simulator, theta, signal, seeded()))


def test_projected_basis_is_the_model(simulator: Binary) -> None:
    """What the basis leaves out changes no log-likelihood by more than 0.005 on average (rho^2 mismatch / 2)."""
    theta = prior_draws(simulator, 500)
    model = simulator.model(theta)
    signal = simulator.signal(theta)
    projected = simulator.project(theta, signal)
    assert (series(projected) - model).abs().square().sum((1, 2)).max() < 0.01
    single = simulator.project(theta, signal.float())
    assert single.dtype == torch.float32
    assert (single - projected).abs().max() < 1e-5


def test_signal_does_not_depend_on_extrinsic_parameters(simulator: Binary) -> None:
    theta = prior_draws(simulator, 20)
    other = theta.clone()
    columns = list(extrinsic_columns(simulator))
    other[:, columns] = prior_draws(simulator, 20, seed=7)[:, columns]
    assert torch.equal(simulator.signal(theta), simulator.signal(other))


def test_rows_do_not_depend_on_the_batch(simulator: Binary) -> None:
    theta = prior_draws(simulator, 1030)  # several blocks
    whole = simulator.signal(theta)
    assert whole.shape[0] == 1030
    torch.testing.assert_close(simulator.signal(theta[700:701])[0], whole[700], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "change"), [("d_L", 2.0), ("phi_c", 0.4), ("t_c", 0.02)], ids=["distance", "phase", "time"]
)
def test_extrinsic_parameters_act_as_documented(simulator: Binary, name: str, change: float) -> None:
    """1 / d_L, e^{2 i phi_c}, e^{-2πi f t_c}."""
    value = LOUD[0, simulator.prior.names.index(name)]
    new = value * change if name == "d_L" else value + change
    before, after = simulator.model(LOUD), simulator.model(changed(LOUD, **{name: new}))
    factor = {
        "d_L": torch.tensor(1 / change, dtype=torch.complex128),
        "phi_c": torch.exp(torch.tensor(2j * change, dtype=torch.complex128)),
        "t_c": torch.exp(-2j * math.pi * simulator.frequencies * change),
    }[name]
    torch.testing.assert_close(after, before * factor, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("columns", [{"phi_c": math.pi}, {"masses": 1.0}])
def test_symmetries(simulator: Binary, columns: dict[str, float]) -> None:
    """Another half turn of phi_c, or the bodies exchanged: the same signal, and the same prior density."""
    theta = prior_draws(simulator, 50)
    if "phi_c" in columns:
        other = changed(theta, phi_c=torch.remainder(theta[:, 2] + math.pi, 2 * math.pi))
    else:
        other = theta[:, [1, 0, 2, 3, 4]]
    torch.testing.assert_close(simulator.model(other), simulator.model(theta), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(simulator.prior.log_prob(other), simulator.prior.log_prob(theta))


# --- likelihood ------------------------------------------------------------------------------------------------


def test_likelihood_is_whittle_s_of_the_raw_strain(simulator: Binary) -> None:
    """-1/2 sum |d - h|^2 - F ln 2π, and the frame of x plays no part."""
    truth, theta = prior_draws(simulator, 6, seed=3), prior_draws(simulator, 6, seed=4)
    theta[:3] = truth[:3]
    strain = raw_strain(simulator, truth)
    residual = series(strain) - simulator.model(theta)
    want = -0.5 * residual.abs().square().sum((1, 2)) - 492 * math.log(2 * math.pi)
    got = simulator.log_likelihood(theta, simulator.prepare(strain))
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, want, rtol=0, atol=1e-7)


def test_likelihood_of_a_turned_and_delayed_strain(simulator: Binary) -> None:
    """Strain and parameters moved alike: the same likelihood."""
    strain, delay, angle = raw_strain(simulator, LOUD), torch.tensor([[-0.07]]), torch.tensor([[1.3]])
    moved = turn(shift(strain, delay.double(), simulator.frequencies), angle.double())
    other = changed(LOUD, t_c=LOUD[0, 3] + float(delay), phi_c=LOUD[0, 2] + float(angle) / 2)
    before, after = (
        simulator.log_likelihood(theta, simulator.prepare(d)) for theta, d in ((LOUD, strain), (other, moved))
    )
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_one_observation_for_all_rows_or_one_for_each(simulator: Binary) -> None:
    theta = prior_draws(simulator, 600)  # more than one block
    x = simulator.prepare(raw_strain(simulator, theta[:5]))
    one = simulator.log_likelihood(theta, x[2])
    assert one.shape == (600,)
    torch.testing.assert_close(simulator.log_likelihood(theta[:5], x)[2], one[2], rtol=0, atol=1e-8)
    torch.testing.assert_close(simulator.log_likelihood(theta[2:3], x[2]), one[2:3], rtol=0, atol=1e-8)


def test_float32_observations_lose_little(simulator: Binary) -> None:
    theta = prior_draws(simulator, 50)
    x = simulator.prepare(raw_strain(simulator, theta))
    change = simulator.log_likelihood(theta, x.float()) - simulator.log_likelihood(theta, x)
    assert change.abs().max() < 1e-3


def test_truth_has_chi_squared_residuals(simulator: Binary) -> None:
    """-2 (ln L + F ln 2π) at the truth is chi^2 of 2 F degrees of freedom; 5 sigma of the mean of 400."""
    theta = prior_draws(simulator, 400)
    x = observe(simulator, theta, simulator.signal(theta), seeded(8))
    chi2 = -2 * (simulator.log_likelihood(theta, x) + 492 * math.log(2 * math.pi))
    assert abs(float(chi2.mean()) - 984) < 5 * math.sqrt(2 * 984 / 400)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strain_undoes_prepare(simulator: Binary, dtype: torch.dtype) -> None:
    strain = raw_strain(simulator, prior_draws(simulator, 5)).to(dtype)
    restored = simulator.strain(simulator.prepare(strain))
    torch.testing.assert_close(restored, strain, rtol=0, atol=1e-10 if dtype == torch.float64 else 2e-4)


# --- the frame and the anchors ---------------------------------------------------------------------------------


def known(simulator: Binary) -> Known:
    found = known_transform(simulator.structure, simulator.prior.periodic.tolist())
    assert found is not None
    return found


def departures(simulator: Binary, theta: Tensor, x: Tensor) -> Tensor:
    """Of the truth from the anchors, (n, 5); columns 2 and 3 are phase [rad of the signal] and time [errors]."""
    anchored = known(simulator)
    return anchored(simulator.prior.unconstrain(theta)[0], x[:, anchored.columns])[0]


def test_the_frame_takes_time_and_phase_out(simulator: Binary) -> None:
    """The same source at another phi_c, and another t_c by whole steps of the search: the same aligned strain."""
    step = float(simulator.search.times[1] - simulator.search.times[0])
    other = changed(LOUD, t_c=LOUD[0, 3] - 20 * step, phi_c=0.3)
    first, second = (simulator.noiseless(simulator.project(t, simulator.signal(t))) for t in (LOUD, other))
    size = 2 * 492
    torch.testing.assert_close(second[:, :size], first[:, :size], rtol=0, atol=1e-8)
    assert (second - first)[:, size:].abs().max() > 0.1  # where it was is in the columns that follow


def test_anchors_lie_near_the_truth(simulator: Binary) -> None:
    """Template and signal differ in mass, by some ms and some tenths of a radian: the prior has 200 ms and 2π."""
    theta = prior_draws(simulator, 1000)
    x = observe(simulator, theta, simulator.signal(theta), seeded(9))
    phase = departures(simulator, theta, x)[:, 2]
    assert torch.exp(1j * phase).mean().abs() > 0.95  # a circular standard deviation of 0.3
    time = x[:, 2 * 492 + 3] * simulator.search.window
    assert (time - theta[:, 3]).std() < 2.5e-3
    assert (time - theta[:, 3]).abs().max() < 15e-3


def test_departures_of_one_source_are_as_large_as_the_expected_errors(simulator: Binary) -> None:
    """Noise draws of a loud signal: the bank's sum is a few times worse in time than Cramér and Rao; the phase, with
    the time's part taken out by the slope, is known to 1 / rho all the same."""
    theta = LOUD.expand(1000, -1)
    x = observe(simulator, theta, simulator.signal(theta), seeded(10))
    rho = float(simulator.model(LOUD).abs().square().sum().sqrt())
    found = departures(simulator, theta, x)
    assert 0.8 < found[:, 3].std() < 5
    assert found[:, 2].std() < 1.3 / rho
    anchored = known(simulator)
    slope = x[:, simulator.structure.anchors[1].slopes[0][1]].mean()
    assert (found[:, 2] + slope * found[:, 3]).std() > 4 * found[:, 2].std()
    assert set(anchored.columns) == set(range(2 * 492 + 4, 2 * 492 + 8))


def test_a_turn_leaves_the_departures(simulator: Binary) -> None:
    strain = raw_strain(simulator, LOUD)
    before = departures(simulator, LOUD, simulator.prepare(strain))
    angle = torch.full((1, 1), 1.0, dtype=torch.float64)
    after = departures(
        simulator, changed(LOUD, phi_c=LOUD[0, 2] + 0.5), simulator.prepare(turn(strain, angle))
    )
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)


# --- edges -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_without_a_signal(simulator: Binary, dtype: torch.dtype) -> None:
    for strain in (
        torch.zeros(1, 1, 2, 492, dtype=dtype),
        torch.randn(20, 1, 2, 492, generator=seeded(), dtype=dtype),
    ):
        x = simulator.prepare(strain)
        assert bool(x.isfinite().all())
        assert bool(departures(simulator, LOUD.expand(len(x), -1), x.double()).isfinite().all())
