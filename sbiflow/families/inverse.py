"""The inverse autoregressive flow: a masked autoregressive one whose directions are exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nflows.transforms.base import Transform

from sbiflow.families.family import Family, Flags, stacked
from sbiflow.transforms.autoregressive import MaskedAutoregressive
from sbiflow.transforms.elementwise import Affine, elementwise_for
from sbiflow.transforms.inverse import Inverse, TurnedSpline

if TYPE_CHECKING:
    from sbiflow.families.config import FlowConfig


def _layer(config: FlowConfig, flags: Flags, context: int, index: int) -> Transform:
    """From the base to z."""
    own = elementwise_for(Affine(), TurnedSpline(config.bins), flags)
    phases = tuple(i for i, flag in enumerate(flags) if flag)
    return MaskedAutoregressive(
        len(flags), context, own, config.hidden, config.blocks, phases, config.dropout
    )


_FROM_BASE = Family(stacked(_layer, reverses=True))


def _build(config: FlowConfig, periodic: Flags, context: int) -> Transform:
    """The whole stack is exchanged: in a draw a linear map between layers is a product, too, and no solution."""
    return Inverse(_FROM_BASE.build(config, periodic, context))


INVERSE: dict[str, Family] = {"iaf": Family(_build)}
