"""Points drawn for an integral: with weights, or made unweighted by `sbiflow.integrate.unweighting`.

A point x drawn from the proposal q has the weight w = f(x)/q(x); the mean weight estimates the integral.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbiflow.checks import check_count, check_finite, check_shape
from sbiflow.integrate.notation import LOG_LARGEST
from sbiflow.seeding import torch_generator

_RESAMPLE_KEY = 0x52534D50


@dataclass(frozen=True, eq=False)
class WeightedPoints:
    """Independent draws from the proposal with their weights.

    Attributes:
        x: points in the integrand's units, (n, D), float64.
        values: f(x), (n,), or (n, K) for a vector-valued f; over exp(log_scale).
        weights: f(x)/q(x) of component 0, signed, (n,); over exp(log_scale).
        log_q: normalised log-density of the proposal at x, (n,).
        log_scale: ln of the common factor of values and weights, where they themselves would underflow.

    Raises:
        ValueError: the shapes disagree, or a weight is NaN or infinite.
    """

    x: Tensor
    values: Tensor
    weights: Tensor
    log_q: Tensor
    log_scale: float = 0.0

    def __post_init__(self) -> None:
        check_shape(self.x, "x", ("n", "D"))
        n = len(self.x)
        check_shape(self.values, "values", (n, "K")[: max(self.values.ndim, 1)])
        check_shape(self.weights, "weights", (n,))
        check_shape(self.log_q, "log_q", (n,))
        check_finite(self.weights, "weights")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def ess(self) -> float:
        """Effective sample size (Σ|w|)² / Σw², in points; 0 if every weight is zero."""
        scaled, _ = relative_weights(self.weights)
        return float(scaled.sum() ** 2 / (scaled**2).sum().clamp(min=1.0))  # the largest is 1, or all are 0

    @property
    def log_integral(self) -> tuple[float, float]:
        """ln |mean weight| and its error, that of the mean over the mean; -inf and inf if the mean is zero."""
        scaled, largest = relative_weights(self.weights)
        signed = scaled * self.weights.double().sign()
        mean = abs(float(signed.mean()))
        if not mean:
            return -math.inf, math.inf
        error = float(signed.std()) / math.sqrt(len(self)) / mean if len(self) > 1 else math.inf
        return math.log(mean) + math.log(largest) + self.log_scale, error

    @property
    def integral(self) -> tuple[float, float]:
        """Mean weight and its standard deviation, inf if there is one point only; see `log_integral`."""
        scaled, largest = relative_weights(self.weights)
        signed, factor = scaled * self.weights.double().sign(), largest * _exp(self.log_scale)
        sdev = float(signed.std()) / math.sqrt(len(self)) * factor if len(self) > 1 else math.inf
        return float(signed.mean()) * factor, sdev

    def to_numpy(self) -> tuple[np.ndarray, np.ndarray]:
        """x (n, D) and weights (n,); e.g. `numpy.histogram(x[:, 0], weights=weights / len(x))`."""
        return self.x.cpu().numpy(), self.weights.cpu().numpy()

    def resample(self, n: int, seed: int) -> Tensor:
        """n points drawn with replacement in proportion to the weights, (n, D).

        They repeat heavy points, and are worth no more than the effective sample size.

        Raises:
            ValueError: every weight is zero, or one is negative.
        """
        check_count(n, "n")
        if bool((self.weights < 0).any()):
            raise ValueError("resample: expected weights >= 0, got negative ones; `unweight` gives signs")
        edges = positive_weights(self.weights)[0].cumsum(0)
        generator = torch_generator(seed, _RESAMPLE_KEY)
        u = torch.rand(n, generator=generator, dtype=torch.float64).to(edges.device) * edges[-1]
        last = int(self.weights.nonzero()[-1])  # u may round up to the last edge; never onto a zero weight
        return self.x[torch.searchsorted(edges, u, right=True).clamp(max=last)]


@dataclass(frozen=True, eq=False)
class UnweightedPoints:
    """Points distributed as |f| once `weights` is used; all but the overweight ones have weight 1.

    The integral of g f is estimated by exp(log_scale) w_max / n_tried · Σ signs weights g(x).

    Attributes:
        x: accepted points, (n, D).
        signs: sign of f, -1 or 1, (n,).
        weights: 1, or the residual |w|/w_max > 1 of an overweight point, (n,).
        n_tried: points drawn from the proposal.
        efficiency: n / n_tried.
        w_max: weight that is accepted with certainty; over exp(log_scale).
        overweight_fraction: share of the accepted points whose |w| exceeds w_max.
        overweight_share: share of Σ|w| over all points tried that those hold.
        log_scale: as of the weighted points.
    """

    x: Tensor
    signs: Tensor
    weights: Tensor
    n_tried: int
    efficiency: float
    w_max: float
    overweight_fraction: float
    overweight_share: float
    log_scale: float = 0.0

    def __len__(self) -> int:
        return len(self.x)

    def __str__(self) -> str:
        return (
            f"{len(self):,} of {self.n_tried:,} points accepted: unweighting efficiency {self.efficiency:.3%}; "
            f"overweight: {self.overweight_fraction:.2%} of them, {self.overweight_share:.2%} of the weight"
        )


def _exp(value: float) -> float:
    return math.exp(value) if value < LOG_LARGEST else math.inf


def relative_weights(weights: Tensor) -> tuple[Tensor, float]:
    """|w| over the largest, which sums cannot over- or underflow, and the largest (0: all are zero)."""
    size = weights.double().abs()
    largest = float(size.max()) if len(size) else 0.0
    return (size / largest if largest else size), largest


def positive_weights(weights: Tensor) -> tuple[Tensor, float]:
    """`relative_weights`, or ValueError for no weight to go by."""
    check_shape(weights, "weights", ("n",))
    check_finite(weights, "weights")
    scaled, largest = relative_weights(weights)
    if not largest:
        raise ValueError(f"weights: expected one that is not zero, got {len(weights)} zeros")
    return scaled, largest
