"""IMRPhenomD against LAL (lalsimulation; skipped where it is not installed) and against itself."""

from __future__ import annotations

import math
import warnings
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from simulators.gravitational_waves import waveform
from simulators.gravitational_waves.phenomd import Binary, Fits, Remnant, final_spin
from simulators.gravitational_waves.phenomd_amplitude import Amplitude
from simulators.gravitational_waves.phenomd_phase import Phase, _post_newtonian
from simulators.gravitational_waves.qnm import ringdown_frequencies
from simulators.gravitational_waves.waveform import SUN_SECONDS, imrphenomd

BAND = torch.arange(20.0, 1024.0, dtype=torch.float64)


class Lal(NamedTuple):
    lal: ModuleType
    simulation: ModuleType


@pytest.fixture(scope="module")
def lal() -> Lal:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own redirection of stdio
        return Lal(pytest.importorskip("lal"), pytest.importorskip("lalsimulation"))


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draws(n: int, seed: int, low: float = 10.0, high: float = 100.0, ratio: float = 1 / 8) -> Tensor:
    """Masses uniform with a mass ratio of at least `ratio`, spins uniform in [-0.99, 0.99], (4, n)."""
    random = np.random.default_rng(seed)
    mass_1 = random.uniform(low, high, n)
    mass_2 = random.uniform(np.maximum(low, ratio * mass_1), np.minimum(high, mass_1 / ratio))
    return torch.tensor(np.stack([mass_1, mass_2, *random.uniform(-0.99, 0.99, (2, n))]))


def reference(lal: Lal, row: Tensor, frequencies: Tensor, f_ref: float = 20.0) -> np.ndarray:
    """LAL's h22 at 1 Mpc; at given frequencies it goes on above M f = 0.2, where its series end."""
    mass_1, mass_2, chi_1, chi_2 = row.tolist()
    sequence = lal.lal.CreateREAL8Sequence(len(frequencies))
    sequence.data = frequencies.numpy()
    masses, distance = (mass_1 * lal.lal.MSUN_SI, mass_2 * lal.lal.MSUN_SI), 1e6 * lal.lal.PC_SI
    h = lal.simulation.SimIMRPhenomDFrequencySequence(
        sequence, 0.0, f_ref, *masses, chi_1, chi_2, distance, None, lal.simulation.NoNRT_V
    )
    below = (mass_1 + mass_2) * lal.lal.MTSUN_SI * frequencies.numpy() < 0.2
    return np.where(below, h.data.data, 0.0)


def aligo(frequencies: Tensor) -> np.ndarray:
    """Advanced LIGO's design, arXiv 1107.1267, up to a factor."""
    x = frequencies.numpy() / 245.48
    return 0.0152 * x**-4 + 0.2935 * x**2.25 + 2.7951 * x**1.5 - 6.5080 * x**0.75 + 17.7622


def assert_like_lal(lal: Lal, rows: Tensor, frequencies: Tensor, f_ref: float = 20.0) -> None:
    """Overlap without maximisation, and amplitude bin by bin."""
    got = imrphenomd(*rows, frequencies, f_ref).numpy()
    weight = 1 / aligo(frequencies)
    for row, h in zip(rows.T, got, strict=True):
        want = reference(lal, row, frequencies, f_ref)
        overlap = (want.conj() * h * weight).sum().real
        norms = (abs(want) ** 2 * weight).sum() * (abs(h) ** 2 * weight).sum()
        assert 1 - overlap / math.sqrt(norms) < 1e-12, row
        assert np.allclose(abs(h), abs(want), rtol=1e-9, atol=0.0), row


# --- against LAL -----------------------------------------------------------------------------------------------


def test_waveform(lal: Lal) -> None:
    assert_like_lal(lal, draws(1000, seed=1), BAND)


def test_waveform_of_eight_seconds(lal: Lal) -> None:
    assert_like_lal(
        lal, draws(20, seed=2), torch.arange(20 * 8, 512 * 8, dtype=torch.float64) / 8, f_ref=50.0
    )


