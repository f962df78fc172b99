"""The cached one-pass inverse of autoregressive transforms: the same numbers as D passes, at the cost of one."""

from __future__ import annotations

import pytest
import torch

from sbiflow.transforms.autoregressive import MaskedAutoregressive
from sbiflow.transforms.elementwise import Affine
from tests.transforms.case import build, distance
from tests.transforms.catalogue import CATALOGUE
from tests.transforms.products import multiplications

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
    density = multiplications(transform.forward, start, condition)
    with torch.no_grad():
        cached = multiplications(transform.inverse, start, condition)
    assert 0.4 * density < cached <= density
    assert multiplications(transform.inverse, start, condition) == dim * density


def test_a_density_pass_leaves_out_most_of_the_zeros_of_the_masks() -> None:
    net = MaskedAutoregressive(15, 10, Affine(), hidden=256, blocks=2).net
    start, condition = torch.randn(64, 15), torch.randn(64, 10)
    dense = sum(layer.weight.numel() for layer in net.modules() if isinstance(layer, torch.nn.Linear))
    assert multiplications(net, start, condition) < 0.7 * 64 * dense
