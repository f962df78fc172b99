"""Maps: statistics against summary.py, the fit against a chi-square, kill and resume, sources, alarms, FITS."""

import hashlib
import itertools
import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy import stats

from sbiflow import Ensemble, Posterior, TrainConfig
from sbiflow.maps import MapConfig, MapResult, Mixture, PixelStatus, cube, open_cube, result
from sbiflow.maps import file as map_file
from sbiflow.maps.block import BlockTask
from sbiflow.maps.statistics import Predictive, summarise_draws
from sbiflow.novelty import ALARM
from sbiflow.priors import LogUniform, Normal, PeriodicUniform, Prior, Sine, TruncatedNormal, Uniform
from sbiflow.samples import PosteriorSamples
from sbiflow.seeding import torch_generator
from tests.quick import quick_store, quick_train
from tests.test_posterior import RING, Ring
from tests.toys import LinearGaussian

EVERY_KIND = Prior(
    Uniform("u", -3, 5, unit="G"), PeriodicUniform("azimuth", 10, 190, unit="deg"), LogUniform("eta", 1, 200),
    Sine("inclination"), Normal("v", 2, 3), TruncatedNormal("t", 0, 1, -0.5, 4), PeriodicUniform("phase"),
)  # fmt: skip
SMALL = MapConfig(block=7)


@pytest.fixture(scope="module")
def ring(tmp_path_factory) -> Posterior:
    store = quick_store(tmp_path_factory.mktemp("maps") / "s.h5", RING, 3000)
    return quick_train(store, RING, TrainConfig(steps=150, batch=128, patience=None))


@pytest.fixture(scope="module")
def field() -> np.ndarray:
    """(6, 9, 3) ordinary observations, two of them with missing data."""
    theta = RING.prior.sample(54, torch.Generator().manual_seed(1))
    x = RING.observe(RING.signal(theta), torch.Generator().manual_seed(2)).numpy().reshape(6, 9, 3)
    x[2, 3, 1], x[5, 8] = np.nan, np.inf
    return x


class NoisyRing(Ring):
    """A ring that says how large its noise is."""

    noise = 0.5


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- statistics


@pytest.mark.parametrize("n", [1, 2, 3, 7, 50])
def test_statistics_are_those_of_the_summary_of_all_draws(n):
    """Quantiles in the base space, of six order statistics, are those of every draw in physical units."""
    generator = torch.Generator().manual_seed(n)
    z = 0.7 * torch.randn(n, 40, EVERY_KIND.dim, generator=generator) + torch.randn(40, EVERY_KIND.dim)
    z[..., EVERY_KIND.periodic] *= 3  # across the edge of the support, more than once around
    found = summarise_draws(z, EVERY_KIND)
    theta = EVERY_KIND.constrain(z.double())[0]
    scale = np.array([8, 180, 200, math.pi, 10, 4, 2 * math.pi])
    for b in range(40):
        expected = PosteriorSamples(theta[:, b], torch.zeros(n), torch.zeros(1), EVERY_KIND).summary()
        for d, row in enumerate(expected):
            got = [found.low[d, b], found.median[d, b], found.high[d, b]]
            np.testing.assert_allclose(got, [row.low, row.median, row.high], rtol=0, atol=2e-6 * scale[d])
    for p, d in enumerate(np.flatnonzero(EVERY_KIND.periodic)):
        low, high = EVERY_KIND.marginals[d].support
        vector = np.exp(2j * np.pi * (theta[..., d].numpy() - low) / (high - low)).mean(0)
        np.testing.assert_allclose(found.concentration[p], np.abs(vector), atol=2e-6)
        off = found.circular_mean[p] - (low + (high - low) * np.angle(vector) / (2 * np.pi))
        off -= (high - low) * np.round(off / (high - low))
        sharp = np.abs(vector) > 0.05  # else the direction of hardly anything
        np.testing.assert_allclose(off[sharp], 0, atol=1e-4 * (high - low))
        assert ((found.circular_mean[p] >= low) & (found.circular_mean[p] < high)).all()


