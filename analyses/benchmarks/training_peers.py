"""One training of each library on the same frozen pairs: ours, sbi (NPE) and BayesFlow.

`METHODS[name](problem, case)` trains and returns a `Trained`: the clocks stop when a posterior can be used, and
log q(theta | x) of the held-out pairs is evaluated after that, in physical units, for all of them alike.

ours: `sbiflow.train` with its defaults, from the store on disk, but for the number of steps, of which a case may ask a
share (the schedule is annealed to zero over the steps it gets, so a shorter run is a run of its own).
"maf" is FlowConfig("maf"), "nsf" our spline coupling, FlowConfig().

sbi: `NPE(prior, density_estimator).append_simulations(theta, x).train()`, `build_posterior()`, with its defaults: batch
200, Adam at 5e-4, 10 % validation, stop after 20 epochs without improvement, 5 transforms of 50 hidden units. Its flow
lives on all of R^D: with a bounded prior some of its mass leaks out of the support. What it trains on and is judged by
is the density of that flow as it is; `leak` is what its posterior adds to it when it divides by the mass inside.
Its tracker writes nothing, which spares it the files that it would write at the end.

bayesflow: `BasicWorkflow` with its coupling flow and its defaults: 100 epochs of batches of 32, AdamW at 5e-4 with a
cosine schedule, no validation; x is standardised as well as theta, of its own accord it does that to theta only. Its flow
leaks as sbi's does. Importing it turns autograd off: one process per run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Independent, LogNormal, Normal, Uniform

import sbiflow as sf
from sbiflow.families import FlowConfig
from sbiflow.optional import require
from sbiflow.priors import Prior
from sbiflow.store import Store
from simulators.benchmark import Frozen, Task, frozen, task

CLOSE = 0.01  # nats from the best of a validation curve that count as having reached it
FAMILIES = {"maf": FlowConfig("maf"), "nsf": FlowConfig()}
_TEST_SEED = 1_000_003  # of the held-out pairs; no training seed
_CHUNK = 2000
_LEAK_ROWS, _LEAK_DRAWS = 500, 200
_TORCH = {
    "Uniform": (Uniform, ("low", "high")),
    "Normal": (Normal, ("mean", "sd")),
    "LogNormal": (LogNormal, ("mean_log", "sd_log")),
}


@dataclass(frozen=True)
class Case:
    """One training: what is trained how on which pairs. `budget` is the share of our default number of steps.

    Of the others everything but 1 is a warm-up: that share of 100 epochs.
    """

    method: str
    task: str
    family: str
    n: int
    seed: int
    budget: float = 1.0


@dataclass(frozen=True)
class Problem:
    """Frozen pairs of a task: a store of n of them, and theta (m, D) float64, x (m, *x_shape) held out."""

    simulator: Frozen[Task]
    store: Store
    theta_test: Tensor
    x_test: Tensor


@dataclass(frozen=True)
class Trained:
    """A training and its posterior.

    Args:
        seconds, cpu_seconds: from the pairs to a posterior, on the clock and of all threads.
        seconds_close: when the method's own validation curve first came within CLOSE of its best; None without one.
        steps, batch, parameters: optimiser steps taken, their rows, trained numbers of the whole network.
        log_prob: (m,) log q(theta | x) of the held-out pairs, per physical units.
        leak: mean of -log of q's mass inside the prior's support over the held-out observations; 0 where it is 1.
    """

    seconds: float
    cpu_seconds: float
    seconds_close: float | None
    steps: int
    batch: int
    parameters: int
    log_prob: Tensor
    leak: float = 0.0


@dataclass
class Clock:
    """Seconds on the clock and of the process since it was made."""

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.wall, "cpu_seconds": time.process_time() - self.cpu}


def make_problem(name: str, n: int, seed: int, test: int, folder: Path) -> Problem:
    """Simulated once and kept in `folder`; the held-out pairs are the same for every n and seed."""
    simulator = frozen(task(name))
    stores = [
        sf.simulate(simulator, rows, folder / f"{name}-{rows}-{key}.h5", seed=key, progress=False)
        for rows, key in ((n, seed), (test, _TEST_SEED))
    ]
    theta, x = map(torch.from_numpy, stores[1].read(stores[1].valid_rows()))
    return Problem(simulator, stores[0], theta, x.float())


def first_close(curve: list[float], margin: float = CLOSE) -> int:
    """Index of the first validation loss within `margin` of the least.

    >>> first_close([2.0, 1.005, 1.3, 1.0])
    1
    """
    return next(i for i, loss in enumerate(curve) if loss <= min(curve) + margin)


def parameters(module: torch.nn.Module) -> int:
    """Trained numbers."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def ours(problem: Problem, case: Case) -> Trained:
    """sbiflow.train with its defaults for the family, and `budget` of its default steps."""
    config = sf.TrainConfig(seed=case.seed)
    steps = config.resolved(problem.store.n_ok).steps or 0
    config = sf.TrainConfig(seed=case.seed, steps=max(round(case.budget * steps), 1))
    clock = Clock()
    store = Store.open(problem.store.path)
    posterior = sf.train(store, problem.simulator, config, flow=FAMILIES[case.family], progress=False)
    spent = clock.read()
    log = posterior.log
    reached = log.validation_step[first_close(log.validation_loss)] / max(posterior.info.steps, 1)
    return Trained(
        **spent,
        seconds_close=spent["seconds"] - log.seconds * (1 - reached),
        steps=posterior.info.steps,
        batch=posterior.info.training["batch"],
        parameters=parameters(posterior.flow),
        log_prob=posterior.log_prob(problem.theta_test, problem.x_test),
    )


