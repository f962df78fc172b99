"""Subtract a guess that the context carries and divide by its spread."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from nflows.transforms.base import Transform
from torch import Tensor


class Whiten(Transform):
    """y = L^-1 (z - guess) on the real columns; the guess is the last R entries of the context. Frozen after `fit`."""

    factor: Tensor
    columns: Tensor

    def __init__(self, dim: int, columns: Sequence[int]) -> None:
        super().__init__()
        self.mixes_all = list(columns) == list(range(dim))
        self.register_buffer("columns", torch.as_tensor(columns, dtype=torch.long), persistent=False)
        self.register_buffer("factor", torch.eye(len(columns)))

    def fit(self, factor: Tensor) -> None:
        """Take the Cholesky factor L (R, R) of the residuals."""
        self.factor.copy_(factor)

    def _split(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if context is None:
            raise ValueError("context: expected one that ends with the guess, got none")
        part = inputs if self.mixes_all else inputs.index_select(-1, self.columns)
        return part, context[..., -len(self.columns) :]

    def _join(self, inputs: Tensor, part: Tensor) -> Tensor:
        return part if self.mixes_all else inputs.index_copy(-1, self.columns, part)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        part, guess = self._split(inputs, context)
        residual = part - guess
        rows = residual.flatten(0, -2).T if residual.ndim > 1 else residual[:, None]
        solved = torch.linalg.solve_triangular(self.factor, rows, upper=False).T.reshape(residual.shape)
        return self._join(inputs, solved), -self._logdet().expand(inputs.shape[:-1])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        part, guess = self._split(inputs, context)
        return self._join(inputs, part @ self.factor.T + guess), self._logdet().expand(inputs.shape[:-1])

    def _logdet(self) -> Tensor:
        return torch.log(self.factor.diagonal()).sum()