def test_concentration_of_equal_and_of_uniform_angles():
    prior = Prior(PeriodicUniform("azimuth", 0, math.pi))
    same = summarise_draws(torch.full((50, 3, 1), 3.1), prior)
    np.testing.assert_allclose(same.concentration, 1, atol=1e-6)
    uniform = (2 * torch.rand(50, 4000, 1, generator=torch.Generator().manual_seed(1)) - 1) * math.pi
    mean = summarise_draws(uniform, prior).concentration.mean()
    assert abs(mean - math.sqrt(math.pi / 200)) < 4 * 0.066 / math.sqrt(4000)  # Rayleigh, sd 0.463 / sqrt(n)


TOY = LinearGaussian(noise_sd=0.5)


def toy_p_values(scale: float = 1.0, shift: float = 0.0, noise: float = 0.5, k: int = 1) -> np.ndarray:
    """Of 4,000 simulations, with draws of the exact posterior, or `scale` times as wide and `shift` off."""
    theta = TOY.prior.sample(4000, torch.Generator().manual_seed(1))
    x = TOY.observe(TOY.signal(theta), torch.Generator().manual_seed(2))
    draws, _ = TOY.exact_proposal(scale, shift).sample_and_log_prob(x, k, torch.Generator().manual_seed(3))
    z = TOY.prior.unconstrain(draws)[0].float()
    return Predictive(TOY, TOY.prior, torch.full((3,), noise, dtype=torch.float64), k)(x, z)[1]


def test_p_values_of_exact_draws_are_uniform():
    """Kolmogorov-Smirnov at 1e-4; a posterior or noise that is wrong is found."""
    assert stats.kstest(toy_p_values(), "uniform").pvalue > 1e-4
    for wrong in ({"scale": 2.0}, {"scale": 0.3}, {"shift": 1.0}, {"noise": 0.4}, {"noise": 0.6}):
        assert stats.kstest(toy_p_values(**wrong), "uniform").pvalue < 1e-6


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_the_mean_p_value_of_several_draws_is_small_at_most_twice_as_often(alpha):
    """Meng's bound; the excess by chance has probability 1e-4."""
    count = int((toy_p_values(k=6) <= alpha / 2).sum())
    assert stats.binom.sf(count - 1, 4000, alpha) > 1e-4
    assert (toy_p_values(k=6, noise=0.3) <= alpha / 2).mean() > alpha


def test_chi2_is_the_sum_of_squared_residuals():
    z = torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(1))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    noise = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    chi2, p = Predictive(TOY, TOY.prior, noise, 2)(x, z)
    theta = TOY.prior.constrain(z[:2].double())[0].numpy()
    expected = (((x.numpy() - theta @ TOY.a.numpy().T) / noise.numpy()) ** 2).sum(-1)
    np.testing.assert_allclose(chi2, expected.mean(0) / 3, rtol=1e-6)
    np.testing.assert_allclose(p, stats.chi2.sf(expected, 3).mean(0), rtol=1e-6)


# --- from the cube to the file


def test_every_pixel_is_the_summary_of_its_own_draws(ring, field, tmp_path):
    """Blocks, flat order and images: pixel (y, x) holds the statistics of draws of its own observation."""
    found = ring.map(
        field, 20, tmp_path / "m.h5", simulator=NoisyRing(), seed=5, config=SMALL, progress=False
    )
    assert isinstance(found, MapResult) and found.names == ("r", "phi") and found.shape == (6, 9)
    images = found.file.meta.images()
    task = BlockTask(
        Mixture((ring,), (1.0,)), 20, 5, Predictive(NoisyRing(), RING.prior, torch.full((3,), 0.5), 1), images
    )
    flat = field.reshape(54, 3)
    for block in (0, 3, 7):
        rows = slice(7 * block, min(7 * block + 7, 54))
        expected, status = task(block, flat[rows])
        np.testing.assert_array_equal(found.status.ravel()[rows], status)
        for name, count in images.items():
            for k in range(count):
                got = found.image(name, k).ravel()[rows]
                np.testing.assert_array_equal(got, expected[name][k].astype("f4"))
    novelty = ring.novelty_check(np.nan_to_num(flat, posinf=0)).input.numpy().astype("f4")
    seen = np.isfinite(flat).all(1)
    np.testing.assert_array_equal(found.image("novelty").ravel()[seen], novelty[seen])