@pytest.mark.slow
def test_waveform_of_many(lal: Lal) -> None:
    assert_like_lal(lal, draws(10_000, seed=3), BAND)
    assert_like_lal(lal, draws(10_000, seed=4, low=1.0, high=300.0, ratio=1 / 50), BAND)


@pytest.mark.parametrize("chi", [(1.0, 1.0), (-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0), (0.0, 0.0)])
@pytest.mark.parametrize("masses", [(30.0, 30.0), (30.0, 1.5), (3.0, 60.0), (60.0, 59.99)])
def test_edges(lal: Lal, masses: tuple[float, float], chi: tuple[float, float]) -> None:
    assert_like_lal(lal, column(*masses, *chi).unsqueeze(-1), BAND)


def test_nearly_equal_masses() -> None:
    """Continuous there, where LAL's sqrt(1 - 4 eta) has lost half its digits and is off by 1e-8."""
    chi = column(0.9, -0.5)
    equal, near = (imrphenomd(column(60.0), column(m), *chi.split(1), BAND) for m in (60.0, 60.0 - 1e-9))
    assert (near - equal).abs().max() < 1e-8 * equal.abs().max()


@pytest.mark.parametrize("f_ref", [1.0, 100.0, 400.0])  # inspiral, intermediate or merger, ringdown
def test_reference_frequency(lal: Lal, f_ref: float) -> None:
    assert_like_lal(lal, draws(20, seed=5), BAND, f_ref)


def test_polarisations(lal: Lal) -> None:
    """h+ = (1 + cos^2 i) / 2 h22 e^{2 i phi_ref}, hx = -i cos i h22 e^{2 i phi_ref}, on LAL's own grid."""
    inclination, phi_ref, distance = 0.7, 0.4, 440.0
    for mass_1, mass_2, chi_1, chi_2 in draws(10, seed=6).T.tolist():
        masses = (mass_1 * lal.lal.MSUN_SI, mass_2 * lal.lal.MSUN_SI)
        spins, orbit = (0.0, 0.0, chi_1, 0.0, 0.0, chi_2), (inclination, phi_ref, 0.0, 0.0, 0.0)
        grid = (1.0, 20.0, 1024.0, 20.0, None, lal.simulation.IMRPhenomD)
        plus, cross = lal.simulation.SimInspiralChooseFDWaveform(
            *masses, *spins, distance * 1e6 * lal.lal.PC_SI, *orbit, *grid
        )
        h = imrphenomd(*column(mass_1, mass_2, chi_1, chi_2).unsqueeze(-1), BAND)[0].numpy()
        h *= np.exp(2j * phi_ref) / distance
        there = abs(plus.data.data[20:1024]) > 0  # its grid ends one bin before M f = 0.2
        assert there.sum() >= (abs(h) > 0).sum() - 1
        want_plus, want_cross = plus.data.data[20:1024][there], cross.data.data[20:1024][there]
        np.testing.assert_allclose(0.5 * (1 + math.cos(inclination) ** 2) * h[there], want_plus, rtol=1e-9)
        np.testing.assert_allclose(-1j * math.cos(inclination) * h[there], want_cross, rtol=1e-9)


def test_ringdown_table(lal: Lal) -> None:
    """The peak f_RD - O(f_damp) in Hz and the final spin, for final spins over the whole table."""
    rows = draws(2000, seed=7, low=1.0, high=100.0, ratio=1 / 200)
    rows[2:, ::4] = rows[2:, ::4].sign()
    binary = Binary.sorted(*rows)
    fits, remnant = Fits.of(binary), Remnant.of(binary)
    peak = Amplitude.of(binary, fits, remnant).second / (binary.total_mass * SUN_SECONDS)
    spin = final_spin(binary)
    assert spin.min() < -0.9 and spin.max() > 0.99
    for row, got_peak, got_spin in zip(rows.T.tolist(), peak.tolist(), spin.tolist(), strict=True):
        assert got_peak == pytest.approx(lal.simulation.IMRPhenomDGetPeakFreq(*row), rel=1e-11)
        order = row if row[0] >= row[1] else (row[1], row[0], row[3], row[2])
        want = lal.simulation.SimIMRPhenomDFinalSpin(order[0], order[1], order[2], order[3])
        assert got_spin == pytest.approx(want, rel=1e-11, abs=1e-13)


