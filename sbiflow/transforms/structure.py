"""The maps that anchors and symmetries of a posterior (`sbiflow.structure`) are to a flow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from nflows.transforms.base import Transform
from torch import Generator, Tensor

from sbiflow.structure import Anchor, Structure
from sbiflow.transforms.bounded import normal_tails, probit_from_tails, wrap
from sbiflow.transforms.composite import Composite


class Anchored(Transform):
    """z -> departures from the anchors; the context is the observation's estimates in the order of `columns`.

    A real column becomes (z - location) / scale, a phase wrap(m z - location - slopes @ departures). Forward maps
    the m copies of a turned phase to the same value; the inverse returns one of them.
    """

    def __init__(self, structure: Structure, periodic: Sequence[bool]) -> None:
        super().__init__()
        turns = dict(structure.turns)
        self.reals = [a for a in structure.anchors if not periodic[a.parameter]]
        located = {a.parameter: a for a in structure.anchors if periodic[a.parameter]}
        self.phases = [(i, turns.get(i, 1), located.get(i)) for i in sorted({*turns, *located})]
        self.stretch = sum(math.log(times) for _, times, _ in self.phases)
        used = [(a.location, a.log_scale, *(column for _, column in a.slopes)) for a in structure.anchors]
        self.columns = sorted({column for group in used for column in group if column is not None})
        self._place = {column: place for place, column in enumerate(self.columns)}

    def _known(self, context: Tensor | None, column: int) -> Tensor:
        if context is None:
            raise ValueError("context: expected the estimates of the anchors, got none")
        return context[..., self._place[column]]

    def _log_scale(self, anchor: Anchor, context: Tensor | None, like: Tensor) -> Tensor:
        return like.new_zeros(()) if anchor.log_scale is None else self._known(context, anchor.log_scale)

    def _offset(self, anchor: Anchor | None, context: Tensor | None, columns: list[Tensor]) -> Tensor | float:
        """What a phase is measured from, given the departures of the real columns."""
        if anchor is None:
            return 0.0
        moved = sum(self._known(context, column) * columns[other] for other, column in anchor.slopes)
        return self._known(context, anchor.location) + moved

    def _logdet(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        scales = sum(self._log_scale(anchor, context, inputs) for anchor in self.reals)
        return (self.stretch - scales) * inputs.new_ones(inputs.shape[:-1])

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        columns = list(inputs.unbind(-1))
        for a in self.reals:
            departure = columns[a.parameter] - self._known(context, a.location)
            columns[a.parameter] = departure * torch.exp(-self._log_scale(a, context, inputs))
        for i, times, anchor in self.phases:
            columns[i] = wrap(times * columns[i] - self._offset(anchor, context, columns))
        return torch.stack(columns, -1), self._logdet(inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        columns = list(inputs.unbind(-1))
        for i, times, anchor in self.phases:  # before the real columns, whose departures they need
            columns[i] = wrap(columns[i] + self._offset(anchor, context, columns)) / times
        for a in self.reals:
            departure = columns[a.parameter] * torch.exp(self._log_scale(a, context, inputs))
            columns[a.parameter] = departure + self._known(context, a.location)
        return torch.stack(columns, -1), -self._logdet(inputs, context)


class Fold(Transform):
    """Two exchangeable groups of columns -> one copy, unfolded to R^D again.

    Where the first column of the first group is the smaller, the groups are exchanged. The ordered pair (a >= b) of
    two standard normals then is turned to u = (a + b) / √2, a standard normal, and v = (a - b) / √2 > 0, half-normal,
    which its quantiles map to a standard normal. The inverse returns the ordered copy.
    """

    def __init__(self, dim: int, swap: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
        super().__init__()
        first, second = swap
        self.a, self.b = first[0], second[0]
        partner = {**dict(zip(first, second, strict=True)), **dict(zip(second, first, strict=True))}
        self.exchanged = [partner.get(i, i) for i in range(dim)]

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        wrong = (inputs[..., self.a] < inputs[..., self.b])[..., None]
        columns = list(torch.where(wrong, inputs[..., self.exchanged], inputs).unbind(-1))
        a, b = columns[self.a], columns[self.b]
        u, v = (a + b) / math.sqrt(2), (a - b) / math.sqrt(2)
        below, above = torch.erf(v / math.sqrt(2)), torch.erfc(v / math.sqrt(2))
        w = probit_from_tails(below, above)
        columns[self.a], columns[self.b] = u, w
        return torch.stack(columns, -1), math.log(2) + 0.5 * (w * w - v * v)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        columns = list(inputs.unbind(-1))
        u, w = columns[self.a], columns[self.b]
        below, above = normal_tails(w)
        v = probit_from_tails(0.5 + 0.5 * below, 0.5 * above)
        v = torch.where(
            below < 1e-3, below * math.sqrt(math.pi / 2), v
        )  # Phi(v) = 1/2 + below / 2 would round
        columns[self.a], columns[self.b] = (u + v) / math.sqrt(2), (u - v) / math.sqrt(2)
        return torch.stack(columns, -1), 0.5 * (v * v - w * w) - math.log(2)


class Known(Transform):
    """`Fold`, then `Anchored`; the context is the columns of x that `columns` lists.

    The log-determinants are those of a density that is shared equally among all copies; the inverse returns one of
    them, and `Spread` makes the choice.
    """

    def __init__(self, structure: Structure, periodic: Sequence[bool]) -> None:
        super().__init__()
        anchored = Anchored(structure, periodic)
        fold = [Fold(len(periodic), structure.swap)] if structure.swap[0] else []
        self.inner = Composite([*fold, anchored])
        self.columns = anchored.columns
        self.log_copies = anchored.stretch + math.log(2) * len(fold)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs, logdet = self.inner(inputs, context)
        return outputs, logdet - self.log_copies

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs, logdet = self.inner.inverse(inputs, context)
        return outputs, logdet + self.log_copies


def known_transform(structure: Structure, periodic: Sequence[bool]) -> Known | None:
    """What a structure does to the base space, None if nothing."""
    return None if structure == Structure() else Known(structure, periodic)


class Spread:
    """Choose one of the equivalent copies of each draw, with equal probability."""

    def __init__(self, structure: Structure, dim: int) -> None:
        self.turns = structure.turns
        self.exchanged = Fold(dim, structure.swap).exchanged if structure.swap[0] else None

    def __call__(self, z: Tensor, generator: Generator | None) -> Tensor:
        def uniform() -> Tensor:
            return torch.rand(z.shape[:-1], generator=generator, device=z.device, dtype=z.dtype)

        if self.exchanged is not None:
            z = torch.where((uniform() < 0.5)[..., None], z[..., self.exchanged], z)
        columns = list(z.unbind(-1))
        for column, times in self.turns:
            copy = torch.floor(uniform() * times).clamp(max=times - 1)
            columns[column] = wrap(columns[column] + 2 * math.pi / times * copy)
        return torch.stack(columns, -1)
