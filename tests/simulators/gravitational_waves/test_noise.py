"""Power spectral densities, whitening, noise, windows and Welch's estimate."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import signal, stats
from torch import Tensor

from sbiflow.datasets import find
from simulators.gravitational_waves.noise import PSD, coloured_noise, tukey, unwhiten, welch, whiten

DURATION = 8.0
BAND = torch.arange(20 * 8, 1024 * 8, dtype=torch.float64) / DURATION


def real_psd(name: str) -> PSD:
    try:
        return PSD.from_file(find(name))
    except FileNotFoundError as error:
        pytest.skip(str(error))


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- densities -------------------------------------------------------------------------------------------------


def test_design_is_close_to_that_of_lal() -> None:
    """The fit is good to 3 % in S at 30 Hz, 10 % at 400 Hz; both are Advanced LIGO, zero detuning, high power."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lalsimulation = pytest.importorskip("lalsimulation")
    f = torch.arange(30.0, 2000.0, 10.0, dtype=torch.float64)
    want = tensor(*(lalsimulation.SimNoisePSDaLIGOZeroDetHighPower(value) for value in f.tolist()))
    assert (PSD.design(f).values / want - 1).abs().max() < 0.12


def test_design_by_hand() -> None:
    """At x = 1 the powers are all 1; at x = 16 and 1/16 they are powers of 2."""
    x = tensor(1 / 16, 1, 16)
    got = PSD.design(245.48 * x).values * 1e48
    for value, power in zip(got.tolist(), (-1, 0, 1), strict=True):
        two = 2.0**power
        want = 0.0152 * two**-16 + 0.2935 * two**9 + 2.7951 * two**6 - 6.5080 * two**3 + 17.7622
        assert value == pytest.approx(want, rel=1e-13)


def test_interpolation_is_linear_and_exact_at_the_nodes() -> None:
    psd = PSD(tensor(1, 2, 4, 8), tensor(3, 1, 5, 1))
    assert psd.at(tensor(1, 2, 4, 8)).tolist() == [3, 1, 5, 1]
    assert psd.at(tensor(1.5, 3, 7)).tolist() == [2, 3, 2]
    assert psd.at([8]).dtype == torch.float64
    assert psd.at(tensor()).shape == (0,)
    rng = np.random.default_rng(0)
    f = rng.uniform(20, 900, 500)
    table = PSD.design(torch.linspace(20, 900, 333, dtype=torch.float64))
    want = np.interp(f, table.frequencies.numpy(), table.values.numpy())
    assert np.abs(table.at(f).numpy() / want - 1).max() < 1e-13


@pytest.mark.parametrize("bad", [math.inf, math.nan, 0.0, -1.0, 1.0])
def test_unusable_values_matter_only_in_the_band(bad: float) -> None:
    """1.0 is a placeholder in a table of 1e-46."""
    psd = PSD(tensor(0, 10, 20, 30, 40), tensor(bad, bad, 1e-46, 3e-46, bad))
    assert psd.at(tensor(20, 25, 30)).tolist() == pytest.approx([1e-46, 2e-46, 3e-46], rel=1e-14)
    for f in (10.0, 19.9, 30.1, 40.0):
        with pytest.raises(ValueError, match=f"got 1 frequencies without, {f:g} to {f:g} Hz"):
            psd.at(tensor(25, f))


def test_real_files_cover_the_band() -> None:
    hanford, livingston = real_psd("GW150914_PSD_H1.txt"), real_psd("GW150914_PSD_L1.txt")
    for psd in (hanford, livingston):
        values = psd.at(BAND)
        assert values.min() > 1e-47 and values.max() < 1e-38
        rows = torch.searchsorted(psd.frequencies, BAND)
        assert torch.equal(values, psd.values[rows])  # df = 1/8 Hz: every bin is in the file
    assert hanford.digest() != livingston.digest()
    assert hanford.name == "GW150914_PSD_H1.txt"


def test_digest_tells_numbers_not_names() -> None:
    psd = PSD(tensor(1, 2), tensor(3, 4), "one")
    assert psd.digest() == PSD(tensor(1, 2), tensor(3, 4), "other").digest()
    assert psd.digest() != PSD(tensor(1, 2), tensor(3, math.nextafter(4, 5))).digest()
    assert psd.digest() != PSD(tensor(1, 2.5), tensor(3, 4)).digest()
    assert len(psd.digest()) == 16 and int(psd.digest(), 16) >= 0


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "psd.txt"
    path.write_text("# Hz 1/Hz\n10 inf\n20 1e-46\n30 2e-46\n")
    assert PSD.from_file(path, "mine").name == "mine"
    assert PSD.from_file(path).at(tensor(25)).tolist() == pytest.approx([1.5e-46])
    for content in ("10 1e-46 3\n20 1e-46 3\n", "10\n20\n", "f S\n10 1\n"):
        path.write_text(content)
        with pytest.raises(ValueError, match="expected two columns"):
            PSD.from_file(path)


