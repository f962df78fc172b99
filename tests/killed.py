"""Run by test_simulate.py in a process of its own: simulate in children that are killed.

Usage: python -m tests.killed FOLDER. Imports once, then forks; prints JSON about what happened. Children are
killed at random moments, then at every single system call that touches the file, half way through if it writes.
After every kill the store must open (or not exist yet), and every row that it calls done must have the bytes of
a run that nobody killed.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sbiflow import provenance, store_writer
from sbiflow.simulate import simulate
from sbiflow.store import Status, Store
from tests.toys import LinearGaussian

FIRST_N, N, BLOCK, SEED = 310, 640, 16, 11


class Slow(LinearGaussian):
    """A block takes 4 ms."""

    def signal(self, theta: torch.Tensor) -> torch.Tensor:
        time.sleep(0.004)
        return super().signal(theta)


def kill_soon_after_progress(path: Path, before: int, seconds: float) -> Callable[[int], None]:
    """Kill the child from outside, `seconds` after it has committed a row; or at once, before it has any."""

    def wait_and_kill(child: int) -> None:
        over = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while count(path) <= before and seconds and os.waitid(os.P_PID, child, over) is None:
            time.sleep(0.001)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)

    return wait_and_kill


def count(path: Path) -> int:
    """Rows done."""
    try:
        return Store.open(path).n_done if path.exists() else 0
    except ValueError as error:
        if "open it again" in str(error):  # the child extended it between our two lines: look again later
            return 0
        raise


def die_at(call: int) -> None:
    """In the child: kill this process in the call-th system call on the file."""
    counter = itertools.count()

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            if next(counter) == call:
                if function is real_write:  # half of it gets through
                    fd, view, offset = arguments
                    function(fd, view[: len(view) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return wrapper

    real_write = os.pwrite
    for name in ("pwrite", "replace", "fsync", "fdatasync", "ftruncate", "posix_fallocate"):
        setattr(os, name, dying(getattr(os, name)))


def run(
    simulator: LinearGaussian,
    path: Path,
    n: int,
    *,
    inside: Callable[[], None] = lambda: None,
    outside: Callable[[int], None] = lambda child: None,
) -> bool:
    """Simulate in a child; whether it was killed before it was done."""
    child = os.fork()
    if child == 0:
        inside()
        simulate(simulator, n, path, seed=SEED, block=BLOCK, progress=False)
        os._exit(0)
    outside(child)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a child failed")
    return os.WIFSIGNALED(status)


def check(path: Path, reference: Store) -> int:
    """Compare the rows done with the reference; return their number (-1: no file yet)."""
    if not path.exists():
        return -1
    store = Store.open(path)
    done = np.flatnonzero(store.status != Status.PENDING)
    whole = done[
        done < store.n // BLOCK * BLOCK
    ]  # a block cut short is another batch and may round otherwise
    for got, want in zip(store.read(whole), reference.read(whole), strict=True):
        if got.tobytes() != want.tobytes():
            raise SystemExit("a row that is called done differs")
    return len(done)


def random_moments(folder: Path) -> dict[str, int]:
    """Kill until n = FIRST_N is complete, then grow to N and kill until that is complete."""
    reference = simulate(Slow(), N, folder / "reference.h5", seed=SEED, block=BLOCK, progress=False)
    path, dice = folder / "killed.h5", random.Random(5)
    kills, midway = 0, 0
    for n in (FIRST_N, N):
        while run(
            Slow(),
            path,
            n,
            inside=lambda: setattr(store_writer, "COMMIT_SECONDS", dice.choice([0.0, 0.02])),
            outside=kill_soon_after_progress(path, count(path), max(0.0, dice.uniform(-0.004, 0.015))),
        ):
            kills += 1
            midway += 0 < check(path, reference) < n
    return {"kills": kills, "midway": midway, "done": check(path, reference)}


def every_call(folder: Path) -> dict[str, int]:
    """Kill a run at its first system call, another at its second, …; then the same while a store grows."""
    toy, small, large = LinearGaussian(), 20, 40
    reference = simulate(toy, large, folder / "toy_reference.h5", seed=SEED, block=BLOCK, progress=False)
    path, complete = folder / "toy.h5", folder / "toy_small.h5"
    run(toy, complete, small)
    store_writer.COMMIT_SECONDS = 0.0
    deaths = 0
    for start in (None, complete):
        for call in itertools.count():
            path.unlink(missing_ok=True)
            if start is not None:
                shutil.copy(start, path)
            if not run(toy, path, large, inside=functools.partial(die_at, call)):
                break
            deaths += 1
            if check(path, reference) < (BLOCK if start else -1):
                raise SystemExit("rows that were done are lost")
            simulate(toy, large, path, seed=SEED, block=BLOCK, progress=False)
            if check(path, reference) != large:
                raise SystemExit("not complete after resuming")
            if Store.open(path).read(slice(None))[1].tobytes() != reference.read(slice(None))[1].tobytes():
                raise SystemExit("differs after resuming")
    return {"deaths": deaths}


if __name__ == "__main__":
    where = Path(sys.argv[1])
    provenance.git_revision = lambda thing: ""  # 200 runs of git are not the point
    print(json.dumps(random_moments(where) | every_call(where)))
