"""Importance weights: what a proposal's draws are worth under the true likelihood, and whether to believe it.

With draws θ_i ~ q(θ|x) the weights w_i = p(x|θ_i) p(θ_i) / q(θ_i|x) turn averages over q into averages
over the posterior, and their mean estimates the evidence p(x). Both are exact as n → ∞ where q covers the
posterior; for the draws at hand the effective sample size says how many independent posterior draws they are
worth, and the Pareto k̂ whether the largest weights still have a finite variance. The error of the evidence has a
second part, the share of the sum that its heaviest tail has probably not shown yet (see `sbiflow.pareto`): without
it a proposal that is too narrow is off by many of its own errors. What no weight can show is posterior mass in a
place where q never draws: likelihoods elsewhere may (see `sbiflow.elsewhere`); where they do not reach, compare with
a reference, or calibrate.

Tensors in, tensors and numbers out, float64.
Source: Kong 1992 (effective sample size).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor

from sbiflow.checks import check_count
from sbiflow.pareto import khat_limit, psis_khat, unseen_share
from sbiflow.verdict import further_warnings, verdict

CHUNK = 16_384
TOLERATED = 1.0  # errors of the evidence that may be missed elsewhere
ROUNDING = 1e-6

LogLikelihood = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Elsewhere:
    """What likelihoods where the proposal does not draw say about the posterior that it misses.

    Attributes:
        n: likelihoods evaluated.
        missed: posterior mass at places whose weight exceeds every weight among the draws, over the mass seen.
        reach: posterior mass that a missed mode as wide as the posterior seen must have for draws from the prior to
            find it with a probability of 95 %; near 1, they find none.
    """

    n: int
    missed: float
    reach: float

    def __str__(self) -> str:
        return f"{self.missed:.2%} missed, from {self.n:,} likelihoods elsewhere (reach {self.reach:.0%})"


@dataclass(frozen=True)
class WeightDiagnostics:
    """What the weights say about themselves; every figure is for the draws made, nothing is extrapolated.

    Attributes:
        n: draws.
        ess: effective sample size (Σw)² / Σw², between 1 and n (0 if every weight is zero).
        efficiency: ess / n.
        khat: Pareto shape of the largest weights; inf where it cannot be fitted.
        max_weight_share: the largest weight's share of the sum.
        log_evidence: log of the mean weight [nats].
        log_evidence_error: its standard error [nats]: that of the weights seen and `unseen_share` together; inf if
            every weight is zero or no tail can be fitted.
        unseen_share: expected share of the evidence beyond the largest weights seen.
        n_zero: draws of zero weight, those of a NaN likelihood included.
        n_nonfinite: draws whose log-likelihood is NaN.
        verdict: one sentence that begins with "Trustworthy" or "Do not use".
        reliable: whether it is the former.
        warnings: further sentences.
        elsewhere: a check for posterior mass that the proposal misses; None if none was made.
    """

    n: int
    ess: float
    efficiency: float
    khat: float
    max_weight_share: float
    log_evidence: float
    log_evidence_error: float
    unseen_share: float
    n_zero: int
    n_nonfinite: int
    verdict: str
    reliable: bool
    warnings: tuple[str, ...]
    elsewhere: Elsewhere | None = None

    def __str__(self) -> str:
        lines = [
            self.verdict,
            f"  effective sample size  {self.ess:,.1f} of {self.n:,} draws ({self.efficiency:.2%})",
            f"  Pareto k-hat           {self.khat:.2f} (limit {khat_limit(self.n):.2f})",
            f"  largest weight         {self.max_weight_share:.2%} of the sum",
            f"  log evidence           {self.log_evidence:.3f} ± {self.log_evidence_error:.3f} nats",
            f"  missed modes           {self.elsewhere or 'not looked for: weights cannot show them'}",
            *(f"  warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)


def evaluate_log_likelihood(
    log_likelihood: LogLikelihood, theta: Tensor, x: Tensor, chunk: int = CHUNK, progress: bool = True
) -> Tensor:
    """`log_likelihood` of every draw, in float64, a chunk at a time.

    Args:
        log_likelihood: (m, D), (*x_shape) -> (m,) in nats.
        theta: (n, D), physical units.
        x: the observation, (*x_shape).
        chunk: rows per call.
        progress: show a progress bar.

    Raises:
        ValueError: `log_likelihood` returned another shape than (m,).
    """
    starts = range(0, len(theta), check_count(chunk, "chunk"))
    parts = []
    with torch.no_grad():
        for start in track(starts, "log-likelihood", disable=not progress or len(starts) < 2, transient=True):
            rows = theta[start : start + chunk].double()
            value = torch.as_tensor(log_likelihood(rows, x.double()))
            if value.shape != (len(rows),):
                raise ValueError(f"log_likelihood: expected shape ({len(rows)},), got {tuple(value.shape)}")
            parts.append(value.double().cpu())
    return torch.cat(parts)


def importance_weights(log_likelihood: Tensor, log_prior: Tensor, log_q: Tensor) -> tuple[Tensor, int]:
    """Unnormalised log-weights, log p(x|θ) + log p(θ) − log q(θ|x), and the number of NaN likelihoods.

    A draw outside the prior (log-prior −inf) or of zero likelihood has weight zero. So has one whose
    likelihood is NaN inside the prior: it is counted, for the caller to report.

    Args:
        log_likelihood: (n,), nats; −inf and NaN allowed.
        log_prior: (n,); −inf allowed.
        log_q: (n,), finite.

    Returns:
        (n,) float64 log-weights, −inf for zero weight; the count of draws with a NaN log-likelihood.

    Raises:
        ValueError: the shapes differ, a log-likelihood or log-prior is +inf, a log-prior is NaN, or a log_q
            is not finite (no draw comes from where its own density is zero).
    """
    like, prior, proposal = (tensor.detach().double().cpu() for tensor in (log_likelihood, log_prior, log_q))
    if like.ndim != 1 or not like.shape == prior.shape == proposal.shape:
        shapes = [tuple(tensor.shape) for tensor in (like, prior, proposal)]
        raise ValueError(f"log_likelihood, log_prior, log_q: expected three equal shapes (n,), got {shapes}")
    _refuse(like == math.inf, "log_likelihood", "finite values, -inf or NaN", "+inf")
    _refuse(prior.isnan() | (prior == math.inf), "log_prior", "finite values or -inf", "NaN or +inf")
    _refuse(~proposal.isfinite(), "log_q", "finite values", "NaN or inf")
    undefined = like.isnan() & prior.isfinite()
    zero = like.isnan() | (prior == -math.inf)
    return torch.where(zero, -math.inf, like + prior - proposal), int(undefined.sum())


def _refuse(bad: Tensor, name: str, expected: str, got: str) -> None:
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise ValueError(f"{name}: expected {expected}, got {int(bad.sum())} {got}, the first at row {first}")


def effective_sample_size(log_weights: Tensor) -> float:
    """(Σw)² / Σw²; 0 if every weight is zero.

    >>> effective_sample_size(torch.tensor([0.0, 0.0, -torch.inf]))
    2.0
    """
    if not bool((log_weights > -math.inf).any()):
        return 0.0
    lw = log_weights.double()
    w = (lw - lw.max()).exp()
    return float(w.sum() ** 2 / (w * w).sum())


def log_evidence(log_weights: Tensor) -> tuple[float, float]:
    """Log of the mean weight and its error sqrt((n − ESS) / (n ESS)) [nats]; (−inf, inf) if all are zero.

    The error is the delta method's, from the sample variance of the weights, and is as good as that variance:
    believe it only where k̂ is below its limit.
    """
    n, ess = len(log_weights), effective_sample_size(log_weights)
    if ess == 0:
        return -math.inf, math.inf
    return float(log_weights.double().logsumexp(0)) - math.log(n), math.sqrt(max(n - ess, 0.0) / (n * ess))


def diagnose(
    log_weights: Tensor, n_nonfinite: int = 0, elsewhere: Elsewhere | None = None
) -> WeightDiagnostics:
    """Every figure and the verdict for one set of log-weights (n,), −inf for zero weight.

    Raises:
        ValueError: no weights, another shape than (n,), or a log-weight that is NaN or +inf.
    """
    if log_weights.ndim != 1 or not len(log_weights):
        raise ValueError(f"log_weights: expected shape (n,) with n >= 1, got {tuple(log_weights.shape)}")
    _refuse(
        log_weights.isnan() | (log_weights == math.inf), "log_weights", "finite values or -inf", "NaN or +inf"
    )
    n, ess, khat = len(log_weights), effective_sample_size(log_weights), psis_khat(log_weights)
    evidence, error = log_evidence(log_weights)
    unseen = unseen_share(log_weights)
    error = math.hypot(error, unseen)
    share = math.exp(float(log_weights.double().max() - log_weights.double().logsumexp(0))) if ess else 0.0
    text, reliable = verdict(n, ess, khat, n_nonfinite, unseen)
    if reliable and elsewhere and elsewhere.missed > TOLERATED * error + ROUNDING:
        reliable, text = (
            False,
            (
                f"Do not use: {elsewhere.n:,} likelihoods elsewhere find {elsewhere.missed:.1%} of the posterior "
                "where the proposal hardly draws."
            ),
        )
    return WeightDiagnostics(
        n=n,
        ess=ess,
        efficiency=ess / n,
        khat=khat,
        max_weight_share=share,
        log_evidence=evidence,
        log_evidence_error=error,
        unseen_share=unseen,
        n_zero=int((log_weights == -math.inf).sum()),
        n_nonfinite=n_nonfinite,
        verdict=text,
        reliable=reliable,
        warnings=further_warnings(n, ess, khat, n_nonfinite, reliable),
        elsewhere=elsewhere,
    )