class _NoTracker:
    """sbi's Tracker protocol, without its files."""

    log_dir = None

    def log_metric(self, name: str, value: float, step: int | None = None) -> None: ...
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...
    def log_params(self, params: dict[str, Any]) -> None: ...
    def add_figure(self, name: str, figure: Any, step: int | None = None) -> None: ...
    def flush(self) -> None: ...


def torch_prior(prior: Prior) -> Any:
    """The prior as sbi takes it: of uniform, normal and lognormal marginals, all of one kind or mixed.

    Raises:
        ValueError: a marginal of another kind.
    """
    kinds, columns = [], []
    for spec in prior.spec():
        if spec["kind"] not in _TORCH:
            raise ValueError(f"{spec['name']}: expected one of {', '.join(_TORCH)}, got {spec['kind']}")
        kind, names = _TORCH[spec["kind"]]
        kinds.append(kind)
        columns.append(torch.tensor([spec[name] for name in names]))
    if len(set(kinds)) == 1:
        return Independent(kinds[0](*torch.stack(columns, 1)), 1)
    joint = require("sbi.utils.user_input_checks_utils", extra="bench").MultipleIndependent
    return joint([kind(*column[:, None]) for kind, column in zip(kinds, columns, strict=True)])


def by_sbi(problem: Problem, case: Case) -> Trained:
    """sbi's NPE with its defaults."""
    inference = require("sbi.inference", extra="bench")
    theta, x = map(torch.from_numpy, problem.store.read(problem.store.valid_rows()))
    theta, x = theta.float(), x.float()
    prior = torch_prior(problem.simulator.prior)
    torch.manual_seed(case.seed)
    clock = Clock()
    trainer = inference.NPE(
        prior=prior, density_estimator=case.family, tracker=_NoTracker(), show_progress_bars=False
    )
    limit = {} if case.budget == 1 else {"max_num_epochs": case_epochs(case)}
    estimator = trainer.append_simulations(theta, x).train(**limit)
    trainer.build_posterior(estimator)
    spent = clock.read()
    epochs = list(accumulate(trainer.summary["epoch_durations_sec"]))
    close = epochs[first_close(trainer.summary["validation_loss"])]
    batches = int(0.9 * len(theta)) // min(200, int(0.9 * len(theta)))
    return Trained(
        **spent,
        seconds_close=spent["seconds"] - epochs[-1] + close,
        steps=len(epochs) * batches,
        batch=200,
        parameters=parameters(estimator),
        log_prob=_sbi_log_prob(estimator, problem),
        leak=_sbi_leak(estimator, problem),
    )


@torch.no_grad()
def _sbi_log_prob(estimator: Any, problem: Problem) -> Tensor:
    pairs = zip(problem.theta_test.float().split(_CHUNK), problem.x_test.split(_CHUNK), strict=True)
    return torch.cat([estimator.log_prob(theta[None], condition=x)[0].double() for theta, x in pairs])


@torch.no_grad()
def _sbi_leak(estimator: Any, problem: Problem) -> float:
    """From draws for the first held-out observations; those with none inside count as one in 2 x draws."""
    draws = estimator.sample((_LEAK_DRAWS,), condition=problem.x_test[:_LEAK_ROWS])
    inside = problem.simulator.prior.inside(draws.double().flatten(0, 1)).reshape(draws.shape[:2])
    return float(-inside.double().mean(0).clamp(min=0.5 / _LEAK_DRAWS).log().mean())


def by_bayesflow(problem: Problem, case: Case) -> Trained:
    """BayesFlow's coupling flow (its own, affine, whatever the family) with the defaults of its workflow."""
    os.environ["KERAS_BACKEND"] = "torch"
    bayesflow, keras = require("bayesflow", extra="bench"), require("keras", extra="bench")
    theta, x = problem.store.read(problem.store.valid_rows())
    keras.utils.set_random_seed(case.seed)
    clock = Clock()
    workflow = bayesflow.BasicWorkflow(
        inference_network="coupling_flow",
        inference_variables="theta",
        inference_conditions="x",
        standardize="all",
    )
    history = workflow.fit_offline(_named(theta, x), epochs=case_epochs(case), verbose=0)
    spent = clock.read()
    test = _named(problem.theta_test.numpy(), problem.x_test.numpy())
    return Trained(
        **spent,
        seconds_close=None,
        steps=len(history.history["loss"]) * -(-len(theta) // 32),
        batch=32,
        parameters=int(sum(np.prod(v.shape) for v in workflow.approximator.trainable_variables)),
        log_prob=torch.from_numpy(np.asarray(workflow.log_prob(test), dtype=np.float64)),
    )


def case_epochs(case: Case) -> int:
    """BayesFlow's 100, or a share of them; a warm-up's of sbi, which has no limit of its own."""
    return max(round(100 * case.budget), 1)


def _named(theta: Any, x: Any) -> dict[str, np.ndarray]:
    return {"theta": np.asarray(theta, np.float32), "x": np.asarray(x, np.float32).reshape(len(x), -1)}


METHODS: dict[str, Callable[[Problem, Case], Trained]] = {
    "ours": ours,
    "sbi": by_sbi,
    "bayesflow": by_bayesflow,
}
