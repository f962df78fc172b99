"""The limit beside the benchmark's times: operations and bytes counted, rates measured."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear
from torch.utils.flop_counter import FlopCounterMode

from analyses.benchmarks import speed
from analyses.benchmarks.architecture import NFLOWS, OURS, Case
from analyses.benchmarks.comparisons import Job
from analyses.benchmarks.peers import build
from analyses.benchmarks.roofline import Machine, Watch, Weights, Work, executed, layers, needed, operations
from sbiflow.transforms.networks import MaskedNet

MAF, SPLINE = Case("maf", 5, 32), Case("spline", 5, 32)


def test_weights_that_are_not_masked() -> None:
    for dim, hidden in ((2, 50), (5, 50), (15, 256)):
        net = MaskedNet([1] * dim, 2, 10, hidden, 2)
        constant = net.entry_mask.sum(1) == 0
        read = torch.cat([net.hidden_mask] * 4 + [net.exit_mask]).sum(0)
        entry, inner, fixed = (int(mask.sum()) for mask in (net.entry_mask, read[~constant], read[constant]))
        assert layers(Case("maf", dim, hidden)) == [Weights(entry, inner, fixed, 10 * hidden * 3)] * 5


@pytest.mark.parametrize("kind", ["train", "density", "draw"])
def test_needed_operations_are_those_that_are_executed_where_nothing_is_masked(kind: str) -> None:
    model, rows = build(OURS, SPLINE), 64
    x = torch.randn(1 if kind == "draw" else rows, 10)
    with torch.set_grad_enabled(kind == "train"):
        did = executed(speed.call_of(Job(kind, SPLINE, rows), model, torch.randn(rows, 5), x))
    assert did.flops == needed(kind, SPLINE, rows, len(x)).flops
    assert did.product_seconds > 0 and did.other_bytes > 0


@pytest.mark.parametrize("kind", ["train", "density", "draw"])
def test_nothing_executes_less_than_is_needed(kind: str) -> None:
    model, rows = build(OURS, MAF), 64
    x = torch.randn(1 if kind == "draw" else rows, 10)
    with torch.set_grad_enabled(kind == "train"):
        did = executed(speed.call_of(Job(kind, MAF, rows), model, torch.randn(rows, 5), x))
    assert 1 <= did.flops / needed(kind, MAF, rows, len(x)).flops < 2


def test_bytes_of_a_step() -> None:
    size, rows = build(OURS, SPLINE).size, 8
    data = rows * (5 + 10)
    assert needed("train", SPLINE, rows, rows).bytes == 4 * (11 * size + data)
    assert needed("density", SPLINE, rows, rows).bytes == 4 * (size + data + rows)
    with pytest.raises(ValueError, match='expected "train", "density" or "draw"; got \'drawing\''):
        needed("drawing", SPLINE, 1, 1)


def test_every_kind_of_product_is_watched() -> None:
    a, b, c = torch.randn(3, 4), torch.randn(4, 5), torch.randn(3, 5)
    calls = {
        "mm": lambda: torch.mm(a, b),
        "out": lambda: torch.mm(a, b, out=torch.empty(3, 5)),
        "addmm": lambda: torch.addmm(c, a, b),
        "in place": lambda: c.addmm_(a, b),
        "linear": lambda: linear(a, b.T, c[0]),
        "vector": lambda: b.T.expand(3, 5, 4).reshape(15, 4) @ a[0],
        "vector in place": lambda: torch.randn(15).addmv_(b.T.repeat(3, 1), a[0]),
        "batch": lambda: a.expand(1, 3, 4) @ b.expand(1, 4, 5),
    }
    for name, call in calls.items():
        with Watch() as watch:
            call()
        assert [operations(o) * n for o, n in watch.products.items()] == [2 * 3 * 4 * 5], name
    with Watch() as watch:
        (a + 1)[:1].view(4)
    assert watch.other_bytes == 2 * a.numel() * 4 and not watch.products


def test_watched_operations_are_those_of_torchs_own_counter() -> None:
    model = build(NFLOWS, SPLINE)
    step = model.trainer(torch.randn(16, 5), torch.randn(16, 10))
    with FlopCounterMode(display=False) as counter:
        step()
    assert executed(step).flops == counter.get_total_flops()


def test_limit_is_of_what_takes_longer() -> None:
    machine = Machine(flops=10.0, bandwidth=2.0)
    assert Work(flops=30, bytes=2).limit(machine) == 3
    assert Work(flops=30, bytes=20).limit(machine) == 10


def test_rates_of_this_machine_are_rates() -> None:
    machine = Machine.measure((128,), 1)
    assert 1e8 < machine.flops < 1e14 and 1e8 < machine.bandwidth < 1e13
