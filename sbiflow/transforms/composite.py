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

    def own(self, context: Tensor | None) -> Tensor | None:
        return None if context is None else context[..., self.columns]

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner(inputs, self.own(context))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner.inverse(inputs, self.own(context))


def initialise(transform: Transform, inputs: Tensor, context: Tensor | None) -> Tensor:
    """Hand the data (n, D) through, and let every part that takes its first parameters from data take them.

    Such a part has `initialise(inputs, context)`. Returns the outputs.
    """
    if isinstance(transform, Composite):
        for part in transform.transforms:
            inputs = initialise(part, inputs, context)
        return inputs
    if isinstance(transform, WithContext):
        return initialise(transform.inner, inputs, transform.own(context))
    if hasattr(transform, "initialise"):
        transform.initialise(inputs, context)
    return transform(inputs, context)[0]


def objective(transform: Transform, inputs: Tensor, context: Tensor | None) -> Tensor:
    """What training climbs, (...), where the last part of a flow has an `objective(inputs, context)` of its own.

    That is a per-row estimate whose maximum is the wished density's; log-determinants before it are added.
    """
    if isinstance(transform, WithContext):
        return objective(transform.inner, inputs, transform.own(context))
    if not isinstance(transform, Composite):
        return transform.objective(inputs, context)
    *first, last = transform.transforms
    inputs, total = Composite(first)(inputs, context)
    return total + objective(last, inputs, context)
