"""Muon for the hidden matrices and Adam for everything else, in one optimiser.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv 2502.16982) replaces the momentum
of a matrix by the nearest orthogonal one, so that all directions are learned at the same rate.
torch.optim.Muon treats one matrix at a time in bfloat16; here matrices of one shape are orthogonalised as one batch,
in float32, which on a CPU costs less and does not depend on bfloat16 hardware.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic Newton-Schulz step with the largest slope at zero
_ITERATIONS = 5
_RMS = 0.2  # root-mean-square size of an Adam update, so that both parts share one learning rate


def orthogonalise(matrices: Tensor) -> Tensor:
    """Replace the singular values of each matrix (k, m, n) by values near one (within about 0.7 to 1.2)."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Weights of linear layers between hidden ones: two-dimensional, both sides larger than 16, not an output."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and min(parameter.shape) > 16 and "exit" not in name
    ]


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised per matrix, matrices of equal shape in one batch."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; parameters without a gradient are left alone."""
        for group in self.param_groups:
            shapes = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                self._update(parameters, group["lr"] * _RMS * math.sqrt(max(shape)), group["momentum"])

    def _update(self, parameters: list[Tensor], rate: float, momentum: float) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]  # all of them: see `step`
        buffers = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        ahead = torch._foreach_add(gradients, buffers, alpha=momentum)
        torch._foreach_add_(parameters, list(orthogonalise(torch.stack(ahead)).unbind(0)), alpha=-rate)


def build_optimisers(model: nn.Module, kind: str, rate: float) -> list[torch.optim.Optimizer]:
    """[Muon, Adam] or [Adam]; every parameter is in exactly one of them."""
    matrices = hidden_matrices(model) if kind == "muon" else []
    chosen = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    adam: torch.optim.Optimizer = torch.optim.Adam(rest, lr=rate, betas=(0.9, 0.99), fused=True)
    return [Muon(matrices, lr=rate), adam] if matrices else [adam]