def test_post_newtonian_coefficients(lal: Lal) -> None:
    """All but v[6], of which IMRPhenomD takes no spin-spin part: that one is compared without spin."""
    for chi_1, chi_2 in ((0.0, 0.0), (0.3, -0.5), (-0.9, 0.8)):
        want = lal.simulation.SimInspiralTaylorF2AlignedPhasing(
            36.0, 29.0, chi_1, chi_2, lal.lal.CreateDict()
        )
        binary = Binary.sorted(*column(36.0, 29.0, chi_1, chi_2).unsqueeze(-1))
        got = torch.cat(_post_newtonian(binary)).numpy()
        orders = [0, 1, 2, 3, 4, 5, 7] + ([6] if chi_1 == 0 else [])
        np.testing.assert_allclose(got[orders], want.v[orders] / want.v[0], rtol=1e-12, atol=1e-12)


# --- without LAL -----------------------------------------------------------------------------------------------


def test_kerr_modes() -> None:
    """2 pi M f of Berti, Cardoso & Starinets (0905.2975) Table: l = m = 2, n = 0, and Schwarzschild."""
    for spin, real, imaginary in ((0.0, 0.37367, 0.08896), (0.7, 0.53260, 0.08079), (0.98, 0.82543, 0.03862)):
        ring, damp = ringdown_frequencies(column(spin))
        assert 2 * math.pi * float(ring) == pytest.approx(real, abs=2e-5)
        assert 2 * math.pi * float(damp) == pytest.approx(imaginary, abs=2e-5)
    assert all(value.isnan().all() for value in ringdown_frequencies(column(1.0001, -1.0001)))


def test_newtonian_limit() -> None:
    """sqrt(5 / 24) pi^-2/3 (G Mc / c^3)^5/6 c / d f^-7/6; the first correction is -(969 - 1804 eta) / 672 v^2."""
    f = column(1e-4, 1e-3)
    h = imrphenomd(column(36.0), column(29.0), column(0.5), column(-0.2), f)[0].abs()
    chirp = (36.0 * 29.0) ** 0.6 / 65.0**0.2 * SUN_SECONDS
    distance = 3.0856775814913674e22 / 299792458.0
    newton = math.sqrt(5 / 24) * math.pi ** (-2 / 3) * chirp ** (5 / 6) / distance * f ** (-7 / 6)
    assert torch.allclose(h, newton, rtol=2e-4, atol=0.0)
    slope = (h[1] / h[0]).log() / math.log(10)
    assert float(slope) == pytest.approx(-7 / 6, abs=1e-4)
    eta, v = 36.0 * 29.0 / 65.0**2, (math.pi * 65.0 * SUN_SECONDS * f) ** (1 / 3)
    first = -(969 - 1804 * eta) / 672 * v**2
    assert torch.allclose(h / newton - 1, first, rtol=0.03, atol=0.0)


def test_phase_vanishes_at_the_reference_frequency() -> None:
    rows = draws(20, seed=8)
    h = imrphenomd(*rows, column(20.0, 75.0), f_ref=75.0)
    assert torch.allclose(h[:, 1].angle(), torch.zeros(20, dtype=torch.float64), rtol=0.0, atol=1e-9)
    turned = imrphenomd(*rows, column(20.0, 75.0), f_ref=20.0)
    constant = h / turned
    assert torch.allclose(constant[:, 0].abs(), constant[:, 0].abs() * 0 + 1, rtol=0.0, atol=1e-12)


