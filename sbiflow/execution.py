"""Run blocks here or on an executor, a bounded number at a time, with a progress bar.

What an executor may be: those of `concurrent.futures`, loky's, `mpi4py.futures`, dask's (`client.get_executor()`), or
any other whose futures `concurrent.futures.wait` takes.

The simulator is sent with the first tasks, as many as there are workers, and kept by who receives it; later tasks name
it only, and a worker that does not have it (a new one, or one that had no turn) asks by returning nothing. With a
simulator of 4 MB, as the gravitational-wave ones are, a block would otherwise wait for the transfer longer than for
its rows (analyses/benchmarks/executors.py measures it).

The last blocks of a row simulator are worked on in parts, so that no worker is left with a whole block to do when
the others are done. The store knows whole blocks only.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sbiflow.blocks import AnySimulator, BlockResult, BlockTask, is_row_simulator, joined, run_block

_UNKNOWN_WORKERS = 32  # assumed for an executor that does not say
_PARTS = 8  # of each of the last blocks, at least
_ASK_AGAIN = 1.0  # [s] workers of a dask cluster come and go
_received = threading.local()  # each thread of a worker has a simulator of its own


class SimulationWarning(UserWarning):
    """Some rows failed; the store has their reasons."""


def run_blocks(
    simulator: AnySimulator,
    tasks: Sequence[BlockTask],
    executor: Executor | None,
    receive: Callable[[BlockResult], None],
) -> None:
    """Run the tasks, a bounded number at a time, and hand over the result of each block when it is there."""
    if executor is None:
        for task in tasks:
            receive(run_block(simulator, task))
        return
    sender, assembly = _Sender(simulator, executor), _Assembly(receive)
    parts = split_last(tasks, sender.workers()) if is_row_simulator(simulator) else iter(tasks)
    waiting: dict[Future[BlockResult | None], BlockTask] = {}
    try:
        while True:
            for task in islice(parts, max(2 * sender.workers() - len(waiting), 0)):
                waiting[sender.send(task)] = task
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                task = waiting.pop(future)
                if (result := future.result()) is None:
                    waiting[sender.send(task, again=True)] = task
                else:
                    assembly.add(task, result)
    except BaseException:
        stopped = {future for future in waiting if future.cancel()}
        for future in waiting.keys() - stopped:  # what is finished is kept; what is running is given up
            if future.done() and future.exception() is None and (found := future.result()) is not None:
                assembly.add(waiting[future], found)
        raise
    finally:
        torch.set_num_threads(torch.get_num_threads())  # what new threads start with: workers may have left 1


def workers_of(executor: Executor) -> int:
    """Workers that an executor has now; at least 1, and 32 if it does not say.

    Pools of processes or threads, loky's and mpi4py's have `_max_workers`; dask's asks its scheduler.
    """
    client: Any = getattr(executor, "_client", None)
    if hasattr(client, "nthreads"):
        return max(sum(client.nthreads().values()), 1)  # none yet: a batch system has them in its queue
    return max(getattr(executor, "_max_workers", _UNKNOWN_WORKERS), 1)


def split_last(tasks: Sequence[BlockTask], workers: int) -> Iterator[BlockTask]:
    """The tasks, the last block of each worker in parts.

    When the whole blocks are given out, no worker is more than a block behind another: what is left, a block for each,
    fills the gaps.
    """
    whole = max(len(tasks) - workers, 0)
    yield from tasks[:whole]
    parts = max(_PARTS, 4 * workers // max(len(tasks) - whole, 1))
    for task in tasks[whole:]:
        size = -(-(task.stop - task.start) // parts)
        for first in range(task.start, task.stop, size):
            yield replace(task, part=(first, min(first + size, task.stop)))


def lost_workers(error: BaseException) -> bool:
    """Whether the engine failed, not the simulator: a process died, a scheduler went away."""
    of_dask = (
        type(error).__module__.split(".")[0] == "distributed"
    )  # KilledWorker and others, without importing it
    return of_dask or isinstance(error, BrokenExecutor | CancelledError)


class _Sender:
    """Submits tasks; the simulator goes with the first ones and where a worker asked for it."""

    def __init__(self, simulator: AnySimulator, executor: Executor) -> None:
        self._simulator, self._executor, self._token = simulator, executor, uuid.uuid4().hex
        self._sent, self._workers, self._asked = 0, 0, -_ASK_AGAIN

    def workers(self) -> int:
        """Number of workers, at most a second old."""
        if time.monotonic() - self._asked >= _ASK_AGAIN:
            self._workers, self._asked = workers_of(self._executor), time.monotonic()
        return self._workers

    def send(self, task: BlockTask, again: bool = False) -> Future[BlockResult | None]:
        """Submit a task; `again`: the worker that had it does not know the simulator."""
        carried = self._simulator if again or self._sent < self._workers else None
        self._sent += 1
        return self._executor.submit(_run_received, self._token, carried, task)


class _Assembly:
    """Hands on blocks, those that come in parts when the last part is there."""

    def __init__(self, receive: Callable[[BlockResult], None]) -> None:
        self._receive, self._parts = receive, dict[int, list[BlockResult]]()

    def add(self, task: BlockTask, result: BlockResult) -> None:
        if task.part is None:
            self._receive(result)
            return
        parts = self._parts.setdefault(task.start, [])
        parts.append(result)
        if sum(len(part.status) for part in parts) == task.stop - task.start:
            self._receive(joined(self._parts.pop(task.start)))


def _run_received(token: str, simulator: AnySimulator | None, task: BlockTask) -> BlockResult | None:
    """In a worker: run a task with the simulator that came with it or before it; None: it has not come."""
    if simulator is not None:
        _received.token, _received.simulator = token, simulator
    elif getattr(_received, "token", None) != token:
        return None
    return run_block(_received.simulator, task)


def progress_bar(shown: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not (shown and console.is_terminal))
