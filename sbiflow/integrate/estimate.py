"""The final estimate: independent nets from a proposal that no longer changes.

The proposal was fixed before the first of these points was drawn, so the mean of the nets' means is unbiased, and
their spread is an honest error whatever the integrand: nothing is assumed of how fast the error of a net falls.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from rich.progress import Progress
from torch import Tensor

from sbiflow.integrate.iterations import Iteration
from sbiflow.integrate.nets import floor_log2
from sbiflow.integrate.run import Run, Sample, iteration

_GROUPS = 4  # lines of the table
_FEWEST = 16  # nets before a tolerance may end the run
_SMALLEST_NET = 32
_MARGIN = 1.5  # on the evaluations that a tolerance is expected to need


@dataclass
class Estimate:
    """What the final stage has found so far; each group of nets is summed over its own power of e.

    Attributes:
        log_weights: log |f_0| / q of the points, (n,) per group.
    """

    units: list[float] = field(default_factory=list)
    means: list[Tensor] = field(default_factory=list)
    log_weights: list[Tensor] = field(default_factory=list)
    iterations: list[Iteration] = field(default_factory=list)

    def add(self, sample: Sample, seconds: float) -> None:
        """Take a group of nets."""
        top = float((sample.values.log_scale - sample.log_q).max())
        self.units.append(top if math.isfinite(top) else -math.inf)
        self.means.append(sample.net_means(top if math.isfinite(top) else 0.0))
        self.log_weights.append(sample.log_weights)
        self.iterations.append(iteration("final", sample, 1.0, seconds))

    @property
    def log_unit(self) -> float:
        """The common power of e of `net_means`; 0 if every value is zero."""
        unit = max(self.units, default=-math.inf)
        return unit if math.isfinite(unit) else 0.0

    @property
    def net_means(self) -> Tensor:
        """(R, K), over exp(log_unit)."""
        pairs = zip(self.means, self.units, strict=True)
        return torch.cat([mean * math.exp(unit - self.log_unit) for mean, unit in pairs])

    @property
    def covariance(self) -> Tensor:
        """Of the mean of the nets, (K, K), over exp(2 log_unit)."""
        means = self.net_means
        return torch.cov(means.T).reshape(means.shape[1], means.shape[1]) / len(means)


def estimate(run: Run, bar: Progress, variance: float, rtol: float, atol: float) -> Estimate:
    """Spend what is left of the budget, or stop where sdev <= max(atol, rtol |mean|).

    Args:
        variance: relative, per evaluation, as the last draw from the proposal has shown it.
    """
    size = _net_size(run, variance, rtol)
    left = run.integrand.remaining >> size
    per_group = run.config.replicas // _GROUPS if rtol or atol else -(-left // _GROUPS)
    found = Estimate()
    while left > 0:
        start = time.perf_counter()
        nets = min(per_group, left)
        found.add(run.draw(nets << size, nets), time.perf_counter() - start)
        left -= nets
        per_group *= 2 if rtol or atol else 1  # few steps also where the variance was underestimated
        means = found.net_means[:, 0]
        mean, sdev = abs(float(means.mean())), float(means.std()) / math.sqrt(len(means))
        run.tell(bar, "final", f"± {sdev / mean:.1e}" if mean else "")
        limit = max(atol * math.exp(min(-found.log_unit, 700.0)), rtol * mean)
        if len(means) >= _FEWEST and limit > 0 and sdev <= limit:
            break
    return found


def _net_size(run: Run, variance: float, rtol: float) -> int:
    """log2 of the points of a net: `replicas` nets exhaust the budget, or the part of it that rtol needs."""
    n = float(run.integrand.remaining)
    if rtol and math.isfinite(variance):
        n = min(n, max(_MARGIN * variance / rtol**2, _SMALLEST_NET * run.config.replicas))
    return floor_log2(max(n / run.config.replicas, 1))
