"""A Markov-chain posterior to compare with, which says whether it has converged.

Two ensembles, independent from the first random number on. Each begins over-dispersed: a population is drawn
from the prior (or from a heavy-tailed density several times as wide as supplied draws), annealed to the
posterior so that separate modes carry their mass, and its members are pushed apart again before the chain
starts. Then emcee (Foreman-Mackey et al. 2013, arXiv 1202.3665; moves of ter Braak 2006 and Goodman & Weare
2010) runs in the unconstrained space until each ensemble is 100 autocorrelation times long, rank-normalised
split-R-hat across the ensembles is at most 1.01 and every parameter has an effective sample size of 2,500 -
or until `max_steps`, and then the result says what is missing. For unimodal or mildly multimodal problems of
up to about 15 parameters.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import emcee
import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from sbiflow.calibration.convergence import autocorrelation_time, rank_rhat
from sbiflow.calibration.ensemble import begin
from sbiflow.calibration.space import ChainSpace, ChainTarget
from sbiflow.checks import as_tensor, check_count, check_finite, check_shape
from sbiflow.importance import LogLikelihood
from sbiflow.priors import Prior
from sbiflow.samples import PosteriorSamples
from sbiflow.seeding import check_seed

MIN_TIMES = 100.0  # chain length in autocorrelation times
MAX_RHAT = 1.01
MIN_ESS = 2500.0
_BURN_IN = (300, 600)  # steps of its two rounds, at most
_THIN = 4  # steps per stored state; autocorrelation times are tens of steps
_MAX_DRAWS = 20_000


@dataclass(frozen=True)
class Reference:
    """Draws of a Markov chain and the evidence for its convergence.

    Attributes:
        theta: (m, D) float64, physical units; thinned, both ensembles, autocorrelation still present.
        converged: whether every criterion was met; `reasons` lists those that were not.
        tau: autocorrelation time per parameter in steps (the larger of the two ensembles), (D,).
        rhat: rank-normalised split-R-hat across the ensembles per parameter, (D,).
        ess: effective sample size per parameter, both ensembles, (D,).
        n_steps, n_walkers: length of each ensemble's chain after burn-in, walkers per ensemble.
        acceptance: mean acceptance fraction.
        n_likelihood_calls: likelihood evaluations (rows), all of them: annealing, burn-in and chain.
        warnings: what happened on the way (walkers moved at burn-in, NaN likelihoods).
    """

    theta: Tensor
    prior: Prior
    x: Tensor
    converged: bool
    reasons: tuple[str, ...]
    tau: np.ndarray
    rhat: np.ndarray
    ess: np.ndarray
    n_steps: int
    n_walkers: int
    acceptance: float
    n_likelihood_calls: int
    seed: int
    warnings: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.prior.names)

    def samples(self) -> PosteriorSamples:
        """The draws as a result object; log_q is NaN, because a Markov chain does not know its
        normalisation."""
        log_q = torch.full((len(self.theta),), math.nan, dtype=torch.float64)
        failed = () if self.converged else ("MCMC has not converged: " + "; ".join(self.reasons),)
        return PosteriorSamples(
            self.theta, log_q, self.x, self.prior, self.seed, "emcee reference", failed + self.warnings
        )

    def __str__(self) -> str:
        state = "converged" if self.converged else "NOT CONVERGED: " + "; ".join(self.reasons)
        lines = [
            f"emcee reference: {state}",
            f"2 ensembles x {self.n_walkers} walkers x {self.n_steps} steps, "
            f"acceptance {self.acceptance:.2f}, {self.n_likelihood_calls:,} likelihoods",
            f"{'parameter':<20}{'tau':>8}{'R-hat':>9}{'ESS':>10}",
        ]
        rows = zip(self.names, self.tau, self.rhat, self.ess, strict=True)
        lines += [f"{name:<20}{tau:>8.1f}{rhat:>9.4f}{ess:>10.0f}" for name, tau, rhat, ess in rows]
        return "\n".join([*lines, *self.warnings])


@dataclass(frozen=True)
class _State:
    """What both chains (n stored, W, E) say so far."""

    tau: np.ndarray  # steps, per parameter, then of the log posterior
    rhat: np.ndarray
    kept: tuple[np.ndarray, np.ndarray]
    n_steps: int

    @property
    def ess(self) -> np.ndarray:
        walkers = self.kept[0].shape[1]
        return 2 * walkers * self.n_steps / self.tau[:-1]

    def failures(self, names: tuple[str, ...]) -> tuple[str, ...]:
        labels = (*names, "log posterior")
        short = [labels[i] for i in np.flatnonzero(self.n_steps < MIN_TIMES * self.tau)]
        apart = [f"{labels[i]} {self.rhat[i]:.3f}" for i in np.flatnonzero(~(self.rhat <= MAX_RHAT))]
        few = [f"{names[i]} {self.ess[i]:.0f}" for i in np.flatnonzero(~(self.ess >= MIN_ESS))]
        reasons = []
        if short:
            times = self.n_steps / self.tau.max()
            reasons.append(
                f"shorter than {MIN_TIMES:g} autocorrelation times ({times:.1f}): {', '.join(short)}"
            )
        if apart:
            reasons.append(f"the ensembles disagree, R-hat above {MAX_RHAT}: {', '.join(apart)}")
        if few:
            reasons.append(f"effective sample size below {MIN_ESS:g}: {', '.join(few)}")
        return tuple(reasons)


def _quantities(space: ChainSpace, chains: tuple[np.ndarray, np.ndarray]) -> list[list[np.ndarray]]:
    """Per parameter, the two arrays (n, W) to judge: z, or the angle from the mean direction of all draws."""
    base = [space.to_base(c.reshape(-1, space.dim)).reshape(*c.shape[:2], -1) for c in chains]
    for d in np.flatnonzero(space.periodic):
        centre = np.angle(sum(np.exp(1j * z[..., d]).mean() for z in base))
        for z in base:
            z[..., d] = (z[..., d] - centre + np.pi) % (2 * np.pi) - np.pi
    return [[z[..., d] for z in base] for d in range(space.prior.dim)]


def _judge(space: ChainSpace, samplers: list[emcee.EnsembleSampler]) -> _State:
    chains = [s.get_chain() for s in samplers]
    logs = [s.get_log_prob() for s in samplers]
    tau = np.zeros(space.prior.dim + 1)
    for skip in (0, len(chains[0]) // 5):  # a first estimate decides how much of the beginning to leave out
        start = min(skip, math.ceil(10 * np.nan_to_num(tau, posinf=1e9).max() / _THIN))
        kept = (chains[0][start:], chains[1][start:])
        pairs = [*_quantities(space, kept), [log[start:] for log in logs]]
        tau = _THIN * np.array([max(autocorrelation_time(chain) for chain in pair) for pair in pairs])
    rhat = np.array([rank_rhat(np.stack([chain.reshape(-1) for chain in pair])) for pair in pairs])
    return _State(tau, rhat, kept, _THIN * len(kept[0]))


def emcee_reference(
    log_likelihood: LogLikelihood,
    prior: Prior,
    x: Tensor,
    *,
    seed: int,
    start: Tensor | None = None,
    walkers: int | None = None,
    max_steps: int = 20_000,
    threads: int = 1,
    progress: bool = True,
) -> Reference:
    """Posterior draws by ensemble MCMC, with the evidence for their convergence.

    Args:
        log_likelihood: theta (m, D) float64 in physical units, x -> (m,) in nats; called with 50 to 4096
            rows.
        prior: the prior; the chain never leaves its support.
        x: one observation (*x_shape).
        seed: the same seed gives the same chain.
        start: draws (n, D) of an approximate posterior, n > 10 D: shortens the annealing, which then begins
            three times wider than they are. Without, it begins at the prior.
        walkers: per ensemble, even; by default 4 per dimension and at least 40.
        max_steps: per ensemble, burn-in excluded: 300 and 600 steps, or a quarter and a half of this if less.
        threads: 2 runs the ensembles side by side, with the same result; `log_likelihood` is then called from two
            threads at once. It pays where a call spends milliseconds outside of Python; many small tensor operations
            wait for each other, and the Stokes chains take 1.3 to 1.8 times as long as with 1.
        progress: show a progress bar.

    Raises:
        ValueError: wrong shapes, `start` outside the support, a likelihood of +inf or one that is zero
            everywhere.
    """
    check_seed(seed)
    x = as_tensor(x, "x").detach().double().cpu()
    check_finite(x, "x")
    check_count(max_steps, "max_steps", 400)
    check_count(threads, "threads")
    space = ChainSpace(prior)
    if start is not None:
        start = as_tensor(start, "start").detach().double().cpu()
        check_shape(start, "start", ("n", prior.dim))
        check_count(len(start), "number of start draws", 10 * prior.dim + 1)
    if walkers is None:
        walkers = max(4 * space.dim, 40)
    if check_count(walkers, "walkers", 2 * space.dim + 2) % 2:
        raise ValueError(f"walkers: expected an even number, got {walkers}")

    targets = [ChainTarget(space, log_likelihood, x) for _ in range(2)]
    burn_in = (min(_BURN_IN[0], max_steps // 4), min(_BURN_IN[1], max_steps // 2))
    with Progress(transient=True, disable=not progress) as bar, ThreadPoolExecutor(threads) as pool:
        begun = list(pool.map(lambda i: begin(targets[i], start, walkers, burn_in, seed, i, bar), range(2)))
        samplers, positions = [b[0] for b in begun], [b[1] for b in begun]
        task = bar.add_task("ensemble MCMC", total=max_steps)
        done, length = 0, min(1000, max_steps)

        def extend(i: int, start: int, stop: int) -> None:
            for part in range(start, stop, 200):
                count = math.ceil(min(200, stop - part) / _THIN)
                positions[i] = samplers[i].run_mcmc(positions[i], count, thin_by=_THIN)
                bar.advance(task, _THIN * count / 2)

        while True:
            list(pool.map(extend, range(2), [done] * 2, [length] * 2))
            done = length
            state = _judge(space, samplers)
            reasons = state.failures(tuple(prior.names))
            if not reasons or done >= max_steps:
                break
            need = 1.1 * MIN_TIMES * np.nan_to_num(state.tau.max(), posinf=1e9) + done - state.n_steps
            length = int(min(max_steps, max(1.25 * done, min(need, 3 * done))))
            bar.update(task, total=int(min(max_steps, max(need, length))))
    return _result(targets, samplers, state, reasons, sum(b[2] for b in begun), seed)


def _result(
    targets: list[ChainTarget],
    samplers: list[emcee.EnsembleSampler],
    state: _State,
    reasons: tuple[str, ...],
    strays: int,
    seed: int,
) -> Reference:
    n, walkers, dim = state.kept[0].shape
    every = max(1, math.ceil(2 * n * walkers / _MAX_DRAWS))
    draws = np.concatenate([chain[::-every][::-1].reshape(-1, dim) for chain in state.kept])
    warnings = []
    if strays:
        warnings.append(
            f"{strays} of {2 * walkers} walkers had no posterior mass after burn-in and were moved"
        )
    n_nan, n_rows = sum(target.n_nan for target in targets), sum(target.n_rows for target in targets)
    if n_nan:
        warnings.append(f"the log-likelihood was NaN for {n_nan} of {n_rows} points (taken as zero)")
    return Reference(
        theta=targets[0].theta(draws),
        prior=targets[0].space.prior,
        x=targets[0].x,
        converged=not reasons,
        reasons=reasons,
        tau=state.tau[:-1],
        rhat=state.rhat[:-1],
        ess=state.ess,
        n_steps=state.n_steps,
        n_walkers=walkers,
        acceptance=float(np.mean([s.acceptance_fraction for s in samplers])),
        n_likelihood_calls=n_rows,
        seed=seed,
        warnings=tuple(warnings),
    )
