"""How the processes of a distributed run find each other, and what only one of them may do."""

from __future__ import annotations

import atexit
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from sbiflow.training.distributed import Team

if dist.is_available():
    # The defaults of its functions are the group at the time of import. torch imports it with the first optimiser; our
    # group would then outlive `_leave`, and a thread of gloo that frees a tensor late would abort the process at exit.
    import torch.distributed.nn.functional

_ADDRESS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells its processes
_TIMEOUT = timedelta(minutes=10)  # for a process that hangs; one that has died is noticed at once
_PATIENCE = timedelta(days=30)  # while process 0 simulates
_POLL = 0.02  # s


def join() -> Team:
    """The processes that torchrun has started, or that the program has put into a group; a team of one elsewhere.

    A group that the program has initialised itself is used as it is, and never closed; otherwise one is made at the
    first call, for the life of the process.
    """
    if not dist.is_available():
        return Team()
    if not dist.is_initialized():
        if not os.environ.keys() >= set(_ADDRESS) or os.environ["WORLD_SIZE"] == "1":
            return Team()
        _start()
    return Team(dist.get_rank(), dist.get_world_size())


def _start() -> None:
    store, rank, size = next(dist.rendezvous("env://", timeout=_TIMEOUT))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    life = dist.PrefixStore(_agree(store, rank, size), store)
    dist.init_process_group(backend, store=life, rank=rank, world_size=size, timeout=_TIMEOUT)
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _agree(store: dist.Store, rank: int, size: int) -> str:
    """A name for this life of the processes, the same for all and never used before.

    When torchrun restarts its processes, its store still has the addresses of those that are gone, under the same keys
    (https://github.com/pytorch/pytorch/issues/135712, 167288), and the count of restarts that it gives them may differ
    between machines. So process r asks under a word of its own, which no earlier life has answered, and process 0
    answers every word that it finds until the last has been understood.
    """
    mine = uuid.uuid4().hex
    if rank:
        store.set(f"sbiflow/ask/{rank}", mine)
        name = store.get(f"sbiflow/answer/{mine}").decode()
        store.set(f"sbiflow/{name}/{rank}", "understood")
        return name
    waiting, answered = set(range(1, size)), set()
    while waiting:
        for other in [other for other in waiting if store.check([f"sbiflow/ask/{other}"])]:
            word = store.get(f"sbiflow/ask/{other}").decode()
            if word not in answered:
                store.set(f"sbiflow/answer/{word}", mine)
                answered.add(word)
        waiting = {other for other in waiting if not store.check([f"sbiflow/{mine}/{other}"])}
        time.sleep(_POLL)
    return mine


def is_rank_zero() -> bool:
    """Whether this is process 0 of a distributed run, or the only process: the one to write figures and reports."""
    return join().rank == 0


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Process 0 runs the block, then the others run it: for a store, which only one process may fill.

        with rank_zero_first():
            store = simulate(simulator, 200_000, "sims.h5", seed=1)

    The others find the store complete and open it. In a single process it does nothing.

    Raises:
        RuntimeError: in the others, if the block has raised in process 0; they do not run it then.
    """
    team = join()
    if team.size == 1:
        yield
        return
    group, failed = dist.new_group(backend="gloo", timeout=_PATIENCE), torch.zeros(1)
    try:
        if team.rank == 0:
            failed += 1
            yield
            failed -= 1
    finally:
        dist.all_reduce(failed, group=group)
        dist.destroy_process_group(group)
    if team.rank and failed:
        raise RuntimeError("rank_zero_first: process 0 has failed in the block that it was to run first")
    if team.rank:
        yield
