"""How far from the limit of the machine: work that a case needs over the rates that the machine reaches.

Needed is what the algorithm needs and no implementation can avoid:

- floating-point operations of the products that involve weights: two for each weight that is not masked and each row;
  for a training step the same again for the gradient of the weights and of the inputs, less the inputs' gradients that
  nobody asks for (of data and context). Drawing from an autoregressive flow needs each once, as its density does;
  what depends on the context alone is needed once for each context, not for each draw.
- bytes that must cross the memory bus: weights (a training step also writes their gradients, reads them for the norm,
  and Adam reads four arrays and writes three), rows in and out. Activations may stay in the cache.

limit = max(operations / best matmul rate, bytes / bandwidth); both rates are measured in the same run, at the same
number of threads. Beside it what this implementation executes: its matrix products, timed alone at their own
shapes and strides, and the bytes that its other operations read and write.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from analyses.benchmarks.architecture import Case

FLOAT = 4  # bytes
PRODUCTS = {
    "mm": 0,
    "bmm": 0,
    "mv": 0,
    "addmm": 1,
    "baddbmm": 1,
    "addmv": 1,
}  # the place of the first factor among the arguments
VIEWS = {"empty", "empty_strided", "empty_like", "new_empty", "detach"}


@dataclass(frozen=True)
class Machine:
    """Rates of this machine: best matmul [operations / s], memory bandwidth [bytes / s]."""

    flops: float
    bandwidth: float

    @classmethod
    def measure(cls, sizes: tuple[int, ...] = (512, 1024, 2048), megabytes: int = 64) -> Machine:
        """The best of a few square products in float32, and of a triad a = b + s c of arrays of `megabytes` each."""
        best = 0.0
        for n in sizes:
            square = partial(torch.mm, torch.randn(n, n), torch.randn(n, n), out=torch.empty(n, n))
            best = max(best, 2 * n**3 / fastest(square))
        x, y, z = (torch.ones(megabytes * 2**20 // FLOAT) for _ in range(3))
        triad = fastest(lambda: torch.add(x, y, alpha=1.5, out=z))
        return cls(best, 3 * x.numel() * FLOAT / triad)


@dataclass(frozen=True)
class Work:
    """What a call needs: floating-point operations and bytes."""

    flops: float
    bytes: float

    def limit(self, machine: Machine) -> float:
        """Seconds."""
        return max(self.flops / machine.flops, self.bytes / machine.bandwidth)


@dataclass(frozen=True)
class Executed:
    """What a call of ours did: operations of its matrix products, seconds of these alone, bytes of everything else."""

    flops: float
    product_seconds: float
    other_bytes: float


def fastest(call: Callable[[], Any], seconds: float = 0.3) -> float:
    """The best time of a call [s], of at least two; for rates, where all that disturbs makes it longer."""
    end, times = time.perf_counter() + seconds, list[float]()
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@dataclass(frozen=True)
class Weights:
    """Weights of a transform that are not masked: those that read data (`entry`), hidden units (`inner`), hidden units
    which know the context alone (`constant`), and the context.
    """

    entry: int
    inner: int
    constant: int
    context: int

    @property
    def count(self) -> int:
        """All of them."""
        return self.entry + self.inner + self.constant + self.context


def layers(case: Case) -> list[Weights]:
    """Of each transform."""
    h, size, context = case.hidden, 3 * case.bins - 1, case.context * case.hidden * (case.blocks + 1)
    if case.family == "maf":
        degree = torch.arange(h) * case.dim // h
        free = int((degree == 0).sum())  # units that the first column's parameters are made of
        hidden = torch.searchsorted(degree, degree, right=True)  # units of the same or a lower degree
        exit = torch.searchsorted(degree, torch.arange(case.dim), right=True)
        constant = 2 * case.blocks * h * free + 2 * case.dim * free
        inner = 2 * case.blocks * int(hidden.sum()) + 2 * int(exit.sum()) - constant
        return [Weights(int(degree.sum()), inner, constant, context)] * case.layers
    moved = [len(case.moved(layer)) for layer in range(case.layers)]
    return [Weights((case.dim - d) * h, 2 * case.blocks * h * h + h * d * size, 0, context) for d in moved]


def biases(case: Case) -> int:
    """Parameters that are added."""
    size, own = 3 * case.bins - 1, (2 * case.blocks + 1) * case.hidden
    maf = case.family == "maf"
    outputs = [2 * case.dim if maf else size * len(case.moved(layer)) for layer in range(case.layers)]
    return case.layers * own + sum(outputs)


def needed(kind: str, case: Case, rows: int, contexts: int) -> Work:
    """Of a call on `rows` rows, which share `contexts` contexts.

    Args:
        kind: "train", "density" or "draw".

    Raises:
        ValueError: another kind.
    """
    weights = layers(case)
    own = sum(layer.entry + layer.inner for layer in weights)
    shared = sum(layer.constant + layer.context for layer in weights)
    parameters = sum(layer.count for layer in weights) + biases(case)
    forward = 2 * (rows * own + contexts * shared)
    data = rows * case.dim + contexts * case.context
    if kind == "density":
        return Work(forward, FLOAT * (parameters + data + rows))
    if kind == "draw":
        return Work(forward, FLOAT * (parameters + data + 2 * rows))
    if kind == "train":
        unasked = 2 * (rows * weights[0].entry + contexts * sum(layer.context for layer in weights))
        # weights and gradients: read forward and backward, written, read for the norm; Adam: 4 reads, 3 writes
        return Work(3 * forward - unasked, FLOAT * (11 * parameters + data))
    raise ValueError(f'kind: expected "train", "density" or "draw"; got {kind!r}')


class Watch(TorchDispatchMode):
    """Counts matrix products by their operands' shapes and strides, and the bytes of all other operations."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[tuple[Any, ...]] = Counter()
        self.other_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        if name in PRODUCTS:
            place = PRODUCTS[name]
            operands = args[place : place + 2]
            self.products[tuple((tuple(t.shape), t.stride(), t.dtype) for t in operands)] += 1
        elif not func.is_view and name not in VIEWS:
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
            self.other_bytes += sum({id(t): t.numel() * t.element_size() for t in tensors}.values())
        return result


def operations(operands: tuple[Any, ...]) -> int:
    """Of a product of (..., m, k) and (..., k, n), or of (m, k) and (k,)."""
    (left, *_), (right, *_) = operands
    return 2 * math.prod(left) * (right[-1] if len(right) > 1 else 1)


def executed(call: Callable[[], Any]) -> Executed:
    """Watch one call, and time its matrix products alone."""
    with Watch() as watch:
        call()
    seconds = 0.0
    for operands, count in watch.products.items():
        left, right = (
            torch.empty_strided(size, stride, dtype=dtype).normal_() for size, stride, dtype in operands
        )
        seconds += count * fastest(partial(torch.matmul, left, right), 0.005)
    flops = sum(count * operations(operands) for operands, count in watch.products.items())
    return Executed(flops, seconds, watch.other_bytes)
