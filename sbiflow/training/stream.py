"""Training data that do not fit into memory: read from the disk while training, in the order of chunks.py.

A pool of rows is read by a thread while the one before it is trained on; there are never more than two. Reading is
positional (`preadv`): a memory map counts as memory of the process for every page that was touched. Batches, and so
pools, are functions of (seed, step): a run that goes on at some step reads that step's pool and no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from sbiflow.checks import check_positive
from sbiflow.priors import Prior
from sbiflow.seeding import torch_generator
from sbiflow.training.checkpoint import load_tensors
from sbiflow.training.chunks import Chunks, Epoch
from sbiflow.training.data import (
    MIN_ROWS,
    ORDER,
    Data,
    Rows,
    check_enough,
    held_out,
    load_training_data,
)
from sbiflow.training.memory import available_memory
from sbiflow.training.reader import Reader
from sbiflow.training.shards import Shards

_BUDGET = 10**9
# What shares the budget: a pool takes a fourth (there are two), the validation rows and the rows that the model starts
# from an eighth each, and as much again when they have become x.
_POOL, _KEPT = 4, 8
# Bytes of a chunk: so many that going elsewhere on the disk costs little, so few that a pool has many.
_CHUNK, _CHUNKS = 131_072, 256


class _Key(NamedTuple):
    """Which pool."""

    epoch: int
    number: int


class _Pool(NamedTuple):
    """Rows in the order of the disk, and the order that they are used in."""

    rows: Rows
    order: Tensor


@contextmanager
def training_data(
    store: Shards,
    prior: Prior,
    validation: float,
    seed: int,
    device: torch.device,
    split: int | None = None,
    memory: float | None = None,
    checkpoint: str | Path | None = None,
) -> Iterator[Data]:
    """The rows to train on: in memory if twice their size fits (loading holds two copies), otherwise from the disk.

    Args:
        store, prior, validation, seed, device, split: as for `load_training_data`.
        memory: [GB] what they may take; None for what is available now, and 1 GB if they come from the disk.
        checkpoint: with memory None, a run that has begun from the disk goes on from the disk, in the same order.

    Raises:
        ValueError: as `load_training_data` and `StreamedData`; memory is not positive.
    """
    limit = available_memory(device) if memory is None else budget_of(memory)
    from_disk = 2 * store.n_ok * _bytes_of_row(store) > limit
    if memory is None and checkpoint is not None and Path(checkpoint).exists():
        from_disk |= "order" in load_tensors(Path(checkpoint))[1].get("identity", {})
    if not from_disk:
        yield load_training_data(store, prior, validation, seed, device, split)
        return
    with StreamedData(store, prior, validation, seed, device, split, budget_of(memory)) as data:
        yield data


def budget_of(memory: float | None) -> int:
    """Bytes for rows from the disk, of which so many gigabytes may be in memory; 1 GB by default, the same anywhere.

    Raises:
        ValueError: not positive.
    """
    if memory is None:
        return _BUDGET
    check_positive(memory, "memory")
    return int(memory * 1e9)


def _bytes_of_row(store: Shards) -> int:
    """In memory: signal and z in float32, theta in float64 until it is z, number and place in the order in int64."""
    return 4 * int(np.prod(store.x_shape, dtype=np.int64)) + 12 * len(store.meta.names) + 16


class StreamedData:
    """The protocol `Data` from the disk; a context manager, at whose end its threads end.

    Rows are those that were simulated without failure when this was made. The split is that of `load_training_data`,
    with fewer validation rows if they would take more than an eighth of the budget.

    Args:
        store, prior, validation, seed, device, split: as for `load_training_data`.
        budget: bytes of rows in memory at a time.

    Raises:
        ValueError: fewer than 20 valid rows. Here and later: signals that are not finite in float32; a store that has
            changed.
    """

    def __init__(
        self,
        store: Shards,
        prior: Prior,
        validation: float,
        seed: int,
        device: torch.device,
        split: int | None = None,
        budget: int = _BUDGET,
    ) -> None:
        self._seed, self._device, self._ends = seed, device, store.ends
        self._reader = Reader(store, prior)
        row, pool = _bytes_of_row(store), budget // _POOL
        self._most = max(budget // _KEPT // row, MIN_ROWS)
        length = max(min(_CHUNK, pool // _CHUNKS) // row, 1)
        self._chunks = Chunks.of(store.ends, length, self._reader.valid)
        self.validation = self._hold_out(validation, seed if split is None else split, store.path)
        pools = min(-(-store.n * row // max(pool, row)), len(self._chunks))
        self._epoch = lru_cache(maxsize=2)(partial(Epoch.deal, self._chunks, pools, seed, ORDER))
        self.order = f"from disk, {pools} pools of chunks of {length} rows"
        self._threads = ThreadPoolExecutor(2, "sbiflow-reader")  # one reads ahead, one what is needed at once
        self._pools: dict[_Key, Future[_Pool]] = {}

    def _hold_out(self, share: float, seed: int, path: str) -> Rows:
        valid = self._chunks
        check_enough(valid.total, path)
        rows = valid.rows_of(held_out(valid.total, share, seed, self._most).numpy())
        found = self._read(rows)
        valid.chosen[rows] = False
        self._chunks = Chunks(valid.first, valid.chosen)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.stop.set()
        self._threads.shutdown(cancel_futures=True)
        self._pools.clear()

    def __len__(self) -> int:
        return self._chunks.total

    def some(self, n: int) -> Rows:
        return self._read(self._chunks.spread(min(n, self._most)))

    def batch(self, step: int, size: int, own: slice = slice(None)) -> tuple[Tensor, Tensor]:
        z, signal = [], []
        for pool, at in self._places(step, size, own):
            z.append(pool.rows.z.index_select(0, at))
            signal.append(pool.rows.signal.index_select(0, at))
        return self._moved(_joined(z)), self._moved(_joined(signal))

    def batch_rows(self, step: int, size: int) -> Tensor:
        return _joined([pool.rows.rows[at] for pool, at in self._places(step, size)])

    def _places(self, step: int, size: int, own: slice = slice(None)) -> Iterator[tuple[_Pool, Tensor]]:
        """The pools that a batch is in, one after the other, and which of their rows it takes.

        The pool to come is read when only the batch's last one is left.
        """
        size = min(size, len(self))
        per_epoch = len(self) // size
        epoch, position = divmod(step, per_epoch)
        wanted, ends = np.arange(position * size, (position + 1) * size)[own], self._epoch(epoch).ends
        owner = np.searchsorted(ends, wanted, side="right")
        for number in dict.fromkeys(owner.tolist()):
            key = _Key(epoch, number)
            pool, after = self._scheduled(key).result(), self._after(key, per_epoch * size)
            self._pools = {name: read for name, read in self._pools.items() if name in (key, after)}
            places = wanted[owner == number] - (ends[number] - len(pool.order))
            yield pool, pool.order[torch.from_numpy(places)]
        self._scheduled(after)

    def _after(self, key: _Key, used: int) -> _Key:
        """The pool after another; `used` rows of an epoch are, the incomplete last batch is not."""
        over = self._epoch(key.epoch).ends[key.number] >= used
        return _Key(key.epoch + 1, 0) if over else _Key(key.epoch, key.number + 1)

    def _scheduled(self, key: _Key) -> Future[_Pool]:
        if key not in self._pools:
            self._pools[key] = self._threads.submit(self._read_pool, key)
        return self._pools[key]

    def _read_pool(self, key: _Key) -> _Pool:
        hand, first = self._epoch(key.epoch).pools[key.number], self._chunks.first
        ranges = zip(first[hand].tolist(), first[hand + 1].tolist(), strict=True)
        rows = self._reader.read(ranges, self._chunks.chosen, int(self._chunks.counts[hand].sum()))
        # (…, epoch, 0) would be the stream (…, epoch), of the dealing
        dice = torch_generator(self._seed, ORDER, key.epoch, 1 + key.number)
        return _Pool(rows, torch.randperm(len(rows.z), generator=dice))

    def _read(self, rows: np.ndarray) -> Rows:
        """Chosen rows in any order, z and signal on the device."""
        ascending, place = np.unique(rows, return_inverse=True)
        cuts = np.flatnonzero((np.diff(ascending) != 1) | np.isin(ascending[1:], self._ends)) + 1
        ranges = [(part[0], part[-1] + 1) for part in np.split(ascending, cuts)]
        found, at = self._reader.read(ranges, self._chunks.chosen, len(rows)), torch.from_numpy(place)
        return Rows(found.z[at].to(self._device), found.signal[at].to(self._device), found.rows[at])

    def _moved(self, values: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return values
        return values.pin_memory().to(self._device, non_blocking=True)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
