"""When does distillation pay? An inverse autoregressive student beside its masked autoregressive teacher.

The teacher's draws come from its cached inverse (transforms/incremental.py), and, as in most libraries, from one
network pass for each dimension. The student's are one dense pass, its density of any other point is the direction that
needs the inverse. All take turns on the same posterior; ratios are of neighbours in time (benchmarks/alternate.py).
Tasks: SLCP (5-D, four modes), and chains x_i = theta_i + b theta_{i-1}² + noise in 5 and 15 dimensions.
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Generator, Tensor

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
from alternate import Series, alternate, ratio
from common import Number, options, output_folder, report_numbers, save_figure

import sbiflow as sf
from sbiflow.flows import ConditionalFlow
from sbiflow.priors import Normal, Prior
from sbiflow.transforms.autoregressive import MaskedAutoregressive
from simulators.benchmark import task

NAME = "41_distillation"
OBSERVED = 4100  # seed of the observation that is timed and drawn
FLOOR, REACH = 0.02, 0.005  # , nats KL, of issue 7
EMBEDDING = sf.EmbeddingConfig("residual", features=32, hidden=64, blocks=2)


@dataclass(frozen=True)
class Chain:
    """x_i = theta_i + bend theta_{i-1}² + noise, theta_{-1} = theta_{D-1}; a standard normal prior."""

    dim: int
    bend: float = 0.25
    noise: float = 0.5
    version: str = "1"

    @property
    def name(self) -> str:
        return f"chain-{self.dim}"

    @property
    def prior(self) -> Prior:
        return Prior(*(Normal(f"t{i}", 0.0, 1.0) for i in range(self.dim)))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def signal(self, theta: Tensor) -> Tensor:
        """(n, D) -> (n, D)."""
        return theta + self.bend * theta.roll(1, -1) ** 2

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        """Adds the noise."""
        return signal + self.noise * torch.randn(signal.shape, generator=generator, dtype=signal.dtype)


@dataclass(frozen=True)
class Size:
    """Simulations, steps and rate of the teacher; observations, steps and draws a step of the student; clock."""

    simulations: int
    steps: int
    observations: int
    student_steps: int
    batch: int
    draws: int
    repeats: int
    seconds: float
    hidden: int


FULL = Size(30_000, 1_000, 5_000, 1_500, 256, 10_000, 7, 0.5, 64)
FAST = Size(2_000, 60, 100, 30, 64, 200, 2, 0.01, 16)


def subjects(fast: bool) -> dict[str, Any]:
    """Tasks by name."""
    found = {"chain, 5-D": Chain(5), "chain, 15-D": Chain(15), "SLCP, 5-D": task("slcp")}
    return dict(list(found.items())[:1]) if fast else found


def taught(subject: Any, size: Size, folder: Path, seed: int) -> tuple[sf.Posterior, sf.Posterior, float]:
    """Teacher and student, and the student's CPU seconds."""
    store = sf.simulate(
        subject,
        size.simulations,
        folder / f"{subject.name}-{size.simulations}-{seed}.h5",
        seed=seed,
        progress=False,
    )
    flow = sf.FlowConfig("maf", layers=3, hidden=size.hidden, blocks=2)
    config = sf.TrainConfig(steps=size.steps, batch=min(512, size.simulations), patience=None, seed=seed)
    file = folder / f"{subject.name}-{size.simulations}-{size.steps}-{seed}.safetensors"
    teacher = sf.train(
        store, subject, config, flow=flow, embedding=EMBEDDING, checkpoint=file, progress=False
    )
    x = sf.draw_pairs(subject, size.observations, seed=seed + 1).x
    config = sf.TrainConfig(
        steps=size.student_steps, batch=size.batch, learning_rate=0.01, patience=None, seed=seed
    )
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sf.DistillationWarning)  # the table says it
        student = sf.distill(teacher, x, config, progress=False)
    return teacher, student, time.process_time() - started


def by_passes(posterior: sf.Posterior) -> sf.Posterior:
    """The same posterior whose layers are inverted by a dense network pass for each dimension."""
    flow: ConditionalFlow = copy.deepcopy(posterior.flow)
    for part in flow.modules():
        if isinstance(part, MaskedAutoregressive):
            object.__setattr__(part, "inverse", _Passes(part))
    return replace(posterior, flow=flow)


