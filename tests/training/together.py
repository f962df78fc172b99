"""Run by test_distributed.py under torchrun: what several processes do together, one case after the other.

Usage: torchrun ... -m tests.training.together FOLDER CASE...; process r writes FOLDER/CASE-r.json.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sbiflow import Posterior, Store, TrainConfig, is_rank_zero, rank_zero_first
from sbiflow.training import group
from sbiflow.training.checkpoint import digest, load_tensors
from sbiflow.training.data import load_training_data
from sbiflow.training.group import join
from sbiflow.training.loop import Training
from sbiflow.training.optimiser import Muon
from sbiflow.training.run import _build, observed
from tests.quick import EMBEDDING, FLOW, quick_store, quick_train
from tests.toys import LinearGaussian
from tests.wave import Wave

TOY, WAVE = LinearGaussian(), Wave()
CONFIG = TrainConfig(steps=40, batch=64, validate_every=10, patience=None)
DROPOUT = replace(FLOW, dropout=0.2)
EARLY = TrainConfig(steps=400, batch=32, learning_rate=0.03, validation=0.5, validate_every=10, patience=3)
FIRST_LIFE = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" and "LIFE" not in os.environ
CASES: dict[str, Callable[[Path], Any]] = {}


def case(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Name it for the command line."""
    CASES[function.__name__] = function
    return function


def weights(posterior: Posterior) -> str:
    """Of the flow and of its novelty test."""
    return digest(*posterior.flow.state_dict().values(), *posterior.novelty.state_dict().values())


def summary(posterior: Posterior, folder: Path | None = None) -> dict[str, Any]:
    """What each process holds; all save into one folder."""
    if folder is not None:
        posterior.save(folder)
    return {
        "weights": weights(posterior), "info": posterior.info.training_seconds, "steps": posterior.info.steps,
        "validation": posterior.log.validation_loss, "created": posterior.info.created,
    }  # fmt: skip


@case
def two_lanes(folder: Path) -> Any:
    """One lane each, which is the default; dropout and extrinsic parameters."""
    posterior = quick_train(Store.open(folder / "wave.h5"), WAVE, CONFIG, flow=DROPOUT)
    return summary(posterior, folder / "two_lanes")


@case
def four_lanes(folder: Path) -> Any:
    """Two lanes each."""
    config = replace(CONFIG, lanes=4)
    return summary(
        quick_train(Store.open(folder / "wave.h5"), WAVE, config, flow=DROPOUT), folder / "four_lanes"
    )


@case
def early(folder: Path) -> Any:
    """A run that over-fits, and stops."""
    still = replace(TOY, noise_sd=1e-3)
    posterior = quick_train(Store.open(folder / "few.h5"), still, EARLY, flow=replace(FLOW, start="prior"))
    return summary(posterior)


@case
def gradient(folder: Path) -> Any:
    """Of one batch of four lanes, in float64."""
    run = in_float64(Store.open(folder / "wave.h5"), 4)
    loss = run._backward(3)
    return {
        "loss": float(loss),
        "gradient": [
            float(v) for p in run.model.parameters() if p.grad is not None for v in p.grad.flatten()
        ],
    }


def in_float64(store: Store, lanes: int, simulator: Any = WAVE) -> Training:
    """A run before its first step."""
    config = replace(CONFIG, lanes=lanes).resolved(store.n_ok, join().size)
    share, cpu = config.validation or 0.0, torch.device("cpu")
    data = load_training_data(store, simulator.prior, share, config.seed, cpu)
    fit, valid = observed(simulator, data.some(100), 0, 1), observed(simulator, data.validation, 0)
    model = _build(simulator, FLOW, EMBEDDING, 0, fit, data.some(100)).double()
    double = replace(data, z=data.z.double(), signal=data.signal.double())
    return Training(model, double, valid, simulator, config, None, join())


def error_of(function: Callable[[], Any]) -> str:
    """What it raises."""
    try:
        function()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


@case
def nan(folder: Path) -> Any:
    """In the noise of process 1 only, in step 23."""

    class Glitch(LinearGaussian):
        calls = 0

        def observe(self, signal: torch.Tensor, generator: Any = None) -> torch.Tensor:
            x = super().observe(signal, generator)
            Glitch.calls += 1
            if join().rank == 1 and Glitch.calls in (before + 23, before + 24):
                x[5, 1] = torch.nan
            return x

    before = 3  # the fits, the validation part, and what identifies the noise
    file, store = folder / "nan.checkpoint", Store.open(folder / "s.h5")
    error = error_of(lambda: quick_train(store, Glitch(), CONFIG, checkpoint=file, checkpoint_every=10))
    return {"error": error, "step": load_tensors(file)[1]["state"]["step"]}


@case
def drift(folder: Path) -> Any:
    """One weight of process 1 changes by the least possible."""
    real, calls = Muon.step, iter(range(10**9))

    def step(self: Muon, closure: Any = None) -> None:
        real(self)
        if next(calls) == 14 and join().rank == 1:
            weight = self.param_groups[0]["params"][0].data
            weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))

    Muon.step = step
    try:
        return {"error": error_of(lambda: quick_train(Store.open(folder / "s.h5"), TOY, CONFIG))}
    finally:
        Muon.step = real


