"""Small square matrices, one for each row of a context, times or against many rows of inputs.

A matrix (*own, M, M) and rows (*lead, M), where `own` broadcasts against `lead`. Where one context serves many draws
(`own` is shorter than `lead`), all its draws are the columns of one product; no matrix is repeated.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def multiply(matrix: Tensor, rows: Tensor) -> Tensor:
    """A x for every row x."""
    matrix, columns = _columns(matrix, rows)
    return (matrix @ columns).movedim(-1, 0).reshape(rows.shape)


def solve(matrix: Tensor, rows: Tensor, upper: bool, unit: bool = False) -> Tensor:
    """A^-1 y for every row y, with A triangular (`unit`: of a diagonal of ones that is not read)."""
    matrix, columns = _columns(matrix, rows)
    solved = torch.linalg.solve_triangular(matrix, columns, upper=upper, unitriangular=unit)
    return solved.movedim(-1, 0).reshape(rows.shape)


def _columns(matrix: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix, and the rows as (*rest, M, n), n to be multiplied by the same matrix."""
    if matrix.shape[:-2].numel() == 1:
        matrix = matrix.reshape(matrix.shape[-2:])
    shared = rows.ndim - (matrix.ndim - 1)
    count = rows.shape[:shared].numel()
    return matrix, rows.reshape(count, *rows.shape[shared:]).movedim(0, -1)


class Triangle(nn.Module):
    """Entries beside the diagonal (..., M (M - 1) / 2), row after row, and the diagonal (..., M) -> (..., M, M)."""

    table: Tensor

    def __init__(self, size: int, upper: bool = False) -> None:
        super().__init__()
        self.size, self.entries = size, size * (size - 1) // 2
        # each place of the matrix takes from (entries, diagonal, 0)
        table = torch.full((size, size), self.entries + size)
        ones = torch.ones(size, size, dtype=torch.bool)
        table[ones.triu(1) if upper else ones.tril(-1)] = torch.arange(self.entries)
        table.diagonal().copy_(self.entries + torch.arange(size))
        self.register_buffer("table", table.flatten(), persistent=False)

    def forward(self, entries: Tensor, diagonal: Tensor) -> Tensor:
        parts = torch.cat([entries, diagonal, torch.zeros_like(diagonal[..., :1])], -1)
        return parts.index_select(-1, self.table).unflatten(-1, (self.size, self.size))
