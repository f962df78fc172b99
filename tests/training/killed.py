"""Run by test_checkpoint.py in a process of its own: train in children that are killed.

Usage: python -m tests.training.killed FOLDER. Imports once, then forks; prints JSON about what happened.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sbiflow import Store, TrainConfig
from sbiflow.training import checkpoint
from sbiflow.training.checkpoint import load_tensors
from sbiflow.training.optimiser import Muon
from tests.quick import quick_store, quick_train
from tests.toys import LinearGaussian

CONFIG = TrainConfig(steps=100, batch=64, validate_every=20, patience=None)
EVERY = 7


def die() -> None:
    """What `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_step(call: int) -> None:
    """Between the updates of the two optimisers of a step."""
    real, calls = Muon.step, iter(range(10**9))

    def step(self: Muon) -> None:
        real(self)
        if next(calls) == call:
            die()

    Muon.step = step


def die_in_write(call: int) -> None:
    """Half way through writing a checkpoint."""
    real, calls = checkpoint.save_file, iter(range(10**9))

    def save_file(tensors: dict, path: Path, meta: dict) -> None:
        real(tensors, path, meta)
        if next(calls) == call:
            os.truncate(path, path.stat().st_size // 2)
            die()

    checkpoint.save_file = save_file


def die_before_replace(call: int) -> None:
    """After a checkpoint was written and before it has its name."""
    real, calls = os.replace, iter(range(10**9))

    def replace(source: Path, target: Path) -> None:
        if next(calls) == call:
            die()
        real(source, target)

    os.replace = replace


def train_in_child(folder: Path, file: Path, inside: Callable[[], None] = lambda: None) -> int:
    """Train from the checkpoint `file` on and save the model."""
    child = os.fork()
    if child == 0:
        inside()
        posterior = quick_train(
            Store.open(folder / "s.h5"), LinearGaussian(), CONFIG, checkpoint=file, checkpoint_every=EVERY
        )
        posterior.save(file.with_suffix(".model"))
        os._exit(0)
    return child


def died(child: int) -> bool:
    """Whether the child was killed; an error of its own ends this program."""
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a child failed")
    return os.WIFSIGNALED(status)


def step_of(file: Path) -> int:
    """The step in the checkpoint, which must be readable; 0 if there is none yet."""
    return load_tensors(file)[1]["state"]["step"] if file.exists() else 0


def kill_soon_after_progress(child: int, file: Path, seconds: float) -> None:
    """Kill the child some time after it has written another checkpoint (or is done)."""
    before = step_of(file)
    over = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while step_of(file) == before and os.waitid(os.P_PID, child, over) is None:
        time.sleep(0.002)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)


def main(folder: Path) -> dict[str, list[int]]:
    """Two kills at random moments, three at chosen ones, then to the end."""
    store = quick_store(folder / "s.h5", LinearGaussian())
    quick_train(store, LinearGaussian(), TrainConfig(steps=1))  # torch's late imports, once for all children
    died(train_in_child(folder, folder / "whole"))
    file, dice = folder / "killed", random.Random(7)
    steps = []
    for prepare in (
        None,
        lambda: die_in_step(10),
        lambda: die_in_write(1),
        lambda: die_before_replace(1),
        None,
    ):
        child = train_in_child(folder, file, prepare or (lambda: None))
        if prepare is None:
            kill_soon_after_progress(child, file, dice.uniform(0, 0.05))
        if died(child):
            steps.append(step_of(file))
    train_in_child(folder, file)
    os.wait()
    return {"steps": steps}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
