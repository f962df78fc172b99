"""Has a parameter been learned at all? Contraction, with the posterior equal to the prior as the null.

In the base space of the prior (a standard normal, or a phase on the circle) the contraction is
1 - E[posterior variance] / prior variance: 0 if the posterior is the prior, 1 if it is a point. For a phase
the variance is that of the unit vector, 1 - |E exp(i phase)|^2.

Two facts make it an alarm. A posterior with several modes can keep the prior's variance, so "not learned"
also needs the draws' distribution function to stay within a few per cent of the prior's. And for the true
posterior no function of x predicts the parameter with a mean square error below E[posterior variance] (law of
total variance): if a plain linear fit on held-out data does, the posterior misses information that is in x.
Plain rank tests cannot see this, because a posterior that ignores the data passes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbiflow.calibration.regression import to_base
from sbiflow.checks import check_shape
from sbiflow.priors import Prior

MIN_CONTRACTION = 0.05
MIN_DISTANCE = 0.03
_SIGMAS = 4.0  # one-sided false alarm 3e-5 per parameter


@dataclass(frozen=True)
class Contraction:
    """What the posterior knows about one parameter.

    Attributes:
        contraction, error: 1 - E[posterior variance] / prior variance, with its standard error.
        distance: root mean square difference of posterior and prior distribution functions, sampling noise
            removed.
        linear, linear_error: contraction that a linear fit to x reaches on held-out pairs, with standard
            error.
    """

    name: str
    contraction: float
    error: float
    distance: float
    linear: float
    linear_error: float

    @property
    def learned(self) -> bool:
        """Whether the posterior differs from the prior by more than a few per cent."""
        return self.contraction > MIN_CONTRACTION or self.distance > MIN_DISTANCE

    @property
    def misses_information(self) -> bool:
        """Whether a linear fit to x knows more than the posterior (4 standard errors)."""
        return self.linear - self.contraction > _SIGMAS * np.hypot(self.error, self.linear_error) + 0.01

    @property
    def reading(self) -> str:
        if self.misses_information:
            state = "this parameter was not learned" if not self.learned else "not learned fully"
            return (
                f"{state}: a linear fit to x explains {self.linear:.0%} of its variance, "
                f"the posterior {max(self.contraction, 0):.0%}"
            )
        if not self.learned:
            return (
                "this parameter was not learned: its posterior is its prior, and a linear fit finds no more"
            )
        return "learned"


def posterior_spread(draws: Tensor, prior: Prior) -> tuple[np.ndarray, np.ndarray]:
    """Variance in base space and squared distance from the prior, per observation.

    Args:
        draws: (L, N, D), L > 1, physical units.
        prior: of the D parameters.

    Returns:
        variance (N, D), relative to the prior's and unbiased; squared distance of the distribution functions
        (N, D), unbiased if posterior and prior agree (so it can be negative).
    """
    check_shape(draws, "draws", ("L", "N", prior.dim))
    n = len(draws)
    z = to_base(draws, prior)
    periodic = prior.periodic
    length2 = z.cos().mean(0) ** 2 + z.sin().mean(0) ** 2
    variance = torch.where(periodic, (1 - length2) * n / (n - 1), z.var(0))
    u = torch.where(periodic, (z + torch.pi) / (2 * torch.pi), torch.special.ndtr(z)).sort(dim=0).values
    steps = ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None, None]
    distance2 = ((u - steps) ** 2).mean(0) + 1 / (12 * n**2) - 1 / (6 * n)  # Cramér-von Mises less its mean
    return variance.numpy(), distance2.numpy()


def contractions(
    variance: np.ndarray, distance2: np.ndarray, targets: np.ndarray, predicted: np.ndarray, prior: Prior
) -> tuple[Contraction, ...]:
    """One row per parameter.

    Args:
        variance, distance2: (N, D) from `posterior_spread`.
        targets, predicted: (M, D, 2), `regression_targets` and their prediction by a fit to other pairs.
    """
    loss = ((targets - predicted) ** 2).sum(-1)
    rows = zip(
        prior.names,
        1 - variance.mean(0),
        variance.std(0) / np.sqrt(len(variance)),
        np.sqrt(np.maximum(distance2.mean(0), 0.0)),
        1 - loss.mean(0),
        loss.std(0) / np.sqrt(len(loss)),
        strict=True,
    )
    return tuple(Contraction(name, *(float(v) for v in values)) for name, *values in rows)
