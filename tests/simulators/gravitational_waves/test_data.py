"""Measured strain: reading and refusing files, decimation, Fourier series, figures; GW150914 where it is at hand."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy import signal
from torch import Tensor

from sbiflow.datasets import find
from simulators.gravitational_waves.data import (
    check_together,
    frequency_series,
    in_band,
    network_series,
    read_gwosc,
    whitened_time_series,
)
from simulators.gravitational_waves.noise import PSD, coloured_noise, welch, whiten
from simulators.gravitational_waves.strain import Strain

START, RATE, SECONDS = 1_126_259_446, 512.0, 16
FLAGS = ("DATA", "CBC_CAT1", "CBC_CAT2", "CBC_CAT3")
EVENT = 1126259462.423


def samples(seconds: float = SECONDS, rate: float = RATE, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1e-21 * torch.randn(round(seconds * rate), generator=generator, dtype=torch.float64)


def strain(seconds: float = SECONDS, rate: float = RATE, name: str = "H1", seed: int = 1) -> Strain:
    return Strain(name, START, rate, samples(seconds, rate, seed))


@pytest.fixture
def gwosc(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file as GWOSC does, 16 s at 512 Hz; `change` edits it."""

    def write(change: Callable[[h5py.File], Any] | None = None, **attributes: Any) -> Path:
        path = tmp_path / "strain.hdf5"
        with h5py.File(path, "w") as file:
            data = file.create_dataset("strain/Strain", data=samples().numpy())
            data.attrs.update({"Xspacing": 1 / RATE, "Xstart": START} | attributes)
            file["meta/GPSstart"], file["meta/Duration"], file["meta/Detector"] = START, SECONDS, b"H1"
            file["quality/simple/DQmask"] = np.full(SECONDS, 15, dtype=np.uint32)
            file["quality/simple/DQShortnames"] = np.array(FLAGS, dtype="S10")
            if change is not None:
                change(file)
        return path

    return write


def real(name: str) -> Path:
    try:
        return find(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))


# --- reading ---------------------------------------------------------------------------------------------------


def test_reads_what_was_written(gwosc: Callable[..., Path]) -> None:
    got = read_gwosc(gwosc())
    assert (got.detector, got.start, got.rate, got.duration) == ("H1", START, RATE, SECONDS)
    assert torch.equal(got.values, samples())


def test_reads_a_part(gwosc: Callable[..., Path]) -> None:
    got = read_gwosc(gwosc(), start=START + 2.5, duration=4)
    assert got.start == START + 2.5
    assert torch.equal(got.values, samples()[1280 : 1280 + 2048])
    assert read_gwosc(gwosc(), start=START + 3).duration == SECONDS - 3
    assert read_gwosc(gwosc(), duration=3).start == START


def test_rounded_spacings_give_whole_rates(gwosc: Callable[..., Path]) -> None:
    def other_rate(file: h5py.File) -> None:
        file["meta/Duration"][...] = 1

    path = gwosc(other_rate, Xspacing=float(np.float32(1 / (RATE * SECONDS))) * (1 + 1e-9))
    assert read_gwosc(path, quality=()).rate == RATE * SECONDS


def drop(*names: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        for name in names:
            del file[name]

    return change


def set_values(name: str, at: slice | int, value: float) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][at] = value

    return change


def test_a_file_without_flags_is_read(gwosc: Callable[..., Path]) -> None:
    assert read_gwosc(gwosc(drop("quality"))).duration == SECONDS
    assert read_gwosc(gwosc(drop("meta/Duration"))).duration == SECONDS


def test_not_hdf5_or_truncated(gwosc: Callable[..., Path], tmp_path: Path) -> None:
    text = tmp_path / "strain.txt"
    text.write_text("0.0 1e-21\n")
    with pytest.raises(
        ValueError, match=r"strain.txt: expected a complete HDF5 file, got .*signature not found"
    ):
        read_gwosc(text)
    whole = gwosc().read_bytes()
    for size in (0, 100, 3000, len(whole) // 2, len(whole) - 50):
        text.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="expected a complete HDF5 file"):
            read_gwosc(text)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_gwosc(tmp_path / "nowhere.hdf5")


