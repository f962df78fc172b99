"""Coupling and autoregressive flows of affine maps and of splines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sbiflow.families.family import Family, autoregressive, coupling
from sbiflow.families.spline_kinds import SPLINES
from sbiflow.transforms.elementwise import Affine, Chain, Elementwise

if TYPE_CHECKING:
    from sbiflow.families.config import FlowConfig


def _spline(config: FlowConfig) -> Elementwise:
    """An affine map in front of the spline: posteriors much narrower than the prior are zoomed into first."""
    return Chain(Affine(), SPLINES[config.spline](config.bins, config.half_width))


def _affine(config: FlowConfig) -> Elementwise:
    return Affine()


MASKED: dict[str, Family] = {
    "spline_coupling": coupling(_spline),
    "spline_autoregressive": autoregressive(_spline),
    "realnvp": coupling(_affine),
    "maf": autoregressive(_affine),
}