def test_errors_of_densities() -> None:
    with pytest.raises(ValueError, match=r"values: expected shape \(2,\), got \(3,\)"):
        PSD(tensor(1, 2), tensor(1, 2, 3))
    for frequencies in (tensor(2, 1), tensor(1, 1), tensor(-1, 1), tensor(1)):
        with pytest.raises(ValueError, match="expected two or more frequencies, ascending"):
            PSD(frequencies, torch.ones_like(frequencies))
    with pytest.raises(ValueError, match="expected finite values > 0, got none"):
        PSD(tensor(1, 2), tensor(math.inf, 0))
    psd = PSD(tensor(20, 1024), tensor(1, 1), "mine")
    with pytest.raises(ValueError, match=r"mine: expected frequencies in \[20, 1024\] Hz, got 19.5 to 30"):
        psd.at(tensor(30, 19.5))
    with pytest.raises(ValueError, match="expected frequencies in"):
        psd.at(tensor(math.nan))
    with pytest.raises(ValueError, match=r"expected values > 0 Hz, got 0.0 as the smallest"):
        PSD.design(tensor(0, 1))


# --- whitening and noise ---------------------------------------------------------------------------------------


def test_whitening_round_trip_and_inner_product() -> None:
    s = PSD.design(BAND).values
    generator = torch.Generator().manual_seed(1)
    a, b = coloured_noise(s, DURATION, (2,), generator)
    assert torch.allclose(unwhiten(whiten(a, s, DURATION), s, DURATION), a, rtol=1e-14, atol=0)
    want = 4 / DURATION * (a.conj() * b / s).sum()
    got = (whiten(a, s, DURATION).conj() * whiten(b, s, DURATION)).sum()
    assert torch.allclose(got, want, rtol=1e-12)


def test_noise_is_white_after_whitening() -> None:
    """Real and imaginary parts are independent N(0, 1): Kolmogorov-Smirnov at p > 1e-4, correlation within 5 sigma."""
    s = PSD.design(BAND).values
    draws = whiten(coloured_noise(s, DURATION, (20,), torch.Generator().manual_seed(3)), s, DURATION)
    assert draws.shape == (20, len(BAND)) and draws.dtype == torch.complex128
    real, imaginary = draws.real.flatten(), draws.imag.flatten()
    for part in (real, imaginary):
        assert stats.kstest(part.numpy(), "norm").pvalue > 1e-4
    assert abs((real * imaginary).mean()) < 5 / math.sqrt(len(real))


def test_noise_has_the_power_of_its_density() -> None:
    """E |n|^2 = T S / 2 in each of 1004 bins, within 5.5 sigma of the mean of 1000 draws."""
    s = PSD.design(BAND[::8]).values
    noise = coloured_noise(s, DURATION, (1000,), torch.Generator().manual_seed(4))
    ratio = noise.abs().square().mean(0) / (DURATION * s / 2)
    assert (ratio - 1).abs().max() < 5.5 / math.sqrt(1000)


def test_noise_is_reproducible_and_has_any_shape() -> None:
    s = PSD.design(BAND[:10]).values
    draws = [coloured_noise(s, DURATION, (2, 3), torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*draws) and draws[0].shape == (2, 3, 10)
    assert coloured_noise(s, DURATION).shape == (10,)


def test_errors_of_whitening() -> None:
    s = PSD.design(BAND[:10]).values
    series = torch.zeros(10, dtype=torch.complex128)
    with pytest.raises(ValueError, match=r"psd_values: expected shape \(9,\), got \(10,\)"):
        whiten(series[:9], s, DURATION)
    with pytest.raises(ValueError, match="duration: expected a value > 0, got 0"):
        unwhiten(series, s, 0.0)
    with pytest.raises(ValueError, match=r"psd_values: expected float64, got torch.float32"):
        whiten(series, s.float(), DURATION)


def test_tukey() -> None:
    window = tukey(1000, 0.1)
    assert window[0] == window[-1] == 0 and (window[60:-60] == 1).all()
    assert torch.allclose(window, window.flip(0), rtol=0, atol=1e-15)
    assert tukey(8 * 4096, 0.1).square().mean().item() == pytest.approx(1 - 5 / 8 * 0.1, abs=1e-4)
    assert torch.equal(tukey(7, 0.0), torch.ones(7, dtype=torch.float64))
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="alpha: expected 0 <= alpha <= 1"):
            tukey(10, alpha)
    with pytest.raises(ValueError, match="n: expected a whole number >= 1, got 0"):
        tukey(0, 0.1)


