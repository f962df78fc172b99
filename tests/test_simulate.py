"""simulate: the same bytes whatever the executor, the kill or the growth; honest about rows that fail.

Statistical tests have fixed seeds and a false-alarm rate of 1e-6 each.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from sbiflow.function_simulator import FunctionSimulator
from sbiflow.priors import Normal, Prior, Uniform
from sbiflow.seeding import row_rng, uniform_rows
from sbiflow.simulate import (
    ROW_KEY,
    THETA_KEY,
    SimulationWarning,
    draw_pairs,
    simulate,
    simulator_from_function,
)
from sbiflow.store import Failure, Status, Store
from tests.toys import LinearGaussian, normal_prior

ROOT = Path(__file__).resolve().parents[1]
UNIT = Prior(Uniform("u", 0.0, 1.0))


def noisy(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return theta[0] + rng.normal(size=3)


def sometimes_wrong(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    u = theta[0]
    if u < 0.1:
        raise ArithmeticError("diverged")
    if u < 0.2:
        return np.array([1.0, np.nan])
    if u < 0.3:
        return np.array([1e300, 1.0])  # beyond float32
    if u < 0.4:
        return np.ones(3)  # another shape
    return np.array([u, 1.0])


def sometimes_stuck(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    try:
        while theta[0] < 0.3:
            time.sleep(0.001)
    except Exception:  # legacy code that swallows everything must not swallow the timeout
        return np.zeros(1)
    return theta


def kills_its_process(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if theta[0] > 0.9:
        os._exit(1)
    return theta


@dataclass(frozen=True)
class Fragile:
    """A batched simulator that raises for the whole batch if one row is bad."""

    prior: Prior = UNIT
    x_shape: tuple[int, ...] = (2, 2)

    def signal(self, theta: torch.Tensor) -> torch.Tensor:
        if (theta < 0.05).any():
            raise ArithmeticError("negative pressure")
        return theta.reshape(-1, 1, 1) * torch.tensor([[1.0, 2.0], [3.0, torch.inf]]).where(
            theta[..., None] < 0.9, 1.0
        )

    def observe(self, signal: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        return signal


@pytest.fixture(scope="module")
def processes():
    """Two worker processes, not forked from this one (torch's threads do not survive that)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sbiflow.simulate", "tests.toys"])
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        yield pool


def run(simulator, n, path, **options):
    return simulate(simulator, n, path, **{"seed": 7, "progress": False, **options})


def same_bytes(one: Store, other: Store) -> bool:
    return (
        all(
            getattr(one, name)(valid=False).tobytes() == getattr(other, name)(valid=False).tobytes()
            for name in ("theta", "signal")
        )
        and one.status.tobytes() == other.status.tobytes()
        and one.failures() == other.failures()
    )


def uniforms(n: int) -> np.ndarray:
    """What UNIT draws with seed 7."""
    return uniform_rows(7, 0, n, 1, THETA_KEY)[:, 0]


def test_rows_are_prior_and_signal_of_their_uniforms(tmp_path):
    toy = LinearGaussian()
    store = run(toy, 100, tmp_path / "s.h5", block=32)
    u = uniform_rows(7, 0, 100, 2, THETA_KEY)
    theta = stats.norm.ppf(u, loc=[0.5, -1.0], scale=[1.0, 2.0])
    np.testing.assert_allclose(store.theta(), theta, rtol=1e-9)
    np.testing.assert_allclose(store.signal(), theta @ np.array(toy.matrix).T, rtol=1e-5, atol=1e-5)
    assert store.meta.names == ("t0", "t1")
    assert store.meta.units == ("m", "m")
    assert Prior.from_spec(store.meta.prior_spec) == toy.prior
    assert (store.meta.simulator, store.meta.version) == ("linear-gaussian", "1")


def test_a_row_simulator_has_its_own_random_numbers_in_each_row(tmp_path):
    store = run(simulator_from_function(noisy, UNIT), 70, tmp_path / "s.h5", dtype="float64")
    for row in (0, 1, 63, 64, 69):
        want = uniforms(70)[row] + row_rng(7, row, ROW_KEY).normal(size=3)
        np.testing.assert_array_equal(store.signal()[row], want)


@pytest.mark.filterwarnings("ignore::sbiflow.simulate.SimulationWarning")
@pytest.mark.parametrize(
    "simulator",
    [
        LinearGaussian(),
        Fragile(),
        FunctionSimulator(sometimes_wrong, UNIT, (2,), "rows"),
    ],
    ids=["batched", "fragile", "rows"],
)
def test_executors_give_the_same_bytes(simulator, tmp_path, processes):
    with ThreadPoolExecutor(3) as threads:
        stores = [
            run(simulator, 200, tmp_path / f"{i}.h5", block=16, executor=executor)
            for i, executor in enumerate([None, threads, processes])
        ]
    assert same_bytes(stores[0], stores[1])
    assert same_bytes(stores[0], stores[2])


def test_killed_at_random_moments_and_resumed(tmp_path):
    command = [sys.executable, "-m", "tests.killed", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    assert report["done"] == 640
    assert report["midway"] >= 2  # the kills did hit running simulations
    assert report["deaths"] >= 40  # system calls at which a run was killed
    assert same_bytes(Store.open(tmp_path / "killed.h5"), Store.open(tmp_path / "reference.h5"))
    assert {path.suffix for path in tmp_path.iterdir()} == {".h5"}  # no temporary file is left


def test_ctrl_c_keeps_what_is_done_and_says_how_to_resume(tmp_path):
    path = tmp_path / "s.h5"
    command = [sys.executable, "-m", "tests.interrupted", str(path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGINT
    store = Store.open(path)
    assert 30 <= store.n_done < 4000
    assert f"stopped: {store.n_done} of 4000 rows are kept in {path}; run the same again to continue" in error


def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path):
    @dataclass(frozen=True)
    class Interrupted(LinearGaussian):
        at: int = -1
        source_hash: str = "same"

        def signal(self, theta):
            calls.append(len(theta))
            if len(calls) == self.at:
                raise KeyboardInterrupt
            return super().signal(theta)

    calls: list[int] = []
    whole = run(Interrupted(), 100, tmp_path / "whole.h5", block=8)
    for at in (3, 5):
        calls.clear()
        with pytest.raises(KeyboardInterrupt, match="rows are kept"):
            run(Interrupted(at=at), 100, tmp_path / "s.h5", block=8)
    # two blocks; then one row to see that the simulator is the same, and three more
    assert Store.open(tmp_path / "s.h5").n_done == 5 * 8
    calls.clear()
    store = run(Interrupted(), 100, tmp_path / "s.h5", block=8)
    assert calls == [1] + [8] * 7 + [4]  # nothing that was done is done again
    assert same_bytes(store, whole)


def test_growth_equals_an_uninterrupted_run(tmp_path):
    whole = run(LinearGaussian(), 300, tmp_path / "whole.h5", block=32)
    for n in (1, 50, 64, 300):
        store = run(LinearGaussian(), n, tmp_path / "grown.h5", block=32)
        assert store.n_done == n
    assert same_bytes(store, whole)


def test_a_complete_store_is_returned_with_its_own_block_size(tmp_path):
    run(LinearGaussian(), 50, tmp_path / "s.h5", block=32)
    before = (tmp_path / "s.h5").read_bytes()
    assert run(LinearGaussian(), 50, tmp_path / "s.h5").meta.block == 32
    assert (tmp_path / "s.h5").read_bytes() == before


def test_fewer_rows_than_the_store_has(tmp_path):
    run(LinearGaussian(), 50, tmp_path / "s.h5")
    with pytest.raises(ValueError, match=r"n: expected at least the 50 rows that .* has, got 49"):
        run(LinearGaussian(), 49, tmp_path / "s.h5")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"seed": 8}, "seed: expected 8, got 7"),
        ({}, {"block": 9}, "block: expected 9, got 32"),
        ({}, {"dtype": "float64"}, "dtype: expected float64, got float32"),
        ({"name": "other"}, {}, "simulator: expected other, got linear-gaussian"),
        ({"version": "2"}, {}, "version: expected 2, got 1"),
        ({"prior": normal_prior((0.5, -2.0))}, {}, r"prior\[1\]: expected .*-2.0.*, got .*-1.0"),
        ({"matrix": ((1.0, 0.0), (0.0, 1.0))}, {}, r"x_shape: expected \(2,\), got \(3,\)"),
        (
            {"matrix": ((1.0, 0.5), (0.0, 1.0), (0.7, -0.2))},
            {},
            "expected row 0 to come out as .*other settings",
        ),
    ],
)
def test_a_store_of_another_simulation_is_refused(tmp_path, change, options, message):
    run(LinearGaussian(), 50, tmp_path / "s.h5", block=32)
    before = (tmp_path / "s.h5").read_bytes()
    with pytest.raises(ValueError, match=message):
        run(LinearGaussian(**change), 60, tmp_path / "s.h5", **options)
    assert (tmp_path / "s.h5").read_bytes() == before


