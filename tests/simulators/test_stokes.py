"""Milne-Eddington Stokes profiles: oracle, symmetries, broadening, gradients, noise and likelihood."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sbiflow.contracts import Simulator
from sbiflow.priors import LogNormal, LogUniform, Normal, PeriodicUniform, Prior, Sine, Uniform
from simulators.broadening import GaussianInstrument, TabulatedInstrument
from simulators.stokes import MilneEddington
from simulators.zeeman import FE_6301, Line
from tests.simulators import oracle

GRID = np.concatenate([np.linspace(6301.1, 6301.9, 33), np.linspace(6302.1, 6302.9, 33)])
COARSE = np.array([6301.29, 6301.4, 6301.481, 6301.562, 6301.672, 6302.186, 6302.398, 6302.478, 6302.559])
MARGINALS = (
    Uniform("B", 0.0, 4000.0, unit="G"),
    Sine("inclination", unit="rad"),
    PeriodicUniform("azimuth", 0.0, math.pi, unit="rad"),
    Uniform("v_los", -4.0, 4.0, unit="km/s"),
    Uniform("width", 0.02, 0.06, unit="Å"),
    LogUniform("eta0", 1.0, 100.0),
    Uniform("damping", 0.0, 1.0),
    Uniform("S0", 0.0, 1.0),
    Uniform("S1", 0.0, 1.5),
)
V_MAC = Uniform("v_mac", 0.0, 4.0, unit="km/s")
NINE = Prior(*MARGINALS)
TRUTH = {"B": 1500.0, "inclination": 0.9, "azimuth": 0.7, "v_los": -1.2, "width": 0.03, "eta0": 12.0}
TRUTH |= {"damping": 0.2, "S0": 0.3, "S1": 0.7}


def draws(prior: Prior, n: int, seed: int = 1) -> Tensor:
    return prior.sample(n, torch.Generator().manual_seed(seed))


def row(prior: Prior, **changes: float) -> Tensor:
    values: Mapping[str, float] = TRUTH | {"v_mac": 1.5, "filling": 0.6, "crosstalk": 0.005} | changes
    return torch.tensor([[values[name] for name in prior.names]], dtype=torch.float64)


def named(prior: Prior, theta: Tensor) -> list[dict[str, float]]:
    return [dict(zip(prior.names, values, strict=True)) for values in theta.tolist()]


@pytest.fixture(scope="module")
def simulator() -> MilneEddington:
    return MilneEddington(NINE, GRID, noise=1e-3)


# --- against the 4x4 matrix oracle -----------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [1.0, 0.6])
def test_equals_matrix_solution(mu: float) -> None:
    theta = draws(NINE, 60)
    got = MilneEddington(NINE, GRID, noise=1e-3, mu=mu).signal(theta).numpy()
    want = np.array([oracle.stokes(GRID, p, mu) for p in named(NINE, theta)])
    assert np.abs(got - want).max() < 1e-10


def test_coarse_irregular_unordered_grid(simulator: MilneEddington) -> None:
    theta = draws(NINE, 5)
    shuffled = COARSE[::-1].copy()
    got = MilneEddington(NINE, shuffled, noise=1e-3).signal(theta).numpy()
    want = np.array([oracle.stokes(shuffled, p) for p in named(NINE, theta)])
    assert np.abs(got - want).max() < 1e-10


def test_filling_and_crosstalk() -> None:
    prior = Prior(*MARGINALS, Uniform("filling", 0.0, 1.0), Uniform("crosstalk", -0.02, 0.02))
    p = named(prior, row(prior))[0]
    got = MilneEddington(prior, COARSE, noise=1e-3).signal(row(prior))[0].numpy()
    want = 0.6 * oracle.stokes(COARSE, p) + 0.4 * oracle.stokes(COARSE, p | {"B": 0.0})
    want[3] += 0.005 * want[0]
    assert np.abs(got - want).max() < 1e-10


def test_fixed_parameters_and_stokes_subset() -> None:
    fixed = {"B": 900.0, "inclination": 1.1, "azimuth": 0.3, "eta_ratio": 1.3, "S0": 0.2, "damping": 0.1}
    prior = Prior(
        Uniform("v_los", -4, 4), Uniform("width", 0.02, 0.06), Uniform("kl", 0, 30), Uniform("S1", 0, 1)
    )
    simulator = MilneEddington(prior, COARSE, noise=1e-3, stokes="QV", fixed=fixed)
    theta = torch.tensor([[1.0, 0.04, 20.0, 0.8]], dtype=torch.float64)
    p = fixed | {"v_los": 1.0, "width": 0.04, "eta0": 20 / math.sqrt(math.pi), "S1": 0.8}
    assert simulator.x_shape == (2, len(COARSE))
    assert np.abs(simulator.signal(theta)[0].numpy() - oracle.stokes(COARSE, p)[[1, 3]]).max() < 1e-10


def test_other_transitions_have_the_strengths_of_the_3j_symbols() -> None:
    for j_low, j_up in ((0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 3), (3, 3)):
        pattern = Line(6000.0, j_low, j_up, 1.5, 1.2, 0.0).pattern
        for q, components in zip((1, 0, -1), pattern, strict=True):
            want = {
                1.5 * m - 1.2 * (m + q): 3 * oracle.three_j(j_up, j_low, 1, -(m + q), m, q) ** 2
                for m in range(-j_low, j_low + 1)
            }
            want = {shift: strength for shift, strength in want.items() if strength > 1e-12}
            assert [c.shift for c in components] == pytest.approx(list(want))
            assert [c.strength for c in components] == pytest.approx(list(want.values()))
    with pytest.raises(ValueError, match="dipole"):
        Line(6000.0, 0, 0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("name", ["azimuth", "S0", "v_mac"])
def test_one_free_parameter(name: str) -> None:
    """What is fixed does not have to depend on the row."""
    free = V_MAC if name == "v_mac" else NINE.marginals[NINE.names.index(name)]
    fixed = {key: value for key, value in (TRUTH | {"v_mac": 1.5}).items() if key != name}
    simulator = MilneEddington(
        Prior(free), COARSE, noise=1e-3, fixed=fixed, instrument=GaussianInstrument(0.05), grid_step=0.015
    )
    theta = draws(simulator.prior, 3)
    p = named(simulator.prior, theta)[1] | fixed
    got = simulator.signal(theta)[1].numpy()
    assert np.abs(got - oracle.broadened(COARSE, p, sigma(p["v_mac"], 0.05))).max() < 2e-5


# --- symmetries, to 1e-12 --------------------------------------------------------------------------------------


def changed(theta: Tensor, name: str, values: Tensor) -> Tensor:
    out = theta.clone()
    out[:, NINE.names.index(name)] = values
    return out


def column(theta: Tensor, name: str) -> Tensor:
    return theta[:, NINE.names.index(name)]


def test_azimuth_has_period_pi(simulator: MilneEddington) -> None:
    theta = draws(NINE, 50)
    turned = changed(theta, "azimuth", column(theta, "azimuth") + math.pi)
    assert (simulator.signal(theta) - simulator.signal(turned)).abs().max() < 1e-12


def test_quarter_turn_flips_q_and_u(simulator: MilneEddington) -> None:
    theta = draws(NINE, 50)
    turned = simulator.signal(changed(theta, "azimuth", column(theta, "azimuth") + math.pi / 2))
    flip = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)[:, None]
    assert (simulator.signal(theta) - turned * flip).abs().max() < 1e-12
    assert turned[:, 1:3].abs().amax() > 0.01


def test_mirrored_field(simulator: MilneEddington) -> None:
    theta = draws(NINE, 50)
    mirrored = changed(theta, "inclination", math.pi - column(theta, "inclination"))
    mirrored = changed(mirrored, "azimuth", -column(theta, "azimuth"))
    flip = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)[:, None]
    assert (simulator.signal(theta) - simulator.signal(mirrored) * flip).abs().max() < 1e-12


def test_no_field_no_polarisation(simulator: MilneEddington) -> None:
    theta = changed(draws(NINE, 50), "B", torch.tensor(0.0))
    signal = simulator.signal(theta)
    assert signal[:, 1:].abs().max() < 1e-12
    fixed = MilneEddington(
        Prior(*MARGINALS[3:]), GRID, noise=1e-3, fixed={"B": 0.0, "inclination": 1.0, "azimuth": 1.0}
    )
    assert (fixed.signal(theta[:, 3:]) - signal).abs().max() < 1e-12


def test_directions_of_the_conventions() -> None:
    """Redshift for v_los > 0; V > 0 in the blue wing at inclination 0; Q along cos 2 azimuth, U along sin."""
    simulator = MilneEddington(NINE, GRID[:33], noise=1e-3)
    redshifted = simulator.signal(row(NINE, v_los=3.0))[0, 0].argmin()
    assert GRID[redshifted] > FE_6301.wavelength + 0.04
    v = simulator.signal(row(NINE, inclination=0.0, v_los=0.0))[0, 3]
    assert v[GRID[:33] < FE_6301.wavelength - 0.02].max() > 0.1
    assert v[GRID[:33] < FE_6301.wavelength - 0.02].min() > 0
    transverse = {"inclination": math.pi / 2, "v_los": 0.0}
    centre = int(np.abs(GRID[:33] - FE_6301.wavelength).argmin())
    along_q = simulator.signal(row(NINE, azimuth=0.0, **transverse))[0, :, centre]
    along_u = simulator.signal(row(NINE, azimuth=math.pi / 4, **transverse))[0, :, centre]
    assert along_q[1] < -0.05 and along_u[2] == pytest.approx(float(along_q[1]), abs=1e-12)


def test_weak_field() -> None:
    """V = -4.67e-13 g_eff lambda^2 B cos(inclination) dI/dlambda within 2 % of its maximum, 6301.5, 100 G."""
    lam = np.linspace(6301.1, 6301.9, 1601)
    simulator = MilneEddington(NINE, lam, noise=1e-3, lines=(FE_6301,))
    i, _, _, v = simulator.signal(row(NINE, B=100.0, inclination=0.6))[0].numpy()
    weak = -4.67e-13 * 1.67 * 6301.4995**2 * 100 * math.cos(0.6) * np.gradient(i, lam)
    assert np.abs(v - weak).max() < 0.02 * np.abs(v).max()


# --- broadening ------------------------------------------------------------------------------------------------


def sigma(v_mac: float, fwhm: float = 0.0) -> np.ndarray:
    return np.hypot(COARSE * v_mac / oracle.LIGHT / math.sqrt(2), fwhm / math.sqrt(8 * math.log(2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_instrument_and_macroturbulence(dtype: torch.dtype) -> None:
    prior = Prior(*MARGINALS, V_MAC)
    theta = torch.cat([draws(prior, 8), row(prior, v_mac=0.0, width=0.0201, eta0=90.0)])
    simulator = MilneEddington(prior, COARSE, noise=1e-3, instrument=GaussianInstrument(0.055))
    got = simulator.signal(theta.to(dtype)).double().numpy()
    want = [oracle.broadened(COARSE, p, sigma(p["v_mac"], 0.055)) for p in named(prior, theta)]
    assert np.abs(got - np.array(want)).max() < (1e-6 if dtype == torch.float64 else 3e-6)


def test_macroturbulence_alone() -> None:
    prior = Prior(*MARGINALS, V_MAC)
    theta = torch.cat([draws(prior, 4), row(prior, v_mac=0.3), row(prior, v_mac=1e-9)])
    got = MilneEddington(prior, COARSE, noise=1e-3).signal(theta).numpy()
    want = [oracle.broadened(COARSE, p, sigma(p["v_mac"])) for p in named(prior, theta[:-1])]
    want.append(oracle.stokes(COARSE, named(prior, theta)[-1]))
    assert np.abs(got - np.array(want)).max() < 1e-6


def test_tabulated_instrument() -> None:
    """The table of a Gaussian does as the Gaussian; a shifted table shifts the spectrum, at fixed v_mac."""
    x = np.linspace(-0.13, 0.13, 53)
    table = tuple(7 * np.exp(-4 * math.log(2) * (x / 0.055) ** 2))
    prior = Prior(*MARGINALS, V_MAC)
    theta = draws(prior, 5)
    plain = MilneEddington(prior, COARSE, noise=1e-3, instrument=GaussianInstrument(0.055)).signal(theta)
    same = MilneEddington(prior, COARSE, noise=1e-3, instrument=TabulatedInstrument(tuple(x), table))
    assert (same.signal(theta) - plain).abs().max() < 2e-6
    options = {"noise": 1e-3, "fixed": {"v_mac": 1.0}}
    shifted = MilneEddington(NINE, COARSE, instrument=TabulatedInstrument(tuple(x + 0.02), table), **options)
    moved = MilneEddington(NINE, COARSE + 0.02, instrument=TabulatedInstrument(tuple(x), table), **options)
    assert (shifted.signal(theta[:, :9]) - moved.signal(theta[:, :9])).abs().max() < 2e-6


# --- derivatives and precision ---------------------------------------------------------------------------------


def test_gradients() -> None:
    prior = Prior(*MARGINALS, V_MAC, Uniform("filling", 0.0, 1.0), Uniform("crosstalk", -0.02, 0.02))
    simulator = MilneEddington(
        prior, COARSE[:3], noise=1e-3, instrument=GaussianInstrument(0.055), grid_step=0.016
    )
    scale = torch.tensor([1000.0, 1, 1, 1, 0.03, 10, 0.2, 1, 1, 1, 1, 0.01], dtype=torch.float64)
    unit = (row(prior) / scale).requires_grad_()
    torch.autograd.gradcheck(lambda u: simulator.signal(u * scale), unit)


@pytest.mark.parametrize("prior", [NINE, Prior(*MARGINALS, V_MAC)])
def test_gradients_are_finite_at_the_corners(prior: Prior) -> None:
    theta = draws(prior, 64)
    theta[:16, 0], theta[16:32, 6], theta[32:48, 1], theta[48:, -1] = 0.0, 0.0, 0.0, 0.0
    theta = theta.float().requires_grad_()
    MilneEddington(prior, COARSE, noise=1e-3).signal(theta).sum().backward()
    assert theta.grad is not None and theta.grad.isfinite().all()


def test_float32_follows_float64(simulator: MilneEddington) -> None:
    theta = draws(NINE, 200)
    single = simulator.signal(theta.float())
    assert single.dtype == torch.float32
    assert (single.double() - simulator.signal(theta)).abs().max() < 5e-6
    fixed = MilneEddington(NINE, GRID, noise=1e-3, precision=torch.float32)
    torch.testing.assert_close(fixed.signal(theta), single, rtol=0, atol=0)


def test_rows_do_not_depend_on_the_batch(simulator: MilneEddington) -> None:
    theta = draws(NINE, 1500)  # several chunks
    whole = simulator.signal(theta)
    assert whole.shape == (1500, 4, len(GRID))
    torch.testing.assert_close(simulator.signal(theta[700:701])[0], whole[700], rtol=0, atol=1e-14)


# --- noise and likelihood --------------------------------------------------------------------------------------


def test_noise_statistics() -> None:
    """Mean and variance of 4,000 draws per Stokes parameter; false alarms 1e-4 in all (8 tests, two-sided)."""
    levels = (1e-2, 2e-3, 3e-3, 4e-3)
    simulator = MilneEddington(NINE, COARSE, noise=levels)
    signal = simulator.signal(row(NINE)).expand(4000, -1, -1)
    x = simulator.observe(signal, torch.Generator().manual_seed(3))
    again = simulator.observe(signal, torch.Generator().manual_seed(3))
    assert torch.equal(x, again)
    for s, level in enumerate(levels):
        unit = ((x - signal)[:, s] / level).flatten().numpy()
        assert abs(stats.norm.ppf(1e-4 / 16)) > abs(unit.mean()) * math.sqrt(len(unit))
        low, high = stats.chi2.ppf([1e-4 / 16, 1 - 1e-4 / 16], len(unit))
        assert low < (unit**2).sum() < high


def test_log_likelihood(simulator: MilneEddington) -> None:
    levels = torch.rand(4, len(COARSE), dtype=torch.float64) * 0.01 + 0.001
    simulator = MilneEddington(NINE, COARSE, noise=levels)
    theta = draws(NINE, 6)
    x = simulator.observe(simulator.signal(theta), torch.Generator().manual_seed(1))
    want = stats.norm.logpdf(x[2].numpy(), simulator.signal(theta).numpy(), levels.numpy()).sum((1, 2))
    got = simulator.log_likelihood(theta.float(), x[2].float())
    assert got.dtype == torch.float64 and got.shape == (6,)
    assert simulator.log_likelihood(theta, x[2]).numpy() == pytest.approx(want, rel=1e-12)
    paired = simulator.log_likelihood(theta, x)
    assert paired[2] == pytest.approx(want[2], rel=1e-12)


# --- the paper's case ------------------------------------------------------------------------------------------


def test_paper_case() -> None:
    simulator = MilneEddington.paper_case()
    assert isinstance(simulator, Simulator)
    assert simulator.x_shape == (30,) and simulator.prior.names == ("v_los", "width", "kl", "S0", "S1")
    assert simulator.prior.low.tolist() == [-3.0, 0.05, 0.0, 0.0, 0.0]
    assert simulator.prior.high.tolist() == [3.0, 0.2, 5.0, 1.0, 1.0]
    assert simulator.noise.unique().tolist() == [8e-3]
    theta = draws(simulator.prior, 20)
    v_los, width, kl, s0, s1 = theta.numpy().T[:, :, None]
    lam = 6300.9 + 0.04 * np.arange(30)
    phi = np.exp(-(((lam - 6301.508 * (1 + v_los / 299792.458)) / width) ** 2)) / math.sqrt(math.pi)
    assert np.abs(simulator.signal(theta).numpy() - (s0 + s1 / (1 + kl * phi))).max() < 1e-10
    damped = MilneEddington(
        simulator.prior,
        lam,
        noise=8e-3,
        stokes="I",
        lines=simulator.lines,
        fixed={"damping": 1e-300, "B": 1e-9},
    )
    assert (damped.signal(theta) - simulator.signal(theta)).abs().max() < 1e-10


def test_version_names_the_configuration() -> None:
    first, second = (MilneEddington(NINE, GRID, noise=noise) for noise in (1e-3, 2e-3))
    other = MilneEddington(NINE, GRID + 0.01, noise=1e-3)
    assert first.version == second.version != other.version  # the noise is not part of what is stored


# --- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 0.0}, "noise"),
        ({"noise": [1.0, 2.0]}, "noise"),
        ({"noise": 1.0, "stokes": "VI"}, "stokes"),
        ({"noise": 1.0, "mu": 0.0}, "mu"),
        ({"noise": 1.0, "fixed": {"B": 5.0}}, "both"),
        ({"noise": 1.0, "fixed": {"mass": 5.0}}, "mass"),
        ({"noise": 1.0, "fixed": {"kl": 5.0}}, "kl"),
        ({"noise": 1.0, "fixed": {"filling": 1.5}}, "filling"),
        ({"noise": 1.0, "fixed": {"v_mac": -1.5}}, "v_mac"),
        ({"noise": 1.0, "instrument": GaussianInstrument(0.002)}, "grid_step"),
        ({"noise": 1.0, "instrument": GaussianInstrument(0.05), "grid_step": 0.0}, "grid_step"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MilneEddington(NINE, COARSE, **options)


def test_bad_input(simulator: MilneEddington) -> None:
    with pytest.raises(ValueError, match="none of"):
        MilneEddington(Prior(*MARGINALS[:-1]), COARSE, noise=1.0)
    with pytest.raises(ValueError, match="width"):
        MilneEddington(Prior(*MARGINALS[:4], Normal("width", 0.1, 0.1), *MARGINALS[5:]), COARSE, noise=1.0)
    with pytest.raises(ValueError, match="upper bound"):
        MilneEddington(Prior(*MARGINALS, LogNormal("v_mac", 0.0, 1.0)), COARSE, noise=1.0)
    with pytest.raises(ValueError, match="wavelengths"):
        MilneEddington(NINE, [6301.0, math.nan], noise=1.0)
    with pytest.raises(ValueError, match="at least one"):
        MilneEddington(NINE, [], noise=1.0)
    with pytest.raises(ValueError, match=r"theta: expected shape \(n, 9\), got \(3, 8\)"):
        simulator.signal(torch.zeros(3, 8))
    with pytest.raises(ValueError, match="x: expected shape"):
        simulator.log_likelihood(draws(NINE, 3), torch.zeros(4, 5))
    for table in (
        ((0.0, 1.0), (1.0, 1.0)),
        ((0.0, 1.0, 1.0, 2.0), (1.0,) * 4),
        ((0.0, 1.0, 2.0, 3.0), (-1.0,) * 4),
    ):
        with pytest.raises(ValueError, match="instrument"):
            TabulatedInstrument(*table)
