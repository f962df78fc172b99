"""Coupling transforms: one part of the columns is mapped elementwise, with parameters read from the other part.

NICE (arXiv 1410.8516), RealNVP (1605.08803) and spline coupling (1906.04032) differ by the elementwise map only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from nflows.transforms.base import Transform
from torch import Tensor

from sbiflow.transforms.elementwise import Elementwise
from sbiflow.transforms.networks import ResidualNet, phase_features


class Coupling(Transform):
    """Map the columns `moved` given the others and the context.

    Args:
        dim: D.
        moved: columns to transform; all of them (D = 1) leaves the context as the only condition.
        context: C, number of context features; 0 for none.
        elementwise: the map; built for the moved columns.
        periodic: columns that are phases, read as cosine and sine.
        dropout: of the conditioner's units while training.
    """

    order: Tensor
    back: Tensor
    phases: Tensor

    def __init__(
        self,
        dim: int,
        moved: Sequence[int],
        context: int,
        elementwise: Elementwise,
        hidden: int,
        blocks: int,
        periodic: Sequence[int] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not moved or len(set(moved)) != len(moved) or not set(moved) <= set(range(dim)):
            raise ValueError(f"moved: expected distinct columns of 0..{dim - 1}, got {list(moved)}")
        kept = [i for i in range(dim) if i not in moved]
        phases = [kept.index(i) for i in periodic if i in kept]
        order = [*kept, *moved]
        self.elementwise, self.n_kept, self.has_phases = elementwise, len(kept), bool(phases)
        self.net = ResidualNet(
            len(kept) + len(phases), len(moved) * elementwise.size, context, hidden, blocks, dropout
        )
        back = [order.index(i) for i in range(dim)]
        for name, index in {"order": order, "back": back, "phases": phases}.items():
            self.register_buffer(name, torch.as_tensor(index, dtype=torch.long), persistent=False)

    def _map(self, inputs: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        kept, moved = inputs.index_select(-1, self.order).tensor_split([self.n_kept], -1)
        features = phase_features(kept, self.phases) if self.has_phases else kept
        params = self.net(features, context).unflatten(-1, (moved.shape[-1], self.elementwise.size))
        moved, logdet = self.elementwise(moved, params, inverse)
        return torch.cat([kept, moved], -1).index_select(-1, self.back), logdet.sum(-1)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(inputs, context, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(inputs, context, inverse=True)
