"""Training from the disk: its rate against that of training in memory, and what memory it takes.

Two stores: the Milne-Eddington lines of the paper case (30 numbers a row) and spectra of 2,000 numbers with an MLP
embedding. From the disk, each is cut into about eight pools, so that the rate has the reading of pools in it. Both
ways train in one process in turns, the order turned every time; before every turn the store's pages are dropped from
the system's cache, so that the disk is read. `--large 10` trains one epoch on a store of 10 GB in a process of its own
and takes its peak resident memory; the store is deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin at a barrier starve a busy machine

import numpy as np
import torch
from torch import Generator, Tensor

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from common import Number, options, output_folder, report_numbers

import sbiflow as sf
from sbiflow.contracts import Simulator
from sbiflow.priors import Prior, Uniform
from sbiflow.training.data import Data
from sbiflow.training.loop import Training
from sbiflow.training.run import _build, observed
from sbiflow.training.shards import Shards
from sbiflow.training.stream import training_data
from simulators.stokes import MilneEddington

NAME = "streaming"
REPEATS, POOLS = 9, 8
FLOOR, REACH, MEMORY_FLOOR = 0.9, 1.0, 2.0
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Spectra:
    """Five broad lines on 2,000 pixels, their depths uniform; made as fast as a disk writes."""

    prior: Prior
    x_shape: tuple[int, ...] = (2000,)
    name: str = "spectra"
    version: str = "1"

    @classmethod
    def make(cls) -> Spectra:
        return cls(Prior(*(Uniform(f"depth{i}", 0, 1) for i in range(5))))

    @property
    def lines(self) -> Tensor:
        """(5, 2000) profiles."""
        pixel = torch.linspace(0, 6, self.x_shape[0])
        return torch.exp(-((pixel - torch.arange(1.0, 6.0)[:, None]) ** 2) / 0.1)

    def signal(self, theta: Tensor) -> Tensor:
        return 1 - theta.float() @ self.lines

    def observe(self, signal: Tensor, generator: Generator | None) -> Tensor:
        return signal + 0.1 * torch.randn(signal.shape, generator=generator, device=signal.device)


@dataclass(frozen=True)
class Rates:
    """Rows per second of every turn, in memory and from the disk, with what the store takes."""

    case: str
    megabytes: float
    rows: int
    pools: str
    rates: list[tuple[float, float]]

    def numbers(self) -> list[Number]:
        memory, disk = np.median(self.rates, axis=0)
        ratios = [disk / memory for memory, disk in self.rates]
        low, middle, high = np.percentile(ratios, [0, 50, 100])
        case = f"{self.case}, {self.megabytes:.0f} MB, {self.rows:,} rows"
        return [
            Number(f"{case}: rows per second, in memory / from disk", f"{memory:,.0f} / {disk:,.0f}"),
            Number(
                f"{case}: ratio, min / median / max", f"{low:.2f} / {middle:.2f} / {high:.2f}",
                f">= {FLOOR}", f">= {REACH}", bool(middle >= FLOOR),
            ),
        ]  # fmt: skip


@contextmanager
def started(
    store: Shards, simulator: Simulator, data: Data, embedding: sf.EmbeddingConfig, seed: int
) -> Iterator[Training]:
    """A run before its first step."""
    config = sf.TrainConfig(batch=512, seed=seed).resolved(store.n_ok)
    some = data.some(10_000)
    fit, valid = observed(simulator, some, seed), observed(simulator, data.validation, seed)
    model = _build(simulator, sf.FlowConfig(), embedding, seed, fit, some)
    yield Training(model, data, valid, simulator, config)


def rate(run: Training, steps: int, path: Path) -> float:
    """Rows per second of so many steps, the store's pages not in the system's cache."""
    drop_cache(path)
    start = time.perf_counter()
    for _ in range(steps):
        run._update(1e-4)
        run.step += 1
    return steps * 512 / (time.perf_counter() - start)


def drop_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare(
    case: str,
    simulator: Simulator,
    rows: int,
    embedding: sf.EmbeddingConfig,
    folder: Path,
    seed: int,
    repeats: int,
) -> Rates:
    """Alternating turns of a pool and a half each, after two that are not counted."""
    path = folder / f"{case.replace(' ', '-')}.h5"
    store = Shards.of(sf.simulate(simulator, rows, path, seed=seed, progress=False))
    size = 4 * int(np.prod(simulator.x_shape)) * rows
    with ExitStack() as stack:
        runs, orders = [], []
        for memory in (1e3, 4 * size / POOLS / 1e9):  # [GB]; a pool is a fourth of it
            data = stack.enter_context(training_data(store, simulator.prior, 0.05, seed, CPU, memory=memory))
            orders.append(data.order)
            runs.append(stack.enter_context(started(store, simulator, data, embedding, seed)))
        steps = max(3 * rows // (2 * POOLS * 512), 2)
        turns = []
        for turn in range(repeats + 2):
            in_memory, from_disk = runs
            if turn % 2:
                turns.append((rate(in_memory, steps, path), rate(from_disk, steps, path)))
            else:
                turns.append((rate(from_disk, steps, path), rate(in_memory, steps, path))[::-1])
    path.unlink()
    return Rates(case, size / 1e6, rows, orders[1], turns[2:])


def peak_memory(path: Path, seed: int) -> tuple[float, float]:
    """Peak resident memory [GB] before and after one epoch of training with `memory=1.0`."""
    simulator, store, before = Spectra.make(), sf.Store.open(path), high_water()
    steps = store.n_ok // 512 + 1
    config = sf.TrainConfig(steps=steps, batch=512, seed=seed, patience=None)
    sf.train(store, simulator, config, embedding=sf.EmbeddingConfig("mlp"), memory=1.0, progress=False)
    return before, high_water()


def high_water() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9


def large(gigabytes: float, folder: Path, seed: int) -> list[Number]:
    """Simulate, train in another process, delete."""
    path = folder / "large.h5"
    sf.simulate(Spectra.make(), int(gigabytes * 1e9 / 8000), path, seed=seed, progress=False)
    size, start = path.stat().st_size / 1e9, time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        before, after = pool.submit(peak_memory, path, seed).result()
    seconds = time.perf_counter() - start
    what = f"store of {size:.2f} GB: peak resident memory [GB], before training / one epoch"
    value = f"{before:.2f} / {after:.2f}"
    return [
        Number(what, value, f"< {MEMORY_FLOOR:g}", "", after < MEMORY_FLOOR),
        Number(f"store of {size:.2f} GB: seconds for the epoch", f"{seconds:.0f}"),
    ]


def main() -> None:
    arguments = options(__doc__ or "", large=0)
    fast, seed = arguments.fast, arguments.seed
    repeats, shrink = (1, 100) if fast else (REPEATS, 1)
    folder = Path(tempfile.mkdtemp(prefix="streaming", dir=output_folder(NAME, fast)))
    try:
        numbers, load = [], os.getloadavg()
        paper, spectra = MilneEddington.paper_case(), Spectra.make()
        rates = [
            compare("paper case", paper, 1_000_000 // shrink, sf.EmbeddingConfig(), folder, seed, repeats),
            compare("spectra", spectra, 100_000 // shrink, sf.EmbeddingConfig("mlp"), folder, seed, repeats),
        ]
        numbers += [number for case in rates for number in case.numbers()]
        if arguments.large or fast:
            numbers += large(arguments.large or 0.01, folder, seed)
    finally:
        shutil.rmtree(folder)
    numbers.append(Number("load average of the machine before", " / ".join(f"{value:.1f}" for value in load)))
    title = "Training from the disk" + (" (fast: proves nothing)" if fast else "")
    target = output_folder(NAME, fast)
    report_numbers(title, numbers, target, argparse.Namespace(**vars(arguments) | {"record": False}))
    if arguments.record and not fast:
        table = json.loads((target / "numbers.json").read_text()) | {
            "rates": [asdict(case) for case in rates]
        }
        result = Path(__file__).parent / "results" / f"{NAME}.json"
        result.write_text(json.dumps(table, indent=2) + "\n")
        print(f"numbers: {result}")


if __name__ == "__main__":
    main()
