"""From a configuration to an invertible map: the flow families by name.

A flow lives in z = prior.unconstrain(theta): real columns with a standard normal base, periodic columns as phases
with a uniform base. Most families are layers of one kind, one after another with linear maps between (`stacked`);
a family that is built otherwise is a function of its own. To add one: its transform in `transforms/`, a line in a
module of this folder, its variants in the catalogue of the tests.
"""

from sbiflow.families.config import FlowConfig, build_transform
from sbiflow.families.family import NORMALISATIONS, Family
from sbiflow.families.registry import FAMILIES
from sbiflow.families.spline_kinds import SPLINES

__all__ = ["FAMILIES", "NORMALISATIONS", "SPLINES", "Family", "FlowConfig", "build_transform"]
