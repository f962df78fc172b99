"""Transforms of zuko (Rozet et al., https://github.com/probabilists/zuko) as transforms of nflows.

zuko's "lazy" modules make a `torch.distributions` transform out of a context. `ZukoTransform` wraps any of them. Three
things that zuko 1.6 does differently from what a flow here promises are put right around it:

- In evaluation mode its neural maps leave their own weights out of some gradients (of UMNN's integral, of every
  bisection, of every ODE), without an error; training here runs in that mode. `ZukoTransform` keeps the wrapped module
  in zuko's training mode, which changes nothing else.
- Bisections stop at 1e-6 within [-10, 10], and answer with an edge of it for what lies beyond. `WholeLine` searches as
  far as the map goes and to the last digit, and answers with NaN where there is no solution.
- ODEs are solved to 1e-6 whatever the precision, and for ever if something is not finite. `Integrated` asks for a
  tolerance that fits the precision, and raises.

zuko's flows put a clip to ±11 between layers so that its bisections find their way back. What the base has outside of
the clip's image is then missing from the density, which no longer integrates to one. The families here
(families/zuko.py) need no clip and have none. What stays zuko's: the values of UMNN come from 32 points of its
integral and the log-determinant from the integrand, which differ by 2e-5 to 2e-3 of the density. The tests measure
each of these (tests/transforms/test_zuko_adapter.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from nflows.transforms.base import Transform
from torch import Tensor, nn
from torch.distributions import Transform as TorchTransform
from torch.distributions import constraints

from sbiflow.transforms import roots

_BRACKET, _FARTHEST = 10.0, 1e7  # where a search begins, and how far it goes
_TURNS = 200  # of a search at most: every second halves the bracket or the step
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-11}  # of ODEs, relative and absolute


class ZukoTransform(Transform):
    """A lazy transform of zuko, (..., D) -> (..., D) given (..., C), which broadcasts.

    Args:
        lazy: a `zuko.lazy.LazyTransform`.
        dim: D, zuko's `features`.
        context: C; 0 for none.
    """

    needs = "zuko"

    def __init__(self, lazy: nn.Module, dim: int, context: int) -> None:
        super().__init__()
        self.lazy, self.dim, self.context = lazy, dim, context

    def train(self, mode: bool = True) -> ZukoTransform:
        super().train(mode)
        self.lazy.train()  # see the module: it says which gradients there are
        return self

    def _ready(self, inputs: Tensor, context: Tensor | None) -> tuple[Any, Tensor]:
        """zuko's transform and the inputs at the shape of the outputs."""
        if inputs.shape[-1] != self.dim:
            raise ValueError(f"inputs: expected {self.dim} columns, got {inputs.shape[-1]}")
        if not self.context or context is None:
            return self.lazy(None), inputs
        lead = torch.broadcast_shapes(inputs.shape[:-1], context.shape[:-1])
        return self.lazy(context), inputs.expand(*lead, -1)

    def _map(self, inputs: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        transform, inputs = self._ready(inputs, context)
        if not inputs.numel():  # an ODE solver has no largest error among none
            return inputs, inputs.sum(-1)
        outputs, logdet = (transform.inv if inverse else transform).call_and_ladj(inputs)
        return outputs, logdet.expand(outputs.shape[:-1])

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(inputs, context, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(inputs, context, inverse=True)


class WholeLine(nn.Module):
    """A constructor of zuko's increasing univariate transforms whose inverse is searched for on the whole line.

    Args:
        univariate: the constructor: a function of parameters, or a module.
    """

    def __init__(self, univariate: Callable[..., TorchTransform]) -> None:
        super().__init__()
        self.univariate = univariate

    def forward(self, *parameters: Tensor) -> TorchTransform:
        return _Searched(self.univariate(*parameters))


class SharpEdges(nn.Module):
    """A constructor of zuko's Bernstein polynomials without the gaps at their edges.

    zuko's polynomial gives way to the identity at 1e-6 of the interval from its edges, where it has already moved by as
    much: what lies in the jump is nobody's image. Here the place is at the last digit.
    """

    def __init__(self, univariate: Callable[..., TorchTransform]) -> None:
        super().__init__()
        self.univariate = univariate

    def forward(self, parameters: Tensor) -> TorchTransform:
        made = self.univariate(parameters)
        cast(Any, made).eps = torch.finfo(parameters.dtype).eps
        return made


class _Searched(TorchTransform):
    """An increasing univariate transform, its inverse by `search`."""

    domain = codomain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, own: TorchTransform) -> None:
        super().__init__()
        self.own = own

    def _call(self, x: Tensor) -> Tensor:
        return self.own(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return search(self.call_and_ladj, y)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return cast(Any, self.own).call_and_ladj(x)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.call_and_ladj(x)[1]


Slope = Callable[[Tensor], tuple[Tensor, Tensor]]  # x -> f(x), log f'(x), elementwise


def search(function: Slope, y: Tensor) -> Tensor:
    """x with f(x) = y for an increasing f, elementwise and to the last digit; NaN where none is within ±1e7.

    Gradients in y and in whatever f depends on are those of the implicit function.
    """

    def with_slope(x: Tensor) -> tuple[Tensor, Tensor]:
        value, log_slope = function(x)
        return value, torch.exp(log_slope)

    with torch.no_grad():
        low, high = _bracket(function, y, -1.0), _bracket(function, y, +1.0)
        x = roots.search(with_slope, y, low, high, _TURNS, early=True)
    if not torch.is_grad_enabled():
        return x
    value, log_slope = function(x)
    # Where f has no slope, or there is no x, the step is not a number and neither is x.
    return x - (value - y) * torch.exp(-log_slope).detach()


def _bracket(function: Slope, y: Tensor, side: float) -> Tensor:
    """A point below (side -1) or above (+1) the solution; NaN where there is none."""
    edge = torch.full_like(y, side * _BRACKET)
    beyond = torch.ones_like(y, dtype=torch.bool)
    for _ in range(math.ceil(math.log2(_FARTHEST / _BRACKET))):
        beyond = ~(side * (function(edge)[0] - y) >= 0)
        if not bool(beyond.any()):
            return edge
        edge = torch.where(beyond, 2 * edge, edge)
    return torch.where(beyond, torch.nan, edge)


class Integrated(nn.Module):
    """A `zuko.flows.continuous.FFJTransform` whose ODE is solved to a tolerance that fits the precision.

    Raises:
        ValueError: the vector field is not finite somewhere on the way.
    """

    def __init__(self, lazy: nn.Module) -> None:
        super().__init__()
        self.lazy = lazy

    def forward(self, context: Tensor | None = None) -> TorchTransform:
        made = self.lazy(context)
        dtype = next(self.lazy.parameters()).dtype
        made.atol = made.rtol = TOLERANCES.get(dtype, TOLERANCES[torch.float32])
        made.f = partial(_finite, made.f)
        return made


def _finite(field: Callable[[Tensor, Tensor], Tensor], time: Tensor, x: Tensor) -> Tensor:
    value = field(time, x)
    if not bool(torch.isfinite(value).all()):  # zuko would make ever smaller steps for ever
        raise ValueError("ODE: expected a finite vector field; inputs, context or weights are not finite")
    return value