def test_draws_of_a_map_are_those_of_the_posterior(ring, field):
    """Two-sample Kolmogorov-Smirnov at 1e-4 in each of four columns; blocks of more than one pass."""
    x = torch.from_numpy(field[0, :2])
    z = Mixture((ring,), (1.0,)).draw(x, 6000, torch.Generator().manual_seed(3))
    theta, usual = RING.prior.constrain(z.double())[0], ring.sample(x, 6000, seed=8).theta
    for b in range(2):
        for d in range(2):
            assert stats.ks_2samp(theta[:, b, d], usual[:, b, d]).pvalue > 1e-4
    assert stats.ks_2samp(theta[:, 0, 1], usual[:, 1, 1]).pvalue < 1e-6


def test_masked_pixels_are_nan_and_change_no_other(ring, field, tmp_path):
    first = ring.map(field, 10, tmp_path / "a.h5", config=SMALL, progress=False)
    again = ring.map(
        np.where(np.isfinite(field), field, np.nan), 10, tmp_path / "b.h5", config=SMALL, progress=False
    )
    masked = ~np.isfinite(field).all(-1)
    assert ((first.status == PixelStatus.MASKED) == masked).all()
    assert first.counts.masked == 2 and first.counts.inferred == 52 and first.counts.refused == 0
    assert (np.isnan(first["phi"].concentration) == masked).all() and (
        np.isnan(first.novelty) == masked
    ).all()
    other = field.copy()
    other[2, 3, 1] = 0.3  # with data: its neighbours keep their draws
    filled = ring.map(other, 10, tmp_path / "c.h5", config=SMALL, progress=False)
    for found in (again, filled):
        np.testing.assert_array_equal(found["r"].median[~masked], first["r"].median[~masked])
    assert "2 masked" in first.verdict


def test_a_field_without_any_data(ring, tmp_path):
    found = ring.map(np.full((2, 3, 3), np.nan), 10, tmp_path / "m.h5", progress=False)
    assert found.counts.masked == 6 and found.counts.inferred == 0
    assert found.verdict.startswith("Do not use: no pixel has a posterior")
    assert found.figures() and np.isnan(found["r"].sigma).all()


def test_a_pixel_that_overflows_the_network_is_refused_and_counted(ring, field, tmp_path, monkeypatch):
    real = ring.flow.embedding.forward
    monkeypatch.setattr(
        ring.flow.embedding, "forward", lambda x: torch.where(x[:, :1] > 100, 1e38 * real(x), real(x))
    )
    x = field.copy()
    x[0, 0, 0] = 200
    found = ring.map(x, 10, tmp_path / "m.h5", config=SMALL, progress=False)
    assert found.status[0, 0] == PixelStatus.REFUSED and np.isnan(found["r"].median[0, 0])
    assert found.counts.refused == 1 and found.counts.inferred == 51 and "1 refused" in found.verdict


def test_a_simulator_that_fails_is_counted(ring, field, tmp_path):
    class Failing(NoisyRing):
        def signal(self, theta):
            bad = torch.arange(len(theta)) == 0
            return torch.where(bad[:, None], math.nan, super().signal(theta))

    found = ring.map(field, 10, tmp_path / "m.h5", simulator=Failing(), config=SMALL, progress=False)
    assert (
        found.counts.no_signal == 7 and found.counts.inferred == 52
    )  # of 8 blocks' first pixels one is masked
    assert np.isnan(found.image("chi2")[0, 0]) and np.isfinite(found["r"].median[0, 0])
    assert "7 pixels, where the simulator failed" in found.verdict


