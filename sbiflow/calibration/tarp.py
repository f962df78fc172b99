"""TARP: are credible balls around a reference point as likely to hold the truth as they say?

For a reference point r, the ball around r that just reaches theta* has the posterior mass f = P(|theta - r| <
|theta* - r|), estimated by the share of draws that lie closer to r than theta* does. If q is the posterior, f
is uniform over fresh pairs (theta*, x) for any r that is a function of x and of randomness that is
independent of theta*; and if f is uniform for every such function r(x), q is the posterior. Source: Lemos,
Coogan, Hezaveh & Perreault-Levasseur (2023), arXiv 2302.03026, section 3. The distribution function of
f is the expected coverage (ECP) at each credible level.

**Where the reference points lie** decides what the test can see. Points that ignore x pass a posterior that
is the prior. Points scattered on all sides of the posterior see no bias, which is towards some of them and
away from others. So r is put where earlier pairs say that the truth is missed: with m(x) and s(x) the mean
and standard deviations of some of the draws (set aside, not ranked), a linear fit of (theta* - m) / s to x and
m(x) over earlier pairs only predicts the error e(x) of q, and

    r(x) = m + s (e + sqrt(D) e' / |e'| + 0.2 noise),     e' = e + 0.05 g(x),

a step of sqrt(D) standard deviations further on in the direction of the predicted error, where distances are
about as sensitive to widths as to shifts. g(x) is a random linear function of x of unit variance, which gives
the direction where a fit finds no error; standard normal noise reaches every place. theta* itself never
enters its own r. Because only truths before theta*_i enter r_i, the f_i are not just uniform but independent:
given every x and all truths before i, f_i is uniform.

Distances are Euclidean in the prior's base space, each parameter in units of s(x); a periodic parameter is
its point on the unit circle, its distance the chord.

**The p-value** is that of the exact simultaneous ECDF band (`ecdf.py`), with ranks made continuous: it is
uniform for the exact posterior, for any N and number of draws. The two-sample Kolmogorov-Smirnov test of the
ECP curve against the grid of levels, which sbi's `check_tarp` returns, is not a p-value: the values of an
ECDF on a grid are not independent draws from anything, and the number of grid points takes the place of the
number of pairs. For exact posteriors it is close to 1 every time, where a p-value is uniform.

**In plain words** (`area_to_curve`, "ATC" elsewhere): a negative area says that the balls
hold the truth less often than they claim, so that error bars are too small; a positive one that the truth is
nearer to where the data point than the draws are, so that the draws are shifted, put weight on the wrong
mode, are too wide or do not use the data; zero that neither shows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

from sbiflow.calibration.ecdf import ecdf
from sbiflow.calibration.regression import forward_prediction, regression_targets
from sbiflow.calibration.sbc import RankTest, fractional_rank, rank_test
from sbiflow.checks import check_shape
from sbiflow.priors import Prior

_MIN_SPREAD = 1e-6  # of the prior's: draws that all agree still have a unit of distance
_TURN, _NOISE = 0.05, 0.2
_LEVELS = np.linspace(0.5, 1.0, 51)


def random_linear(features: np.ndarray, outputs: int, generator: Generator | None = None) -> np.ndarray:
    """A random linear function of every row, of mean 0 and variance 1 on average: (N, K) -> (N, outputs)."""
    sd = features.std(0)
    x = (features - features.mean(0)) / np.where(sd > 0, sd, 1.0)
    weights = torch.randn((x.shape[1], outputs), generator=generator, dtype=torch.float64).numpy()
    return x @ weights / np.sqrt(x.shape[1])


def reference_offsets(
    residual: np.ndarray, features: np.ndarray, dim: int, generator: Generator | None = None
) -> np.ndarray:
    """Reference points relative to the mean of q, in its standard deviations: row i uses rows before i only.

    Args:
        residual: (theta* - m) / s, (N, P), P >= dim columns.
        features: functions of x, (N, K).
        dim: number of parameters.
        generator: of the random linear function of x and of the noise.

    Returns:
        (N, P).
    """
    error = forward_prediction(features, residual)
    direction = error + _TURN * random_linear(features, residual.shape[1], generator)
    length = np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-300)
    noise = torch.randn(residual.shape, generator=generator, dtype=torch.float64).numpy()
    return error + np.sqrt(dim) * direction / length + _NOISE * noise


def tarp_ranks(
    theta_star: Tensor, x: Tensor, draws: Tensor, prior: Prior, generator: Generator | None = None
) -> Tensor:
    """Posterior mass of the ball around the reference point that just reaches theta*, in (0, 1): (N,).

    Args:
        theta_star: (N, D).
        x: (N, *x_shape).
        draws: (L, N, D), L >= 9, independent for each of the N observations; the first third makes the
            reference points, the rest is ranked.
        prior: of the D parameters.
        generator: of the reference points and of ties.
    """
    check_shape(theta_star, "theta_star", ("N", prior.dim))
    check_shape(draws, "draws", ("L", *theta_star.shape))
    if len(draws) < 9:
        raise ValueError(f"draws: expected at least 9 for each observation, got {len(draws)}")
    used = np.stack([np.ones(prior.dim, bool), prior.periodic.numpy()], -1)  # (D, 2)
    together = regression_targets(torch.cat([theta_star[None], draws]), prior)
    aside = 1 + len(draws) // 3
    centre = together[1:aside].mean(0)
    spread = np.sqrt(together[1:aside].var(0).sum(-1, keepdims=True))
    y = ((together - centre) / np.maximum(spread, _MIN_SPREAD))[..., used]  # (1 + L, N, P)
    features = np.hstack([x.reshape(len(x), -1).double().numpy(), centre[:, used]])
    offsets = reference_offsets(y[0], features, prior.dim, generator)
    star = ((y[0] - offsets) ** 2).sum(-1)
    others = ((y[aside:] - offsets) ** 2).sum(-1)
    return fractional_rank(torch.from_numpy(star), torch.from_numpy(others), generator)


def area_to_curve(f: np.ndarray) -> float:
    """Area between ECP and the diagonal at credible levels of one half and more: f (N,) -> in [-3/8, 1/8].

    Negative: the balls hold the truth less often than they say. Positive: more often, the truth being nearer
    to the reference points than the draws are.
    """
    return float(np.trapezoid(ecdf(f, _LEVELS) - _LEVELS, _LEVELS))


def tarp_test(f: np.ndarray) -> RankTest:
    """Test the masses f (N,) of `tarp_ranks` for uniformity."""
    if area_to_curve(f) < 0:
        reading = "balls around reference points hold the truth less often than they say (too narrow)"
    else:
        reading = (
            "the truth lies nearer to the reference points, which follow the data, than the draws do "
            "(shifted, wrong weights of modes, too wide, or blind to x)"
        )
    return rank_test("TARP", f, reading)
