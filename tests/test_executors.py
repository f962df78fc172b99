"""Real engines: the same bytes as without one, and nothing lost when a worker is killed.

ProcessPoolExecutor, loky, dask.distributed (a cluster of two processes here) and mpi4py.futures (three ranks under a
real mpiexec). Stores are compared by the SHA-256 of their datasets.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sbiflow.blocks import BlockTask, joined, run_block
from sbiflow.execution import lost_workers, run_blocks, split_last, workers_of
from sbiflow.function_simulator import FunctionSimulator
from sbiflow.store import Status, Store
from tests.engines import SIMULATORS, UNIT, Counted, Deadly, Spectrum, digests, row, run, same_rows

ROOT = Path(__file__).parents[1]
LOST = r"worker process died .* rows are kept in .*run the same again"


@contextmanager
def processes(workers: int) -> Iterator[Executor]:
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@contextmanager
def loky(workers: int) -> Iterator[Executor]:
    pool = pytest.importorskip("loky").get_reusable_executor(workers, timeout=300)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, kill_workers=True)


@contextmanager
def dask(workers: int) -> Iterator[Executor]:
    distributed = pytest.importorskip("distributed")
    options = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with (
        distributed.LocalCluster(n_workers=workers, **options) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client.get_executor()


START: dict[str, Callable[[int], Any]] = {"processes": processes, "loky": loky, "dask": dask}


@pytest.fixture(scope="class", params=START)
def engine(request: pytest.FixtureRequest) -> Iterator[tuple[str, Executor]]:
    """Two workers of one engine after the other."""
    with START[request.param](2) as executor:
        yield request.param, executor


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores that were made here, without an executor, with two torch threads, which no worker below has."""
    folder = tmp_path_factory.mktemp("reference")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    for name, make in SIMULATORS.items():
        run(make(), folder / f"{name}.h5")
    torch.set_num_threads(before)
    run(Deadly(None, above=2.0, seconds=0.0), folder / "deadly.h5", block=4)
    return folder


class TestEngine:
    @pytest.mark.parametrize("name", SIMULATORS)
    def test_same_bytes(
        self, engine: tuple[str, Executor], name: str, reference: Path, tmp_path: Path
    ) -> None:
        store = run(SIMULATORS[name](), tmp_path / "s.h5", engine[1])
        assert digests(store.path) == digests(reference / f"{name}.h5")
        assert store.n_done == 300
        assert (store.n_failed > 10) == (name == "rows")

    def test_the_simulator_is_sent_to_a_worker_not_to_a_block(
        self, engine: tuple[str, Executor], tmp_path: Path
    ) -> None:
        (tmp_path / "loads").mkdir()
        run(Counted(folder=str(tmp_path / "loads")), tmp_path / "s.h5", engine[1], n=50, block=1)
        loads = [path.name.split("-")[0] for path in (tmp_path / "loads").iterdir()]
        loads = [
            process for process in loads if process != str(os.getpid())
        ]  # where dask's scheduler is, here
        assert 1 <= len(loads) <= 6  # two carry it, and the two behind them may be early; of 50 blocks
        assert len(set(loads)) <= 2

    def test_time_limits(self, engine: tuple[str, Executor], tmp_path: Path) -> None:
        simulator = Deadly(None, above=2.0, seconds=0.001)
        if engine[0] == "dask":  # whose workers run tasks in a thread
            with pytest.raises(RuntimeError, match="main thread of a process"):
                run(simulator, tmp_path / "s.h5", engine[1], n=20, timeout=1.0)
        else:
            assert run(simulator, tmp_path / "s.h5", engine[1], n=20, timeout=5.0).n_ok == 20
            slow = Deadly(None, above=2.0, seconds=5.0)
            with pytest.raises(ValueError, match=r"4 of 4 rows failed .* timeout after 0\.01 s"):
                run(slow, tmp_path / "t.h5", engine[1], n=4, timeout=0.01)

    def test_an_interrupt_leaves_the_engine_usable(
        self, engine: tuple[str, Executor], reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        tasks = [BlockTask(start, start + 4, 7, 1, 2) for start in range(0, 200, 4)]
        found: list[int] = []

        def receive(result: Any) -> None:
            found.append(result.start)
            if len(found) == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_blocks(Deadly(None, above=2.0), tasks, engine[1], receive)
        assert 3 <= len(found) <= 3 + 2 * 2
        store = run(SIMULATORS["rows"](), tmp_path / "s.h5", engine[1])
        assert digests(store.path) == digests(reference / "rows.h5")
        assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []

    def test_workers_are_counted(self, engine: tuple[str, Executor]) -> None:
        assert workers_of(engine[1]) == 2

    def test_z_a_killed_worker_loses_nothing(
        self, engine: tuple[str, Executor], reference: Path, tmp_path: Path
    ) -> None:
        """The last test of an engine, which may be broken after it."""
        name, executor = engine
        path, simulator = tmp_path / "s.h5", Deadly(tmp_path / "marker")
        if name == "dask":  # which starts another worker and gives it the block
            run(simulator, path, executor, block=4)
            assert (tmp_path / "marker").exists()
            assert digests(path) == digests(reference / "deadly.h5")
            path, simulator = tmp_path / "t.h5", Deadly(None)
            executor._client.cluster.scheduler.allowed_failures = 0  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match=LOST):
            run(simulator, path, executor, block=4)
        assert 60 <= same_rows(path, reference / "deadly.h5") < 300
        if name != "dask":
            with START[name](1) as executor:
                run(simulator, path, executor, block=4)
            assert digests(path) == digests(reference / "deadly.h5")


