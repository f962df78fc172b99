"""The cached inverses of autoregressive transforms, without and with gradient: the same numbers as D passes, at the
cost of one."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from sbiflow.transforms.autoregressive import MaskedAutoregressive
from sbiflow.transforms.elementwise import Affine
from tests.transforms.case import Case, build, distance
from tests.transforms.catalogue import CATALOGUE
from tests.transforms.products import multiplications

ROWS = 48
Pair = tuple[Tensor, Tensor]


AUTOREGRESSIVE = [name for name, case in CATALOGUE.items() if isinstance(case.make(), MaskedAutoregressive)]


def inverse_by_passes(transform: MaskedAutoregressive, inputs: Tensor, context: Tensor | None) -> Pair:
    """One dense network pass for each dimension: the definition."""
    outputs = torch.zeros_like(inputs)
    for d in range(inputs.shape[-1]):
        params = transform.net(transform._features(outputs), context)
        values, logdet = transform.elementwise(inputs, params, inverse=True)
        outputs = torch.cat([outputs[..., :d], values[..., d : d + 1], outputs[..., d + 1 :]], -1)
    return outputs, logdet.sum(-1)


def arguments(name: str) -> tuple[MaskedAutoregressive, Tensor, Tensor | None]:
    case = CATALOGUE[name]
    transform, context = build(case, scale=3.0), case.condition(ROWS, torch.float64, seed=7)
    return transform, case.base(5 * ROWS, torch.float64, seed=11).view(5, ROWS, -1), context


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_cached_inverses_equal_the_inverse_by_passes(name: str) -> None:
    transform, start, context = arguments(name)
    with torch.no_grad():
        by_passes, logdet = inverse_by_passes(transform, start, context)
        cached = transform.inverse(start, context)
    # the sums are taken in another order, and a spline may be steep: see test_catalogue
    for outputs, own in (cached, transform.inverse(start, context)):
        assert distance(CATALOGUE[name], outputs, by_passes).max() < 1e-7
        torch.testing.assert_close(own, logdet, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_gradients_of_the_inverse_equal_those_by_passes(name: str) -> None:
    """With respect to base, context and weights; masked weights have none in either."""
    transform, start, context = arguments(name)
    transform = build(CATALOGUE[name], scale=1.0).requires_grad_()
    leaves = [start.requires_grad_(), *([] if context is None else [context.requires_grad_()])]
    leaves += list(transform.parameters())
    weights = torch.randn(start.shape, generator=torch.Generator().manual_seed(1), dtype=start.dtype)
    found = []
    for inverse in (transform.inverse, partial(inverse_by_passes, transform)):
        outputs, logdet = inverse(start, context)
        scalar = (weights * torch.sin(outputs)).sum() + (weights[..., 0] * logdet).sum()
        found.append(torch.autograd.grad(scalar, leaves, allow_unused=True))
    for cached, by_passes in zip(*found, strict=True):
        cached, by_passes = (torch.zeros(()) if g is None else g for g in (cached, by_passes))
        size = 1 + float(by_passes.abs().max())
        assert float((cached - by_passes).abs().max()) < 1e-8 * size


@pytest.mark.parametrize("context", [0, 3])
def test_cached_inverses_cost_one_density_pass(context: int) -> None:
    """Counted multiplications, so the gate is exact: the staircase of masks saves some of one pass."""
    dim, rows = 15, 64
    transform = MaskedAutoregressive(dim, context, Affine(), hidden=128, blocks=2)
    start, condition = torch.randn(rows, dim), torch.randn(rows, context) if context else None
    density = multiplications(transform.forward, start, condition)
    with torch.no_grad():
        cached = multiplications(transform.inverse, start, condition)
    assert 0.4 * density < cached <= density
    assert 0.4 * density < multiplications(transform.inverse, start, condition) <= density


@pytest.mark.parametrize("training", [False, True])
def test_dropout_of_an_inverse_is_that_of_one_network(training: bool) -> None:
    """With dropout a draw and its log-det belong together: the log-det is the Jacobian's of the map that was drawn."""
    transform = build(Case(partial(MaskedAutoregressive, 4, 0, Affine(), 32, 2, (), 0.5), 4)).train(training)
    start = torch.randn(1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, logdet = transform.inverse(start.requires_grad_())
        other, _ = transform.inverse(start)
    assert torch.equal(one, other) != training
    matrix = torch.stack([torch.autograd.grad(one[0, i], start, retain_graph=True)[0][0] for i in range(4)])
    torch.testing.assert_close(torch.linalg.slogdet(matrix)[1], logdet[0].detach(), rtol=1e-9, atol=1e-9)


def test_a_density_pass_leaves_out_most_of_the_zeros_of_the_masks() -> None:
    net = MaskedAutoregressive(15, 10, Affine(), hidden=256, blocks=2).net
    start, condition = torch.randn(64, 15), torch.randn(64, 10)
    dense = sum(layer.weight.numel() for layer in net.modules() if isinstance(layer, torch.nn.Linear))
    assert multiplications(net, start, condition) < 0.7 * 64 * dense
