"""How well does a linear function of x predict a target? A floor for what a posterior must know."""

from __future__ import annotations

import numpy as np

_RIDGES = np.logspace(-8, 3, 23)  # in units of the mean eigenvalue


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
