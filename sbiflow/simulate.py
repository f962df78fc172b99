"""Run a simulator into a store: resumable, the same rows whatever the executor.

Rows are worked on in blocks on a fixed grid; only the calling process writes. A block with a row missing is
computed again as a whole, so that its bytes do not depend on where an earlier run was stopped: libraries may
round differently for batches of another size. (For the same reason the bytes are promised for one machine and
one set of library versions, not across them.)

Executors that the tests run, with stores compared byte by byte and a worker killed:

- `ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))`: torch's threads do not survive a fork;
- `loky.get_reusable_executor(2)`: takes functions of a notebook, too;
- `dask.distributed.Client(…).get_executor()`: dask replaces a worker that dies, and gives up a block after three. Ask
  for one thread a worker, unless the simulator is safe in threads;
- `mpi4py.futures.MPIPoolExecutor()` in a script run by `mpiexec -n 8 python -m mpi4py.futures script.py`, or
  `MPICommExecutor`: a rank that dies ends all of them, and the same command continues (analyses/cluster/).

A block runs in one torch thread. Libraries below NumPy have threads of their own: where a row simulator calls them,
start the workers with OMP_NUM_THREADS=1 (dask does), or they fight for the cores.
"""

from __future__ import annotations

import errno
import pickle
import sys
import threading
import warnings
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sbiflow import provenance
from sbiflow.blocks import AnySimulator, BlockResult, BlockTask, default_block, is_row_simulator, run_block
from sbiflow.checks import check_count, check_positive
from sbiflow.execution import SimulationWarning, lost_workers, progress_bar, run_blocks
from sbiflow.function_simulator import FunctionSimulator, simulator_from_function
from sbiflow.observing import extrinsic_columns, shape_difference, signal_shape
from sbiflow.pairs import Pairs, draw_pairs
from sbiflow.seeding import check_seed
from sbiflow.store import Status, Store, StoreMeta

__all__ = [
    "FunctionSimulator",
    "Pairs",
    "SimulationWarning",
    "draw_pairs",
    "simulate",
    "simulator_from_function",
]

# The streams of random numbers of a store's rows; fresh pairs (pairs.py) have their own.
THETA_KEY, ROW_KEY = 0x73746F72, 0x73746F73


def simulate(
    simulator: AnySimulator,
    n: int,
    path: str | Path,
    *,
    seed: int,
    executor: Executor | None = None,
    block: int | None = None,
    timeout: float | None = None,
    dtype: str | None = None,
    progress: bool = True,
) -> Store:
    """Simulate rows 0..n of the stream `seed` into a store; continue or extend it if it exists.

    Args:
        simulator: with `signal` (all rows of a block at once) or with `simulate_row`.
        n: rows the store is to have.
        path: the HDF5 file. Its disk space is reserved before the first simulation.
        seed: of parameters and, for a row simulator, of its noise.
        executor: any concurrent.futures.Executor; None runs here, in one torch thread. It is not shut down.
        block: rows per unit of work; a kill loses those in work. The store's own if it exists, else 1024, or
            64 for a row simulator.
        timeout: [s] per row, for row simulators, by SIGALRM (here, in a process pool or under MPI, not in threads,
            which dask's workers are): compiled code that does not return is interrupted only when it returns.
        dtype: of the stored signal, "float32" (default) or "float64".
        progress: show a bar.

    Returns:
        The complete store. Failed rows are in it with their reasons, and a SimulationWarning says how many.

    Raises:
        ValueError: bad arguments; the store belongs to another prior, simulator or seed (every difference is
            named); all rows failed.
        OSError: the disk has no room, or another process is writing the store.
        RuntimeError: a worker died, or the cluster went away; what was finished is in the store, and the same call
            continues.
        KeyboardInterrupt: Ctrl-C, after what is finished has been written.
    """
    _check_arguments(simulator, n, executor, block, timeout)
    path = Path(path)
    is_new = not path.exists()
    store = _open_or_create(simulator, n, path, check_seed(seed), block, dtype)
    tasks = [
        BlockTask(start, min(start + store.meta.block, n), seed, THETA_KEY, ROW_KEY, store.dtype, timeout)
        for start in _pending_blocks(store)
    ]
    try:
        if tasks:
            _fill(store, simulator, tasks, executor, progress)
    except Exception:
        if is_new and not store.n_done:
            path.unlink()  # an empty store would only refuse the simulator once its error is put right
        raise
    _report(store)
    return store


def _check_arguments(
    simulator: AnySimulator, n: int, executor: Executor | None, block: int | None, timeout: float | None
) -> None:
    check_count(n, "n")
    if block is not None:
        check_count(block, "block")
    by_rows = is_row_simulator(simulator)
    extrinsic_columns(simulator)  # refused now, not when it comes to training
    if timeout is not None:
        check_positive(timeout, "timeout")
        if not by_rows:
            raise ValueError("timeout: expected None for a simulator that runs a whole block at once")
        in_thread = executor is None and threading.current_thread() is not threading.main_thread()
        if in_thread or isinstance(executor, ThreadPoolExecutor):
            raise ValueError(
                "timeout: expected a process pool or no executor, got threads, which cannot be stopped"
            )
    if executor is not None and not isinstance(executor, Executor):
        got = type(executor).__name__
        raise ValueError(
            f"executor: expected a concurrent.futures.Executor (client.get_executor()), got {got}"
        )
    if isinstance(executor, ProcessPoolExecutor):
        try:
            pickle.dumps(simulator)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            raise ValueError(f"simulator: expected one that can be sent to a process, got {text}") from error


