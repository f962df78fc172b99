"""What cost_model.py measures on this machine: simulation, store, training step, memory, and a sum over processes."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed

import sbiflow as sf
from sbiflow.flows import ConditionalFlow
from sbiflow.function_simulator import FunctionSimulator

PRIOR = sf.Prior(sf.Uniform("u", 0.0, 1.0))
RANKS = 2


@dataclass(frozen=True)
class Gaussian:
    """x = theta at `size` places, and noise: as cheap as a simulator can be, so that only what is around it is timed."""

    dim: int
    size: int
    name: str = "gaussian"

    @property
    def prior(self) -> sf.Prior:
        return sf.Prior(*(sf.Normal(f"t{i}", 0.0, 1.0) for i in range(self.dim)))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.size,)

    def signal(self, theta: torch.Tensor) -> torch.Tensor:
        return theta.repeat(1, -(-self.size // self.dim))[:, : self.size]

    def observe(self, signal: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        return signal + 0.5 * torch.randn(
            signal.shape, generator=generator, dtype=signal.dtype, device=signal.device
        )


@dataclass(frozen=True)
class Filled:
    """A simulation of n rows, x of so many numbers: seconds on the clock and of CPU in the process that writes."""

    n: int
    size: int
    block: int
    seconds: float
    writer: float


@dataclass(frozen=True)
class Step:
    """A training step, seconds of CPU time, of a spline-coupling flow with so many parameters, embedding included."""

    hidden: int
    layers: int
    dim: int
    batch: int
    parameters: int
    seconds: float


def row(theta: np.ndarray, rng: np.random.Generator, size: int, seconds: float) -> np.ndarray:
    if seconds:
        time.sleep(seconds)
    return np.full(size, theta[0])


def filled(pool: ProcessPoolExecutor, n: int, size: int, block: int = 64, seconds: float = 0.0) -> Filled:
    """Rows that cost nothing (or sleep), through processes into a store."""
    simulator = FunctionSimulator(partial(row, size=size, seconds=seconds), PRIOR, (size,), "row")
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.perf_counter(), time.process_time()
        sf.simulate(simulator, n, f"{folder}/s.h5", seed=1, executor=pool, block=block, progress=False)
        return Filled(n, size, block, time.perf_counter() - start, time.process_time() - cpu)


def pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def store_bytes(n: int, dim: int, size: int) -> int:
    """Bytes of a store's file."""
    with tempfile.TemporaryDirectory() as folder:
        return (
            sf.simulate(Gaussian(dim, size), n, f"{folder}/s.h5", seed=1, progress=False).path.stat().st_size
        )


def step(hidden: int, layers: int, dim: int, batch: int, steps: int) -> Step:
    """One training step, noise and optimiser included, in CPU time of one thread, which is the time of a core that is free.

    The difference of two runs, of `steps` and of three times as many: what a run does once is not counted.
    """
    simulator = Gaussian(dim, 2 * dim)
    flow, embedding = sf.FlowConfig(layers=layers, hidden=hidden), sf.EmbeddingConfig(hidden=hidden)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        store = sf.simulate(simulator, 2 * batch + 200, f"{folder}/s.h5", seed=1, progress=False)
        for count in (steps, 3 * steps):
            config = sf.TrainConfig(steps=count, batch=batch, validate_every=count)
            start = time.process_time()
            sf.train(store, simulator, config, flow=flow, embedding=embedding, device="cpu", progress=False)
            seconds.append(time.process_time() - start)
    parameters = count_parameters(hidden, layers, dim)
    return Step(hidden, layers, dim, batch, parameters, (seconds[1] - seconds[0]) / (2 * steps))


def count_parameters(hidden: int, layers: int, dim: int) -> int:
    """Of the flow that `step` trains."""
    flow, embedding = sf.FlowConfig(layers=layers, hidden=hidden), sf.EmbeddingConfig(hidden=hidden)
    model = ConditionalFlow(flow, embedding, (False,) * dim, (2 * dim,))
    return sum(values.numel() for values in model.parameters())


MEMORY = """
import sys; sys.path[:0] = {path!r}
import tempfile, pathlib, sbiflow as sf
from measurements import Gaussian
simulator = Gaussian(5, 100)
with tempfile.TemporaryDirectory() as folder:
    store = sf.simulate(simulator, {n}, folder + "/s.h5", seed=1, progress=False)
    sf.train(store, simulator, sf.TrainConfig(steps=5, batch=512, validate_every=5), progress=False)
status = pathlib.Path("/proc/self/status").read_text()
print(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
"""


def training_memory(n: int) -> float:
    """Peak resident bytes of a process that trains in memory on n rows of 100 numbers (420 bytes in memory each)."""
    here = Path(__file__).parent
    code = MEMORY.format(path=[str(here), str(here.parents[1])], n=n)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return 1024.0 * int(found.stdout.split()[-1])


def all_reduce(sizes: list[int], repeats: int) -> dict[int, float]:
    """Seconds of a sum of so many float32 over two processes of this machine (gloo, loopback), the fastest of some."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        arguments = (f"{folder}/meet", sizes, repeats, results)
        ranks = [context.Process(target=_reduce, args=(rank, *arguments)) for rank in range(RANKS)]
        for process in ranks:
            process.start()
        found: dict[int, float] = results.get(timeout=300)
        for process in ranks:
            process.join()
        return found


def _reduce(rank: int, meet: str, sizes: list[int], repeats: int, results: multiprocessing.Queue) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.distributed.init_process_group("gloo", f"file://{meet}", world_size=RANKS, rank=rank)
    found = {}
    for size in sizes:
        values, times = torch.ones(size), []
        for _ in range(repeats + 2):
            torch.distributed.barrier()
            start = time.perf_counter()
            torch.distributed.all_reduce(values)
            times.append(time.perf_counter() - start)
        found[size] = min(times[2:])
    torch.distributed.destroy_process_group()
    if rank == 0:
        results.put(found)
