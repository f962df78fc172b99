"""What test_executors.py sends to real engines: simulators, digests of stores, and the script that runs under MPI.

Usage: mpiexec -n 3 python -m mpi4py.futures -m tests.engines FOLDER pool, or python -m mpi4py -m tests.engines FOLDER
comm: stores of every simulator in FOLDER, then one of `Deadly`, at which a rank dies unless one has died before.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sbiflow.function_simulator import FunctionSimulator
from sbiflow.optional import require
from sbiflow.priors import Prior, Uniform
from sbiflow.simulate import SimulationWarning, simulate
from sbiflow.store import Status, Store
from tests.toys import LinearGaussian

UNIT = Prior(Uniform("u", 0.0, 1.0), Uniform("v", 1.0, 2.0))
SEED, N, BLOCK = 7, 300, 16
DATASETS = ("theta", "signal", "status", "reason", "reasons")


def row(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise of its own; one row in ten fails."""
    if theta[0] < 0.1:
        raise ArithmeticError(f"diverged beyond {theta[1]:.1f}")
    return np.sin(theta.sum() * np.arange(5)) + rng.normal(size=5)


@dataclass(frozen=True)
class Spectrum:
    """Made of a Fourier transform, which rounds differently in two threads."""

    prior: Prior = UNIT
    x_shape: tuple[int, ...] = (8,)
    name: str = "spectrum"

    def signal(self, theta: torch.Tensor) -> torch.Tensor:
        lines = torch.fft.rfft(torch.linspace(0, 9, 16_000, dtype=torch.float32).sin().exp()).abs()[:8]
        return theta[:, :1] * lines.to(theta)

    def observe(self, signal: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        return signal


@dataclass(frozen=True)
class Deadly:
    """Takes 2 ms a row and kills its process at u > `above`, once if there is a `marker` to remember it by."""

    marker: Path | None
    above: float = 0.985  # rows 95, 148, 237 and 270 of 300
    seconds: float = 0.002
    prior: Prior = UNIT
    x_shape: tuple[int, ...] = (2,)
    name: str = "deadly"
    source_hash: str = "the same whatever the marker"

    def simulate_row(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if theta[0] > self.above and (self.marker is None or not self.marker.exists()):
            if self.marker is not None:
                self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        return theta + rng.normal(size=2)

    def observe(self, signal: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        return signal


@dataclass(frozen=True)
class Counted(LinearGaussian):
    """Leaves a file in `folder` for each time that it is unpickled."""

    folder: str = ""
    source_hash: str = "counted"

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        Path(self.folder, f"{os.getpid()}-{time.monotonic_ns()}").touch()


SIMULATORS: dict[str, Callable[[], Any]] = {
    "batched": LinearGaussian,
    "rows": lambda: FunctionSimulator(row, UNIT, (5,), "rows"),
    "spectrum": Spectrum,
}


def run(simulator: Any, path: Path, executor: Executor | None = None, **options: Any) -> Store:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SimulationWarning)
        settings = {"seed": SEED, "block": BLOCK, "progress": False, **options}
        return simulate(simulator, settings.pop("n", N), path, executor=executor, **settings)


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of each dataset of a store: not of the file, whose attributes tell the time."""
    store = Store.open(path)
    with path.open("rb") as file:
        return {name: hashlib.sha256(store.layout[name].map(file).tobytes()).hexdigest() for name in DATASETS}


def same_rows(path: Path, reference: Path) -> int:
    """Number of rows done; ValueError if one of them is not the reference's."""
    store, whole = Store.open(path), Store.open(reference)
    done = np.flatnonzero(store.status != Status.PENDING)
    for got, want in zip(store.read(done), whole.read(done), strict=True):
        if got.tobytes() != want.tobytes():
            raise ValueError(f"{path}: a row that is called done is not the reference's")
    return len(done)


def main(folder: Path, mode: str) -> None:
    futures = require("mpi4py.futures", extra="mpi")
    pool = futures.MPICommExecutor() if mode == "comm" else futures.MPIPoolExecutor()
    with pool as executor:
        if executor is None:  # a worker of MPICommExecutor, after its work
            return
        for name, make in SIMULATORS.items():
            run(make(), folder / f"{name}.h5", executor)
        run(Deadly(folder / "marker", seconds=0.02), folder / "deadly.h5", executor, block=4)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
