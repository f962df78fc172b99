"""One block of simulations: a pure function of (simulator, seed, rows), run here or in a worker.

A block is a range of rows on a fixed grid, the unit of resuming and, of a row simulator in parts, of work. Its
parameters come from the prior, by the inverse cdf at the uniforms that belong to its rows; its signals from the
simulator, all rows at once (`signal`) or row by row (`simulate_row`). A failed row has a status, a reason, and
NaN as its signal.

A block runs in one torch thread, here as in a worker: with two, matrix products round differently (the waveforms
of `simulators.gravitational_waves` do), and the bytes of a store would depend on where it was made.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbiflow.checks import check_shape
from sbiflow.contracts import AnySimulator, RowSimulator, Simulator
from sbiflow.observing import signal_shape
from sbiflow.seeding import row_rng, uniform_rows
from sbiflow.store import Status

BLOCK, BLOCK_OF_ROW_SIMULATOR = 1024, 64


@dataclass(frozen=True)
class BlockTask:
    """Rows start..stop of the stream (seed, key); `timeout` [s] is per row, for row simulators.

    `part` (first, last) of the rows, counted as they are, is all that is to be simulated: of a row simulator, whose
    rows do not know of each other. The parameters are made of the whole block, so that they round as they do there.
    """

    start: int
    stop: int
    seed: int
    theta_key: int
    row_key: int
    dtype: str = "float32"
    timeout: float | None = None
    part: tuple[int, int] | None = None

    @property
    def rows(self) -> tuple[int, int]:
        """First row, and the one after the last, to be simulated."""
        return self.part or (self.start, self.stop)


@dataclass(frozen=True)
class BlockResult:
    """theta (n, D) float64, signal (n, *signal_shape), status (n,) uint8, and a text for each failed row."""

    start: int
    theta: np.ndarray
    signal: np.ndarray
    status: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)


class _NoTimeout(RuntimeError):
    """SIGALRM cannot interrupt a simulator that runs outside the main thread."""


class _RowTimeout(BaseException):
    """Not an Exception, so that `except Exception` in a simulator does not swallow it."""


# These say nothing about a row: they stop the run.
_FATAL = (MemoryError, torch.OutOfMemoryError, _NoTimeout)


def is_row_simulator(simulator: Any) -> bool:
    """Whether the simulator runs row by row; raise ValueError if it is no simulator at all."""
    rows = callable(getattr(simulator, "simulate_row", None))
    if not rows and not callable(getattr(simulator, "signal", None)):
        raise ValueError(
            f"simulator: expected a method signal or simulate_row, got {type(simulator).__name__}"
        )
    return rows


def default_block(simulator: Any) -> int:
    """Rows per block: many for a batched simulator, few where each row may be slow."""
    return BLOCK_OF_ROW_SIMULATOR if is_row_simulator(simulator) else BLOCK


def joined(parts: Sequence[BlockResult]) -> BlockResult:
    """The result of a block from those of its parts, in any order."""
    parts = sorted(parts, key=lambda part: part.start)
    start = parts[0].start
    return BlockResult(
        start,
        np.concatenate([part.theta for part in parts]),
        np.concatenate([part.signal for part in parts]),
        np.concatenate([part.status for part in parts]),
        {part.start - start + row: text for part in parts for row, text in part.reasons.items()},
    )


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Torch's number of threads is each Python thread's own: other threads go on with theirs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_torch_thread()
def run_block(simulator: AnySimulator, task: BlockTask) -> BlockResult:
    """Simulate the rows of a task, in one torch thread.

    Raises:
        ValueError: `signal` returned another shape than (n, *signal_shape).
        RuntimeError: a timeout was asked for where it cannot be enforced (not the main thread of a process).
    """
    dim = simulator.prior.dim
    uniforms = uniform_rows(task.seed, task.start, task.stop, dim, task.theta_key)
    first, last = task.rows
    theta = simulator.prior.from_uniform(uniforms)[first - task.start : last - task.start]
    failed: dict[int, tuple[Status, str]] = {}
    if isinstance(simulator, RowSimulator):
        values = _by_rows(simulator, theta.numpy(), task, failed)
    else:
        values = _batched(simulator, theta, failed)
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, and is counted as such below
        values = values.astype(task.dtype)
    for row, text in _not_finite(values, task.dtype).items():
        failed.setdefault(row, (Status.NOT_FINITE, text))
    status = np.full(len(theta), Status.OK, np.uint8)
    for row, (code, _) in failed.items():
        status[row], values[row] = code, np.nan
    return BlockResult(first, theta.numpy(), values, status, {row: text for row, (_, text) in failed.items()})


def _batched(simulator: Simulator, theta: Tensor, failed: dict[int, tuple[Status, str]]) -> np.ndarray:
    try:
        values = _signal(simulator, theta)
    except _FATAL:
        raise
    except Exception:  # one row spoils the batch: run them one by one, to say which
        return _batched_one_by_one(simulator, theta, failed)
    check_shape(values, "signal", (len(theta), *signal_shape(simulator)))
    return values


def _batched_one_by_one(
    simulator: Simulator, theta: Tensor, failed: dict[int, tuple[Status, str]]
) -> np.ndarray:
    shape = signal_shape(simulator)
    values = np.full((len(theta), *shape), np.nan)
    for row in range(len(theta)):
        try:
            value = _signal(simulator, theta[row : row + 1])
        except _FATAL:
            raise
        except Exception as error:
            failed[row] = Status.EXCEPTION, _text(error)
            continue
        check_shape(value, "signal", (1, *shape))
        values[row] = value[0]
    return values


def _signal(simulator: Simulator, theta: Tensor) -> np.ndarray:
    with torch.no_grad():
        values = torch.as_tensor(simulator.signal(theta)).detach().cpu()
    if values.is_complex():
        raise ValueError(f"signal: expected real numbers, got {values.dtype}")
    return (values if values.dtype == torch.float32 else values.double()).numpy()


def _by_rows(
    simulator: RowSimulator, theta: np.ndarray, task: BlockTask, failed: dict[int, tuple[Status, str]]
) -> np.ndarray:
    values = np.full((len(theta), *simulator.x_shape), np.nan)
    for row in range(len(theta)):
        rng = row_rng(task.seed, task.rows[0] + row, task.row_key)
        try:
            with _time_limit(task.timeout):
                value = np.asarray(simulator.simulate_row(theta[row].copy(), rng), dtype=np.float64)
            check_shape(value, "x", simulator.x_shape)
            values[row] = value
        except _FATAL:
            raise
        except _RowTimeout:
            failed[row] = Status.TIMEOUT, f"timeout after {task.timeout:g} s"
        except Exception as error:
            failed[row] = Status.EXCEPTION, _text(error)
    return values


def _not_finite(values: np.ndarray, dtype: str) -> dict[int, str]:
    flat = values.reshape(len(values), -1)
    bad = np.flatnonzero(~np.isfinite(flat).all(-1))
    infinite = f"infinite, or beyond {dtype}"
    return {int(row): "NaN in the signal" if np.isnan(flat[row]).any() else infinite for row in bad}


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip(": ")


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Raise _RowTimeout in the body after so many seconds, by SIGALRM.

    Python delivers a signal between two bytecodes: compiled code is interrupted only when it returns.
    """
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise _NoTimeout("timeout: expected the main thread of a process (use a process pool), got a thread")
    previous = signal.signal(signal.SIGALRM, _on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)


def _on_alarm(*_: object) -> None:
    raise _RowTimeout