def test_threads_change_nothing(ring, field, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    ring.map(field, 30, tmp_path / "1.h5", config=SMALL, progress=False)
    ring.map(field, 30, tmp_path / "3.h5", config=replace(SMALL, threads=3), progress=False)
    assert sha(tmp_path / "1.h5") == sha(tmp_path / "3.h5")
    torch.set_num_threads(before)


def test_a_scalar_observation_of_one_parameter(tmp_path):
    class Line(Ring):
        prior, x_shape = Prior(Uniform("a", -1, 3)), ()

        def signal(self, theta):
            return theta[:, 0]

    line = Line(prior=Line.prior, x_shape=())
    posterior = quick_train(quick_store(tmp_path / "s.h5", line, 600), line)
    found = posterior.map(np.linspace(-1, 3, 12).reshape(3, 4), 100, tmp_path / "m.h5", progress=False)
    assert found.counts.inferred == 12 and "circular_mean" not in found.file.meta.images()
    assert found["a"].median[2, 3] > found["a"].median[0, 0] + 1


def test_an_ensemble_draws_from_its_members_by_their_shares(ring, field, tmp_path):
    """The count of draws of the second member is binomial (two-sided, false alarms 1e-4)."""
    other = Posterior(**vars(ring))
    both = Ensemble((ring, other), (0.8, 0.2))
    found = both.map(field, 40, tmp_path / "m.h5", seed=3, config=SMALL, progress=False)
    assert found.counts.inferred == 52
    np.testing.assert_array_equal(
        found["r"].median,
        both.map(field, 40, tmp_path / "n.h5", seed=3, config=SMALL, progress=False)["r"].median,
    )
    drawn = []

    class Marked:
        """A member whose draws say whose they are."""

        def __init__(self, mark):
            self.mark, self.device, self.flow = mark, torch.device("cpu"), self

        def embedding(self, x):
            return x

        def draw(self, context, n, generator):
            drawn.append((self.mark, n))
            return torch.full((n, len(context), 1), self.mark), None

    z = Mixture((Marked(0.0), Marked(1.0)), (0.8, 0.2)).draw(
        torch.zeros(5, 3), 500, torch.Generator().manual_seed(1)
    )
    share = float(z.mean())
    assert (z == z[:, :1]).all() and abs(share - 0.2) < 3.9 * math.sqrt(0.16 / 500)
    assert 0.05 < float(z[:100].mean()) < 0.4  # shuffled


# --- kill, resume, refuse


def test_a_run_that_was_stopped_continues_to_the_same_bytes(ring, field, tmp_path, monkeypatch):
    whole = ring.map(field, 10, tmp_path / "whole.h5", simulator=NoisyRing(), config=SMALL, progress=False)
    monkeypatch.setattr(map_file, "COMMIT_SECONDS", 0.0)
    real, path = map_file.MapWriter.write, tmp_path / "stopped.h5"
    for allowed in (0, 1, 3):
        calls = []

        def write(self, *arguments, calls=calls, allowed=allowed):
            if len(calls) == allowed:
                raise KeyboardInterrupt
            calls.append(real(self, *arguments))

        monkeypatch.setattr(map_file.MapWriter, "write", write)
        with pytest.raises(KeyboardInterrupt, match=r"pixels are kept in .*stopped\.h5"):
            ring.map(field, 10, path, simulator=NoisyRing(), config=SMALL, progress=False)
    part = MapResult.open(path)
    assert part.counts.pending == 54 - 4 * 7 and "INCOMPLETE: 26 pixels" in part.verdict
    assert np.isnan(part["r"].median.ravel()[28:]).all() and np.isfinite(part["r"].median.ravel()[:20]).all()
    monkeypatch.setattr(map_file.MapWriter, "write", real)
    time.sleep(1.1)  # no time of day may be in the file
    found = ring.map(field, 10, path, simulator=NoisyRing(), config=SMALL, progress=False)
    assert sha(path) == sha(whole.path) and found.counts.pending == 0


KILLED = """
import sys, numpy as np, torch
from sbiflow import Posterior
from sbiflow.maps import MapConfig, file
torch.set_num_threads(1)
file.COMMIT_SECONDS = 0.0
Posterior.load(sys.argv[1]).map(sys.argv[2], 40, sys.argv[3], config=MapConfig(block=11, threads=2), progress=False)
"""


def test_a_process_that_is_killed_loses_nothing(ring, tmp_path):
    theta = RING.prior.sample(4000, torch.Generator().manual_seed(1))
    x = RING.observe(RING.signal(theta), torch.Generator().manual_seed(2)).numpy().reshape(50, 80, 3)
    np.save(tmp_path / "x.npy", x)
    ring.save(tmp_path / "model")
    path, before = tmp_path / "killed.h5", torch.get_num_threads()
    torch.set_num_threads(1)
    whole = ring.map(x, 40, tmp_path / "whole.h5", config=MapConfig(block=11), progress=False)
    command = [sys.executable, "-c", KILLED, tmp_path / "model", tmp_path / "x.npy", path]
    run = subprocess.Popen(command, cwd=Path(__file__).parents[1])
    while run.poll() is None and not (path.exists() and MapResult.open(path).counts.inferred):
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    part = MapResult.open(path)
    done = part.status != PixelStatus.PENDING
    assert 0 < done.sum() < 4000
    np.testing.assert_array_equal(part["phi"].high[done], whole["phi"].high[done])
    ring.map(x, 40, path, config=MapConfig(block=11), progress=False)
    assert sha(path) == sha(whole.path)
    torch.set_num_threads(before)


def test_another_map_is_refused_with_what_differs(ring, field, tmp_path):
    path = tmp_path / "m.h5"
    ring.map(field, 10, path, simulator=NoisyRing(), config=SMALL, progress=False)
    before = sha(path)
    other = Posterior(**{**vars(ring), "x_shape": ring.x_shape})
    moved = replace(SMALL, block=8)
    loud = replace(SMALL, noise=0.6)
    for n, seed, x, simulator, config, named in [
        (11, 0, field, NoisyRing(), SMALL, "n: expected 11, got 10"),
        (10, 1, field, NoisyRing(), SMALL, "seed: expected 1, got 0"),
        (10, 0, field + 1, NoisyRing(), SMALL, "x_sha256: expected"),
        (10, 0, field[:5], NoisyRing(), SMALL, r"shape: expected \[5, 9\], got \[6, 9\]; x_sha256"),
        (10, 0, field, NoisyRing(), moved, "block: expected 8, got 7"),
        (10, 0, field, NoisyRing(), loud, "noise_sha256"),
        (10, 0, field, None, SMALL, "predictive: expected 0, got 1; simulator: expected , got ring"),
    ]:
        with pytest.raises(ValueError, match=f"another map, use another file: {named}"):
            other.map(x, n, path, simulator=simulator, seed=seed, config=config, progress=False)
    weight = next(other.flow.parameters())
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0] += 1e-3
    with pytest.raises(ValueError, match="model: expected"):
        other.map(field, 10, path, simulator=NoisyRing(), config=SMALL, progress=False)
    with torch.no_grad():
        weight.copy_(kept)
    assert sha(path) == before


