"""An emcee move for posteriors of any compact shape: proposals that do not depend on the walker's place.

New places come from a mixture of multivariate Student t densities, fitted to a sample of the posterior that was
drawn before the chain began; Metropolis-Hastings corrects for the density. One accepted move forgets the past. The
first component has the mean and covariance of the sample. A curved tail that it leaves out would hold a walker for
long, so that a normal mixture is fitted to the sample, and further components to the members where target over
proposal is largest.
Mixed with local moves, a posterior of yet another shape costs time and not correctness.
"""

from __future__ import annotations

import emcee
import numpy as np
from scipy.special import logsumexp

from sbiflow.calibration.mixture import fit_mixture

_DOF = 8.0
_INFLATE = 1.15  # the tails of the proposal have to reach beyond those of the posterior
_COMPONENTS = 4  # of the fitted mixture
_WORST = 0.03  # fraction of the sample that each further component is fitted to
_FURTHER = 3
_SHRINK = 0.15  # of a further component's covariance towards that of the sample
_SHARES = (0.3, 0.55, 0.15)  # weight of the whole sample's, the mixture's and the further components


class EllipticMove(emcee.moves.RedBlueMove):
    """Independence proposals from a t mixture fitted to a sample, fixed from then on.

    Args:
        sample: (m, E), m of several hundred.
        log_target: (m,), up to a constant.
    """

    def __init__(self, sample: np.ndarray, log_target: np.ndarray) -> None:
        super().__init__()
        dim = sample.shape[1]
        whole = np.cov(sample.T).reshape(dim, dim)
        whole = whole + 1e-10 * np.diag(np.diag(whole))
        weights, means, covariances = fit_mixture(sample, _COMPONENTS, np.random.default_rng(0))
        self.means = np.vstack([sample.mean(axis=0), means])
        parts = [whole * _INFLATE, *(covariances * _INFLATE)]
        shares = [_SHARES[0], *(_SHARES[1] * weights)]
        self._set(parts, shares)
        for _ in range(_FURTHER):
            uncovered = log_target - self.log_density(sample)
            worst = sample[uncovered >= np.quantile(uncovered, 1 - _WORST)]
            local = np.cov(worst.T).reshape(dim, dim)
            self.means = np.vstack([self.means, worst.mean(axis=0)])
            parts.append(((1 - _SHRINK) * local + _SHRINK * whole) * _INFLATE)
            shares.append(_SHARES[2] / _FURTHER)
            self._set(parts, shares)

    def _set(self, covariances: list[np.ndarray], shares: list[float]) -> None:
        self.roots = np.linalg.cholesky(np.stack(covariances))
        self.inverses = np.linalg.inv(self.roots)
        self.weights = np.array(shares) / sum(shares)

    def get_proposal(
        self, s: np.ndarray, c: list[np.ndarray], random: np.random.RandomState
    ) -> tuple[np.ndarray, np.ndarray]:
        """Walkers s (m, E) -> proposals (m, E) and log Hastings factors (m,); the others, c, do not matter."""
        which = random.choice(len(self.weights), size=len(s), p=self.weights)
        stretch = np.sqrt(_DOF / random.chisquare(_DOF, (len(s), 1)))
        offset = np.einsum("mij,mj->mi", self.roots[which], random.standard_normal(s.shape))
        q = self.means[which] + stretch * offset
        return q, self.log_density(s) - self.log_density(q)

    def log_density(self, y: np.ndarray) -> np.ndarray:
        """Of the proposals, up to a constant: (m, E) -> (m,)."""
        scaled = np.einsum("kij,mkj->mki", self.inverses, y[:, None] - self.means, optimize=True)
        tails = -0.5 * (_DOF + y.shape[1]) * np.log1p((scaled**2).sum(-1) / _DOF)
        norms = np.log(self.weights) - np.log(np.diagonal(self.roots, axis1=1, axis2=2)).sum(1)
        return logsumexp(norms + tails, axis=1)