@case
def stopped(folder: Path) -> Any:
    """SIGTERM to process 1 only, twice, within step 17."""
    real, calls = Muon.step, iter(range(10**9))

    def step(self: Muon, closure: Any = None) -> None:
        real(self)
        if next(calls) == 16 and join().rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    Muon.step = step
    file = folder / "stopped.checkpoint"
    try:
        error = error_of(lambda: quick_train(Store.open(folder / "s.h5"), TOY, CONFIG, checkpoint=file))
    finally:
        Muon.step = real
    at = load_tensors(file)[1]["state"]["step"]
    join().gather(None)
    if is_rank_zero():
        (folder / "for-one-process").write_bytes(file.read_bytes())
    join().gather(None)
    posterior = quick_train(Store.open(folder / "s.h5"), TOY, CONFIG, checkpoint=file)
    return {"error": error, "step": at, **summary(posterior)}


@case
def refused(folder: Path) -> Any:
    """What is not the same for all processes, or cannot be shared out."""
    store, rank = Store.open(folder / "s.h5"), join().rank
    mine = folder / f"of-{rank}" / "checkpoint"
    if rank == 0:
        mine.parent.mkdir()
        mine.write_bytes((folder / "stopped.checkpoint").read_bytes())
    other = Store.open(folder / ("s.h5", "few.h5")[rank])
    return {
        "seed": error_of(lambda: quick_train(store, TOY, replace(CONFIG, seed=rank))),
        "data": error_of(lambda: quick_train(other, TOY, CONFIG)),
        "file": error_of(lambda: quick_train(store, TOY, CONFIG, checkpoint=mine)),
        "lanes": error_of(lambda: quick_train(store, TOY, replace(CONFIG, lanes=3, batch=66))),
        "batch": error_of(lambda: quick_train(store, TOY, replace(CONFIG, batch=65))),
    }


@case
def simulated(folder: Path) -> Any:
    """The store is filled by process 0, though the others come first; then one that fails."""
    filled = []

    class Watched(LinearGaussian):
        def signal(self, theta: torch.Tensor) -> torch.Tensor:
            filled.append(len(theta))
            return super().signal(theta)

    time.sleep(0.3 * is_rank_zero())
    with rank_zero_first():
        store = quick_store(folder / "new.h5", Watched(), 500)

    def failing() -> None:
        with rank_zero_first():
            raise ArithmeticError("of process 0")

    return {"rows": sum(filled), "done": store.n_done, "error": error_of(failing)}


@case
def hung(folder: Path) -> Any:
    """In a group of the program's own, with a short timeout: process 1 does not take part."""
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("gloo", timeout=timedelta(seconds=2))
    started = time.monotonic()
    if join().rank == 1:
        time.sleep(4)
        error = ""
    else:
        error = error_of(lambda: quick_train(Store.open(folder / "s.h5"), TOY, CONFIG))
    found = {"error": error, "seconds": time.monotonic() - started, "kept": dist.is_initialized()}
    dist.destroy_process_group()
    return found


@case
def command(folder: Path) -> Any:
    """`python -m sbiflow train` in every process."""
    arguments = ["train", folder / "s.h5", "--out", folder / "command", "--steps", 20, "--lanes", 4]
    sys.argv = ["sbiflow", *map(str, arguments), "--simulator", "tests.training.together:TOY"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        error = error_of(lambda: runpy.run_module("sbiflow", run_name="__main__"))
    return {"error": error, "said": said.getvalue()}


@case
def left(folder: Path) -> Any:
    """How many of gloo's threads outlive the group in which a flow was trained."""

    def threads() -> int:
        return sum("gloo" in name.read_text() for name in Path("/proc/self/task").glob("*/comm"))

    quick_train(Store.open(folder / "s.h5"), TOY, CONFIG)
    before = threads()
    group._leave()
    return before, threads()


@case
def killed(folder: Path) -> Any:
    """In the first life of the processes the one whose rank is in the environment is killed in step 17."""
    real, calls = Muon.step, iter(range(10**9))
    victim = int(os.environ["VICTIM"])

    def step(self: Muon, closure: Any = None) -> None:
        real(self)
        if next(calls) == 16 and FIRST_LIFE and join().rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)

    Muon.step = step
    file, config = folder / "killed.checkpoint", replace(CONFIG, lanes=2)
    before = load_tensors(file)[1]["state"]["step"] if file.exists() else 0
    store = Store.open(folder / "s.h5")
    posterior = quick_train(store, TOY, config, checkpoint=file, checkpoint_every=5)
    return {"first": FIRST_LIFE, "before": before, **summary(posterior)}


if __name__ == "__main__":
    target, names = Path(sys.argv[1]), sys.argv[2:]
    for name in names if FIRST_LIFE else names[-1:]:
        result = CASES[name](target)
        (target / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(result))
