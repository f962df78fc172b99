"""Importance weights: what a proposal's draws are worth under the true likelihood, and whether to believe it.

With draws θ_i ~ q(θ|x) the weights w_i = p(x|θ_i) p(θ_i) / q(θ_i|x) turn averages over q into averages
over the posterior, and their mean estimates the evidence p(x). Both are exact as n → ∞ where q covers the
posterior; for the draws at hand the effective sample size says how many independent posterior draws they are
worth, and the Pareto k̂ whether the largest weights still have a finite variance. What no weight can show is
posterior mass in a place where q never draws: for that compare with an MCMC reference, or calibrate.

Tensors in, tensors and numbers out, float64.
Sources: Kong 1992 (effective sample size); Vehtari, Simpson, Gelman, Yao & Gabry 2024, arXiv 1507.02646 (k̂);
Zhang & Stephens 2009, Technometrics 51, 316 (the generalised Pareto fit).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor

from sbiflow.checks import check_count

CHUNK = 16_384
MIN_ESS = 100.0  # below it the error of a median exceeds a tenth of the posterior's width
GOOD_ESS = 1_000.0  # the 16 and 84 % quantiles are then good to about 5 % of the width
FINITE_VARIANCE = 0.5  # k̂ above which the variance of the weights, and so every error quoted, is in doubt
LOW_EFFICIENCY = 0.05
MAX_NONFINITE = 0.01  # share of draws whose likelihood is NaN above which the answer is not used
EQUAL_WEIGHTS = 1e-9  # largest log-weights that differ by less are equal: rounding has no tail to fit
MIN_TAIL = 5  # draws in the tail that the Pareto fit needs

LogLikelihood = Callable[[Tensor, Tensor], Tensor]


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
        log_evidence_error: its standard error [nats]; inf if every weight is zero.
        n_zero: draws of zero weight, those of a NaN likelihood included.
        n_nonfinite: draws whose log-likelihood is NaN.
        verdict: one sentence that begins with "Trustworthy" or "Do not use".
        reliable: whether it is the former.
        warnings: further sentences.
    """

    n: int
    ess: float
    efficiency: float
    khat: float
    max_weight_share: float
    log_evidence: float
    log_evidence_error: float
    n_zero: int
    n_nonfinite: int
    verdict: str
    reliable: bool
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            self.verdict,
            f"  effective sample size  {self.ess:,.1f} of {self.n:,} draws ({self.efficiency:.2%})",
            f"  Pareto k-hat           {self.khat:.2f} (limit {khat_limit(self.n):.2f})",
            f"  largest weight         {self.max_weight_share:.2%} of the sum",
            f"  log evidence           {self.log_evidence:.3f} ± {self.log_evidence_error:.3f} nats",
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


def khat_limit(n: int) -> float:
    """Above this k̂, n draws give no reliable estimate: min(1 − 1/log10 n, 0.7) (arXiv 1507.02646)."""
    return min(1 - 1 / math.log10(n), 0.7) if n > 1 else -math.inf


def psis_khat(log_weights: Tensor) -> float:
    """Pareto shape k̂ of the largest min(n/5, 3√n) weights; as `arviz.psislw`, bar the two cases below.

    inf if the tail has fewer than five draws (too few draws, or a few carry everything). 0 if the largest
    weights are all equal, as for an exact proposal: the weights are bounded and nothing is left to fit.
    """
    n = len(log_weights)
    tail_size = math.ceil(min(n / 5, 3 * math.sqrt(n)))
    if tail_size < MIN_TAIL or not bool((log_weights > -math.inf).any()):
        return math.inf
    scaled = (log_weights.double() - log_weights.double().max()).sort().values
    cutoff = max(float(scaled[-tail_size - 1]), math.log(torch.finfo(torch.float64).tiny))
    if cutoff > -EQUAL_WEIGHTS:
        return 0.0
    tail = scaled[scaled > cutoff].exp() - math.exp(cutoff)
    return _pareto_shape(tail) if len(tail) >= MIN_TAIL else math.inf


