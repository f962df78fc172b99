"""Simulation-based calibration: is the true parameter an ordinary draw of its posterior?

For theta* ~ prior, x ~ p(x | theta*) and theta_1 ... theta_L ~ q(theta | x), any function f(theta, x) has a
rank of f(theta*, x) among f(theta_l, x) that is uniform if q is the posterior (Talts et al. 2018, arXiv
1804.06788). The functions here are the single parameters and, since a q that ignores x passes with those,
quantities that depend on the data: the log-likelihood, or without one the distance from a regression on x
(Modrák et al. 2023, arXiv 2211.02383).

Ranks are made continuous: u = (number below + V (ties + 1)) / (L + 1) with V uniform is exactly uniform on
(0, 1) whatever L and however many ties there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from sbiflow.calibration.ecdf import EcdfBand, ecdf_p_value, simultaneous_band
from sbiflow.checks import check_shape
from sbiflow.importance import LogLikelihood

GRID = 100
_LIKELIHOODS = 16_384  # rows per call of the likelihood
_FITS = "the draws fit the data {} than the truth does{}"


@dataclass(frozen=True)
class RankTest:
    """Are these N ranks uniform?

    Attributes:
        name: the parameter or the quantity.
        u: ranks in (0, 1), (N,).
        p_value: exact p-value of the simultaneous ECDF band.
        reading: what the shape of the ranks says, in plain words; to be read if the test fails.
    """

    name: str
    u: np.ndarray
    p_value: float
    reading: str

    def passed(self, alpha: float) -> bool:
        return self.p_value > alpha

    @property
    def p_text(self) -> str:
        """The p-value to two digits."""
        return f"{self.p_value:.2g}" if self.p_value > 0 else "< 1e-300"


@dataclass(frozen=True)
class SbcResult:
    """Rank tests that are judged together: each at alpha / (number of tests), Bonferroni."""

    tests: tuple[RankTest, ...]
    alpha: float

    @property
    def alpha_each(self) -> float:
        return self.alpha / len(self.tests)

    @property
    def passed(self) -> bool:
        """False has a probability of at most alpha for an exact posterior."""
        return all(test.passed(self.alpha_each) for test in self.tests)

    @property
    def failures(self) -> tuple[RankTest, ...]:
        return tuple(test for test in self.tests if not test.passed(self.alpha_each))

    def band(self) -> EcdfBand:
        """The band of every single test."""
        return simultaneous_band(len(self.tests[0].u), GRID, self.alpha_each)


def fractional_rank(star: Tensor, draws: Tensor, generator: Generator | None) -> Tensor:
    """Ranks in (0, 1), uniform if star is one of the draws' kind: star (N,), draws (L, N) -> (N,) float64.

    >>> fractional_rank(torch.tensor([5.0]), torch.zeros(999, 1), None) > 0.999
    tensor([True])
    """
    check_shape(draws, "draws", ("L", *star.shape))
    below = (draws < star).sum(0)
    ties = (draws == star).sum(0)
    v = torch.rand(star.shape, generator=generator, dtype=torch.float64)
    return (below + v * (ties + 1)) / (len(draws) + 1)


def centre_circle(star: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Phases [rad] turned so that the cut lies opposite to the mean direction: star (N,), draws (L, N).

    The mean is that of all L + 1 values, in which star and draws have equal parts, so that ranks stay
    uniform.
    """
    together = torch.cat([star[None], draws])
    centre = torch.atan2(together.sin().sum(0), together.cos().sum(0))
    turned = torch.remainder(together - centre + torch.pi, 2 * torch.pi)
    return turned[0], turned[1:]


def sbc_ranks(
    theta_star: Tensor,
    draws: Tensor,
    generator: Generator | None = None,
    periods: Sequence[float | None] | None = None,
) -> Tensor:
    """Ranks of every parameter: theta_star (N, D), draws (L, N, D) -> (N, D) in (0, 1).

    Args:
        theta_star: the true parameters.
        draws: L posterior draws for each of the N observations.
        generator: breaks ties.
        periods: the period of each parameter, or None for one that is not periodic (the default for all).
    """
    check_shape(theta_star, "theta_star", ("N", "D"))
    check_shape(draws, "draws", ("L", *theta_star.shape))
    ranks = []
    for d, period in enumerate(periods or [None] * theta_star.shape[1]):
        star, others = theta_star[:, d], draws[..., d]
        if period is not None:
            turn = 2 * torch.pi / period
            star, others = centre_circle(star * turn, others * turn)
        ranks.append(fractional_rank(star, others, generator))
    return torch.stack(ranks, -1)


def log_likelihood_ranks(
    log_likelihood: LogLikelihood,
    theta_star: Tensor,
    x: Tensor,
    draws: Tensor,
    generator: Generator | None,
    report: Callable[[int], None] = lambda rows: None,
) -> Tensor:
    """Rank of log p(x | theta*) among log p(x | draw), in (0, 1), (N,).

    Args:
        log_likelihood: theta (m, D), x (m, *x_shape) -> (m,).
        theta_star: (N, D).
        x: (N, *x_shape).
        draws: (L, N, D).
        generator: breaks ties.
        report: called with the number of observations finished at each step.

    Raises:
        ValueError: a log-likelihood is NaN.
    """
    count = len(draws) + 1
    step = max(1, _LIKELIHOODS // count)
    together = torch.cat([theta_star[None], draws])
    values = []
    for part, observed in zip(together.split(step, dim=1), x.split(step), strict=True):
        repeated = observed.expand(count, *observed.shape).reshape(-1, *observed.shape[1:])
        with torch.no_grad():
            value = log_likelihood(part.reshape(-1, part.shape[-1]), repeated)
        values.append(value.detach().double().cpu().reshape(count, -1))
        report(len(observed))
    found = torch.cat(values, dim=1)
    if bool(found.isnan().any()):
        raise ValueError(f"log_likelihood: expected numbers, got {int(found.isnan().sum())} NaN")
    return fractional_rank(found[0], found[1:], generator)


def data_test(name: str, u: np.ndarray, truth_fits_best_at: float) -> RankTest:
    """Test ranks of a fit to the data; u gathers at `truth_fits_best_at` where the truth fits better than
    the draws."""
    worse = abs(np.mean(u) - truth_fits_best_at) < 0.5
    how = ("worse", ": too wide, shifted, or blind to x") if worse else ("better", ": too narrow")
    return rank_test(name, u, _FITS.format(*how))


def rank_test(name: str, u: np.ndarray, reading: str | None = None) -> RankTest:
    """Test ranks u (N,) in (0, 1) for uniformity; `reading` replaces the one read off their mean and
    variance."""
    return RankTest(name, np.asarray(u), ecdf_p_value(u, GRID), describe(u) if reading is None else reading)


def describe(u: np.ndarray) -> str:
    """What non-uniform ranks of a parameter mean, from their mean and variance."""
    n = len(u)
    shift = (np.mean(u) - 0.5) * np.sqrt(12 * n)
    spread = (np.mean((u - 0.5) ** 2) - 1 / 12) / np.sqrt(1 / 180 / n)
    if abs(shift) < 3 and abs(spread) < 3:
        return "neither shifted nor of wrong width on average"
    if abs(shift) > abs(spread):
        side = "low: the truth lies above the draws" if shift > 0 else "high: the truth lies below the draws"
        return f"biased {side} too often"
    return "too narrow (overconfident)" if spread > 0 else "too wide (underconfident)"
