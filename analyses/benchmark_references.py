"""Reference draws and evidences for the ten tasks of the benchmark, from their likelihoods alone.

Where a task has a closed form it is used. Elsewhere a population annealed from the prior to the posterior shapes a
mixture of t distributions, which weighted draws refit a few times; then its draws, accepted in proportion to their
importance weights, are independent draws of the posterior, and the mean weight is the evidence. Unlike a Markov chain
this says how far off it may be: the effective sample size and Pareto k-hat of the final weights. (Cappé et al. 2008,
arXiv 0710.4242; rejection with the largest weight seen as bound: Caffo et al. 2002, Biometrika 89, 745.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.special import gammaln, logsumexp
from torch import Tensor

from sbiflow.calibration.annealing import anneal, systematic_resample
from sbiflow.calibration.mixture import fit_mixture
from sbiflow.importance import WeightDiagnostics, diagnose
from sbiflow.seeding import check_seed

FOLDED = {"slcp": (2, 3), "slcp_distractors": (2, 3)}
"""Parameters in whose signs the posterior is symmetric: half the prior's space is enough."""
MEMBERS, COMPONENTS, FREEDOM = 1000, 12, 6.0
ROUNDS = (4_000, 10_000, 20_000)  # draws that refit the mixture
FINAL = 50_000  # draws of which the evidence is the mean weight
FIT = 4_000  # members that a refit sees
DEFENCE = 0.05  # share of the proposal that is the prior: no place is left out

_Arrays = tuple[np.ndarray, np.ndarray]