def _describe(simulator: AnySimulator, seed: int, block: int) -> StoreMeta:
    prior = simulator.prior
    return StoreMeta(
        names=tuple(prior.names),
        units=tuple(prior.units),
        prior_spec=prior.spec(),
        simulator=getattr(simulator, "name", None) or type(simulator).__name__,
        version=str(getattr(simulator, "version", "")),
        source_hash=provenance.source_hash(simulator),
        seed=seed,
        block=block,
        sbiflow_version=provenance.package_version(),
        git_revision=provenance.git_revision(simulator),
        created=provenance.now(),
    )


def _open_or_create(
    simulator: AnySimulator, n: int, path: Path, seed: int, block: int | None, dtype: str | None
) -> Store:
    if not path.exists():
        meta, shape = _describe(simulator, seed, block or default_block(simulator)), signal_shape(simulator)
        return Store.create(path, n=n, x_shape=shape, meta=meta, dtype=dtype or "float32")
    store = Store.open(path)
    differences = _describe(simulator, seed, block or store.meta.block).differences(store.meta)
    differences += shape_difference(store.x_shape, simulator)
    if dtype is not None and store.dtype != dtype:
        differences.append(f"dtype: expected {dtype}, got {store.dtype}")
    if differences:
        raise ValueError(
            f"{path}: this store is another simulation's; use another file. " + "; ".join(differences)
        )
    if n < store.n:
        raise ValueError(f"n: expected at least the {store.n} rows that {path} has, got {n}")
    _check_reproduces(store, simulator)
    return store.grow(n) if n > store.n else store


def _check_reproduces(store: Store, simulator: AnySimulator) -> None:
    """Raise unless the first valid row comes out again: settings of a simulator are in no source hash."""
    rows = store.valid_rows()[:1]
    if not len(rows):
        return
    row = int(rows[0])
    now = run_block(simulator, BlockTask(row, row + 1, store.meta.seed, THETA_KEY, ROW_KEY, store.dtype))
    theta, signal = store.read(rows)
    scale = 1e-4 * float(np.abs(signal).max())  # a batch of one may round differently
    same = np.allclose(now.theta, theta, rtol=1e-9, atol=0.0) and np.allclose(
        now.signal, signal, rtol=0, atol=scale
    )
    if not same:
        raise ValueError(
            f"{store.path}: expected row {row} to come out as {_brief(signal)}, got {_brief(now.signal)}: "
            "the simulator has other settings than the one that made this store, or randomness of its own; "
            "use another file"
        )


def _brief(values: np.ndarray) -> str:
    flat = values.ravel()
    return "[" + ", ".join(f"{value:.6g}" for value in flat[:4]) + (", …]" if flat.size > 4 else "]")


def _pending_blocks(store: Store) -> list[int]:
    """First rows of the blocks with a pending row."""
    size = store.meta.block
    return [int(start) for start in np.unique(np.flatnonzero(store.status == Status.PENDING) // size) * size]


def _fill(
    store: Store, simulator: AnySimulator, tasks: list[BlockTask], executor: Executor | None, progress: bool
) -> None:
    failed = store.n_failed
    with progress_bar(progress) as bar:
        job = bar.add_task(f"simulating {store.meta.simulator}", total=store.n, failed=failed)
        bar.update(job, completed=store.n - sum(task.stop - task.start for task in tasks))
        try:
            with store.writer() as writer:

                def receive(result: BlockResult) -> None:
                    nonlocal failed
                    writer.write(result.start, result.theta, result.signal, result.status, result.reasons)
                    failed += len(result.reasons)
                    bar.update(job, advance=len(result.status), failed=failed)

                run_blocks(simulator, tasks, executor, receive)
        except KeyboardInterrupt:
            text = f"stopped: {_kept(store)}"
            print(f"\n{text}", file=sys.stderr)
            raise KeyboardInterrupt(text) from None
        except Exception as error:
            if lost_workers(error):
                raise RuntimeError(
                    f"a worker process died (killed? out of memory?): {_kept(store)}"
                ) from error
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(error.errno, f"{store.path}: the disk is full: {_kept(store)}") from error
            raise


def _kept(store: Store) -> str:
    return f"{store.n_done} of {store.n} rows are kept in {store.path}; run the same again to continue"


def _report(store: Store) -> None:
    failures = store.failures()
    if not failures:
        return
    reasons = "; ".join(f"{f.rows} × {f.reason} (first: row {f.first_row})" for f in failures[:5])
    more = f"; and {len(failures) - 5} more reasons" if len(failures) > 5 else ""
    share = f"{store.n_failed} of {store.n} rows failed ({store.n_failed / store.n:.2%})"
    text = f"{store.path}: {share}: {reasons}{more}"
    if store.n_failed == store.n:
        raise ValueError(text)
    warnings.warn(text, SimulationWarning, stacklevel=3)
