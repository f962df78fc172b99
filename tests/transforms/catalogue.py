"""Every transform of sbiflow.transforms in its variants: what `test_catalogue` runs its properties over."""

from __future__ import annotations

from functools import partial

import torch
from nflows.transforms import RandomPermutation, Transform
from torch import Tensor

from sbiflow.structure import Anchor, Structure
from sbiflow.transforms.autoregressive import MaskedAutoregressive
from sbiflow.transforms.bounded import Logit, LowerBounded, Probit, UpperBounded
from sbiflow.transforms.composite import Composite, WithContext
from sbiflow.transforms.coupling import Coupling
from sbiflow.transforms.elementwise import (
    Additive,
    Affine,
    Chain,
    CircularSpline,
    Elementwise,
    Spline,
    elementwise_for,
)
from sbiflow.transforms.linear import LULinear, Permutation
from sbiflow.transforms.structure import Anchored, Fold, Known
from sbiflow.transforms.whiten import Whiten
from tests.transforms.case import BLOCKS, CONTEXT, HALF_WIDTH, HIDDEN, Case, generator
from tests.transforms.cases_classical import CASES as CLASSICAL_CASES
from tests.transforms.cases_glow import GLOW_CASES
from tests.transforms.cases_inverse import INVERSE_CASES
from tests.transforms.cases_matching import CASES as MATCHING_CASES
from tests.transforms.cases_residual import CASES as RESIDUAL_CASES
from tests.transforms.cases_splines import CASES as SPLINE_CASES
from tests.transforms.cases_zuko import CASES as ZUKO_CASES

MAPS: dict[str, Elementwise] = {
    "additive": Additive(),
    "affine": Affine(),
    "spline": Spline(6, HALF_WIDTH),
    "chain": Chain(Affine(), Spline(6, HALF_WIDTH)),
}


def _coupling(
    real: Elementwise, dim: int, context: int, periodic: tuple[int, ...] = (), odd: bool = False
) -> Case:
    moved = list(range(int(odd), dim, 2)) or [0]
    own = elementwise_for(real, CircularSpline(5), [i in periodic for i in moved])
    make = partial(Coupling, dim, moved, context, own, HIDDEN, BLOCKS, periodic)
    return Case(make, dim, context, periodic, kept=tuple(i for i in range(dim) if i not in moved))


def _autoregressive(real: Elementwise, dim: int, context: int, periodic: tuple[int, ...] = ()) -> Case:
    own = elementwise_for(real, CircularSpline(5), [i in periodic for i in range(dim)])
    make = partial(MaskedAutoregressive, dim, context, own, HIDDEN, BLOCKS, periodic)
    return Case(make, dim, context, periodic, triangular=True)


def _mixture_of_all(dim: int, context: int) -> Transform:
    """As a flow has them, around a transform of nflows' own."""
    return Composite(
        [
            _coupling(MAPS["spline"], dim, context).make(),
            LULinear(dim),
            RandomPermutation(dim),
            _autoregressive(MAPS["affine"], dim, context).make(),
            Permutation(range(dim)[::-1]),
        ]
    )


def _whiten(dim: int, columns: list[int]) -> Transform:
    """With a fitted factor of condition about ten."""
    whiten, size = Whiten(dim, columns), len(columns)
    draws = torch.randn(size, size, generator=generator(3), dtype=torch.float64)
    whiten.fit(torch.diag(torch.linspace(0.3, 3.0, size)).double() + 0.1 * draws.tril(-1))
    return whiten


def _ordered(z: Tensor) -> Tensor:
    """The first two columns with the larger first, never equal."""
    larger, smaller = z[:, :2].amax(-1), z[:, :2].amin(-1)
    return torch.cat([torch.stack([larger + 1e-3, smaller], -1), z[:, 2:]], -1)


def _between(low: Tensor, high: Tensor, z: Tensor) -> Tensor:
    return low + (high - low) * torch.sigmoid(z)


