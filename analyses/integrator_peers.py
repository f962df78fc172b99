"""One call for each method of integration that is compared: ours, vegas (>= 6.4) and madnis (>= 1.0).

`METHODS[name](integrand, budget, seed)` returns a Run. The peers see the unit cube: other limits are mapped
to it as a user would, x = low + u/(1 − u) to infinity and x = t/(1 − t²), t = 2u − 1, on the whole line. A
logarithm they cannot take; they get exp(f − truth), a scale that a user would have to find first.

What a careful user of vegas does, and what reproduces its figures in the issue: ten iterations adapt with
half of the budget and are thrown away, ten further ones, still adapting, estimate with the other half.
Tried as well: 5 + 10 iterations with a third for the first, 0 + 10, and adapt=False at the end. None of
them is better on every integrand; the last two are clearly worse on gauss16, poly18 and ridge8. Q < 0.05
counts as a warning.

madnis trains with 60 % of the budget: a tenth of that is its VEGAS pre-training, the rest goes to a flow of
its default size by KL divergence, Adam with a cosine schedule from 3e-3, and further steps on its replay
buffer (three for each on new points at 1e5, one above). It has no warning of its own.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from analyses.integrands import Array, Integrand, namespace, unit_cube
from sbiflow.integrate import Integrator
from sbiflow.optional import require

WARM_UP, FINAL = 10, 10  # iterations of vegas
SUSPICIOUS = 0.05  # Q of vegas
TRAINING, PRE_TRAINING = 0.6, 0.06  # shares of madnis' budget
BUFFER = 200_000


@dataclass(frozen=True)
class Run:
    """One estimate.

    Args:
        error: estimate / truth − 1.
        sigma: the standard error that the method reports, over |truth|.
        n_evals, n_train: calls of the integrand in all, and of those the ones that are not in the estimate.
        seconds, cpu_seconds: on the clock and on the CPU, all included; seconds_integrand: inside the
            integrand.
        chi2_dof, q: consistency of the iterations, and its p-value; NaN where there is none.
        warned: something was said that makes a user look again.
        reliable: the method's own verdict; None if it has none. remarks: its words.
    """

    method: str
    integrand: str
    budget: int
    seed: int
    error: float
    sigma: float
    n_evals: int
    n_train: int
    seconds: float
    cpu_seconds: float
    seconds_integrand: float
    chi2_dof: float = math.nan
    q: float = math.nan
    warned: bool = False
    reliable: bool | None = None
    remarks: tuple[str, ...] = ()


class Counted:
    """An integrand that counts its rows and the time spent in it; on the unit cube if `mapped`."""

    def __init__(self, integrand: Integrand, mapped: bool) -> None:
        self.rows, self.seconds = 0, 0.0
        self._f = on_unit_cube(integrand) if mapped else integrand.f

    def __call__(self, x: Array) -> Array:
        start = time.perf_counter()
        values = self._f(x)
        self.seconds += time.perf_counter() - start
        self.rows += len(x)
        return values


def on_unit_cube(integrand: Integrand) -> Callable[[Array], Array]:
    """f dx/du of u in the unit cube; of a log integrand exp(f − truth) dx/du. NaN and inf become 0."""
    if integrand.bounds == unit_cube(integrand.dim) and not integrand.log:
        return integrand.f

    def mapped(u: Array) -> Array:
        xp = namespace(u)
        axes = [_axis(u[:, i], *pair) for i, pair in enumerate(integrand.bounds)]
        values = integrand.f(xp.stack([x for x, _ in axes], 1))
        values = xp.exp(values - integrand.truth) if integrand.log else values
        return xp.nan_to_num(values * math.prod(slope for _, slope in axes), nan=0.0, posinf=0.0)

    return mapped


def _axis(u: Array, low: float, high: float) -> tuple[Array, Array]:
    """(x, dx/du)."""
    if math.isfinite(low) and math.isfinite(high):
        return low + (high - low) * u, high - low
    if math.isfinite(low):
        return low + u / (1 - u), 1 / (1 - u) ** 2
    if math.isfinite(high):
        return high - (1 - u) / u, 1 / u**2
    t = 2 * u - 1
    return t / (1 - t * t), 2 * (1 + t * t) / (1 - t * t) ** 2


def ours(integrand: Integrand, budget: int, seed: int) -> Run:
    """sbiflow.Integrator with its defaults."""
    f, clock = Counted(integrand, mapped=False), Clock()
    result = Integrator(integrand.bounds)(
        f, budget, seed=seed, log=integrand.log, calls="numpy", progress=False
    )
    found = (
        float(np.ravel(result.mean)[0]),
        float(np.ravel(result.sdev)[0]),
        result.log_mean,
        result.log_sdev,
    )
    error, sigma = integrand.relative(*found)
    return Run(
        **_case("ours", integrand, budget, seed, f, clock),
        error=error,
        sigma=sigma,
        n_train=result.n_train,
        chi2_dof=result.chi2 / result.dof if result.dof else math.nan,
        q=result.Q,
        warned=bool(result.warnings) or not result.reliable,
        reliable=result.reliable,
        remarks=(result.method, *([] if result.reliable else [result.verdict]), *result.warnings),
    )


def by_vegas(integrand: Integrand, budget: int, seed: int) -> Run:
    """vegas as the module says. Its generator is gvar's."""
    vegas, gvar = require("vegas", extra="bench"), require("gvar", extra="bench")
    f, clock = Counted(integrand, mapped=True), Clock()
    gvar.ranseed(seed)
    integrator, batched = vegas.Integrator(unit_cube(integrand.dim)), vegas.lbatchintegrand(f)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        integrator(batched, nitn=WARM_UP, neval=budget // 2 // WARM_UP)
        n_train = f.rows
        result = integrator(batched, nitn=FINAL, neval=budget // 2 // FINAL)
    truth = 1.0 if integrand.log else integrand.truth
    error, sigma = result.mean / truth - 1, result.sdev / abs(truth)
    return Run(
        **_case("vegas", integrand, budget, seed, f, clock),
        error=error,
        sigma=sigma,
        n_train=n_train,
        chi2_dof=result.chi2 / result.dof,
        q=result.Q,
        warned=bool(result.Q < SUSPICIOUS),
    )


def by_madnis(integrand: Integrand, budget: int, seed: int) -> Run:
    """madnis as the module says, in float64."""
    madnis = require("madnis.integrator", extra="bench")
    f, clock = Counted(integrand, mapped=True), Clock()
    torch.manual_seed(seed)
    batch, replays = (1024, 3) if budget <= 100_000 else (2048, 1)
    online = int((TRAINING - PRE_TRAINING) * budget) // batch
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of batches without a single non-zero value
        flow = _pretrained(madnis, f, integrand.dim, budget, seed, batch, online * (1 + replays), replays)
        flow.train(online * (1 + replays))
        n_train = f.rows
        mean, sdev = flow.integrate(budget - n_train)
    truth = 1.0 if integrand.log else integrand.truth
    return Run(
        **_case("madnis", integrand, budget, seed, f, clock),
        error=mean / truth - 1,
        sigma=sdev / abs(truth),
        n_train=n_train,
    )


def _case(
    method: str, integrand: Integrand, budget: int, seed: int, f: Counted, clock: Clock
) -> dict[str, Any]:
    """What every Run has."""
    seconds, cpu = clock.read()
    return {
        "method": method,
        "integrand": integrand.name,
        "budget": budget,
        "seed": seed,
        "n_evals": f.rows,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "seconds_integrand": f.seconds,
    }


def _pretrained(
    madnis: Any, f: Counted, dim: int, budget: int, seed: int, batch: int, steps: int, replays: int
) -> Any:
    """Its Integrator, begun with a VEGAS grid unless that found nothing or is too fine for its splines."""

    def fresh() -> Any:
        return madnis.Integrator(
            f,
            dims=dim,
            batch_size=batch,
            learning_rate=3e-3,
            scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
            buffer_capacity=BUFFER,
            buffered_steps=replays,
            batch_size_threshold=-1.0,  # draw once: by default it draws until half of a batch is non-zero
            dtype=torch.float64,
        )

    flow = fresh()
    grid = madnis.VegasPreTraining(flow)
    grid.rng = np.random.default_rng(seed)
    try:
        grid.train([int(PRE_TRAINING * budget) // 7] * 7)
    except ZeroDivisionError:  # it divides by the integral, and every value was zero
        return fresh()
    grid.initialize_integrator()
    finite = all(bool(torch.isfinite(p).all()) for p in flow.parameters())
    return flow if finite else fresh()


class Clock:
    """Seconds since it was made, on the clock and on the CPU (all threads)."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._start[0], time.process_time() - self._start[1]


METHODS: dict[str, Callable[[Integrand, int, int], Run]] = {
    "ours": ours,
    "vegas": by_vegas,
    "madnis": by_madnis,
}
