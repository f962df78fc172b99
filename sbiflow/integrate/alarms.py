"""Whether to believe an integral: what its weights, its growth and its exploration say.

χ² between iterations is blind to mass that every iteration missed. What can show it:

- the tail of the weights: k̂ (the variance of the weights exists below 1/2, their mean below 1) and the share of the
  integral that is expected beyond the largest weight seen. That share is added to the error;
- the largest weight's share of the sum, and the effective sample size and how it grows with n;
- exploration: points drawn before the proposal was trained whose weight f/q exceeds every weight of the estimate lie
  where the proposal hardly draws; what they carry is missed;
- earlier estimates from other proposals that disagree.

An isolated peak that no evaluation has touched shows in none of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.stats import chi2
from torch import Tensor

from sbiflow.integrate.estimate import Estimate
from sbiflow.integrate.iterations import IntegralDiagnostics, Iteration
from sbiflow.integrate.run import Run
from sbiflow.integrate.tempering import ess, normalised
from sbiflow.pareto import khat_limit, psis_khat, unseen_share
from sbiflow.verdict import FINITE_VARIANCE, MAX_NONFINITE, MIN_ESS

MAX_UNSEEN = 0.02  # share of the integral expected beyond the largest weight above which nothing is known
MAX_SHARE = 0.05  # of one weight in the sum
MIN_GROWTH = 0.7  # exponent of the ESS in n; one where the variance exists
MISSED_ERRORS = 3.0  # errors of the estimate that exploration may find to be missed
LEAST_Q = 1e-5  # false-alarm rate of the comparison with earlier estimates
THIRD_MOMENT = 1 / 3  # k̂ above which the weights have no third moment, and their spread is too small an error
_COMPARABLE_ESS = 0.1  # of an earlier iteration that is compared
_EXPLORED_ROWS = 100_000
_GROWTH_STEP = 16


@dataclass(frozen=True)
class Consistency:
    """χ² of the final estimate and the earlier independent ones about their weighted mean."""

    chi2: float
    dof: int
    Q: float


def consistency(log_mean: float, log_sdev: float, iterations: tuple[Iteration, ...]) -> Consistency:
    """Compare with the training rounds that drew from a proposal for the integrand itself (β = 1)."""
    known = [
        it
        for it in iterations
        if it.beta == 1.0 and it.phase != "final" and it.ess > _COMPARABLE_ESS and it.khat < FINITE_VARIANCE
    ]
    if not known or not math.isfinite(log_mean):
        return Consistency(0.0, 0, math.nan)
    ratios = torch.tensor([0.0] + [it.log_mean - log_mean for it in known], dtype=torch.float64).exp()
    errors = torch.tensor([max(log_sdev, 1e-15)] + [max(it.log_sdev, 1e-15) for it in known]) * ratios
    weights = errors.double() ** -2
    centre = (weights * ratios).sum() / weights.sum()
    total = float((weights * (ratios - centre) ** 2).sum())
    return Consistency(total, len(known), float(chi2.sf(total, len(known))))


def diagnose(run: Run, found: Estimate) -> IntegralDiagnostics:
    """Every figure of the weights."""
    log_w = found.log_weights
    w = normalised(log_w)
    size = ess(log_w)
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
        missed_share=missed_share(run, log_w),
        ess_growth=ess_growth(log_w),
    )


def missed_share(run: Run, log_w: Tensor) -> float:
    """Share of the integral at explored points whose weight exceeds every weight of the estimate."""
    if not len(log_w) or not bool((log_w > -math.inf).any()):
        return math.nan
    top, total, left = float(log_w.max()), 0.0, _EXPLORED_ROWS
    log_total = float(log_w.logsumexp(0)) - math.log(len(log_w))
    for batch in run.replay.batches:
        y, log_f, log_q = batch.y[:left], batch.log_f[:left], batch.log_q[:left]
        if not len(y):
            continue
        beyond = log_f - run.proposal.log_prob(y) > top + 1e-9
        seen = batch.n * len(y) / len(batch.y)
        total += float((log_f - log_q - log_total)[beyond].exp().sum()) / seen
        left -= len(y)
    return total


def ess_growth(log_w: Tensor) -> float:
    """d log ESS / d log n between blocks of n/16 and all n; NaN below 1,600 points."""
    n = len(log_w)
    if n < 100 * _GROWTH_STEP or not bool((log_w > -math.inf).any()):
        return math.nan
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(log_w.device)
    blocks = log_w[order[: n - n % _GROWTH_STEP]].reshape(_GROWTH_STEP, -1)
    small = sum(ess(block) for block in blocks) / _GROWTH_STEP
    return math.log(ess(log_w) / small) / math.log(_GROWTH_STEP) if small else math.nan


def reasons(figures: IntegralDiagnostics, relative_error: float, agreement: Consistency) -> list[str]:
    """Why not to use the estimate; empty if there is no reason."""
    limit = khat_limit(figures.n)
    if figures.ess == 0:
        return [f"every one of {figures.n:,} evaluations was zero: the integrand was not found"]
    found = []
    if figures.n_nan + figures.n_inf > MAX_NONFINITE * figures.n:
        found.append(f"the integrand was NaN or infinite at {figures.n_nan + figures.n_inf:,} points")
    if not figures.khat < limit:
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
    if figures.missed_share > MISSED_ERRORS * max(relative_error, 1e-6):
        found.append(
            f"exploration found {figures.missed_share:.1%} of the integral where the proposal hardly draws"
        )
    if agreement.dof and agreement.Q < LEAST_Q:
        found.append(
            f"estimates by earlier proposals disagree (chi2/dof {agreement.chi2:.0f}/{agreement.dof})"
        )
    return found


def verdict(figures: IntegralDiagnostics, relative_error: float, agreement: Consistency) -> tuple[str, bool]:
    """One sentence that begins with "Trustworthy" or "Do not use", and which of them it is."""
    against = reasons(figures, relative_error, agreement)
    if against:
        return f"Do not use: {'; '.join(against)}.", False
    return (
        f"Trustworthy: relative error {relative_error:.1e}; the points are worth {figures.ess:,.0f} independent "
        f"ones ({figures.efficiency:.1%}), Pareto k-hat {figures.khat:.2f} is below {khat_limit(figures.n):.2f}."
    ), True


def unseen_error(figures: IntegralDiagnostics) -> float:
    """What the weights not drawn yet add to the relative error.

    Only where the tail is heavy: the nets resolve a light one, and their spread tells its error.
    """
    share = figures.unseen_share
    return share if figures.khat > THIRD_MOMENT and math.isfinite(share) else 0.0


def further_warnings(figures: IntegralDiagnostics, relative_error: float) -> list[str]:
    """Sentences to be read with the verdict."""
    found = []
    if figures.n_nan or figures.n_inf:
        found.append(
            f"the integrand was NaN at {figures.n_nan:,} and infinite at {figures.n_inf:,} points, which count as zero"
        )
    if figures.khat > FINITE_VARIANCE and figures.khat < khat_limit(figures.n):
        found.append(f"Pareto k-hat {figures.khat:.2f} is above 0.5: the error is itself uncertain")
    if relative_error > 0.5 and figures.ess:
        found.append(
            "the error is as large as the integral: it may be zero, or the positive and negative parts cancel"
        )
    return found