def _pareto_shape(excess: Tensor) -> float:
    """Shape of a generalised Pareto distribution: Zhang & Stephens' mean, shrunk to 0.5 by ten draws.

    `excess` is sorted and positive. inf if the fit fails (the lower quartile is zero to rounding).
    """
    n = len(excess)
    count = 30 + math.isqrt(n)
    quartile = excess[int(n / 4 + 0.5) - 1]
    steps = torch.arange(1, count + 1, dtype=torch.float64) - 0.5
    b = 1 / excess[-1] + (1 - (count / steps).sqrt()) / (3 * quartile)
    k = torch.log1p(-b[:, None] * excess).mean(1)
    weight = torch.softmax(n * (torch.log(-b / k) - k - 1), 0)
    weight = torch.where(weight >= 10 * torch.finfo(torch.float64).eps, weight, 0.0)
    b_mean = (b * weight).sum() / weight.sum()
    shape = (n * torch.log1p(-b_mean * excess).mean() + 10 * 0.5) / (n + 10)
    return float(shape) if bool(shape.isfinite()) else math.inf


def diagnose(log_weights: Tensor, n_nonfinite: int = 0) -> WeightDiagnostics:
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
    share = math.exp(float(log_weights.double().max() - log_weights.double().logsumexp(0))) if ess else 0.0
    text, reliable = verdict(n, ess, khat, n_nonfinite)
    return WeightDiagnostics(
        n=n,
        ess=ess,
        efficiency=ess / n,
        khat=khat,
        max_weight_share=share,
        log_evidence=evidence,
        log_evidence_error=error,
        n_zero=int((log_weights == -math.inf).sum()),
        n_nonfinite=n_nonfinite,
        verdict=text,
        reliable=reliable,
        warnings=_warnings(n, ess, khat, n_nonfinite, reliable),
    )


def verdict(n: int, ess: float, khat: float, n_nonfinite: int = 0) -> tuple[str, bool]:
    """Whether to use weighted draws, in plain words, and as a bool.

    k̂ and the efficiency are judged together because k̂ alone is noisy: 20,000 draws from a Gaussian of half
    the posterior's width pass its limit one time in three, with widths 11 % too small, but their efficiency
    is then near 3 %. With both rules one in twelve passes, and it carries a warning.

    >>> verdict(10_000, 9_000.0, 0.1)[0]
    'Trustworthy: the draws are worth 9,000 independent ones (90.0 %) and Pareto k-hat 0.10 is below 0.70.'
    """
    limit = khat_limit(n)
    if ess == 0:
        return (
            "Do not use: every draw has zero weight; no draw lies where the likelihood and prior do.",
            False,
        )
    if n_nonfinite > MAX_NONFINITE * n:
        return f"Do not use: the log-likelihood is NaN for {n_nonfinite:,} of {n:,} draws.", False
    if not khat < limit:
        text = (
            f"Pareto k-hat {khat:.2f} is not below {limit:.2f}"
            if math.isfinite(khat)
            else ("Pareto k-hat cannot be fitted, for too few draws carry weight")
        )
        return f"Do not use: {text}; a few draws decide the answer and its error is not known.", False
    if ess < MIN_ESS:
        text = f"the draws are worth {ess:.1f} independent ones, fewer than {MIN_ESS:.0f}"
        return f"Do not use: {text}.", False
    if khat > FINITE_VARIANCE and ess < LOW_EFFICIENCY * n:
        text = f"efficiency {ess / n:.1%} with Pareto k-hat {khat:.2f}"
        return f"Do not use: {text}; the proposal is probably narrower than the posterior.", False
    return (
        f"Trustworthy: the draws are worth {ess:,.0f} independent ones ({100 * ess / n:.1f} %) "
        f"and Pareto k-hat {khat:.2f} is below {limit:.2f}."
    ), True


def _warnings(n: int, ess: float, khat: float, n_nonfinite: int, reliable: bool) -> tuple[str, ...]:
    found = []
    if n_nonfinite:
        found.append(
            f"the log-likelihood is NaN for {n_nonfinite:,} of {n:,} draws; they have weight zero, so the "
            "answer leaves out that part of the parameter space"
        )
    if reliable and ess < GOOD_ESS:
        found.append(
            f"the means carry a Monte Carlo error of {1 / math.sqrt(ess):.1%} of the posterior's width (sd)"
        )
    if reliable and khat > FINITE_VARIANCE:
        found.append(
            f"Pareto k-hat {khat:.2f} is above 0.5: the errors quoted are too small and the tails may be too"
        )
    if reliable and ess < LOW_EFFICIENCY * n:
        found.append(
            "efficiency below 5 %: the proposal is a poor fit here, and only the weights make it right"
        )
    return tuple(found)