def test_pieces_join() -> None:
    """Phase and slope are continuous at both joins, as is the amplitude."""
    binary = Binary.sorted(*draws(50, seed=9))
    fits, remnant = Fits.of(binary), Remnant.of(binary)
    phase, amplitude = Phase.of(binary, fits, remnant), Amplitude.of(binary, fits, remnant)
    step = 1e-7
    for y in (phase.first, phase.second):
        below, above = phase.value(y - step), phase.value(y + step)
        assert torch.allclose(below, above, rtol=0.0, atol=1e-2)
        left, right = below - phase.value(y - 2 * step), phase.value(y + 2 * step) - above
        assert torch.allclose(left, right, rtol=2e-4, atol=1e-9)
    value, slope = amplitude.inspiral, amplitude.intermediate
    assert torch.allclose(value.value(amplitude.first), slope.value(amplitude.first), rtol=1e-11)
    assert torch.allclose(value.slope(amplitude.first), slope.slope(amplitude.first), rtol=1e-9)
    half_way = (amplitude.first + amplitude.second) / 2
    assert torch.allclose(slope.value(half_way), fits.v_2, rtol=1e-11)


def test_zero_above_the_cut() -> None:
    h = imrphenomd(column(80.0, 10.0), column(80.0, 10.0), column(0.0, 0.0), column(0.0, 0.0), BAND)
    f_cut = 0.2 / (column(160.0, 20.0) * SUN_SECONDS)
    assert torch.equal(h != 0, f_cut.unsqueeze(-1) > BAND)
    assert not imrphenomd(*column(80.0, 80.0, 0.0, 0.0).unsqueeze(-1), column(300.0, 400.0)).any()


# --- the batch -------------------------------------------------------------------------------------------------


def test_rows_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = draws(70, seed=10)
    whole = imrphenomd(*rows, BAND)
    assert whole.shape == (70, len(BAND)) and whole.dtype == torch.complex128
    scale = whole.abs().amax()
    each = torch.cat([imrphenomd(*row.unsqueeze(-1), BAND) for row in rows.T])
    assert (each - whole).abs().max() < 1e-10 * scale
    monkeypatch.setattr(waveform, "_BLOCK", 9 * len(BAND))
    assert (imrphenomd(*rows, BAND) - whole).abs().max() < 1e-10 * scale
    some = imrphenomd(*rows, BAND[::7])
    assert (some - whole[:, ::7]).abs().max() < 1e-10 * scale


