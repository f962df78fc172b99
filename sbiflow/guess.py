"""A first guess of the posterior by linear regression, for the flow to refine.

Ridge regression of the base-space parameters z on the standardised observation gives a mean that is linear in x and
the covariance of what is left: the Gaussian linear posterior. Fitted in closed form before training and frozen, it is
the flow's first map: what the network has to learn is the departure from it. With few simulations that is most of
the accuracy; with many it costs nothing, since the layers that follow can undo any linear map.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sbiflow.embedding import Embedding
from sbiflow.optional import deferred

linear_model = deferred("sklearn.linear_model")

_PENALTIES = np.logspace(-2, 6, 17)
_ROWS = 20_000  # more change nothing that a linear fit can see
_MAX_FEATURES = 1024  # beyond, and without a projection, the fit takes longer than it saves
_SMALLEST = 1e-3  # spread of a residual that is called exact, in prior standard deviations


class Guess(nn.Module):
    """x -> the embedding's context with the regression's mean of the real columns appended, (..., C + R)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, embedding: Embedding, real: int) -> None:
        super().__init__()
        self.embedding, self.features = embedding, embedding.features + real
        size = int(np.prod(embedding.x_shape, dtype=int))
        self.register_buffer("weight", torch.zeros(real, size))
        self.register_buffer("bias", torch.zeros(real))

    def fit(self, x: Tensor, signal: Tensor) -> None:
        """Fit the embedding's standardiser and projection."""
        self.embedding.fit(x, signal)

    @torch.no_grad()
    def regress(self, x: Tensor, z: Tensor) -> Tensor:
        """Fit the regression on x (n, *x_shape) and z (n, R); returns the Cholesky factor of the residuals, (R, R)."""
        rows = min(len(x), _ROWS)
        flat, axes = self._flat(x[:rows]), None
        project = self.embedding.project
        if project is not None:
            # the few directions that signals vary along, of which x may have thousands more
            axes = project.weight.double().cpu().numpy()
            flat = project(flat)
        features = flat.double().cpu().numpy()
        target = z[:rows].double().cpu().numpy()
        coefficients, offset = np.zeros((len(self.bias), features.shape[1])), target.mean(0)
        if 0 < features.shape[1] <= _MAX_FEATURES:
            fit = linear_model.RidgeCV(_PENALTIES).fit(features, target)
            coefficients, offset = np.atleast_2d(fit.coef_), np.atleast_1d(fit.intercept_)
        self.weight.copy_(torch.from_numpy(coefficients if axes is None else coefficients @ axes))
        self.bias.copy_(torch.from_numpy(offset))
        residual = target - features @ coefficients.T - offset
        covariance = np.cov(residual.T, ddof=1).reshape(len(self.bias), -1)
        floor = np.diag(np.full(len(covariance), _SMALLEST**2))
        return torch.from_numpy(np.linalg.cholesky(covariance + floor))

    def forward(self, x: Tensor) -> Tensor:
        guess = torch.nn.functional.linear(self._flat(x), self.weight, self.bias)
        return torch.cat([self.embedding(x), guess], -1)

    def _flat(self, x: Tensor) -> Tensor:
        x = self.embedding.standardize(x)
        return x.flatten(-len(self.embedding.x_shape)) if self.embedding.x_shape else x[..., None]


class WithColumns(nn.Module):
    """x -> another embedding's context with columns of the flattened x appended as they are, (..., C + K)."""

    inner: Embedding | Guess

    def __init__(self, inner: Embedding | Guess, columns: Sequence[int]) -> None:
        super().__init__()
        self.inner, self.columns = inner, list(columns)
        self.features = inner.features + len(self.columns)

    def select(self, x: Tensor) -> Tensor:
        """The columns alone, (..., K)."""
        own = self.inner.embedding if isinstance(self.inner, Guess) else self.inner
        x_shape = own.x_shape
        flat = x.flatten(-len(x_shape)) if x_shape else x[..., None]
        return flat[..., self.columns]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.inner(x), self.select(x)], -1)
