"""How well does a linear function of x predict the parameters? A floor for what a posterior must know.

Predictions are made forward: row i from a fit to rows before it. Of the pairs (theta*, x) only earlier thetas
enter, so that a rank that uses the prediction for x_i stays independent of all ranks before it, and all N
pairs can be tested. Splitting the pairs in two would leave half; cross-fitting (each half predicted from the
other) would make the ranks of the two halves depend on each other.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Generator, Tensor

from sbiflow.calibration.sbc import fractional_rank
from sbiflow.priors import Prior

_RIDGES = np.logspace(-8, 3, 23)  # in units of the mean eigenvalue
_FRACTIONS = (32, 16, 8, 4, 2, 1)  # refits after 1/32, 1/16, ... and 1/2 of the rows


def to_base(theta: Tensor, prior: Prior) -> Tensor:
    """Base coordinates (..., D), without the Jacobian that `prior.unconstrain` adds."""
    return torch.stack([m.to_base(theta[..., d]) for d, m in enumerate(prior.marginals)], -1)


def regression_targets(theta: Tensor, prior: Prior) -> np.ndarray:
    """What to predict from x: z of each parameter as one column, cosine and sine of a phase as two.

    (..., D) -> (..., D, 2), the second column of a parameter that is not periodic being 0. The prior's mean
    is 0 and its variance, summed over the two columns, 1.
    """
    z = to_base(theta, prior)
    pair = torch.stack(
        [torch.where(prior.periodic, z.cos(), z), torch.where(prior.periodic, z.sin(), 0.0)], -1
    )
    return pair.numpy()


def _features(x: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    return (x - mean) / np.where(sd > 0, sd, 1.0)


def ridge_prediction(x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    """Ridge regression with the strength of least leave-one-out error: (n, K), (n, T), (m, K) -> (m, T).

    Leave-one-out residuals in closed form from one singular value decomposition (e.g. Hastie, Tibshirani &
    Friedman, The Elements of Statistical Learning, sections 3.4 and 7.10); K may exceed n.
    """
    mean, sd = x_train.mean(0), x_train.std(0)
    centre = y_train.mean(0)
    u, s, vt = np.linalg.svd(_features(x_train, mean, sd), full_matrices=False)
    projected = u.T @ (y_train - centre)
    best, error = projected * 0, np.inf
    for strength in _RIDGES * max(float(np.mean(s**2)), 1e-300):
        shrink = s**2 / (s**2 + strength)
        residual = y_train - centre - u @ (shrink[:, None] * projected)
        leverage = (u**2) @ shrink + 1 / len(u)
        loss = float(np.mean((residual / np.maximum(1 - leverage, 1e-9)[:, None]) ** 2))
        if loss < error:
            best, error = (s / (s**2 + strength))[:, None] * projected, loss
    return centre + _features(x_test, mean, sd) @ vt.T @ best


def _blocks(n: int) -> list[tuple[int, int]]:
    """First and last row (exclusive) of each block that is predicted from all rows before it."""
    return list(pairwise(n // part for part in _FRACTIONS))


def forward_prediction(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Prediction of every row from rows before it: (N, K), (N, T) -> (N, T).

    Fits are renewed after 1/32, 1/16, ... 1/2 of the rows, so that the second half is predicted from the first.
    The first rows, which have nothing to learn from, get 0: the prior's mean for `regression_targets`.
    """
    predicted = np.zeros(targets.shape)
    for start, stop in _blocks(len(targets)):
        if start > 2:
            predicted[start:stop] = ridge_prediction(features[:start], targets[:start], features[start:stop])
    return predicted


def forward_error(targets: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean square error that the rows before a block had, for every row: (N, D, 2) twice -> (N, D).

    1, the prior's, for the first rows; never 0.
    """
    loss = ((targets - predicted) ** 2).sum(-1)
    error = np.ones(loss.shape)
    for start, stop in _blocks(len(loss)):
        if start:
            error[start:stop] = loss[:start].mean(0)
    return np.maximum(error, 1e-300)


def regression_ranks(
    targets: np.ndarray,
    predicted: np.ndarray,
    draws: Tensor,
    prior: Prior,
    generator: Generator | None = None,
) -> Tensor:
    """Rank of the squared distance to the prediction from x, in (0, 1), (N,).

    Each parameter's distance is in units of the error that earlier predictions had, so that neither the
    prediction nor the unit knows the theta* that is ranked.

    Args:
        targets, predicted: (N, D, 2), of `regression_targets` and `forward_prediction`.
        draws: (L, N, D).
        prior: of the D parameters.
        generator: breaks ties.
    """
    error = forward_error(targets, predicted)
    star = (((targets - predicted) ** 2).sum(-1) / error).sum(-1)
    others = (((regression_targets(draws, prior) - predicted) ** 2).sum(-1) / error).sum(-1)
    return fractional_rank(torch.from_numpy(star), torch.from_numpy(others), generator)
