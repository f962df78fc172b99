"""What a case of the catalogue is: one transform in one variant."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from nflows.transforms import Transform
from torch import Tensor

from sbiflow.transforms.bounded import wrap

HALF_WIDTH, HIDDEN, BLOCKS, CONTEXT = 4.0, 16, 1, 3


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
        precision: what one operation is accurate to, relatively: rounding, or what a solver is held to.
        is_slow: whether its tests are among the slow ones.
        largest: scale of the parameters beyond which it takes too long.
        ends: parts of the names of the parameters that are scaled: those at the end of a conditioner.
        reads_base: whether parameters are read from the base, u, so that a log-det is a function of u.
    """

    make: Callable[[], Transform]
    dim: int
    context: int = 0
    periodic: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    triangular: bool = False
    diagonal: bool = False
    domain: Callable[[Tensor], Tensor] = lambda z: z
    reads_base: bool = False
    is_slow: bool = False
    largest: float = math.inf
    ends: tuple[str, ...] = ("exit",)
    precision: Callable[[torch.dtype], float] = lambda dtype: torch.finfo(dtype).eps

    def inputs(self, rows: int, dtype: torch.dtype, seed: int, spread: float = 2.0) -> Tensor:
        """Points of `forward`'s domain, (rows, D); phases within [-pi, pi)."""
        z = spread * torch.randn(rows, self.dim, generator=generator(seed), dtype=torch.float64)
        phases = math.pi * (2 * torch.rand(rows, self.dim, generator=generator(seed + 1), dtype=z.dtype) - 1)
        is_phase = torch.tensor([i in self.periodic for i in range(self.dim)])
        return torch.where(is_phase, phases, self.domain(z)).to(dtype)

    def base(self, rows: int, dtype: torch.dtype, seed: int) -> Tensor:
        """Points of `inverse`'s domain, (rows, D), within ±3: beyond, a bounded x is rounded to its edge."""
        z = 1.5 * torch.randn(rows, self.dim, generator=generator(seed), dtype=torch.float64)
        return z.clamp(-3, 3).to(dtype)

    def condition(self, rows: int, dtype: torch.dtype, seed: int) -> Tensor | None:
        """Contexts (rows, C), or None."""
        draw = torch.randn(rows, max(self.context, 1), generator=generator(seed + 2), dtype=torch.float64)
        return draw.to(dtype) if self.context else None


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomise(
    module: torch.nn.Module, scale: float, seed: int, ends: tuple[str, ...] = ("exit",)
) -> torch.nn.Module:
    """Random parameters: what a conditioner hands to its elementwise map has a standard deviation near `scale`.

    The layers inside a conditioner get gains near one, whatever the scale: with a larger gain a network is not
    extreme but chaotic, and no arithmetic could invert an autoregressive transform around it.
    """
    dice = generator(seed)
    for name, parameter in module.named_parameters():
        gain = scale if any(end in name for end in ends) or "." not in name else 1.0
        fan = parameter.shape[-1] if name.endswith("weight") else 1
        noise = torch.randn(parameter.shape, generator=dice, dtype=torch.float64)
        parameter.data = (gain * noise / math.sqrt(fan)).to(parameter.dtype)
    return module


def build(case: Case, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Transform:
    """The case's transform with random parameters, the same for both dtypes."""
    torch.manual_seed(0)
    return randomise(case.make(), scale, seed=5, ends=case.ends).to(torch.float32).to(dtype)


def distance(case: Case, one: Tensor, other: Tensor) -> Tensor:
    """|one - other| in float64, around the circle for phases."""
    gap = one.double() - other.double()
    is_phase = torch.tensor([i in case.periodic for i in range(case.dim)])
    return torch.where(is_phase, wrap(gap), gap).abs()
