"""Glow: its convolutions against torch's, squeeze and levels by hand, and the whole with and without its networks."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, silu

from sbiflow.families import FlowConfig, build_transform
from sbiflow.families.glow import glow
from sbiflow.transforms.composite import Composite
from sbiflow.transforms.convolution import Convolution
from sbiflow.transforms.elementwise import Affine
from sbiflow.transforms.glow import SignalCoupling, SignalNet, windows
from sbiflow.transforms.linear import Permutation
from sbiflow.transforms.normalise import ActNorm
from sbiflow.transforms.scaling import Scaling
from sbiflow.transforms.squeeze import MultiScale, Squeeze
from tests.transforms.case import generator, randomise
from tests.transforms.test_catalogue import jacobian

CONFIG = FlowConfig("glow", layers=2, hidden=12, blocks=1)


def signals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def small(channels: int, length: int, context: int) -> torch.nn.Module:
    """Two blocks a level, with parameters of the size that training leads to."""
    made = glow(channels, length, CONFIG, context)
    for parameter in randomise(made, 1.0, seed=4).parameters():
        parameter.data *= 0.4
    return made.double()


# --- parts


def test_windows_are_a_convolution() -> None:
    for length, width in product((1, 2, 3, 8), (1, 3)):
        signal, kernel = signals(5, length, 4), signals(6, 4, width)
        weight = kernel.permute(0, 2, 1).flatten(
            1
        )  # of the first neighbour, of the position, of the last one
        found = windows(signal, width) @ weight.T
        expected = conv1d(signal.transpose(1, 2), kernel, padding=width // 2).transpose(1, 2)
        torch.testing.assert_close(found, expected)


def test_the_network_is_three_convolutions() -> None:
    """With one block and a context, by torch's conv1d; each position adds its own part of the context."""
    net = randomise(SignalNet(2, 3, 5, context=4, hidden=6, blocks=1), 1.0, seed=1).double()
    signal, context = signals(7, 5, 2), signals(7, 4, seed=1)

    def convolve(h: Tensor, weight: Tensor) -> Tensor:
        kernel = weight.unflatten(1, (3, -1)).transpose(1, 2)
        return conv1d(h.transpose(1, 2), kernel, padding=1).transpose(1, 2)

    own = (context @ net.context.weight.T).reshape(7, 2, 5, 6)
    h = convolve(signal, net.entry.weight) + net.field + own[:, 0]
    inner = convolve(silu(h), net.first[0].weight) + net.first[0].bias + own[:, 1]
    h = h + silu(inner) @ net.second[0].weight.T + net.second[0].bias
    torch.testing.assert_close(net(signal, context), convolve(silu(h), net.exit.weight) + net.exit.bias)


def test_the_network_drops_units_in_training_only() -> None:
    net = randomise(SignalNet(2, 3, 4, context=0, hidden=16, blocks=1, dropout=0.5), 1.0, seed=1).double()
    signal = signals(6, 4, 2)
    assert not torch.equal(net.train()(signal), net(signal))
    assert torch.equal(net.eval()(signal), net(signal))


def test_squeeze_makes_neighbours_channels() -> None:
    a, b = torch.arange(4.0), 10 + torch.arange(4.0)
    outputs, _ = Squeeze(2, 4)(torch.cat([a, b]))
    assert outputs.view(4, 2).tolist() == [[0, 2], [1, 3], [10, 12], [11, 13]]
    for channels, length in ((1, 3), (0, 2)):
        with pytest.raises(ValueError, match=f"an even length, got {channels} channels of length {length}"):
            Squeeze(channels, length)


def test_levels_pass_half_of_their_columns_on() -> None:
    """Scalings by 2, 3 and 5 of each level's columns: the first two are reached by all, the last four by one."""
    scalings = []
    for dim, factor in ((8, 2.0), (4, 3.0), (2, 5.0)):
        scaling = Scaling(dim, range(dim), 0, 4, 0, limit=1e15).double()
        scaling.params.exit.data.fill_(math.log(factor))
        scalings.append(scaling)
    levels = MultiScale(scalings)
    ones = torch.ones(3, 8, dtype=torch.float64)
    outputs, logdet = levels(ones)
    torch.testing.assert_close(outputs, ones * torch.tensor([30, 30, 6, 6, 2, 2, 2, 2]))
    torch.testing.assert_close(logdet, outputs.log().sum(-1))
    torch.testing.assert_close(levels.inverse(outputs)[0], ones)
    with pytest.raises(ValueError, match="multiple of 4 columns for the levels, got 6"):
        levels(torch.ones(6))
    with pytest.raises(ValueError, match="at least one, got none"):
        MultiScale([])


def test_bad_channels_are_refused() -> None:
    for moved in ([], [2], [0, 0]):
        with pytest.raises(ValueError, match=r"distinct channels of 0\.\.1"):
            SignalCoupling(2, 4, moved, 0, Affine(), 8, 1)


# --- the whole


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 6, 7, 8])
def test_untrained_it_is_the_identity(dim: int) -> None:
    made = build_transform(CONFIG, (False,) * dim, context=3).double()
    z, context = signals(9, dim), signals(9, 3, seed=1)
    outputs, logdet = made(z, context)
    torch.testing.assert_close(outputs, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logdet, torch.zeros(9).double(), rtol=0, atol=1e-9)


