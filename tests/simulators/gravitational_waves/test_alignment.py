"""The matched filter's frame: invertible, equivariant, and safe where there is nothing to find."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from simulators.gravitational_waves.alignment import MatchedFilter, Pose, shift, turn

FREQUENCIES = torch.arange(20.0, 512.0, dtype=torch.float64)
WINDOW, LIGHT_TRAVEL = 0.05, 0.01
PRECISION = {torch.float64: 1e-11, torch.float32: 3e-5}


def chirps(detectors: int, count: int = 3) -> Tensor:
    """Unit templates (I, K, F): Newtonian amplitude under Gaussians around 90 Hz, quadratic phases."""
    f = FREQUENCIES
    rows = []
    for i in range(detectors):
        for k in range(count):
            amplitude = f ** (-7 / 6) * torch.exp(-0.5 * ((f - 85.0 - 5 * k) / (35.0 + i)) ** 2)
            rows.append(torch.polar(amplitude, 2e-4 * (k + 1 + i) * (f - 90.0) ** 2))
    templates = torch.stack(rows).unflatten(0, (detectors, count))
    return templates / templates.abs().square().sum(-1, keepdim=True).sqrt()


def matched_filter(detectors: int = 1, count: int = 3) -> MatchedFilter:
    return MatchedFilter(FREQUENCIES, chirps(detectors, count), WINDOW, LIGHT_TRAVEL)


def parts(series: Tensor) -> Tensor:
    """(..., F) complex -> (..., 2, F)."""
    return torch.stack([series.real, series.imag], -2)


def signals(search: MatchedFilter, n: int, snr: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """The middle template of that SNR in noise, (n, I, 2, F)."""
    noise = torch.randn(n, len(search.templates), 2, len(FREQUENCIES), generator=seeded(), dtype=dtype)
    return snr * parts(search.middle).to(dtype) + noise


def seeded(seed: int = 1) -> Generator:
    return torch.Generator().manual_seed(seed)


def wrapped(angle: Tensor) -> Tensor:
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def error_of_time(search: MatchedFilter, snr: float) -> float:
    """Cramér and Rao's bound [s]."""
    return 1 / (2 * math.pi * search.moments[1] * snr)


# --- the frame -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "detectors"), [(1, 1), (7, 1), (1, 2), (7, 2)])
def test_restore_undoes_align(dtype: torch.dtype, n: int, detectors: int) -> None:
    search = matched_filter(detectors)
    strain = signals(search, n, 15.0, dtype)
    aligned, pose = search.align(strain)
    assert aligned.dtype == pose.snr.dtype == dtype
    assert aligned.shape == strain.shape and pose.time.shape == pose.phase.shape == (n, detectors)
    restored = search.restore(aligned, pose.time, pose.phase)
    torch.testing.assert_close(restored, strain, rtol=0, atol=PRECISION[dtype])
    power, before = (s.square().sum((-2, -1)) for s in (aligned, strain))
    torch.testing.assert_close(power, before, rtol=PRECISION[dtype], atol=0)  # nothing is lost on the way


@pytest.mark.parametrize("detectors", [1, 2])
@pytest.mark.parametrize("steps", [-7, 3])
def test_a_delay_moves_the_time_by_itself(detectors: int, steps: int) -> None:
    """Exactly so for whole steps of the search, whatever the noise."""
    search = matched_filter(detectors)
    strain = signals(search, 20, 15.0)
    delay = steps * float(search.times[1] - search.times[0])
    later = shift(strain, torch.full((20, detectors), delay, dtype=torch.float64), FREQUENCIES)
    moved(search.align(strain), search.align(later), time=delay, phase=0.0)


@pytest.mark.parametrize("detectors", [1, 2])
def test_a_turn_moves_the_phase_by_itself(detectors: int) -> None:
    search = matched_filter(detectors)
    strain = signals(search, 20, 15.0)
    angle = torch.rand(20, detectors, generator=seeded(2), dtype=torch.float64) * 20 - 10
    moved(search.align(strain), search.align(turn(strain, angle)), time=0.0, phase=angle)


def moved(
    before: tuple[Tensor, Pose], after: tuple[Tensor, Pose], time: float, phase: float | Tensor
) -> None:
    """The pose changes by time and phase, the strain in its frame not at all."""
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-8)
    torch.testing.assert_close(after[1].snr, before[1].snr, rtol=1e-9, atol=0)
    torch.testing.assert_close(after[1].time, before[1].time + time, rtol=0, atol=1e-12)
    assert wrapped(after[1].phase - before[1].phase - phase).abs().max() < 1e-8


@pytest.mark.parametrize("window", [WINDOW, WINDOW + 1e-4])  # the first is a whole number of steps
def test_any_delay_moves_the_time_well_below_its_error(window: float) -> None:
    """Between the steps a parabola does it: to a fifth of what noise does to the time at SNR 40."""
    search = MatchedFilter(FREQUENCIES, chirps(1), window)
    strain = 40.0 * parts(search.middle)[None].expand(200, -1, -1, -1)
    delay = torch.linspace(-0.9 * WINDOW, 0.9 * WINDOW, 200, dtype=torch.float64)[:, None]
    _, pose = search.align(shift(strain, delay, FREQUENCIES))
    off = pose.time - delay
    assert (off - off.mean()).abs().max() < 0.2 * error_of_time(search, 40.0)


