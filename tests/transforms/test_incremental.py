"""The masked network degree by degree: the same numbers as a pass over known inputs, whatever the blocks and parts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sbiflow.transforms import incremental
from sbiflow.transforms.autoregressive import MaskedAutoregressive
from sbiflow.transforms.elementwise import Affine, CircularSpline, Spline, elementwise_for
from sbiflow.transforms.incremental import grid, parts
from sbiflow.transforms.networks import MaskedNet
from tests.transforms.case import randomise
from tests.transforms.products import multiplications

NETS = {  # widths, size, C, hidden, blocks
    "as usual": ([1, 1, 1, 1, 1], 2, 3, 24, 2),
    "two features for a phase": ([2, 1, 2, 1], 7, 3, 22, 1),
    "one dimension": ([1], 2, 3, 8, 2),
    "one phase": ([2], 5, 3, 8, 1),
    "a unit per dimension": ([1, 1, 2, 1, 1, 1], 2, 3, 6, 2),
    "no blocks": ([1, 1, 1, 1], 3, 3, 10, 0),
    "no context": ([1, 1, 1, 1], 3, 0, 13, 3),
}


def net_and_inputs(name: str, draws: int, observations: int) -> tuple[MaskedNet, Tensor, Tensor | None]:
    """A random network in float64, features (draws, B, sum of widths) and contexts (B, C)."""
    widths, size, context, hidden, blocks = NETS[name]
    torch.manual_seed(0)
    net = randomise(MaskedNet(widths, size, context, hidden, blocks).double(), 1.0, seed=3)
    features = torch.randn(draws, observations, sum(widths), dtype=torch.float64)
    return net, features, torch.randn(observations, context, dtype=torch.float64) if context else None


@torch.no_grad()
def in_order(net: MaskedNet, features: Tensor, contexts: Tensor | None) -> Tensor:
    """All outputs (draws, B, D, size) by steps."""
    outputs = features.new_full((*features.shape[:-1], net.dim, net.size), math.nan)
    for steps in parts(net, len(features), contexts, features):
        own, known = features[steps.part].flatten(0, 1).T, []
        for d in range(net.dim):
            found = steps.step(d, known).unflatten(0, steps.shape)
            assert outputs[steps.part][..., d, :].isnan().all()  # no part comes twice
            outputs[(*steps.part, d)] = found
            known = list(own[net.input_ends[d] : net.input_ends[d + 1]])
    return outputs


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("units", [1, 5, 10_000])
@pytest.mark.parametrize("numbers", [1, 900, 2**22])
def test_steps_equal_a_pass(name: str, units: int, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incremental, "_BLOCK", units)
    monkeypatch.setitem(incremental._NUMBERS, "cpu", numbers)
    for draws, observations in ((7, 1), (5, 3), (1, 7), (0, 2), (3, 0)):
        if NETS[name][2] or observations == 1:
            net, features, contexts = net_and_inputs(name, draws, observations)
            expected = net(features, contexts).detach()
            torch.testing.assert_close(in_order(net, features, contexts), expected, rtol=1e-10, atol=1e-10)


def test_masked_weights_are_never_read() -> None:
    net, features, contexts = net_and_inputs("two features for a phase", 4, 2)
    expected = in_order(net, features, contexts)
    masks = [net.entry_mask, *[net.hidden_mask] * (2 * net.blocks), net.exit_mask]
    for layer, mask in zip(incremental._layers(net), masks, strict=True):
        layer.weight.data[mask == 0] = math.nan
    torch.testing.assert_close(in_order(net, features, contexts), expected, rtol=0, atol=0)


def test_an_observation_that_overflows_harms_no_other() -> None:
    net, features, contexts = net_and_inputs("as usual", 4, 3)
    assert contexts is not None
    expected = in_order(net, features, contexts)
    contexts[1] = math.inf
    found = in_order(net, features, contexts)
    assert not found[:, 1].isfinite().any()
    torch.testing.assert_close(found[:, ::2], expected[:, ::2], rtol=0, atol=0)


@pytest.mark.parametrize(("draws", "observations"), [(10_000, 1), (1, 10_000), (100, 100), (3, 4000)])
def test_the_memory_is_bounded(draws: int, observations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(incremental._NUMBERS, "cpu", 2**17)
    net, _, contexts = net_and_inputs("as usual", 1, observations)
    rows = []
    for steps in parts(net, draws, contexts, torch.zeros(())):
        assert steps.inputs.untyped_storage().nbytes() <= 4 * 2**17
        rows.append(math.prod(steps.shape))
    assert sum(rows) == draws * observations
    assert len(rows) <= 4 * sum(rows) * sum(incremental._widths(net)) / 2**17  # nor are the parts too small


@pytest.mark.parametrize("shape", [(5,), (1, 5), (4, 1), (4, 5), (1, 1), (), (3, 4, 5), (3, 1, 5), (3, 1, 1)])
def test_contexts_broadcast(shape: tuple[int, ...]) -> None:
    """Against inputs (4, 5, D) and, where a context has more rows, against a single input."""
    torch.manual_seed(0)
    own = elementwise_for(Affine(), CircularSpline(4), [False, True, False])
    transform = randomise(MaskedAutoregressive(3, 2, own, 12, 1, (1,)).double(), 0.5, seed=3)
    context = torch.randn(*shape, 2, dtype=torch.float64)
    for lead in ((4, 5), ()):
        inputs = torch.randn(*lead, 3, dtype=torch.float64)
        full = torch.broadcast_shapes(lead, shape)
        rows = math.prod(full)
        with torch.no_grad():
            outputs, logdet = transform.inverse(inputs, context)
            each = transform.inverse(
                inputs.expand(*full, 3).reshape(rows, 3), context.expand(*full, 2).reshape(rows, 2)
            )
        assert outputs.shape == (*full, 3) and logdet.shape == full
        torch.testing.assert_close(
            (outputs.reshape(rows, 3), logdet.reshape(rows)), each, rtol=1e-10, atol=1e-10
        )
        again, minus = transform(outputs, context)
        torch.testing.assert_close((again, minus), (inputs.expand(*full, 3), -logdet), rtol=1e-8, atol=1e-8)


def test_one_observation_is_read_once() -> None:
    """Whatever the leading shape: as many draws of one context, or of none."""
    context = torch.randn(1, 1, 2)
    draws, contexts = grid((4, 5), context)
    assert draws == 20 and contexts is not None and contexts.shape == (1, 2)
    assert grid((4, 5), None) == (20, None)
    assert grid((4, 5), torch.zeros(5, 2))[0] == 4 and grid((4, 5), torch.zeros(4, 1, 2))[0] == 1


@pytest.mark.parametrize(("dim", "hidden"), [(15, 256), (5, 50), (2, 64)])
def test_multiplications(dim: int, hidden: int) -> None:
    """What lies below the diagonal of D x D equal blocks, (D - 1) / (2 D) of a dense pass, and a hundredth for units
    that D does not divide and for the observation. Counted, so the gate is exact."""
    transform = MaskedAutoregressive(dim, 10, Affine(), hidden, blocks=2)
    start, context = torch.randn(500, dim), torch.randn(1, 10)
    dense = len(start) * sum(layer.weight.numel() for layer in incremental._layers(transform.net))
    with torch.no_grad():
        count = multiplications(transform.inverse, start, context)
    assert count < ((dim - 1) / (2 * dim) + 0.01) * dense


@pytest.mark.parametrize("own", [Affine(), Spline(4, 3.0)], ids=["affine", "spline"])
@torch.no_grad()
def test_nothing_depends_on_values_that_the_host_would_wait_for(own: Affine | Spline) -> None:
    """Tensors without data: whatever reads one, as .item() does, raises."""
    transform = MaskedAutoregressive(4, 2, own, 12, 1).to("meta")
    outputs, logdet = transform.inverse(torch.zeros(6, 3, 4, device="meta"), torch.zeros(3, 2, device="meta"))
    assert outputs.shape == (6, 3, 4) and logdet.shape == (6, 3) and outputs.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_no_synchronisation_on_a_gpu() -> None:
    transform = randomise(MaskedAutoregressive(15, 3, Affine(), 64, 2), 0.5, seed=3)
    inputs, context = torch.randn(50, 15), torch.randn(1, 3)
    expected = transform.inverse(inputs, context)
    transform, on_gpu = transform.cuda(), (inputs.cuda(), context.cuda())
    transform.inverse(*on_gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = transform.inverse(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close([part.cpu() for part in found], list(expected), rtol=1e-3, atol=1e-3)
