"""Whether to believe an integral: what its weights, its growth and its exploration say.

χ² between iterations is blind to mass that every iteration missed. What can show it:

- the tail of the weights: k̂ (the variance of the weights exists below 1/2, their mean below 1) and the share of the
  integral that is expected beyond the largest weight seen. That share is added to the error;
- the largest weight's share of the sum, and the effective sample size and how it grows with n;
- exploration: points that were drawn from other proposals, broader ones among them, are weighted with the final one.
  Where such a weight exceeds every weight of the estimate, what the point carries is missed; and the heavy weights
  tell the part of the variance that the final points, by their luck, may not have shown;
- earlier estimates from other proposals that disagree.

An isolated peak that no evaluation has touched shows in none of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbiflow.integrate.iterations import IntegralDiagnostics, Iteration
from sbiflow.integrate.run import Run
from sbiflow.integrate.tempering import ess, normalised
from sbiflow.optional import deferred
from sbiflow.pareto import khat_limit, psis_khat, unseen_share
from sbiflow.verdict import FINITE_VARIANCE, MAX_NONFINITE, MIN_ESS

stats = deferred("scipy.stats")

MAX_UNSEEN = 0.02  # share of the integral expected beyond the largest weight above which nothing is known
MAX_SHARE = 0.05  # of one weight in the sum
EXCELLENT = 0.9  # efficiency above which k̂ alone is no reason: what is unseen is small, and counted
MIN_GROWTH = 0.7  # exponent of the ESS in n; one where the variance exists
MISSED_ERRORS = 3.0  # errors of the estimate that exploration may find to be missed
LEAST_Q = (
    1e-8  # of the comparison with earlier estimates; errors from 16 nets make false alarms of 1e-4 of it
)
THIRD_MOMENT = 1 / 3  # k̂ above which the weights have no third moment, and their spread is too small an error
_COMPARABLE_ESS = 0.1  # of an earlier iteration that is compared
_EXPLORED_ROWS = 100_000
_HEAVY = 10.0  # times the mean: no net resolves weights above it
_GROWTH_STEP = 16
_ROUNDING = 1e-12
_ALL = 1.0  # a hidden error is not put above the whole integral


@dataclass(frozen=True)
class Explored:
    """What the evaluations of training say of the final proposal.

    Attributes:
        missed: share of ∫|f| at points whose weight exceeds every weight of the estimate and ten times their mean.
        tail_error: relative error from weights above ten times the mean, beyond what the estimate's own points show.
    """

    missed: float
    tail_error: float


@dataclass(frozen=True)
class Consistency:
    """χ² of the final estimate and the earlier independent ones about their weighted mean."""

    chi2: float
    dof: int
    Q: float


def consistency(
    log_mean: float, log_sdev: float, iterations: tuple[Iteration, ...], sign: float = 1.0
) -> Consistency:
    """Compare with the training rounds that drew from a proposal for the integrand itself (β = 1).

    `log_mean` is the logarithm of the estimate's modulus, `log_sdev` its relative error, `sign` its sign.
    """
    known = [it for it in iterations if _comparable(it)]
    if not known or not math.isfinite(log_mean):
        return Consistency(0.0, 0, math.nan)
    pairs = [(sign, log_sdev)]
    for it in known:
        size = math.exp(min(it.log_mean - log_mean, 300.0))
        pairs.append((math.copysign(size, it.mean), it.log_sdev * size))
    values, errors = torch.tensor(pairs, dtype=torch.float64).T
    weights = errors.clamp(min=_ROUNDING) ** -2
    centre = (weights * values).sum() / weights.sum()
    total = float((weights * (values - centre) ** 2).sum())
    return Consistency(total, len(known), float(stats.chi2.sf(total, len(known))))


def _comparable(it: Iteration) -> bool:
    own = it.beta == 1.0 and it.phase != "final" and it.ess > _COMPARABLE_ESS and it.khat < FINITE_VARIANCE
    return own and math.isfinite(it.log_mean)


def diagnose(run: Run, log_w: Tensor) -> IntegralDiagnostics:
    """Every figure of the weights, log |f_0| / q (n,), of the final points."""
    w, size, found = normalised(log_w), ess(log_w), explored(run, log_w)
    return IntegralDiagnostics(
        n=len(log_w),
        n_zero=run.integrand.n_zero,
        n_nan=run.integrand.n_nan,
        n_inf=run.integrand.n_inf,
        ess=size,
        efficiency=size / max(len(log_w), 1),
        khat=psis_khat(log_w),
        max_weight_share=float(w.max() / w.sum().clamp(min=1e-300)) if len(w) else math.nan,
        unseen_share=unseen_share(log_w),
        missed_share=found.missed,
        tail_error=found.tail_error,
        ess_growth=ess_growth(log_w),
    )


def explored(run: Run, log_w: Tensor) -> Explored:
    """Weigh the points of the replay with the final proposal; every batch is an unbiased sample of its own."""
    batches = [batch for batch in run.replay.batches if len(batch.y)]
    if not batches or not bool((log_w > -math.inf).any()):
        return Explored(math.nan, math.nan)
    n, log_size = len(log_w), float(log_w.logsumexp(0)) - math.log(len(log_w))
    heavy = log_size + math.log(_HEAVY)
    drawn = sum(batch.n for batch in run.replay.batches)
    stride = -(-sum(len(batch.y) for batch in batches) // _EXPLORED_ROWS)
    missed = second = 0.0
    for batch in batches:
        y, log_f, log_q = batch.y[::stride], batch.log_f[::stride], batch.log_q[::stride]
        ratio = log_f - run.proposal.log_prob(y)
        mass = (log_f - log_q - log_size).exp() * (len(batch.y) / len(y) / drawn)
        missed += float(mass[ratio > max(float(log_w.max()), heavy)].sum())
        second += float((mass * (ratio - log_size).exp())[ratio > heavy].sum())
    own = log_w[log_w > heavy]
    shown = float((2 * (own - log_size)).exp().sum()) / n
    return Explored(missed, math.sqrt(max(second - shown, 0.0) / n))


def ess_growth(log_w: Tensor) -> float:
    """d log ESS / d log n between blocks of n/16 and all n; NaN below 1,600 points."""
    n = len(log_w)
    if n < 100 * _GROWTH_STEP or not bool((log_w > -math.inf).any()):
        return math.nan
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(log_w.device)
    blocks = log_w[order[: n - n % _GROWTH_STEP]].reshape(_GROWTH_STEP, -1)
    small = sum(ess(block) for block in blocks) / _GROWTH_STEP
    return math.log(ess(log_w) / small) / math.log(_GROWTH_STEP) if small else math.nan


def reasons(figures: IntegralDiagnostics, n_evals: int, error: float, agreement: Consistency) -> list[str]:
    """Why not to use the estimate; empty if there is no reason. `error` is relative to ∫|f|."""
    limit, bad = khat_limit(figures.n), figures.n_nan + figures.n_inf
    found = []
    if bad > MAX_NONFINITE * n_evals:
        found.append(f"the integrand was NaN or infinite at {bad:,} of {n_evals:,} points")
    if figures.ess == 0:
        return [*found, f"all of the {figures.n:,} final evaluations were zero: the integrand was not found"]
    if (
        not figures.khat < limit and figures.efficiency < EXCELLENT
    ):  # else the tail is one of nearly equal weights
        found.append(
            f"Pareto k-hat {figures.khat:.2f} is not below {limit:.2f}: a few points decide the answer"
        )
    if figures.ess < MIN_ESS:
        found.append(f"the points are worth {figures.ess:.1f} independent ones, fewer than {MIN_ESS:.0f}")
    if not figures.unseen_share <= MAX_UNSEEN:
        found.append(f"{figures.unseen_share:.1%} of the integral is expected in weights not drawn yet")
    if figures.max_weight_share > MAX_SHARE:
        found.append(f"one point carries {figures.max_weight_share:.0%} of the sum")
    if figures.ess_growth < MIN_GROWTH and figures.efficiency < 0.5:
        found.append(f"the effective sample size grows as n^{figures.ess_growth:.2f} only")
    if figures.missed_share > MISSED_ERRORS * max(error, _ROUNDING):
        found.append(
            f"exploration found {figures.missed_share:.2%} of the integral where the proposal hardly draws"
        )
    if agreement.dof and agreement.Q < LEAST_Q:
        found.append(
            f"estimates by earlier proposals disagree (chi2/dof {agreement.chi2:.0f}/{agreement.dof})"
        )
    return found


def verdict(
    figures: IntegralDiagnostics, n_evals: int, error: float, agreement: Consistency
) -> tuple[str, bool]:
    """One sentence that begins with "Trustworthy" or "Do not use", and which of them it is."""
    against = reasons(figures, n_evals, error, agreement)
    if against:
        return f"Do not use: {'; '.join(against)}.", False
    return (
        f"Trustworthy: relative error {error:.1e}; the points are worth {figures.ess:,.0f} independent "
        f"ones ({figures.efficiency:.1%}), Pareto k-hat {figures.khat:.2f} is below {khat_limit(figures.n):.2f}."
    ), True


def hidden_error(figures: IntegralDiagnostics) -> float:
    """What the final points do not show of their error, relative to ∫|f|.

    The share expected beyond the largest weight, where the tail is heavy (the nets resolve a light one, and their
    spread tells its error), and the tail that exploration knows.
    """
    share = figures.unseen_share if figures.khat > THIRD_MOMENT else 0.0
    parts = [min(part, _ALL) for part in (share, figures.tail_error) if not math.isnan(part)]
    return math.hypot(*parts)


def further_warnings(figures: IntegralDiagnostics, error: float) -> list[str]:
    """Sentences to be read with the verdict; `error` is relative to the integral."""
    found = []
    if figures.n_nan or figures.n_inf:
        found.append(
            f"the integrand was NaN at {figures.n_nan:,} and infinite at {figures.n_inf:,} points, which count as zero"
        )
    if FINITE_VARIANCE < figures.khat < math.inf:
        found.append(f"Pareto k-hat {figures.khat:.2f} is above 0.5: the error is itself uncertain")
    if error > 0.5 and figures.ess:
        found.append(
            "the error is as large as the integral: it may be zero, or its parts of opposite signs cancel"
        )
    return found
