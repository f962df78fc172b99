"""Two workers against one on a simulator that takes 10 ms a row, for every engine that `sf.simulate` is tested with.

`sleep` waits for 10 ms, as a simulator does that calls a program elsewhere; `compute` does 10 ms of arithmetic, and two of
them need two cores that are free: next to it stands what two bare processes reach that share nothing, at the same time
and on the same cores. A run is a whole `sf.simulate` into a new store, with pools of one and of two workers in turn.
Start-up (processes that import torch) is timed by itself; ratios are given without it and with it.

`sent` is what a block of one row takes with a simulator of 4 MB, sent with every block, and as `sf.simulate` sends it.

Needs loky, dask[distributed], mpi4py and mpiexec; what is not installed is left out and named.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the workers, too

import numpy as np

HERE = (
    Path(__file__).resolve().parent
)  # not on the path: beside this file is a distributed.py, which is not dask's
sys.path = [*map(str, HERE.parents[:2]), *(path for path in sys.path if Path(path).resolve() != HERE)]
from common import Number, options, output_folder, report_numbers

import sbiflow as sf
from sbiflow.blocks import BlockTask, run_block
from sbiflow.execution import run_blocks
from sbiflow.function_simulator import FunctionSimulator
from sbiflow.optional import require

NAME = "executors"
SECONDS = 0.01  # of a row
ROWS, REPEATS, SENT_BLOCKS, SENT_BYTES = 400, 5, 40, 4e6
FLOOR, REACH = 1.8, 1.95
VARIANTS = ("sleep", "compute")
LOCAL = {"processes": "", "loky": "loky", "dask": "distributed"}  # and what it needs
PRIOR = sf.Prior(sf.Uniform("u", 0.0, 1.0))
Pools = Callable[[int], AbstractContextManager[Executor | None]]


@dataclass(frozen=True)
class Times:
    """Seconds of an engine: of start-up and of the runs, with one worker and with two; and of a block, per block."""

    engine: str
    start: tuple[float, float]
    runs: dict[str, list[tuple[float, float]]]
    bare: list[tuple[float, float]]
    sent: tuple[float, float]

    def numbers(self) -> list[Number]:
        """Ratios of the medians, smallest and largest of the neighbours."""
        found = []
        for variant, runs in self.runs.items():
            ratio, spread = _ratio(runs)
            with_start = [(one + self.start[0], two + self.start[1]) for one, two in runs]
            bare = (
                f"; two bare processes {_ratio(self.bare)[0]:.2f}"
                if variant == "compute" and self.bare
                else ""
            )
            text = f"{ratio:.2f} ({spread}); with start-up {_ratio(with_start)[0]:.2f}{bare}"
            what = f"{self.engine}, {variant}: 2 workers against 1"
            found.append(Number(what, text, f">= {FLOOR}", f">= {REACH}", ratio >= FLOOR))
        start, sent = (
            f"{first:.3g} / {second:.3g}" for first, second in (self.start, np.array(self.sent) * 1e3)
        )
        found.append(Number(f"{self.engine}: start-up of 1 / 2 workers in s", start))
        found.append(
            Number(f"{self.engine}: a block and 4 MB, sent each time / as simulate does in ms", sent)
        )
        return found


def _ratio(runs: list[tuple[float, float]]) -> tuple[float, str]:
    ratios = [one / two for one, two in runs]
    one, two = (statistics.median(values) for values in zip(*runs, strict=True))
    return one / two, f"{min(ratios):.2f} to {max(ratios):.2f}"


def sleep_row(theta: np.ndarray, rng: np.random.Generator, work: int) -> np.ndarray:
    time.sleep(SECONDS)
    return theta


def compute_row(theta: np.ndarray, rng: np.random.Generator, work: int) -> np.ndarray:
    """So many passes over a vector that stays in the cache."""
    x = np.linspace(0.1, 1.0, 2000)
    for _ in range(work):
        x = np.sqrt(x * x + 1e-9)
    return theta + 0 * x[0]


def table_row(theta: np.ndarray, rng: np.random.Generator, table: np.ndarray) -> np.ndarray:
    return table[:1] * theta


def simulator(variant: str, work: int) -> FunctionSimulator:
    row = {"sleep": sleep_row, "compute": compute_row}[variant]
    return FunctionSimulator(partial(row, work=work), PRIOR, (1,), variant)


def calibrated() -> int:
    """Passes of `compute_row` that take 10 ms of CPU time here."""
    start, passes = time.process_time(), 20_000
    compute_row(np.ones(1), np.random.default_rng(1), passes)
    return max(round(passes * SECONDS / (time.process_time() - start)), 1)


@contextmanager
def processes(workers: int) -> Iterator[Executor]:
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@contextmanager
def loky(workers: int) -> Iterator[Executor]:
    with require("loky", extra="dev").ProcessPoolExecutor(workers, timeout=600) as pool:
        yield pool


@contextmanager
def dask(workers: int) -> Iterator[Executor]:
    distributed = require("distributed", extra="dask")
    settings = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with (
        distributed.LocalCluster(n_workers=workers, **settings) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client.get_executor()


def run(executor: Executor, variant: str, work: int, rows: int) -> float:
    """Seconds of a simulation."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        sf.simulate(
            simulator(variant, work), rows, f"{folder}/s.h5", seed=1, executor=executor, progress=False
        )
        return time.perf_counter() - start


