"""Coupling flow of mixtures of logistics: Flow++ (Ho et al. 2019, arXiv 1902.00275)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sbiflow.families.family import Family, coupling
from sbiflow.transforms.elementwise import Affine, Chain, Elementwise
from sbiflow.transforms.mixture_cdf import MixtureCDF

if TYPE_CHECKING:
    from sbiflow.families.config import FlowConfig


def _mixture(config: FlowConfig) -> Elementwise:
    """As many logistics as a spline would have bins; an affine map in front, as for splines."""
    return Chain(Affine(), MixtureCDF(config.bins))


MIXTURE: dict[str, Family] = {"flowpp": coupling(_mixture)}