def _above(low: Tensor, z: Tensor) -> Tensor:
    return low + torch.exp(z)


def _below(high: Tensor, z: Tensor) -> Tensor:
    return high - torch.exp(z)


def _catalogue() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for context in (0, CONTEXT):
        suffix = f", C={context}" if context else ""
        for family, build in {"coupling": _coupling, "autoregressive": _autoregressive}.items():
            for name, real in MAPS.items():
                for dim in (1, 2, 5) if name == "chain" else (1, 5):
                    cases[f"{family} {name}, D={dim}{suffix}"] = build(real, dim, context)
            for dim, periodic in ((1, (0,)), (2, (1,)), (5, (0, 1, 3))):
                case = build(MAPS["chain"], dim, context, periodic)
                cases[f"{family}, phases {periodic}, D={dim}{suffix}"] = case
        cases[f"coupling of the odd columns, D=5{suffix}"] = _coupling(
            MAPS["chain"], 5, context, (0, 1), True
        )
        for dim in (2, 5):
            cases[f"composite, D={dim}{suffix}"] = Case(partial(_mixture_of_all, dim, context), dim, context)
    for dim in (1, 2, 5):
        low, high = torch.linspace(-1, 2, dim), torch.linspace(3, 5, dim)
        cases[f"permutation, D={dim}"] = Case(partial(Permutation, range(dim)[::-1]), dim)
        cases[f"LU, D={dim}"] = Case(partial(LULinear, dim), dim)
        for make in (Probit, Logit):
            cases[f"{make.__name__}, D={dim}"] = Case(
                partial(make, low, high),
                dim,
                diagonal=True,
                domain=partial(_between, low, high),
            )
        cases[f"LowerBounded, D={dim}"] = Case(
            partial(LowerBounded, low), dim, diagonal=True, domain=partial(_above, low)
        )
        cases[f"UpperBounded, D={dim}"] = Case(
            partial(UpperBounded, high), dim, diagonal=True, domain=partial(_below, high)
        )
    for dim in (1, 2):
        make_whiten = partial(_whiten, dim, list(range(dim)))
        cases[f"whiten, D={dim}, C={CONTEXT}"] = Case(make_whiten, dim, CONTEXT, triangular=True)
    cases[f"whiten some columns, D=5, C={CONTEXT}"] = Case(
        partial(_whiten, 5, [0, 2, 4]), 5, CONTEXT, kept=(1, 3)
    )
    cases[f"with context, D=2, C={CONTEXT + 2}"] = Case(
        lambda: WithContext(_whiten(2, [0, 1]), slice(1, CONTEXT + 1)), 2, CONTEXT + 2, triangular=True
    )
    anchors = Structure((Anchor(0, 0, 1), Anchor(1, 2, slopes=((0, 3),))))
    for kind in (Anchored, Known):
        cases[f"{kind.__name__}, D=2, C=4"] = Case(
            partial(kind, anchors, (False, True)), 2, 4, periodic=(1,), triangular=True
        )
    cases["Fold, D=2"] = Case(partial(Fold, 2, ((0,), (1,))), 2, domain=_ordered)
    cases["Fold of groups, D=5"] = Case(
        partial(Fold, 5, ((0, 2), (1, 4))), 5, kept=(2, 3, 4), domain=_ordered
    )
    cases["LU of some columns, D=5"] = Case(partial(LULinear, 5, [0, 2, 4]), 5, kept=(1, 3))
    cases["Logit, one for all, D=2"] = Case(
        partial(Logit, -20.0, 20.0), 2, diagonal=True, domain=lambda z: 20 * torch.tanh(z / 3)
    )
    return cases


CATALOGUE = {
    **_catalogue(),
    **INVERSE_CASES,
    **CLASSICAL_CASES,
    **GLOW_CASES,
    **RESIDUAL_CASES,
    **SPLINE_CASES,
    **ZUKO_CASES,
    **MATCHING_CASES,
}
