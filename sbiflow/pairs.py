"""Fresh pairs (theta, x) in memory, for calibration: never those of a store, whatever the seed."""

from __future__ import annotations

import warnings
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from sbiflow.blocks import AnySimulator, BlockResult, BlockTask, default_block
from sbiflow.checks import check_count
from sbiflow.execution import SimulationWarning, progress_bar, run_blocks
from sbiflow.observing import observe
from sbiflow.seeding import check_seed, torch_generator
from sbiflow.store import Status

# A store has its own streams (simulate.py): no pair is one of its rows.
_THETA_KEY, _ROW_KEY, _NOISE_KEY = 0x70616972, 0x70616973, 0x70616974


class Pairs(NamedTuple):
    """Fresh pairs: theta (n, D) and x (n, *x_shape), both float64, and the number of rows that failed."""

    theta: Tensor
    x: Tensor
    n_failed: int


def draw_pairs(
    simulator: AnySimulator,
    n: int,
    *,
    seed: int,
    noise_generator: Generator | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> Pairs:
    """Fresh (theta, x) from prior and simulator, in memory, never those of a store, whatever the seed.

    Rows that fail are left out, counted in `n_failed` and told of by a SimulationWarning.

    Args:
        simulator: of either kind.
        n: pairs to draw.
        seed: of parameters and noise.
        noise_generator: for `observe`, instead of the one made from the seed.
        executor: any concurrent.futures.Executor; None runs here.
        progress: show a bar (off by default: the callers have their own).

    Raises:
        ValueError: all rows failed.
    """
    check_count(n, "n")
    size = default_block(simulator)
    tasks = [
        BlockTask(start, min(start + size, n), check_seed(seed), _THETA_KEY, _ROW_KEY, "float64")
        for start in range(0, n, size)
    ]
    results = _run_in_order(simulator, tasks, executor, progress)
    valid = np.concatenate([result.status for result in results]) == Status.OK
    n_failed = int(n - valid.sum())
    if n_failed:
        first = next(text for result in results for text in result.reasons.values())
        message = f"{n_failed} of {n} fresh simulations failed, the first with: {first}"
        if n_failed == n:
            raise ValueError(f"simulator: {message}")
        warnings.warn(message, SimulationWarning, stacklevel=2)
    theta = torch.from_numpy(np.concatenate([result.theta for result in results])[valid])
    signal = torch.from_numpy(np.concatenate([result.signal for result in results])[valid])
    x = observe(simulator, theta, signal, noise_generator or torch_generator(seed, _NOISE_KEY))
    return Pairs(theta, x, n_failed)


def _run_in_order(
    simulator: AnySimulator, tasks: list[BlockTask], executor: Executor | None, progress: bool
) -> list[BlockResult]:
    found: dict[int, BlockResult] = {}
    with progress_bar(progress) as bar:
        job = bar.add_task("drawing pairs", total=tasks[-1].stop, failed=0)

        def receive(result: BlockResult) -> None:
            found[result.start] = result
            bar.advance(job, len(result.status))

        run_blocks(simulator, tasks, executor, receive)
    return [found[task.start] for task in tasks]
