"""Families that zuko has and this project has not, through its transforms: `pip install "sbiflow[zuko]"`.

Each layer is one of zuko's, between the same linear maps as every other family's; see transforms/zuko_adapter.py for
what differs from zuko's own stacks. Sizes: `hidden` and `blocks + 1` hidden layers for every network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from nflows.transforms.base import Transform
from torch import Tensor, nn

from sbiflow.families.family import Family, Flags, Layer, stacked
from sbiflow.optional import require
from sbiflow.transforms.gaussianize import LIMIT, Gaussianize
from sbiflow.transforms.zuko_adapter import Integrated, SharpEdges, WholeLine, ZukoTransform

if TYPE_CHECKING:
    from sbiflow.families.config import FlowConfig

_SIGNAL = 16  # numbers by which a conditioner steers a monotone network
_POLYNOMIALS, _DEGREE, _SLOPE = 3, 4, 1e-3  # of a sum of squares
_COMPONENTS = 8  # of a mixture of normal distribution functions
_SHARE = 0.5  # of the mixture's variance that every component has at the start
_APART = 2e-3  # between polynomials that would be equal, and stay so, if they started so


def _zuko(module: str) -> Any:
    try:
        return require(f"zuko.{module}", extra="zuko")
    except ImportError as error:
        raise ValueError(f"this flow family is zuko's: {error}") from None


def _widths(config: FlowConfig) -> list[int]:
    return [config.hidden] * (config.blocks + 1)


def _start(lazy: Any, dim: int, constants: Sequence[Tensor]) -> Any:
    """Let every column's map have these parameters before training, whatever the conditions."""
    with torch.no_grad():
        if hasattr(lazy, "hyper"):
            lazy.hyper[-1].weight.zero_()
            lazy.hyper[-1].bias.copy_(torch.cat([value.flatten() for value in constants]).repeat(dim))
        else:  # one column and no context: no network
            for own, value in zip(lazy.phi, constants, strict=True):
                own.copy_(value.expand_as(own))
    return lazy


def _autoregressive(
    config: FlowConfig, dim: int, context: int, univariate: Any, constants: Sequence[Tensor]
) -> Transform:
    """Every column by a univariate map, given those before it."""
    lazy = _zuko("flows.autoregressive").MaskedAutoregressiveTransform(
        dim,
        context,
        univariate=univariate,
        shapes=[value.shape for value in constants],
        hidden_features=_widths(config),
    )
    return ZukoTransform(_start(lazy, dim, constants), dim, context)


def _naf(config: FlowConfig, flags: Flags, context: int, index: int) -> Transform:
    dim = len(flags)
    own = _zuko("flows.neural").MNN(_SIGNAL, stack=dim, hidden_features=_widths(config))
    last = own.network[-1]
    with torch.no_grad():  # no identity, but the line through its values at -2 and 2 is
        low, high = (own.f(torch.zeros(dim, _SIGNAL), torch.full((dim,), x)) for x in (-2.0, 2.0))
        slope = (high - low)[:, None] / 4
        last.bias.sub_((low + high)[:, None] / 2).div_(slope)
        last.weight.div_(slope[..., None])
    return _autoregressive(config, len(flags), context, WholeLine(own), [torch.zeros(_SIGNAL)])


def _unaf(config: FlowConfig, flags: Flags, context: int, index: int) -> Transform:
    own = _zuko("flows.neural").UMNN(_SIGNAL, stack=len(flags), hidden_features=_widths(config))
    nn.init.zeros_(own.integrand[-1].weight)  # an integrand of one: the identity
    nn.init.zeros_(own.integrand[-1].bias)
    signal = 1e-2 * torch.randn(_SIGNAL)  # a weight of zero and a signal of zero would keep each other there
    return _autoregressive(config, len(flags), context, WholeLine(own), [signal, torch.zeros(())])


