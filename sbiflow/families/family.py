"""What a flow family is, and the builders that most of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nflows.transforms.base import Transform

from sbiflow.transforms.autoregressive import MaskedAutoregressive
from sbiflow.transforms.composite import Composite
from sbiflow.transforms.coupling import Coupling
from sbiflow.transforms.elementwise import CircularSpline, Elementwise, elementwise_for
from sbiflow.transforms.linear import LULinear, Permutation

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
    """

    build: Build
    phases: bool = True
    least: Callable[[int], int] = lambda dim: 1
    bounds_memory: bool = False
    one_graph: bool = True


def stacked(layer: Layer, reverses: bool = False) -> Build:
    """Layers of one kind; the columns in reverse order from one to the next, and linear maps between, if asked for."""

    def build(config: FlowConfig, periodic: Flags, context: int) -> Transform:
        dim, real = len(periodic), len(periodic) - sum(periodic)
        parts: list[Transform] = []
        # A permuted order carries its flags along: `flags` says which columns are phases at this depth.
        flags = tuple(periodic)
        for index in range(config.layers):
            if reverses and index:
                parts.append(Permutation(range(dim)[::-1]))
                flags = flags[::-1]
            if config.linear and index and real > 1:
                parts.append(LULinear(dim, [i for i in range(dim) if not flags[i]]))
            parts.append(layer(config, flags, context, index))
        if flags != tuple(periodic):
            parts.append(Permutation(range(dim)[::-1]))
        return Composite(parts)

    return build


Map = Callable[["FlowConfig"], Elementwise]  # of a real column


def coupling(make: Map) -> Family:
    """Every second column, given the others."""

    def layer(config: FlowConfig, flags: Flags, context: int, index: int) -> Transform:
        dim = len(flags)
        moved = [i for i in range(dim) if (i + index) % 2 == 0] or list(range(dim))
        own = elementwise_for(make(config), CircularSpline(config.bins), [flags[i] for i in moved])
        phases = [i for i in range(dim) if flags[i]]
        return Coupling(dim, moved, context, own, config.hidden, config.blocks, phases, config.dropout)

    return Family(stacked(layer), least=lambda dim: min(dim, 2))


def autoregressive(make: Map) -> Family:
    """Every column, given those before it; in reverse order in every second layer."""

    def layer(config: FlowConfig, flags: Flags, context: int, index: int) -> Transform:
        own = elementwise_for(make(config), CircularSpline(config.bins), flags)
        phases = tuple(i for i, flag in enumerate(flags) if flag)
        return MaskedAutoregressive(
            len(flags), context, own, config.hidden, config.blocks, phases, config.dropout
        )

    return Family(stacked(layer, reverses=True), bounds_memory=True)