def test_without_networks_it_is_the_linear_map_of_its_levels() -> None:
    """Zero networks and one block: scales and 1x1 convolutions of the channels, written out as matrices over (2, 4) ->
    (4, 2) -> half -> (4, 1); the log-determinant counts each channel's as often as it has positions."""
    made = glow(2, 4, FlowConfig("glow", layers=1, hidden=4), 0).double()
    levels = next(part for part in made.modules() if isinstance(part, MultiScale))
    matrices, total = [], 0.0
    for level, length in zip(levels.levels, (2, 1), strict=True):
        _, norm, convolution, _ = level.transforms
        assert isinstance(norm, ActNorm) and isinstance(convolution, Convolution)
        randomise(norm, 0.5, seed=length)
        convolution.params.exit.data = 0.5 * signals(len(convolution.params.exit), seed=length)
        channels = torch.eye(4, dtype=torch.float64)
        one = Convolution(4, 1).double()  # the same convolution of a signal of length one
        one.load_state_dict(convolution.state_dict())
        shift = one(torch.zeros(4).double())[0]
        mixing = (one(channels)[0] - shift).T
        matrix = mixing @ torch.diag(norm.log_scale.exp())
        matrices.append((matrix, mixing @ norm.shift + shift))
        total += length * torch.linalg.slogdet(matrix)[1]
    z = signals(5, 8)
    first = z.view(5, 2, 2, 2).transpose(2, 3).reshape(5, 4, 2)  # (n, channel, position)
    first = matrices[0][0] @ first + matrices[0][1][:, None]
    second = first[:, :2].reshape(5, 4) @ matrices[1][0].T + matrices[1][1]
    # one signal (2, 2) squeezed to (4, 1): channel 2c + j at position 0 is channel c at j
    expected = torch.cat([second, first[:, 2:].flatten(1)], -1)
    outputs, logdet = levels(z)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(logdet, total.expand(5))
    assert torch.equal(made(z)[0].sort(-1)[0], outputs.sort(-1)[0])


@pytest.mark.parametrize(("channels", "length"), [(1, 4), (1, 8), (1, 12), (2, 4), (3, 8)])
def test_several_levels_of_two_blocks(channels: int, length: int) -> None:
    """Log-det against autograd's and round trip, float64, with and without a context."""
    dim = channels * length
    for context in (None, signals(6, 3, seed=1)):
        made, z = small(channels, length, 0 if context is None else 3), signals(6, dim)
        matrix, logdet = jacobian(made, z, context)
        torch.testing.assert_close(logdet, torch.linalg.slogdet(matrix)[1], rtol=0, atol=1e-8)
        outputs, logdet = made(z, context)
        again, back = made.inverse(outputs, context)
        torch.testing.assert_close(again, z, rtol=0, atol=1e-9)
        torch.testing.assert_close(back, -logdet, rtol=0, atol=1e-9)
        assert float(logdet.detach().std()) > 0.01


def test_levels_follow_from_the_columns() -> None:
    """Factors of two; an odd number of columns is as many channels of length one, without a squeeze."""
    for dim, levels, squeezes in ((1, 1, 0), (2, 1, 1), (3, 1, 0), (6, 1, 1), (8, 3, 3), (12, 2, 2)):
        made = build_transform(CONFIG, (False,) * dim, context=3)
        (scales,) = (part for part in made.modules() if isinstance(part, MultiScale))
        assert len(scales.levels) == levels
        assert sum(isinstance(part, Squeeze) for part in made.modules()) == squeezes
        couplings = [part for part in made.modules() if isinstance(part, SignalCoupling)]
        assert len(couplings) == CONFIG.layers * levels
        shapes = {(part.channels, part.length) for part in couplings}
        if dim % 2:
            assert shapes == {(dim, 1)}
    with pytest.raises(ValueError, match="at least 2 layers for 4 parameters, got 1"):
        build_transform(FlowConfig("glow", layers=1), (False,) * 4, context=2)


def test_every_norm_starts_from_what_reaches_it() -> None:
    made, z = small(1, 8, 3), 3 + 2 * signals(500, 8)
    context, reached = signals(500, 3, seed=1), []
    made.transforms[0].initialise(z, context)
    norms = [part for part in made.modules() if isinstance(part, ActNorm)]
    for norm in norms:
        assert bool(norm.initialised)
        norm.register_forward_hook(lambda part, _, output: reached.append((part, output[0])))
    made(z, context)
    assert len(reached) == len(norms) == 6
    for part, outputs in reached:
        values = outputs.unflatten(-1, (-1, part.length)).transpose(0, 1).flatten(1)
        torch.testing.assert_close(values.mean(1), torch.zeros(len(values)).double(), rtol=0, atol=1e-9)
        torch.testing.assert_close(values.std(1, correction=0), torch.ones(len(values)).double())


def test_what_stands_for_the_convolutions() -> None:
    for linear, mixing, kind in ((True, "lu", Convolution), (True, "permutation", Permutation)):
        made = glow(1, 4, FlowConfig("glow", layers=3, hidden=8, linear=linear, mixing=mixing), 0)
        (scales,) = (part for part in made.modules() if isinstance(part, MultiScale))
        for level in scales.levels:
            kinds = [type(part) for part in level.transforms]
            assert kinds.count(kind) == (3 if kind is Convolution else 1)
    made = glow(1, 4, FlowConfig("glow", layers=3, hidden=8, linear=False), 0)
    bare = Composite([part for part in made.modules() if type(part) in (Convolution, Permutation)])
    assert len(bare.transforms) == 1  # the order of the outputs
