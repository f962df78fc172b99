"""Local classifier two-sample test: is the posterior right at this one observation?

Simulate pairs (theta*, x) and draw theta ~ q(theta | x) for the same x. A classifier of (theta*, x) against
(theta, x) estimates d(theta, x) = P(true pair | theta, x), and q is right at x_o if and only if d(theta, x_o) =
1/2 on the draws of q there. The statistic is the mean of (d(theta, x_o) - 1/2)^2 over them; it is compared
with that of classifiers trained on exchanged labels (L-C2ST: Linhart, Gramfort & Rodrigues 2023, arXiv
2306.03580, section 3). No simulation at x_o is needed, so it works for an observation without known truth.

Two choices make it fast and strong.

Parameters are given to the classifier as u = L^-1 (z - mean), with z the prior's base coordinates and mean and
covariance L L^T those of further draws of q at the same x. That is for any proposal what the paper's variant
for normalizing flows, L-C2ST-NF, does with the flow's own base space: an error of 0.3 posterior sd is as easy
to see for a narrow posterior as for a wide one.

The classifier is ridge regression of the labels on a Gaussian kernel in (u, x), projected on landmarks
(Nystroem's method), not a network: its fit for a thousand exchanged sets of labels is one matrix product.
Landmarks and ridge come from a quarter of the pairs that is used for nothing else, and are the same for all
labels. Labels are exchanged within pairs of equal x: these are exchangeable if q is the posterior at every
x, so that p = (1 + number >= statistic) / (1 + number) is then exact. For a q that is wrong elsewhere only, it
is valid at distances from the fault of several widths of the kernel in x (half the median distance of two
simulations).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from sbiflow.blocks import AnySimulator
from sbiflow.calibration.whitening import whitened_at, whitened_pairs
from sbiflow.checks import as_tensor, check_count, check_finite, check_shape
from sbiflow.contracts import Proposal
from sbiflow.pairs import draw_pairs
from sbiflow.seeding import check_seed, torch_generator

_PAIRS, _DRAWS, _NULL = 1, 2, 3
_RIDGES = tuple(10.0**k for k in range(-6, 1))  # in units of the trace of the features' covariance
_X_WIDTH = 0.5  # of the kernel, in median distances of x
_FEW_NEIGHBOURS = 100.0


@dataclass(frozen=True)
class LocalC2stResult:
    """The test at one observation.

    Attributes:
        statistic: mean of (d - 1/2)^2 over draws of q at the observation.
        null: the same for exchanged labels, (n_null,).
        p_value: of q being the posterior.
        neighbours: the sum over pairs of the kernel between their x and the observation: how many simulations
            speak for it. Where there are few, a large p-value means little.
        n_simulations, n_failed: simulations made, and those of them that failed and were left out.
    """

    statistic: float
    null: np.ndarray
    p_value: float
    neighbours: float
    n_simulations: int
    n_failed: int

    def passed(self, alpha: float) -> bool:
        return self.p_value > alpha

    @property
    def reading(self) -> str:
        """The outcome in plain words, for alpha = 0.05."""
        if self.p_value <= 0.05:
            return f"the posterior is wrong at this observation (p = {self.p_value:.2g})"
        text = f"no fault found at this observation (p = {self.p_value:.2g})"
        if self.neighbours < _FEW_NEIGHBOURS:
            text += f", but only {self.neighbours:.0f} simulations are near it: the test is weak"
        return text


def local_c2st(
    proposal: Proposal,
    simulator: AnySimulator,
    x_observed: Tensor,
    *,
    seed: int,
    n: int = 8000,
    n_null: int = 999,
    n_eval: int = 2000,
    n_features: int = 500,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> LocalC2stResult:
    """Test q(theta | x_observed) with fresh simulations.

    Args:
        proposal: of the simulator's prior; asked for 101 draws at each of n observations.
        simulator: of either kind.
        x_observed: (*x_shape), finite.
        seed: of simulations, draws, features and exchanged labels.
        n: pairs to simulate.
        n_null: sets of exchanged labels; the smallest p-value is 1 / (1 + n_null).
        n_eval: draws of q at the observation.
        n_features: landmarks of the classifier, at most n / 4.
        embed: x (n, *x_shape) -> (n, K), a summary to be used in place of x; None: x itself, flattened. For an
            x of many features a summary (a posterior's embedding) makes the test stronger.

    Raises:
        ValueError: wrong shapes, x_observed not finite, a proposal of another prior or outside its support.
    """
    x_o = _observation(proposal, simulator, x_observed)
    check_count(n, "n", 200)
    check_count(n_null, "n_null", 19)
    check_count(n_eval, "n_eval", 100)
    check_count(n_features, "n_features", 10)
    if n_features > n // 4:
        raise ValueError(f"n_features: expected at most n / 4 = {n // 4}, got {n_features}")
    pairs = draw_pairs(simulator, n, seed=_derived(seed))
    generator = torch_generator(check_seed(seed), _DRAWS)
    truth, draws = whitened_pairs(proposal, pairs.theta, pairs.x, generator)
    at_observation = whitened_at(proposal, x_o, n_eval, generator)
    x_all, x_one = _scaled_x(pairs.x, x_o, embed)
    first, rest = slice(0, len(x_all) // 4), slice(len(x_all) // 4, None)
    features = _Features(draws[first], x_all[first], n_features)
    ridge = _best_ridge(features(truth[first], x_all[first]), features(draws[first], x_all[first]))
    statistic, null = _statistics(
        features(truth[rest], x_all[rest]),
        features(draws[rest], x_all[rest]),
        features(at_observation, x_one.expand(n_eval, -1)),
        ridge,
        _signs(len(x_all[rest]), n_null, torch_generator(seed, _NULL)),
    )
    exceed = int((null >= statistic).sum())
    return LocalC2stResult(
        statistic=float(statistic),
        null=null.numpy(),
        p_value=(1 + exceed) / (1 + n_null),
        neighbours=float(features.x_kernel(x_all, x_one).sum()),
        n_simulations=n,
        n_failed=pairs.n_failed,
    )


def _derived(seed: int) -> int:
    return int(np.random.SeedSequence([check_seed(seed), _PAIRS]).generate_state(1)[0])


def _observation(proposal: Proposal, simulator: AnySimulator, x_observed: Tensor) -> Tensor:
    """x_observed as (1, *x_shape), checked."""
    x = as_tensor(x_observed, "x_observed").detach().double().cpu()
    check_shape(x, "x_observed", tuple(simulator.x_shape))
    check_finite(x, "x_observed")
    if proposal.prior != simulator.prior:
        raise ValueError(
            f"proposal: expected the simulator's prior,\n{simulator.prior}\ngot\n{proposal.prior}"
        )
    return x[None]


def _scaled_x(x: Tensor, x_o: Tensor, embed: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, Tensor]:
    """Both as (n, K) and (1, K), scaled by mean and sd over the pairs; constant features are only centred."""
    flat, one = ((embed(v) if embed else v).detach().double().cpu().flatten(1) for v in (x, x_o))
    check_finite(flat, "embed(x)" if embed else "x")
    mean, sd = flat.mean(0), flat.std(0)
    sd = torch.where(sd > 0, sd, 1.0)
    return (flat - mean) / sd, (one - mean) / sd


class _Features:
    """Features whose scalar product is the kernel exp(-|u - u'|^2 / 2 h_u^2 - |x - x'|^2 / 2 h_x^2), projected on
    M landmarks (Nystroem's method): they vanish far from all of them, so that what is wrong at one x does not
    act at distant ones, as it would through random Fourier features."""

    def __init__(self, u: Tensor, x: Tensor, count: int) -> None:
        self.u_width = math.sqrt(2 * u.shape[1])  # about the median distance of whitened draws
        distance = float(torch.pdist(x[:1000]).median())
        self.x_width = _X_WIDTH * distance if distance > 0 else 1.0
        self.landmarks = self._scaled(u[:count], x[:count])
        gram = self._kernel(self.landmarks)
        gram.diagonal().add_(1e-6)
        self.factor = torch.linalg.cholesky(gram)

    def _scaled(self, u: Tensor, x: Tensor) -> Tensor:
        return torch.cat([u / self.u_width, x / self.x_width], 1)

    def _kernel(self, points: Tensor) -> Tensor:
        return torch.exp(-0.5 * torch.cdist(points, self.landmarks).square())

    def __call__(self, u: Tensor, x: Tensor) -> Tensor:
        """(n, D), (n, K) -> (n, M)."""
        kernel = self._kernel(self._scaled(u, x))
        return torch.linalg.solve_triangular(self.factor, kernel.T, upper=False).T

    def x_kernel(self, x: Tensor, other: Tensor) -> Tensor:
        """(n, K), (m, K) -> (n, m)."""
        return torch.exp(-0.5 * (torch.cdist(x, other) / self.x_width) ** 2)


def _signs(n: int, n_null: int, generator: Generator) -> Tensor:
    """A first column of ones, then random signs: -1 exchanges the labels of a pair; (n, 1 + n_null)."""
    flips = torch.rand(n, n_null, generator=generator, dtype=torch.float64) < 0.5
    return torch.cat([torch.ones(n, 1, dtype=torch.float64), torch.where(flips, -1.0, 1.0).double()], 1)


def _statistics(
    truth: Tensor, draws: Tensor, observed: Tensor, ridge: float, signs: Tensor
) -> tuple[Tensor, Tensor]:
    """The statistic and its null (n_null,) from features (n, M), (n, M) and (n_eval, M)."""
    values = (observed @ _fit(truth, draws, signs, ridge)).square().mean(0)
    return values[0], values[1:]


def _fit(truth: Tensor, draws: Tensor, signs: Tensor, ridge: float) -> Tensor:
    """Weights (M, S) of d - 1/2 by ridge regression of the labels +-1/2, exchanged where a sign is -1."""
    gram = truth.T @ truth + draws.T @ draws
    gram.diagonal().add_(ridge * float(gram.trace()))
    return torch.cholesky_solve((truth - draws).T @ signs / 2, torch.linalg.cholesky(gram))


def _best_ridge(truth: Tensor, draws: Tensor) -> float:
    """The ridge of least squared error on the second half of the pairs, trained on the first."""
    half = len(truth) // 2
    ones = torch.ones(half, 1, dtype=torch.float64)

    def loss(ridge: float) -> float:
        w = _fit(truth[:half], draws[:half], ones, ridge)
        return float(((truth[half:] @ w - 0.5) ** 2 + (draws[half:] @ w + 0.5) ** 2).mean())

    return min(_RIDGES, key=loss)
