"""Catalogue of zuko's transforms as the families use them, one layer each; empty where zuko is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import cast

from nflows.transforms import Transform

from sbiflow.families import FlowConfig, build_transform
from sbiflow.transforms.zuko_adapter import TOLERANCES
from tests.transforms.case import CONTEXT, HALF_WIDTH, HIDDEN, Case

NAMES = ("naf", "unaf", "sospf", "bpf", "gf", "ffjord")


def _layer(name: str, dim: int, context: int) -> Transform:
    config = FlowConfig(name, layers=1, hidden=HIDDEN, blocks=0, bins=4, half_width=HALF_WIDTH)
    (layer,) = cast(Sequence[Transform], build_transform(config, (False,) * dim, context).transforms)
    return layer


def _case(name: str, dim: int, context: int) -> Case:
    make = partial(_layer, name, dim, context)
    case = Case(make, dim, context, ends=("hyper.2.", "phi.", "ode.2."))
    return (
        replace(case, largest=1.0, precision=TOLERANCES.__getitem__, is_slow=True)
        if name == "ffjord"
        else case
    )


CASES: dict[str, Case] = {
    f"zuko's {name}, D={dim}, C={context}": _case(name, dim, context)
    for name in NAMES
    for dim, context in ((1, 0), (3, CONTEXT))
    if find_spec("zuko")
}