def _sospf(config: FlowConfig, flags: Flags, context: int, index: int) -> Transform:
    own = partial(_zuko("flows.polynomial").ShiftedSOSPTransform, slope=_SLOPE)
    coefficients = _APART * torch.linspace(-1, 1, _POLYNOMIALS)[:, None].repeat(1, _DEGREE + 1)
    coefficients[:, 0] = math.sqrt(1 - _SLOPE) - 1  # a slope of one at zero
    return _autoregressive(config, len(flags), context, WholeLine(own), [coefficients, torch.zeros(())])


def _bpf(config: FlowConfig, flags: Flags, context: int, index: int) -> Transform:
    own = partial(_zuko("transforms").BoundedBernsteinTransform, bound=config.half_width)
    return _autoregressive(
        config, len(flags), context, WholeLine(SharpEdges(own)), [torch.zeros(2 * config.bins)]
    )


def _gf(config: FlowConfig, flags: Flags, context: int, index: int) -> Transform:
    """A rotation, but for the first layer, and every column by its own map: zuko's, without its bounds."""
    dim, lazy = len(flags), _zuko("lazy")
    own = _zuko("flows.gaussianization").ElementWiseTransform(
        dim,
        context,
        univariate=WholeLine(Gaussianize),
        shapes=[(_COMPONENTS,)] * 2,
        **({"hidden_features": _widths(config)} if context else {}),
    )
    own = _start(own, dim, _standard_mixture())
    if index and dim > 1:
        turn = lazy.UnconditionalTransform(_zuko("transforms").RotationTransform, A=torch.randn(dim, dim))
        own = lazy.LazyComposedTransform(turn, own)
    return ZukoTransform(own, dim, context)


def _standard_mixture() -> list[Tensor]:
    """b and a of a mixture that is nearly standard normal (mean 0, variance 1), so that the map is nearly the identity.

    Equal components would be so exactly, have equal gradients, and remain equal.
    """
    mean = torch.special.ndtri((torch.arange(_COMPONENTS) + 0.5) / _COMPONENTS)
    mean = mean * torch.sqrt((1 - _SHARE) / mean.square().mean())
    log_slope = -0.5 * math.log(_SHARE)
    raw = log_slope / (1 - log_slope / LIMIT)  # before the soft bound
    return [-mean * math.exp(log_slope), torch.full((_COMPONENTS,), raw)]


def _ffjord(config: FlowConfig, flags: Flags, context: int, index: int) -> Transform:
    dim = len(flags)
    # zuko's own activation has a kink in its slope, at which a solver of order five goes in very small steps
    own = _zuko("flows.continuous").FFJTransform(
        dim, context, hidden_features=_widths(config), activation=nn.SiLU
    )
    nn.init.zeros_(own.ode[-1].weight)
    nn.init.zeros_(own.ode[-1].bias)
    return ZukoTransform(Integrated(own), dim, context)


def _family(layer: Layer, reverses: bool = True, starts_as_prior: bool = True) -> Family:
    return Family(
        stacked(layer, reverses), phases=False, one_graph=False, starts_as_prior=starts_as_prior, needs="zuko"
    )


ZUKO: dict[str, Family] = {
    "naf": _family(_naf, starts_as_prior=False),
    "unaf": _family(_unaf),
    "sospf": _family(_sospf),
    "bpf": _family(_bpf),
    "gf": _family(_gf, reverses=False, starts_as_prior=False),
    "ffjord": _family(_ffjord, reverses=False),
}
"""Neural autoregressive flow (Huang et al. 2018, arXiv 1804.00779), its unconstrained kind (UMNN; Wehenkel & Louppe
2019, 1908.05164), sum-of-squares polynomials (Jaini et al. 2019, 1905.02325), Bernstein polynomials (Arpogaus et al.
2022, 2204.13939), Gaussianization (Meng et al. 2020, 2003.01941), FFJORD (Grathwohl et al. 2018, 1810.01367)."""
