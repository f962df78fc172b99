"""An invertible 1x1 convolution: one linear map of the channels at every place of a signal."""

from __future__ import annotations

import torch
from nflows.transforms.base import Transform
from torch import Tensor

from sbiflow.transforms.matrices import Triangle, multiply, solve
from sbiflow.transforms.parameters import Parameters
from sbiflow.transforms.splines import soft_clamp

_LIMIT = 3.0  # of changes from the start: of the factors' entries and of their log-scales


class Convolution(Transform):
    """y[:, l] = P L U x[:, l] + b at every place l of a signal (Kingma & Dhariwal 2018, arXiv 1807.03039, eq. 10).

    P is a fixed permutation, L lower triangular with a unit diagonal, U upper triangular with a diagonal of fixed
    signs: log|det| = length * sum of log|U_cc|. The changes of L, U, log|U_cc| (each below 3, which keeps the
    factors invertible in floats) and b from the start come from the context, or are learned where there is none.

    Args:
        channels, length: inputs are (..., channels * length), the places of a channel next to each other.
        rotated: start as a random rotation of the channels, drawn from torch's global generator, as in Glow; otherwise
            as the identity.
    """

    order: Tensor
    back: Tensor
    sign: Tensor
    log_scale: Tensor
    lower: Tensor
    upper: Tensor

    def __init__(
        self,
        channels: int,
        length: int,
        context: int = 0,
        hidden: int = 64,
        blocks: int = 2,
        dropout: float = 0.0,
        rotated: bool = False,
    ) -> None:
        super().__init__()
        if min(channels, length) < 1:
            raise ValueError(f"signal: expected channels and places, got {channels} and {length}")
        self.channels, self.length = channels, length
        self.below, self.above = Triangle(channels), Triangle(channels, upper=True)
        self.sizes = [channels, channels, self.below.entries, self.above.entries]
        self.params = Parameters(sum(self.sizes), context, hidden, blocks, dropout)
        start = torch.eye(channels, dtype=torch.float64)
        if rotated:
            start = torch.linalg.qr(torch.randn_like(start))[0]
        order, lower, upper = torch.linalg.lu(start)
        places = order.argmax(1)
        ones = torch.ones_like(start).bool()
        for name, value in {
            "order": places,
            "back": torch.argsort(places),
            "sign": upper.diagonal().sign().float(),
            "log_scale": upper.diagonal().abs().log().float(),
            "lower": lower[ones.tril(-1)].float(),
            "upper": upper[ones.triu(1)].float(),
        }.items():
            self.register_buffer(name, value)

    def _factors(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """b, log|diagonal of U| (..., channels), L, U (..., channels, channels)."""
        shift, raw, below, above = self.params(context).split(self.sizes, -1)
        log_scale = self.log_scale + soft_clamp(raw, _LIMIT)
        lower = self.below(self.lower + soft_clamp(below, _LIMIT), torch.ones_like(raw))
        entries = self.upper + soft_clamp(above, _LIMIT)
        return shift, log_scale, lower, self.above(entries, self.sign * torch.exp(log_scale))

    def _places(self, inputs: Tensor) -> Tensor:
        """(..., channels * length) -> (length, ..., channels)."""
        return inputs.unflatten(-1, (self.channels, self.length)).movedim(-1, 0)

    def _logdet(self, log_scale: Tensor, like: Tensor) -> Tensor:
        return (self.length * log_scale.sum(-1)).expand(like.shape[:-1])

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift, log_scale, lower, upper = self._factors(context)
        mixed = multiply(lower @ upper, self._places(inputs)).index_select(-1, self.order) + shift
        return mixed.movedim(0, -1).flatten(-2), self._logdet(log_scale, inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift, log_scale, lower, upper = self._factors(context)
        mixed = (self._places(inputs) - shift).index_select(-1, self.back)
        solved = solve(upper, solve(lower, mixed, upper=False, unit=True), upper=True)
        return solved.movedim(0, -1).flatten(-2), -self._logdet(log_scale, inputs)
