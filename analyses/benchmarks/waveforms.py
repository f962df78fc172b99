"""Waveforms per second: IMRPhenomD of simulators.gravitational_waves against LAL on the same cores.

LAL is called from Python once per waveform (SimInspiralChooseFDWaveform) in a pool of processes, which keep their
waveforms to themselves; ours is one batch in each process of the same pool. The two alternate, so that what else runs
on the machine hits both, and a ratio is of neighbours. On a machine that is busy the CPU time is the better measure.
Needs `pip install "sbiflow[gw-oracle]"`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin at a barrier starve a busy machine

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from common import Number, options, output_folder, report_numbers

from sbiflow.optional import require
from simulators.gravitational_waves.waveform import imrphenomd

NAME = "waveforms"
F_LOW, F_HIGH = 20.0, 512.0  # 1024 Hz sampling
REPEATS = 11
CASES = ((1, 8192), (8, 2048))  # duration [s], waveforms per repetition
FLOOR, REACH = 3.0, 10.0


@dataclass(frozen=True)
class Speed:
    """Of every repetition: seconds per waveform on the clock and on the CPU, LAL's and ours."""

    duration: int
    cores: int
    waveforms: int
    clock: list[tuple[float, float]]
    cpu: list[tuple[float, float]]

    def numbers(self) -> list[Number]:
        """The rates, and the two ratios."""
        case = f"{self.duration} s, {self.cores} core{'s' if self.cores > 1 else ''}"
        rates = " / ".join(f"{rate:.0f}" for rate in 1 / np.median(self.clock, axis=0))
        clock, cpu = (_spread([lal / ours for lal, ours in times]) for times in (self.clock, self.cpu))
        bounds = (f">= {FLOOR:g}", f">= {REACH:g}")
        return [
            Number(f"{case}: waveforms per second, LAL / sbiflow, median", rates),
            Number(f"{case}: ratio on the clock, min / median / max", clock[0], *bounds, clock[1] >= FLOOR),
            Number(f"{case}: ratio of CPU times, min / median / max", cpu[0], *bounds, cpu[1] >= FLOOR),
        ]


def _spread(values: list[float]) -> tuple[str, float]:
    low, middle, high = np.percentile(values, [0, 50, 100])
    return f"{low:.1f} / {middle:.1f} / {high:.1f}", float(middle)


def lal_modules() -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its redirection of stdio
        return require("lal", extra="gw-oracle"), require("lalsimulation", extra="gw-oracle")


def lal_waveform(row: np.ndarray, duration: int) -> Any:
    """LAL's plus and cross series of a binary seen face on at 1 Mpc."""
    lal, simulation = lal_modules()
    mass_1, mass_2, chi_1, chi_2 = row.tolist()
    spins = (0.0, 0.0, chi_1, 0.0, 0.0, chi_2)
    grid = (1 / duration, F_LOW, F_HIGH, F_LOW, None, simulation.IMRPhenomD)
    return simulation.SimInspiralChooseFDWaveform(
        mass_1 * lal.MSUN_SI, mass_2 * lal.MSUN_SI, *spins, 1e6 * lal.PC_SI, *[0.0] * 5, *grid
    )


def lal_rows(rows: np.ndarray, duration: int) -> float:
    """What a process of the pool does; its CPU time [s]."""
    start = time.process_time()
    for row in rows:
        lal_waveform(row, duration)
    return time.process_time() - start


def our_rows(rows: np.ndarray, duration: int) -> float:
    """The same of ours: one batch, one thread."""
    torch.set_num_threads(1)
    start = time.process_time()
    imrphenomd(*torch.tensor(rows.T), grid(duration), F_LOW)
    return time.process_time() - start


