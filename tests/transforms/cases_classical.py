"""Linear maps, and planar, radial and Sylvester flows."""

from __future__ import annotations

from functools import partial

from sbiflow.transforms.convolution import Convolution
from sbiflow.transforms.diagonal import Diagonal
from sbiflow.transforms.householder import Householder, QRLinear
from sbiflow.transforms.planar import Planar
from sbiflow.transforms.radial import Radial
from sbiflow.transforms.sylvester import Sylvester
from sbiflow.transforms.triangular import Triangular
from tests.transforms.case import BLOCKS, CONTEXT, HIDDEN, Case


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for context in (0, CONTEXT):
        suffix = f", C={context}" if context else ""
        own = {"context": context, "hidden": HIDDEN, "blocks": BLOCKS}
        for kind in (Triangular, QRLinear, Planar, Radial, Sylvester):
            for dim in (1, 5):
                case = Case(partial(kind, dim, **own), dim, context, triangular=kind is Triangular)
                cases[f"{kind.__name__}, D={dim}{suffix}"] = case
        cases[f"Diagonal, D=5{suffix}"] = Case(partial(Diagonal, 5, **own), 5, context, diagonal=True)
        cases[f"Triangular, upper, D=2{suffix}"] = Case(partial(Triangular, 2, upper=True, **own), 2, context)
        cases[f"Householder, D=2{suffix}"] = Case(partial(Householder, 2, **own), 2, context)
        cases[f"Householder, 2 reflections, D=5{suffix}"] = Case(
            partial(Householder, 5, reflections=2, **own), 5, context
        )
        cases[f"Sylvester, 2 units, D=5{suffix}"] = Case(partial(Sylvester, 5, units=2, **own), 5, context)
        for channels, length, rotated in ((1, 2, False), (2, 1, False), (3, 2, True)):
            make = partial(Convolution, channels, length, rotated=rotated, **own)
            name = f"Convolution, {channels} x {length}, rotated={rotated}{suffix}"
            cases[name] = Case(make, channels * length, context)
    return cases


CASES = _cases()