def test_a_store_of_other_source_code_is_refused_with_every_difference(tmp_path):
    run(simulator_from_function(noisy, UNIT, name="f"), 5, tmp_path / "s.h5")

    class Other(FunctionSimulator):
        source_hash = "another"

    with pytest.raises(ValueError, match="seed: expected 3, got 7") as caught:
        run(Other(noisy, UNIT, (3,), "f"), 5, tmp_path / "s.h5", seed=3)
    assert "source_hash: expected another, got " in str(caught.value)


def test_randomness_of_its_own_is_found_out(tmp_path):
    simulator = simulator_from_function(lambda theta, rng: np.random.default_rng().normal(size=2), UNIT)
    run(simulator, 5, tmp_path / "s.h5")
    with pytest.raises(ValueError, match="randomness of its own"):
        run(simulator, 10, tmp_path / "s.h5")


def test_failed_rows_are_recorded_with_their_reasons(tmp_path):
    with pytest.warns(SimulationWarning, match=r"\d+ of 300 rows failed \(\d+\.\d+%\)") as caught:
        store = run(FunctionSimulator(sometimes_wrong, UNIT, (2,), "f"), 300, tmp_path / "s.h5")
    u = uniforms(300)
    status = np.select(
        [u < 0.1, u < 0.3, u < 0.4], [Status.EXCEPTION, Status.NOT_FINITE, Status.EXCEPTION], Status.OK
    )
    np.testing.assert_array_equal(store.status, status)
    bands = {
        "ArithmeticError: diverged": u < 0.1,
        "NaN in the signal": (u >= 0.1) & (u < 0.2),
        "infinite, or beyond float32": (u >= 0.2) & (u < 0.3),
        "ValueError: x: expected shape (2,), got (3,)": (u >= 0.3) & (u < 0.4),
    }
    expected = {Failure(text, int(hit.sum()), int(np.flatnonzero(hit)[0])) for text, hit in bands.items()}
    assert set(store.failures()) == expected
    for failure in expected:
        assert f"{failure.rows} × {failure.reason}" in str(caught[0].message)
    np.testing.assert_array_equal(store.theta()[:, 0], u[u >= 0.4])
    assert np.isnan(store.signal(valid=False)[u < 0.4]).all()


