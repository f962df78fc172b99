"""A masked network evaluated while its inputs become known, for autograd: `incremental` without writing in place.

As there, the units of a degree are computed once, when the inputs that they read are complete, so that an inverse and
its gradient cost about as much as a density and its gradient, not D times as much.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from sbiflow.transforms.networks import MaskedNet


class DifferentiableSteps:
    """The outputs of a `MaskedNet` for one dimension after another.

    Args:
        net: in training mode its dropout acts, with one mask for all dimensions.
        context: (..., C) that broadcasts to (*lead, C), or None.
        lead: leading shape of the features.
    """

    def __init__(self, net: MaskedNet, context: Tensor | None, lead: Sequence[int]) -> None:
        self.net, self.lead = net, tuple(lead)
        layers = [
            net.entry,
            *itertools.chain.from_iterable(zip(net.first, net.second, strict=True)),
            net.exit,
        ]
        widths = [end - start for start, end in itertools.pairwise([0, *net.hidden_ends])]
        rows = [widths] * (len(layers) - 1) + [[net.size] * net.dim]
        self.weights = [layer.weight.split(own) for layer, own in zip(layers, rows, strict=True)]
        self.shifts = [
            shift.split(own, -1) for shift, own in zip(self._shifts(layers, context), rows, strict=True)
        ]
        entry = layers[0].weight
        self.features = entry.new_empty(*self.lead, 0)
        self.units = [self.features] * (len(layers) - 1)  # so far, what each layer after the entry reads

    def _shifts(self, layers: Sequence[torch.nn.Linear], context: Tensor | None) -> list[Tensor]:
        """Bias and context of each layer."""
        shifts: list[Tensor] = [layer.bias for layer in layers]
        if self.net.context is not None and context is not None:
            readers = [0, *range(1, len(layers) - 1, 2)]  # the entry and the first layer of each block
            for i, shift in zip(readers, self.net.context(context).chunk(len(readers), -1), strict=True):
                shifts[i] = shifts[i] + shift
        return shifts

    def step(self, d: int, features: Sequence[Tensor]) -> Tensor:
        """Outputs (*lead, size) for dimension d, from the features of dimension d - 1, each of shape `lead`."""
        if features:
            self.features = torch.cat([self.features, torch.stack(list(features), -1)], -1)
        residual = self._layer(0, d, self.features).expand(*self.lead, -1)
        last = len(self.units) - 1
        self._append(0, silu(residual) if last else self.net.drop(silu(residual)))
        for i in range(1, last + 1):
            value = self._layer(i, d, self.units[i - 1])
            residual = residual if i % 2 else residual + value
            units = silu(value if i % 2 else residual)
            self._append(i, self.net.drop(units) if i % 2 or i == last else units)
        return self._layer(-1, d, self.units[-1])

    def _layer(self, i: int, d: int, known: Tensor) -> Tensor:
        """Of degree d: what layer i makes of the first units, or features, which are all that it reads."""
        shift = self.shifts[i][d]
        if not known.shape[-1]:
            return shift
        return linear(known, self.weights[i][d][:, : known.shape[-1]]) + shift

    def _append(self, i: int, units: Tensor) -> None:
        self.units[i] = torch.cat([self.units[i], units], -1)
