"""Run blocks here or on an executor, a bounded number at a time, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from itertools import islice

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sbiflow.blocks import AnySimulator, BlockResult, BlockTask, run_block

_UNKNOWN_WORKERS = 32  # assumed for an executor that does not say: blocks in flight are twice that


class SimulationWarning(UserWarning):
    """Some rows failed; the store has their reasons."""


def run_blocks(
    simulator: AnySimulator,
    tasks: Iterable[BlockTask],
    executor: Executor | None,
    receive: Callable[[BlockResult], None],
) -> None:
    """Run the tasks, a bounded number at a time, and hand over each result when it is there."""
    if executor is None:
        for task in tasks:
            receive(run_block(simulator, task))
        return
    workers = getattr(executor, "_max_workers", _UNKNOWN_WORKERS)
    todo, waiting = iter(tasks), set[Future[BlockResult]]()
    try:
        while True:
            for task in islice(todo, 2 * workers - len(waiting)):
                waiting.add(executor.submit(run_block, simulator, task))
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                waiting.remove(future)
                receive(future.result())
    except BaseException:
        stopped = {future for future in waiting if future.cancel()}
        for future in waiting - stopped:  # what is finished is kept; what is running is given up
            if future.done() and future.exception() is None:
                receive(future.result())
        raise


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
