"""The tail of a set of importance weights: its Pareto shape k̂, and what probably lies beyond the largest weight.

The weights above a threshold follow a generalised Pareto distribution in the limit (Pickands 1975). Its shape k
says how many moments exist: the variance for k < 1/2, the mean for k < 1. The fit also says what the sum lacks:
the weights beyond the 1/n quantile, which n draws have not seen, carry the share `unseen_share`. It is what makes
an error quoted from the weights' own variance too small, and k̂ alone does not show it.

Sources: Vehtari, Simpson, Gelman, Yao & Gabry 2024, arXiv 1507.02646 (k̂); Zhang & Stephens 2009, Technometrics
51, 316 (the fit).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EQUAL_WEIGHTS = 1e-9  # largest log-weights that differ by less are equal: rounding has no tail to fit
MIN_TAIL = 5  # draws in the tail that the Pareto fit needs
_PRIOR_SHAPE, _PRIOR_DRAWS = 0.5, 10  # k̂ is shrunk to 0.5 by ten draws
_HEAVIEST = 0.95  # the mean beyond a quantile diverges as k reaches 1


def khat_limit(n: int) -> float:
    """Above this k̂, n draws give no reliable estimate: min(1 − 1/log10 n, 0.7) (arXiv 1507.02646)."""
    return min(1 - 1 / math.log10(n), 0.7) if n > 1 else -math.inf


def psis_khat(log_weights: Tensor) -> float:
    """Pareto shape k̂ of the largest min(n/5, 3√n) weights; as `arviz.psislw`, bar the two cases below.

    inf if the tail has fewer than five draws (too few draws, or a few carry everything). 0 if the largest
    weights are all equal, as for an exact proposal: the weights are bounded and nothing is left to fit.
    """
    tail = _tail(log_weights)
    if tail is None:
        return math.inf
    excess, _ = tail
    return 0.0 if not len(excess) else _shape(excess)


def unseen_share(log_weights: Tensor) -> float:
    """Expected weight beyond the 1/n quantile, as a share of the weights seen; inf where no tail can be fitted.

    With threshold t, the fraction p of the draws above it and the tail's median excess m, the shape being k̂ plus
    one standard deviation (1 + k) / sqrt(draws in the tail), and the scale the one that gives m:
    quantile q = t + σ/k ((np)^k − 1), mean beyond it q + (σ + k (q − t)) / (1 − k), share that / Σw.
    """
    tail = _tail(log_weights)
    if tail is None:
        return math.inf
    excess, threshold = tail
    if not len(excess):
        return 0.0
    k = _shape(excess)
    if not math.isfinite(k):
        return math.inf
    k = min(k + (1 + max(k, 0.0)) / math.sqrt(len(excess)), _HEAVIEST)
    grow = k if abs(k) > 1e-6 else 1e-6
    scale = float(excess.median()) * grow / math.expm1(grow * math.log(2))
    step = scale / grow * math.expm1(grow * math.log(len(excess)))  # np is the number of draws in the tail
    beyond = threshold + step + (scale + grow * step) / (1 - grow)
    return beyond / float((log_weights.double() - log_weights.double().max()).exp().sum())


def _tail(log_weights: Tensor) -> tuple[Tensor, float] | None:
    """Sorted excesses over the threshold and the threshold, both over the largest weight.

    None if there are too few draws; no excesses if the largest weights are equal.
    """
    n = len(log_weights)
    size = math.ceil(min(n / 5, 3 * math.sqrt(n)))
    if size < MIN_TAIL or not bool((log_weights > -math.inf).any()):
        return None
    scaled = (log_weights.double() - log_weights.double().max()).sort().values
    cutoff = max(float(scaled[-size - 1]), math.log(torch.finfo(torch.float64).tiny))
    if cutoff > -EQUAL_WEIGHTS:
        return scaled[:0], 1.0
    excess = scaled[scaled > cutoff].exp() - math.exp(cutoff)
    return (excess, math.exp(cutoff)) if len(excess) >= MIN_TAIL else None


def _shape(excess: Tensor) -> float:
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
    raw = torch.log1p(-b_mean * excess).mean()
    shape = (n * raw + _PRIOR_DRAWS * _PRIOR_SHAPE) / (n + _PRIOR_DRAWS)
    return float(shape) if bool(shape.isfinite()) else math.inf
