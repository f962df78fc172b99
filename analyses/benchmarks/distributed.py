"""Two processes against one at equal global batch, on the cores of this machine: rows per second, and what is reduced.

All take turns in one torchrun: one process with one thread or two and the whole batch at once, one process with two
lanes after each other, two processes with a lane each. While process 0 is alone the other one waits for it. The
all-reduce is also timed on its own, and torch's DistributedDataParallel on the same flow and batches: reducing bucket
after bucket during the backward pass against one flat reduction after it.

On a machine that does other things too, what two processes gain on the clock says as much of the others. The CPU time
that one process takes for a batch over what each of two takes is what they would gain on two free cores, if none waits.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from common import Number, options, output_folder, report_numbers

from sbiflow import EmbeddingConfig, FlowConfig, Prior, TrainConfig, Uniform
from sbiflow.training.checkpoint import digest
from sbiflow.training.data import Rows, TrainingData
from sbiflow.training.distributed import Team
from sbiflow.training.group import is_rank_zero, join
from sbiflow.training.loop import Observed, Training
from sbiflow.training.run import _build

NAME = "distributed"
PROCESSES = 2
REPEATS = 7
SECONDS = 2.0  # of training per repetition, about


@dataclass(frozen=True)
class Case:
    """Sizes of a problem and of its flow."""

    name: str
    dim: int
    features: int
    hidden: int
    layers: int
    batch: int


CASES = (
    Case("small", dim=5, features=30, hidden=50, layers=5, batch=512),
    Case("large", dim=15, features=200, hidden=256, layers=8, batch=1024),
)


@dataclass(frozen=True)
class Noisy:
    """x = A theta + noise; as cheap as a simulator can be, so that the training is what is measured."""

    matrix: Tensor
    prior: Prior

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (len(self.matrix),)

    def signal(self, theta: Tensor) -> Tensor:
        return theta.to(self.matrix) @ self.matrix.T

    def observe(self, signal: Tensor, generator: torch.Generator | None) -> Tensor:
        return signal + 0.1 * torch.randn(signal.shape, generator=generator, dtype=signal.dtype)


def problem(case: Case, seed: int) -> tuple[Noisy, TrainingData]:
    """Simulator and data, in memory."""
    generator = torch.Generator().manual_seed(seed)
    prior = Prior(*(Uniform(f"u{i}", -1, 1) for i in range(case.dim)))
    simulator = Noisy(torch.randn(case.features, case.dim, generator=generator) / case.dim**0.5, prior)
    theta = prior.sample(8 * case.batch + 256, generator)
    z, signal, rows = prior.unconstrain(theta)[0].float(), simulator.signal(theta), torch.arange(len(theta))
    part = slice(256, None)
    return simulator, TrainingData(z[part], signal[part], z[:256], signal[:256], rows[part], rows[:256], seed)


def run_of(case: Case, seed: int, lanes: int, team: Team) -> Training:
    """Before its first step."""
    simulator, data = problem(case, seed)
    flow = FlowConfig(layers=case.layers, hidden=case.hidden)
    fit = Rows(data.z[:512], data.signal[:512], data.rows[:512])
    pairs = Observed(fit.z, simulator.observe(fit.signal, torch.Generator().manual_seed(seed)))
    model = _build(simulator, flow, EmbeddingConfig(features=32, hidden=case.hidden), seed, pairs, fit)
    config = replace(TrainConfig(batch=case.batch, seed=seed, lanes=lanes), steps=10**6)
    return Training(model, data, pairs, simulator, config, None, team)


class LogProb(nn.Module):
    """The flow with its density as `forward`, which is all that DistributedDataParallel knows."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return -self.flow.log_prob(z, x).mean()


def torch_step(run: Training) -> Callable[[], None]:
    """A step of the same run whose gradients DistributedDataParallel reduces."""
    wrapped = DistributedDataParallel(LogProb(run.model))

    def step() -> None:
        for optimiser in run.optimisers:
            optimiser.zero_grad(set_to_none=True)
        z, x = run._batch(run.step, run.team.rank)
        wrapped(z, x).backward()
        nn.utils.clip_grad_norm_(run.model.parameters(), 50.0)
        for optimiser in run.optimisers:
            optimiser.step()
        run.step += 1

    return step


def our_step(run: Training, threads: int = 1) -> Callable[[], None]:
    def step() -> None:
        torch.set_num_threads(threads)
        run._update(1e-4)
        run.step += 1
        torch.set_num_threads(1)

    return step


def seconds_of(step: Callable[[], Any], n: int) -> tuple[float, float]:
    """On the clock and on this process's CPU, of a call, averaged over n."""
    clock, cpu = time.perf_counter(), time.process_time()
    for _ in range(n):
        step()
    return (time.perf_counter() - clock) / n, (time.process_time() - cpu) / n


def weights(run: Training) -> str:
    return digest(*run.model.state_dict().values())


