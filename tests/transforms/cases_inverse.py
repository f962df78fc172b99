"""Transforms whose directions are exchanged; those of autoregressive ones are inverse autoregressive flows."""

from __future__ import annotations

from functools import partial

from nflows.transforms import Transform

from sbiflow.transforms.autoregressive import MaskedAutoregressive
from sbiflow.transforms.composite import Composite
from sbiflow.transforms.elementwise import Affine, Chain, Elementwise, Spline, elementwise_for
from sbiflow.transforms.inverse import Inverse, TurnedSpline
from sbiflow.transforms.linear import LULinear
from tests.transforms.case import BLOCKS, CONTEXT, HALF_WIDTH, HIDDEN, Case

_SPLINE = Chain(Affine(), Spline(6, HALF_WIDTH))


def _autoregressive(real: Elementwise, dim: int, context: int, periodic: tuple[int, ...]) -> Transform:
    own = elementwise_for(real, TurnedSpline(5), [i in periodic for i in range(dim)])
    return MaskedAutoregressive(dim, context, own, HIDDEN, BLOCKS, periodic)


def _inverse(real: Elementwise, dim: int, context: int, periodic: tuple[int, ...] = ()) -> Case:
    def make() -> Transform:
        return Inverse(_autoregressive(real, dim, context, periodic))

    return Case(make, dim, context, periodic, triangular=True, reads_base=True)


def _stack(dim: int, context: int) -> Transform:
    """As the family "iaf" has it."""
    layers = [_autoregressive(Affine(), dim, context, ()) for _ in range(2)]
    return Inverse(Composite([layers[0], LULinear(dim), layers[1]]))


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for context in (0, CONTEXT):
        suffix = f", C={context}" if context else ""
        for dim in (1, 2, 5):
            cases[f"IAF affine, D={dim}{suffix}"] = _inverse(Affine(), dim, context)
        cases[f"IAF chain, D=5{suffix}"] = _inverse(_SPLINE, 5, context)
        for dim, phases in ((1, (0,)), (2, (1,)), (5, (0, 1, 3))):
            cases[f"IAF, phases {phases}, D={dim}{suffix}"] = _inverse(Affine(), dim, context, phases)
        cases[f"IAF stack, D=5{suffix}"] = Case(partial(_stack, 5, context), 5, context, reads_base=True)
    return cases


INVERSE_CASES = _cases()
