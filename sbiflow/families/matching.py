"""Flow matching: one velocity field in place of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nflows.transforms.base import Transform

from sbiflow.families.family import Family, Flags
from sbiflow.transforms.vector_field import VectorField

if TYPE_CHECKING:
    from sbiflow.families.config import FlowConfig


def _field(config: FlowConfig, periodic: Flags, context: int) -> Transform:
    """One network of layers x blocks residual blocks: about as many weights as so many conditioners have."""
    phases = [i for i, flag in enumerate(periodic) if flag]
    depth = config.layers * config.blocks
    return VectorField(len(periodic), context, config.hidden, depth, phases, config.dropout)


MATCHING: dict[str, Family] = {"flow_matching": Family(_field, bounds_memory=True, one_graph=False)}
