"""Conditioner networks: residual perceptrons that read a context, plain and autoregressively masked.

The context enters by one linear projection for all residual blocks together, so a context with fewer rows than
the inputs (one observation, many draws) is projected once and broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sbiflow.transforms.residual import Layout, Stairs, by_operations, residual


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


def _evaluate(
    net: ResidualNet | MaskedNet, weights: Sequence[Tensor], inputs: Tensor, context: Tensor | None
) -> Tensor:
    """Inputs (..., I) and a context (..., C) that broadcasts against them -> (..., O); `weights` as in residual.py."""
    if net.context is None:
        context = None
    elif context is not None:
        weights = [*weights, net.context.weight]
    # a compiler fuses by itself, and a GPU is kept busy by few large products rather than by strips
    if torch.compiler.is_compiling() or inputs.is_cuda or (net.drop.training and net.drop.p > 0):
        return by_operations(net.layout, inputs, context, weights, net.drop)
    lead = inputs.shape[:-1]
    flat = inputs.reshape(lead.numel(), inputs.shape[-1])
    if context is not None and context.numel() == context.shape[-1]:  # one observation, many draws
        context = context.reshape(1, -1)
    elif context is not None:
        context = context.expand(*lead, -1).reshape(len(flat), context.shape[-1])
    return residual(net.layout, flat, context, weights).reshape(*lead, len(weights[3]))


def _of_blocks(net: ResidualNet | MaskedNet, mask: Tensor | None = None) -> list[Tensor]:
    """W, b, W', b' of each block."""
    layers = [layer for pair in zip(net.first, net.second, strict=True) for layer in pair]
    matrices = [layer.weight if mask is None else layer.weight * mask for layer in layers]
    return [value for matrix, layer in zip(matrices, layers, strict=True) for value in (matrix, layer.bias)]


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
        shapes = ((hidden, inputs), (hidden, hidden), (outputs, hidden))
        self.layout = Layout(blocks, *(Stairs.dense(*shape) for shape in shapes))
        _quiet_start(self.second, self.exit)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        own = [self.exit.weight, self.exit.bias, *_of_blocks(self)]
        if self.entry is not None:
            return _evaluate(self, [self.entry.weight, self.entry.bias, *own], inputs, context)
        lead = inputs.shape[:-1]
        rows = inputs.new_empty(*(() if context is None else context.shape[:-1]), 0)
        outputs = _evaluate(self, [self.bias.new_empty(len(self.bias), 0), self.bias, *own], rows, context)
        return outputs.expand(*lead, -1)


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
        masks = (self.entry_mask, self.hidden_mask, self.exit_mask)
        self.layout = Layout(blocks, *(Stairs.of_mask(mask) for mask in masks))
        _quiet_start(self.second, self.exit)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """(..., sum of widths), (..., C) -> (..., D, size)."""
        own = [
            self.entry.weight * self.entry_mask, self.entry.bias, self.exit.weight * self.exit_mask, self.exit.bias,
            *_of_blocks(self, self.hidden_mask),
        ]  # fmt: skip
        return _evaluate(self, own, inputs, context).unflatten(-1, (self.dim, self.size))