def test_an_exception_in_a_batch_is_put_down_to_its_rows(tmp_path):
    with pytest.warns(SimulationWarning):
        store = run(Fragile(), 200, tmp_path / "s.h5", block=50)
    u = uniforms(200)
    status = np.select([u < 0.05, u < 0.9], [Status.EXCEPTION, Status.NOT_FINITE], Status.OK)
    np.testing.assert_array_equal(store.status, status)
    assert {failure.reason for failure in store.failures()} == {
        "ArithmeticError: negative pressure",
        "infinite, or beyond float32",
    }


def test_all_rows_failed(tmp_path):
    def broken(theta, rng):
        raise ImportError("no module named legacy")

    with pytest.raises(ValueError, match=r"5 of 5 rows failed .*ImportError: no module named legacy"):
        run(simulator_from_function(broken, UNIT, x_shape=(1,)), 5, tmp_path / "s.h5")


@pytest.mark.parametrize("in_processes", [False, True])
def test_a_row_that_does_not_end_times_out(tmp_path, processes, in_processes):
    simulator = FunctionSimulator(sometimes_stuck, UNIT, (1,), "stuck")
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.warns(SimulationWarning, match=r"timeout after 0\.05 s"):
        store = run(
            simulator, 12, tmp_path / "s.h5", timeout=0.05, executor=processes if in_processes else None
        )
    np.testing.assert_array_equal(store.status == Status.TIMEOUT, uniforms(12) < 0.3)
    assert store.n_ok + store.n_failed == 12
    assert 0 < store.n_failed < 12
    assert signal.getsignal(signal.SIGALRM) is handler