def test_delay_by_the_convention() -> None:
    """Later by t: times e^{-2πi f t}; turned by phi: times e^{i phi}."""
    strain, delay = signals(matched_filter(), 1, 5.0), 0.0123
    series = torch.complex(*strain[0, 0])
    later = shift(strain, torch.tensor([[delay]], dtype=torch.float64), FREQUENCIES)
    torch.testing.assert_close(
        torch.complex(*later[0, 0]), series * torch.exp(-2j * math.pi * FREQUENCIES * delay)
    )
    turned = turn(strain, torch.tensor([[0.7]], dtype=torch.float64))
    torch.testing.assert_close(torch.complex(*turned[0, 0]), series * complex(math.cos(0.7), math.sin(0.7)))


def test_long_delays_keep_their_precision_in_float32() -> None:
    strain, delay = signals(matched_filter(), 4, 5.0), torch.full((4, 1), 7.654321, dtype=torch.float64)
    single = shift(strain.float(), delay, FREQUENCIES)
    assert (single - shift(strain, delay, FREQUENCIES)).abs().max() < 2e-6 * strain.abs().max()


# --- what the filter finds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_lone_template_is_found_where_it_is(dtype: torch.dtype) -> None:
    search = matched_filter(count=1)
    angle, delay, snr = 1.1, 0.013, 23.0
    strain = snr * parts(search.middle * torch.exp(1j * angle - 2j * math.pi * FREQUENCIES * delay))[None]
    _, pose = search.align(strain.to(dtype))
    error = error_of_time(search, snr)
    assert abs(float(pose.time) - delay) < 0.1 * error
    assert abs(float(wrapped(pose.phase - angle))) < 2 * math.pi * search.moments[0] * 0.1 * error + 1e-5
    assert float(pose.snr) == pytest.approx(snr, rel=1e-4)


def test_errors_in_noise_are_those_of_cramer_and_rao() -> None:
    """2,000 noise draws: the spread of the time is the bound's to a tenth (template and signal are the same)."""
    search = matched_filter(count=1)
    _, pose = search.align(signals(search, 2000, 20.0))
    assert float(pose.time.std()) == pytest.approx(error_of_time(search, 20.0), rel=0.1)
    assert abs(float(pose.time.mean())) < 5 * float(pose.time.std()) / math.sqrt(2000)
    # power of a complex matched filter: rho^2 + 2 in noise
    assert float(pose.snr.square().mean()) == pytest.approx(20.0**2 + 2, rel=0.01)


def test_moments_of_a_band() -> None:
    """A flat template: mean and standard deviation of a uniform distribution."""
    flat = torch.ones(1, 1, len(FREQUENCIES), dtype=torch.complex128) / math.sqrt(len(FREQUENCIES))
    mean, spread = MatchedFilter(FREQUENCIES, flat, WINDOW).moments
    assert mean == pytest.approx(265.5, abs=1e-9)
    assert spread == pytest.approx(math.sqrt((492**2 - 1) / 12), rel=1e-12)


# --- edges -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("detectors", [1, 2])
def test_zero_strain(dtype: torch.dtype, detectors: int) -> None:
    aligned, pose = matched_filter(detectors).align(
        torch.zeros(3, detectors, 2, len(FREQUENCIES), dtype=dtype)
    )
    assert aligned.abs().max() == 0 and pose.snr.max() == 0
    assert all(bool(values.isfinite().all()) for values in pose)
    assert float(pose.time.abs().max()) <= WINDOW


def test_a_signal_beyond_the_window_stays_inside_it() -> None:
    search = matched_filter()
    strain = shift(
        40.0 * parts(search.middle)[None], torch.tensor([[1.2 * WINDOW]], dtype=torch.float64), FREQUENCIES
    )
    aligned, pose = search.align(strain)
    assert float(pose.time.abs()) <= WINDOW
    torch.testing.assert_close(search.restore(aligned, pose.time, pose.phase), strain, rtol=0, atol=1e-10)


def test_a_faint_detector_looks_where_the_loud_one_found_the_signal() -> None:
    search = matched_filter(2)
    strain = signals(search, 200, 0.0)
    strain[:100, 0] += 30.0 * parts(search.middle[0])
    strain[100:, 1] += 30.0 * parts(search.middle[1])
    _, pose = search.align(strain)
    assert (pose.time[:, 0] - pose.time[:, 1]).abs().max() <= LIGHT_TRAVEL + 3 * search.step


def test_rows_do_not_depend_on_the_batch() -> None:
    search = matched_filter(2)
    strain = signals(search, 9, 12.0)
    whole, pose = search.align(strain)
    alone, own = search.align(strain[4:5])
    torch.testing.assert_close(alone[0], whole[4], rtol=0, atol=1e-12)
    for one, all_of_them in zip(own, pose, strict=True):
        torch.testing.assert_close(one[0], all_of_them[4], rtol=0, atol=1e-12)
