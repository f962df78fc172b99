"""Residual flows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nflows.transforms.base import Transform

from sbiflow.families.family import Family, Flags, mixes, stacked
from sbiflow.transforms.composite import Composite
from sbiflow.transforms.linear import LULinear
from sbiflow.transforms.residual_flow import ResidualFlow

if TYPE_CHECKING:
    from sbiflow.families.config import FlowConfig


def _residual(config: FlowConfig, flags: Flags, context: int, index: int) -> Transform:
    """A linear map before every layer, the first too: a contraction away from the identity cannot zoom."""
    dim = len(flags)
    flow = ResidualFlow(dim, context, config.hidden, config.blocks + 1, config.blocks)
    if config.linear and not mixes(config, index, dim):
        return Composite([LULinear(dim), flow])
    return flow


RESIDUAL: dict[str, Family] = {"residual": Family(stacked(_residual), phases=False)}