def test_without_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU computes every piece on every bin; that gives the same."""
    rows = draws(20, seed=11)
    want = imrphenomd(*rows, BAND)
    monkeypatch.setattr(waveform, "_spans", lambda model, size: [[(0, len(BAND))] * 5])
    monkeypatch.setattr(waveform, "_block_size", lambda device: 1 << 22)
    assert (imrphenomd(*rows, BAND) - want).abs().max() < 1e-12 * want.abs().max()


def test_bodies_can_be_swapped() -> None:
    mass_1, mass_2, chi_1, chi_2 = draws(30, seed=12)
    one, two = imrphenomd(mass_1, mass_2, chi_1, chi_2, BAND), imrphenomd(mass_2, mass_1, chi_2, chi_1, BAND)
    assert torch.equal(one, two)


def test_one_frequency_one_row_no_row() -> None:
    rows = draws(3, seed=13)
    assert torch.allclose(imrphenomd(*rows, BAND[40:41])[:, 0], imrphenomd(*rows, BAND)[:, 40], rtol=1e-9)
    assert imrphenomd(*rows[:, :0], BAND).shape == (0, len(BAND))


def test_single_precision_and_arrays_are_taken() -> None:
    rows = draws(4, seed=14).float()
    h = imrphenomd(*rows, BAND.float())
    assert h.dtype == torch.complex128
    assert torch.equal(h, imrphenomd(*(row.double().numpy() for row in rows), BAND.numpy()))


# --- gradients -------------------------------------------------------------------------------------------------


def test_gradients() -> None:
    """Against finite differences, in all three regions."""
    unit = column(100.0, 100.0, 1.0, 1.0).unsqueeze(-1)
    rows = (draws(3, seed=15) / unit).requires_grad_()

    def scaled(rows: Tensor) -> Tensor:
        h = imrphenomd(*(rows * unit), column(22.0, 40.0, 80.0, 150.0, 200.0)) * 1e20
        return torch.view_as_real(h)

    torch.autograd.gradcheck(scaled, rows, eps=1e-7, atol=1e-3, rtol=1e-5)


def test_gradients_are_finite_at_the_edges() -> None:
    rows = column(30.0, 30.0, 0.3, 0.3, 60.0, 3.0, 1.0, -1.0, 80.0, 80.0, -1.0, -1.0).reshape(3, 4).T
    rows = rows.contiguous().requires_grad_()
    (torch.view_as_real(imrphenomd(*rows, BAND)) * 1e22).sum().backward()
    assert rows.grad is not None and rows.grad.isfinite().all()
    assert rows.grad[0, 0] == pytest.approx(float(rows.grad[1, 0]), rel=1e-6)  # equal masses and spins


def test_gradient_after_inference_mode() -> None:
    """What is kept between calls may be made under inference mode, and is usable afterwards."""
    with torch.inference_mode():
        imrphenomd(*draws(2, seed=16), BAND[:7])
    rows = draws(2, seed=16).requires_grad_()
    imrphenomd(*rows, BAND[:7]).abs().sum().backward()
    assert rows.grad is not None


# --- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mass_1": column(30.0, 0.0)}, r"mass_1: expected finite masses > 0, got 0\.0"),
        ({"mass_2": column(-3.0, 20.0)}, "mass_2: expected finite masses > 0, got -3"),
        ({"mass_2": column(math.inf, 20.0)}, "mass_2: expected finite masses > 0, got inf"),
        ({"mass_1": column(math.nan, 20.0)}, "mass_1: expected finite masses > 0, got nan"),
        ({"chi_1": column(0.0, 1.01)}, r"chi_1: expected spins in \[-1, 1\], got 1.01"),
        ({"chi_2": column(math.nan, 0.0)}, "chi_2: expected spins"),
        ({"chi_2": column(0.0)}, r"chi_2: expected shape \(2,\), got \(1,\)"),
        ({"mass_1": torch.ones(2, 1)}, r"mass_1: expected shape \(n,\), got \(2, 1\)"),
        (
            {"frequencies": column(0.0, 1.0)},
            r"frequencies: expected positive, increasing values, got \[0, 1\]",
        ),
        ({"frequencies": column(20.0, 20.0)}, "increasing"),
        ({"frequencies": column(20.0, math.nan)}, "increasing"),
        ({"frequencies": torch.ones(2, 2)}, "frequencies: expected shape"),
        ({"frequencies": torch.ones(0)}, "at least one"),
        ({"f_ref": 0.0}, "f_ref"),
    ],
)
def test_bad_input(changed: dict, message: str) -> None:
    good = {"mass_1": column(30.0, 40.0), "mass_2": column(20.0, 20.0)}
    good |= {"chi_1": column(0.0, 0.1), "chi_2": column(0.0, 0.1), "frequencies": BAND}
    with pytest.raises(ValueError, match=message):
        imrphenomd(**(good | changed))


@pytest.mark.gpu
def test_gpu_agrees_and_does_not_wait() -> None:
    rows = draws(200, seed=17)
    want = imrphenomd(*rows, BAND)
    device_rows, band = rows.cuda(), BAND.cuda()
    imrphenomd(*device_rows, band)  # fills what is kept between calls
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = imrphenomd(*device_rows, band, validate=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (got.cpu() - want).abs().max() < 1e-9 * want.abs().max()
