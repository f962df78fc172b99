"""A scale and a shift for every column."""

from __future__ import annotations

from nflows.transforms.base import Transform
from torch import Tensor

from sbiflow.transforms.elementwise import Affine
from sbiflow.transforms.parameters import Parameters


class Diagonal(Transform):
    """y_i = exp(s_i) x_i + t_i with |s_i| < 5; s and t (D each) from the context, or learned where C = 0.

    Inputs (..., D); starts as the identity.
    """

    def __init__(
        self, dim: int, context: int = 0, hidden: int = 64, blocks: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dim, self.elementwise = dim, Affine()
        self.params = Parameters(dim * self.elementwise.size, context, hidden, blocks, dropout)

    def _map(self, inputs: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        params = self.params(context).unflatten(-1, (self.dim, self.elementwise.size))
        outputs, logdet = self.elementwise(inputs, params, inverse)
        return outputs, logdet.expand_as(inputs).sum(-1)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(inputs, context, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(inputs, context, inverse=True)
