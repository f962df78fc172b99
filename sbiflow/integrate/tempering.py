"""Effective sample sizes of weights |f|^β / q, and the β that they allow."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BETAS = [0.87**k for k in range(480)]  # to 1e-29: a log f may span that much
_TIE = 1 - 1e-9


def tempered(log_f: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """log of |f|^β / q, (n,); −inf stays −inf also for β = 0."""
    return torch.where(log_f > -math.inf, beta * log_f, -math.inf) - log_q


def normalised(log_w: Tensor) -> Tensor:
    """Weights over the largest; zeros if all are zero."""
    top = log_w.max() if len(log_w) else torch.tensor(-math.inf)
    return (log_w - top).exp() if bool(top > -math.inf) else torch.zeros_like(log_w)


def ess(log_w: Tensor) -> float:
    """Effective sample size in points; 0 if all weights are zero."""
    w = normalised(log_w)
    return float(w.sum() ** 2 / (w * w).sum().clamp(min=1e-300))


def highest_beta(log_f: Tensor, log_q: Tensor, share: float) -> float:
    """The largest β <= 1 whose weights are worth `share` of the points at which f is not zero.

    Where q is already concentrated the ESS has a maximum in β, below which it falls again: the search goes down from
    one, and settles for the maximum (the smallest such β) if that is not worth `share`.
    """
    wanted = share * float((log_f > -math.inf).sum())
    best, best_ess = _BETAS[-1], 0.0
    for beta in _BETAS:
        found = ess(tempered(log_f, log_q, beta))
        if found >= wanted:
            return beta
        if found >= best_ess * _TIE:
            best, best_ess = beta, max(found, best_ess)
    return best
