"""The final estimate: independent nets from a proposal that no longer changes.

The proposal was fixed before the first of these points was drawn, so the mean of the nets' means is unbiased, and
their spread is an honest error whatever the integrand: nothing is assumed of how fast the error of a net falls.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch import Tensor

from sbiflow.integrate.iterations import Iteration
from sbiflow.integrate.nets import floor_log2
from sbiflow.integrate.run import Run, iteration

_GROUPS = 4  # lines of the table
_FEWEST = 16  # nets before a tolerance may end the run


@dataclass(frozen=True)
class Estimate:
    """Moments and weights of the final stage; means are over exp(log_unit).

    Attributes:
        mean: (K,); covariance: of the mean, (K, K), from the spread of the nets.
        log_weights: log |f_0| / q of every point, (n,).
        nets: R.
        reached: whether a tolerance ended the run early.
    """

    mean: Tensor
    covariance: Tensor
    log_unit: float
    log_weights: Tensor
    nets: int
    reached: bool
    iterations: tuple[Iteration, ...]


def estimate(run: Run, bar: Progress, rtol: float, atol: float) -> Estimate:
    """Spend what is left of the budget, or stop where sdev <= max(atol, rtol |mean|)."""
    size = floor_log2(max(run.integrand.remaining / run.config.replicas, 1))
    count = run.integrand.remaining >> size
    log_unit = _log_unit(run)
    means: list[Tensor] = []
    weights: list[Tensor] = []
    rows: list[Iteration] = []
    reached = False
    per_group = -(-count // _GROUPS)
    while len(means) < count and not reached:
        start = time.perf_counter()
        nets = min(per_group if not (rtol or atol) else 8, count - len(means))
        sample = run.draw(nets << size, nets)
        if not math.isfinite(log_unit):
            log_unit = float(sample.log_weights.max()) if len(sample.y) else 0.0
            log_unit = log_unit if math.isfinite(log_unit) else 0.0
        means += list(sample.net_means(log_unit))
        weights.append(sample.log_weights)
        rows.append(iteration("final", sample, 1.0, time.perf_counter() - start))
        found = torch.stack(means)
        mean, sdev = float(found[:, 0].mean()), float(found[:, 0].std()) / math.sqrt(len(means))
        limit = max(atol * math.exp(min(-log_unit, 700.0)), rtol * abs(mean))
        reached = len(means) >= _FEWEST and sdev <= limit
        run.tell(bar, "final", f"± {sdev / abs(mean):.1e}" if mean else "")
    found = torch.stack(means)
    covariance = torch.cov(found.T).reshape(found.shape[1], found.shape[1]) / len(found)
    return Estimate(found.mean(0), covariance, log_unit, torch.cat(weights), len(found), reached, tuple(rows))


def _log_unit(run: Run) -> float:
    """Means are summed in units of what is known of the integral."""
    if not any(len(batch.y) for batch in run.replay.batches):
        return -math.inf
    return run.replay.log_integral()