@dataclass(frozen=True)
class _Passes:
    part: MaskedAutoregressive

    def __call__(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs = torch.zeros_like(inputs)
        for d in range(inputs.shape[-1]):
            params = self.part.net(self.part._features(outputs), context)
            values, logdet = self.part.elementwise(inputs, params, inverse=True)
            outputs[..., d] = values[..., d]
        return outputs, logdet.sum(-1)


def clocks(teacher: sf.Posterior, student: sf.Posterior, x: Tensor, size: Size) -> dict[str, Series]:
    """10,000 draws with densities of one observation, and densities of as many given points."""
    slow, dice, n = by_passes(teacher), torch.Generator(), size.draws
    theta = teacher.sample_and_log_prob(x[None], n, dice.manual_seed(1))[0]
    other = slow.sample_and_log_prob(x[None], n, dice.manual_seed(1))[0]
    torch.testing.assert_close(other, theta, rtol=1e-3, atol=1e-3)  # the contestants do the same
    theta = theta[:, 0]
    return alternate(
        {
            "teacher, cached inverse": lambda: teacher.sample_and_log_prob(x[None], n, dice.manual_seed(1)),
            "teacher, D passes": lambda: slow.sample_and_log_prob(x[None], n, dice.manual_seed(1)),
            "student": lambda: student.sample_and_log_prob(x[None], n, dice.manual_seed(1)),
            "teacher, density": lambda: teacher.log_prob(theta, x),
            "student, density": lambda: student.log_prob(theta, x),
        },
        size.repeats,
        size.seconds,
    )


def lines_of(
    name: str, student: sf.Posterior, spent: float, times: dict[str, Series], size: Size
) -> list[Number]:
    """Distances, times and ratios of one task."""
    found = sf.Distillation.of(student)
    cached, passes, own = (times[key] for key in ("teacher, cached inverse", "teacher, D passes", "student"))
    chain = name.startswith("chain, 5")
    lines = [
        Number(f"{name}: KL(student || teacher), nats", f"{found.kl:.4f} ± {found.kl_error:.4f}",
               f"{FLOOR:g}" if chain else "", f"{REACH:g}" if chain else "", found.kl <= FLOOR if chain else None),
        Number(f"{name}: KL(teacher || student), nats; the worse of both at one of {found.held_out} observations",
               f"{found.forward_kl:.4f} ± {found.forward_kl_error:.4f}; {found.worst:.3f}"),
        Number(f"{name}: CPU seconds of the distillation, {student.info.steps:,} steps", f"{spent:.0f}"),
    ]  # fmt: skip
    lines += [
        Number(f"{name}: {label}, {size.draws:,} rows, CPU ms", f"{1e3 * median(series.cpu):.1f}")
        for label, series in times.items()
    ]
    saved = median(cached.cpu) - median(own.cpu)
    pays = f"{spent / saved * size.draws:.2g}" if saved > 0 else "never: the student is not faster"
    return [
        *lines,
        Number(f"{name}: D passes over the student's pass", str(ratio(passes, own, cpu=True))),
        Number(f"{name}: cached inverse over the student's pass", str(ratio(cached, own, cpu=True))),
        Number(f"{name}: student's density over the teacher's", str(ratio(times["student, density"], times["teacher, density"], cpu=True))),
        Number(f"{name}: draws after which the distillation's time is won back from the cached inverse", pays),
    ]  # fmt: skip


def one_task(name: str, subject: Any, size: Size, folder: Path, seed: int) -> list[Number]:
    """Train, distill, time, draw."""
    teacher, student, spent = taught(subject, size, folder, seed)
    x = sf.draw_pairs(subject, 1, seed=OBSERVED).x[0]
    draws, others = teacher.sample(x, size.draws, seed=seed), student.sample(x, size.draws, seed=seed)
    if teacher.prior.dim <= 5:
        page = draws.corner(overlay={"student": others}, label="teacher")
        save_figure(page, folder / f"{subject.name}.png")
    return lines_of(name, student, spent, clocks(teacher, student, x, size), size)


def main() -> None:
    arguments = options(__doc__ or "", threads=1)
    torch.set_num_threads(arguments.threads)
    size, folder = FAST if arguments.fast else FULL, output_folder(NAME, arguments.fast)
    numbers: list[Number] = []
    for name, subject in subjects(arguments.fast).items():
        numbers += one_task(name, subject, size, folder, arguments.seed)
        print(*(f"{n.what}: {n.measured}" for n in numbers[-11:]), sep="\n", flush=True)
    title = "Distillation: a student beside its teacher" + (
        " (--fast: proves nothing)" if arguments.fast else ""
    )
    report_numbers(title, numbers, folder, arguments)


if __name__ == "__main__":
    main()
