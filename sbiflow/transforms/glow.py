"""The affine coupling of Glow for signals: some channels are mapped, by a convolutional network of the others.

Kingma & Dhariwal 2018, arXiv 1807.03039, for signals of one dimension. A signal (channels, length) is flattened to D
columns, channel after channel; networks see it as (..., length, channels), where a convolution is a linear layer over
a window of neighbours and takes any leading shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from nflows.transforms.base import Transform
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from sbiflow.transforms.elementwise import Elementwise


def windows(signal: Tensor, width: int) -> Tensor:
    """Each position with its neighbours, zero beyond the ends: (..., L, C) -> (..., L, width * C); odd `width`."""
    reach, length = width // 2, signal.shape[-2]
    padded = pad(signal, (0, 0, reach, reach))
    return torch.cat([padded.narrow(-2, start, length) for start in range(width)], -1)


class SignalNet(nn.Module):
    """Signal (..., L, I), context (..., C) -> (..., L, O): residual blocks of a convolution and a layer per position.

    h_0 = K_in * x + V_0 c + f_0,  u_b = K_b * s(h_{b-1}) + V_b c + b_b,  h_b = h_{b-1} + W_b s(u_b) + b'_b,
    y = K_out * s(h_B) + b_out,

    with s = SiLU and kernels K of width 3 (1 for a signal of length one, which has no neighbours). V_b c and the bias
    f_0 are of one value per position: where the columns are parameters rather than samples of a signal, each position
    has to depend on the observation in its own way. The last layer starts at zero.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        length: int,
        context: int,
        hidden: int,
        blocks: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.width, self.length, self.hidden = 3 if length > 1 else 1, length, hidden
        self.entry = nn.Linear(self.width * inputs, hidden, bias=False) if inputs else None
        bound = 1 / math.sqrt(hidden)
        self.field = nn.Parameter(torch.empty(length, hidden).uniform_(-bound, bound))
        self.first = nn.ModuleList(nn.Linear(self.width * hidden, hidden) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.exit = nn.Linear(self.width * hidden, outputs)
        self.context = nn.Linear(context, (blocks + 1) * length * hidden, bias=False) if context else None
        for layer in self.second:
            nn.init.normal_(cast(nn.Linear, layer).weight, std=1e-3)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def _fields(self, context: Tensor | None) -> Sequence[Tensor | float]:
        """What the context adds before each convolution, (..., L, hidden) each."""
        count = len(self.first) + 1
        if self.context is None or context is None:
            return [0.0] * count
        return self.context(context).unflatten(-1, (count, self.length, self.hidden)).unbind(-3)

    def forward(self, signal: Tensor, context: Tensor | None = None) -> Tensor:
        own, *fields = self._fields(context)
        h = self.field + own
        if self.entry is not None:
            h = h + self.entry(windows(signal, self.width))
        for first, second, field in zip(self.first, self.second, fields, strict=True):
            h = h + second(self.drop(silu(first(windows(silu(h), self.width)) + field)))
        outputs = self.exit(windows(self.drop(silu(h)), self.width))
        return outputs.expand(*signal.shape[:-1], -1)


class SignalCoupling(Transform):
    """Map the channels `moved` elementwise given the other channels and the context.

    Args:
        channels, length: of the signal; D is their product.
        moved: channels to transform; all of them leaves the context as the only condition.
        context: C, number of context features; 0 for none.
        elementwise: the map.
        hidden, blocks, dropout: channels and residual blocks of the network, share of units dropped while training.
    """

    order: Tensor
    back: Tensor

    def __init__(
        self,
        channels: int,
        length: int,
        moved: Sequence[int],
        context: int,
        elementwise: Elementwise,
        hidden: int,
        blocks: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not moved or len(set(moved)) != len(moved) or not set(moved) <= set(range(channels)):
            raise ValueError(f"moved: expected distinct channels of 0..{channels - 1}, got {list(moved)}")
        kept = [i for i in range(channels) if i not in moved]
        order = [*kept, *moved]
        self.channels, self.length, self.n_kept = channels, length, len(kept)
        self.elementwise = elementwise
        self.net = SignalNet(
            len(kept), len(moved) * elementwise.size, length, context, hidden, blocks, dropout
        )
        back = [order.index(i) for i in range(channels)]
        for name, index in {"order": order, "back": back}.items():
            self.register_buffer(name, torch.as_tensor(index, dtype=torch.long), persistent=False)

    def _map(self, inputs: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        signal = inputs.unflatten(-1, (self.channels, self.length))
        kept, moved = signal.index_select(-2, self.order).tensor_split([self.n_kept], -2)
        params = self.net(kept.transpose(-1, -2), context)
        params = params.unflatten(-1, (moved.shape[-2], self.elementwise.size)).transpose(-3, -2)
        moved, logdet = self.elementwise(moved, params, inverse)
        outputs = torch.cat([kept, moved], -2).index_select(-2, self.back)
        return outputs.flatten(-2), logdet.sum((-2, -1))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(inputs, context, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(inputs, context, inverse=True)
