"""One graph for the density in training, by torch.compile, where that pays.

On a CPU the flows' own passes (transforms/residual.py, spline_kernel.py) are about as fast as compiled ones, and a
compilation takes one to three minutes: only a run of many hours would gain. On a GPU a step is hundreds of short
kernels that the host cannot launch as fast as they run; there the graph is captured once and replayed (CUDA graphs).
What cannot be compiled runs as it is: with a warning, never with an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from sbiflow.flows import ConditionalFlow

Objective = Callable[[Tensor, Tensor], Tensor]

_FLOPS = 2e10  # a step on one core reaches about a fifth of its peak
_STEP = 5e-3  # [s] of a step whatever its size
_WORTH_ON_CPU = 4 * 3600.0  # [s] of an uncompiled run
_WORTH_ON_GPU = 2_000  # steps: a few seconds of waiting for the host


class CompilationWarning(UserWarning):
    """Training goes on without a compiled graph."""


def worthwhile(model: ConditionalFlow, steps: int, batch: int, device: torch.device) -> bool:
    """Whether a run of so many steps is long enough; a function of the run, so that a resumed one decides alike."""
    if device.type == "cuda":
        return steps >= _WORTH_ON_GPU
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return steps * (6 * parameters * batch / _FLOPS + _STEP) >= _WORTH_ON_CPU


def compiled_objective(model: ConditionalFlow, z: Tensor, x: Tensor) -> Objective:
    """`model.objective` for batches of the shapes of z and x, compiled with its backward pass; itself if that fails."""
    mode = "reduce-overhead" if z.is_cuda else None
    try:
        own: Objective = torch.compile(model.objective, fullgraph=True, dynamic=False, mode=mode)
        (-own(z, x).mean()).backward()
    except (
        Exception
    ) as error:  # the compiler's errors have no common type; the plain pass shows if it was not that
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        warnings.warn(f"training goes on without compilation ({reason})", CompilationWarning, stacklevel=2)
        own = model.objective
    model.zero_grad(set_to_none=True)
    return own
