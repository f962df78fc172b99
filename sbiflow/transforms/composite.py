"""Transforms in sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from nflows.transforms.base import Transform
from torch import Tensor, nn


class Composite(Transform):
    """Apply transforms one after another; unlike nflows' own, for any leading shape (..., D)."""

    def __init__(self, transforms: Iterable[Transform]) -> None:
        super().__init__()
        self.transforms = cast(Sequence[Transform], nn.ModuleList(transforms))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = inputs.new_zeros(inputs.shape[:-1])
        for transform in self.transforms:
            inputs, logdet = transform(inputs, context)
            total = total + logdet
        return inputs, total

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = inputs.new_zeros(inputs.shape[:-1])
        for transform in reversed(self.transforms):
            inputs, logdet = transform.inverse(inputs, context)
            total = total + logdet
        return inputs, total


class WithContext(Transform):
    """A transform that is given only some columns of the context."""

    def __init__(self, inner: Transform, columns: slice) -> None:
        super().__init__()
        self.inner, self.columns = inner, columns

    def _own(self, context: Tensor | None) -> Tensor | None:
        return None if context is None else context[..., self.columns]

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner(inputs, self._own(context))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner.inverse(inputs, self._own(context))