# --- Welch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["mean", "median"])
@pytest.mark.parametrize(("overlap", "segments", "bias"), [(0.0, 255, 0.0), (0.5, 255, 0.002), (0.0, 8, 0.0)])
@pytest.mark.parametrize("window", ["hann", ("tukey", 0.1), "boxcar"])
def test_welch_of_white_noise(
    average: str, overlap: float, segments: int, bias: float, window: str | tuple[str, float]
) -> None:
    """One-sided: variance v at rate r is S = 2 v / r. Gate: 5 sigma of the mean over bins and 20 series, and the bias
    that overlap leaves in the median."""
    rate, n, variance = 128.0, 256, 3.0
    rng = np.random.default_rng(7)
    length = int(n * (segments * (1 - overlap) + overlap))
    series = math.sqrt(variance) * rng.standard_normal((20, length))
    means = [
        welch(one, rate, n / rate, overlap=overlap, window=window, average=average).values[3:-3].mean().item()  # type: ignore[arg-type]
        for one in series
    ]
    error = np.mean(means) / (2 * variance / rate) - 1
    assert abs(error) < 5 * np.std(means) / (2 * variance / rate) / math.sqrt(20) + bias


def coloured_series(psd: PSD, rate: float, n: int, seed: int) -> np.ndarray:
    """A periodic realisation of n samples with exactly this density, through the inverse FFT."""
    frequencies = torch.arange(1, n // 2, dtype=torch.float64) * rate / n
    bins = coloured_noise(psd.at(frequencies), n / rate, generator=torch.Generator().manual_seed(seed))
    spectrum = np.zeros(n // 2 + 1, dtype=complex)
    spectrum[1:-1] = bins.numpy()
    return np.fft.irfft(spectrum * rate, n)


@pytest.mark.parametrize("average", ["mean", "median"])
def test_welch_of_coloured_noise(average: str) -> None:
    """Four times 128 s of design noise, flat below 10 Hz, in segments of 2 s, averaged. From 20 to 900 Hz every one of
    1760 bins within 6 sigma of 0.045 (mean) or 0.065 (median); the mean ratio within 1.2 %, which is 5 sigma (0.2 %,
    neighbouring bins depend on each other) and the 0.2 % of the median's bias."""
    rate, segment, n = 2048.0, 2.0, 2048 * 128
    frequencies = torch.arange(1, n // 2 + 1, dtype=torch.float64) * rate / n
    psd = PSD.design(frequencies)
    psd = PSD(frequencies, psd.values.clamp(max=float(psd.at([10.0]))))
    f = torch.arange(20 * 2, 900 * 2, dtype=torch.float64) / 2
    series = [coloured_series(psd, rate, n, seed) for seed in range(4)]
    estimates = [welch(one, rate, segment, average=average).at(f) for one in series]  # type: ignore[arg-type]
    ratio = torch.stack(estimates).mean(0) / psd.at(f)
    assert abs(ratio.mean() - 1) < 0.012
    assert (ratio - 1).abs().max() < 6 * (0.045 if average == "mean" else 0.065)


def test_welch_agrees_with_whitening() -> None:
    """The variance of a series is the integral of its density, and of a sine its power is in its bin."""
    rate, n = 256.0, 256 * 64
    noise = np.random.default_rng(1).standard_normal(n)
    estimate = welch(noise, rate, 4.0, window="boxcar", overlap=0.0, average="mean")
    assert estimate.values[1:-1].sum().item() / 4.0 == pytest.approx(noise.var(), rel=0.02)
    sine = 2.5 * np.sin(2 * math.pi * 32 * np.arange(n) / rate)
    estimate = welch(sine, rate, 4.0, window="boxcar", overlap=0.0, average="mean")
    assert estimate.values[32 * 4].item() / 4.0 == pytest.approx(2.5**2 / 2, rel=1e-10)


def test_the_median_ignores_a_glitch() -> None:
    rate, quiet = 256.0, np.random.default_rng(2).standard_normal(256 * 64)
    loud = quiet.copy()
    loud[5000:5100] += 300 * signal.windows.hann(100)
    ratios = {
        average: (welch(loud, rate, 2.0, average=average).values / welch(quiet, rate, 2.0, average=average).values)[
            3:10
        ]
        for average in ("median", "mean")
    }  # fmt: skip
    assert ratios["mean"].min() > 50
    assert ratios["median"].max() < 1.3


def test_errors_of_welch() -> None:
    series = np.ones(1000)
    for segment in (0.0, 0.0101, 1e-3, math.nan):
        with pytest.raises(ValueError, match=r"segment: expected a whole number of samples at 100.0 Hz"):
            welch(series, 100.0, segment)
    with pytest.raises(ValueError, match=r"segment: expected at most 10 s \(the series\), got 20.0 s"):
        welch(series, 100.0, 20.0)
    with pytest.raises(ValueError, match="overlap: expected 0 <= overlap < 1, got 1"):
        welch(series, 100.0, 1.0, overlap=1.0)
    with pytest.raises(ValueError, match="average: expected median or mean, got 'mode'"):
        welch(series, 100.0, 1.0, average="mode")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rate: expected a value > 0"):
        welch(series, 0.0, 1.0)
    with pytest.raises(ValueError, match="strain: expected finite values, got 1 NaN or inf, the first at"):
        welch(np.r_[series, math.nan], 100.0, 1.0)