@pytest.mark.parametrize("name", ["strain/Strain", "meta/GPSstart", "meta/Detector"])
def test_missing_datasets(gwosc: Callable[..., Path], name: str) -> None:
    with pytest.raises(ValueError, match=rf"expected the dataset {name} \(GWOSC\), got only .*meta/Duration"):
        read_gwosc(gwosc(drop(name)))


def test_gaps(gwosc: Callable[..., Path]) -> None:
    path = gwosc(set_values("strain/Strain", slice(1024, 1536), math.nan))
    gap = f"got 512 of 8192 samples NaN or inf between GPS {START + 2}.000 and {START + 3}.000"
    with pytest.raises(ValueError, match=f"strain.hdf5: H1: expected strain without gaps, {gap}"):
        read_gwosc(path)
    assert read_gwosc(path, start=START + 3).duration == SECONDS - 3
    with pytest.raises(ValueError, match="got 512 of 2048 samples"):
        read_gwosc(path, start=START + 1, duration=4)


def test_flagged_seconds(gwosc: Callable[..., Path]) -> None:
    path = gwosc(set_values("quality/simple/DQmask", slice(5, 7), 0b1011))
    flagged = (
        f"expected CBC_CAT2 throughout, got 2 seconds without it between GPS {START + 5} and {START + 7}"
    )
    with pytest.raises(ValueError, match=flagged):
        read_gwosc(path)
    with pytest.raises(ValueError, match="got 1 seconds without it"):
        read_gwosc(path, start=START + 6.5, duration=2)
    assert read_gwosc(path, start=START + 7).duration == SECONDS - 7
    assert read_gwosc(path, quality=("DATA", "CBC_CAT3")).duration == SECONDS
    with pytest.raises(ValueError, match="expected the quality flag BURST_CAT1, got DATA, CBC_CAT1"):
        read_gwosc(path, quality=("BURST_CAT1",))


def test_samples_that_do_not_fit_the_times(gwosc: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="expected 16 s at 1024 Hz, got 8192 samples"):
        read_gwosc(gwosc(Xspacing=1 / 1024))
    with pytest.raises(
        ValueError, match=r"expected a series with Xspacing > 0, got shape \(8192,\) and spacing 0"
    ):
        read_gwosc(gwosc(Xspacing=0.0))
    parts: tuple[dict[str, Any], ...] = (
        {"start": START - 1.0},
        {"start": START + 10.0, "duration": 7.0},
        {"start": math.nan},
    )
    for part in parts:
        with pytest.raises(ValueError, match=r"expected (a segment inside GPS 1126259446|a whole number)"):
            read_gwosc(gwosc(), **part)


# --- a series --------------------------------------------------------------------------------------------------


def test_segments() -> None:
    whole = strain()
    part = whole.segment(START + 1.25, 2.0)
    assert part.start == START + 1.25 and torch.equal(part.values, whole.values[640:1664])
    assert torch.equal(whole.segment(START, SECONDS).values, whole.values)
    with pytest.raises(
        ValueError, match=r"H1: expected a segment inside GPS 1126259446.000 to 1126259462.000, got"
    ):
        whole.segment(START + 10, 8.0)
    with pytest.raises(ValueError, match="start: expected the time of a sample at 512 Hz"):
        whole.segment(START + 0.4, 8.0)
    with pytest.raises(ValueError, match=r"duration: expected a whole number of samples at 512.0 Hz"):
        whole.segment(START, 1.001)


def test_errors_of_series() -> None:
    with pytest.raises(ValueError, match="H1: rate: expected a value > 0"):
        Strain("H1", 0.0, 0.0, samples())
    with pytest.raises(ValueError, match="H1: expected strain, got no samples"):
        Strain("H1", 0.0, 1.0, samples()[:0])
    with pytest.raises(ValueError, match=r"H1: strain: expected shape \(n,\), got \(2, 4096\)"):
        Strain("H1", 0.0, 1.0, samples().reshape(2, -1))


