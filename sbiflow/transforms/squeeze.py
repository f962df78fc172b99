"""Signals of several channels on several scales. A signal (channels, length) is flattened to D columns, channel after
channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from nflows.transforms.base import Transform
from torch import Tensor, nn

from sbiflow.transforms.composite import initialise
from sbiflow.transforms.linear import Permutation


class Squeeze(Permutation):
    """(C, L) -> (2C, L / 2): neighbours become channels (Dinh et al. 2017, arXiv 1605.08803, sec. 3.6).

    Output channel 2c + j is channel c at the positions j, j + 2, ...
    """

    def __init__(self, channels: int, length: int) -> None:
        if min(channels, length) < 1 or length % 2:
            raise ValueError(
                f"squeeze: expected channels and an even length, got {channels} channels of length {length}"
            )
        places = torch.arange(channels * length).view(channels, length // 2, 2)
        super().__init__(places.transpose(1, 2).flatten().tolist())


class MultiScale(Transform):
    """Levels in sequence, each but the last of which passes half of its columns on; the others are finished.

    The first half of the columns is the first half of the channels. Outputs are the last level's, then what the level
    before it finished, and so on: coarse to fine. Dinh et al. 2017, arXiv 1605.08803, sec. 3.6, eq. 14-15; the base of
    what was finished early is the same standard normal.

    Args:
        levels: transforms of D, D / 2, D / 4, ... columns.
    """

    def __init__(self, levels: Sequence[Transform]) -> None:
        super().__init__()
        if not levels:
            raise ValueError("levels: expected at least one, got none")
        self.levels = cast(Sequence[Transform], nn.ModuleList(levels))

    def _coarsest(self, inputs: Tensor) -> int:
        """Columns of the last level."""
        dim, parts = inputs.shape[-1], 2 ** (len(self.levels) - 1)
        if dim % parts:
            raise ValueError(f"inputs: expected a multiple of {parts} columns for the levels, got {dim}")
        return dim // parts

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        size, finished, total = self._coarsest(inputs), [], inputs.new_zeros(inputs.shape[:-1])
        for level in self.levels:
            inputs, logdet = level(inputs, context)
            total = total + logdet
            if inputs.shape[-1] > size:
                inputs, done = inputs.chunk(2, -1)
                finished.append(done)
        return torch.cat([inputs, *reversed(finished)], -1), total

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        size, total = self._coarsest(inputs), inputs.new_zeros(inputs.shape[:-1])
        signal = inputs[..., :0]
        for number, level in enumerate(reversed(self.levels)):
            end = size * 2**number
            signal = torch.cat([signal, inputs[..., signal.shape[-1] : end]], -1)
            signal, logdet = level.inverse(signal, context)
            total = total + logdet
        return signal, total

    def initialise(self, inputs: Tensor, context: Tensor | None = None) -> None:
        """Let every part of every level that starts from data do so."""
        size = self._coarsest(inputs)
        for level in self.levels:
            inputs = initialise(level, inputs, context)
            inputs = inputs.chunk(2, -1)[0] if inputs.shape[-1] > size else inputs
