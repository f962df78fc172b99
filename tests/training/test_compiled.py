"""Compilation of the training step: one graph without breaks, the same numbers, and no harm where it fails."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from sbiflow.embedding import EmbeddingConfig
from sbiflow.families import FAMILIES, FlowConfig
from sbiflow.flows import ConditionalFlow
from sbiflow.training.compiled import CompilationWarning, compiled_objective, worthwhile
from sbiflow.training.config import TrainConfig
from tests.quick import CONFIG, quick_store, quick_train, same_weights
from tests.toys import LinearGaussian

PERIODIC = {"real": (False, False, False), "with a phase": (False, True, False), "one": (False,)}


def flow(family: str, periodic: tuple[bool, ...], start: str = "regression") -> ConditionalFlow:
    torch.manual_seed(3)
    config = FlowConfig(family, layers=2, hidden=16, blocks=1, bins=4, start=start)
    model = ConditionalFlow(config, EmbeddingConfig(), periodic, (6,))
    z, x = torch.randn(200, len(periodic)), torch.randn(200, 6)
    model.fit(z, x, x)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("columns", PERIODIC)
@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.one_graph])
def test_the_density_is_one_graph_and_the_same_numbers(family: str, columns: str) -> None:
    """fullgraph=True raises at a graph break; a second batch of the same shape compiles nothing again."""
    if any(PERIODIC[columns]) and not FAMILIES[family].phases:
        return
    torch._dynamo.reset()
    model, counter = flow(family, PERIODIC[columns]), CompileCounter()
    own = torch.compile(model.log_prob, backend=counter, fullgraph=True, dynamic=False)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(20, len(PERIODIC[columns]), generator=generator).clamp(-3, 3)
        x = torch.randn(20, 6, generator=generator)
        expected = model.log_prob(z, x)
        torch.testing.assert_close(own(z, x), expected, rtol=1e-4, atol=1e-4)
        wanted = torch.autograd.grad(expected.mean(), list(model.parameters()), allow_unused=True)
        found = torch.autograd.grad(own(z, x).mean(), list(model.parameters()), allow_unused=True)
        for a, b in zip(found, wanted, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * max(1.0, float(b.abs().max())))
    assert counter.frame_count == 1


def test_a_compiler_that_fails_costs_a_warning_and_nothing_else(monkeypatch, tmp_path) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("no C++ compiler\nfound here")

    store = quick_store(tmp_path / "s.h5", LinearGaussian())
    plain = quick_train(store, LinearGaussian())
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(CompilationWarning, match=r"OSError: no C\+\+ compiler\)"):
        found = quick_train(store, LinearGaussian(), replace(CONFIG, compile=True))
    assert same_weights(plain, found)


def test_short_runs_are_not_compiled(monkeypatch, tmp_path) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(torch, "compile", never)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompilationWarning)
        quick_train(quick_store(tmp_path / "s.h5", LinearGaussian()), LinearGaussian())


def test_the_decision_is_one_of_the_length_of_the_run() -> None:
    model = flow("maf", PERIODIC["real"])
    assert not worthwhile(model, 20_000, 512, torch.device("cpu"))
    assert worthwhile(model, 10**7, 512, torch.device("cpu"))
    assert worthwhile(model, 5_000, 512, torch.device("cuda"))
    assert not worthwhile(model, 100, 512, torch.device("cuda"))
    assert TrainConfig().compile is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch about itself
def test_a_real_compiler_gives_the_same_density() -> None:
    """About a minute."""
    model = flow("spline_coupling", PERIODIC["with a phase"])
    z, x = torch.randn(64, 3).clamp(-3, 3), torch.randn(64, 6)
    own = compiled_objective(model, z, x)
    assert own is not model.log_prob
    torch.testing.assert_close(own(z, x), model.log_prob(z, x), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_a_step_on_a_gpu_does_not_wait(tmp_path) -> None:
    """What is captured is replayed without the host waiting for the device."""
    model = flow("spline_coupling", PERIODIC["real"]).cuda()
    z, x = torch.randn(64, 3, device="cuda"), torch.randn(64, 6, device="cuda")
    own = compiled_objective(model, z, x)
    (-own(z, x).mean()).backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        (-own(z, x).mean()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
