"""NICE: additive couplings, which keep volumes, and one scaling at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nflows.transforms.base import Transform

from sbiflow.families.family import Family, Flags, coupling
from sbiflow.transforms.composite import Composite
from sbiflow.transforms.elementwise import Additive, Elementwise
from sbiflow.transforms.scaling import Scaling

if TYPE_CHECKING:
    from sbiflow.families.config import FlowConfig


def _additive(config: FlowConfig) -> Elementwise:
    return Additive()


def _scaling(config: FlowConfig, flags: Flags, context: int, index: int) -> Transform:
    """Of the real columns. Additive couplings cannot narrow a density, and a posterior is narrower for one observation
    than for another: the scaling reads the context."""
    real = [i for i, flag in enumerate(flags) if not flag]
    if not real:
        return Composite([])
    return Scaling(len(flags), real, context, config.hidden, config.blocks, config.dropout)


NORMALISED: dict[str, Family] = {"nice": coupling(_additive, last=_scaling)}
