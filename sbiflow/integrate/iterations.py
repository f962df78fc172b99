"""What is kept of each batch of evaluations, the figures of the weights, and the table that shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sbiflow.integrate.notation import with_error


@dataclass(frozen=True)
class Iteration:
    """One batch of evaluations; `mean` and `sdev` are of the integral's component 0, in its units.

    Attributes:
        phase: "explore", "grid", "anneal", "flow" or "final"; only the last enters the estimate.
        n: evaluations.
        mean: the integral by this iteration alone (0 where it underflows).
        sdev: its standard deviation; inf if unknown.
        log_mean: ln |mean|, finite also where `mean` underflows.
        ess: effective sample size of the weights as a share of n, 0 to 1.
        khat: Pareto shape of the largest weights; the variance exists below 1/2.
        beta: power of |f| that the proposal was trained for, 1 = the integrand itself.
        seconds: time taken.
        log_sdev: error of `log_mean`; NaN: sdev / |mean|.
    """

    phase: str
    n: int
    mean: float
    sdev: float
    log_mean: float
    ess: float
    khat: float
    beta: float
    seconds: float
    log_sdev: float = math.nan


@dataclass(frozen=True)
class IntegralDiagnostics:
    """Figures of the weights w = f/q behind the estimate (component 0); shares are 0 to 1.

    Attributes:
        n: evaluations behind the estimate.
        n_zero, n_nan, n_inf: of all evaluations, those where f was zero, NaN and infinite.
        ess: (Σ|w|)² / Σw², in evaluations.
        efficiency: ess / n.
        khat: Pareto shape of the largest |w| (arXiv 1507.02646).
        max_weight_share: the largest |w| over their sum.
        unseen_share: expected weight beyond the largest one, over the sum (`sbiflow.pareto.unseen_share`).
        missed_share: of the integral, at explored points whose weight exceeds every weight of the estimate.
        tail_error: relative error from heavy weights that exploration knows and the final points do not show.
        ess_growth: exponent of the growth of the ESS with n; 1 for weights of finite variance.
    """

    n: int
    n_zero: int
    n_nan: int
    n_inf: int
    ess: float
    efficiency: float
    khat: float
    max_weight_share: float
    unseen_share: float
    missed_share: float
    tail_error: float
    ess_growth: float


def iteration_rows(iterations: Sequence[Iteration]) -> list[str]:
    """The table, a line per iteration below its head."""
    head = ("it", "phase", "evals", "integral", "ESS %", "k-hat", "beta", "s")
    body = [(str(i + 1), it.phase, f"{it.n:,}", *_cells(it)) for i, it in enumerate(iterations)]
    widths = [max(len(row[k]) for row in (head, *body)) for k in range(len(head))]
    left = {1, 3}  # words, and numbers whose brackets differ in length
    return [
        "  ".join(
            cell.ljust(width) if k in left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *body)
    ]


def _cells(it: Iteration) -> tuple[str, ...]:
    return (
        with_error(it.mean, it.sdev, it.log_mean, it.log_sdev),
        number(100 * it.ess, ".2g" if it.ess < 0.1 else ".0f"),
        number(it.khat, ".2f"),
        number(it.beta, ".3g"),
        number(it.seconds, ".1f"),
    )


def number(value: float, form: str) -> str:
    """Formatted; "-" for NaN."""
    return "-" if math.isnan(value) else format(value, form)
