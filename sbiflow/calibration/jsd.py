"""Marginal Jensen-Shannon divergence in nats, parameter by parameter, with its sampling floor.

    JSD(p, q) = KL(p | m) / 2 + KL(q | m) / 2,   m = (p + q) / 2,   0 <= JSD <= ln 2 = 0.693

for equal distributions and for disjoint ones. Gravitational-wave analyses judge reweighted or competing
samplers by it: 0.002 nats is their customary bound for 5,000 draws and more (Romero-Shaw et al. 2020, arXiv
2006.00714).

Estimator: counts in B cells that hold equal parts of the pooled draws, so that it does not change under a
monotonic change of the parameter, needs no bandwidth, and takes densities that end at a bound. Two errors
remain. The scatter of the counts adds (B - 1) / 8 (1/n + 1/m) on average, the mean of the floor (the
likelihood-ratio statistic of a 2 x B table is 2 (n + m) times this estimate if n = m, chi^2 with B - 1
degrees of freedom). The cells lose what happens inside them: of the order of 1 / B^2 of the value for
smooth densities. With B = round(2 n^(1/3)), for n = 10,000: a floor of 0.0011 nats.

The floor is the distribution of the same estimate for pooled draws dealt out anew at random; as the draws are
exchangeable if the distributions are equal, so is (1 + number of them >= the estimate) / (1 + number) a
p-value, exact for independent draws. A Markov chain's draws have to be thinned first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import xlogy

from sbiflow.checks import as_tensor, check_count, check_finite, check_positive, check_shape
from sbiflow.seeding import check_seed

_MIN_DRAWS = 50


@dataclass(frozen=True)
class JsdRow:
    """One parameter; divergences in nats.

    Attributes:
        jsd: the estimate, sampling noise included, so that it compares with `floor`.
        floor, floor_95: median and 95 % quantile of the estimate for equal distributions.
        p_value: of equal distributions.
    """

    name: str
    jsd: float
    floor: float
    floor_95: float
    p_value: float

    @property
    def excess(self) -> float:
        """The estimate less its floor; about 0 for equal distributions, of either sign."""
        return self.jsd - self.floor


@dataclass(frozen=True)
class MarginalJsd:
    """Rows per parameter; draws in the reference and in the samples; cells of the histograms."""

    rows: tuple[JsdRow, ...]
    n_reference: int
    n_samples: int
    cells: int

    @property
    def worst(self) -> JsdRow:
        """The parameter with the largest excess."""
        return max(self.rows, key=lambda row: row.excess)

    @property
    def mean(self) -> float:
        """Mean of the estimates over the parameters [nats]."""
        return float(np.mean([row.jsd for row in self.rows]))

    def __str__(self) -> str:
        head = f"{'parameter':<22}{'JSD [nats]':>12}{'floor':>10}{'95 %':>10}{'p':>9}"
        return "\n".join(
            [head]
            + [
                f"{r.name:<22}{r.jsd:>12.5f}{r.floor:>10.5f}{r.floor_95:>10.5f}{r.p_value:>9.2g}"
                for r in self.rows
            ]
        )


def marginal_jsd(
    reference: Any,
    samples: Any,
    *,
    names: Sequence[str] | None = None,
    periods: Sequence[float | None] | None = None,
    seed: int,
    cells: int | None = None,
    n_null: int = 999,
) -> MarginalJsd:
    """Jensen-Shannon divergence of every marginal.

    Args:
        reference: draws (n, D), independent.
        samples: draws (m, D), independent.
        names: of the parameters; theta0, theta1, ... by default.
        periods: the period of each parameter, or None for one that is not periodic (the default for all). A
            circle is cut opposite to the mean direction of the pooled draws; cut elsewhere, one cell would hold
            both tails.
        seed: of the random deals behind the floor.
        cells: of each histogram; round(2 n^(1/3)) of the smaller set by default.
        n_null: deals; the smallest p-value is 1 / (1 + n_null).

    Raises:
        ValueError: wrong shapes, NaN or inf, fewer than 50 draws, a wrong number of names.
    """
    x, y = (
        as_tensor(v, name).detach().double().cpu()
        for v, name in ((reference, "reference"), (samples, "samples"))
    )
    check_shape(x, "reference", ("n", "D"))
    check_shape(y, "samples", ("m", x.shape[1]))
    for value, name in ((x, "reference"), (y, "samples")):
        check_finite(value, name)
        check_count(len(value), f"draws in {name}", _MIN_DRAWS)
    smaller = min(len(x), len(y))
    cells = round(2 * smaller ** (1 / 3)) if cells is None else check_count(cells, "cells", 2)
    check_count(n_null, "n_null", 19)
    labels = [f"theta{d}" for d in range(x.shape[1])] if names is None else list(names)
    if len(labels) != x.shape[1]:
        raise ValueError(f"names: expected {x.shape[1]}, one per parameter, got {len(labels)}")
    rng = np.random.default_rng(check_seed(seed))
    turns = [None] * len(labels) if periods is None else list(periods)
    if len(turns) != x.shape[1]:
        raise ValueError(f"periods: expected {x.shape[1]}, one per parameter, got {len(turns)}")
    columns = torch.cat([x, y]).numpy().T
    rows = [
        _row(name, column if period is None else _cut(column, period), len(x), cells, n_null, rng)
        for name, column, period in zip(labels, columns, turns, strict=True)
    ]
    return MarginalJsd(tuple(rows), len(x), len(y), cells)


def _cut(pooled: np.ndarray, period: float) -> np.ndarray:
    """The circle unrolled to [0, period), cut opposite to the mean direction: (N,) -> (N,)."""
    check_positive(period, "period")
    phase = 2 * np.pi / period * pooled
    mean = math.atan2(np.sin(phase).sum(), np.cos(phase).sum())
    return np.remainder(pooled - (mean / (2 * np.pi) + 0.5) * period, period)


def _row(
    name: str, pooled_draws: np.ndarray, n: int, cells: int, n_null: int, rng: np.random.Generator
) -> JsdRow:
    """One parameter; the first n of the pooled draws are the reference's."""
    cell = _cells(pooled_draws, cells)
    pooled = np.bincount(cell)
    first = np.bincount(cell[:n], minlength=len(pooled))
    jsd = float(_jsd_of_counts(first, pooled))
    # counts of pooled draws dealt out at random: no draw has to be moved
    null = _jsd_of_counts(rng.multivariate_hypergeometric(pooled, n, n_null, method="marginals"), pooled)
    # deals with the very same counts must tie: rounding is not to decide
    exceed = int((null >= jsd * (1 - 1e-12)).sum())
    return JsdRow(
        name,
        jsd,
        float(np.median(null)),
        float(np.quantile(null, 0.95)),
        (1 + exceed) / (1 + n_null),
    )


def _cells(pooled: np.ndarray, cells: int) -> np.ndarray:
    """The cell of every draw, (N,): cells of equal content, as far as ties allow; ties share a cell."""
    edges = np.unique(np.quantile(pooled, np.arange(1, cells) / cells, method="inverted_cdf"))
    found = np.searchsorted(edges, pooled, side="left")
    return np.unique(found, return_inverse=True)[1].reshape(-1)


def _jsd_of_counts(first: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """JSD [nats] of the histograms of two sets, each normalised: counts (..., B) of the first and (B,) of
    both."""
    p = first / first.sum(-1, keepdims=True)
    rest = pooled - first
    q = rest / rest.sum(-1, keepdims=True)
    m = (p + q) / 2
    entropy = (xlogy(p, p) + xlogy(q, q)).sum(-1) / 2 - xlogy(m, m).sum(-1)
    return np.asarray(np.clip(entropy, 0.0, math.log(2)))  # rounding only
