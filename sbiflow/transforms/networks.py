"""Conditioner networks: residual perceptrons that read a context, plain and autoregressively masked.

The context enters by one linear projection for all residual blocks together, so a context with fewer rows than
the inputs (one observation, many draws) is projected once and broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu


def phase_features(inputs: Tensor, periodic: Tensor) -> Tensor:
    """Each periodic column by its cosine, and its sine appended: (..., D) -> (..., D + number of periodic)."""
    angles = inputs.index_select(-1, periodic)
    return torch.cat([inputs.index_copy(-1, periodic, torch.cos(angles)), torch.sin(angles)], -1)


def _quiet_start(branch_ends: Sequence[nn.Linear], exit: nn.Linear) -> None:
    """Residual branches start near zero and the output at zero: the transform starts as the identity."""
    for layer in branch_ends:
        nn.init.normal_(layer.weight, std=1e-3)
    nn.init.zeros_(exit.weight)
    nn.init.zeros_(exit.bias)


def _square_layers(hidden: int, count: int) -> Sequence[nn.Linear]:
    """A ModuleList, which does not tell the type checker what it holds."""
    return cast(Sequence[nn.Linear], nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(count)))


def _shifted(inputs: Tensor, layer: nn.Linear, shift: Tensor | None) -> Tensor:
    """layer(inputs) + shift; one shift for all rows (one observation, many draws) goes into the bias."""
    if shift is None:
        return layer(inputs)
    if shift.numel() == layer.out_features:
        return linear(inputs, layer.weight, layer.bias + shift.flatten())
    return layer(inputs) + shift


class ResidualNet(nn.Module):
    """(..., inputs), context (..., C) -> (..., outputs): residual blocks of two layers with SiLU.

    In training mode each block's inner units and the last ones are dropped with probability `dropout`.
    """

    def __init__(
        self, inputs: int, outputs: int, context: int, hidden: int, blocks: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.entry = nn.Linear(inputs, hidden) if inputs else None
        if not inputs:
            self.bias = nn.Parameter(torch.zeros(hidden))
        self.first = _square_layers(hidden, blocks)
        self.second = _square_layers(hidden, blocks)
        self.exit = nn.Linear(hidden, outputs)
        self.context = nn.Linear(context, hidden * (blocks + 1), bias=False) if context else None
        _quiet_start(self.second, self.exit)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        blocks = len(self.first)
        shifts = (
            [None] * (blocks + 1) if self.context is None else self.context(context).chunk(blocks + 1, -1)
        )
        if self.entry is None:
            hidden = self.bias if shifts[0] is None else self.bias + shifts[0]
        else:
            hidden = _shifted(inputs, self.entry, shifts[0])
        for first, second, shift in zip(self.first, self.second, shifts[1:], strict=True):
            hidden = hidden + second(self.drop(silu(_shifted(silu(hidden), first, shift))))
        outputs = self.exit(self.drop(silu(hidden)))
        return outputs.expand(*inputs.shape[:-1], -1) if self.entry is None else outputs


class MaskedNet(nn.Module):
    """Outputs for dimension i read the context and inputs before i only (MADE, Germain et al. 2015, 1502.03509).

    Hidden units carry degrees 0..D-1 in ascending order; a unit of degree d reads the first d dimensions. Degree 0
    reads the context alone, so that the first dimension depends on the context too (nflows 0.14 gives it none) and
    D = 1 is no special case. Sorted degrees make every mask a staircase of contiguous blocks: see `autoregressive`.

    Args:
        widths: number of input features of each dimension (two for an angle), D entries.
        size: outputs per dimension.
        dropout: probability, as in `ResidualNet`.
    """

    entry_mask: Tensor
    hidden_mask: Tensor
    exit_mask: Tensor

    def __init__(
        self,
        widths: Sequence[int],
        size: int,
        context: int,
        hidden: int,
        blocks: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        dim = len(widths)
        if hidden < dim:
            raise ValueError(f"hidden: expected at least one unit per dimension ({dim}), got {hidden}")
        self.dim, self.size, self.blocks = dim, size, blocks
        input_degree = torch.repeat_interleave(torch.arange(1, dim + 1), torch.tensor(widths))
        degree = torch.arange(hidden) * dim // hidden
        output_degree = torch.arange(dim).repeat_interleave(size)
        self.hidden_ends = [int((degree <= d).sum()) for d in range(dim)]
        self.input_ends = [int((input_degree <= d).sum()) for d in range(dim + 1)]
        self.entry = nn.Linear(len(input_degree), hidden)
        self.first = _square_layers(hidden, blocks)
        self.second = _square_layers(hidden, blocks)
        self.exit = nn.Linear(hidden, dim * size)
        self.context = nn.Linear(context, hidden * (blocks + 1), bias=False) if context else None
        for name, reads, of in [
            ("entry_mask", input_degree, degree),
            ("hidden_mask", degree, degree),
            ("exit_mask", degree, output_degree),
        ]:
            self.register_buffer(name, (reads[None, :] <= of[:, None]).float(), persistent=False)
        _quiet_start(self.second, self.exit)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """(..., sum of widths), (..., C) -> (..., D, size)."""
        hidden = linear(inputs, self.entry.weight * self.entry_mask, self.entry.bias)
        shifts = None
        if self.context is not None:
            entry_shift, *shifts = self.context(context).chunk(self.blocks + 1, -1)
            hidden = hidden + entry_shift
        for index, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            inner = linear(silu(hidden), first.weight * self.hidden_mask, first.bias)
            inner = inner if shifts is None else inner + shifts[index]
            hidden = hidden + linear(self.drop(silu(inner)), second.weight * self.hidden_mask, second.bias)
        outputs = linear(self.drop(silu(hidden)), self.exit.weight * self.exit_mask, self.exit.bias)
        return outputs.unflatten(-1, (self.dim, self.size))


class Incremental:
    """Evaluate a `MaskedNet` while its inputs become known, in order.

    `step(d, features)` takes the features of dimension d-1 (none for d = 0) and returns the outputs for dimension d
    after computing the hidden units of degree d: over all D steps every weight is used once, so a whole inverse
    costs one density pass instead of D. Buffers are written in place, hence no gradients.
    """

    def __init__(self, net: MaskedNet, like: Tensor, context: Tensor | None) -> None:
        lead, hidden = like.shape[:-1], net.entry.out_features
        self.net = net
        self.inputs = like.new_zeros(*lead, net.entry.in_features)
        count = net.blocks + 1
        if net.context is not None:
            self.shifts = net.context(context).chunk(count, -1)
        else:
            self.shifts = (like.new_zeros(hidden),) * count
        self.residual = like.new_empty(*lead, hidden)
        self.activated = [like.new_empty(*lead, hidden) for _ in range(2 * net.blocks + 1)]

    def step(self, d: int, features: Tensor | None) -> Tensor:
        """features (..., width of dimension d-1) -> outputs (..., size) for dimension d."""
        net = self.net
        if features is not None:
            self.inputs[..., net.input_ends[d - 1] : net.input_ends[d]] = features
        known = net.input_ends[d]
        start, end = (net.hidden_ends[d - 1] if d else 0), net.hidden_ends[d]
        new = slice(start, end)
        entered = linear(self.inputs[..., :known], net.entry.weight[new, :known], net.entry.bias[new])
        self.residual[..., new] = entered + self.shifts[0][..., new]
        self.activated[0][..., new] = silu(self.residual[..., new])
        for index, (first, second) in enumerate(zip(net.first, net.second, strict=True)):
            before, inner, after = self.activated[2 * index : 2 * index + 3]
            value = linear(before[..., :end], first.weight[new, :end], first.bias[new])
            inner[..., new] = silu(value + self.shifts[index + 1][..., new])
            self.residual[..., new] += linear(inner[..., :end], second.weight[new, :end], second.bias[new])
            after[..., new] = silu(self.residual[..., new])
        own = slice(d * net.size, (d + 1) * net.size)
        return linear(self.activated[-1][..., :end], net.exit.weight[own, :end], net.exit.bias[own])
