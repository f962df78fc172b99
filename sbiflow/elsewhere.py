"""Does the proposal miss a part of the posterior? A few likelihoods where it does not draw.

No weight shows posterior mass at a place where q never draws. So m further points are drawn from another density
r, half of them from the prior and half from a heavy-tailed density around the weighted draws, 1.5 times as wide;
each carries the share v = p(x|θ) p(θ) / (m r(θ) Z) of the posterior. Where its weight under q, p(x|θ) p(θ) / q(θ),
exceeds every weight among the draws, the draws know nothing of such places, and the sum of these v estimates the
posterior mass that they lack: unbiased whatever r. It is the check that a defensive mixture would do (Hesterberg
1995, Technometrics 37, 185; Owen & Zhou 2000, JASA 95, 135), with the draws left as they are.

What stays invisible: a mode that neither half reaches, far from the draws and small against the prior. `reach` says
how small: the prior's half is worth K posterior draws, and one of K sees a mass f with probability 1 − (1 − f)^K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbiflow.contracts import Proposal
from sbiflow.importance import (
    Elsewhere,
    LogLikelihood,
    effective_sample_size,
    evaluate_log_likelihood,
    importance_weights,
)
from sbiflow.optional import deferred
from sbiflow.priors import Prior
from sbiflow.seeding import check_seed

stats = deferred("scipy.stats")

INFLATE = 1.5
_DOF = 5.0
_SEEN = 0.95
_MARGIN = 0.2  # nats above the largest weight: rounding is below it, and so is what the draws as good as show
_KEY = 0xE15E


def look_elsewhere(
    theta: Tensor,
    log_weights: Tensor,
    x: Tensor,
    prior: Prior,
    proposal: Proposal,
    log_likelihood: LogLikelihood,
    n: int,
    seed: int,
) -> Elsewhere:
    """Likelihoods at n places that the proposal may have missed.

    Args:
        theta, log_weights: the draws (m, D) and their log-weights (m,), at least D + 2 above -inf.
        x: the observation (*x_shape).
        prior: of the posterior.
        proposal: that drew theta; only its `log_prob` is called.
        log_likelihood: (k, D), (*x_shape) -> (k,) [nats].
        n: likelihoods, an even number is used.
        seed: of the places.
    """
    rng = np.random.default_rng([check_seed(seed), _KEY])
    around = _Around.fit(prior, theta, log_weights)
    half = max(n // 2, 1)
    z = np.concatenate([_prior_base(prior, half, rng), around.draw(half, rng)])
    base = prior.base_log_prob(torch.from_numpy(z)).numpy()
    log_r = np.logaddexp(base, around.log_density(z)) - math.log(2)
    places, log_jacobian = prior.constrain(torch.from_numpy(z))
    like = evaluate_log_likelihood(log_likelihood, places, x, progress=False)
    log_q = proposal.log_prob(places, x.expand(len(places), *x.shape)).double().cpu()
    log_prior = prior.log_prob(places)
    posterior, _ = importance_weights(like, log_prior, torch.from_numpy(log_r) - log_jacobian)
    at_q = like.nan_to_num(nan=-math.inf) + log_prior - log_q
    log_z = float(log_weights.logsumexp(0)) - math.log(len(log_weights))
    share = (posterior - log_z).exp()
    unseen = at_q > log_weights.max() + _MARGIN
    k = effective_sample_size(posterior[:half])
    return Elsewhere(2 * half, float((share * unseen).mean()), (1 - (1 - _SEEN) ** (1 / k)) if k > 0 else 1.0)


def _prior_base(prior: Prior, n: int, rng: np.random.Generator) -> np.ndarray:
    z = rng.standard_normal((n, prior.dim))
    wraps = prior.periodic.numpy()
    z[:, wraps] = rng.uniform(-np.pi, np.pi, (n, int(wraps.sum())))
    return z


@dataclass(frozen=True)
class _Around:
    """A density wider than weighted draws, in the prior's base: multivariate t, von Mises for phases."""

    wraps: np.ndarray
    t: Any
    mean: np.ndarray
    concentration: np.ndarray

    @classmethod
    def fit(cls, prior: Prior, theta: Tensor, log_weights: Tensor) -> _Around:
        kept = log_weights > -math.inf
        z, weights = prior.unconstrain(theta[kept])[0].numpy(), torch.softmax(log_weights[kept], 0).numpy()
        wraps = prior.periodic.numpy()
        vector = weights @ np.exp(1j * z[:, wraps])
        variance = -2 * np.log(np.clip(np.abs(vector), 1e-12, 1 - 1e-12))
        plain = z[:, ~wraps]
        centre = weights @ plain
        spread = (weights[:, None] * (plain - centre)).T @ (plain - centre)
        spread = spread + 1e-9 * np.diag(np.diag(spread))
        t = stats.multivariate_t(centre, INFLATE**2 * spread, df=_DOF) if plain.shape[1] else None
        return cls(wraps, t, np.angle(vector), 1 / (INFLATE**2 * variance))

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        z = np.empty((n, len(self.wraps)))
        if self.t is not None:
            z[:, ~self.wraps] = self.t.rvs(n, random_state=rng).reshape(n, -1)
        z[:, self.wraps] = rng.vonmises(self.mean, self.concentration, (n, len(self.mean)))
        return z

    def log_density(self, z: np.ndarray) -> np.ndarray:
        found = stats.vonmises.logpdf(z[:, self.wraps], self.concentration, loc=self.mean).sum(1)
        return found if self.t is None else found + self.t.logpdf(z[:, ~self.wraps]).reshape(len(z))