def tone(frequency: float, rate: float = 4096.0, seconds: float = 4.0, phase: float = 0.3) -> Strain:
    times = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return Strain("H1", 100.0, rate, torch.cos(2 * math.pi * frequency * times + phase))


@pytest.mark.parametrize("rate", [2048.0, 1024.0, 256.0])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.899])
def test_decimation_keeps_tones_and_their_times(rate: float, fraction: float) -> None:
    frequency = fraction * rate / 2
    low = tone(frequency).decimated(rate)
    times = low.start - 100 + torch.arange(len(low.values), dtype=torch.float64) / rate
    assert (low.values - torch.cos(2 * math.pi * frequency * times + 0.3)).abs().max() < 3e-6
    assert low.rate == rate and low.duration == pytest.approx(4 - 2 * 79 / rate, abs=2 / rate)
    assert (low.start - 100) * rate == pytest.approx(79, abs=1e-9)


@pytest.mark.parametrize("rate", [2048.0, 1024.0, 256.0])
@pytest.mark.parametrize("fraction", [1.0, 1.01, 1.7, 1.999])
def test_decimation_holds_back_what_would_be_folded(rate: float, fraction: float) -> None:
    assert tone(min(fraction * rate / 2, 2000)).decimated(rate).values.abs().max() < 3e-6


def test_decimation_keeps_the_density_of_noise() -> None:
    """White noise keeps its S = 2 v / r up to 0.9 of the new Nyquist frequency: mean within 5 sigma of 0.8 %."""
    low = strain(256, 2048.0).decimated(512.0)
    estimate = welch(low.values, low.rate, 2.0, average="mean")
    f = torch.arange(2, round(0.9 * 512)) / 2
    assert abs(estimate.at(f).mean() / (2 * 1e-42 / 2048) - 1) < 0.04


def test_rates_that_are_no_fraction() -> None:
    assert strain().decimated(RATE).values.shape == (8192,)
    for rate in (1024.0, 500.0, 0.0, -512.0, 171.0):
        with pytest.raises(ValueError, match="rate: expected 512 Hz or a whole fraction of it, got"):
            strain().decimated(rate)
    with pytest.raises(ValueError, match=r"H1: expected at least .* s for the filter to 64 Hz, got 1.000 s"):
        strain(1.0).decimated(64.0)


# --- Fourier series --------------------------------------------------------------------------------------------


def test_an_impulse_at_the_reference_has_phase_zero() -> None:
    values = torch.zeros(4096, dtype=torch.float64)
    values[1000] = 3.0
    one = Strain("H1", START, 1024.0, values)
    f, series = frequency_series(one, START, 4.0, roll_off=0.0, reference=START + 1000 / 1024)
    assert (series - 3.0 / 1024).abs().max() < 1e-14
    _, from_start = frequency_series(one, START, 4.0, roll_off=0.0)
    want = 3.0 / 1024 * torch.exp(-2j * math.pi * f * (1000 / 1024))
    assert (from_start - want).abs().max() < 1e-14
    assert torch.equal(f, torch.arange(2049, dtype=torch.float64) / 4)


def test_a_gaussian_pulse_has_its_transform() -> None:
    """The continuous transform, with its units: h(f) = sigma sqrt(2 pi) exp(-2 (pi sigma f)^2 - 2 pi i f t0)."""
    rate, sigma, centre = 2048.0, 0.01, START + 2.1234
    times = START + torch.arange(8192, dtype=torch.float64) / rate
    one = Strain("H1", START, rate, torch.exp(-0.5 * ((times - centre) / sigma) ** 2))
    f, series = frequency_series(one, START, 4.0, reference=centre)
    want = sigma * math.sqrt(2 * math.pi) * torch.exp(-2 * (math.pi * sigma * f) ** 2)
    assert (series - want).abs().max() < 1e-8  # GPS times are rounded to 2e-7 s


