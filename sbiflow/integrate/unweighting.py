"""Unweighted points by acceptance and rejection.

With a bound w_max on |w|, accepting each point with probability |w|/w_max leaves points distributed as |f|, the
share mean |w| / w_max of all. A bound on every weight that will ever be drawn is not known, and the largest
weight seen grows with the sample. Event generators therefore let a stated share of the weight exceed w_max: here
the points with |w| > w_max carry at most `overweight_share` of Σ|w|, 0.1 % by default, the convention of Sherpa's
Max_Epsilon (Gao et al., arXiv 2001.10028, as madnis has it, take the median over bootstrap replicas of the largest
weight instead). Points above w_max are always accepted and keep the residual weight |w|/w_max > 1, so that sums
with `signs * weights` are unbiased whatever w_max; without them the points follow min(|w|, w_max) q. Negative
weights give negative signs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbiflow.checks import check_count
from sbiflow.integrate.points import UnweightedPoints, WeightedPoints, positive_weights
from sbiflow.seeding import check_seed, torch_generator

OVERWEIGHT_SHARE = 1e-3
_ACCEPT_KEY, _DRAW_KEY = 0x41434350, 0x44524157
_PILOT, _LARGEST_BATCH = 20_000, 200_000


def maximum_weight(weights: Tensor, overweight_share: float = OVERWEIGHT_SHARE) -> float:
    """The smallest weight w_max such that the points with |w| > w_max hold at most this share of Σ|w|.

    Args:
        weights: (n,), signed.
        overweight_share: 0 to 1, 1 excluded; 0 gives the largest |w|.

    Raises:
        ValueError: every weight is zero, one is NaN or infinite, or the share is out of range.

    >>> maximum_weight(torch.tensor([1.0, 1.0, 1.0, 1.0, 6.0]), overweight_share=0.5)
    6.0
    >>> maximum_weight(torch.tensor([1.0, 1.0, 1.0, 1.0, 6.0]), overweight_share=0.6)
    1.0
    """
    if not 0 <= overweight_share < 1:
        raise ValueError(f"overweight_share: expected a share in [0, 1), got {overweight_share}")
    scaled, largest = positive_weights(weights)
    falling = scaled.sort(descending=True).values
    above = falling.cumsum(0)
    allowed = overweight_share * above[-1] * (1 + 1e-12)  # a share that is met exactly is met
    lightest = int((falling > 0).sum()) - 1
    return float(falling[min(int((above <= allowed).sum()), lightest)]) * largest


def unweight(
    points: WeightedPoints,
    n: int | None = None,
    *,
    seed: int,
    w_max: float | None = None,
    overweight_share: float = OVERWEIGHT_SHARE,
) -> UnweightedPoints:
    """Accept each point with probability |w|/w_max.

    Args:
        points: weighted points.
        n: stop when so many are accepted; None: try all.
        seed: of the acceptance.
        w_max: weight that is accepted with certainty; None: `maximum_weight` of these points.
        overweight_share: for `w_max` None.

    Raises:
        ValueError: every weight is zero, one is NaN or infinite, or fewer than n points are accepted.
    """
    positive_weights(points.weights)
    bound = _bound(points, w_max, overweight_share)
    found = _accept(points, bound, check_seed(seed), None if n is None else check_count(n, "n"))
    if n is not None and len(found.x) < n:
        raise ValueError(f"n: expected at most {len(found.x)}, accepted of {len(points)} points, got {n}")
    return _joined([found], bound, points.log_scale)


def unweight_from(
    draw: Callable[[int, int], WeightedPoints],
    n: int,
    seed: int,
    *,
    w_max: float | None = None,
    overweight_share: float = OVERWEIGHT_SHARE,
    max_tried: int = 100_000_000,
) -> UnweightedPoints:
    """n accepted points from draws that are made as they are needed; only the accepted ones are kept.

    w_max comes from the first 20,000 draws, which are used as well. The shares that are returned are those of all
    draws: they exceed `overweight_share` where the first draws have not shown the tail of the weights.

    Args:
        draw: (m, seed) -> m weighted points, independent for different seeds.
        n: points to be accepted.
        seed: of draws and acceptance.
        w_max, overweight_share: as in `unweight`; w_max over exp(log_scale) of the first draws.
        max_tried: give up after so many draws.

    Raises:
        ValueError: as `unweight`; or `max_tried` draws gave fewer than n points.
    """
    check_count(n, "n")
    points = draw(_PILOT, _batch_seed(seed, 0))
    bound, log_scale = _bound(points, w_max, overweight_share), points.log_scale
    batches: list[_Accepted] = []
    while True:
        missing = n - sum(len(batch.x) for batch in batches)
        factor = math.exp(log_scale - points.log_scale)  # of this batch's units
        batches.append(_accept(points, bound * factor, _batch_seed(seed, len(batches)), missing))
        kept, tried = (sum(counts) for counts in zip(*((len(b.x), b.tried) for b in batches), strict=True))
        if kept == n:
            return _joined(batches, bound, log_scale)
        if tried >= max_tried:
            raise ValueError(f"unweight: expected {n} accepted points, got {kept} of {tried} tried")
        needed = 1.05 * (n - kept) * tried / max(kept, 1) + 1000
        size = int(min(needed, _LARGEST_BATCH, max_tried - tried))
        points = draw(size, _batch_seed(seed, len(batches)))


def _bound(points: WeightedPoints, w_max: float | None, overweight_share: float) -> float:
    if w_max is None:
        return maximum_weight(points.weights, overweight_share)
    if not 0 < w_max < math.inf:
        raise ValueError(f"w_max: expected a finite weight > 0, got {w_max}")
    return w_max


@dataclass(frozen=True)
class _Accepted:
    """What is accepted of one batch, with sums over all that were tried in units of w_max."""

    x: Tensor
    signs: Tensor
    weights: Tensor
    tried: int
    overweight: int
    overweight_sum: float
    total: float


def _accept(points: WeightedPoints, bound: float, seed: int, n: int | None) -> _Accepted:
    """The accepted points, up to the n-th."""
    ratio = points.weights.abs() / bound
    u = torch.rand(len(points), generator=torch_generator(seed, _ACCEPT_KEY), dtype=torch.float64)
    rows = (u.to(ratio.device) < ratio).nonzero()[:, 0]
    tried = len(points) if n is None or len(rows) < n else int(rows[n - 1]) + 1
    rows, ratio = rows[:n], ratio[:tried]
    over = ratio > 1
    return _Accepted(
        x=points.x[rows],
        signs=points.weights[rows].sign(),
        weights=ratio[rows].clamp(min=1.0),
        tried=tried,
        overweight=int(over.sum()),
        overweight_sum=float(ratio[over].sum()),
        total=float(ratio.sum()),
    )


def _joined(batches: list[_Accepted], bound: float, log_scale: float) -> UnweightedPoints:
    x, tried = torch.cat([batch.x for batch in batches]), sum(batch.tried for batch in batches)
    total = sum(batch.total for batch in batches)
    return UnweightedPoints(
        x=x,
        signs=torch.cat([batch.signs for batch in batches]),
        weights=torch.cat([batch.weights for batch in batches]),
        n_tried=tried,
        efficiency=len(x) / tried,
        w_max=bound,
        overweight_fraction=sum(batch.overweight for batch in batches) / max(len(x), 1),
        overweight_share=sum(batch.overweight_sum for batch in batches) / total,
        log_scale=log_scale,
    )


def _batch_seed(seed: int, batch: int) -> int:
    return int(np.random.SeedSequence([check_seed(seed), _DRAW_KEY, batch]).generate_state(1)[0])