def measure(case: Case, seed: int, repeats: int, seconds: float) -> dict[str, Any]:
    """Under torchrun; the times are process 0's."""
    team = join()
    lanes, together, torchs = (run_of(case, seed, PROCESSES, group) for group in (Team(), team, team))
    one, two = (our_step(run_of(case, seed, 1, Team()), threads) for threads in (1, 2))
    apart = {"one": one, "two threads": two, "lanes": our_step(lanes)}
    steps = apart | {"together": our_step(together), "torch": torch_step(torchs)}
    for step in steps.values():
        seconds_of(step, 3)
    n = max(int(seconds / team.first(seconds_of(one, 3)[0])), 2)
    flat = torch.cat([p.grad.flatten() for p in together.model.parameters() if p.grad is not None])
    steps["reduce"] = lambda: team.add(flat.mul_(0.5))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            team.gather(None)
            if name not in apart or team.rank == 0:
                times[name].append(seconds_of(step, n))
    same = team.first(weights(lanes)) == weights(together)
    team.gather(None)  # none leaves while another may still be sending
    return {"bytes": flat.numel() * flat.element_size(), "steps": n, "same": same, "times": times}


def under_torchrun(case: Case, arguments: Any, folder: Path) -> dict[str, Any]:
    """One thread per process, two processes."""
    target = folder / f"{case.name}.json"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(PROCESSES),
    ]
    inner = [__file__, "--seed", str(arguments.seed), "--inner", case.name, "--target", str(target)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }  # threads that spin starve others
    subprocess.run([*command, *inner, *(["--fast"] if arguments.fast else [])], check=True, env=environment)
    return json.loads(target.read_text())


def numbers(case: Case, found: dict[str, Any]) -> list[Number]:
    clock, cpu = (
        {name: [pair[k] for pair in pairs] for name, pairs in found["times"].items()} for k in (0, 1)
    )

    def ratio(over: str, under: str, times: dict[str, list[float]] = clock) -> str:
        values = sorted(a / b for a, b in zip(times[over], times[under], strict=True))
        return f"{median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"

    size = f"{case.name} ({case.dim}-D, {case.layers} x {case.hidden} hidden, batch {case.batch})"
    speed = [f"{case.batch / median(clock[name]):,.0f}" for name in ("one", "two threads", "together")]
    same = found["same"]
    return [
        Number(f"{size}: rows per second, one process / with two threads / two processes, median", " / ".join(speed)),
        Number("two processes over one, on the clock, median (range) of pairs", ratio("one", "together")),
        Number("CPU time of one process over that of each of two", ratio("one", "together", cpu)),
        Number("two processes over one with two threads, on the clock", ratio("two threads", "together")),
        Number("CPU time of the whole batch at once over that of two lanes, in one process", ratio("one", "lanes", cpu)),
        Number("reduced per step, MB", f"{found['bytes'] / 1e6:.2f}"),
        Number("the all-reduce on its own, median, ms", f"{1e3 * median(clock['reduce']):.2f}"),
        Number("the same as a share of the step", ratio("reduce", "together")),
        Number("a step with DistributedDataParallel over ours, on the clock", ratio("torch", "together")),
        Number("the same, CPU time", ratio("torch", "together", cpu)),
        Number("two processes and one with two lanes: weights the same to the bit", "yes" if same else "NO", "yes", "", same),
    ]  # fmt: skip


def main() -> None:
    arguments = options(__doc__ or "", inner="", target="")
    small = {"hidden": 24, "layers": 3, "batch": 64} if arguments.fast else {}
    cases = [replace(case, **small) for case in (CASES[:1] if arguments.fast else CASES)]
    if arguments.inner:
        case = next(case for case in cases if case.name == arguments.inner)
        found = measure(case, arguments.seed, *((2, 0.0) if arguments.fast else (REPEATS, SECONDS)))
        if is_rank_zero():
            Path(arguments.target).write_text(json.dumps(found))
        return
    folder, load = output_folder(NAME, arguments.fast), os.getloadavg()
    found = {case.name: under_torchrun(case, arguments, folder) for case in cases}
    rows = [number for case in cases for number in numbers(case, found[case.name])]
    rows.append(Number("load average of the machine before", " / ".join(f"{value:.1f}" for value in load)))
    title = "Data-parallel training, two processes of a machine"
    title += " (fast: proves nothing)" if arguments.fast else ""
    report_numbers(title, rows, folder, argparse.Namespace(**vars(arguments) | {"record": False}))
    if arguments.record and not arguments.fast:
        record(folder, found)


def record(folder: Path, found: dict[str, Any]) -> None:
    """Beside the table every time that was taken."""
    table = json.loads((folder / "numbers.json").read_text())
    table |= {"seconds_per_step": {name: case["times"] for name, case in found.items()}}
    target = Path(__file__).parent / "results" / f"{NAME}.json"
    target.write_text(json.dumps(table, indent=2) + "\n")
    print(f"numbers: {target}")


if __name__ == "__main__":
    main()
