"""Rows of stores by positional reads, which leave no pages in the process, and an eye on the files meanwhile."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from itertools import groupby
from threading import Event

import numpy as np
import torch

from sbiflow.priors import Prior
from sbiflow.store import Status
from sbiflow.store_file import Region, identity
from sbiflow.training.data import Rows
from sbiflow.training.shards import Shards

_AT_ONCE = 65_536  # rows whose parameters are transformed at once, in float64 and in several copies
_STATUS_AT_ONCE = 2**24  # rows

_Range = tuple[int, int]  # a row and the one after the last


class Reader:
    """Reads rows of stores that stay as they were when this was made, but for pending rows, which may be filled.

    Attributes:
        valid: (n,) bool, rows simulated without failure, counted through.
        stop: set from another thread, it ends what is being read.
    """

    def __init__(self, store: Shards, prior: Prior) -> None:
        self._store, self._prior, self.stop = store, prior, Event()
        self._starts = (0, *store.ends)
        self._written: dict[
            int, int
        ] = {}  # of complete stores the time of the last change: no one writes there
        self.valid = np.empty(store.n, bool)
        for i in range(len(store.stores)):
            self._read_status(i)

    def read(self, ranges: Iterable[_Range], chosen: np.ndarray, total: int) -> Rows:
        """The chosen rows within ranges, in their order, float32 on the CPU.

        Args:
            ranges: of rows, none across the end of a store.
            chosen: (n,) bool.
            total: number of chosen rows within the ranges.

        Raises:
            ValueError: signals that are not finite in float32; a store that has changed.
            CancelledError: `stop` was set.
        """
        theta = np.empty((total, len(self._store.meta.names)))
        signal, rows = np.empty((total, *self._store.x_shape), np.float32), np.empty(total, np.int64)
        done = 0
        for i, own in groupby(ranges, lambda span: bisect_right(self._store.ends, span[0])):
            with self._opened(i) as fd:
                for low, high in own:
                    if self.stop.is_set():
                        raise CancelledError
                    picked = np.flatnonzero(chosen[low:high])
                    part = slice(done, done := done + len(picked))
                    rows[part] = low + picked
                    for name, target in (("theta", theta), ("signal", signal)):
                        self._fill(target[part], fd, i, name, low, high, picked)
        self._check_finite(signal, rows)
        z = [self._prior.unconstrain(block)[0].float() for block in torch.from_numpy(theta).split(_AT_ONCE)]
        return Rows(torch.cat(z), torch.from_numpy(signal), torch.from_numpy(rows))

    def _fill(
        self, target: np.ndarray, fd: int, i: int, name: str, low: int, high: int, picked: np.ndarray
    ) -> None:
        if len(picked):
            values = self._values(fd, i, name, low, high)
            with np.errstate(over="ignore"):  # beyond float32 is found later, and named
                target[...] = values if len(picked) == len(values) else values[picked]

    def _values(self, fd: int, i: int, name: str, low: int, high: int) -> np.ndarray:
        """Rows low..high, counted through, of a dataset of store i."""
        store, start = self._store.stores[i], self._starts[i]
        values = _read_at(fd, store.layout[name], low - start, high - start)
        if values is None:
            raise ValueError(_changed(str(store.path), "a shorter file"))
        return values

    @contextmanager
    def _opened(self, i: int) -> Iterator[int]:
        """A descriptor of store i; raises at the end if the file is not, or no longer, the one that it was."""
        store = self._store.stores[i]
        fd = os.open(store.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if hasattr(os, "posix_fadvise"):  # no read-ahead, which would be thrown away
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            yield fd
            if identity(fd) != store.file_identity:
                raise ValueError(_changed(str(store.path), "one that was extended or replaced"))
            if self._written.get(i, found := os.fstat(fd).st_mtime_ns) != found:
                raise ValueError(_changed(str(store.path), "one that was written to"))
        finally:
            os.close(fd)

    def _read_status(self, i: int) -> None:
        start, end, pending = self._starts[i], self._starts[i + 1], False
        with self._opened(i) as fd:
            written = os.fstat(fd).st_mtime_ns
            for low in range(start, end, _STATUS_AT_ONCE):
                high = min(low + _STATUS_AT_ONCE, end)
                status = self._values(fd, i, "status", low, high)
                self.valid[low:high] = status == Status.OK
                pending |= bool((status == Status.PENDING).any())
        if not pending:
            self._written[i] = written

    def _check_finite(self, signal: np.ndarray, rows: np.ndarray) -> None:
        if not signal.size or bool(torch.stack(torch.from_numpy(signal).aminmax()).isfinite().all()):
            return
        bad = rows[~np.isfinite(signal.reshape(len(signal), -1)).all(1)]
        i = bisect_right(self._store.ends, bad[0])
        own = bad[bad < self._starts[i + 1]] - self._starts[i]
        raise ValueError(
            f"{self._store.stores[i].path}: expected finite signals, got NaN or inf in {len(own)} rows: "
            f"{own[:10].tolist()}"
        )


def _read_at(fd: int, region: Region, low: int, high: int) -> np.ndarray | None:
    """Rows low..high of a dataset; None if the file ends before."""
    values = np.empty((high - low, *region.shape[1:]), region.dtype)
    view, offset = memoryview(values.reshape(-1).view(np.uint8).data), region.offset + low * region.row_bytes
    while view:
        done = os.preadv(fd, [view], offset)
        if not done:
            return None
        view, offset = view[done:], offset + done
    return values


def _changed(path: str, got: str) -> str:
    return f"{path}: expected the store that training began with, got {got}"