def test_a_timeout_that_cannot_be_enforced_is_refused(tmp_path):
    simulator = FunctionSimulator(sometimes_stuck, UNIT, (1,), "stuck")
    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(ValueError, match="got threads, which cannot be stopped"):
            run(simulator, 5, tmp_path / "s.h5", timeout=1.0, executor=threads)
        with pytest.raises(ValueError, match="got threads"):
            threads.submit(run, simulator, 5, tmp_path / "s.h5", timeout=1.0).result()
        with pytest.raises(RuntimeError, match="main thread of a process"):
            run(simulator, 5, tmp_path / "t.h5", timeout=1.0, executor=Wrapped(threads))
    with pytest.raises(ValueError, match="a whole block at once"):
        run(LinearGaussian(), 5, tmp_path / "s.h5", timeout=1.0)
    assert not (tmp_path / "s.h5").exists()


def test_a_worker_that_dies_loses_nothing_else(tmp_path):
    simulator = FunctionSimulator(kills_its_process, UNIT, (1,), "deadly")
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as pool,
        pytest.raises(RuntimeError, match=r"worker process died .* rows are kept in .*run the same again"),
    ):
        run(simulator, 60, tmp_path / "s.h5", block=1, executor=pool)
    store = Store.open(tmp_path / "s.h5")
    np.testing.assert_array_equal(store.theta()[:, 0], uniforms(60)[: store.n_ok])
    assert store.n_ok <= np.flatnonzero(uniforms(60) > 0.9)[0]


def test_a_simulator_that_cannot_be_sent_is_refused_before_any_work(tmp_path, processes):
    simulator = simulator_from_function(lambda theta, rng: theta, UNIT)
    with pytest.raises(ValueError, match="expected one that can be sent to a process"):
        run(simulator, 5, tmp_path / "s.h5", executor=processes)
    assert not (tmp_path / "s.h5").exists()


class Wrapped(Executor):
    """An executor of another library: says nothing about its workers; counts the futures in flight."""

    def __init__(self, inner: Executor) -> None:
        self.inner, self.futures, self.most = inner, [], 0

    def submit(self, fn, /, *args, **kwargs) -> Future:
        future = self.inner.submit(fn, *args, **kwargs)
        self.futures.append(future)
        self.most = max(self.most, sum(not f.done() for f in self.futures))
        return future


def test_blocks_in_flight_are_bounded(tmp_path):
    with ThreadPoolExecutor(1) as threads:
        executor = Wrapped(threads)
        run(LinearGaussian(), 300, tmp_path / "s.h5", block=1, executor=executor)
    assert len(executor.futures) == 300
    assert executor.most <= 64


def test_an_interrupt_with_an_executor_keeps_finished_blocks(tmp_path):
    def interrupted(theta, rng):
        if theta[0] > 0.95:
            raise KeyboardInterrupt
        return theta

    with ThreadPoolExecutor(1) as threads, pytest.raises(KeyboardInterrupt, match="rows are kept"):
        run(
            FunctionSimulator(interrupted, UNIT, (1,), "f"), 100, tmp_path / "s.h5", block=1, executor=threads
        )
    store = Store.open(tmp_path / "s.h5")
    assert store.n_done >= np.flatnonzero(uniforms(100) > 0.95)[0]
    np.testing.assert_array_equal(store.theta()[:, 0], uniforms(100)[store.valid_rows()])


def test_a_full_disk_is_reported_before_the_first_simulation(tmp_path, monkeypatch):
    def no_space(fd, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sbiflow.store_file.os.posix_fallocate", no_space)
    calls = []
    simulator = FunctionSimulator(lambda theta, rng: calls.append(1), UNIT, (1,), "f")
    with pytest.raises(OSError, match=r"needs .* MB, .* MB free"):
        run(simulator, 5, tmp_path / "s.h5")
    assert calls == []
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_all_the_same(tmp_path, monkeypatch):
    def no_space(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sbiflow.store_writer.sync_data", no_space)
        with pytest.raises(OSError, match="the disk is full: 0 of 50 rows are kept"):
            run(LinearGaussian(), 50, tmp_path / "s.h5")
    assert run(LinearGaussian(), 50, tmp_path / "s.h5").n_ok == 50


def test_a_signal_of_the_wrong_shape_stops_the_run(tmp_path):
    @dataclass(frozen=True)
    class Wrong(LinearGaussian):
        x_shape = (4,)

    with pytest.raises(ValueError, match=r"signal: expected shape \(5, 4\), got \(5, 3\)"):
        run(Wrong(), 5, tmp_path / "s.h5")
    assert not (tmp_path / "s.h5").exists()  # nothing was simulated: nothing is in the way of the next try


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n: expected a whole number >= 1, got 0"),
        ({"seed": -1}, "seed: expected a whole number >= 0"),
        ({"block": 0}, "block: expected a whole number >= 1"),
        ({"simulator": 3}, "simulator: expected a method signal or simulate_row, got int"),
        (
            {"simulator": FunctionSimulator(noisy, UNIT, (3,), "f"), "timeout": 0.0},
            "timeout: expected a value > 0",
        ),
    ],
)
def test_bad_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        simulate(**{"simulator": LinearGaussian(), "n": 5, "path": tmp_path / "s.h5", "seed": 1, **options})
    assert list(tmp_path.iterdir()) == []


