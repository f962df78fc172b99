"""What every library is asked for: an architecture, and a flow behind two functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CLIP = 5.0  # the norm that gradients are clipped to, which is what sbi's trainer does
OURS, AS_TRAINED = "sbiflow", "sbiflow, affine + spline"
NFLOWS, SAME_NET = "nflows", "nflows with our networks"
ZUKO, BAYESFLOW = "zuko", "bayesflow"


@dataclass(frozen=True)
class Case:
    """An architecture: `family` is "maf" or "spline" (coupling)."""

    family: str
    dim: int
    hidden: int
    layers: int = 5
    context: int = 10
    blocks: int = 2
    bins: int = 8
    activation: str = "silu"

    def moved(self, layer: int) -> list[int]:
        """Columns that a coupling maps: every other one, by turns."""
        return [i for i in range(self.dim) if (i + layer) % 2 == 0]


@dataclass(frozen=True)
class Model:
    """A flow of one library behind two functions.

    Attributes:
        log_prob: z (n, D), x (n, C) -> (n,).
        draw: x (B, C), draws per row of x -> (n, B, D).
    """

    name: str
    module: nn.Module
    log_prob: Callable[[Tensor, Tensor], Tensor]
    draw: Callable[[Tensor, int], Tensor]

    @property
    def trained(self) -> list[nn.Parameter]:
        """Parameters that have gradients; keras keeps seeds and counters among the others."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.trained)

    def trainer(
        self, z: Tensor, x: Tensor, loss: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> Callable:
        """One step at a time on (z, x): forward, backward, clipping, fused Adam; `loss` replaces the mean."""
        trained, own = self.trained, loss or (lambda z, x: -self.log_prob(z, x).mean())
        optimiser = torch.optim.Adam(trained, lr=1e-4, fused=True)

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            own(z, x).backward()
            nn.utils.clip_grad_norm_(trained, CLIP)
            optimiser.step()

        return step