def test_a_finished_map_is_not_computed_again(ring, field, tmp_path, monkeypatch):
    ring.map(field, 10, tmp_path / "m.h5", progress=False)
    monkeypatch.setattr(BlockTask, "__call__", None)
    assert ring.map(field, 10, tmp_path / "m.h5", progress=False).counts.inferred == 52


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n: expected a whole number >= 1, got 0"),
        ({"seed": -1}, "seed: expected a whole number >= 0"),
        ({"x": np.zeros((6, 9, 4))}, r"cube: expected shape \(ny, nx, 3\), got \(6, 9, 4\)"),
        ({"x": np.zeros((6, 9, 3)).astype(str)}, "cube: expected real numbers"),
        ({"config": MapConfig(axes="middle")}, 'axes: expected "first" or "last"'),
        ({"config": MapConfig(threads=0)}, "threads: expected a whole number >= 1"),
        ({"config": MapConfig(block=0)}, "block: expected a whole number >= 1"),
        ({"simulator": RING}, "noise: expected standard deviations"),
        ({"simulator": NoisyRing(), "config": MapConfig(noise=-1.0)}, "noise: expected finite values > 0"),
        (
            {"simulator": NoisyRing(), "config": MapConfig(noise=[1.0, 2.0])},
            "noise: expected a shape that fits",
        ),
        (
            {"simulator": NoisyRing(), "config": MapConfig(predictive=11)},
            "predictive: expected at most the 10",
        ),
        ({"simulator": TOY}, "simulator: expected the parameters r, phi"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(ring, field, tmp_path, arguments, message):
    given = {"x": field, "n": 10, "progress": False} | arguments
    with pytest.raises(ValueError, match=message):
        ring.map(given.pop("x"), given.pop("n"), tmp_path / "m.h5", **given)
    assert not (tmp_path / "m.h5").exists()


def test_another_file_is_not_overwritten(ring, field, tmp_path):
    store = quick_store(tmp_path / "s.h5", RING, 50)
    with pytest.raises(ValueError, match="expected a map made by `sbiflow map`, got another kind"):
        ring.map(field, 10, store.path, progress=False)
    with pytest.raises(ValueError, match="got no such file"):
        MapResult.open(tmp_path / "none.h5")
    found = ring.map(field, 10, tmp_path / "m.h5", progress=False)
    with pytest.raises(ValueError, match="image: expected one of"):
        found.image("mode")
    with pytest.raises(KeyError, match="the names are r, phi"):
        found["B"]


# --- sources


def write_fits(path: Path, data: np.ndarray, **cards: object) -> Path:
    fits = pytest.importorskip("astropy.io.fits")
    header = fits.Header()
    header.update(cards)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(data, header)]).writeto(path)
    return path


