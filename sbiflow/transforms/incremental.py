"""A masked network evaluated while its inputs become known: how an autoregressive transform is inverted.

Dimension d can be inverted once the network's outputs for it are known, which read the dimensions before. Hidden units
are sorted by degree, so each can be computed once, when its inputs are complete: in all, the products of a dense pass
that lie below the masks' diagonal, about half. Three things keep them fast.

*Layout*: (features, rows), so that the units computed together are contiguous; all is written in place.

*Blocks*, as in a blocked triangular solve. Consecutive degrees with about `_BLOCK` units form a block. What all
earlier blocks contribute to it comes from one large product per layer (`_begin`); only what its own units contribute
is added degree by degree, in products as narrow as one degree.

*Degree 0*: its units read nothing but the context. They, and all else that is the same for every draw of an
observation, are computed once per observation (`read_context`) and act as biases of the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from sbiflow.transforms.networks import MaskedNet

_BLOCK = 72  # units: from here on a product runs at nearly full speed
# Numbers in the buffers: on a CPU what a shared cache holds, and malloc hands out again without fresh pages.
_NUMBERS, _NUMBERS_GPU = {"cpu": 2**22}, 2**28
_silu_into = torch.ops.aten.silu.out


def _layers(net: MaskedNet) -> list[nn.Linear]:
    return [net.entry, *itertools.chain.from_iterable(zip(net.first, net.second, strict=True)), net.exit]


def read_context(net: MaskedNet, contexts: Tensor | None) -> list[Tensor]:
    """What reaches every layer besides units of degree 1 and more: bias, context and units of degree 0.

    Args:
        contexts: (B, C); None without a context, which counts as B = 1.

    Returns:
        (width of the layer, B) for each layer, entry to exit.
    """
    layers = _layers(net)
    given = [layer.bias[:, None] for layer in layers]
    if net.context is not None and contexts is not None:
        readers = [0, *range(1, len(layers) - 1, 2)]  # the entry and the first layer of each residual block
        for i, shift in zip(readers, net.context(contexts).T.chunk(len(readers)), strict=True):
            given[i] = given[i] + shift
    units = slice(net.hidden_ends[0])
    residual = given[0][units]
    for i, layer in enumerate(layers[1:], 1):
        given[i] = given[i] + layer.weight[:, units] @ silu(residual if i % 2 else given[i - 1][units])
        residual = residual if i % 2 else residual + given[i][units]
    return given


def grid(lead: Sequence[int], context: Tensor | None) -> tuple[int, Tensor | None]:
    """A leading shape as (draws, observations): the number of draws and contexts (B, C), or None for one without.

    Args:
        lead: shape of all draws.
        context: (..., C) that broadcasts to (*lead, C).
    """
    if context is None or math.prod(context.shape[:-1]) == 1:
        return math.prod(lead), None if context is None else context.reshape(1, context.shape[-1])
    own = tuple(itertools.dropwhile(lambda size: size == 1, context.shape[:-1]))
    count = len(lead) - len(own)
    if own == tuple(lead[count:]):
        return math.prod(lead[:count]), context.reshape(-1, context.shape[-1])
    return 1, context.expand(*lead, -1).reshape(-1, context.shape[-1])


def parts(net: MaskedNet, draws: int, contexts: Tensor | None, like: Tensor) -> Iterator[Incremental]:
    """The network for one part after another of a grid, each small enough for the memory to be bounded.

    Args:
        draws, contexts: as from `grid`.
        like: a tensor of the dtype and on the device to compute with.
    """
    count, width = 1 if contexts is None else len(contexts), sum(_widths(net))
    most = max(_NUMBERS.get(like.device.type, _NUMBERS_GPU) // width, 1)
    memory = like.new_empty(width * min(most, draws * count))
    for few in _evenly(count, most):
        given = read_context(net, None if contexts is None else contexts[few])
        shares = _evenly(draws, max(most // (few.stop - few.start), 1))
        for size, group in itertools.groupby(shares, lambda share: share.stop - share.start):
            steps = Incremental(net, given, size, memory)
            for some in group:
                steps.part = some, few
                yield steps


def _evenly(count: int, most: int) -> list[slice]:
    """0..count in slices of nearly equal size, at most `most`."""
    size = max(-(-count // max(-(-count // most), 1)), 1)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _widths(net: MaskedNet) -> list[int]:
    """Numbers per draw in the buffers of `Incremental`."""
    ends = net.hidden_ends
    widest = max(end - start for start, end in itertools.pairwise([0, *ends]))
    return [net.input_ends[-1], widest, net.dim * net.size, (2 * net.blocks + 1) * ends[-1]]


@dataclass(frozen=True)
class _Degree:
    """What one degree computes, as views: `into` a buffer, by `weights`, `of` another one."""

    known: Tensor  # the inputs that it reads
    residual: Tensor
    entry: Tensor  # weights
    into: Sequence[Tensor]  # its units, for each layer
    weights: Sequence[Tensor]
    of: Sequence[Tensor]  # the units of its block so far, for each layer
    exit: Tensor  # weights
    outputs: Tensor


class Incremental:
    """A `MaskedNet` degree by degree, for a number of draws of each of B observations. Holds views of its buffers,
    made once for all parts of a shape, and writes in place: no gradients.

    Args:
        given: of `read_context`, for the observations.
        memory: scratch, one-dimensional.

    Attributes:
        part: which draws and which observations, of a grid.
    """

    def __init__(self, net: MaskedNet, given: Sequence[Tensor], draws: int, memory: Tensor) -> None:
        self.net, self.given = net, given
        self.shape = draws, given[0].shape[1]
        self.part = slice(draws), slice(self.shape[1])
        self.weights = [layer.weight.detach() for layer in _layers(net)]
        widths, rows = _widths(net), math.prod(self.shape)
        buffers = memory[: sum(widths) * rows].view(-1, rows).split(widths)
        self.inputs, self.residual, self.outputs, units = buffers
        self.units = units.view(-1, net.hidden_ends[-1], rows)
        self.blocks, self.degrees = dict(_blocks(net.hidden_ends)), []
        for first, last in self.blocks.items():
            self.degrees += [self._degree(d, net.hidden_ends[first - 1]) for d in range(first, last)]

    def step(self, d: int, features: Sequence[Tensor]) -> Tensor:
        """Outputs (rows, size) for dimension d, from the features of dimension d - 1, each (rows,); rows: draws x B."""
        if not d:
            given = self.given[-1][: self.net.size, None]
            return given.expand(-1, *self.shape).flatten(1).T
        for i, feature in enumerate(features, self.net.input_ends[d - 1]):
            self.inputs[i] = feature
        if d in self.blocks:
            self._begin(d, self.blocks[d])
        return self._finish(self.degrees[d - 1]).T

    def _begin(self, first: int, last: int) -> None:
        """What the units before a block, and biases, give to the layers of the block of degrees first..last - 1."""
        ends, size = self.net.hidden_ends, self.net.size
        new, old = slice(ends[first - 1], ends[last - 1]), slice(ends[0], ends[first - 1])
        before = self.units[:, old].unbind()
        targets = [(new, units) for units in self.units[:, new].unbind()]
        own = slice(first * size, last * size)
        targets.append((own, self.outputs[own]))
        for i, (rows, target) in enumerate(targets):
            target.unflatten(-1, self.shape).copy_(self.given[i][rows, None])
            if i and old.stop > old.start:
                target.addmm_(self.weights[i][rows, old], before[i - 1])

    def _degree(self, d: int, start: int) -> _Degree:
        """Of degree d in the block whose units begin at `start`."""
        net, known = self.net, self.net.input_ends[d]
        new, block = slice(*net.hidden_ends[d - 1 : d + 1]), slice(start, net.hidden_ends[d])
        outputs = slice(d * net.size, (d + 1) * net.size)
        return _Degree(
            self.inputs[:known], self.residual[: new.stop - new.start], self.weights[0][new, :known],
            self.units[:, new].unbind(), [weight[new, block] for weight in self.weights[1:-1]],
            self.units[:, block].unbind(), self.weights[-1][outputs, block], self.outputs[outputs],
        )  # fmt: skip

    @staticmethod
    def _finish(degree: _Degree) -> Tensor:
        """Add what the units of the block give, apply SiLU; returns the outputs of the next dimension, (size, rows)."""
        into, of, residual = degree.into, degree.of, degree.residual
        torch.addmm(into[0], degree.entry, degree.known, out=residual)
        _silu_into(residual, out=into[0])
        for i, weight in enumerate(degree.weights, 1):
            into[i].addmm_(weight, of[i - 1])
            source = into[i] if i % 2 else residual.add_(into[i])
            _silu_into(source, out=into[i])
        return degree.outputs.addmm_(degree.exit, of[-1])


def _blocks(ends: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First degree of each block and of the next, from degree 1 on; `ends`: end of the units of each degree."""
    first = 1
    while first < len(ends):
        last = first + 1
        while last < len(ends) and ends[last] - ends[first - 1] <= _BLOCK:
            last += 1
        yield first, last
        first = last
