"""Flow matching's velocity field in its variants.

Each property takes dozens of solutions to ten digits, so extreme parameters and all but the smallest variants are
among the slow tests. With parameters of scale 6 and five columns, paths part by factors of 10^4 and float32 says
nothing: 3 is their largest.
"""

from __future__ import annotations

import math
from functools import partial

import torch

from sbiflow.transforms.vector_field import VectorField, tolerance_of
from tests.transforms.case import BLOCKS, CONTEXT, HIDDEN, Case


def _precision(dtype: torch.dtype) -> float:
    """The catalogue allows K = 60 roundings; a solution has about six steps of the solver's tolerance."""
    return tolerance_of(dtype) / 10


def _field(dim: int, context: int, periodic: tuple[int, ...], largest: float, is_slow: bool) -> Case:
    make = partial(VectorField, dim, context, HIDDEN, BLOCKS, periodic)
    return Case(make, dim, context, periodic, precision=_precision, largest=largest, is_slow=is_slow)


CASES: dict[str, Case] = {
    f"velocity field, phases {phases}, D={dim}, C={context}": _field(dim, context, phases, *rest)
    for dim, context, phases, *rest in (
        (1, 0, (), 1.0, False),
        (2, CONTEXT, (1,), 1.0, False),
        (1, CONTEXT, (0,), math.inf, True),
        (2, CONTEXT, (), math.inf, True),
        (5, 0, (), 3.0, True),
        (5, CONTEXT, (0, 3), 3.0, True),
    )
}