@pytest.mark.parametrize(
    "kind", ["array", "memmap", "npy", "h5", "h5 dataset", "fits", "hdu", "strided", "float32"]
)
@pytest.mark.parametrize("axes", ["first", "last"])
def test_every_source_gives_the_same_pixels(tmp_path, kind, axes):
    fits = pytest.importorskip("astropy.io.fits")
    expected = np.random.default_rng(1).normal(size=(5, 7, 2, 3)).astype("f4").astype("f8")
    data = expected if axes == "first" else np.ascontiguousarray(np.moveaxis(expected, (0, 1), (-2, -1)))
    np.save(tmp_path / "x.npy", data)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("other/stokes", data=data, chunks=True, compression="gzip")
    write_fits(tmp_path / "x.fits", data.astype(">f4"))
    with h5py.File(tmp_path / "x.h5") as file, fits.open(tmp_path / "x.fits") as units:
        source = {
            "array": data, "memmap": np.load(tmp_path / "x.npy", mmap_mode="r"), "npy": tmp_path / "x.npy",
            "h5": str(tmp_path / "x.h5"), "h5 dataset": file["other/stokes"], "fits": tmp_path / "x.fits",
            "hdu": units[1], "strided": np.repeat(data, 2, -1)[..., ::2], "float32": torch.from_numpy(data).float(),
        }[kind]  # fmt: skip
        with open_cube(source, (2, 3), axes=axes) as found:
            assert found.shape == (5, 7) and len(found) == 35
            for start, stop in [(0, 35), (3, 4), (5, 9), (6, 30), (7, 14), (34, 35)]:
                got = found.read(start, stop)
                assert got.dtype == np.float64 and got.dtype.isnative
                np.testing.assert_array_equal(got, expected.reshape(35, 2, 3)[start:stop])
            assert found.sha256() == hashlib.sha256(expected.tobytes()).hexdigest()


def test_scaled_integers_of_fits(tmp_path):
    fits = pytest.importorskip("astropy.io.fits")
    unit = fits.ImageHDU((10 + 0.5 * np.arange(24.0)).reshape(2, 3, 4))
    unit.scale("int16", bscale=0.5, bzero=10)
    unit.header["BLANK"] = 5
    unit.writeto(tmp_path / "x.fits")
    with open_cube(tmp_path / "x.fits", (4,)) as found:
        expected = 10 + 0.5 * np.arange(24.0).reshape(6, 4)
        expected[1, 1] = np.nan
        np.testing.assert_array_equal(found.read(0, 6), expected)


class Recording:
    """An array-like that is never read as a whole."""

    def __init__(self, shape):
        self.shape, self.dtype, self.largest = shape, np.dtype("f4"), 0

    def __getitem__(self, key):
        sizes = [len(range(*part.indices(size))) for part, size in zip(key, self.shape, strict=True)]
        self.largest = max(self.largest, math.prod(sizes))
        return np.zeros(sizes, self.dtype)


@pytest.mark.parametrize("shape", [(3000, 4000, 5), (2, 9_000_000, 5), (20_000_000, 1, 5)])
def test_what_is_read_at_once_is_bounded(shape):
    source = Recording(shape)
    with open_cube(source, (5,)) as found:
        parts = list(found.stripes(327))
        assert parts[0][0] == 0 and parts[-1][1] == len(found)
        assert all(a[1] == b[0] and a[1] % 327 == 0 for a, b in itertools.pairwise(parts))
        for start, stop in parts[:2] + parts[-2:]:
            found.read(start, stop)
    assert 8 * source.largest <= cube.STRIPE_BYTES


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"1,2", "expected a file ending in .npy, .h5, .hdf5, .fits, got .csv"),
        ("x.npy", b"\x93NUMPY", "expected a complete .npy file"),
        ("x.h5", b"\x89HDF\r\n\x1a\n", "expected a complete .h5 file"),
        ("x.fits", b"SIMPLE  =", "expected a complete .fits file"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    pytest.importorskip("astropy.io.fits")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message), open_cube(tmp_path / name, (3,)):
        pass
    with pytest.raises(ValueError, match="got no such file"), open_cube(tmp_path / "none.npy", (3,)):
        pass