def test_a_function_that_cannot_be_probed(tmp_path):
    with pytest.raises(
        ValueError, match=r"x_shape: expected fn to run at theta = .*ZeroDivisionError.*or give x_shape"
    ):
        simulator_from_function(lambda theta, rng: 1 / 0, UNIT)


def test_function_simulator_describes_itself():
    simulator = simulator_from_function(noisy, UNIT)
    assert (simulator.x_shape, simulator.name, simulator.log_likelihood) == ((3,), "noisy", None)
    x = torch.randn(4, 3)
    assert simulator.observe(x, None) is x


def test_pairs_have_the_distribution_of_prior_and_noise():
    toy = LinearGaussian()
    theta, x, n_failed = draw_pairs(toy, 3000, seed=7)
    assert n_failed == 0
    residual = (x - theta @ toy.a.T) / toy.noise_sd
    for values in (residual.flatten(), theta[:, 0] - 0.5, (theta[:, 1] + 1.0) / 2.0):
        assert stats.kstest(values.numpy(), "norm").pvalue > 1e-6
    again = draw_pairs(toy, 3000, seed=7)
    assert torch.equal(again.x, x)
    assert not torch.equal(draw_pairs(toy, 3000, seed=8).x, x)


def test_pairs_are_never_rows_of_a_store(tmp_path):
    store = run(LinearGaussian(), 500, tmp_path / "s.h5")
    theta = draw_pairs(LinearGaussian(), 500, seed=7).theta
    assert not np.isin(theta.numpy(), store.theta()).any()


def test_pairs_of_a_row_simulator_with_failures():
    simulator = FunctionSimulator(sometimes_wrong, UNIT, (2,), "f")
    with pytest.warns(SimulationWarning, match="of 200 fresh simulations failed, the first with: "):
        theta, x, n_failed = draw_pairs(simulator, 200, seed=1)
    assert n_failed == 200 - len(theta) > 0
    # beyond float32 is no failure here: pairs are float64
    assert bool(((theta[:, 0] >= 0.4) | ((theta[:, 0] >= 0.2) & (theta[:, 0] < 0.3))).all())
    assert torch.equal(x[theta[:, 0] >= 0.4, 0], theta[theta[:, 0] >= 0.4, 0])


def test_pairs_that_all_fail():
    simulator = FunctionSimulator(lambda theta, rng: 1 / 0, UNIT, (1,), "f")
    with pytest.raises(ValueError, match=r"5 of 5 fresh simulations failed.*ZeroDivisionError"):
        draw_pairs(simulator, 5, seed=1)


def test_pairs_are_the_same_on_an_executor():
    with ThreadPoolExecutor(2) as threads:
        parallel = draw_pairs(simulator_from_function(noisy, UNIT), 300, seed=1, executor=threads)
    assert torch.equal(parallel.x, draw_pairs(simulator_from_function(noisy, UNIT), 300, seed=1).x)


def test_one_parameter_and_a_scalar_signal(tmp_path):
    simulator = simulator_from_function(lambda theta, rng: theta[0] ** 2, Prior(Normal("a", 0.0, 1.0)))
    store = run(simulator, 20, tmp_path / "s.h5")
    assert store.x_shape == ()
    np.testing.assert_allclose(store.signal(), store.theta()[:, 0] ** 2, rtol=1e-6)


def test_no_warning_when_nothing_fails(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(LinearGaussian(), 20, tmp_path / "s.h5")
