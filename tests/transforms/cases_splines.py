"""Mixtures of logistics and linear, quadratic and cubic splines, in coupling and autoregressive transforms."""

from __future__ import annotations

from functools import partial

from sbiflow.transforms.autoregressive import MaskedAutoregressive
from sbiflow.transforms.coupling import Coupling
from sbiflow.transforms.cubic_spline import CubicSpline
from sbiflow.transforms.elementwise import (
    Affine,
    Bounded,
    Chain,
    CircularSpline,
    Elementwise,
    Spline,
    elementwise_for,
)
from sbiflow.transforms.linear_spline import LinearSpline
from sbiflow.transforms.mixture_cdf import MixtureCDF
from sbiflow.transforms.quadratic_spline import QuadraticSpline
from tests.transforms.case import BLOCKS, CONTEXT, HALF_WIDTH, HIDDEN, Case

MAPS: dict[str, Elementwise] = {
    "mixture of logistics": MixtureCDF(5),
    "linear spline": LinearSpline(6, HALF_WIDTH),
    "quadratic spline": QuadraticSpline(6, HALF_WIDTH),
    "cubic spline": CubicSpline(6, HALF_WIDTH),
}


def _coupling(real: Elementwise, dim: int, context: int, periodic: tuple[int, ...] = ()) -> Case:
    moved = list(range(0, dim, 2))
    own = elementwise_for(real, CircularSpline(5), [i in periodic for i in moved])
    make = partial(Coupling, dim, moved, context, own, HIDDEN, BLOCKS, periodic)
    return Case(make, dim, context, periodic, kept=tuple(range(1, dim, 2)))


def _autoregressive(real: Elementwise, dim: int, context: int) -> Case:
    make = partial(MaskedAutoregressive, dim, context, real, HIDDEN, BLOCKS)
    return Case(make, dim, context, triangular=True)


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    bounded = Chain(Affine(), Bounded(Spline(6, HALF_WIDTH)))
    cases[f"autoregressive bounded spline, D=5, C={CONTEXT}"] = _autoregressive(bounded, 5, CONTEXT)
    for name, real in MAPS.items():
        cases[f"coupling {name}, D=1, C={CONTEXT}"] = _coupling(real, 1, CONTEXT)
        cases[f"coupling {name}, D=5"] = _coupling(real, 5, 0)
        cases[f"autoregressive {name}, D=1"] = _autoregressive(real, 1, 0)
        cases[f"autoregressive {name}, D=5, C={CONTEXT}"] = _autoregressive(real, 5, CONTEXT)
        chain = Chain(Affine(), real)
        cases[f"coupling chain to {name}, phases (0, 1), D=5"] = _coupling(chain, 5, 0, (0, 1))
    return cases


CASES = _cases()
