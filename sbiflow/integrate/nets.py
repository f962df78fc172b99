"""Points that fill the cube evenly: scrambled Sobol nets.

A scrambled net is an unbiased sample whose variance falls faster than 1/n for smooth integrands and is never much
above that of independent points for any (Owen 1997, Annals of Statistics 25, 1541). It stratifies the latent cube in
all elementary intervals at once. Independent scramblings give independent estimates, and so an honest error.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sbiflow.optional import deferred

qmc = deferred("scipy.stats.qmc")

_EDGE = 1e-12  # latent points keep this distance from the faces, where the normal quantile is infinite


def net(log2_n: int, dim: int, seed: int, *key: int) -> Tensor:
    """2^log2_n points (n, dim) in (0, 1), float64; another key is an independent scrambling."""
    rng = np.random.default_rng([seed, *key])
    points = qmc.Sobol(dim, scramble=True, bits=max(30, log2_n), rng=rng).random_base2(log2_n)
    # the scrambled points are multiples of 2^-bits: a common shift within that spacing keeps the net
    points = points + rng.random((1, dim)) * 2.0 ** -max(30, log2_n)
    return torch.from_numpy(np.clip(points, _EDGE, 1 - _EDGE))


def floor_log2(n: float) -> int:
    """The largest k with 2^k <= n; n >= 1."""
    return int(n).bit_length() - 1
