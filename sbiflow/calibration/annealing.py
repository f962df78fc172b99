"""Starting points for a Markov chain: a population annealed from an over-dispersed density to the posterior.

Sequential Monte Carlo over start^(1-beta) * target^beta: beta grows so that the weights keep half of the
effective sample size, the population is resampled, and differential-evolution moves (which need no tuning to
scale, correlation or separate modes) refresh it. Modes are thereby weighted by their mass, and no member
stays where the posterior is negligible.

Sources: Del Moral, Doucet & Jasra (2006), J. R. Stat. Soc. B 68, 411; ter Braak (2006), Stat. Comput. 16,
239.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

LogDensity = Callable[[np.ndarray], np.ndarray]

_KEEP = 0.5  # fraction of the effective sample size that one temperature step keeps
_JUMPS = 2.0  # accepted moves per member and temperature
_MAX_SWEEPS = 40
_MODE_HOPS = 0.1  # fraction of moves by the full difference, which connects separate modes


@dataclass(frozen=True)
class Population:
    """Members y (m, E) with their log target density (m,), and the number of temperatures it took."""

    y: np.ndarray
    log_target: np.ndarray
    n_temperatures: int


def _next_beta(log_ratio: np.ndarray, beta: float) -> float:
    """Largest beta at which the incremental weights keep `_KEEP` of the members, by bisection."""

    def kept(step: float) -> float:
        weights = step * log_ratio
        return float(np.exp(2 * logsumexp(weights) - logsumexp(2 * weights))) / len(weights)

    if kept(1 - beta) >= _KEEP:
        return 1.0
    low, high = np.log(1e-12), np.log(1 - beta)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(np.exp(middle)) >= _KEEP else (low, middle)
    return beta + float(np.exp(low))


def systematic_resample(log_weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices drawn in proportion to exp(log_weights), each member within one of its expected count."""
    weights = np.exp(log_weights - logsumexp(log_weights))
    places = (rng.random() + np.arange(len(weights))) / len(weights)
    return np.minimum(np.searchsorted(np.cumsum(weights), places), len(weights) - 1)


def _sweep(
    y: np.ndarray, values: np.ndarray, density: Callable, scale: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """One differential-evolution move of every member, each half moved along differences within the other.

    `values` (k, m) are the columns that `density` returns for y, the first the log density that is sampled.
    """
    order = rng.permutation(len(y))
    halves = (order[::2], order[1::2])
    accepted = 0
    for moving, still in (halves, halves[::-1]):
        first = rng.integers(len(still), size=len(moving))
        second = (first + 1 + rng.integers(len(still) - 1, size=len(moving))) % len(still)
        gamma = np.where(rng.random(len(moving)) < _MODE_HOPS, 1.0, scale * 2.38 / np.sqrt(2 * y.shape[1]))
        step = gamma[:, None] * (y[still[first]] - y[still[second]])
        proposed = y[moving] + step * (1 + 0.05 * rng.standard_normal((len(moving), 1)))
        new = density(proposed)
        take = np.log(rng.random(len(moving))) < new[0] - values[0, moving]
        y[moving[take]] = proposed[take]
        values[:, moving[take]] = new[:, take]
        accepted += int((take & (step != 0).any(1)).sum())
    return y, values, accepted / len(y)


def anneal(
    log_start: LogDensity,
    log_target: LogDensity,
    y: np.ndarray,
    rng: np.random.Generator,
    report: Callable[[float], None] = lambda beta: None,
) -> Population:
    """Carry draws y (m, E) of the start density to the target density.

    Args:
        log_start, log_target: (m, E) -> (m,), up to constants; -inf is allowed for the target.
        y: draws of the start density; m of a thousand or more.
        rng: source of all randomness.
        report: called with beta in (0, 1] after each temperature.

    Raises:
        ValueError: no member has a finite target density.
    """
    y = y.copy()
    target, start = log_target(y), log_start(y)
    if not np.isfinite(target).any():
        raise ValueError(
            f"log_likelihood: expected a finite value somewhere, got none in {len(y)} starting points"
        )
    beta, scale, temperatures = 0.0, 1.0, 0
    while beta < 1:
        log_ratio = target - start
        new_beta = _next_beta(log_ratio, beta)
        keep = systematic_resample((new_beta - beta) * log_ratio, rng)
        y, target, start, beta = y[keep], target[keep], start[keep], new_beta

        def density(point: np.ndarray, beta: float = beta) -> np.ndarray:
            at_start, at_target = log_start(point), log_target(point)
            return np.stack([(1 - beta) * at_start + beta * at_target, at_start, at_target])

        values = np.stack([(1 - beta) * start + beta * target, start, target])
        jumps = 0.0
        for _ in range(_MAX_SWEEPS):
            y, values, rate = _sweep(y, values, density, scale, rng)
            jumps += rate
            scale = float(np.clip(scale * (0.8 if rate < 0.15 else 1.25 if rate > 0.4 else 1.0), 0.05, 1.5))
            if jumps >= _JUMPS:
                break
        _, start, target = values
        temperatures += 1
        report(beta)
    return Population(y, target, temperatures)
