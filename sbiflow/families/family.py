"""What a flow family is, and the builders that most of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from nflows.transforms.base import Transform

from sbiflow.transforms.autoregressive import MaskedAutoregressive
from sbiflow.transforms.composite import Composite
from sbiflow.transforms.coupling import Coupling
from sbiflow.transforms.elementwise import CircularSpline, Elementwise, elementwise_for
from sbiflow.transforms.linear import LULinear, Permutation
from sbiflow.transforms.normalise import ActNorm, BatchNorm

if TYPE_CHECKING:  # it refuses names that are no families, so it comes after them
    from sbiflow.families.config import FlowConfig

Flags = tuple[bool, ...]  # which columns are phases
Build = Callable[["FlowConfig", Flags, int], Transform]  # for so many context features: z -> base
Layer = Callable[["FlowConfig", Flags, int, int], Transform]  # the same for the layer of this index


@dataclass(frozen=True)
class Family:
    """How a name becomes a transform.

    Attributes:
        build: makes the transform from z to the base.
        phases: whether columns may be phases; otherwise a prior with periodic parameters is refused.
        least: the fewest layers that move every one of D columns.
        bounds_memory: whether the inverse takes memory in parts of its own, so that many draws may be asked at once.
        one_graph: whether the density compiles to one graph.
        starts_as_prior: whether the untrained flow is the base itself.
        needs: the optional library that it is made of, "" for none.
    """

    build: Build
    phases: bool = True
    least: Callable[[int], int] = lambda dim: 1
    bounds_memory: bool = False
    one_graph: bool = True
    starts_as_prior: bool = True
    needs: str = ""


NORMALISATIONS = {"actnorm": ActNorm, "batchnorm": BatchNorm}


def stacked(layer: Layer, reverses: bool = False, last: Layer | None = None) -> Build:
    """Layers of one kind, and `last` after them.

    The columns are in reverse order from one layer to the next if the family `reverses` them; where the configuration
    asks for it, linear maps or permutations stand between layers and a normalisation after each.
    """

    def build(config: FlowConfig, periodic: Flags, context: int) -> Transform:
        dim = len(periodic)
        parts: list[Transform] = []
        # A permuted order carries its flags along: `flags` says which columns are phases at this depth.
        flags = tuple(periodic)
        for index in range(config.layers):
            if reverses and index:
                parts.append(Permutation(range(dim)[::-1]))
                flags = flags[::-1]
            real = [i for i in range(dim) if not flags[i]]
            if mixes(config, index, len(real)):
                parts.append(_mixing(config, dim, real, index))
            parts.append(layer(config, flags, context, index))
            if config.normalisation in NORMALISATIONS and real:
                parts.append(NORMALISATIONS[config.normalisation](dim, real))
        if last is not None:
            parts.append(last(config, flags, context, config.layers))
        if flags != tuple(periodic):
            parts.append(Permutation(range(dim)[::-1]))
        return Composite(parts)

    return build


def mixes(config: FlowConfig, index: int, count: int) -> bool:
    """Whether a map that mixes `count` columns or channels stands before the layer of this index.

    A linear map stands before all but the first. A permutation stands before every second one: couplings move every
    column in two layers, and a permutation between the two could let a column through that neither moves.
    """
    step = 1 if config.mixing == "lu" else 2
    return config.linear and count > 1 and index > 0 and index % step == 0


def shuffled(count: int, seed: int) -> list[int]:
    """A random order of 0..count-1 other than that, the same for the same seed."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order if order != sorted(order) else [*order[1:], order[0]]


def _mixing(config: FlowConfig, dim: int, real: list[int], index: int) -> Transform:
    """On the real columns: phases stay where they are."""
    if config.mixing == "lu":
        return LULinear(dim, real)
    order = list(range(dim))
    for place, other in zip(real, shuffled(len(real), index), strict=True):
        order[place] = real[other]
    return Permutation(order)


Map = Callable[["FlowConfig"], Elementwise]  # of a real column


def coupling(make: Map, last: Layer | None = None) -> Family:
    """Every second column, given the others; `last` after all."""

    def layer(config: FlowConfig, flags: Flags, context: int, index: int) -> Transform:
        dim = len(flags)
        moved = [i for i in range(dim) if (i + index) % 2 == 0] or list(range(dim))
        own = elementwise_for(make(config), CircularSpline(config.bins), [flags[i] for i in moved])
        phases = [i for i in range(dim) if flags[i]]
        return Coupling(dim, moved, context, own, config.hidden, config.blocks, phases, config.dropout)

    return Family(stacked(layer, last=last), least=lambda dim: min(dim, 2))


def autoregressive(make: Map) -> Family:
    """Every column, given those before it; in reverse order in every second layer."""

    def layer(config: FlowConfig, flags: Flags, context: int, index: int) -> Transform:
        own = elementwise_for(make(config), CircularSpline(config.bins), flags)
        phases = tuple(i for i, flag in enumerate(flags) if flag)
        return MaskedAutoregressive(
            len(flags), context, own, config.hidden, config.blocks, phases, config.dropout
        )

    return Family(stacked(layer, reverses=True), bounds_memory=True)
