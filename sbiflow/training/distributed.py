"""Data-parallel training: the processes that `torchrun` starts train one flow together.

    torchrun --nproc-per-node 2 script.py            # script.py calls `train` as it does for one process
    torchrun --nproc-per-node 2 -m sbiflow train sims.h5 --out model

A batch consists of `TrainConfig.lanes` equal parts. Each has streams of noise, extrinsic parameters and dropout of its
own, keyed by (seed, step, lane), and a process computes consecutive lanes. The gradient is the mean over the lanes,
whoever computes them: one process and several end with the same weights, but for the rounding of that sum (two lanes:
to the bit, for addition commutes). Every process holds the data; what it has to itself is its part of each step.

Gradients, loss and the wish to stop travel in one flat all-reduce per step. torch's DistributedDataParallel could hide
part of that behind the backward pass, but for flows of this size (up to some MB of gradients) it is no faster
(analyses/benchmarks/distributed.py measures both), it acts on `forward` only, and it would need a mode without
reduction for all lanes but the last. All processes then clip and apply the same update; that their weights agree to
the bit is checked at every validation.

gloo on the CPU, NCCL on GPUs, one GPU per process. How the processes find each other is in group.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sbiflow.training.checkpoint import digest

T = TypeVar("T")


class Team:
    """The processes that train together, of which this one is number `rank`; alone, every method does nothing.

    All processes have to call the same methods in the same order.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._wish, self._heard = False, torch.zeros(())

    def own(self, lanes: int) -> range:
        """The lanes of a batch that this process computes."""
        each = lanes // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def device(self, chosen: torch.device) -> torch.device:
        """A GPU for every process of a machine, if it is to be GPUs.

        Raises:
            ValueError: one GPU for all processes, or more processes than GPUs.
        """
        if self.size == 1 or chosen.type != "cuda":
            return chosen
        if chosen.index is not None:
            raise ValueError(
                f'device: expected "auto", "cuda" or "cpu" for {self.size} processes, got {chosen}'
            )
        gpus, here = torch.cuda.device_count(), os.environ.get("LOCAL_RANK")
        local = torch.cuda.current_device() if here is None else int(here)
        if local >= gpus:
            raise ValueError(
                f"expected one GPU for each process of a machine, got {gpus} for at least {local + 1}: start fewer "
                'with --nproc-per-node, or set device="cpu"'
            )
        torch.cuda.set_device(local)
        return torch.device("cuda", local)

    def add(self, values: Tensor) -> Tensor:
        """`values`, in place, summed over the processes; the same bits everywhere.

        Raises:
            RuntimeError: another process is gone, or has not answered for ten minutes.
        """
        if self.size > 1:
            with self._talking():
                dist.all_reduce(values)
        return values

    def add_gradients(self, model: nn.Module, loss: Tensor) -> Tensor:
        """Sum gradients, in place, and loss over the processes; returns the loss. No value is waited for on a GPU."""
        if self.size == 1:
            return loss
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        wish = loss.new_full((1,), float(self._wish))
        flat = self.add(torch.cat([*(gradient.flatten() for gradient in gradients), loss.reshape(1), wish]))
        *parts, total, self._heard = flat.split([*(gradient.numel() for gradient in gradients), 1, 1])
        summed = [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
        torch._foreach_copy_(gradients, summed)
        return total[0]

    def stops(self, wish: bool, listen: bool) -> bool:
        """Whether any process wishes to stop: all say the same after the same step.

        The wish travels with the gradients of the next step, and is read where `listen`, for which a GPU is waited for.
        """
        if self.size == 1:
            return wish
        self._wish = wish
        return listen and bool(self._heard > 0)

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank; returns when all have called."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._talking():
            dist.all_gather_object(values, value)
        return values

    def first(self, value: T) -> T:
        """Process 0's value."""
        values = [value]
        if self.size > 1:
            with self._talking():
                dist.broadcast_object_list(values, src=0)
        return values[0]

    def share(self, module: nn.Module) -> None:
        """Give all processes the tensors of process 0's module, which other processors may have rounded otherwise."""
        if self.size > 1:
            state = {name: value.cpu() for name, value in module.state_dict().items()}
            module.load_state_dict(self.first(state))

    def check_same(self, what: str, value: dict[str, Any]) -> None:
        """Raise ValueError on all processes if they differ in an entry of `value`."""
        everyone = self.gather(value)
        different = [key for key in value if any(other[key] != value[key] for other in everyone)]
        if different:
            found = "; ".join(f"{key}: {[other[key] for other in everyone]}" for key in different)
            raise ValueError(f"{what}: expected the same on all {self.size} processes, got {found}")

    def check_weights(self, model: nn.Module, step: int) -> None:
        """Raise RuntimeError on all processes unless their weights are the same to the bit."""
        if self.size == 1:
            return
        found = self.gather(digest(*(parameter.detach() for parameter in model.parameters())))
        if others := [rank for rank, weights in enumerate(found) if weights != found[0]]:
            raise RuntimeError(
                f"training: expected the same weights on all {self.size} processes at step {step}, got others than "
                f"those of process 0 on {others[:10]}: machines of several kinds, other versions, or faulty memory"
            )

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"process {self.rank} of {self.size} has lost the others: one has stopped, or not answered in time; "
                f"where there is a checkpoint, run the same again to go on from it ({str(error).splitlines()[0]})"
            ) from error
