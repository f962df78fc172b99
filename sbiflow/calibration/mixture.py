"""A normal mixture by expectation-maximisation, regularised so that no component collapses."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

_ITERATIONS = 30
_COUNT = 0.2  # weight of the whole sample's covariance in every component, in members per dimension


def fit_mixture(
    sample: np.ndarray, components: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (k,), means (k, E) and covariances (k, E, E) of a mixture fitted to `sample` (m, E).

    Every covariance is drawn a little towards that of the whole sample, and every weight towards 1 / k.
    """
    n, dim = sample.shape
    whole = np.cov(sample.T).reshape(dim, dim)
    whole = whole + 1e-10 * np.diag(np.diag(whole))
    means = sample[rng.choice(n, components, replace=False)]
    covariances, weights = np.repeat(whole[None], components, axis=0), np.full(components, 1 / components)
    for _ in range(_ITERATIONS):
        roots = np.linalg.cholesky(covariances)
        scaled = np.einsum("kij,mkj->mki", np.linalg.inv(roots), sample[:, None] - means, optimize=True)
        log_density = np.log(weights) - np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(1)
        log_density = log_density - 0.5 * (scaled**2).sum(-1)
        share = np.exp(log_density - logsumexp(log_density, axis=1, keepdims=True))
        counts = share.sum(0)
        weights = (counts + 1) / (n + components)
        means = (share.T @ sample + sample.mean(0)) / (counts + 1)[:, None]
        away = sample[:, None] - means
        scatter = np.einsum("mk,mki,mkj->kij", share, away, away, optimize=True)
        covariances = (scatter + _COUNT * dim * whole) / (counts + _COUNT * dim)[:, None, None]
    return weights, means, covariances