def test_a_truncated_fits_file_is_refused(tmp_path):
    path = write_fits(tmp_path / "x.fits", np.zeros((50, 50, 3)))
    path.write_bytes(path.read_bytes()[:-9000])
    with pytest.raises(ValueError, match=r"expected a complete \.fits file"), open_cube(path, (3,)):
        pass


def test_an_error_of_the_map_is_not_one_of_its_source(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 2, 3)))
    with pytest.raises(OSError, match="disk") as caught, open_cube(tmp_path / "x.npy", (3,)):
        raise OSError("the disk is full")
    assert not isinstance(caught.value, ValueError)


# --- alarms


@pytest.fixture(scope="module")
def judged(ring, tmp_path_factory) -> MapResult:
    """1,600 ordinary pixels; a patch of 3 x 5 far from every simulation, and another off in a mean that r explains."""
    theta = RING.prior.sample(1600, torch.Generator().manual_seed(1))
    x = RING.observe(RING.signal(theta), torch.Generator().manual_seed(2)).numpy().reshape(40, 40, 3)
    x[10:13, 20:25] += 30
    path = tmp_path_factory.mktemp("judged") / "m.h5"
    return ring.map(x, 30, path, simulator=NoisyRing(), progress=False)


def test_pixels_unlike_the_simulations_are_found(judged):
    assert judged.unlike[10:13, 20:25].all() and judged.misfit[10:13, 20:25].all()
    assert judged.verdict.startswith("Do not use the")
    assert "by chance are unlike the simulations and do not fit their data" in judged.verdict
    assert judged.counts.unlike == judged.unlike.sum() and judged.counts.signals == 1600


def test_ordinary_pixels_alarm_as_often_as_promised(judged):
    """Binomial, false alarms 1e-4; at most the stated share of the simulations."""
    patch = np.zeros((40, 40), bool)
    patch[10:13, 20:25] = True
    level = judged.counts.unlike_by_chance / judged.counts.inferred
    assert level < 0.01
    assert stats.binom.sf(judged.unlike[~patch].sum() - 1, 1585, level) > 1e-4
    assert stats.kstest(judged.image("novelty", 0)[~patch], "uniform").pvalue > 1e-4


def test_a_field_of_simulations_is_not_warned_of(ring, field, tmp_path):
    found = ring.map(field, 30, tmp_path / "m.h5", config=MapConfig(predictive=3), progress=False)
    assert found.verdict.startswith("No more alarms than chance explains")
    assert "not tested, for no simulator was given" in found.verdict and found.counts.misfit is None
    assert str(found).startswith(f"{tmp_path}/m.h5: 6 x 9 pixels, 30 draws each, spline_coupling flow")


@pytest.mark.parametrize("expected", [0.05, 3.0, 260.0, 1e5])
def test_too_many_is_the_tail_of_a_poisson_distribution(expected):
    """The verdict turns at the smallest count whose tail is below 1e-3."""
    limit = int(stats.poisson.isf(1e-3, expected)) + 1
    assert stats.poisson.sf(limit - 1, expected) <= 1e-3 < stats.poisson.sf(limit - 2, expected)
    assert result._too_many(limit, expected) and not result._too_many(limit - 1, expected)
    assert not result._too_many(0, 0.0) and result._too_many(1, 0.0)


def test_noise_that_is_too_small_is_a_misfit(ring, field, tmp_path):
    small = replace(SMALL, noise=0.1, predictive=4)
    found = ring.map(field, 30, tmp_path / "m.h5", simulator=RING, config=small, progress=False)
    assert found.counts.misfit > 30 and found.counts.signals == 4 * 52
    assert found.verdict.startswith(f"Do not use the {int(found.suspect.sum())} suspect pixels")
    assert found.counts.misfit_by_chance == pytest.approx(52 * ALARM)


# --- FITS and figures


