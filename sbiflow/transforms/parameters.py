"""Where a transform that reads no other column has its parameters from: the context, or nothing."""

from __future__ import annotations

from torch import Tensor, nn, zeros

from sbiflow.transforms.networks import ResidualNet


class Parameters(nn.Module):
    """(..., size) for a context (..., C): a network's outputs; `size` learned numbers where C = 0.

    All are zero at the start. They have the rows of the context, not of the inputs: one row for one observation,
    however many draws are asked for. They then have to broadcast against the inputs.
    """

    def __init__(self, size: int, context: int, hidden: int, blocks: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = ResidualNet(0, size, context, hidden, blocks, dropout) if context else None
        if not context:
            self.exit = nn.Parameter(zeros(size))

    def forward(self, context: Tensor | None) -> Tensor:
        if self.net is None:
            return self.exit
        if context is None:
            raise ValueError("context: expected one to read the parameters from, got none")
        return self.net(context[..., :0], context)