@pytest.mark.filterwarnings("ignore::sbiflow.simulate.SimulationWarning")
def test_mpi_same_bytes_and_a_killed_rank(reference: Path, tmp_path: Path) -> None:
    """The first run is killed after the stores of all simulators; the second, of the other kind, completes it."""
    killed = mpi("mpi4py.futures", tmp_path, "pool")
    assert killed.returncode != 0, killed.stderr
    assert "KILLED" in killed.stdout + killed.stderr or "EXIT CODE: 9" in killed.stdout + killed.stderr
    for name in SIMULATORS:
        assert digests(tmp_path / f"{name}.h5") == digests(reference / f"{name}.h5")
    assert 0 < same_rows(tmp_path / "deadly.h5", reference / "deadly.h5") < 300
    (tmp_path / "rows.h5").unlink()
    again = mpi("mpi4py", tmp_path, "comm")
    assert again.returncode == 0, again.stderr
    for name in ("rows", "deadly"):
        assert digests(tmp_path / f"{name}.h5") == digests(reference / f"{name}.h5")


def mpi(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mpi4py")
    here = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(here) if here.exists() else shutil.which("mpiexec")
    if mpiexec is None:
        pytest.skip("no mpiexec")
    python = [sys.executable, "-m", module, "-m", "tests.engines", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [mpiexec, "-n", "3", *python]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


class FreshThreads(Executor):
    """Runs every task in a new thread: no worker ever knows the simulator before it is sent."""

    _max_workers = 1

    def __init__(self) -> None:
        self.asked = 0

    def submit(self, fn: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def work() -> None:
            try:
                result = fn(*arguments, **options)
            except BaseException as error:
                future.set_exception(error)
                return
            self.asked += result is None
            future.set_result(result)

        threading.Thread(target=work).start()
        return future


class LeavesOneThread(FreshThreads):
    """As two blocks that overlap in two new threads may."""

    def submit(self, fn: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        def leave_one() -> Any:
            result = fn(*arguments, **options)
            torch.set_num_threads(1)
            return result

        return super().submit(leave_one)


@pytest.mark.parametrize("name", SIMULATORS)
def test_a_worker_that_does_not_have_the_simulator_asks_for_it(
    name: str, reference: Path, tmp_path: Path
) -> None:
    executor = FreshThreads()
    store = run(SIMULATORS[name](), tmp_path / "s.h5", executor)
    assert executor.asked >= 15  # of 19 blocks and more parts; the first has it
    assert digests(store.path) == digests(reference / f"{name}.h5")


def test_two_runs_in_the_same_threads_do_not_mix_their_simulators(tmp_path: Path) -> None:
    """Each with its own offset, at the same time, in one pool of two threads."""

    def simulator(offset: float) -> FunctionSimulator:
        return FunctionSimulator(lambda theta, rng: theta + offset, UNIT, (2,), f"plus {offset}")

    with ThreadPoolExecutor(2) as pool, ThreadPoolExecutor(2) as callers:
        runs = [
            callers.submit(
                run, simulator(offset), tmp_path / f"{offset}.h5", pool, n=100, block=2, dtype="float64"
            )
            for offset in (1.0, 2.0)
        ]
        for offset, future in zip((1.0, 2.0), runs, strict=True):
            store = future.result()
            np.testing.assert_array_equal(store.signal(), store.theta() + offset)


def test_a_block_runs_in_one_thread_and_leaves_the_others_theirs() -> None:
    seen: list[int] = []

    @dataclass(frozen=True)
    class Looking(Spectrum):
        def signal(self, theta: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return super().signal(theta)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tasks = [BlockTask(start, start + 4, 7, 1, 2) for start in range(0, 80, 4)]
        with ThreadPoolExecutor(3) as pool:
            run_blocks(Looking(), tasks, pool, lambda result: None)
        run_block(Looking(), tasks[0])
        assert seen == [1] * 21
        run_blocks(Looking(), tasks[:1], LeavesOneThread(), lambda result: None)
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)


# --- the last blocks, in parts


def blocks(n: int, size: int = 64) -> list[BlockTask]:
    return [BlockTask(start, min(start + size, n), 7, 1, 2) for start in range(0, n, size)]


@pytest.mark.parametrize("n", [1, 63, 64, 65, 704, 1000])
@pytest.mark.parametrize("workers", [1, 2, 7, 32])
def test_parts_cover_the_rows_once_and_in_order(n: int, workers: int) -> None:
    tasks = list(split_last(blocks(n), workers))
    assert tasks[0].rows[0] == 0
    assert tasks[-1].rows[1] == n
    assert all(one.rows[1] == other.rows[0] for one, other in pairwise(tasks))
    assert all(task.start <= task.rows[0] < task.rows[1] <= task.stop for task in tasks)
    assert len({task.start for task in tasks if task.part}) == min(workers, len(blocks(n)))


def makespan(tasks: list[BlockTask], workers: int) -> int:
    """Rows that the busiest worker does, if whoever is free takes the next task."""
    busy = [0] * workers
    for task in tasks:
        first, last = task.rows
        busy[busy.index(min(busy))] += last - first
    return max(busy)


@pytest.mark.parametrize("n", [640, 704, 1000, 1024, 4001])
@pytest.mark.parametrize("workers", [2, 3, 8])
def test_no_worker_is_left_with_a_block(n: int, workers: int) -> None:
    assert makespan(list(split_last(blocks(n), workers)), workers) <= -(-n // workers) + 8
    if (n, workers) == (704, 2):
        assert makespan(blocks(n), workers) == 384  # of 352: what the parts are for


def test_few_slow_rows_occupy_every_worker() -> None:
    assert len(list(split_last(blocks(64), 32))) == 64  # instead of one block for one worker


@pytest.mark.parametrize("n", [16, 13])
def test_the_parts_of_a_block_make_the_block(n: int) -> None:
    simulator, task = FunctionSimulator(row, UNIT, (5,), "rows"), BlockTask(32, 32 + n, 7, 1, 2)
    parts = [run_block(simulator, part) for part in split_last([task], 1)]
    whole, together = run_block(simulator, task), joined(parts[::-1])
    assert len(parts) > 4
    assert (whole.start, whole.reasons) == (together.start, together.reasons)
    for name in ("theta", "signal", "status"):
        assert getattr(whole, name).tobytes() == getattr(together, name).tobytes()
    assert whole.reasons


def test_a_block_is_written_when_all_its_parts_are_there(tmp_path: Path) -> None:
    """An error in the last part of three: nothing of the block is written."""
    path = tmp_path / "s.h5"
    with ThreadPoolExecutor(1) as pool, pytest.raises(MemoryError):
        run(Failing(at=45), path, pool, n=48, block=16)
    np.testing.assert_array_equal(Store.open(path).status == Status.OK, np.arange(48) < 32)


@dataclass(frozen=True)
class Failing(Deadly):
    """Out of memory at one row, which says nothing about the row."""

    marker: Path | None = None
    at: int = 0

    def simulate_row(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if np.random.Generator(rng.bit_generator).bit_generator.state["state"]["counter"][2] == self.at:
            raise MemoryError
        return theta


# --- how many workers, and what is no executor


class Client:
    """Of dask, of a cluster that has no worker yet."""

    def nthreads(self) -> dict[str, int]:
        return {}


def test_workers_of_other_executors() -> None:
    with ThreadPoolExecutor(3) as pool:
        assert workers_of(pool) == 3
    silent = FreshThreads()
    silent._max_workers = 0  # an mpi4py pool that is shut down
    assert workers_of(silent) == 1
    silent._client = Client()  # type: ignore[attr-defined]
    assert workers_of(silent) == 1
    assert workers_of(Executor()) == 32


def test_what_is_no_executor(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"executor: expected a concurrent.futures.Executor .*, got Client"):
        run(Spectrum(), tmp_path / "s.h5", Client())  # type: ignore[arg-type]
    assert not (tmp_path / "s.h5").exists()


def test_whose_fault_it_is() -> None:
    assert not lost_workers(ValueError("signal: another shape"))
    assert not lost_workers(OSError("disk"))
    scheduler = pytest.importorskip("distributed.comm.core")
    assert lost_workers(scheduler.CommClosedError("the scheduler went away"))  # an OSError


def test_no_worker_is_left_behind() -> None:
    """After all of the above: no child of this process is alive."""
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not multiprocessing.active_children()
