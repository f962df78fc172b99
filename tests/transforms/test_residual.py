"""The conditioners' hand-written pass against their single operations and autograd."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from sbiflow.transforms.networks import MaskedNet, ResidualNet
from sbiflow.transforms.residual import Stairs

NETS: dict[str, Callable[[], tuple[nn.Module, int, int]]] = {
    "masked": lambda: (MaskedNet([1] * 15, 2, 10, 256, 2), 15, 10),
    "masked, phases": lambda: (MaskedNet([1, 2, 1], 3, 4, 50, 1), 4, 4),
    "masked, D = 1, no block": lambda: (MaskedNet([1], 2, 3, 20, 0), 1, 3),
    "masked, no context": lambda: (MaskedNet([1] * 3, 2, 0, 70, 2), 3, 0),
    "masked, a unit per degree": lambda: (MaskedNet([1] * 130, 1, 1, 130, 1), 130, 1),
    "plain": lambda: (ResidualNet(5, 7, 10, 128, 2), 5, 10),
    "plain, no context": lambda: (ResidualNet(5, 7, 0, 40, 2), 5, 0),
}


def made(name: str, dtype: torch.dtype, seed: int = 1) -> tuple[nn.Module, int, int]:
    torch.manual_seed(seed)
    net, inputs, context = NETS[name]()
    for parameter in net.to(dtype).parameters():
        nn.init.normal_(parameter, std=0.2)
    return net, inputs, context


def single(net: nn.Module) -> Callable[..., Tensor]:
    """The net in single operations, as a compiler sees it."""

    def call(x: Tensor, c: Tensor | None) -> Tensor:
        with patch("torch.compiler.is_compiling", return_value=True):
            return net(x, c)

    return call


def values(net: nn.Module, call: Callable[..., Tensor], x: Tensor, c: Tensor | None) -> list[Tensor]:
    """Output and gradients of a weighted sum of it."""
    y = call(x, c)
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).reshape(y.shape)
    wanted = [x, *(() if c is None else (c,)), *net.parameters()]
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), wanted)]


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("one_context", [False, True])
@pytest.mark.parametrize("lead", [(), (7,), (3, 7), (0,)])
@pytest.mark.parametrize("name", NETS)
def test_equals_single_operations_and_autograd(name, lead, one_context, dtype, rtol) -> None:
    net, inputs, features = made(name, dtype)
    x = torch.randn(*lead, inputs, dtype=dtype, requires_grad=True)
    rows = (1,) if one_context and lead else lead
    c = torch.randn(*rows, features, dtype=dtype, requires_grad=True) if features else None
    for own, expected in zip(values(net, net.forward, x, c), values(net, single(net), x, c), strict=True):
        torch.testing.assert_close(
            own, expected, rtol=rtol, atol=rtol * max(1.0, float(expected.abs().sum()))
        )


@pytest.mark.parametrize("name", ["masked, phases", "plain"])
def test_gradients_by_finite_differences(name) -> None:
    net, inputs, features = made(name, torch.float64)
    x = torch.randn(3, inputs, dtype=torch.float64, requires_grad=True)
    c = torch.randn(3, features, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, (x, c))


@pytest.mark.parametrize("name", ["masked", "plain"])
def test_without_gradients_the_values_are_the_same_and_inputs_are_left_alone(name) -> None:
    net, inputs, features = made(name, torch.float32)
    x, c = torch.randn(40, inputs), torch.randn(40, features)
    before = [value.clone() for value in (x, c, *net.parameters())]
    with torch.no_grad():
        assert net(x, c).equal(net(x, c))
        torch.testing.assert_close(net(x, c), single(net)(x, c), rtol=1e-5, atol=1e-5)
    assert all(a.equal(b) for a, b in zip(before, (x, c, *net.parameters()), strict=True))


@pytest.mark.parametrize("name", ["masked, phases", "plain", "plain, no context"])
def test_second_derivatives_by_finite_differences(name) -> None:
    net, inputs, features = made(name, torch.float64)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    x = torch.randn(2, inputs, dtype=torch.float64, requires_grad=True)
    c = torch.randn(2, features, dtype=torch.float64, requires_grad=True) if features else None
    assert torch.autograd.gradgradcheck(net, (x, c) if features else (x,))


@pytest.mark.parametrize("dim, hidden", [(15, 256), (1, 64), (2, 200), (130, 130), (7, 500)])
def test_stairs_cover_what_is_not_zero_and_little_else(dim, hidden) -> None:
    degree = torch.arange(hidden) * dim // hidden
    mask = (degree[None, :] <= degree[:, None]).float()
    stairs, covered, turned = Stairs.of_mask(mask), torch.zeros_like(mask), torch.zeros_like(mask)
    for a, e, k in stairs.rows:
        covered[a:e, :k] += 1
    for a, e, s in stairs.columns:
        turned[s:, a:e] += 1
    for own in (covered, turned):
        assert int(own.max()) == 1 and bool((own >= mask).all())
    widest = max(e - a for a, e, _ in stairs.rows) + hidden // dim + 1
    assert float(covered.sum()) <= float(mask.sum()) + hidden * widest


def test_dropout_goes_by_single_operations() -> None:
    torch.manual_seed(0)
    net = ResidualNet(3, 4, 2, 32, 2, dropout=0.5)
    nn.init.normal_(net.exit.weight)
    x, c = torch.randn(6, 3), torch.randn(6, 2)
    assert not net.train()(x, c).equal(net(x, c))
    assert net.eval()(x, c).equal(net(x, c))
