"""Transforms with their directions exchanged: the other's numbers, and a draw for one pass of the network."""

from __future__ import annotations

import math

import pytest
import torch
from nflows.transforms.base import InverseTransform, Transform
from torch import Tensor

from sbiflow.families import FlowConfig, build_transform
from sbiflow.transforms.autoregressive import MaskedAutoregressive
from sbiflow.transforms.bounded import wrap
from sbiflow.transforms.composite import Composite
from sbiflow.transforms.elementwise import Affine, CircularSpline
from sbiflow.transforms.inverse import Inverse, TurnedSpline
from tests.transforms.case import randomise
from tests.transforms.products import multiplications


class Fitted(Transform):
    """Takes its scale from data, as ActNorm does."""

    def initialise(self, inputs: Tensor, context: Tensor | None) -> None:
        raise NotImplementedError


@torch.no_grad()
def test_an_inverse_is_nflows_inverse_of_the_same() -> None:
    torch.manual_seed(0)
    inner = randomise(MaskedAutoregressive(4, 3, Affine(), 16, 1), 1.0, seed=1).double()
    u, context = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    for direction in ("forward", "inverse"):
        own, theirs = (getattr(kind(inner), direction)(u, context) for kind in (Inverse, InverseTransform))
        assert all(torch.equal(a, b) for a, b in zip(own, theirs, strict=True))
    twice = Inverse(Inverse(inner))(u, context)
    assert all(torch.equal(a, b) for a, b in zip(twice, inner(u, context), strict=True))


def test_a_transform_that_waits_for_data_is_refused() -> None:
    with pytest.raises(ValueError, match="needs no data to start, got Fitted"):
        Inverse(Composite([MaskedAutoregressive(2, 0, Affine(), 8, 1), Fitted()]))


@torch.no_grad()
def test_a_draw_of_the_family_costs_a_density_pass_of_maf() -> None:
    """Counted multiplications: what is dear in one family is cheap in the other, and the other way round."""
    sizes, rows = {"layers": 3, "hidden": 64, "linear": False}, (32, 12)
    iaf, maf = (build_transform(FlowConfig(name, **sizes), (False,) * 12, 5) for name in ("iaf", "maf"))
    start, context = torch.randn(rows), torch.randn(32, 5)
    assert multiplications(iaf.inverse, start, context) == multiplications(maf, start, context)
    assert multiplications(iaf, start, context) == multiplications(maf.inverse, start, context)


def test_the_turned_spline_turns_after_its_spline() -> None:
    """Written out with the circular spline at shift zero; and it moves the density where that of the base is flat."""
    dice = torch.Generator().manual_seed(0)
    params = torch.randn(50, TurnedSpline(5).size, generator=dice, dtype=torch.float64)
    phase = math.pi * (2 * torch.rand(50, generator=dice, dtype=torch.float64) - 1)
    flat = params.clone()
    flat[:, -1] = 0
    straight, logdet = CircularSpline(5)(phase, flat)
    outputs, own = TurnedSpline(5)(phase, params)
    torch.testing.assert_close(outputs, wrap(straight + params[:, -1]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(own, logdet, rtol=1e-12, atol=1e-12)
    back, negative = TurnedSpline(5)(outputs, params, inverse=True)
    assert float(wrap(back - phase).abs().max()) < 1e-10
    torch.testing.assert_close(negative, -own, rtol=1e-8, atol=1e-8)
