"""Writing blocks of rows into a store, in an order that a kill cannot spoil.

theta, signal and reasons first; then wait until they are on the disk; then the status. A row whose status is
not pending is therefore complete, after a kill as after a power cut.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from sbiflow.store_file import Region, sync_data, write_at

REASONS_PER_BLOCK = 8
REASON_BYTES = 120
COMMIT_SECONDS = 0.5  # a kill loses the finished blocks of this long at most, besides those being computed
FURTHER_REASONS = f"further reasons (the first {REASONS_PER_BLOCK - 1} of each block are kept)"


class StoreWriter:
    """Writes blocks in place; made by `Store.writer`."""

    def __init__(self, fd: int, layout: Mapping[str, Region], block: int) -> None:
        self._fd, self._layout, self._block = fd, layout, block
        self._uncommitted: list[tuple[int, np.ndarray]] = []
        self._committed_at = time.monotonic()

    def write(
        self,
        start: int,
        theta: np.ndarray,
        signal: np.ndarray,
        status: np.ndarray,
        reasons: Mapping[int, str],
    ) -> None:
        """Write the block whose first row is `start`; `reasons`: text by failed row, counted in the block."""
        index, table = _encode(len(status), reasons)
        for name, array in (("theta", theta), ("signal", signal), ("reason", index)):
            self._put(name, start, array)
        self._put("reasons", start // self._block, table)
        self._uncommitted.append((start, status))
        if time.monotonic() - self._committed_at > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Mark what was written as done, once it is on the disk."""
        if self._uncommitted:
            sync_data(self._fd)
            for start, status in self._uncommitted:
                self._put("status", start, status)
            self._uncommitted.clear()
        self._committed_at = time.monotonic()

    def _put(self, name: str, row: int, array: np.ndarray) -> None:
        region = self._layout[name]
        write_at(self._fd, array, region.dtype, region.offset + row * region.row_bytes)


def _encode(rows: int, reasons: Mapping[int, str]) -> tuple[np.ndarray, np.ndarray]:
    """The block's `reason` column (0: none, else 1 + place in the table) and its table of texts."""
    texts = {row: _shorten(reasons[row]) for row in sorted(reasons)}
    kept = list(dict.fromkeys(texts.values()))
    if len(kept) > REASONS_PER_BLOCK:
        kept = [*kept[: REASONS_PER_BLOCK - 1], _shorten(FURTHER_REASONS)]
    index = np.zeros(rows, np.uint8)
    for row, text in texts.items():
        index[row] = 1 + (kept.index(text) if text in kept else REASONS_PER_BLOCK - 1)
    table = np.zeros((1, REASONS_PER_BLOCK), f"S{REASON_BYTES}")
    table[0, : len(kept)] = kept
    return index, table


def _shorten(text: str) -> bytes:
    line = " ".join(text.replace("\0", " ").split())
    return line.encode()[:REASON_BYTES].decode(errors="ignore").encode()
