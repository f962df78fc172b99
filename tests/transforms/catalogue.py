"""Every transform of sbiflow.transforms in its variants: what `test_catalogue` runs its properties over."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from nflows.transforms import RandomPermutation, Transform
from torch import Tensor

from sbiflow.structure import Anchor, Structure
from sbiflow.transforms.autoregressive import MaskedAutoregressive
from sbiflow.transforms.bounded import Logit, LowerBounded, Probit, UpperBounded, wrap
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

HALF_WIDTH, HIDDEN, BLOCKS, CONTEXT = 4.0, 16, 1, 3
MAPS: dict[str, Elementwise] = {
    "additive": Additive(),
    "affine": Affine(),
    "spline": Spline(6, HALF_WIDTH),
    "chain": Chain(Affine(), Spline(6, HALF_WIDTH)),
}


@dataclass(frozen=True)
class Case:
    """One constructor, and what is known of the transform it makes.

    Attributes:
        make: builds the transform, with its initial parameters.
        dim, context: D and C (0: no context).
        periodic: columns that are phases.
        kept: columns that must come out untouched.
        triangular: whether output i may read inputs 0..i only.
        diagonal: whether output i reads input i only.
        domain: from R^D to what `forward` accepts.
    """

    make: Callable[[], Transform]
    dim: int
    context: int = 0
    periodic: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    triangular: bool = False
    diagonal: bool = False
    domain: Callable[[Tensor], Tensor] = lambda z: z

    def inputs(self, rows: int, dtype: torch.dtype, seed: int, spread: float = 2.0) -> Tensor:
        """Points of `forward`'s domain, (rows, D); phases within [-pi, pi)."""
        z = spread * torch.randn(rows, self.dim, generator=_generator(seed), dtype=torch.float64)
        phases = math.pi * (2 * torch.rand(rows, self.dim, generator=_generator(seed + 1), dtype=z.dtype) - 1)
        is_phase = torch.tensor([i in self.periodic for i in range(self.dim)])
        return torch.where(is_phase, phases, self.domain(z)).to(dtype)

    def base(self, rows: int, dtype: torch.dtype, seed: int) -> Tensor:
        """Points of `inverse`'s domain, (rows, D), within ±3: beyond, a bounded x is rounded to its edge."""
        z = 1.5 * torch.randn(rows, self.dim, generator=_generator(seed), dtype=torch.float64)
        return z.clamp(-3, 3).to(dtype)

    def condition(self, rows: int, dtype: torch.dtype, seed: int) -> Tensor | None:
        """Contexts (rows, C), or None."""
        draw = torch.randn(rows, max(self.context, 1), generator=_generator(seed + 2), dtype=torch.float64)
        return draw.to(dtype) if self.context else None


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomise(module: torch.nn.Module, scale: float, seed: int) -> torch.nn.Module:
    """Random parameters: what a conditioner hands to its elementwise map has a standard deviation near `scale`.

    The layers inside a conditioner get gains near one, whatever the scale: with a larger gain a network is not
    extreme but chaotic, and no arithmetic could invert an autoregressive transform around it.
    """
    generator = _generator(seed)
    for name, parameter in module.named_parameters():
        gain = scale if "exit" in name or "." not in name else 1.0
        fan = parameter.shape[-1] if name.endswith("weight") else 1
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = (gain * noise / math.sqrt(fan)).to(parameter.dtype)
    return module


def build(case: Case, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Transform:
    """The case's transform with random parameters, the same for both dtypes."""
    torch.manual_seed(0)
    return randomise(case.make(), scale, seed=5).to(torch.float32).to(dtype)


def distance(case: Case, one: Tensor, other: Tensor) -> Tensor:
    """|one - other| in float64, around the circle for phases."""
    gap = one.double() - other.double()
    is_phase = torch.tensor([i in case.periodic for i in range(case.dim)])
    return torch.where(is_phase, wrap(gap), gap).abs()


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
    draws = torch.randn(size, size, generator=_generator(3), dtype=torch.float64)
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


CATALOGUE = _catalogue()
