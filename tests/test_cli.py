"""The command line: the whole path from simulator to verdict, one line for every error, Ctrl-C.

In-process commands but for one end-to-end run. Seeds are fixed, so nothing here can fail
by chance; the calibration that must pass would fail a perfect posterior with probability 0.01.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from sbiflow import datasets, samples
from sbiflow.cli import app
from sbiflow.cli.errors import one_line
from sbiflow.families import FlowConfig
from sbiflow.function_simulator import FunctionSimulator
from sbiflow.importance import importance_weights
from sbiflow.posterior import Posterior
from sbiflow.priors import Prior, Uniform
from sbiflow.store import Store
from sbiflow.training import Member
from sbiflow.training.checkpoint import load_tensors
from simulators.crisp import BEST_FIT, WAVELENGTHS, crisp_simulator
from simulators.registry import BUILT_IN
from tests.quick import CONFIG, EMBEDDING, FLOW
from tests.toys import LinearGaussian

ROOT = Path(__file__).resolve().parents[1]
SIMULATOR = "tests.toys:LinearGaussian"
SMALL = ["--layers", "2", "--hidden", "32", "--features", "16", "--embedding-hidden", "32"]
CRISP_FILE = "crisp/feobs.fits"


def sbiflow(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> str:
    result = sbiflow(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def fail(*arguments: object, status: int = 2) -> str:
    """The one line on stderr of a command that has to fail."""
    result = sbiflow(*arguments)
    assert result.exit_code == status, result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("training ")]  # its bar
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def store(folder) -> Path:
    succeed("simulate", SIMULATOR, "--n", 8000, "--out", folder / "sims.h5", "--seed", 3)
    return folder / "sims.h5"


@pytest.fixture(scope="module")
def model(folder, store) -> Path:
    succeed("train", store, "--out", folder / "model", "--simulator", SIMULATOR, "--steps", 250, *SMALL)
    return folder / "model"


@pytest.fixture(scope="module")
def crisp_model(folder) -> Path:
    """Hardly trained: what is tested is how it reads its observations."""
    succeed("simulate", "stokes", "--n", 200, "--out", folder / "crisp.h5")
    succeed("train", folder / "crisp.h5", "--out", folder / "crisp", "--steps", 3)
    return folder / "crisp"


@pytest.fixture
def observation(folder) -> Path:
    np.savetxt(folder / "x.csv", [[0.3, -1.2, 1.1]], delimiter=",")
    return folder / "x.csv"


class Interrupting(LinearGaussian):
    """Presses Ctrl-C at call number `at` of `method`."""

    at, calls = 0, 0

    def _count(self) -> None:
        Interrupting.calls += 1
        if Interrupting.calls == Interrupting.at:
            signal.raise_signal(signal.SIGINT)

    def signal(self, theta: torch.Tensor) -> torch.Tensor:
        self._count()
        return super().signal(theta)

    def observe(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        self._count()
        return super().observe(x, generator)


def _half_broken(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if theta[0] < 0.5:
        raise ArithmeticError("negative\npressure")
    return theta


def _broken(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    raise ArithmeticError("negative\npressure")


UNIT = Prior(Uniform("u", 0.0, 1.0, unit="s"))
half_broken = FunctionSimulator(_half_broken, UNIT, (1,), "half broken")
broken = FunctionSimulator(_broken, UNIT, (1,), "broken")
not_a_simulator = 3


def explodes() -> None:
    raise KeyError("no such thing")


# --- what the commands do


def test_simulate_is_the_python_function(store):
    opened = Store.open(store)
    assert (opened.n_ok, opened.meta.simulator, opened.meta.seed) == (8000, "linear-gaussian", 3)
    signal = opened.theta() @ LinearGaussian().a.numpy().T
    np.testing.assert_allclose(opened.signal(), signal, rtol=1e-5, atol=1e-5)


def test_worker_processes_give_the_same_rows(tmp_path, store):
    succeed("simulate", SIMULATOR, "--n", 1100, "--out", tmp_path / "s.h5", "--seed", 3, "--workers", 1)
    np.testing.assert_array_equal(Store.open(tmp_path / "s.h5").signal(), Store.open(store).signal()[:1100])


def test_sample_prints_the_summary_and_writes_the_draws(model, observation, tmp_path):
    out, corner = tmp_path / "draws.h5", tmp_path / "corner.png"
    text = succeed("sample", model, observation, "--n", 500, "--seed", 4, "--out", out, "--corner", corner)
    expected = Posterior.load(model).sample(np.array([0.3, -1.2, 1.1]), 500, seed=4)
    assert str(expected.summary()) in text
    draws = samples.load(out)
    assert torch.equal(draws.theta, expected.theta)
    assert corner.read_bytes().startswith(b"\x89PNG")


def test_reweight_prints_the_verdict_and_stores_the_weights(model, observation, tmp_path):
    out = tmp_path / "draws.h5"
    arguments = ["--n", 2000, "--out", out, "--reweight", "--simulator", SIMULATOR]
    text = succeed("sample", model, observation, *arguments)
    assert "effective sample size" in text and "Pareto" in text
    draws, toy = samples.load(out), LinearGaussian()
    assert draws.diagnostics.verdict in text
    weights, _ = importance_weights(
        toy.log_likelihood(draws.theta, draws.x), toy.prior.log_prob(draws.theta), draws.log_q
    )
    torch.testing.assert_close(draws.log_weights, weights)
    # five of its own standard errors: false alarms below 1e-6
    error = abs(draws.diagnostics.log_evidence - float(toy.log_evidence(draws.x)))
    assert error < 5 * draws.diagnostics.log_evidence_error


def test_an_unlike_observation_is_warned_of(model, tmp_path):
    np.save(tmp_path / "far.npy", np.array([30.0, -40.0, 50.0]))
    assert "unlike the simulations" in succeed("sample", model, tmp_path / "far.npy", "--n", 50)


def test_check_passes_a_trained_posterior(model, tmp_path):
    report, json = tmp_path / "report.html", tmp_path / "report.json"
    arguments = ["--n", 200, "--draws", 200, "--report", report, "--json", json, "--simulator", SIMULATOR]
    assert "Calibrated" in succeed("check", model, *arguments)
    assert "<html" in report.read_text() and '"passed": true' in json.read_text()


def test_check_fails_an_untrained_posterior_with_status_1(tmp_path):
    """Two crescents: far from the linear fit that an untrained flow is."""
    succeed("simulate", "two_moons", "--n", 300, "--out", tmp_path / "s.h5")
    succeed("train", tmp_path / "s.h5", "--out", tmp_path / "model", "--steps", 2, "--layers", 2)
    result = sbiflow("check", tmp_path / "model", "--n", 100, "--draws", 100)
    assert result.exit_code == 1
    assert "Not calibrated" in result.stdout and not result.stderr


def test_an_ensemble_is_trained_sampled_checked_and_shown(observation, tmp_path, monkeypatch):
    members = [Member(FLOW, EMBEDDING, CONFIG)] * 2
    monkeypatch.setattr("sbiflow.training.ensemble.default_members", lambda simulations: members)
    succeed("simulate", SIMULATOR, "--n", 500, "--out", tmp_path / "s.h5")
    arguments = ["--simulator", SIMULATOR, "--ensemble"]
    text = succeed("train", tmp_path / "s.h5", "--out", tmp_path / "e", *arguments)
    assert "2 flows in" in text and (tmp_path / "e-checkpoints" / "member-1.safetensors").exists()
    text = succeed("sample", tmp_path / "e", observation, "--n", 500, "--simulator", SIMULATOR, "--reweight")
    assert "log evidence" in text and "from 500 likelihoods elsewhere" in text
    checked = succeed("check", tmp_path / "e", "--n", 100, "--draws", 100, "--simulator", SIMULATOR)
    assert "Calibrated" in checked or "PASS" in checked
    text = succeed("info", tmp_path / "e")
    assert "members   2" in text and "weights" in text and text.count("layers 2") == 2


def test_info_of_a_store_a_model_and_draws(store, model, observation, tmp_path):
    text = succeed("info", store)
    assert "8,000 valid, 0 failed, 0 pending" in text and "linear-gaussian" in text
    assert str(LinearGaussian().prior) in text
    text = succeed("info", model)
    assert (
        f"{Posterior.load(model).info.steps} steps" in text
        and "layers 2" in text
        and str(LinearGaussian().prior) in text
    )
    succeed("sample", model, observation, "--n", 50, "--out", tmp_path / "draws.h5")
    text = succeed("info", tmp_path / "draws.h5")
    assert "trained on 8000 simulations" in text and str(samples.load(tmp_path / "draws.h5")) in text


def test_list_names_simulators_families_and_data_sets():
    text = succeed("list")
    for word in ("stokes-paper", "inclination", "km/s", "spline_coupling", "maf", CRISP_FILE):
        assert word in text


def test_fetch_says_where_a_file_is_and_downloads_one_that_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "crisp").mkdir()
    (tmp_path / CRISP_FILE).write_bytes(b"")
    monkeypatch.setenv("SBIFLOW_DATA", str(tmp_path))
    assert succeed("fetch", CRISP_FILE).strip() == str(tmp_path / CRISP_FILE)
    (tmp_path / CRISP_FILE).unlink()
    monkeypatch.setattr(datasets, "_folders", lambda: [tmp_path])
    monkeypatch.setattr(datasets, "fetch", lambda name: tmp_path / "fetched" / name)
    assert succeed("fetch", CRISP_FILE).strip() == str(tmp_path / "fetched" / CRISP_FILE)


def test_every_command_has_help_with_an_example():
    for command in ("simulate", "train", "sample", "check", "info", "list", "fetch"):
        assert f"Example: sbiflow {command}" in " ".join(succeed(command, "--help").split())
    assert succeed("--version").strip()


def configurations_of_train(store, tmp_path, monkeypatch, *options):
    """What `sbiflow train` asks `sf.train` for: training, flow, embedding, device."""

    class Called(Exception):
        pass

    def record(store, simulator, config, **options):
        raise Called(config, options["flow"], options["embedding"], options["device"])

    monkeypatch.setattr("sbiflow.cli.pipeline.train", record)
    result = sbiflow("train", store, "--out", tmp_path / "model", "--simulator", SIMULATOR, *options)
    assert isinstance(result.exception, Called)
    return result.exception.args


def test_the_defaults_of_train_are_those_of_the_configurations(store, tmp_path, monkeypatch):
    config, flow, embedding, device = configurations_of_train(store, tmp_path, monkeypatch)
    assert (config, flow, embedding) == (type(config)(), type(flow)(), type(embedding)())
    assert device == "auto"


def test_every_option_of_the_flow_reaches_it(store, tmp_path, monkeypatch):
    wanted = FlowConfig(
        "realnvp", 4, 32, bins=5, spline="cubic", mixing="permutation", normalisation="actnorm"
    )
    options = ["--family", "realnvp", "--layers", 4, "--hidden", 32, "--bins", 5, "--spline", "cubic"]
    options += ["--mixing", "permutation", "--normalisation", "actnorm"]
    assert configurations_of_train(store, tmp_path, monkeypatch, *options)[1] == wanted


# --- the spectrum of SST/CRISP


def test_built_in_simulators_record_the_name_that_finds_them():
    for entry in BUILT_IN.values():
        assert entry.make().name == entry.recorded


def crisp_file(path: Path, wavelengths: list[float]) -> np.ndarray:
    """A FITS file as STiC writes it, in CGS; returns I, Q, U, V in units of the continuum that it was made with."""
    fits = pytest.importorskip("astropy.io.fits", reason="astropy (the fits extra) is not installed")
    stokes = crisp_simulator().signal(torch.tensor([BEST_FIT]))[0].numpy()
    fits.writeto(path, np.vstack([wavelengths, 3e-5 * stokes]), overwrite=True)
    return stokes


def test_a_spectrum_in_cgs_is_read_by_the_simulators_own_reader(crisp_model, tmp_path):
    stokes = crisp_file(tmp_path / "spectrum.fits", list(WAVELENGTHS))
    succeed("sample", crisp_model, tmp_path / "spectrum.fits", "--n", 20, "--out", tmp_path / "draws.h5")
    x = samples.load(tmp_path / "draws.h5").x.numpy()
    np.testing.assert_allclose(x, stokes / (1.047 * stokes[0].max()), rtol=1e-5, atol=1e-7)
    np.save(tmp_path / "x.npy", x)  # in units of the continuum: no FITS, read as numbers
    succeed("sample", crisp_model, tmp_path / "x.npy", "--n", 20, "--out", tmp_path / "again.h5")
    np.testing.assert_array_equal(samples.load(tmp_path / "again.h5").x.numpy(), x)


def test_the_real_spectrum(crisp_model, tmp_path):
    try:
        path = datasets.find(CRISP_FILE)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    text = succeed("sample", crisp_model, path, "--n", 200, "--reweight", "--out", tmp_path / "draws.h5")
    assert "Do not use" in text  # three training steps
    draws = samples.load(tmp_path / "draws.h5")
    data = pytest.importorskip("astropy.io.fits").getdata(path)
    np.testing.assert_allclose(draws.x.numpy(), data[1:] / (1.047 * data[1].max()), rtol=1e-12)


def test_spectra_that_do_not_fit(crisp_model, tmp_path):
    path = tmp_path / "spectrum.fits"
    crisp_file(path, [w + 1e-3 for w in WAVELENGTHS])
    assert "expected 16 wavelengths 6301.2897 to" in fail("sample", crisp_model, path)
    path.write_bytes(path.read_bytes()[:3000])
    assert "expected a complete FITS file" in fail("sample", crisp_model, path)
    path.write_text("hello")
    assert f"{path}: expected a complete FITS file" in fail("sample", crisp_model, path)
    path.unlink()
    assert f"{path}: expected an observation, got no such file" in fail("sample", crisp_model, path)


# --- errors


def test_errors_of_simulate(tmp_path, store):
    out = tmp_path / "s.h5"
    cases: list[tuple[list[object], str]] = [
        (["stoke", "--n", 5], "lotka_volterra or package.module:attribute, got 'stoke'"),
        (["tests.nothing:X", "--n", 5], "ModuleNotFoundError: No module named 'tests.nothing'"),
        (["tests.toys:nothing", "--n", 5], "AttributeError: module 'tests.toys' has no attribute 'nothing'"),
        ([f"{__name__}:not_a_simulator", "--n", 5], "TypeError: 'int' object is not callable"),
        ([f"{__name__}:explodes", "--n", 5], "KeyError: 'no such thing'"),
        ([SIMULATOR, "--n", 0], "n: expected a whole number >= 1, got 0"),
        ([SIMULATOR, "--n", 5, "--seed", -1], "seed: expected a whole number >= 0"),
        ([SIMULATOR, "--n", 5, "--dtype", "int8"], 'dtype: expected "float32" or "float64"'),
        ([SIMULATOR, "--n", 5, "--timeout", 1], "timeout: expected None"),
        ([f"{__name__}:broken", "--n", 5], "5 of 5 rows failed"),
    ]
    for arguments, message in cases:
        assert message in fail("simulate", *arguments, "--out", out)
    assert "expected" in fail("simulate", SIMULATOR, "--n", 5, "--out", tmp_path / "no" / "s.h5")
    before = store.read_bytes()
    assert "seed: expected 9, got 3" in fail("simulate", SIMULATOR, "--n", 8000, "--seed", 9, "--out", store)
    assert store.read_bytes() == before


def test_rows_that_fail_are_one_line_of_warning(tmp_path):
    result = sbiflow("simulate", f"{__name__}:half_broken", "--n", 50, "--out", tmp_path / "s.h5")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: ") and result.stderr.count("\n") == 1
    assert "rows failed" in result.stderr and "ArithmeticError: negative pressure" in result.stderr
    assert "ArithmeticError" in succeed("info", tmp_path / "s.h5")


def test_a_full_disk(tmp_path, monkeypatch):
    def no_space(fd, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sbiflow.store_file.os.posix_fallocate", no_space)
    assert "MB free" in fail("simulate", SIMULATOR, "--n", 5, "--out", tmp_path / "s.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_in_training_and_sampling(tmp_path, store, model, observation):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        arguments = ["--simulator", SIMULATOR, "--steps", 2, *SMALL]
        assert "No space left" in fail("train", store, "--out", small / "model", *arguments)
        assert not list(small.rglob("*.tmp"))
        assert "No space left" in fail("sample", model, observation, "--out", small / "draws.h5")
        assert not (small / "draws.h5").exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_errors_of_train(store, tmp_path, folder):
    truncated, foreign = tmp_path / "truncated.h5", tmp_path / "foreign.h5"
    truncated.write_bytes(store.read_bytes()[:5000])
    with h5py.File(foreign, "w") as file:
        file["x"] = [1.0]
    named = ["--simulator", SIMULATOR]
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "nothing.h5"], "got no such file"),
        ([truncated], "truncated.h5: expected"),
        ([foreign], "foreign.h5: expected a store"),
        ([store], "simulator 'linear-gaussian', which is not built in: pass --simulator"),
        ([store, "--simulator", "stokes"], "name: expected 'linear-gaussian', got 'milne-eddington-crisp'"),
        ([store, *named, "--family", "spam"], "flow family: expected one of spline_coupling"),
        ([store, *named, "--embedding", "vit"], "embedding kind: expected one of"),
        ([store, *named, "--steps", 0], "steps: expected a whole number >= 1, got 0"),
        ([store, *named, "--device", "abacus"], "device: expected"),
    ]
    for arguments, message in cases:
        assert message in fail("train", *arguments, "--out", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_another_run_is_not_resumed_by_accident(store, tmp_path):
    arguments = ["train", store, "--out", tmp_path / "model", "--simulator", SIMULATOR, *SMALL]
    succeed(*arguments, "--steps", 2)
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    line = fail(*arguments, "--steps", 3)
    assert "checkpoint of another run" in line and "--restart" in line
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights
    assert "3 steps" in succeed(*arguments, "--steps", 3, "--restart")


def test_an_unfinished_store_is_trained_on_with_a_warning(store, tmp_path):
    full = Store.open(store)
    half = Store.create(tmp_path / "half.h5", n=2000, x_shape=(3,), meta=full.meta)
    theta, signal = full.read(slice(0, 1024))
    with half.writer() as writer:
        writer.write(0, theta, signal, np.ones(1024, np.uint8), {})
    arguments = ["--simulator", SIMULATOR, "--steps", 2, "--layers", 2]
    result = sbiflow("train", half.path, "--out", tmp_path / "model", *arguments)
    assert result.exit_code == 0
    assert "warning:" in result.stderr and "1,024 of 2,000 rows" in result.stderr


def test_several_stores_from_the_disk(store, tmp_path):
    succeed("simulate", SIMULATOR, "--n", 1000, "--out", tmp_path / "more.h5", "--seed", 4)
    arguments = ["--out", tmp_path / "model", "--simulator", SIMULATOR, "--steps", 2, *SMALL]
    succeed("train", store, tmp_path / "more.h5", *arguments, "--memory", 1e-4)
    assert Posterior.load(tmp_path / "model").info.simulations == 9000
    _, meta = load_tensors(tmp_path / "model" / "checkpoint.safetensors")
    assert meta["identity"]["order"].startswith("from disk, ")
    assert "order: expected None" in fail("train", store, tmp_path / "more.h5", *arguments, "--memory", 1)
    assert "the same rows" in fail("train", store, store, *arguments)
    assert "memory: expected a value > 0" in fail("train", store, *arguments, "--memory", 0)


def test_errors_of_sample(model, crisp_model, observation, tmp_path, store):
    np.save(tmp_path / "nan.npy", np.array([0.0, np.nan, 1.0]))
    np.save(tmp_path / "wrong.npy", np.zeros(4))
    named = ["--simulator", SIMULATOR]
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "nothing", observation], "expected a model made by `sbiflow train`"),
        ([model, tmp_path / "nothing.csv"], "got no such file"),
        ([model, tmp_path / "nan.npy"], "expected finite values, got 1 NaN or inf"),
        ([model, tmp_path / "wrong.npy"], "expected shape (3,), got (4,)"),
        ([model, tmp_path / "x.jpeg"], "expected a file ending in"),
        ([model, observation, "--n", 0], "n: expected a whole number >= 1"),
        ([model, observation, "--reweight"], "not built in: pass --simulator"),
        ([model, observation, "--simulator", "stokes"], "expected the parameters t0, t1 of"),
        ([model, observation, *named, "--device", "abacus"], "device: expected auto, cpu or cuda"),
        ([model, observation, "--out", store], "expected a new file or samples to replace"),
        ([model, observation, "--out", observation], "expected a new file or samples to replace"),
        ([model, observation, "--out", tmp_path], "expected the name of a file"),
        (
            [model, observation, "--corner", tmp_path / "no" / "c.png"],
            "expected a file in an existing folder",
        ),
        ([model, observation, "--corner", tmp_path / "c.xyz"], "Format 'xyz' is not supported"),
        ([crisp_model, observation], "expected shape (4, 16), got (1, 3)"),
    ]
    before = store.read_bytes()
    for arguments, message in cases:
        assert message in fail("sample", *arguments)
    assert store.read_bytes() == before


def test_a_simulator_without_a_likelihood_cannot_reweight(tmp_path):
    simulator = f"{__name__}:half_broken"
    sbiflow("simulate", simulator, "--n", 200, "--out", tmp_path / "s.h5")
    arguments = ["--steps", 2, "--layers", 1, "--simulator", simulator]
    assert sbiflow("train", tmp_path / "s.h5", "--out", tmp_path / "model", *arguments).exit_code == 0
    (tmp_path / "x.txt").write_text("0.7")
    arguments = ["sample", tmp_path / "model", tmp_path / "x.txt", "--simulator", simulator]
    succeed(*arguments)
    assert "expected a simulator with a log_likelihood" in fail(*arguments, "--reweight")


def test_a_simulator_of_another_version_is_warned_of(model, observation, monkeypatch):
    monkeypatch.setattr(LinearGaussian, "version", "2")
    monkeypatch.setattr(LinearGaussian, "__init__", _with_version_2(LinearGaussian.__init__))
    result = sbiflow("sample", model, observation, "--n", 20, "--simulator", SIMULATOR)
    assert result.exit_code == 0
    assert "warning:" in result.stderr and "version: expected '1', got '2'" in result.stderr


def _with_version_2(init):
    return lambda self: init(self, version="2")


def test_errors_of_info_and_fetch(observation, tmp_path):
    assert "no such file or folder" in fail("info", tmp_path / "nothing")
    assert "expected a store, a model folder or draws" in fail("info", observation)
    assert "expected a model made by" in fail("info", tmp_path)
    assert "expected one of" in fail("fetch", "nothing")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = [1.0]
    assert "of something else" in fail("info", tmp_path / "foreign.h5")


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path):
    for arguments in (["--debug", "info", tmp_path / "no"], ["info", tmp_path / "no", "--debug"]):
        result = sbiflow(*arguments)
        assert isinstance(result.exception, FileNotFoundError) and not result.stderr


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def wrong(*_: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr("sbiflow.cli.lookup.kind_of", wrong)
    assert isinstance(sbiflow("info", "x").exception, TypeError)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (OSError(errno.ENOSPC, "No space left on device", "a.h5"), "a.h5: No space left on device"),
        (OSError(errno.ENOSPC, "the disk is full"), "the disk is full"),
        (OSError("no number"), "no number"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_one_line(error, line):
    assert one_line(error) == line


# --- Ctrl-C


@pytest.fixture
def interrupt_at(monkeypatch):
    def arrange(at: int) -> None:
        monkeypatch.setattr(Interrupting, "at", at)
        monkeypatch.setattr(Interrupting, "calls", 0)

    return arrange


def test_ctrl_c_in_simulate_and_on_again(interrupt_at, tmp_path, store):
    arguments = ["simulate", f"{__name__}:Interrupting", "--n", 8000, "--seed", 3, "--out", tmp_path / "s.h5"]
    interrupt_at(4)
    result = sbiflow(*arguments)
    assert result.exit_code == 130
    assert "3072 of 8000 rows are kept" in result.stderr and "run the same again" in result.stderr
    interrupt_at(0)
    succeed(*arguments)
    np.testing.assert_array_equal(Store.open(tmp_path / "s.h5").signal(), Store.open(store).signal())


def test_ctrl_c_in_train_and_on_again(interrupt_at, tmp_path):
    simulator = f"{__name__}:Interrupting"
    interrupt_at(0)
    succeed("simulate", simulator, "--n", 1000, "--out", tmp_path / "s.h5")
    arguments = ["train", tmp_path / "s.h5", "--simulator", simulator, "--steps", 30, "--patience", 0, *SMALL]
    succeed(*arguments, "--out", tmp_path / "whole")
    interrupt_at(15)
    result = sbiflow(*arguments, "--out", tmp_path / "model")
    assert result.exit_code == 130
    assert "run the same again to go on from" in result.stderr
    assert "training is not finished" in fail("info", tmp_path / "model")
    interrupt_at(0)
    succeed(*arguments, "--out", tmp_path / "model")
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "model")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_ctrl_c_in_check(interrupt_at, tmp_path):
    simulator = f"{__name__}:Interrupting"
    interrupt_at(0)
    succeed("simulate", simulator, "--n", 200, "--out", tmp_path / "s.h5")
    succeed("train", tmp_path / "s.h5", "--out", tmp_path / "m", "--simulator", simulator, "--steps", 2)
    interrupt_at(1)
    result = sbiflow("check", tmp_path / "m", "--simulator", simulator)
    assert result.exit_code == 130
    assert "stopped: run the same command again" in result.stderr


# --- processes in a folder of their own

PROJECT = '''
import time
import torch
from sbiflow.priors import Prior, Uniform

class Square:
    """x = a^2 + noise."""
    name, x_shape = "square", (2,)
    prior = Prior(Uniform("a", 1.0, 2.0, unit="m"))
    def signal(self, theta):
        time.sleep(PAUSE)
        return (theta ** 2).repeat(1, 2)
    def observe(self, signal, generator=None):
        return signal + 0.1 * torch.randn(signal.shape, generator=generator, dtype=signal.dtype)
    def log_likelihood(self, theta, x):
        return torch.distributions.Normal(theta ** 2, 0.1).log_prob(x).sum(-1)

square = Square()
PAUSE = 0.01
'''


def test_from_nothing_to_a_verdict_in_processes_of_their_own(tmp_path):
    (tmp_path / "mine.py").write_text(PROJECT)
    np.save(tmp_path / "x.npy", np.array([2.25, 2.2]))
    simulate = "simulate mine:square --n 2000 --out s.h5"
    with _start(tmp_path, simulate + " --block 10") as process:
        deadline = time.monotonic() + 60
        while not _rows_done(tmp_path / "s.h5") and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.strip().splitlines()[-1].endswith("run the same again to continue"), stderr
    assert "Traceback" not in stderr
    assert Store.open(tmp_path / "s.h5").n_done < 2000

    train = "train s.h5 --out model --simulator mine:square --steps 60 --layers 1"
    sample = "sample model x.npy --n 500 --reweight --simulator mine:square --out draws.h5"
    with _start(tmp_path, simulate, train, sample) as process:
        stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    assert "log evidence" in stdout
    draws = samples.load(tmp_path / "draws.h5")
    # x is (2.25, 2.2) ± 0.1 each: a = sqrt(2.225) ± 0.024, whatever the prior; half of that error is allowed
    assert abs(draws.summary()["a"].median - 2.225**0.5) < 0.012


def _start(folder: Path, *commands: str) -> subprocess.Popen[str]:
    """A process that runs `sbiflow` with each of the commands, until one fails."""
    code = (
        "import sys; from sbiflow.cli import app\n"
        "for line in sys.argv[1:]:\n"
        "    status = app(line.split(), standalone_mode=False)\n"
        "    if status: sys.exit(status)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *commands],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _rows_done(path: Path) -> int:
    try:
        return Store.open(path).n_done
    except ValueError:
        return 0
