"""Maximum mean discrepancy: the distance of two sets of draws in the feature space of a Gaussian kernel.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),   k(a, b) = exp(-|a - b|^2 / (2 h^2))

with x, x' from the reference and y, y' from the samples; 0 only for equal distributions (Gretton et al. 2012,
JMLR 13, 723). The estimate is the unbiased one, without the terms of a draw with itself (their eq. 3), so
that it scatters about 0 for equal distributions and may be negative. h is the median distance between draws
of the reference, as in the SBI benchmark (Lueckmann et al. 2021, arXiv 2101.04653).

The p-value comes from pooled draws dealt out anew: (1 + number of them >= the estimate) / (1 + number), exact
for independent draws. The quadratic forms of all deals are one matrix product, on a few thousand draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbiflow.checks import as_tensor, check_count, check_finite, check_shape
from sbiflow.seeding import check_seed, torch_generator

_ROWS = 1024  # of the kernel matrix at a time
_MEDIAN_DRAWS = 2000  # 2 million distances: the median's error is far below 1 %


@dataclass(frozen=True)
class MmdResult:
    """Squared maximum mean discrepancy.

    Attributes:
        mmd2: unbiased estimate from all draws; 0 on average for equal distributions, at most 2.
        bandwidth: h, in units of the scaled (or unscaled) parameters.
        p_value: of equal distributions, from `n_test` draws of each set.
        null_95: 95 % quantile of the estimate for equal distributions and `n_test` draws.
        n_reference, n_samples, n_test: draws.
        scaled: whether parameters were divided by the reference's standard deviation.
    """

    mmd2: float
    bandwidth: float
    p_value: float
    null_95: float
    n_reference: int
    n_samples: int
    n_test: int
    scaled: bool

    def __str__(self) -> str:
        return (
            f"MMD^2 {self.mmd2:.3g} (p = {self.p_value:.2g} with {self.n_test} draws of each set, "
            f"Gaussian kernel of width {self.bandwidth:.3g})"
        )


def mmd(
    reference: Any,
    samples: Any,
    *,
    seed: int,
    bandwidth: float | None = None,
    scale: bool = True,
    n_test: int = 2000,
    n_null: int = 499,
) -> MmdResult:
    """Squared maximum mean discrepancy between samples (m, D) and a reference (n, D).

    Args:
        reference, samples: independent draws.
        seed: of the draws chosen for median and test, and of the deals.
        bandwidth: h; the median distance between draws of the reference by default.
        scale: divide parameters by the reference's standard deviation first, as units differ (the benchmark
            does not).
        n_test: draws of each set behind the p-value, at most.
        n_null: random deals; the smallest p-value is 1 / (1 + n_null).

    Raises:
        ValueError: wrong shapes, fewer than 10 draws, NaN or inf, a parameter that is constant in the reference
            (with scale), all draws of the reference equal (without).
    """
    x, y = _prepared(reference, samples, scale)
    check_count(n_test, "n_test", 10)
    check_count(n_null, "n_null", 19)
    generator = torch_generator(check_seed(seed))
    h = _median_distance(_some(x, _MEDIAN_DRAWS, generator)) if bandwidth is None else float(bandwidth)
    if not 0 < h < math.inf:
        raise ValueError(
            "bandwidth: expected a finite value > 0, got "
            f"{h} ({'median distance of the reference' if bandwidth is None else 'argument'})"
        )
    size = min(n_test, len(x), len(y))
    observed, null = _permutation(_some(x, size, generator), _some(y, size, generator), h, n_null, generator)
    exceed = int((null >= observed - 1e-12).sum())
    return MmdResult(
        mmd2=_unbiased(x, y, h),
        bandwidth=h,
        p_value=(1 + exceed) / (1 + n_null),
        null_95=float(np.quantile(null.numpy(), 0.95)),
        n_reference=len(x),
        n_samples=len(y),
        n_test=size,
        scaled=scale,
    )


def _prepared(reference: Any, samples: Any, scale: bool) -> tuple[Tensor, Tensor]:
    x, y = (
        as_tensor(v, name).detach().double().cpu()
        for v, name in ((reference, "reference"), (samples, "samples"))
    )
    check_shape(x, "reference", ("n", "D"))
    check_shape(y, "samples", ("m", x.shape[1]))
    for value, name in ((x, "reference"), (y, "samples")):
        check_finite(value, name)
        check_count(len(value), f"draws in {name}", 10)
    centre, sd = x.mean(0), x.std(0) if scale else torch.ones(x.shape[1], dtype=torch.float64)
    if not bool((sd > 0).all()):
        constant = [d for d in range(len(sd)) if not sd[d] > 0]
        raise ValueError(f"reference: expected every parameter to vary, got constant columns {constant}")
    return (x - centre) / sd, (y - centre) / sd


def _some(draws: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """At most n of them, without replacement."""
    return draws[torch.randperm(len(draws), generator=generator)[:n]]


def _median_distance(x: Tensor) -> float:
    return float(np.median(torch.pdist(x).numpy()))


def _kernel(a: Tensor, b: Tensor, h: float) -> Tensor:
    return torch.cdist(a, b).square_().mul_(-0.5 / h**2).exp_()


def _kernel_sum(a: Tensor, b: Tensor, h: float) -> float:
    """Sum over all pairs, a block of rows at a time: 10,000 x 10,000 needs 80 MB."""
    return math.fsum(float(_kernel(rows, b, h).sum()) for rows in a.split(_ROWS))


def _unbiased(x: Tensor, y: Tensor, h: float) -> float:
    n, m = len(x), len(y)
    within = (_kernel_sum(x, x, h) - n) / (n * (n - 1)) + (_kernel_sum(y, y, h) - m) / (m * (m - 1))
    return within - 2 * _kernel_sum(x, y, h) / (n * m)


def _permutation(
    x: Tensor, y: Tensor, h: float, n_null: int, generator: torch.Generator
) -> tuple[float, Tensor]:
    """The estimate for the sets as they are and for n_null deals of the pooled draws; equal sizes n.

    With s = +1 for one set and -1 for the other, S = s K s is the sum within both less the sum across, and
    T = 1 K 1 the sum of all, both without the diagonal: within = (T + S) / 2, twice across = (T - S) / 2.
    """
    n = len(x)
    pooled = torch.cat([x, y])
    kernel = _kernel(pooled, pooled, h).fill_diagonal_(0.0)
    signs = torch.ones(n_null + 1, 2 * n, dtype=torch.float64)
    signs[0, n:] = -1
    deals = torch.rand(n_null, 2 * n, generator=generator, dtype=torch.float64).argsort(1)
    signs[1:].scatter_(1, deals[:, n:], -1.0)
    contrast = torch.linalg.vecdot(signs @ kernel, signs)
    total = kernel.sum()
    estimate = (total + contrast) / (2 * n * (n - 1)) - (total - contrast) / (2 * n**2)
    return float(estimate[0]), estimate[1:]