def test_fits_holds_every_image_with_unit_and_coordinates(ring, field, tmp_path):
    fits = pytest.importorskip("astropy.io.fits")
    wcs = pytest.importorskip("astropy.wcs")
    cards = {
        "CTYPE1": "WAVE", "CTYPE2": "HPLN-TAN", "CTYPE3": "HPLT-TAN", "CUNIT2": "arcsec", "CUNIT3": "arcsec",
        "CRPIX2": 4.0, "CRPIX3": 2.0, "CRVAL2": 100.0, "CRVAL3": -50.0, "CDELT2": 0.06, "CDELT3": 0.06,
    }  # fmt: skip
    source = write_fits(tmp_path / "x.fits", field, **cards)
    found = ring.map(source, 10, tmp_path / "m.h5", simulator=NoisyRing(), progress=False)
    path = found.to_fits(tmp_path / "m.fits")
    with fits.open(path) as units:
        names = [unit.name for unit in units[1:]]
        assert names == [
            "MEDIAN_R", "MEDIAN_PHI", "LOW_R", "LOW_PHI", "HIGH_R", "HIGH_PHI", "CIRCULAR_MEAN_PHI",
            "CONCENTRATION_PHI", "NOVELTY_INPUT", "NOVELTY_EMBEDDING", "CHI2", "CHI2_P", "STATUS",
        ]  # fmt: skip
        assert units["HIGH_R"].header["BUNIT"] == "m" and units["LOW_PHI"].header["BUNIT"] == "deg"
        assert "BUNIT" not in units["CONCENTRATION_PHI"].header and units[0].header["NDRAWS"] == 10
        np.testing.assert_array_equal(units["LOW_PHI"].data, found["phi"].low)
        np.testing.assert_array_equal(units["STATUS"].data, found.status)
        own = wcs.WCS(units["MEDIAN_R"].header)
        world = own.pixel_to_world_values(3, 1)  # the reference pixel, from zero
        np.testing.assert_allclose(np.asarray(world) * 3600, [100, -50], atol=1e-9)
        np.testing.assert_allclose(np.asarray(own.pixel_to_world_values(4, 1))[0] * 3600, 100.06, atol=1e-6)


def test_fits_with_units_and_names_it_cannot_spell(tmp_path):
    fits = pytest.importorskip("astropy.io.fits")
    odd = Prior(Uniform("Δλ", 2, 5, unit="Å"), Uniform("w", 0, 1, unit="dex per furlong"))
    ring = Ring(prior=odd)
    posterior = quick_train(quick_store(tmp_path / "s.h5", ring, 600), ring)
    found = posterior.map(np.zeros((2, 2, 3)), 5, tmp_path / "m.h5", progress=False)
    with fits.open(found.to_fits(tmp_path / "m.fits")) as units:
        assert units[1].header["BUNIT"] == "Angstrom" and units[1].header["PARNAME"] == r"\u0394\u03bb"
        assert units[2].header["UNITTEXT"] == "dex per furlong" and "BUNIT" not in units[2].header


def test_figures_show_every_parameter(judged):
    medians, widths, checks = judged.figures()
    labels = [axes.get_ylabel() for axes in medians.axes] + [axes.get_ylabel() for axes in widths.axes]
    assert {"r [m]", "phi [deg]", "σ of r [m]", "R of phi"} <= set(labels)
    found = {axes.get_ylabel() for axes in checks.axes} | {axes.get_title() for axes in checks.axes}
    assert {"p: like the simulations", "χ² / N at the posterior", "p of χ²", "alarms"} <= found
    image = next(axes.images[0] for axes in medians.axes if axes.images)
    np.testing.assert_array_equal(image.get_array(), judged["r"].median)


def test_attributes_say_what_the_map_is(judged):
    with h5py.File(judged.path) as file:
        assert json.loads(file.attrs["names"]) == ["r", "phi"] and file.attrs["n"] == 30
        assert json.loads(file.attrs["units"]) == ["m", "deg"] and len(file.attrs["model"]) == 64
        assert file["median"].shape == (2, 40, 40) and file["median"].dtype == np.float32
        assert file["concentration"].shape == (1, 40, 40) and file["status"].dtype == np.uint8


def test_the_random_numbers_of_a_block_depend_on_seed_and_block_alone(ring, field):
    task = BlockTask(Mixture((ring,), (1.0,)), 10, 4, None, {"median": 2, "low": 2, "high": 2, "novelty": 2})
    x = field.reshape(54, 3)[:7]
    first, again, other = task(3, x)[0], task(3, x)[0], task(4, x)[0]
    np.testing.assert_array_equal(first["median"], again["median"])
    assert (first["median"] != other["median"]).all()
    assert (replace(task, seed=5)(3, x)[0]["median"] != first["median"]).all()
    assert torch_generator(4, 0x3A95, 3).initial_seed() != torch_generator(4, 0x3A95, 4).initial_seed()
