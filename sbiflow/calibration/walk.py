"""Nested sampling's constrained random walks, a whole queue of them in step: one likelihood call moves them all.

dynesty evaluates one point at a time, and parallelises by handing a queue of walks to a pool. This pool runs them
side by side in this process, with every step of the queue one batch for a likelihood that is made for batches.

Every other step is that of dynesty's `rwalk`: uniform in the scaled ellipsoid around the place, accepted if inside
the cube and above the threshold (Skilling 2006, Bayesian Analysis 1, 833). Such a walk never leaves its mode, so
that the share of a mode would be that of its ancestors and drift. The steps between are uniform in the ellipsoids
that dynesty holds around all live points, and carry a walk to any mode in proportion to its volume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from sbiflow.importance import LogLikelihood
from sbiflow.optional import require
from sbiflow.priors import Prior

_EDGE = 2.0**-54  # of the open interval (0, 1) in which the prior's quantiles are defined


@dataclass
class CubeTarget:
    """Log-likelihood of points of the prior's unit cube, counting what it costs and what went wrong.

    A NaN log-likelihood counts as zero likelihood and is counted in `n_nan`.
    """

    prior: Prior
    log_likelihood: LogLikelihood
    x: Tensor
    n_rows: int = field(default=0, init=False)
    n_nan: int = field(default=0, init=False)

    def theta(self, u: np.ndarray) -> Tensor:
        """(m, D) in the cube -> parameters (m, D), float64, inside the support."""
        return self.prior.from_uniform(torch.from_numpy(np.clip(u, _EDGE, 1 - 2**-53)))

    def __call__(self, u: np.ndarray) -> np.ndarray:
        """(m, D) -> (m,); -inf where the likelihood is zero or NaN.

        Raises:
            ValueError: the log-likelihood is +inf or has a wrong shape.
        """
        with torch.no_grad():
            found = torch.as_tensor(self.log_likelihood(self.theta(u), self.x))
        values = found.detach().double().cpu().numpy()
        if values.shape != (len(u),):
            raise ValueError(f"log_likelihood: expected shape ({len(u)},), got {values.shape}")
        if np.isposinf(values).any():
            raise ValueError("log_likelihood: expected values below +inf, got +inf")
        self.n_rows += len(u)
        self.n_nan += int(np.isnan(values).sum())
        return np.where(np.isnan(values), -np.inf, values)

    def one(self, u: np.ndarray) -> float:
        """(D,) -> log-likelihood."""
        return float(self(u[None])[0])


@dataclass
class WalkPool:
    """What dynesty takes for a pool of processes: runs a queue of walks in step, anything else in turn.

    Attributes:
        sampler: dynesty's sampler, set once it exists: its bound changes as it goes.
    """

    target: CubeTarget
    sampler: Any = field(default=None, init=False)

    def map(self, function: Callable, items: Iterable[Any]) -> list[Any]:
        """The results of `function` for every item."""
        items = list(items)
        if items and "walks" in getattr(items[0], "kwargs", ()):
            return walk(self.target, items, self.sampler.bound)
        if isinstance(function, dynesty("utils").LogLikelihood):  # the first live points
            values = self.target(np.stack(items))
            return [dynesty("utils").LoglOutput(float(value), False) for value in values]
        return [function(item) for item in items]


def walk(target: CubeTarget, starts: list[Any], bound: Any) -> list[Any]:
    """dynesty's `SamplerArgument`s of one queue and its MultiEllipsoid -> its `SamplerReturn`s, one walk each.

    A step outside the cube counts against the call limit like any other, as in dynesty; only local steps tune
    the scale.
    """
    first, n = starts[0], len(starts)
    steps, periodic = first.kwargs["walks"], first.kwargs["periodic"]
    rng = np.random.default_rng(first.rseed)
    u = np.stack([start.u for start in starts])
    axes = first.scale * np.stack([start.axes for start in starts])
    logl, accepted = np.full(n, np.nan), np.zeros((2, n), dtype=int)
    for step in range(steps):
        jump = step % 2
        if jump:
            proposed, allowed = _jump(u, bound, rng)
        else:
            proposed = u + np.einsum("nij,nj->ni", axes, _in_ball(n, u.shape[1], rng))
            allowed = np.ones(n, dtype=bool)
            if periodic is not None:
                proposed[:, periodic] %= 1.0
        ready = ((proposed > 0) & (proposed < 1)).all(1) & allowed
        values = np.full(n, -np.inf)
        if ready.any():
            values[ready] = target(proposed[ready])
        take = values > float(first.loglstar)
        u[take], logl[take] = proposed[take], values[take]
        accepted[jump] += take
    stuck = ~accepted.any(0)
    if stuck.any():
        logl[stuck] = target(u[stuck])
    return [_packed(u[i], logl[i], steps, int(accepted[0, i]), first.scale) for i in range(n)]


def _jump(u: np.ndarray, bound: Any, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Places (n, D) uniform in ellipsoids chosen by volume, and whether Metropolis and Hastings allow the move.

    The density of a proposal is proportional to the number of ellipsoids around it. A point outside all of
    them cannot be proposed again, so it may not leave this way.
    """
    which = rng.choice(bound.nells, size=len(u), p=np.exp(bound.logvol_ells - logsumexp(bound.logvol_ells)))
    axes = np.stack([ellipsoid.axes for ellipsoid in bound.ells])
    proposed = bound.ctrs[which] + np.einsum("nij,nj->ni", axes[which], _in_ball(len(u), u.shape[1], rng))

    def depth(points: np.ndarray) -> np.ndarray:
        offset = points[:, None] - bound.ctrs
        return (np.einsum("nai,aij,naj->na", offset, bound.ams, offset, optimize=True) < 1).sum(1)

    return proposed, rng.random(len(u)) * depth(proposed) < depth(u)


def _in_ball(n: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """n points, uniform in the unit ball."""
    direction = rng.standard_normal((n, dim))
    radius = rng.random((n, 1)) ** (1 / dim)
    return direction / np.linalg.norm(direction, axis=1, keepdims=True) * radius


def _packed(u: np.ndarray, logl: float, steps: int, accepted: int, scale: float) -> Any:
    samplers, utils = dynesty("internal_samplers"), dynesty("utils")
    rejected = steps - accepted
    return samplers.SamplerReturn(
        u=u,
        v=u,
        logl=utils.LoglOutput(float(logl), False),
        ncalls=steps,
        evaluation_history=[],
        tuning_info={"accept": accepted, "reject": rejected, "scale": scale},
        proposal_stats={"n_accept": accepted, "n_reject": rejected},
    )


def dynesty(module: str) -> Any:
    """A module of dynesty, or an ImportError that names the extra."""
    return require(f"dynesty.{module}", extra="nested")
