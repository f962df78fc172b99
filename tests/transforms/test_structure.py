"""Anchors and symmetries: densities that are shared among copies, draws that are spread over them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from itertools import product

import pytest
import torch
from scipy import stats
from torch import Tensor

from sbiflow.embedding import EmbeddingConfig
from sbiflow.families import FlowConfig
from sbiflow.flows import ConditionalFlow
from sbiflow.structure import Anchor, Structure
from sbiflow.transforms.bounded import wrap
from sbiflow.transforms.structure import Fold, Spread, known_transform
from tests.transforms.case import randomise

# columns: a, b exchangeable with c, d attached; t anchored; phi a phase of two copies, anchored with a slope
PERIODIC = (False, False, False, False, False, True)
ALL = Structure(
    anchors=(Anchor(4, 0, 1), Anchor(5, 2, slopes=((4, 3),))), swap=((0, 2), (1, 3)), turns=((5, 2),)
)
X_SHAPE = (6,)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def base(rows: int, seed: int = 0) -> Tensor:
    z = torch.randn(rows, 6, generator=generator(seed), dtype=torch.float64)
    z[:, 5] = wrap(2.0 * z[:, 5])
    return z


def flow(structure: Structure = ALL, start: str = "prior", scale: float = 0.3) -> ConditionalFlow:
    torch.manual_seed(0)
    config = FlowConfig(layers=3, hidden=12, blocks=1, bins=5, linear=False, start=start, structure=structure)
    made = ConditionalFlow(config, EmbeddingConfig("mlp", 3, 8, 0), PERIODIC, X_SHAPE).double()
    return randomise(made, scale, seed=1).requires_grad_(False)  # type: ignore[return-value]


def copies(z: Tensor) -> list[Tensor]:
    """All four equivalent points of z (n, 6)."""
    swapped = z[:, [1, 0, 3, 2, 4, 5]]
    turn = torch.tensor([0.0, 0, 0, 0, 0, math.pi], dtype=z.dtype)
    found = []
    for one, times in product((z, swapped), (0, 1)):
        other = one + times * turn
        other[:, 5] = wrap(other[:, 5])
        found.append(other)
    return found


def test_the_density_is_the_same_at_every_copy() -> None:
    made, z, x = flow(), base(200), torch.randn(200, 6, generator=generator(1), dtype=torch.float64)
    values = torch.stack([made.log_prob(one, x) for one in copies(z)])
    assert torch.allclose(values, values[:1].expand_as(values), atol=1e-9, rtol=1e-9)


def test_draws_have_the_density_that_log_prob_says_and_all_copies_are_drawn() -> None:
    made, x = flow(), torch.randn(1, 6, generator=generator(1), dtype=torch.float64)
    z, log_q = made.sample_and_log_prob(x, 4000, generator(2))
    gap = (made.log_prob(z[:, 0], x) - log_q[:, 0]).abs()
    assert float(gap.max()) < 1e-6, gap.max()
    for side in (z[:, 0, 0] > z[:, 0, 1], z[:, 0, 5] > 0):
        # 4,000 fair coins; the phase's density is symmetric under the half turn: false alarms 1e-6 each
        assert stats.binomtest(int(side.sum()), 4000).pvalue > 1e-6


def test_the_density_integrates_to_one_over_all_copies() -> None:
    """By importance sampling from the prior of z; without sharing it would be four."""
    made, x = flow(scale=0.05), torch.zeros(1, 6, dtype=torch.float64)
    x[0, 1] = -0.2  # log-scale of the anchor
    z = torch.randn(400_000, 6, generator=generator(3), dtype=torch.float64) * 1.5
    z[:, 5] = math.pi * (2 * torch.rand(len(z), generator=generator(4), dtype=torch.float64) - 1)
    log_p = stats.norm.logpdf(z[:, :5].numpy(), scale=1.5).sum(-1) - math.log(2 * math.pi)
    weight = torch.exp(made.log_prob(z, x) - torch.from_numpy(log_p))
    error = float(weight.std()) / math.sqrt(len(weight))
    assert error < 0.02 and abs(float(weight.mean()) - 1) < 5 * error


def test_an_anchor_moves_and_scales_the_whole_density() -> None:
    """With a context that the network does not see, only location and scale move: q'((z - l) / s) / s."""
    structure = Structure((Anchor(4, 0, 1), Anchor(5, 2)))
    known = known_transform(structure, PERIODIC)
    assert known is not None and known.columns == [0, 1, 2]
    z = base(50)
    there, logdet = known(z, torch.tensor([1.5, math.log(0.1), 2.0], dtype=torch.float64))
    assert torch.allclose(there[:, 4], (z[:, 4] - 1.5) / 0.1)
    assert torch.allclose(there[:, 5], wrap(z[:, 5] - 2.0))
    assert torch.allclose(logdet, torch.full_like(logdet, -math.log(0.1)))
    assert torch.equal(there[:, :4], z[:, :4])


