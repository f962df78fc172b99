"""How an ensemble of the reference begins: over-dispersed, annealed, pushed apart, burnt in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import emcee
import numpy as np
from rich.progress import Progress
from torch import Tensor

from sbiflow.calibration.annealing import LogDensity, Population, anneal
from sbiflow.calibration.moves import EllipticMove
from sbiflow.calibration.space import ChainSpace, ChainTarget

_KEY = 7301
_MEMBERS = 400  # of the annealed population, at least
_WIDEN = 1.5  # the ensemble starts this many times wider than the annealed population
_START_WIDTH = 3.0  # width of the start density around supplied draws, in their standard deviations
_START_DOF = 5.0


def _start_density(
    space: ChainSpace, start: Tensor | None, rng: np.random.Generator, n: int
) -> tuple[np.ndarray, LogDensity]:
    """Draws (n, E) of the over-dispersed start density, and its log density up to a constant."""
    if start is None:
        z = space.prior.unconstrain(space.prior.from_uniform(rng.random((n, space.prior.dim))))[0].numpy()
        return space.from_base(z, rng), space.log_base
    y = space.from_base(space.prior.unconstrain(start)[0].numpy(), rng)
    centre = np.median(y, axis=0)
    spread = np.linalg.cholesky(
        np.cov(y.T).reshape(space.dim, -1) * _START_WIDTH**2 + 1e-12 * np.eye(space.dim)
    )
    scale = np.sqrt(_START_DOF / rng.chisquare(_START_DOF, (n, 1)))
    draws = centre + scale * rng.standard_normal((n, space.dim)) @ spread.T

    def log_density(point: np.ndarray) -> np.ndarray:  # multivariate Student t
        distance = (np.linalg.solve(spread, (point - centre).T) ** 2).sum(0)
        return -0.5 * (_START_DOF + space.dim) * np.log1p(distance / _START_DOF)

    return draws, log_density


def _dispersed_walkers(population: Population, walkers: int, rng: np.random.Generator) -> np.ndarray:
    """Members of the population, pushed along differences of other members: `_WIDEN` times as wide."""
    pick = rng.permutation(len(population.y))
    chosen, first, second = pick[:walkers], pick[walkers : 2 * walkers], pick[2 * walkers : 3 * walkers]
    push = math.sqrt((_WIDEN**2 - 1) / 2)
    return population.y[chosen] + push * (population.y[first] - population.y[second])


def _move_strays(chain: np.ndarray, logs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Last positions (W, E) after burn-in, those without posterior mass moved onto others; how many.

    A stray's best log posterior in the second half of burn-in lies more than 20 + D below the ensemble's
    median: that is where it was thrown and not a mode that counts. It happens before the chain begins and is
    reported.
    """
    half = logs[len(logs) // 2 :]
    stray = ~(half.max(axis=0) > np.median(half) - 20 - chain.shape[2])
    last, good = chain[-1].copy(), np.flatnonzero(~stray)
    source = rng.choice(good, (3, int(stray.sum())))
    last[stray] = last[source[0]] + 0.5 * (last[source[1]] - last[source[2]])
    return last, int(stray.sum())


def _sampler(
    target: ChainTarget, walkers: int, sample: np.ndarray, log_target: np.ndarray
) -> emcee.EnsembleSampler:
    """A sampler with a mixture of global and local moves; `sample` (m, E) shapes the global one."""
    moves = [
        (EllipticMove(sample, log_target), 0.5),
        (emcee.moves.DEMove(), 0.3),
        (emcee.moves.DEMove(gamma0=1.0), 0.1),  # hops between separate modes
        (emcee.moves.StretchMove(), 0.1),
    ]  # not DESnookerMove: in emcee 3.1.6 it makes an 8-D standard normal 23 % too narrow in variance
    return emcee.EnsembleSampler(walkers, target.space.dim, target, moves=moves, vectorize=True)


def begin(
    target: ChainTarget,
    start: Tensor | None,
    walkers: int,
    burn_in: Sequence[int],
    seed: int,
    which: int,
    progress: Progress,
) -> tuple[emcee.EnsembleSampler, emcee.State, int]:
    """Annealed, dispersed and burnt-in ensemble: a fresh sampler, its state, and how many strays were moved."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, _KEY, which]))
    task = progress.add_task(f"annealing ensemble {which + 1}", total=1.0)
    draws, log_start = _start_density(target.space, start, rng, max(_MEMBERS, 6 * walkers))
    population = anneal(log_start, target, draws, rng, lambda beta: progress.update(task, completed=beta))
    random_state = np.random.RandomState(rng.integers(2**32)).get_state()
    places, sample, log_target = (
        _dispersed_walkers(population, walkers, rng),
        population.y,
        population.log_target,
    )
    strays = 0
    for steps in burn_in:  # each round shapes the global move for the next
        burn = _sampler(target, walkers, sample, log_target)
        burn.run_mcmc(emcee.State(places, random_state=random_state), steps)
        random_state = burn.random_state
        places, moved = _move_strays(burn.get_chain(), burn.get_log_prob(), rng)
        strays += moved
        sample, log_target = (
            read(discard=steps // 3, flat=True) for read in (burn.get_chain, burn.get_log_prob)
        )
    sampler = _sampler(target, walkers, sample, log_target)
    return sampler, emcee.State(places, random_state=random_state), strays
