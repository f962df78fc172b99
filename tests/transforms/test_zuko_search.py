"""What the families of zuko are made of that needs no zuko: the search for an inverse, and Gaussianization."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from scipy import special
from torch import Tensor

from sbiflow.families import FAMILIES, FlowConfig, build_transform
from sbiflow.transforms.gaussianize import Gaussianize, normal_quantile
from sbiflow.transforms.zuko_adapter import search
from tests.transforms.case import generator

NAMES = [name for name, family in FAMILIES.items() if family.needs == "zuko"]


def test_without_zuko_a_family_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("zuko", *(name for name in sys.modules if name.startswith("zuko."))):
        monkeypatch.setitem(sys.modules, module, None)
    assert len(NAMES) == 6
    for name in NAMES:
        with pytest.raises(ValueError, match=r'pip install "sbiflow\[zuko\]"'):
            build_transform(FlowConfig(name, layers=2), (False, False), 2)


def cubic(x: Tensor) -> tuple[Tensor, Tensor]:
    return x**3 + 1e-3 * x, torch.log(3 * x**2 + 1e-3)


def hyperbolic(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tanh(x), torch.log1p(-(torch.tanh(x) ** 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_search_finds_the_last_digit_near_and_far(dtype: torch.dtype) -> None:
    x = torch.cat([torch.logspace(-8, 5, 200), -torch.logspace(-8, 5, 200), torch.zeros(1)]).to(dtype)
    found = search(cubic, cubic(x)[0])
    torch.testing.assert_close(found, x, rtol=20 * torch.finfo(dtype).eps, atol=1e-30)


def test_search_finds_a_step_that_newton_leaves() -> None:
    y = torch.linspace(-0.999999, 0.999999, 401, dtype=torch.float64)
    torch.testing.assert_close(search(hyperbolic, y), torch.atanh(y), rtol=1e-9, atol=1e-12)


def test_search_says_where_there_is_nothing_to_find() -> None:
    found = search(hyperbolic, torch.tensor([0.5, 2.0, -1.5, math.nan, math.inf], dtype=torch.float64))
    assert torch.isfinite(found).tolist() == [True, False, False, False, False]


def test_the_gradient_of_a_search_is_the_implicit_functions() -> None:
    y = torch.tensor([0.3, -2.0, 70.0], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([1.5, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    found = search(lambda x: (a * x, torch.log(a).expand_as(x)), y)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), (y, a)), (1 / a, -y / a**2))


def test_normal_quantiles_in_the_tail_against_scipy() -> None:
    target = -torch.logspace(-0.15, 12, 200, dtype=torch.float64)
    expected = torch.from_numpy(special.ndtri_exp(target.numpy()))
    torch.testing.assert_close(normal_quantile(target), expected, rtol=1e-11, atol=1e-11)


def test_gaussianize_against_the_formula_with_scipy() -> None:
    """Where the formula has digits, which on either side is up to eight standard deviations; float64."""
    a, b = (torch.randn(4, generator=generator(seed), dtype=torch.float64) / 2 for seed in (1, 2))
    x = torch.linspace(-6, 0, 200, dtype=torch.float64)
    z = x[:, None] * torch.exp(a / (1 + a.abs() / 5)) + b
    for sign in (1.0, -1.0):
        y, logdet = Gaussianize(sign * b, a).call_and_ladj(sign * x)
        expected = sign * torch.from_numpy(special.ndtri(special.ndtr(z.numpy()).mean(-1)))
        keep = expected.abs() < 8
        torch.testing.assert_close(y[keep], expected[keep], rtol=1e-9, atol=1e-9)
        slope = torch.gradient(expected, spacing=(sign * x,), edge_order=2)[0]
        torch.testing.assert_close(logdet.exp()[keep], slope[keep], rtol=1e-2, atol=1e-3)
