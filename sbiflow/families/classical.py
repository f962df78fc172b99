"""The classical families: one conditional linear map, and layers of planar, radial or Sylvester steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nflows.transforms.base import Transform

from sbiflow.families.family import Family, Flags, Layer, stacked
from sbiflow.transforms.planar import Planar
from sbiflow.transforms.radial import Radial
from sbiflow.transforms.sylvester import Sylvester
from sbiflow.transforms.triangular import Triangular

if TYPE_CHECKING:
    from sbiflow.families.config import FlowConfig


def _linear(config: FlowConfig, periodic: Flags, context: int) -> Transform:
    """A Gaussian whose mean and covariance are functions of the context: more layers would be one linear map again."""
    return Triangular(len(periodic), context, config.hidden, config.blocks, config.dropout)


def _of(kind: type[Planar] | type[Radial] | type[Sylvester]) -> Layer:
    def layer(config: FlowConfig, flags: Flags, context: int, index: int) -> Transform:
        return kind(len(flags), context, config.hidden, config.blocks, config.dropout)

    return layer


CLASSICAL: dict[str, Family] = {
    "linear": Family(_linear, phases=False),
    "planar": Family(stacked(_of(Planar)), phases=False),
    "radial": Family(stacked(_of(Radial)), phases=False),
    "sylvester": Family(stacked(_of(Sylvester)), phases=False),
}
