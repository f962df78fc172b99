"""The benchmark's notion of a simulation: a pair (theta, x) drawn once, with its noise, and never redrawn.

The noise of a row is seeded by the bits of its theta (and `seed`): any store of the same theta holds the same x,
however its rows were batched, resumed or distributed, and no executor has to know. (torch's generator on the CPU has
2^32 streams, so that among 100,000 rows one pair or two share their noise; their parameters differ.)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Generator, Tensor

from sbiflow.checks import as_tensor, check_count
from sbiflow.priors import Prior
from simulators.benchmark.task import Task, checked_theta

T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class Frozen(Generic[T]):
    """A simulator whose stored signal is the network's input, features of the noisy x; `observe` is the identity.

    Args:
        task: the benchmark's task.
        seed: another seed draws other noise for the same parameters.
    """

    task: T
    seed: int = 0

    def __post_init__(self) -> None:
        check_count(self.seed, "seed", 0)

    @property
    def __wrapped__(self) -> T:
        """The task: what a store records as source is its own."""
        return self.task

    @property
    def name(self) -> str:
        return self.task.name + "_frozen"

    @property
    def version(self) -> str:
        return f"{self.task.version}.{self.seed}"

    @property
    def prior(self) -> Prior:
        return self.task.prior

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.task.x_shape

    @property
    def x_names(self) -> tuple[str, ...]:
        return self.task.x_names

    def signal(self, theta: Tensor) -> Tensor:
        """Features of one noisy x per row, (n, D) -> (n, *x_shape) float64; always the same for the same theta."""
        theta = checked_theta(self.task, theta).detach().double().cpu()
        signal, generator = self.task.signal(theta), torch.Generator()
        x = torch.empty_like(signal)
        for row, key in enumerate(_row_keys(theta, self.seed)):
            x[row] = self.task.observe(signal[row : row + 1], generator.manual_seed(key))[0]
        return self.task.features(x)

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        """The identity: the noise is already in the signal."""
        return signal

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log p(raw x | theta) of a network's input x: the density is over the task's own observation."""
        return self.task.log_likelihood(theta, self.task.raw(as_tensor(x, "x", torch.float64)))

    def published(self, theta: Tensor) -> Tensor:
        """Parameters as the benchmark publishes them."""
        return self.task.published(theta)

    def x_of(self, raw: Tensor) -> Tensor:
        """The network's input for an observation (*x_shape), or several."""
        return self.task.features(as_tensor(raw, "raw", torch.float64))


def frozen(task: T, seed: int = 0) -> Frozen[T]:
    """The task with its noise drawn once per parameter."""
    return Frozen(task, seed)


def _row_keys(theta: Tensor, seed: int) -> list[int]:
    salt = seed.to_bytes(8, "little")
    return [
        int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8, salt=salt).digest(), "little") >> 1
        for row in theta.contiguous().numpy()
    ]
