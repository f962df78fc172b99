"""Training steps whose loss went through torch.compile: ours, and the peers' where they can."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from analyses.benchmarks.architecture import Model


@dataclass(frozen=True)
class Compiled:
    """What compilation took and made; `error` is empty if it worked."""

    seconds: float
    graphs: int
    breaks: int
    error: str = ""


def compiled_trainer(model: Model, z: Tensor, x: Tensor) -> tuple[Callable[[], None], Compiled]:
    """A trainer and what its first step took; one that cannot be compiled says why and runs as it is."""
    counters.clear()
    loss = torch.compile(lambda z, x: -model.log_prob(z, x).mean(), dynamic=False)
    step, error, start = model.trainer(z, x, loss), "", time.perf_counter()
    try:
        step()
    except Exception as problem:  # whatever a compiler raises is the result here
        step, error = model.trainer(z, x), f"{type(problem).__name__}: {problem}"[:300]
    graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    return step, Compiled(time.perf_counter() - start, graphs, breaks, error)