class Chart:
    """Coordinates y of a task's posterior: z of the prior, or log |z| for a folded parameter."""

    def __init__(self, subject: Any, x: Tensor) -> None:
        self.subject, self.x = subject, torch.as_tensor(x, dtype=torch.float64)
        self.dim, self.folded = subject.prior.dim, list(FOLDED.get(subject.name, ()))
        self.n_nan = 0

    def base(self, y: np.ndarray) -> np.ndarray:
        """z of y, positive where folded."""
        z = y.copy()
        z[:, self.folded] = np.exp(y[:, self.folded])
        return z

    def theta(self, z: np.ndarray) -> Tensor:
        """Parameters of z."""
        return self.subject.prior.constrain(torch.from_numpy(z))[0]

    def log_prior(self, y: np.ndarray) -> np.ndarray:
        """Log-density of the prior, folded, in y: it integrates to one."""
        normal = -0.5 * (self.base(y) ** 2 + math.log(2 * math.pi))
        log_density = normal.sum(1) + (y[:, self.folded] + math.log(2.0)).sum(1)
        return log_density.clip(min=-1e300)  # finite where e^y overflows: annealing takes differences

    def prior_draws(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """y of n draws of the prior."""
        y = rng.standard_normal((n, self.dim))
        y[:, self.folded] = np.log(np.abs(y[:, self.folded]))
        return y

    def log_posterior(self, y: np.ndarray) -> np.ndarray:
        """Log of prior times likelihood in y; -inf, and counted, where the likelihood is NaN."""
        parts = self.theta(self.base(y)).split(4096)
        values = torch.cat([self.subject.log_likelihood(part, self.x) for part in parts]).numpy()
        self.n_nan += int(np.isnan(values).sum())
        return np.where(np.isnan(values), -np.inf, values) + self.log_prior(y)

    def unfold(self, z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """z with random signs where folded."""
        z[:, self.folded] *= rng.choice([-1.0, 1.0], (len(z), len(self.folded)))
        return z


@dataclass(frozen=True)
class Proposal:
    """A mixture of t distributions, with a share of the prior."""

    chart: Chart
    weights: np.ndarray
    means: np.ndarray
    roots: np.ndarray

    @classmethod
    def fit(cls, chart: Chart, members: np.ndarray, rng: np.random.Generator) -> Proposal:
        """To equally weighted members (m, D)."""
        weights, means, covariances = fit_mixture(members, COMPONENTS, rng)
        return cls(chart, weights, means, np.linalg.cholesky(covariances))

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """n draws (n, D)."""
        picked = rng.choice(len(self.weights), n, p=self.weights)
        normal = np.einsum("nij,nj->ni", self.roots[picked], rng.standard_normal((n, self.chart.dim)))
        y = self.means[picked] + normal * np.sqrt(FREEDOM / rng.chisquare(FREEDOM, (n, 1)))
        safe = rng.random(n) < DEFENCE
        y[safe] = self.chart.prior_draws(int(safe.sum()), rng)
        return y

    def log_density(self, y: np.ndarray) -> np.ndarray:
        """Normalised, (n, D) -> (n,)."""
        d = self.chart.dim
        constant = (
            gammaln(0.5 * (FREEDOM + d)) - gammaln(0.5 * FREEDOM) - 0.5 * d * math.log(FREEDOM * math.pi)
        )
        parts = [self.chart.log_prior(y) + math.log(DEFENCE)]
        for weight, mean, root in zip(self.weights, self.means, self.roots, strict=True):
            squares = (np.linalg.solve(root, (y - mean).T) ** 2).sum(0)
            log_scale = np.log(np.diag(root)).sum() - math.log(weight * (1 - DEFENCE))
            parts.append(constant - log_scale - 0.5 * (FREEDOM + d) * np.log1p(squares / FREEDOM))
        return logsumexp(parts, axis=0)

    def weighted(self, n: int, rng: np.random.Generator) -> _Arrays:
        """n draws and their log-weights."""
        y = self.draw(n, rng)
        return y, self.chart.log_posterior(y) - self.log_density(y)


@dataclass(frozen=True)
class Solved:
    """A posterior without a closed form.

    Attributes:
        proposal: what it is drawn from.
        y, log_weights: the draws of the last round, which count in `draws` first.
        diagnostics: of these weights, with the log-evidence and its error.
        n_nan: rows, of all, whose likelihood was NaN.
    """

    proposal: Proposal
    y: np.ndarray
    log_weights: np.ndarray
    diagnostics: WeightDiagnostics = field(repr=False)
    n_nan: int

    def draws(self, n: int, seed: int) -> Tensor:
        """n independent draws (n, D), float64, in the task's own parameters.

        Raises:
            RuntimeError: a thousand rounds were not enough.
        """
        rng, chart = np.random.default_rng([check_seed(seed), 2]), self.proposal.chart
        y, log_weights = self.y, self.log_weights
        bound, kept = log_weights.max(), np.empty((0, chart.dim))
        for _ in range(1000):
            higher = max(bound, log_weights.max())
            kept = kept[np.log(rng.random(len(kept))) < bound - higher]
            bound = higher
            kept = np.concatenate([kept, y[np.log(rng.random(len(y))) < log_weights - bound]])
            if len(kept) >= n:
                chosen = kept[rng.permutation(len(kept))[:n]]
                return chart.theta(chart.unfold(chart.base(chosen), rng))
            y, log_weights = self.proposal.weighted(ROUNDS[-1], rng)
        raise RuntimeError(f"expected {n} accepted draws, got {len(kept)}")


def solve(subject: Any, x: Tensor, seed: int, final: int = FINAL) -> Solved:
    """The posterior of an observation in the task's raw format."""
    rng, chart = np.random.default_rng([check_seed(seed), 1]), Chart(subject, x)
    start = chart.prior_draws(MEMBERS, rng)
    members = anneal(chart.log_prior, chart.log_posterior, start, rng).y
    for n in ROUNDS:
        y, log_weights = Proposal.fit(chart, members, rng).weighted(n, rng)
        # a weight above FIT-th of all is cut in the fit only, where it would be one member many times over
        cut = np.minimum(log_weights, logsumexp(log_weights) - math.log(FIT / 4))
        members = y[systematic_resample(cut, rng)][rng.permutation(n)[:FIT]]
    proposal = Proposal.fit(chart, members, rng)
    y, log_weights = proposal.weighted(final, rng)
    diagnostics = diagnose(torch.from_numpy(log_weights))
    return Solved(proposal, y, log_weights, diagnostics, chart.n_nan)


def reference(subject: Any, x: Tensor, n: int, seed: int) -> Tensor:
    """n independent draws (n, D), float64, in the task's own parameters, of an observation in its raw format.

    Raises:
        RuntimeError: the final weights do not bear the draws.
    """
    if hasattr(subject, "reference"):
        return subject.reference(x, n, seed)
    return _reliable(subject, x, seed).draws(n, seed)


def log_evidence(subject: Any, x: Tensor, seed: int = 0) -> tuple[float, float]:
    """log p(x) [nats] and its error, of the raw observation.

    Raises:
        RuntimeError: the final weights do not bear it.
    """
    if hasattr(subject, "log_evidence"):
        return subject.log_evidence(x)
    found = _reliable(subject, x, seed).diagnostics
    return found.log_evidence, found.log_evidence_error


def _reliable(subject: Any, x: Tensor, seed: int) -> Solved:
    """`solve`, or a RuntimeError: a reference that may be wrong is none."""
    found = solve(subject, x, seed)
    if not found.diagnostics.reliable:
        raise RuntimeError(f"{subject.name}: expected a reliable reference, got: {found.diagnostics.verdict}")
    return found
