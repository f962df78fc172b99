"""The cached one-pass inverse of autoregressive transforms: the same numbers as D passes, at the cost of one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sbiflow.transforms.autoregressive import MaskedAutoregressive
from sbiflow.transforms.elementwise import Affine
from tests.transforms.catalogue import CATALOGUE, build, distance

ROWS = 48


@pytest.mark.parametrize("name", [name for name, case in CATALOGUE.items() if case.triangular])
def test_cached_inverse_equals_the_inverse_by_passes(name: str) -> None:
    case = CATALOGUE[name]
    transform, context = build(case, scale=3.0), case.condition(ROWS, torch.float64, seed=7)
    start = case.base(5 * ROWS, torch.float64, seed=11).view(5, ROWS, -1)
    by_passes, logdet = transform.inverse(start, context)
    with torch.no_grad():
        cached, cached_logdet = transform.inverse(start, context)
    # the sums are taken in another order, and a spline may be steep: see test_catalogue
    assert distance(case, cached, by_passes.detach()).max() < 1e-7
    torch.testing.assert_close(cached_logdet, logdet.detach(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("context", [0, 3])
def test_cached_inverse_costs_one_density_pass(context: int) -> None:
    """Counted multiplications, so the gate is exact: the staircase of masks saves some of one pass."""
    dim, rows = 15, 64
    transform = MaskedAutoregressive(dim, context, Affine(), hidden=128, blocks=2)
    start, condition = torch.randn(rows, dim), torch.randn(rows, context) if context else None
    density = _flops(transform.forward, start, condition)
    with torch.no_grad():
        cached = _flops(transform.inverse, start, condition)
    assert 0.4 * density < cached <= density
    assert _flops(transform.inverse, start, condition) == dim * density


def _flops(direction: Callable, inputs: Tensor, context: Tensor | None) -> int:
    with FlopCounterMode(display=False) as counter:
        direction(inputs, context)
    return counter.get_total_flops()
