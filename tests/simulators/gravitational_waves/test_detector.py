"""Detectors against LAL: responses, sidereal time, antenna patterns, delays; the frame of a baseline."""

from __future__ import annotations

import itertools
import math
import warnings
from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from simulators.gravitational_waves.detector import (
    H1,
    L1,
    SPEED_OF_LIGHT,
    V1,
    Detector,
    antenna_patterns,
    arrival_delay,
    baseline_to_sky,
    detector,
    from_arms,
    greenwich_sidereal_time,
    sky_to_baseline,
)

ALL = (H1, L1, V1)
PAIRS = list(itertools.permutations(ALL, 2))
GW150914 = 1126259462.4
DRAWS = 1000


@pytest.fixture(scope="module")
def lal() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its binding redirects standard output and says so
        return pytest.importorskip("lal")


def sky(n: int = DRAWS, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """ra, dec, psi of an isotropic sky."""
    u = torch.rand(3, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 2 * math.pi * u[0], torch.asin(2 * u[1] - 1), math.pi * u[2]


def times(n: int = DRAWS, seed: int = 2) -> list[float]:
    return np.random.default_rng(seed).uniform(0, 1.5e9, n).tolist()


# --- against LAL -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ours", ALL, ids=lambda one: one.name)
def test_geometry_is_that_of_lal(lal: ModuleType, ours: Detector) -> None:
    theirs = lal.cached_detector_by_prefix[ours.name]
    assert np.array_equal(np.array(ours.response, dtype=np.float32), theirs.response)
    assert np.abs(np.subtract(ours.vertex, theirs.location)).max() < 1e-5  # metres


def angle_apart(a: float, b: float) -> float:
    return abs(math.remainder(a - b, 2 * math.pi))


JULIAN_DAY_ROUNDING = 2 * math.pi * math.ulp(2_457_000.5) / 2  # 1.5e-9: LAL's sidereal time goes through one


def test_sidereal_time(lal: ModuleType) -> None:
    for gps in [*times(), 0.0, GW150914, 630_763_213.0]:
        theirs = lal.GreenwichMeanSiderealTime(lal.LIGOTimeGPS(gps))
        ours = greenwich_sidereal_time(gps)
        assert 0 <= ours < 2 * math.pi
        assert angle_apart(ours, theirs) < JULIAN_DAY_ROUNDING + 1e-11


def test_sidereal_time_in_exact_arithmetic(lal: ModuleType) -> None:
    for gps in [*times(300), GW150914]:
        second = Fraction(gps) - (lal.LeapSeconds(int(gps)) - 19)
        days = second / 86400 - Fraction("7300.5")
        centuries = days / 36525
        linear, cubic = Fraction("8640184.812866") * centuries, Fraction("-6.2e-6") * centuries**3
        sidereal = (
            Fraction("67310.54841") + linear + Fraction("0.093104") * centuries**2 + cubic + 86400 * days
        )
        assert angle_apart(greenwich_sidereal_time(gps), float(sidereal / 86400 % 1) * 2 * math.pi) < 1e-13


def test_leap_seconds(lal: ModuleType) -> None:
    """Every day from 1980 to 2026 on which LAL inserts one, and every second around it."""
    days = range(0, 1_482_000_000, 86_400)
    changes = [day for day in days if lal.LeapSeconds(day) != lal.LeapSeconds(day + 86_400)]
    assert len(changes) == 18
    exact = [
        min(s for s in range(c, c + 86_401) if lal.LeapSeconds(s) != lal.LeapSeconds(c)) for c in changes
    ]
    for gps in (second + step for second in exact for step in (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)):
        theirs = lal.GreenwichMeanSiderealTime(lal.LIGOTimeGPS(gps))
        assert angle_apart(greenwich_sidereal_time(gps), theirs) < 2 * JULIAN_DAY_ROUNDING


@pytest.mark.parametrize("ours", ALL, ids=lambda one: one.name)
def test_patterns(lal: ModuleType, ours: Detector) -> None:
    ra, dec, psi = sky()
    gmst = torch.tensor([greenwich_sidereal_time(gps) for gps in times()], dtype=torch.float64)
    got = torch.stack(antenna_patterns(ours, ra, dec, psi, gmst), 1)
    response = lal.cached_detector_by_prefix[ours.name].response
    rows = torch.stack([ra, dec, psi, gmst], 1).tolist()
    want = torch.tensor([lal.ComputeDetAMResponse(response, *row) for row in rows], dtype=torch.float64)
    assert (got - want).abs().max() < 1e-12


@pytest.mark.parametrize("ours", ALL, ids=lambda one: one.name)
def test_delays(lal: ModuleType, ours: Detector) -> None:
    ra, dec, _ = sky()
    location = lal.cached_detector_by_prefix[ours.name].location
    when = [lal.LIGOTimeGPS(gps) for gps in times()]
    rows = zip(ra.tolist(), dec.tolist(), when, strict=True)
    want = torch.tensor([lal.TimeDelayFromEarthCenter(location, *row) for row in rows], dtype=torch.float64)
    theirs = torch.tensor([lal.GreenwichMeanSiderealTime(gps) for gps in when], dtype=torch.float64)
    gmst = torch.tensor([greenwich_sidereal_time(gps) for gps in times()], dtype=torch.float64)
    assert (arrival_delay(ours, ra, dec, theirs) - want).abs().max() < 1e-15  # seconds
    assert (arrival_delay(ours, ra, dec, gmst) - want).abs().max() < 1e-10


# --- properties ------------------------------------------------------------------------------------------------


def test_overhead_source_has_full_response() -> None:
    """At the zenith of a detector with perpendicular arms, F+^2 + Fx^2 = sin^2(angle of the arms) = 1."""
    for one in ALL:
        plane = np.linalg.eigh(np.array(one.response))
        normal = plane.eigenvectors[:, np.argmin(np.abs(plane.eigenvalues))]
        ra = torch.tensor(math.atan2(normal[1], normal[0]), dtype=torch.float64)
        dec = torch.tensor(math.asin(normal[2]), dtype=torch.float64)
        plus, cross = antenna_patterns(one, ra, dec, torch.zeros_like(ra), 0.0)
        assert (plus.square() + cross.square()).item() == pytest.approx(1, abs=1e-6)


def test_average_response_of_an_isotropic_sky() -> None:
    """<F+^2> = <Fx^2> = 1/5 for perpendicular arms; gate 5 sigma (6e-7 each)."""
    ra, dec, psi = sky(200_000)
    for pattern in antenna_patterns(L1, ra, dec, psi, 1.0):
        squares = pattern.square()
        assert abs(squares.mean() - 0.2) < 5 * squares.std() / math.sqrt(len(ra))


def test_psi_has_the_period_pi_and_turns_plus_into_cross() -> None:
    ra, dec, psi = sky()
    plus, cross = antenna_patterns(H1, ra, dec, psi, 0.3)
    for turned, want in ((psi + math.pi, (plus, cross)), (psi + math.pi / 4, (cross, -plus))):
        for got, expected in zip(antenna_patterns(H1, ra, dec, turned, 0.3), want, strict=True):
            assert (got - expected).abs().max() < 1e-14


def test_only_ra_minus_gmst_matters_and_shapes_broadcast() -> None:
    ra, dec, psi = sky(6)
    moved = antenna_patterns(V1, ra + 0.7, dec, psi, 1.7)
    for got, want in zip(moved, antenna_patterns(V1, ra, dec, psi, 1.0), strict=True):
        assert (got - want).abs().max() < 1e-14
    plus, _ = antenna_patterns(V1, ra[:, None], dec[:3], psi[0], 0.0)
    assert plus.shape == (6, 3)
    assert arrival_delay(V1, ra[:, None], dec[:3], 0.0).shape == (6, 3)
    single, _ = antenna_patterns(V1, ra[4], dec[2], psi[0], 0.0)
    assert plus[4, 2] == single


def test_float32_and_gradients() -> None:
    ra, dec, psi = (angle.float().requires_grad_() for angle in sky(50))
    plus, cross = antenna_patterns(H1, ra, dec, psi, 0.4)
    delay = arrival_delay(H1, ra, dec, 0.4)
    assert plus.dtype == cross.dtype == delay.dtype == torch.float32
    (plus.sum() + cross.sum() + delay.sum()).backward()
    assert all(angle.grad is not None and angle.grad.isfinite().all() for angle in (ra, dec, psi))


# --- the frame of a baseline -----------------------------------------------------------------------------------


def baseline(first: Detector, second: Detector) -> float:
    return math.dist(first.vertex, second.vertex) / SPEED_OF_LIGHT


def directions(n: int = DRAWS) -> tuple[Tensor, Tensor]:
    u = torch.rand(2, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.acos(2 * u[0] - 1), 2 * math.pi * u[1]


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda one: one.name)
def test_arrival_times_depend_on_the_zenith_only(first: Detector, second: Detector) -> None:
    zenith, azimuth = directions()
    ra, dec = baseline_to_sky(zenith, azimuth, first, second, 0.8)
    difference = arrival_delay(second, ra, dec, 0.8) - arrival_delay(first, ra, dec, 0.8)
    assert (difference + baseline(first, second) * zenith.cos()).abs().max() < 1e-15


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda one: one.name)
def test_round_trips(first: Detector, second: Detector) -> None:
    ra, dec, _ = sky()
    zenith, azimuth = sky_to_baseline(ra, dec, first, second, 2.1)
    assert ((zenith >= 0) & (zenith <= math.pi) & (azimuth >= 0) & (azimuth < 2 * math.pi)).all()
    back = baseline_to_sky(zenith, azimuth, first, second, 2.1)
    assert max((back[0] - ra).abs().max(), (back[1] - dec).abs().max()) < 1e-12
    zenith, azimuth = directions()
    forth = sky_to_baseline(*baseline_to_sky(zenith, azimuth, first, second, 2.1), first, second, 2.1)
    assert max((forth[0] - zenith).abs().max(), (forth[1] - azimuth).abs().max()) < 1e-12


def test_round_trip_next_to_the_poles() -> None:
    tiny = torch.tensor([0.0, 1e-9, 1e-5], dtype=torch.float64)
    for zenith in (tiny, math.pi - tiny):
        ra, dec = baseline_to_sky(zenith, torch.full_like(zenith, 1.0), H1, L1, 0.0)
        assert (sky_to_baseline(ra, dec, H1, L1, 0.0)[0] - zenith).abs().max() < 1e-15


def test_azimuth_zero_holds_the_north_pole() -> None:
    ra, pole = torch.zeros(1, dtype=torch.float64), torch.full((1,), math.pi / 2, dtype=torch.float64)
    _, azimuth = sky_to_baseline(ra, pole, H1, L1, 0.5)
    assert abs(math.remainder(azimuth.item(), 2 * math.pi)) < 1e-15


def test_isotropic_in_both_frames() -> None:
    """Kolmogorov-Smirnov at p > 1e-4 for each of four: a false alarm in 2,500 seeds."""
    ra, dec, _ = sky(20_000)
    zenith, azimuth = sky_to_baseline(ra, dec, H1, L1, 0.9)
    back = baseline_to_sky(*directions(20_000), H1, L1, 0.9)
    for cosine, turn in ((zenith.cos(), azimuth), (back[1].sin(), back[0])):
        assert stats.kstest(cosine.numpy(), "uniform", args=(-1, 2)).pvalue > 1e-4
        assert stats.kstest(turn.numpy(), "uniform", args=(0, 2 * math.pi)).pvalue > 1e-4


def test_baseline_along_the_axis_of_the_earth() -> None:
    south = Detector("S", (0.0, 0.0, -6.3e6), H1.response)
    north = Detector("N", (0.0, 0.0, 6.3e6), H1.response)
    ra, dec, _ = sky(100)
    zenith, azimuth = sky_to_baseline(ra, dec, south, north, 0.2)
    assert (zenith - (math.pi / 2 - dec)).abs().max() < 1e-14
    assert (azimuth - torch.remainder(ra - 0.2, 2 * math.pi)).abs().max() < 1e-14


# --- errors ----------------------------------------------------------------------------------------------------


def test_lookup() -> None:
    assert detector("L1") is L1
    with pytest.raises(ValueError, match="expected one of H1, L1, V1, got 'K1'"):
        detector("K1")


@pytest.mark.parametrize("gps", [-1.0, math.inf, math.nan])
def test_times_that_are_none(gps: float) -> None:
    with pytest.raises(ValueError, match="gps: expected finite seconds"):
        greenwich_sidereal_time(gps)


def test_arms_and_baselines_that_are_none() -> None:
    with pytest.raises(ValueError, match="y_arm: expected a unit vector"):
        from_arms("X1", H1.vertex, (1.0, 0.0, 0.0), (0.0, 2.0, 0.0))
    zenith, azimuth = directions(2)
    with pytest.raises(ValueError, match="expected two places, got H1 and H1"):
        baseline_to_sky(zenith, azimuth, H1, H1, 0.0)
