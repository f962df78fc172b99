"""An emcee move for posteriors that are roughly elliptical: proposals that do not depend on the walker's
place.

Half of the walkers are proposed new places from a multivariate Student t with the mean and covariance of the
other half, which the red-blue update holds fixed; Metropolis-Hastings corrects for the density. One accepted
move forgets the past. Mixed with local moves, so that a posterior of another shape costs time and not
correctness.
"""

from __future__ import annotations

import emcee
import numpy as np

_DOF = 8.0
_INFLATE = 1.1  # the tails of the proposal have to reach beyond those of the posterior


class EllipticMove(emcee.moves.RedBlueMove):
    """Independence proposals from a Student t fitted to the other half of the ensemble."""

    def get_proposal(
        self, s: np.ndarray, c: list[np.ndarray], random: np.random.RandomState
    ) -> tuple[np.ndarray, np.ndarray]:
        """Walkers s (m, E) and the other half c -> proposals (m, E) and log Hastings factors (m,)."""
        others = np.concatenate(c)
        dim = s.shape[1]
        centre = others.mean(axis=0)
        covariance = np.cov(others.T).reshape(dim, dim) * _INFLATE
        root = np.linalg.cholesky(covariance + 1e-10 * np.diag(np.diag(covariance)))
        stretch = np.sqrt(_DOF / random.chisquare(_DOF, (len(s), 1)))
        q = centre + stretch * random.standard_normal((len(s), dim)) @ root.T

        def log_density(y: np.ndarray) -> np.ndarray:
            distance = (np.linalg.solve(root, (y - centre).T) ** 2).sum(0)
            return -0.5 * (_DOF + dim) * np.log1p(distance / _DOF)

        return q, log_density(s) - log_density(q)
