"""One integration under way: what is drawn, evaluated, remembered and shown."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from sbiflow.integrate.config import IntegratorConfig
from sbiflow.integrate.integrand import Integrand
from sbiflow.integrate.iterations import Iteration
from sbiflow.integrate.nets import floor_log2, net
from sbiflow.integrate.proposal import Proposal
from sbiflow.integrate.replay import Batch, Replay
from sbiflow.integrate.tempering import ess
from sbiflow.integrate.values import Values
from sbiflow.pareto import psis_khat

Draw = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]

_ENOUGH_NETS = 8


@dataclass(frozen=True)
class Sample:
    """A batch of R nets with their values; rows of one net are contiguous.

    `seconds` is the time to draw, without the integrand's.
    """

    latent: Tensor
    y: Tensor
    log_q: Tensor
    part: Tensor
    values: Values
    nets: int
    seconds: float

    @property
    def log_weights(self) -> Tensor:
        """log |f_0| / q."""
        return self.values.log_abs - self.log_q

    def net_means(self, log_unit: float) -> Tensor:
        """Mean weights of each net over exp(log_unit), (R, K)."""
        weights = self.values.over(self.log_q + log_unit)
        return weights.reshape(self.nets, -1, weights.shape[1]).mean(1)

    def variance(self, points: float) -> float:
        """Relative variance per evaluation in nets of so many points: that of an estimate, times n, over (∫|f|)².

        Extrapolated as a power of the size of a net, from single points to the nets at hand. inf if unknown.
        """
        top = float(self.log_weights.max())
        if not math.isfinite(top) or self.nets < 2:
            return math.inf
        weights, size = self.values.over(self.log_q + top)[:, 0], len(self.y) / self.nets
        scale = float(weights.abs().mean()) ** 2
        alone, here = float(weights.var()) / scale, float(self.net_means(top)[:, 0].var()) / scale * size
        if not (here > 0 and size > 1):
            return here
        power = min(max(math.log(alone / here) / math.log(size), 0.0), 1.0)
        return alone * max(points, 1.0) ** -power


def uniform(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points of a net as they are, as `Proposal.draw` returns them: y (n, D), log q = 0 and part −1, (n,)."""
    zero = points.new_zeros(len(points))
    return points[:, :-1], zero, torch.full_like(zero, -1, dtype=torch.long)


@dataclass
class Run:
    """State of one call of the integrator."""

    proposal: Proposal
    integrand: Integrand
    config: IntegratorConfig
    seed: int
    device: torch.device
    show: bool
    replay: Replay = field(default_factory=Replay)
    iterations: list[Iteration] = field(default_factory=list)
    drawn: int = 0
    skipped_steps: int = 0

    @property
    def used(self) -> int:
        """Evaluations so far."""
        return self.integrand.n_evals

    def draw(self, n: int, nets: int) -> Sample:
        """At most n points in at least `nets` (of 2^k points each) from the proposal, evaluated."""
        return self._evaluated(n, nets, self.proposal.draw)

    def draw_uniform(self, n: int, nets: int) -> Sample:
        """As `draw`, but uniform in the cube."""
        return self._evaluated(n, nets, uniform)

    def _evaluated(self, n: int, nets: int, draw: Draw) -> Sample:
        size = floor_log2(max(n // nets, 1))
        count = max(n >> size, 1)
        start, inside = time.perf_counter(), self.integrand.seconds
        keys = range(self.drawn, self.drawn + count)
        points = torch.cat([net(size, self.proposal.dim + 1, self.seed, key) for key in keys])
        self.drawn += count
        points = points.to(self.device)
        y, log_q, part = draw(points)
        values = self.integrand(y)
        seconds = time.perf_counter() - start - (self.integrand.seconds - inside)
        return Sample(points[:, :-1], y, log_q, part, values, count, seconds)

    def step(self, phase: str, n: int, nets: int, beta: float = 1.0, seconds: float = 0.0) -> Sample:
        """Draw for training: remembered in the replay and in the table. `seconds` were spent to prepare it."""
        start = time.perf_counter()
        sample = self.draw(n, nets)
        self.remember(sample)
        self.iterations.append(iteration(phase, sample, beta, seconds + time.perf_counter() - start))
        return sample

    def remember(self, sample: Sample) -> Batch:
        """Into the replay."""
        return self.replay.add(sample.y, sample.values.log_abs, sample.log_q)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A bar of evaluations that shows the phase and the estimate."""
        columns = (
            TextColumn("{task.description:8}"), BarColumn(12), MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"), TimeElapsedColumn(),
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True), disable=not self.show, transient=True) as bar:
            bar.add_task("explore", total=self.used + self.integrand.remaining, state="")
            yield bar

    def tell(self, bar: Progress, phase: str, state: str = "") -> None:
        """Update the bar."""
        bar.update(bar.task_ids[0], completed=self.used, description=phase, state=state)


def iteration(phase: str, sample: Sample, beta: float, seconds: float) -> Iteration:
    """The line of the table for one sample; its sdev is from the spread of the nets, of the weights if they are few."""
    log_w, n = sample.log_weights, len(sample.y)
    top = float(log_w.max())
    if not math.isfinite(top):
        return Iteration(phase, n, 0.0, math.inf, -math.inf, 0.0, math.nan, beta, seconds)
    w = sample.values.sign * (log_w - top).exp()
    means = w.reshape(sample.nets, -1).mean(1) if sample.nets >= _ENOUGH_NETS else w
    mean, sdev = float(w.mean()), float(means.std()) / math.sqrt(len(means))
    log_mean = math.log(abs(mean)) + top if mean else -math.inf
    return Iteration(
        phase=phase,
        n=n,
        mean=times_exp(mean, top),
        sdev=times_exp(sdev, top),
        log_mean=log_mean,
        ess=ess(log_w) / n,
        khat=psis_khat(log_w),
        beta=beta,
        seconds=seconds,
        log_sdev=sdev / abs(mean) if mean else math.inf,
    )


def times_exp(value: float, log_factor: float) -> float:
    """value · exp(log_factor), 0 or ±inf where that is no double."""
    if not value:
        return 0.0
    total = math.log(abs(value)) + log_factor
    return math.copysign(math.exp(total) if total < 709 else math.inf, value)
