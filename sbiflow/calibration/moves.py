"""An emcee move for posteriors that are roughly elliptical: proposals that do not depend on the walker's place.

New places come from a multivariate Student t with the mean and covariance of a sample of the posterior that was
drawn before the chain began; Metropolis-Hastings corrects for the density. One accepted move forgets the past.
Mixed with local moves, so that a posterior of another shape costs time and not correctness.
"""

from __future__ import annotations

import emcee
import numpy as np

_DOF = 8.0
_INFLATE = 1.1  # the tails of the proposal have to reach beyond those of the posterior


class EllipticMove(emcee.moves.RedBlueMove):
    """Independence proposals from a Student t fitted to `sample` (m, E), fixed from then on; m > 2 E."""

    def __init__(self, sample: np.ndarray) -> None:
        super().__init__()
        dim = sample.shape[1]
        covariance = np.cov(sample.T).reshape(dim, dim) * _INFLATE
        self.centre = sample.mean(axis=0)
        self.root = np.linalg.cholesky(covariance + 1e-10 * np.diag(np.diag(covariance)))

    def get_proposal(
        self, s: np.ndarray, c: list[np.ndarray], random: np.random.RandomState
    ) -> tuple[np.ndarray, np.ndarray]:
        """Walkers s (m, E) -> proposals (m, E) and log Hastings factors (m,); the others, c, do not matter."""
        stretch = np.sqrt(_DOF / random.chisquare(_DOF, (len(s), 1)))
        q = self.centre + stretch * random.standard_normal(s.shape) @ self.root.T
        return q, self._log_density(s) - self._log_density(q)

    def _log_density(self, y: np.ndarray) -> np.ndarray:
        distance = (np.linalg.solve(self.root, (y - self.centre).T) ** 2).sum(0)
        return -0.5 * (_DOF + y.shape[1]) * np.log1p(distance / _DOF)
