"""The flow families by name."""

from __future__ import annotations

from sbiflow.families.family import Family
from sbiflow.families.masked import MASKED

FAMILIES: dict[str, Family] = {**MASKED}
