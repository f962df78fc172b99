"""Linear maps: permutation and LU-factorised, each on a chosen subset of the columns.

Angles cannot be mixed linearly with other parameters without losing their period, so a linear map takes the list
of columns it acts on and leaves the others alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from nflows.transforms.base import Transform
from torch import Tensor, nn
from torch.nn.functional import softplus

_MIN_DIAGONAL = 1e-3
_UNIT_RAW = math.log(math.expm1(1 - _MIN_DIAGONAL))  # raw value of a unit diagonal


class Permutation(Transform):
    """Reorder the columns: outputs[..., i] = inputs[..., order[i]]."""

    order: Tensor
    back: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        if sorted(order) != list(range(len(order))):
            raise ValueError(f"order: expected a permutation of 0..{len(order) - 1}, got {list(order)}")
        index = torch.as_tensor(order, dtype=torch.long)
        self.register_buffer("order", index)
        self.register_buffer("back", torch.argsort(index))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return inputs.index_select(-1, self.order), inputs.new_zeros(inputs.shape[:-1])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return inputs.index_select(-1, self.back), inputs.new_zeros(inputs.shape[:-1])


class LULinear(Transform):
    """y = L U x + b on the given columns (Kingma & Dhariwal 2018, arXiv 1807.03039, sec. 3.2); starts as identity.

    L has a unit diagonal and U a positive one, so the map is invertible whatever the parameters; the inverse is by
    two triangular solves.
    """

    columns: Tensor

    def __init__(self, dim: int, columns: Sequence[int] | None = None) -> None:
        super().__init__()
        columns = list(range(dim)) if columns is None else list(columns)
        self.register_buffer("columns", torch.as_tensor(columns, dtype=torch.long))
        self.mixes_all = columns == list(range(dim))
        size = len(columns)
        self.lower = nn.Parameter(torch.zeros(size, size))
        self.upper = nn.Parameter(torch.zeros(size, size))
        self.raw_diagonal = nn.Parameter(torch.full((size,), _UNIT_RAW))
        self.shift = nn.Parameter(torch.zeros(size))

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        diagonal = softplus(self.raw_diagonal) + _MIN_DIAGONAL
        unit = torch.eye(len(diagonal), dtype=diagonal.dtype, device=diagonal.device)
        return (
            self.lower.tril(-1) + unit,
            self.upper.triu(1) + torch.diag(diagonal),
            torch.log(diagonal).sum(),
        )

    def _replace(self, inputs: Tensor, part: Tensor) -> Tensor:
        return part if self.mixes_all else inputs.index_copy(-1, self.columns, part)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper, logdet = self._factors()
        part = inputs if self.mixes_all else inputs.index_select(-1, self.columns)
        mixed = part @ (lower @ upper).T + self.shift
        return self._replace(inputs, mixed), logdet.expand(inputs.shape[:-1])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper, logdet = self._factors()
        part = inputs if self.mixes_all else inputs.index_select(-1, self.columns)
        rows = (part - self.shift).flatten(0, -2).T if part.ndim > 1 else (part - self.shift)[:, None]
        solved = torch.linalg.solve_triangular(lower, rows, upper=False, unitriangular=True)
        solved = torch.linalg.solve_triangular(upper, solved, upper=True).T.reshape(part.shape)
        return self._replace(inputs, solved), -logdet.expand(inputs.shape[:-1])
