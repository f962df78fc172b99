"""A transform with its two directions exchanged.

Of an autoregressive transform this makes the inverse autoregressive flow (Kingma et al. 2016, arXiv 1606.04934): each
column of z is a map of the same column of the base, with parameters read from the *base's* columns before it. All of
them are known at once, so a draw and its density are one pass; the density of any other point is the direction in
which one column follows another. The masked autoregressive flow has it the other way round (Papamakarios et al. 2017,
arXiv 1705.07057, sec. 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from nflows.transforms.base import Transform
from torch import Tensor

from sbiflow.transforms.bounded import wrap
from sbiflow.transforms.elementwise import CircularSpline


@dataclass(frozen=True)
class TurnedSpline:
    """`CircularSpline` with its shift after the spline: y = wrap(spline(x) + shift).

    For a map whose inputs are the base: that is uniform, and to shift it would say nothing of where the density is.
    """

    bins: int = 8

    @property
    def size(self) -> int:
        return CircularSpline(self.bins).size

    def __call__(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        shape, shift = params[..., :-1], params[..., -1]
        unturned = torch.cat([shape, torch.zeros_like(params[..., -1:])], -1)
        if inverse:
            return CircularSpline(self.bins)(wrap(inputs - shift), unturned, inverse=True)
        outputs, logdet = CircularSpline(self.bins)(inputs, unturned)
        return wrap(outputs + shift), logdet


class Inverse(Transform):
    """`forward` is the inverse of a transform, `inverse` its forward direction; shapes and domains as there.

    Raises:
        ValueError: a part of the transform takes its first parameters from data. They would have to come from the
            other side of it.
    """

    def __init__(self, inner: Transform) -> None:
        super().__init__()
        if fitted := [type(part).__name__ for part in inner.modules() if hasattr(part, "initialise")]:
            raise ValueError(
                f"Inverse: expected a transform that needs no data to start, got {', '.join(fitted)}"
            )
        self.inner = inner

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner.inverse(inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner(inputs, context)
