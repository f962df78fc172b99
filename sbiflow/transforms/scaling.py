"""A diagonal scaling that may depend on the context."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from nflows.transforms.base import Transform
from torch import Tensor

from sbiflow.transforms.parameters import Parameters
from sbiflow.transforms.splines import soft_clamp


class Scaling(Transform):
    """y = x exp(s): the last layer of NICE (Dinh et al. 2014, arXiv 1410.8516, sec. 3.3), and its only one that changes
    volumes.

    There s is a parameter; here it is read from the context, where there is one, for the width of a posterior depends
    on the observation. |s| < limit.

    Args:
        dim: D.
        columns: those to scale; the others pass.
        context: C; without context features (0), s is learned directly.
        hidden, blocks, dropout: of the network that reads the context.
        limit: of |s|; a column can be narrower or wider than the base by e^limit.
    """

    columns: Tensor

    def __init__(
        self,
        dim: int,
        columns: Sequence[int],
        context: int,
        hidden: int,
        blocks: int,
        dropout: float = 0.0,
        limit: float = 12.0,
    ) -> None:
        super().__init__()
        if not columns or len(set(columns)) != len(columns) or not set(columns) <= set(range(dim)):
            raise ValueError(f"columns: expected distinct columns of 0..{dim - 1}, got {list(columns)}")
        self.dim, self.limit = dim, limit
        self.params = Parameters(len(columns), context, hidden, blocks, dropout)
        self.register_buffer("columns", torch.as_tensor(list(columns), dtype=torch.long), persistent=False)

    def _log_scale(self, context: Tensor | None) -> Tensor:
        """s (..., D) in the rows of the context, zero where a column passes."""
        log_scale = soft_clamp(self.params(context), self.limit)
        none = log_scale.new_zeros(*log_scale.shape[:-1], self.dim)
        return none.index_copy(-1, self.columns, log_scale)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_scale = self._log_scale(context)
        return inputs * torch.exp(log_scale), log_scale.sum(-1).expand(inputs.shape[:-1])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_scale = self._log_scale(context)
        return inputs * torch.exp(-log_scale), -log_scale.sum(-1).expand(inputs.shape[:-1])