def compute_rows(rows: int, work: int) -> None:
    for _ in range(rows):
        compute_row(np.ones(1), np.random.default_rng(1), work)


def bare(executor: Executor, workers: int, work: int, rows: int) -> float:
    """Seconds of the same arithmetic, divided among the workers beforehand."""
    start = time.perf_counter()
    for future in [executor.submit(compute_rows, rows // workers, work) for _ in range(workers)]:
        future.result()
    return time.perf_counter() - start


def sent(executor: Executor) -> tuple[float, float]:
    """Seconds per block of one row, with 4 MB in every task, and by `run_blocks`."""
    row = partial(table_row, table=np.random.default_rng(1).random(int(SENT_BYTES / 8)))
    large = FunctionSimulator(row, PRIOR, (1,), "large")
    tasks = [BlockTask(row, row + 1, 1, 2, 3) for row in range(SENT_BLOCKS)]
    start = time.perf_counter()
    for future in [executor.submit(run_block, large, task) for task in tasks]:
        future.result()
    middle = time.perf_counter()
    run_blocks(large, tasks, executor, lambda result: None)
    return (middle - start) / SENT_BLOCKS, (time.perf_counter() - middle) / SENT_BLOCKS


def measure(
    engine: str, pools: Pools, start: tuple[float, float], work: int, rows: int, repeats: int
) -> Times:
    """Runs with one worker and with two in turn, the order turned every time."""
    taken: dict[tuple[str, int], list[float]] = {}
    for turn in range(repeats):
        for workers in (1, 2)[:: 1 if turn % 2 else -1]:
            with pools(workers) as executor:
                if executor is None:  # an MPI rank that worked for another
                    continue
                for variant in VARIANTS:
                    taken.setdefault((variant, workers), []).append(run(executor, variant, work, rows))
                if engine == "processes":
                    taken.setdefault(("bare", workers), []).append(bare(executor, workers, work, rows))
    with pools(2) as executor:
        per_block = sent(executor) if executor else (0.0, 0.0)
    pairs = {
        name: list(zip(taken.get((name, 1), []), taken.get((name, 2), []), strict=True))
        for name in (*VARIANTS, "bare")
    }
    return Times(engine, start, {name: pairs[name] for name in VARIANTS}, pairs["bare"], per_block)


def measure_local(engine: str, work: int, rows: int, repeats: int) -> Times:
    pools, starts = {}, []
    with ExitStack() as stack:
        for workers in (1, 2):
            begin = time.perf_counter()
            pools[workers] = stack.enter_context(globals()[engine](workers))
            run(pools[workers], "sleep", work, 16)  # two rows to a part: every worker has had one
            starts.append(time.perf_counter() - begin)
        return measure(
            engine, lambda workers: nullcontext(pools[workers]), (starts[0], starts[1]), work, rows, repeats
        )


@contextmanager
def ranks(workers: int) -> Iterator[Executor | None]:
    """A pool of some of the MPI ranks; the others wait, without turning in a loop as MPI's own barrier does."""
    mpi, futures = require("mpi4py.MPI", extra="mpi"), require("mpi4py.futures", extra="mpi")
    world = mpi.COMM_WORLD
    part = world.Split(0 if world.rank <= workers else mpi.UNDEFINED, world.rank)
    if part == mpi.COMM_NULL:
        yield None
    else:
        with futures.MPICommExecutor(part) as executor:
            yield executor
        part.Free()
    done = world.Ibarrier()
    while not done.Test():
        time.sleep(0.002)


def measure_mpi(work: int, rows: int, repeats: int) -> Times:
    """In three ranks of a real mpiexec, started here."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "times.json"
        arguments = json.dumps([str(target), time.time(), work, rows, repeats])
        python = [sys.executable, "-m", "mpi4py", __file__, "--ranks", arguments]
        subprocess.run([str(Path(sys.executable).with_name("mpiexec")), "-n", "3", *python], check=True)
        return Times(**json.loads(target.read_text()))


def in_rank(target: str, launched: float, work: int, rows: int, repeats: int) -> None:
    """What each rank does; the first one writes."""
    with ranks(2) as executor:
        if executor is not None:
            run(executor, "sleep", work, 16)
    start = time.time() - launched
    times = measure("mpi", ranks, (start, start), work, rows, repeats)
    if times.runs[VARIANTS[0]]:
        Path(target).write_text(json.dumps(asdict(times)))


def main() -> None:
    arguments = options(__doc__ or "", ranks="")
    if arguments.ranks:
        in_rank(*json.loads(arguments.ranks))
        return
    rows, repeats, work = (40, 1, 50) if arguments.fast else (ROWS, REPEATS, calibrated())
    there = [engine for engine, needed in LOCAL.items() if not needed or importlib.util.find_spec(needed)]
    if arguments.fast:
        there = there[:1]
    measured = [measure_local(engine, work, rows, repeats) for engine in there]
    missing = [engine for engine in LOCAL if engine not in there]
    mpiexec = Path(sys.executable).with_name("mpiexec").exists() and importlib.util.find_spec("mpi4py")
    if mpiexec and not arguments.fast:
        measured.append(measure_mpi(work, rows, repeats))
    else:
        missing.append("mpi")
    finish(measured, missing, work, rows, arguments)


def finish(
    measured: list[Times], missing: list[str], work: int, rows: int, arguments: argparse.Namespace
) -> None:
    numbers = [number for times in measured for number in times.numbers()]
    numbers.append(
        Number("rows of a run; ms of a row; repeats", f"{rows}; {1e3 * SECONDS:g}; {len(measured[0].bare)}")
    )
    numbers.append(Number("not measured", ", ".join(missing) or "none"))
    numbers.append(
        Number("load average of the machine", " / ".join(f"{load:.1f}" for load in os.getloadavg()))
    )
    title = "2 workers against 1" + (" (fast: proves nothing)" if arguments.fast else "")
    folder = output_folder(NAME, arguments.fast)
    report_numbers(title, numbers, folder, argparse.Namespace(**vars(arguments) | {"record": False}))
    if arguments.record and not arguments.fast:
        table: dict[str, Any] = json.loads((folder / "numbers.json").read_text())
        table |= {"cores": os.cpu_count(), "passes": work, "times": [asdict(times) for times in measured]}
        target = HERE / "results" / f"{NAME}.json"
        target.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n")
        print(f"numbers: {target}")


if __name__ == "__main__":
    main()
