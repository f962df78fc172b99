"""A nested-sampling posterior to compare with, for several modes and for the evidence.

Two runs of dynesty (Speagle 2020, arXiv 1904.02180), independent from the first random number on, in the prior's
unit cube. They have to agree in the evidence and in every parameter, and the effective sample size of every
parameter has to suffice, or the result says what is missing. Errors are from bootstraps over the strands of live
points (Higson et al. 2018, arXiv 1704.03459): the weight of a mode rests on the live points that found it, which
the effective sample size of the weights would not show.

Why dynesty: it is pure Python, maintained, and hands its walks to a pool, so that they can be made a batch.
UltraNest and nautilus are as good where a likelihood costs milliseconds, and spend more time in themselves where
a batched one costs microseconds; pocoMC rests on a flow, which is what it would have to judge; zeus gives no
evidence. For one mode and up to about ten parameters `emcee_reference` has the smaller errors.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from sbiflow.calibration.strands import NestedRun, bootstrap, compare_runs
from sbiflow.calibration.walk import CubeTarget, WalkPool, dynesty
from sbiflow.checks import as_tensor, check_count, check_finite, check_positive
from sbiflow.importance import LogLikelihood
from sbiflow.priors import Prior
from sbiflow.samples import PosteriorSamples
from sbiflow.seeding import check_seed

MIN_ESS = 400.0
AGREE = 4.0  # standard errors between the two runs: one false alarm in 16,000 per quantity
_KEY = 0x4E53


@dataclass(frozen=True)
class NestedReference:
    """Equally weighted draws of nested sampling, the evidence, and whether to believe both.

    Attributes:
        theta: (m, D) float64, physical units; every dead point at most once.
        converged: whether every criterion was met; `reasons` lists those that were not.
        ess: number of independent draws that would give each parameter's mean and spread the same error, (D,);
            above m where the two runs know more than their equally weighted draws.
        log_evidence, log_evidence_error: of both runs together [nats].
        runs: the same two numbers of each run.
        n_likelihood_calls: likelihood evaluations (rows), both runs.
        warnings: what happened on the way (NaN likelihoods, dynesty's own warnings).
    """

    theta: Tensor
    prior: Prior
    x: Tensor
    converged: bool
    reasons: tuple[str, ...]
    ess: np.ndarray
    log_evidence: float
    log_evidence_error: float
    runs: tuple[tuple[float, float], ...]
    nlive: int
    n_likelihood_calls: int
    seed: int
    warnings: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.prior.names)

    def samples(self) -> PosteriorSamples:
        """The draws as a result object; log_q is NaN: nested sampling does not know its density."""
        log_q = torch.full((len(self.theta),), math.nan, dtype=torch.float64)
        failed = () if self.converged else ("nested sampling has not converged: " + "; ".join(self.reasons),)
        return PosteriorSamples(
            self.theta, log_q, self.x, self.prior, self.seed, "nested reference", failed + self.warnings
        )

    def __str__(self) -> str:
        state = "converged" if self.converged else "NOT CONVERGED: " + "; ".join(self.reasons)
        each = ", ".join(f"{value:.3f} ± {error:.3f}" for value, error in self.runs)
        lines = [
            f"nested reference: {state}",
            f"2 runs x {self.nlive} live points, {self.n_likelihood_calls:,} likelihoods, {len(self.theta):,} draws",
            f"log evidence {self.log_evidence:.3f} ± {self.log_evidence_error:.3f} nats (runs: {each})",
            f"{'parameter':<20}{'ESS':>10}",
            *(f"{name:<20}{ess:>10.0f}" for name, ess in zip(self.names, self.ess, strict=True)),
        ]
        return "\n".join([*lines, *self.warnings])


def _run(target: CubeTarget, nlive: int, dlogz: float, walks: int, max_calls: int, seed: int, bar: Progress,
         label: str) -> NestedRun:  # fmt: skip
    rng = np.random.default_rng([check_seed(seed), _KEY, int(label)])
    periodic = np.flatnonzero(target.prior.periodic.numpy())
    task = bar.add_task(f"nested sampling, run {label}", total=None)

    def report(step: object, *_: object, **__: object) -> None:
        left = getattr(step, "delta_logz", math.nan)
        bar.update(task, advance=1, description=f"nested sampling, run {label}: {left:.3g} nats left")

    pool = WalkPool(target)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sampler = dynesty("dynesty").NestedSampler(
            target.one,
            lambda u: u,
            target.prior.dim,
            nlive=nlive,
            bound="multi",
            sample="rwalk",
            walks=walks,
            periodic=periodic if len(periodic) else None,
            rstate=rng,
            pool=pool,
            queue_size=max(nlive // 8, 1),  # a point goes to waste if the threshold passes it in the queue
            use_pool={"prior_transform": False, "update_bound": False},
            first_update={
                "min_ncall": 0,
                "min_eff": math.inf,
            },  # leave the cube, whose draws are no batch, at once
        )
        pool.sampler = sampler
        sampler.run_nested(dlogz=dlogz, maxcall=max_calls, print_func=report)
    bar.remove_task(task)
    found = sampler.results
    logl, strand = np.asarray(found.logl), np.unique(found.samples_id, return_inverse=True)[1]
    boot = sampler.logvol_init + bootstrap(logl, strand, nlive, rng)
    notes = tuple(dict.fromkeys(str(item.message) for item in caught))
    return NestedRun(np.asarray(found.samples_u), boot, sampler.ncall <= max_calls, notes)


def nested_reference(
    log_likelihood: LogLikelihood,
    prior: Prior,
    x: Tensor,
    *,
    seed: int,
    nlive: int = 1000,
    dlogz: float = 0.01,
    walks: int | None = None,
    max_calls: int = 20_000_000,
    progress: bool = True,
) -> NestedReference:
    """Posterior draws and evidence by nested sampling, with the evidence for their convergence.

    Args:
        log_likelihood: theta (m, D) float64 in physical units, x -> (m,) in nats, normalised over x where the
            evidence is to be; called with up to nlive / 8 rows at a time.
        prior: the prior.
        x: one observation (*x_shape).
        seed: the same seed gives the same result.
        nlive: live points of each run; errors fall as 1 / sqrt(nlive), the cost is proportional.
        dlogz: a run ends when the live points hold less than this much of the log evidence [nats].
        walks: steps of a walk; by default 25 + 5 per dimension. More where parameters are strongly curved.
        max_calls: likelihood evaluations for both runs, after which they stop, unconverged.
        progress: show a progress bar.

    Raises:
        ImportError: dynesty is not installed (extra `nested`).
        ValueError: a NaN in x, fewer than 50 or 4 D live points, a likelihood of +inf, of a wrong shape, one that
            is zero everywhere, or one that is constant on a plateau below its maximum.
    """
    x = as_tensor(x, "x").detach().double().cpu()
    check_finite(x, "x")
    check_seed(seed)
    check_count(nlive, "nlive", max(50, 4 * prior.dim))
    check_positive(dlogz, "dlogz")
    check_count(max_calls, "max_calls")
    walks = 25 + 5 * prior.dim if walks is None else check_count(walks, "walks", 2)
    target = CubeTarget(prior, log_likelihood, x)
    target(np.full((1, prior.dim), 0.5))  # a likelihood that raises or has a wrong shape shows itself here
    with Progress(transient=True, disable=not progress) as bar:
        try:
            runs = [
                _run(target, nlive, dlogz, walks, max_calls // 2, seed, bar, label) for label in ("1", "2")
            ]
        except RuntimeError as error:
            raise ValueError(
                f"log_likelihood: expected one that nested sampling can climb, got: {error}"
            ) from None
    return _result(target, runs, nlive, dlogz, seed)


def _result(
    target: CubeTarget, runs: list[NestedRun], nlive: int, dlogz: float, seed: int
) -> NestedReference:
    prior = target.prior
    ess, apart = compare_runs(runs, prior)
    each = tuple(run.log_evidence for run in runs)
    (z1, e1), (z2, e2) = each
    reasons = []
    if not all(run.finished for run in runs):
        reasons.append(f"stopped by max_calls before {dlogz:g} nats of the evidence were left")
    if not abs(z1 - z2) <= AGREE * math.hypot(e1, e2):
        reasons.append(f"the runs disagree in the log evidence: {z1:.3f} ± {e1:.3f} and {z2:.3f} ± {e2:.3f}")
    far = [f"{prior.names[d]} by {apart[d]:.1f} standard errors" for d in np.flatnonzero(~(apart <= AGREE))]
    if far:
        reasons.append(f"the runs disagree: {', '.join(far)}")
    few = [f"{prior.names[d]} {ess[d]:.0f}" for d in np.flatnonzero(~(ess >= MIN_ESS))]
    if few:
        reasons.append(f"effective sample size below {MIN_ESS:g} (raise nlive): {', '.join(few)}")
    notes = [note for run in runs for note in run.notes]
    if target.n_nan:
        notes.append(
            f"the log-likelihood was NaN for {target.n_nan} of {target.n_rows} points (taken as zero)"
        )
    u, log_weights = np.concatenate([run.u for run in runs]), np.concatenate([run.boot[0] for run in runs])
    return NestedReference(
        theta=target.theta(u[_equal_weights(log_weights, np.random.default_rng([seed, _KEY]))]),
        prior=prior,
        x=target.x,
        converged=not reasons,
        reasons=tuple(reasons),
        ess=ess,
        log_evidence=float(np.logaddexp(z1, z2) - math.log(2)),
        log_evidence_error=max(math.hypot(e1, e2), abs(z1 - z2)) / 2,
        runs=each,
        nlive=nlive,
        n_likelihood_calls=target.n_rows,
        seed=seed,
        warnings=tuple(dict.fromkeys(notes)),
    )


def _equal_weights(log_weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices, each at most once, with a chance proportional to the weight: systematic, then shuffled."""
    share = np.exp(log_weights - log_weights.max())
    edges = np.cumsum(share)
    places = np.arange(rng.random(), edges[-1], 1.0)
    return rng.permutation(np.minimum(np.searchsorted(edges, places), len(edges) - 1))
