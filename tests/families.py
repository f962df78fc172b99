"""The flow families as parameters of tests: those of a library that is not installed skip, costly ones are slow."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from sbiflow.families import FAMILIES

ENDS = (
    "exit",
    "hyper.4.",
    "integrand.4.",
    "phi.",
    "ode.4.",
)  # last layers: ours; zuko's after two hidden ones
COSTLY = {"unaf", "ffjord", "flow_matching"}  # an integral of a network, ODEs with their trace
INSTALLED = [name for name, family in FAMILIES.items() if not family.needs or find_spec(family.needs)]


def marks(name: str, trained: bool = False) -> list[pytest.MarkDecorator]:
    """zuko's families take a minute each where they are `trained`."""
    if name not in INSTALLED:
        return [pytest.mark.skip(f"{FAMILIES[name].needs} is not installed")]
    return [pytest.mark.slow] if name in COSTLY or (trained and FAMILIES[name].needs) else []


every_family = pytest.mark.parametrize("family", [pytest.param(name, marks=marks(name)) for name in FAMILIES])