def test_a_regression_starts_from_the_departures() -> None:
    """z = estimate + 0.01 noise: the start is as narrow as the estimate, wherever it is."""
    structure = Structure((Anchor(0, 0, 1),))
    config = FlowConfig(layers=2, hidden=8, structure=structure)
    made = ConditionalFlow(config, EmbeddingConfig("mlp", 3, 8, 0), (False, False), (3,))
    z = torch.randn(3000, 2, generator=generator(0))
    error = 0.01 * (1 + torch.rand(3000, generator=generator(1)))
    estimate = z[:, 0] + error * torch.randn(3000, generator=generator(2))
    x = torch.stack([estimate, error.log(), torch.zeros(3000)], -1)
    made.fit(z, x, x)
    gain = float((made.log_prob(z, x) - made.base_log_prob(z)).mean().detach())
    assert abs(gain + math.log(0.015)) < 0.1  # ln(1 / sd) within the spread of the errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folding_is_accurate_at_its_edges(dtype: torch.dtype) -> None:
    """Nearly equal, equal and very different columns, and the far tail."""
    fold = Fold(2, ((0,), (1,)))
    gaps = torch.tensor([0.0, 1e-30, 1e-6, 1e-3, 0.1, 1.0, 5.0, 9.0], dtype=dtype)
    z = torch.stack([gaps / 2, -gaps / 2], -1)
    u, logdet = fold(z)
    back, inverse_logdet = fold.inverse(u)
    assert torch.isfinite(u).all() and torch.isfinite(logdet).all() and torch.isfinite(back).all()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    assert torch.allclose(back[2:], z[2:], atol=tolerance, rtol=tolerance)
    assert torch.allclose(logdet[2:], -inverse_logdet[2:], atol=20 * tolerance, rtol=tolerance)
    far, _ = fold.inverse(torch.tensor([[0.0, -12.0], [0.0, 12.0], [9.0, -9.0]], dtype=dtype))
    assert torch.isfinite(far).all() and (far[:, 0] >= far[:, 1]).all()


def test_folded_pairs_of_normals_are_normal() -> None:
    z = torch.randn(20_000, 2, generator=generator(0), dtype=torch.float64)
    u, _ = Fold(2, ((0,), (1,)))(z)
    for column in u.T.numpy():
        assert stats.kstest(column, "norm").pvalue > 1e-6
    assert stats.pearsonr(*u.T.numpy()).pvalue > 1e-6


def test_spread_leaves_other_columns_alone_and_is_reproducible() -> None:
    z, spread = base(100), Spread(Structure(turns=((5, 3),)), 6)
    out = spread(z, generator(1))
    assert torch.equal(out[:, :5], z[:, :5]) and torch.equal(out, spread(z, generator(1)))
    thirds = wrap(out[:, 5] - z[:, 5]) / (2 * math.pi / 3)
    assert torch.allclose(thirds, thirds.round(), atol=1e-9) and len(set(thirds.round().tolist())) == 3


def test_a_structure_survives_json() -> None:
    assert Structure.from_spec(json.loads(json.dumps(asdict(ALL)))) == ALL
    config = FlowConfig(structure=ALL)
    assert FlowConfig.from_spec(json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Structure(swap=((0,), (1, 2))), "swap"),
        (lambda: Structure(swap=((0,), (0,))), "swap"),
        (lambda: Structure(turns=((5, 1),)), "turns"),
        (lambda: Structure((Anchor(4, 0), Anchor(4, 1))), "anchors"),
        (lambda: Structure((Anchor(0, 0),), swap=((0,), (1,))), "anchors"),
        (lambda: flow(Structure((Anchor(9, 0),))), "columns of theta below 6"),
        (lambda: flow(Structure((Anchor(4, 6),))), "of x below 6"),
        (lambda: flow(Structure(turns=((4, 2),))), r"parameters \[4\]"),
        (lambda: flow(Structure(swap=((0,), (5,)))), r"parameters \[5\]"),
        (lambda: flow(Structure((Anchor(5, 0, 1),))), r"parameters \[5\]"),
        (lambda: flow(Structure((Anchor(5, 0, slopes=((4, 1),)),))), r"parameters \[4\]"),
        (lambda: flow(Structure((Anchor(4, 0, slopes=((3, 1),)),))), r"parameters \[3, 4\]"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()
