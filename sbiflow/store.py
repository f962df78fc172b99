"""The store: simulations on disk, one HDF5 file that survives a kill at any moment.

Datasets: `theta` (n, D) float64, `signal` (n, *x_shape), `status` (n,) and `reason` (n,) uint8, and `reasons`
(blocks, 8), the texts that `reason` points to. Rows belong to blocks on a fixed grid; each block has its own
table of reasons, so that a block's bytes depend on nothing but the block, and the whole file is the same
whatever the order in which the blocks were finished.

A row's status is written last (store_writer.py), so a row that is not `PENDING` is complete. There is no
stored count of rows done that could disagree: it is counted from `status`. What HDF5 is (and is not) used for
is explained in store_file.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sbiflow.store_file import Region, copy_rows, create_file, identity, locked, read_layout
from sbiflow.store_meta import StoreMeta
from sbiflow.store_writer import REASON_BYTES, REASONS_PER_BLOCK, StoreWriter

__all__ = ["Failure", "Status", "Store", "StoreMeta", "StoreWriter"]

FORMAT = "sbiflow-store"
FORMAT_VERSION = 1
_DATASETS = ("theta", "signal", "status", "reason", "reasons")


class Status(IntEnum):
    """What became of a row."""

    PENDING = 0
    OK = 1
    NOT_FINITE = 2
    EXCEPTION = 3
    TIMEOUT = 4


class Failure(NamedTuple):
    """A reason for which rows failed, the number of rows, and the first of them."""

    reason: str
    rows: int
    first_row: int


@dataclass(frozen=True)
class Store:
    """A store on disk; holds no open file. Open with `Store.open`, fill with `sbiflow.simulate`.

    `n` is the number of rows asked for, `n_done` of rows simulated, `n_ok` of rows to train on.
    """

    path: Path
    meta: StoreMeta
    layout: Mapping[str, Region]
    file_identity: tuple[int, int, int]

    @classmethod
    def create(
        cls, path: str | Path, *, n: int, x_shape: Sequence[int], meta: StoreMeta, dtype: str = "float32"
    ) -> Store:
        """A new store of n pending rows, its disk space reserved.

        Raises:
            ValueError: the file exists already, or its folder does not.
            OSError: the disk has no room for it (nothing is left behind).
        """
        path = Path(path)
        if path.exists():
            raise ValueError(f"{path}: expected a new file, got an existing one")
        create_file(path, _arrays(n, tuple(x_shape), meta, dtype), _attributes(meta))
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """An existing store.

        Raises:
            ValueError: missing, truncated, not a store, or of a newer format; one line that says which.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path}: expected a store made by `sbiflow simulate`, got no such file")
        with path.open(
            "rb"
        ) as file:  # one file, though a run that extends the store may replace it meanwhile
            attributes, layout = read_layout(file)
            file_identity = identity(file.fileno())
        if attributes.get("format") != FORMAT or any(name not in layout for name in _DATASETS):
            raise ValueError(
                f"{path}: expected a store made by `sbiflow simulate`, got another kind of HDF5 file"
            )
        if int(attributes["format_version"]) != FORMAT_VERSION:
            found = attributes["format_version"]
            raise ValueError(f"{path}: expected store format {FORMAT_VERSION}, got {found}: update sbiflow")
        return cls(path, StoreMeta.from_attributes(attributes), layout, file_identity)

    @property
    def n(self) -> int:
        """Rows in the store, finished or not."""
        return self.layout["theta"].shape[0]

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one row of signal: the simulator's x_shape, or its signal_shape if it has one."""
        return self.layout["signal"].shape[1:]

    @property
    def dtype(self) -> str:
        """dtype of the signal."""
        return self.layout["signal"].dtype.name

    @property
    def status(self) -> np.ndarray:
        """(n,) uint8 of `Status` values, read now."""
        return self._read("status")

    @property
    def n_done(self) -> int:
        """Rows simulated, failed ones included."""
        return int(np.count_nonzero(self.status))

    @property
    def n_ok(self) -> int:
        """Rows simulated without failure."""
        return int(np.count_nonzero(self.status == Status.OK))

    @property
    def n_failed(self) -> int:
        """Rows that failed, see `failures`."""
        return int(np.count_nonzero(self.status > Status.OK))

    def __len__(self) -> int:
        return self.n

    def valid_rows(self) -> np.ndarray:
        """Indices of the rows simulated without failure, ascending."""
        return np.flatnonzero(self.status == Status.OK)

    def theta(self, valid: bool = True) -> np.ndarray:
        """Parameters in physical units, (n_ok, D) float64, or all (n, D) rows (pending ones are zero)."""
        return self._read("theta", self._selection(valid))

    def signal(self, valid: bool = True) -> np.ndarray:
        """Signals, (n_ok, *x_shape), or all rows (failed ones are NaN, pending ones zero)."""
        return self._read("signal", self._selection(valid))

    def read(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """theta and signal of some rows (a slice or indices into the n rows), without reading the others.

        While another process fills the store, `read(valid_rows())` is the pair that belongs together.
        """
        return self._read("theta", rows), self._read("signal", rows)

    def failures(self) -> list[Failure]:
        """Why rows failed: (reason, count, first row), the most frequent first."""
        rows = np.flatnonzero(self.status > Status.OK)
        texts = self._read("reasons")[
            rows // self.meta.block, self._read("reason")[rows].astype(np.int64) - 1
        ]
        unique, first, count = np.unique(texts, return_index=True, return_counts=True)
        found = [
            Failure(t.decode(), int(c), int(rows[f])) for t, f, c in zip(unique, first, count, strict=True)
        ]
        return sorted(found, key=lambda failure: (-failure.rows, failure.first_row))

    def grow(self, n: int) -> Store:
        """The same store with room for n rows, put in place of this one at once when it is complete.

        A last block that was cut short by the old n becomes pending, so that the result has the same bytes as
        a store that had n rows from the start.
        """
        if n <= self.n:
            raise ValueError(f"n: expected more than the {self.n} rows of {self.path}, got {n}")
        blocks = self.n // self.meta.block
        keep = dict.fromkeys(_DATASETS, blocks * self.meta.block) | {"reasons": blocks}
        with locked(self.path) as source:
            self._check_same(source)

            def fill(target: int, layout: Mapping[str, Region]) -> None:
                for name, rows in keep.items():
                    copy_rows(source, self.layout[name], target, layout[name], rows)

            arrays = _arrays(n, self.x_shape, self.meta, self.dtype)
            create_file(self.path, arrays, _attributes(self.meta), fill)
        return Store.open(self.path)

    @contextmanager
    def writer(self) -> Iterator[StoreWriter]:
        """Exclusive access for writing; what was written is committed at the end, also after an exception."""
        with locked(self.path) as fd:
            self._check_same(fd)
            writer = StoreWriter(fd, self.layout, self.meta.block)
            try:
                yield writer
            finally:
                writer.commit()

    def _selection(self, valid: bool) -> slice | np.ndarray:
        rows = self.valid_rows() if valid else None
        return slice(None) if rows is None or len(rows) == self.n else rows

    def _read(self, name: str, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        with self.path.open("rb") as file:
            self._check_same(file.fileno())
            return np.array(self.layout[name].map(file)[rows])

    def _check_same(self, fd: int) -> None:
        if identity(fd) != self.file_identity:
            raise ValueError(
                f"{self.path}: the store was extended or replaced since it was opened: open it again"
            )


def _arrays(
    n: int, x_shape: tuple[int, ...], meta: StoreMeta, dtype: str
) -> dict[str, tuple[tuple[int, ...], str]]:
    if dtype not in ("float32", "float64"):
        raise ValueError(f'dtype: expected "float32" or "float64", got {dtype!r}')
    kind = np.dtype(dtype).newbyteorder("<").str
    return {
        "theta": ((n, len(meta.names)), "<f8"),
        "signal": ((n, *x_shape), kind),
        "status": ((n,), "|u1"),
        "reason": ((n,), "|u1"),
        "reasons": ((-(-n // meta.block), REASONS_PER_BLOCK), f"|S{REASON_BYTES}"),
    }


def _attributes(meta: StoreMeta) -> dict[str, Any]:
    return {"format": FORMAT, "format_version": FORMAT_VERSION, **meta.attributes()}
