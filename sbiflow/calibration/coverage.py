"""Expected coverage of highest-density regions.

The region of mass u around the mode of q(theta | x) is where log q exceeds some level. The share of draws
with a log q above that of theta* is the mass of the smallest such region that holds theta*. If q is the
posterior, it is uniform over fresh pairs (theta*, x), and the share of pairs below u - the coverage of the
region of mass u - is u. Source: Hermans et al. (2022), arXiv 2110.06581; Deistler et al. (2022), arXiv
2210.04815.
"""

from __future__ import annotations

import numpy as np
from torch import Generator, Tensor

from sbiflow.calibration.sbc import RankTest, fractional_rank, rank_test


def hpd_mass(log_q_star: Tensor, log_q_draws: Tensor, generator: Generator | None = None) -> Tensor:
    """Mass of the highest-density region that just holds theta*: (N,) and (L, N) -> (N,) in (0, 1)."""
    return fractional_rank(-log_q_star, -log_q_draws, generator)


def coverage_test(mass: np.ndarray) -> RankTest:
    """Test `hpd_mass` values (N,) for uniformity."""
    above = np.mean(mass) > 0.5
    reading = (
        "regions hold the truth too rarely (overconfident)"
        if above
        else "regions hold the truth too often (underconfident)"
    )
    return rank_test("HPD coverage", mass, reading)
