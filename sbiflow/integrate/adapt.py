"""How the proposal adapts: first the grid, then the flow on what the grid cannot factorise.

The target is tempered, |f|^β: β is the largest for which the latest draws are worth a set share of their number, and
it rises round by round to one. A concentrated integrand is approached through broader ones, so the flow never learns
from a handful of points.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from rich.progress import Progress
from torch import Tensor

from sbiflow.integrate.learn import Learner, falling, likelihood, settling, variance
from sbiflow.integrate.run import Run, Sample, iteration
from sbiflow.integrate.tempering import highest_beta, tempered
from sbiflow.seeding import torch_generator

_NETS = 16  # per iteration: what the nets say of the variance is good to a factor of two
_GRID_ESS, _FLOW_ESS = 0.05, 0.2  # of the draws, for the next β
_NEGLIGIBLE = 3e-3  # relative variance per evaluation: 5e-5 at 10^6; no flow is trained for less
_SMALLEST_ROUND = 400
_SMALLEST_GRID = 256
_FEWEST_HITS = 100  # evaluations that are not zero; exploration goes on below that
_ROUND_ROWS = 0.4  # share of the training rows that the rounds have, before the last training
_LEARN_KEY = 0x4C52


@dataclass(frozen=True)
class Cost:
    """What a proposal costs: relative variance per evaluation, time per draw, and once (evaluations and seconds).

    Times are without the integrand's.
    """

    variance: float = math.inf
    per_draw: float = math.nan
    evaluations: int = 0
    seconds: float = 0.0


def break_even(grid: Cost, flow: Cost, n: int) -> float:
    """Time per evaluation [s] above which the flow's error after n final evaluations costs the grid alone more.

    With c the time per evaluation and m = n v_grid / v_flow, the evaluations that the grid alone needs for it:
    m (c + t_grid) = n (c + t_flow) + n_training c + T_training. NaN if one of them was not measured.
    """
    if not (math.isfinite(grid.variance) and 0 < flow.variance < math.inf):
        return math.nan
    rival = n * grid.variance / flow.variance
    fewer = rival - n - flow.evaluations
    if fewer <= 0:
        return math.inf
    return max((n * flow.per_draw + flow.seconds - rival * grid.per_draw) / fewer, 0.0)


def _cost(run: Run, sample: Sample) -> Cost:
    """Of going on as for this sample, in the nets of the final estimate."""
    points = (1 - run.config.train_share) * (run.used + run.integrand.remaining) / run.config.replicas
    return Cost(sample.variance(points), sample.seconds / len(sample.y))


def adapt_grid(run: Run, bar: Progress) -> Cost:
    """Refine the grids."""
    config, budget = run.config, run.used + run.integrand.remaining
    n = max(int(budget * config.grid_share / config.grid_iterations), min(_SMALLEST_GRID, budget // 8))
    rounds = max(min(config.grid_iterations, int(budget * config.train_share) // n), 1)
    found, index, hits = Cost(), 0, 0
    while index < rounds or (hits < _FEWEST_HITS and run.used + n <= config.train_share * budget):
        sample = run.step("grid" if index else "explore", n, _NETS)
        found, index = _cost(run, sample), index + 1
        hits += len(run.replay.batches[-1].y)
        run.tell(bar, "grid")
        if index < rounds:
            _refine(run, sample)
    return found


def _refine(run: Run, sample: Sample) -> None:
    log_f, log_q = sample.values.log_abs, sample.log_q
    beta = highest_beta(log_f, log_q, _GRID_ESS)
    log_size = 2 * tempered(log_f, log_q, beta)
    if len(run.proposal.parts) > 1:
        run.proposal.reweigh(sample.y, log_size / 2)
    for number, chart in enumerate(run.proposal.parts):
        rows = (sample.part == number).nonzero()[:, 0]
        chart.grid.refine(sample.latent[rows], log_size[rows])


def worth_a_flow(run: Run, variance_of_grid: float, rtol: float) -> bool:
    """Whether to train: enough evaluations to learn from, and a variance of the grid that is worth reducing."""
    if run.config.method != "auto":
        return run.config.method == "flow"
    enough = _round_size(run) >= _SMALLEST_ROUND
    good = variance_of_grid < max(_NEGLIGIBLE, rtol**2 * run.integrand.remaining)
    return enough and not good and any(len(batch.y) for batch in run.replay.batches)


def _round_size(run: Run) -> int:
    budget = run.used + run.integrand.remaining
    return int((run.config.train_share * budget - run.used) / run.config.rounds)


def adapt_flow(run: Run, bar: Progress, trained: bool) -> Cost:
    """Train the flows; the variance is that of the last draw, before the last training.

    Args:
        trained: the flows already know a target of this kind (a second call, a warm start).
    """
    config, budget = run.config, run.used + run.integrand.remaining
    before, begin = run.used, time.perf_counter() - run.integrand.seconds
    if not trained:
        for chart in run.proposal.parts:
            chart.lay_grid()
    learner = Learner(run.proposal, config, torch_generator(run.seed, _LEARN_KEY))
    learner.whitened = trained
    steps = config.steps(run.proposal.dim, config.train_share * budget)
    per_round = max(int(_ROUND_ROWS * steps / config.rounds), 1)
    n = max(_round_size(run), min(_SMALLEST_ROUND, run.integrand.remaining // 4))
    last = run.replay.recent()
    beta = 1.0 if trained or not last else highest_beta(last[-1].log_f, last[-1].log_q, _FLOW_ESS)
    found, done = Cost(), 0
    while run.used + n <= (config.train_share if beta == 1.0 else config.most_share) * budget:
        start = time.perf_counter()
        batches = run.replay.all() if beta == 1.0 else run.replay.recent()
        if batches and not (trained and done == 0):
            learner.fit(batches, beta, 0.0, likelihood, per_round, settling)
            run.proposal.use_flow(True)
        sample = run.step("flow" if beta == 1.0 else "anneal", n, _NETS, beta, time.perf_counter() - start)
        found, done = _cost(run, sample), done + 1
        beta = highest_beta(sample.values.log_abs, sample.log_q, _FLOW_ESS)
        run.tell(bar, "flow", f"beta {beta:.2g}, ESS {run.iterations[-1].ess:.0%}")
    if run.replay.all():
        last_steps = steps - int(_ROUND_ROWS * steps)
        learner.fit(run.replay.all(), 1.0, run.replay.log_integral(), variance, last_steps, falling)
    run.skipped_steps = learner.skipped
    return replace(
        found, evaluations=run.used - before, seconds=time.perf_counter() - run.integrand.seconds - begin
    )


def look_around(run: Run) -> None:
    """Uniform points: they show what a start lacks, and the flow learns it, or the alarms tell of it."""
    begin = time.perf_counter()
    sample = run.draw_uniform(int(run.config.explore_share * run.integrand.remaining), _NETS)
    run.remember(sample)
    run.iterations.append(iteration("explore", sample, 1.0, time.perf_counter() - begin))


def warm_start(run: Run, y: Tensor) -> None:
    """Grid and flow from points y (m, D) in the cube that are distributed roughly as |f|; costs no evaluation."""
    zero = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    if len(run.proposal.parts) == 1:
        (chart,) = run.proposal.parts
        chart.grid.fit(y if chart.from_cube is None else chart.from_cube(y)[0])
        chart.lay_grid()
    learner = Learner(run.proposal, run.config, torch_generator(run.seed, _LEARN_KEY, 1))
    run.replay.add(y, zero, zero)
    evaluations = run.config.train_share * run.integrand.remaining
    steps = run.config.steps(run.proposal.dim, max(len(y), evaluations)) // 2
    learner.fit(run.replay.batches, 1.0, 0.0, likelihood, steps, falling)
    run.replay.batches.clear()
    run.proposal.use_flow(True)