def test_equals_bilby() -> None:
    """Window, normalisation and phase of bilby's strain data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detectors = pytest.importorskip("bilby.gw.detector")
        theirs = detectors.strain_data.InterferometerStrainData(roll_off=0.4)
        part = strain().segment(START + 4, 8.0)
        theirs.set_from_time_domain_strain(
            part.values.numpy(), sampling_frequency=RATE, duration=8.0, start_time=START + 4.0
        )
        want = theirs.frequency_domain_strain
    f, series = frequency_series(strain(), START + 4, 8.0, roll_off=0.4)
    assert np.abs(theirs.frequency_array - f.numpy()).max() < 1e-10
    assert np.abs(want - series.numpy()).max() < 1e-12 * np.abs(want).max()


def test_window_is_applied_and_not_divided_out() -> None:
    one = strain()
    _, plain = frequency_series(one, START, 16.0, roll_off=0.0)
    _, windowed = frequency_series(one, START, 16.0, roll_off=1.6)
    power = (windowed.abs().square().mean() / plain.abs().square().mean()).item()
    assert power == pytest.approx(1 - 5 / 8 * 0.2, abs=0.02)
    for roll_off in (-0.1, 8.1, math.nan):
        with pytest.raises(ValueError, match="roll_off: expected 0 to 8 s, got"):
            frequency_series(one, START, 16.0, roll_off=roll_off)


def test_networks_need_one_rate() -> None:
    h1, l1 = strain(name="H1"), strain(name="L1", seed=2)
    f, series = network_series([h1, l1], START + 2, 8.0, reference=START + 6.1)
    assert series.shape == (2, len(f))
    for i, one in enumerate((h1, l1)):
        assert torch.equal(series[i], frequency_series(one, START + 2, 8.0, reference=START + 6.1)[1])
    message = "L1: expected a sampling rate of 512 Hz, as H1 has, got 1024 Hz"
    with pytest.raises(ValueError, match=message):
        network_series([h1, strain(rate=1024.0, name="L1")], START + 2, 8.0)
    with pytest.raises(ValueError, match="strains: expected every detector once, got H1, H1"):
        check_together([h1, h1])
    with pytest.raises(ValueError, match="strains: expected at least one, got none"):
        check_together([])
    with pytest.raises(ValueError, match="L1: expected a segment inside"):
        network_series([h1, Strain("L1", START + 5, RATE, l1.values)], START + 2, 8.0)


def test_band_leaves_the_upper_edge_out() -> None:
    f = torch.arange(100, dtype=torch.float64) / 4
    assert f[in_band(f, 2.0, 5.0)].tolist() == [2 + i / 4 for i in range(12)]
    with pytest.raises(
        ValueError, match=r"band: expected low <= f < high for some frequency, got 5.0 to 5.0 Hz"
    ):
        in_band(f, 5.0, 5.0)


# --- figures ---------------------------------------------------------------------------------------------------


def test_whitened_time_series_has_the_variance_of_its_band() -> None:
    rate, duration = 1024.0, 8.0
    f = torch.arange(20 * 8, 500 * 8, dtype=torch.float64) / duration
    s = PSD.design(f).values
    noise = whiten(coloured_noise(s, duration, (5,), torch.Generator().manual_seed(1)), s, duration)
    times, values = whitened_time_series(noise, f, rate, duration, start=-6.0)
    assert values.shape == (5, 8192) and times[0] == -6 and times[-1] == 2 - 1 / rate
    want = 2 * len(f) / 8192
    assert values.var().item() == pytest.approx(want, rel=5 * math.sqrt(2 / (5 * 2 * len(f))))


def test_whitened_time_series_inverts_the_transform() -> None:
    """With S = 2 dt whitening is a change of units: band-limited strain of variance 1 comes back, at its time."""
    times = torch.arange(4096, dtype=torch.float64) / 1024
    pulse = torch.exp(-0.5 * ((times - 2.5) / 0.02) ** 2) * torch.sin(2 * math.pi * 100 * times)
    f, series = frequency_series(
        Strain("H1", START, 1024.0, pulse), START, 4.0, roll_off=0.0, reference=START + 2.5
    )
    band = slice(1, -1)
    white = whiten(series[band], torch.full_like(f[band], 2 / 1024), 4.0)
    when, back = whitened_time_series(white, f[band], 1024.0, 4.0, start=-2.5)
    assert (back - pulse).abs().max() < 1e-9
    assert when[back.abs().argmax()].abs() < 0.005


def test_errors_of_time_series() -> None:
    f = torch.arange(4, 40, dtype=torch.float64) / 4
    series = torch.zeros(36, dtype=torch.complex128)
    for wrong in (f - 1.0, f + 0.1, f + 500):
        with pytest.raises(
            ValueError, match=r"frequencies: expected multiples of 0.25 Hz above 0 and below 256 Hz"
        ):
            whitened_time_series(series, wrong, 512.0, 4.0)
    with pytest.raises(ValueError, match=r"frequencies: expected shape \(36,\), got \(35,\)"):
        whitened_time_series(series, f[1:], 512.0, 4.0)


# --- GW150914 --------------------------------------------------------------------------------------------------


def event(detector: str) -> tuple[Strain, PSD]:
    path = real(f"{detector[0]}-{detector}_LOSC_4_V2-1126259446-32.hdf5")
    return read_gwosc(path), PSD.from_file(real(f"GW150914_PSD_{detector}.txt"))


@pytest.mark.parametrize("detector", ["H1", "L1"])
def test_real_noise_is_white(detector: str) -> None:
    """Mean power of 8032 whitened bins away from the event: that of the window, 0.94, within 10 % (the noise drifts
    by some per cent against the PSD, which is of 1024 s)."""
    strain, psd = event(detector)
    assert (strain.detector, strain.start, strain.rate, strain.duration) == (detector, START, 4096, 32)
    for start in (START + 1, START + 20):
        f, series = frequency_series(strain, start, 8.0)
        band = in_band(f, 20, 1024)
        power = whiten(series[band], psd.at(f[band]), 8.0).abs().square().mean() / 2
        assert power.item() == pytest.approx(0.9375, rel=0.1)


@pytest.mark.parametrize("detector", ["H1", "L1"])
def test_real_event_is_the_loudest(detector: str) -> None:
    """The largest excursion of 14 s of whitened strain, 35-350 Hz, is the merger, at 6 or more times its rms."""
    strain, psd = event(detector)
    f, series = frequency_series(strain, START + 8, 16.0, reference=EVENT)
    band = in_band(f, 35, 350)
    white = whiten(series[band], psd.at(f[band]), 16.0)
    times, values = whitened_time_series(white, f[band], 4096.0, 16.0, start=START + 8 - EVENT)
    inside = times.abs() < 7
    assert abs(times[inside][values[inside].abs().argmax()]) < 0.01
    quiet = inside & (times.abs() > 0.3)
    assert values.abs().max() > 6 * values[quiet].std()
    assert values[quiet].std().item() == pytest.approx(math.sqrt(2 * int(band.sum()) / len(values)), rel=0.05)


@pytest.mark.parametrize("detector", ["H1", "L1"])
def test_real_decimation_changes_nothing_in_the_band(detector: str) -> None:
    """Whitened bins of 20-900 Hz at 2048 Hz against 4096 Hz, with windows that both sample alike (the symmetric ones
    of n and n / 2 samples differ by half a sample, which alone makes 0.02)."""
    strain, psd = event(detector)
    series = []
    for one in (strain, strain.decimated(2048.0)):
        part = one.segment(START + 8, 8.0)
        window = torch.from_numpy(signal.windows.tukey(len(part.values), 0.1, sym=False))
        series.append(torch.fft.rfft(window * part.values)[20 * 8 : 900 * 8] / one.rate)
    f = torch.arange(20 * 8, 900 * 8, dtype=torch.float64) / 8
    assert whiten(series[0] - series[1], psd.at(f), 8.0).abs().max() < 1e-3


@pytest.mark.parametrize("detector", ["H1", "L1"])
def test_real_density_by_welch(detector: str) -> None:
    """Median ratio to the published density, 20-1000 Hz, within 15 %: 15 segments of 4 s against 1024 s."""
    strain, psd = event(detector)
    f = torch.arange(20 * 4, 1000 * 4, dtype=torch.float64) / 4
    ratio = welch(strain.values, strain.rate, 4.0).at(f) / psd.at(f)
    assert ratio.median().item() == pytest.approx(1, abs=0.15)
