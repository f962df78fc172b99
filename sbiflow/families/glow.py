"""Glow for signals of one dimension (Kingma & Dhariwal 2018, arXiv 1807.03039), multi-scale as in RealNVP."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import torch
from nflows.transforms.base import Transform

from sbiflow.families.family import Family, Flags, mixes, shuffled
from sbiflow.transforms.composite import Composite
from sbiflow.transforms.convolution import Convolution
from sbiflow.transforms.elementwise import Affine
from sbiflow.transforms.glow import SignalCoupling
from sbiflow.transforms.linear import Permutation
from sbiflow.transforms.normalise import ActNorm
from sbiflow.transforms.squeeze import MultiScale, Squeeze

if TYPE_CHECKING:
    from sbiflow.families.config import FlowConfig


_LIMIT = 2.0  # of a coupling's log-scale: a column meets several of them, and LU maps besides


def glow(channels: int, length: int, config: FlowConfig, context: int) -> Transform:
    """Of a signal (channels, length), flattened to D = channels * length columns, channel after channel.

    A level is a squeeze, (C, L) -> (2C, L / 2), and `config.layers` blocks of an activation norm, a 1x1 convolution and
    an affine coupling of one half of the channels with the other; it passes half of its channels on to the next. There
    are as many levels as L has factors of two; a signal of odd length has one, without a squeeze. `hidden`, `blocks`
    and `dropout` are of the couplings' networks; `linear` and `mixing` say what stands for the 1x1 convolution.

    The outputs come in the order of the inputs: untrained, and without `mixing` by permutations, it is the identity.
    """
    dim, levels, routes = channels * length, [], []
    for wide, short, squeeze in _shapes(channels, length):
        blocks = [_block(wide, short, config, context, index) for index in range(config.layers)]
        levels.append(Composite([*squeeze, *chain.from_iterable(blocks)]))
        routes.append(Composite(squeeze))
    order = MultiScale(routes)(torch.arange(dim, dtype=torch.float64))[
        0
    ]  # where the squeezes alone take each column
    return Composite([MultiScale(levels), Permutation(torch.argsort(order).tolist())])


def _shapes(channels: int, length: int) -> list[tuple[int, int, list[Transform]]]:
    """Channels and length of each level, and the squeeze, if any, that leads to them."""
    if length % 2:
        return [(channels, length, [])]
    squeezed = (2 * channels, length // 2, [Squeeze(channels, length)])
    return [squeezed, *([] if length // 2 % 2 else _shapes(channels, length // 2))]


def _block(channels: int, length: int, config: FlowConfig, context: int, index: int) -> list[Transform]:
    """Halves take turns in being moved; a single channel is moved given the context alone."""
    half, every = channels // 2, list(range(channels))
    moved = every[half:] if index % 2 == 0 else every[:half] or every
    coupling = SignalCoupling(
        channels, length, moved, context, Affine(_LIMIT), config.hidden, config.blocks, config.dropout
    )
    norm = ActNorm(channels * length, length=length)
    return [norm, *_mixing(channels, length, config, index), coupling]


def _mixing(channels: int, length: int, config: FlowConfig, index: int) -> list[Transform]:
    """A 1x1 convolution, started as the identity, or what stands for it."""
    if config.linear and config.mixing == "lu" and channels > 1:
        return [Convolution(channels, length)]
    if not mixes(config, index, channels):
        return []
    columns = torch.arange(channels * length).view(channels, length)
    return [Permutation(columns[shuffled(channels, index)].flatten().tolist())]


def _build(config: FlowConfig, periodic: Flags, context: int) -> Transform:
    """The columns are a signal of one channel; an odd number of them, which cannot be squeezed, that many channels of
    length one: a flow of activation norms, linear maps and affine couplings of all columns, on one scale."""
    dim = len(periodic)
    return glow(dim, 1, config, context) if dim % 2 else glow(1, dim, config, context)


GLOW: dict[str, Family] = {
    "glow": Family(_build, phases=False, least=lambda dim: min(dim, 2)),
}
