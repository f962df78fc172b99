"""Simulate into a store with the workers of a cluster: what the simulate_*.sbatch scripts run.

    python analyses/cluster/simulate.py stokes --n 100000 --out sims.h5 --engine processes --workers 8
    python analyses/cluster/simulate.py stokes --n 100000 --out shards --shard 3
    mpiexec -n 9 python -m mpi4py.futures analyses/cluster/simulate.py stokes --n 100000 --out sims.h5 --engine mpi
    python analyses/cluster/simulate.py stokes --n 100000 --out sims.h5 --engine dask --scheduler-file dask.json

The same command continues a store that is not complete, with any engine and any number of workers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import sbiflow as sf
from sbiflow.cli.lookup import simulator_by_name
from sbiflow.optional import require

ENGINES = ("serial", "processes", "loky", "dask", "mpi")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("simulator", help="a name of `sbiflow list`, or package.module:attribute")
    parser.add_argument("--n", type=int, required=True, help="rows of the store (of each shard)")
    parser.add_argument(
        "--out", type=Path, required=True, help="the store, or with --shard the folder of shards"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the rows; shard i has the seed SEED + i")
    parser.add_argument("--shard", type=int, help="number of this shard: OUT/shard-00003.h5")
    parser.add_argument(
        "--block", type=int, help="rows per unit of work: what a kill can lose for each worker"
    )
    parser.add_argument("--timeout", type=float, help="seconds per row, for row-by-row simulators")
    parser.add_argument("--engine", choices=ENGINES, default="serial")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: the cores of this job"
    )
    parser.add_argument("--scheduler-file", type=Path, help="of a dask scheduler that runs already")
    return parser.parse_args(arguments)


@contextmanager
def engine(options: argparse.Namespace) -> Iterator[Executor | None]:
    """The executor that was asked for, shut down at the end."""
    if options.engine == "serial":
        yield None
    elif options.engine == "processes":
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
            yield pool
    elif options.engine == "loky":
        with require("loky", extra="dev").ProcessPoolExecutor(options.workers) as pool:
            yield pool
    elif options.engine == "mpi":
        with require("mpi4py.futures", extra="mpi").MPIPoolExecutor() as pool:
            yield pool
    else:
        with dask_executor(options) as pool:
            yield pool


@contextmanager
def dask_executor(options: argparse.Namespace) -> Iterator[Executor]:
    """Of the scheduler in a file, once it has a worker; or of a cluster on this machine."""
    distributed = require("distributed", extra="dask")
    if options.scheduler_file is not None:
        with distributed.Client(scheduler_file=str(options.scheduler_file), timeout=300) as client:
            client.wait_for_workers(1, timeout=600)
            yield client.get_executor()
        return
    settings = {"n_workers": options.workers, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**settings) as cluster, distributed.Client(cluster) as client:
        yield client.get_executor()


def target(options: argparse.Namespace) -> tuple[Path, int]:
    """File and seed: a shard has its own."""
    if options.shard is None:
        return options.out, options.seed
    options.out.mkdir(parents=True, exist_ok=True)
    return options.out / f"shard-{options.shard:05d}.h5", options.seed + options.shard


def main() -> None:
    options = parse()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that are started below
    path, seed = target(options)
    simulator = simulator_by_name(options.simulator)
    with engine(options) as executor:
        store = sf.simulate(
            simulator,
            options.n,
            path,
            seed=seed,
            executor=executor,
            block=options.block,
            timeout=options.timeout,
        )
    print(f"{store.n_ok:,} of {store.n:,} rows valid: {path}")


if __name__ == "__main__":
    main()
