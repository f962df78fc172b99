"""What a nested-sampling run knows and how well: weights of its dead points, and bootstraps over its strands.

A run of n live points is n runs of one live point each, put together: strands. Drawing n of them with replacement
gives another run that might have happened; the scatter of its evidence and of its means is their error, that of
the weights of separate modes included (Higson et al. 2018, arXiv 1704.03459).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import digamma, logsumexp

from sbiflow.priors import Prior

BOOTSTRAPS = 100


@dataclass(frozen=True)
class NestedRun:
    """Dead points u (n, D) of one run in the prior's unit cube, in order of likelihood.

    Attributes:
        boot: log-weights (1 + B, n): those of the run, then of its bootstraps.
        finished: whether it ended by its own criterion.
        notes: what the sampler warned of.
    """

    u: np.ndarray
    boot: np.ndarray
    finished: bool
    notes: tuple[str, ...]

    @property
    def log_evidence(self) -> tuple[float, float]:
        """With its standard error [nats]."""
        values = logsumexp(self.boot, axis=1)
        return float(values[0]), float(values[1:].std(ddof=1))


def bootstrap(logl: np.ndarray, strand: np.ndarray, nlive: int, rng: np.random.Generator) -> np.ndarray:
    """Log-weights (1 + BOOTSTRAPS, n) of dead points (n,) sorted by likelihood, on strands 0 to nlive - 1."""
    counts = rng.multinomial(nlive, np.full(nlive, 1 / nlive), size=BOOTSTRAPS)
    once = np.ones(nlive, dtype=int)
    return np.stack([strand_log_weights(logl, strand, count) for count in (once, *counts)])


def strand_log_weights(logl: np.ndarray, strand: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Log-weights of dead points, sorted by likelihood, if strand k were there count[k] times.

    With a points dead of n alive the log of the prior volume shrinks by sum_{j<a} 1 / (n - j); a point stands
    for the volume between the means of its neighbours' (trapezoid).
    """
    died = count[strand]
    last = np.zeros(len(logl), dtype=bool)
    last[len(strand) - 1 - np.unique(strand[::-1], return_index=True)[1]] = True
    alive = count.sum() - np.concatenate([[0], np.cumsum(died * last)[:-1]])
    volume = np.exp(-np.cumsum(np.where(died > 0, digamma(alive + 1) - digamma(alive - died + 1), 0.0)))
    width = (np.concatenate([[1.0], volume[:-1]]) - np.concatenate([volume[1:], [0.0]])) / 2
    with np.errstate(divide="ignore"):
        return logl + np.log(np.where(died > 0, width, 0.0))


def _quantities(run: NestedRun, prior: Prior, centre: np.ndarray) -> list[list[np.ndarray]]:
    """Per parameter, what the runs have to agree in: place and spread, for a periodic one on the circle."""
    found = []
    for d, periodic in enumerate(prior.periodic.tolist()):
        if periodic:
            angle = 2 * np.pi * run.u[:, d]
            found.append([f(k * angle) for k in (1, 2) for f in (np.cos, np.sin)])
        else:
            found.append([run.u[:, d], np.abs(run.u[:, d] - centre[d])])
    return found


def _moments(values: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
    """Weighted means (1 + B,)."""
    weights = np.exp(log_weights - logsumexp(log_weights, axis=1, keepdims=True))
    return weights @ values


def compare_runs(runs: list[NestedRun], prior: Prior) -> tuple[np.ndarray, np.ndarray]:
    """Effective sample size and disagreement in standard errors per parameter, (D,) and (D,)."""
    u, boot = np.concatenate([r.u for r in runs]), np.concatenate([r.boot for r in runs], axis=1)
    centre = _moments(u, boot[:1])[0]
    ess, apart = np.empty(prior.dim), np.empty(prior.dim)
    parts = [_quantities(run, prior, centre) for run in runs]
    for d in range(prior.dim):
        sizes, gaps = [], []
        for first, second in zip(parts[0][d], parts[1][d], strict=True):
            means = [_moments(v, r.boot) for v, r in zip((first, second), runs, strict=True)]
            errors = [m[1:].std(ddof=1) for m in means]
            gaps.append(_ratio(abs(means[0][0] - means[1][0]), math.hypot(*errors)))
            joint = np.concatenate([first, second])
            both = _moments(joint, boot)
            variance = _moments((joint - both[0]) ** 2, boot[:1])[0]
            sizes.append(_ratio(variance, both[1:].var(ddof=1)))
        ess[d], apart[d] = min(sizes), max(gaps)
    return ess, apart


def _ratio(value: float, error: float) -> float:
    return 0.0 if value == 0 else value / error if error > 0 else math.inf
