"""On one GPU, by one command: training, sampling, waiting for the host, and the same numbers as on the CPU.

    python analyses/benchmarks/gpu.py --record

Training rows per second of sbiflow's loop (compiled, CUDA graphs) against zuko's flow under Adam on the same card, and
against sbi's trainer; the share of a step in which the card has nothing to do; a million posterior draws; densities
against those of the same weights on the CPU. `--fast --device cpu` runs the same lines in a minute where there is no
card: what it prints then is no result.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

sys.path[:0] = [str(Path(__file__).parents[2])]

import sbiflow as sf
from analyses.benchmarks.architecture import ZUKO, Case
from analyses.benchmarks.peers import build
from analyses.common import Number, options, output_folder, report_numbers
from sbiflow.optional import require
from simulators.stokes import MilneEddington

SIMULATOR = MilneEddington.paper_case()
CASE = Case("maf", SIMULATOR.prior.dim, 128, context=math.prod(SIMULATOR.x_shape))  # x as it is, no embedding
BATCH, STEPS, REPEATS = 4096, 2_000, 5
DRAWS = 1_000_000


@dataclass(frozen=True)
class Problem:
    """The store of the Stokes paper case, and how much is done with it."""

    store: sf.Store
    device: str
    fast: bool

    @property
    def batch(self) -> int:
        return 256 if self.fast else BATCH

    @property
    def steps(self) -> int:
        return 20 if self.fast else STEPS


def waited(device: str) -> float:
    """The clock, once the card has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def our_training(problem: Problem, seed: int) -> tuple[sf.Posterior, float]:
    """A posterior, and training rows per second (compilation and loading left out: it is the log's own clock)."""
    config = sf.TrainConfig(
        steps=problem.steps, batch=problem.batch, patience=None, seed=seed, validate_every=problem.steps
    )
    flow = sf.FlowConfig("maf", layers=CASE.layers, hidden=CASE.hidden, blocks=CASE.blocks)
    posterior = sf.train(
        problem.store, SIMULATOR, config, flow=flow, embedding=sf.EmbeddingConfig("none"),
        device=problem.device, progress=False,
    )  # fmt: skip
    return posterior, problem.steps * problem.batch / posterior.info.training_seconds


def zuko_training(problem: Problem, seed: int) -> float:
    """Rows per second of zuko's MAF: pairs and parameters on the card, a batch by indices, fused Adam."""
    model = build(ZUKO, CASE, seed)
    model.module.to(problem.device)
    rows = 10 * problem.batch
    z = torch.randn(rows, CASE.dim, device=problem.device)
    x = torch.randn(rows, CASE.context, device=problem.device)

    def step_on(size: int) -> Callable[[], None]:
        def loss(z_all: Tensor, x_all: Tensor) -> Tensor:
            chosen = torch.randint(rows, (size,), device=problem.device)
            return -model.log_prob(z_all[chosen], x_all[chosen]).mean()

        return model.trainer(z, x, loss)

    step = step_on(problem.batch)
    for _ in range(3):
        step()
    begin = waited(problem.device)
    for _ in range(problem.steps):
        step()
    return problem.steps * problem.batch / (waited(problem.device) - begin)


def sbi_training(problem: Problem, seed: int) -> float:
    """Rows per second of sbi's trainer, its defaults but for the batch and the width of the MAF."""
    inference, utils = require("sbi.inference", "bench"), require("sbi.neural_nets", "bench")
    torch.manual_seed(seed)
    rows, epochs = 20 * problem.batch, 1 if problem.fast else 5
    theta, x = torch.randn(rows, CASE.dim), torch.randn(rows, CASE.context)
    prior = torch.distributions.MultivariateNormal(
        torch.zeros(CASE.dim, device=problem.device), torch.eye(CASE.dim, device=problem.device)
    )
    net = utils.posterior_nn("maf", hidden_features=CASE.hidden, num_transforms=CASE.layers)
    trainer = inference.NPE(prior, density_estimator=net, device=problem.device, show_progress_bars=False)
    trainer.append_simulations(theta, x)
    begin = waited(problem.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "maximum number of epochs reached"
        trainer.train(training_batch_size=problem.batch, max_num_epochs=epochs)
    done = len(trainer.summary["training_loss"]) * int(0.9 * rows)
    return done / (waited(problem.device) - begin)


def idle_share(problem: Problem) -> float:
    """Share of a step in which no kernel runs, from the profiler's own times; NaN without a card."""
    if not problem.device.startswith("cuda"):
        return float("nan")
    begin = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        posterior, _ = our_training(problem, seed=9)
    assert time.perf_counter() > begin
    busy = sum(event.self_device_time_total for event in found.key_averages()) * 1e-6
    return 1 - busy / posterior.info.training_seconds


def seconds_of_draws(posterior: sf.Posterior, x: Tensor, n: int, device: str) -> float:
    """Of n posterior draws of one observation, the fastest of a few."""
    times = []
    for seed in range(REPEATS):
        begin = waited(device)
        posterior.sample(x, n, seed=seed)
        times.append(waited(device) - begin)
    return min(times)


def deviation(posterior: sf.Posterior, x: Tensor, device: str) -> float:
    """Largest difference of log q [nats] between the device and the CPU, same weights, 10,000 draws."""
    theta = posterior.sample(x, 10_000, seed=3).theta
    there = posterior.log_prob(theta, x)
    here = posterior.to("cpu").log_prob(theta, x)
    posterior.to(device)
    return float((there - here).abs().max())


def measure(problem: Problem) -> list[Number]:
    """Alternating, medians."""
    rates: list[tuple[float, float, float]] = []
    for seed in range(1 if problem.fast else REPEATS):
        posterior, ours = our_training(problem, seed)
        rates.append((ours, zuko_training(problem, seed), sbi_training(problem, seed)))
    ours, zuko, sbi = torch.tensor(rates).median(0).values.tolist()
    x = sf.draw_pairs(SIMULATOR, 1, seed=5).x[0]
    draws = 10_000 if problem.fast else DRAWS
    idle, seconds = idle_share(problem), seconds_of_draws(posterior, x, draws, problem.device)
    off = deviation(posterior, x, problem.device)
    return [
        Number("training, rows per second", f"{ours:,.0f}"),
        Number("training, over zuko", f"{ours / zuko:.1f}", ">= 5", ">= 20", ours >= 5 * zuko),
        Number("training, over sbi", f"{ours / sbi:.1f}", ">= 5", ">= 20", ours >= 5 * sbi),
        Number("share of the training in which the card waits", f"{idle:.1%}", "< 5%", "", idle < 0.05),
        Number(f"{draws:,} posterior draws, seconds", f"{seconds:.2f}", "< 1", "", seconds < 1),
        Number("log q against the CPU, largest difference (nats)", f"{off:.1e}", "<= 1e-2", "", off <= 1e-2),
    ]


def main(arguments: argparse.Namespace) -> None:
    """Fill a store, measure, print, write."""
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("gpu.py: expected a CUDA device, got none; --fast --device cpu only tries the lines")
    with tempfile.TemporaryDirectory() as folder:
        store = sf.simulate(
            SIMULATOR, 2_000 if arguments.fast else 200_000, Path(folder) / "s.h5", seed=1, progress=False
        )
        numbers = measure(Problem(store, arguments.device, arguments.fast))
    card = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "no GPU: not a result"
    report_numbers(f"On a GPU ({card})", numbers, output_folder("gpu", arguments.fast), arguments)


if __name__ == "__main__":
    main(options(__doc__ or "", device="cuda"))
