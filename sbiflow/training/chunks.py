"""The order of the rows of an epoch that is read from a disk: seeded, another in every epoch, cheap to enter anywhere.

A disk gives chunks of consecutive rows, and consecutive rows may be alike (a store sorted by a parameter). So an
epoch is divided into pools of chunks from all over the store, and the rows of a pool are permuted as a whole. With P
pools, every P neighbouring chunks are dealt to the pools at random, one to each: a stratified sample (Cochran 1977,
Sampling Techniques, ch. 5), in which every part of the store has its share of every pool. Chunks that were drawn
independently would shift a pool as a whole by up to 1 / sqrt(chunks in it) standard deviations of a parameter, and all
of its batches with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from sbiflow.seeding import torch_generator

_RUNS = 4096  # places of the store that a sample of its rows is taken from


@dataclass(frozen=True)
class Chunks:
    """The chunks of a store, or of several whose rows are counted through.

    Attributes:
        first: (chunks + 1,) row that each chunk begins with, and the number of rows.
        chosen: (rows,) bool, the rows that count: a byte for each row is all that is kept of the store.
    """

    first: np.ndarray
    chosen: np.ndarray

    @classmethod
    def of(cls, ends: Sequence[int], length: int, chosen: np.ndarray) -> Chunks:
        """Chunks of at most `length` rows, none across one of `ends`, those of the stores."""
        starts = [np.arange(begin, end, length) for begin, end in zip((0, *ends), ends, strict=False)]
        return cls(np.append(np.concatenate(starts), ends[-1]), chosen)

    def __len__(self) -> int:
        return len(self.first) - 1

    @cached_property
    def counts(self) -> np.ndarray:
        """(chunks,) chosen rows in each."""
        return np.add.reduceat(self.chosen, self.first[:-1], dtype=np.int64)

    @cached_property
    def ends(self) -> np.ndarray:
        """(chunks,) chosen rows up to the end of each."""
        return self.counts.cumsum()

    @property
    def total(self) -> int:
        """Chosen rows."""
        return int(self.ends[-1])

    def rows_of(self, numbers: np.ndarray) -> np.ndarray:
        """The rows that are chosen row number 0, 1, … (m,), in any order."""
        owner = np.searchsorted(self.ends, numbers, side="right")
        places = numbers - (self.ends - self.counts)[owner]
        spans = zip(self.first[owner], self.first[owner + 1], places, strict=True)
        rows = [low + np.flatnonzero(self.chosen[low:high])[place] for low, high, place in spans]
        return np.array(rows, np.int64)

    def spread(self, n: int) -> np.ndarray:
        """At most n chosen rows, ascending: runs of neighbours at evenly spaced places."""
        n = min(n, self.total)
        runs = n if n == self.total else min(n, _RUNS)
        begin = np.arange(runs) * self.total // runs
        return self.rows_of((begin[:, None] + np.arange(n // runs)).ravel())


@dataclass(frozen=True)
class Epoch:
    """The pools of one epoch.

    Attributes:
        pools: the chunks of each pool, ascending.
        ends: (pools,) chosen rows up to the end of each.
    """

    pools: list[np.ndarray]
    ends: np.ndarray

    @classmethod
    def deal(cls, chunks: Chunks, pools: int, seed: int, *key: int) -> Epoch:
        """Deal the chunks by the stream (seed, *key)."""
        strata = -(-len(chunks) // pools)
        dice = torch.rand((strata, pools), generator=torch_generator(seed, *key), dtype=torch.float64)
        dealt = dice.argsort(1).numpy() + pools * np.arange(strata)[:, None]
        hands = [hand[hand < len(chunks)] for hand in dealt.T]  # the last stratum may be short
        return cls(hands, np.cumsum([chunks.counts[hand].sum() for hand in hands]))