def draws(n: int, seed: int) -> np.ndarray:
    """Masses in 10 to 100 solar masses, spins in -0.99 to 0.99; (n, 4)."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.uniform(10, 100, (n, 2)), random.uniform(-0.99, 0.99, (n, 2))], axis=1)


def timed(call: Callable[[], float]) -> tuple[float, float]:
    """Seconds on the clock and what the call says of the CPU."""
    start = time.perf_counter()
    cpu = call()
    return time.perf_counter() - start, cpu


def measure(pool: Executor, duration: int, n: int, cores: int, repeats: int, seed: int) -> Speed:
    """Alternating repetitions, the order turned every time, after two that are not counted.

    Both work in the same pool, with as many processes as there are parts at a time: LAL row by row, in four parts for
    each core if there are several, ours in one batch for each core. Neither sends its waveforms back.
    """
    rows = draws(n, seed)
    parts, batches = np.array_split(rows, 1 if cores == 1 else 4 * cores), np.array_split(rows, cores)

    def lal() -> float:
        return sum(pool.map(partial(lal_rows, duration=duration), parts))

    def ours() -> float:
        return sum(pool.map(partial(our_rows, duration=duration), batches))

    turns = []
    for turn in range(repeats + 2):
        if turn % 2:
            turns.append((timed(lal), timed(ours)))
        else:
            turns.append((timed(ours), timed(lal))[::-1])
    clock, cpu = ([(lal[k] / n, our[k] / n) for lal, our in turns[2:]] for k in (0, 1))
    return Speed(duration, cores, n, clock, cpu)


def grid(duration: int) -> torch.Tensor:
    return torch.arange(round(F_LOW * duration), round(F_HIGH * duration), dtype=torch.float64) / duration


def worst_difference(duration: int, n: int, seed: int) -> float:
    """Largest |h - h_LAL| / max |h_LAL| of a waveform: the same thing is timed. (LAL's last bin is left out.)"""
    rows, bins = draws(n, seed), grid(duration)
    worst = 0.0
    for row, h in zip(rows, imrphenomd(*torch.tensor(rows.T), bins, F_LOW).numpy(), strict=True):
        want = lal_waveform(row, duration)[0].data.data[round(F_LOW * duration) :][: len(bins)]
        there = want != 0
        worst = max(worst, float(abs(h[: len(want)] - want)[there].max() / abs(want).max()))
    return worst


def main() -> None:
    arguments = options(__doc__ or "")
    load = os.getloadavg()
    cases = [(duration, 64 if arguments.fast else n) for duration, n in CASES]
    repeats = 2 if arguments.fast else REPEATS
    cores = sorted({1, min(2, os.cpu_count() or 1)})
    with ProcessPoolExecutor(cores[-1], mp_context=multiprocessing.get_context("spawn")) as pool:
        speeds = [measure(pool, *case, count, repeats, arguments.seed) for case in cases for count in cores]
    worst = max(worst_difference(duration, 64, arguments.seed) for duration, _ in cases)
    numbers = [number for speed in speeds for number in speed.numbers()]
    numbers.append(
        Number("largest difference from LAL, of the peak", f"{worst:.1e}", "1e-8", "1e-12", worst < 1e-8)
    )
    numbers.append(Number("load average of the machine before", " / ".join(f"{value:.1f}" for value in load)))
    title = "IMRPhenomD against LAL" + (" (fast: proves nothing)" if arguments.fast else "")
    folder = output_folder(NAME, arguments.fast)
    report_numbers(title, numbers, folder, argparse.Namespace(**vars(arguments) | {"record": False}))
    if arguments.record and not arguments.fast:
        record(folder, speeds)


def record(folder: Path, speeds: list[Speed]) -> None:
    """Beside the table every time that was taken."""
    table = json.loads((folder / "numbers.json").read_text())
    table |= {"lalsimulation": lal_modules()[1].__version__, "speeds": [asdict(speed) for speed in speeds]}
    target = Path(__file__).parent / "results" / f"{NAME}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(table, indent=2) + "\n")
    print(f"numbers: {target}")


if __name__ == "__main__":
    main()
