"""What simulations and training cost as data and model grow: measured on this machine, fitted, and extrapolated.

Four models, each a sum of terms with coefficients >= 0 (non-negative least squares on relative errors):

- the process that writes the store: seconds per block and per byte; it is what limits the number of workers;
- a training step: seconds = a + b L + c B P + d B L D + e P, of L layers, batch B, P parameters, D dimensions;
- memory of training in memory: bytes = a + b n;
- a sum of gradients over two processes: seconds = a + b bytes, over the loopback of one machine.

Settings that are not fitted are predicted and measured. Everything named "extrapolated" lies outside the measured range
and supposes that the model goes on: no cluster, no network and no GPU was measured here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import nnls

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from common import Number, options, output_folder, report_numbers, save_figure

sys.path.insert(0, str(Path(__file__).parent))
from measurements import (
    Filled,
    Step,
    all_reduce,
    count_parameters,
    filled,
    pool,
    step,
    store_bytes,
    training_memory,
)

NAME = "cluster_cost_model"
BASE = (64, 4, 5, 512)  # hidden, layers, D, batch
FITTED = [
    BASE, (32, 4, 5, 512), (128, 4, 5, 512), (256, 4, 5, 512), (64, 2, 5, 512), (64, 8, 5, 512),
    (64, 4, 2, 512), (64, 4, 15, 512), (64, 4, 5, 128), (64, 4, 5, 2048),
]  # fmt: skip
HELD_OUT = [(128, 6, 10, 1024), (128, 2, 8, 256)]
LARGE = (512, 8, 15, 4096)
ROW = 0.01  # [s] of the slow simulator
FILLED = [(1280, 10), (6400, 10), (25600, 10), (6400, 1000), (12800, 2000)]  # rows, numbers of x
MEMORY_ROWS = (20_000, 200_000, 400_000)
SUMS = (1_000, 10_000, 100_000, 1_000_000, 4_000_000)  # float32 values
NETWORK = 1.25e9  # [B/s], 10 Gbit/s: a supposition


@dataclass(frozen=True)
class Fit:
    """Coefficients >= 0 of the terms, and the largest relative error of what was fitted."""

    coefficients: tuple[float, ...]
    worst: float

    @classmethod
    def of(cls, terms: Sequence[Sequence[float]], values: Sequence[float]) -> Fit:
        matrix, wanted = np.array(terms, dtype=float), np.array(values, dtype=float)
        scale = np.abs(matrix).max(0)
        found = nnls(matrix / scale / wanted[:, None], np.ones(len(wanted)))[0] / scale
        return cls(tuple(float(value) for value in found), float(np.abs(matrix @ found / wanted - 1).max()))

    def __call__(self, terms: Sequence[float]) -> float:
        return float(np.dot(self.coefficients, terms))


@dataclass(frozen=True)
class Measured:
    """Everything that was timed or counted."""

    fills: list[Filled]
    slow: dict[int, Filled]
    steps: list[Step]
    held_out: list[Step]
    memory: dict[int, float]
    sums: dict[int, float]


def fill_terms(n: float, size: int, once: float = 1.0) -> tuple[float, ...]:
    """What is done once; blocks; bytes of theta, signal and status."""
    return once, n / 64, n * (8 + 4 * size + 2)


def step_terms(found: Step) -> tuple[float, ...]:
    layers, batch = found.layers, found.batch
    return (1.0, layers, batch * found.parameters, batch * layers * found.dim, found.parameters)


def best(settings: tuple[int, int, int, int], steps: int, repeats: int) -> Step:
    """The median of some repetitions."""
    found = sorted((step(*settings, steps) for _ in range(repeats)), key=lambda one: one.seconds)
    return found[len(found) // 2]


def measure(fast: bool) -> Measured:
    steps, repeats = (2, 1) if fast else (8, 3)
    fills = [(64, 4), (640, 4), (128, 100)] if fast else FILLED
    slow = {}
    for workers in (1, 2):
        with pool(workers) as executor:
            filled(executor, 16, 1)  # its start is not what is timed here
            slow[workers] = filled(executor, 20 if fast else 400, 1, seconds=ROW)
            if workers == 1:
                found = [filled(executor, *settings) for settings in fills]
    return Measured(
        found,
        slow,
        [best(settings, steps, repeats) for settings in FITTED[: 2 if fast else None]],
        [best(settings, steps, repeats) for settings in HELD_OUT[: 1 if fast else None]],
        {n: training_memory(n) for n in (MEMORY_ROWS[:1] if fast else MEMORY_ROWS)},
        all_reduce(list(SUMS[: 2 if fast else None]), 2 if fast else 20),
    )


@dataclass(frozen=True)
class Model:
    """The four fits."""

    writer: Fit
    step: Fit
    memory: Fit
    sums: Fit

    @classmethod
    def of(cls, found: Measured) -> Model:
        return cls(
            Fit.of([fill_terms(one.n, one.size) for one in found.fills], [one.writer for one in found.fills]),
            Fit.of([step_terms(one) for one in found.steps], [one.seconds for one in found.steps]),
            Fit.of([(1.0, n) for n in found.memory], list(found.memory.values())),
            Fit.of([(1.0, 4.0 * n) for n in found.sums], list(found.sums.values())),
        )


def simulation_numbers(found: Measured, model: Model) -> list[Number]:
    per_row = model.writer(fill_terms(1, 100, once=0.0))
    one, two = (found.slow[workers] for workers in (1, 2))
    ideal = one.n * ROW
    rows = ", ".join(f"{store_bytes(n, 5, 100) / n:.1f}" for n in (1_000, 100_000))
    return [
        Number(
            f"{one.n} rows of {ROW * 1e3:g} ms: seconds with 1 / 2 workers (n s / W)",
            f"{one.seconds:.2f} / {two.seconds:.2f} ({ideal:.2f} / {ideal / 2:.2f})",
        ),
        Number(
            "CPU time of the writer: ms once, ms per block, ns per byte; largest error of the fit",
            ", ".join(f"{value:.3g}" for value in np.array(model.writer.coefficients) * (1e3, 1e3, 1e9))
            + f"; {model.writer.worst:.0%}",
        ),
        Number(
            "extrapolated: rows per second that one writer takes, x of 100 numbers; workers at 10 ms a row",
            f"{1 / per_row:,.0f}; {ROW / per_row:,.0f}",
        ),
        Number("store: bytes per row of 5 parameters and 100 numbers, 1,000 and 100,000 rows", rows),
    ]


def training_numbers(found: Measured, model: Model) -> list[Number]:
    errors = [model.step(step_terms(one)) / one.seconds for one in found.held_out]
    memory = model.memory.coefficients
    return [
        Number(
            f"step, {len(found.steps)} settings: largest error of the fit; predicted / measured of others",
            f"{model.step.worst:.0%}; " + ", ".join(f"{ratio:.2f}" for ratio in errors),
        ),
        Number(
            "step: ms, + per layer, + per 1e6 parameters x 1,000 rows, + per 1,000 rows x layer x D, + per 1e6 parameters",
            ", ".join(
                f"{1e3 * value:.3g}" for value in np.array(model.step.coefficients) * (1, 1, 1e9, 1e3, 1e6)
            ),
        ),
        Number(
            f"memory of training in memory, up to {max(found.memory):,} rows of 420 bytes: MB, bytes per row",
            f"{memory[0] / 1e6:.0f}, {memory[1]:.0f}",
        ),
        Number(
            "extrapolated: GB to train in memory on 10 million such rows",
            f"{model.memory((1.0, 1e7)) / 1e9:.1f}",
        ),
    ]


def parallel_numbers(found: Measured, model: Model) -> list[Number]:
    """Data-parallel training, put together from a step of a part of the batch and a sum of the gradients."""
    numbers = [
        Number(
            "sum over 2 processes of one machine: ms, ns per byte; largest error of the fit",
            f"{1e3 * model.sums.coefficients[0]:.2f}, {1e9 * model.sums.coefficients[1]:.2f}; {model.sums.worst:.0%}",
        )
    ]
    hidden, layers, dim, batch = LARGE
    parameters = count_parameters(hidden, layers, dim)
    for processes in (2, 8, 64):
        part = Step(hidden, layers, dim, batch // processes, parameters, 0.0)
        whole = Step(hidden, layers, dim, batch, parameters, 0.0)
        moved = 2 * (processes - 1) / processes * 4 * parameters  # a ring sends and receives so many bytes
        reduce = np.log2(processes) * model.sums.coefficients[0] + moved / NETWORK
        gain = model.step(step_terms(whole)) / (model.step(step_terms(part)) + reduce)
        numbers.append(
            Number(
                f"extrapolated: {processes} processes at 10 Gbit/s, hidden {hidden}, {layers} layers, D {dim}, batch {batch}: "
                "speed-up, share of the sum",
                f"{gain:.1f}, {reduce / (model.step(step_terms(part)) + reduce):.0%}",
            )
        )
    measured = zip(
        *((one.hidden, one.layers, one.dim, one.batch) for one in (*found.steps, *found.held_out)),
        strict=True,
    )
    ranges = ", ".join(f"{min(values)} to {max(values)}" for values in measured)
    numbers.append(Number("measured range of a step: hidden, layers, D, batch", ranges))
    return numbers


def figure(found: Measured, model: Model) -> Figure:
    made = Figure(figsize=(12, 3.6), layout="constrained")
    steps, memory, sums = made.subplots(1, 3)
    for points, marker, label in ((found.steps, "o", "fitted"), (found.held_out, "s", "predicted")):
        predicted = [1e3 * model.step(step_terms(one)) for one in points]
        steps.plot([1e3 * one.seconds for one in points], predicted, marker, label=label)
    low, high = steps.get_xlim()
    steps.plot([low, high], [low, high], "k-", lw=0.7)
    steps.set(xlabel="training step, measured [ms of CPU time]", ylabel="model [ms]")
    steps.legend()
    rows = np.geomspace(1e4, 1e7, 50)
    memory.loglog(list(found.memory), [value / 1e9 for value in found.memory.values()], "o", label="measured")
    memory.loglog(
        rows, [model.memory((1.0, n)) / 1e9 for n in rows], "--", label="model (beyond: extrapolated)"
    )
    memory.set(xlabel="rows of 420 bytes", ylabel="peak memory of training [GB]")
    memory.legend()
    sums.loglog(
        [4 * n for n in found.sums], [1e3 * value for value in found.sums.values()], "o", label="measured"
    )
    sums.loglog(
        [4 * n for n in found.sums],
        [1e3 * model.sums((1.0, 4.0 * n)) for n in found.sums],
        "-",
        label="model",
    )
    sums.set(xlabel="gradients [bytes]", ylabel="sum over 2 processes [ms]")
    sums.legend()
    return made


def main() -> None:
    arguments = options(__doc__ or "")
    found = measure(arguments.fast)
    model = Model.of(found)
    numbers = [
        *simulation_numbers(found, model),
        *training_numbers(found, model),
        *parallel_numbers(found, model),
        Number("load average of the machine", " / ".join(f"{load:.1f}" for load in os.getloadavg())),
    ]
    title = "What it costs" + (" (fast: proves nothing)" if arguments.fast else "")
    folder = output_folder(NAME, arguments.fast)
    (folder / "measured.txt").write_text(
        "\n".join(f"{name}: {value}" for name, value in asdict(found).items())
    )
    save_figure(figure(found, model), folder / "cost_model.png")
    report_numbers(title, numbers, folder, arguments)


if __name__ == "__main__":
    main()
