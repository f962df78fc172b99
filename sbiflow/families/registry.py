"""The flow families by name."""

from __future__ import annotations

from sbiflow.families.classical import CLASSICAL
from sbiflow.families.family import Family
from sbiflow.families.glow import GLOW
from sbiflow.families.inverse import INVERSE
from sbiflow.families.masked import MASKED
from sbiflow.families.matching import MATCHING
from sbiflow.families.mixture import MIXTURE
from sbiflow.families.normalised import NORMALISED
from sbiflow.families.residual import RESIDUAL
from sbiflow.families.zuko import ZUKO

FAMILIES: dict[str, Family] = {
    **MASKED,
    **MIXTURE,
    **NORMALISED,
    **GLOW,
    **INVERSE,
    **CLASSICAL,
    **MATCHING,
    **RESIDUAL,
    **ZUKO,
}
