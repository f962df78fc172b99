"""Several stores as one: what the jobs of a cluster simulated side by side, each with its own seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from sbiflow.store import Store, StoreMeta

_OWN = ("seed", "block")  # what may differ between the stores


@dataclass(frozen=True)
class Shards:
    """Stores whose rows are counted through, in ascending order of their seeds; made by `Shards.of`.

    Attributes:
        stores: one or more, of one simulator, prior, shape and dtype.
    """

    stores: tuple[Store, ...]

    @classmethod
    def of(cls, stores: Store | Sequence[Store]) -> Shards:
        """One store, or several to train on as one, in any order.

        Raises:
            ValueError: none; stores of different simulators, priors, shapes or dtypes; two of the same seed, whose
                rows are the same rows.
        """
        given = (stores,) if isinstance(stores, Store) else tuple(stores)
        if not given or not all(isinstance(store, Store) for store in given):
            raise ValueError(f"store: expected one store or several, got {stores!r}")
        ordered = sorted(given, key=lambda store: store.meta.seed)
        for before, store in pairwise(ordered):
            _check_alike(ordered[0], store)
            if before.meta.seed == store.meta.seed:
                raise ValueError(
                    f"{store.path}: expected another seed than that of {before.path}, got {store.meta.seed} twice: "
                    "the same rows"
                )
        return cls(tuple(ordered))

    @property
    def path(self) -> str:
        """For messages: the file, or the first and how many more."""
        first, more = str(self.stores[0].path), len(self.stores) - 1
        return first + (f" and {more} more" if more else "")

    @property
    def meta(self) -> StoreMeta:
        """That of the first store."""
        return self.stores[0].meta

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one row of signal."""
        return self.stores[0].x_shape

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Of each store the number of rows up to its end."""
        return tuple(accumulate(store.n for store in self.stores))

    @property
    def n(self) -> int:
        """Rows asked for."""
        return self.ends[-1]

    @property
    def n_done(self) -> int:
        """Rows simulated, failed ones included."""
        return sum(store.n_done for store in self.stores)

    @property
    def n_ok(self) -> int:
        """Rows simulated without failure."""
        return sum(store.n_ok for store in self.stores)

    @property
    def n_failed(self) -> int:
        """Rows that failed."""
        return sum(store.n_failed for store in self.stores)

    def valid_rows(self) -> np.ndarray:
        """Rows simulated without failure, ascending, counted through."""
        starts = (0, *self.ends)
        return np.concatenate([store.valid_rows() + starts[i] for i, store in enumerate(self.stores)])

    def read(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """theta (n, D) and signal (n, *x_shape) of some rows, counted through."""
        if len(self.stores) == 1:
            return self.stores[0].read(rows)
        wanted = np.arange(self.n)[rows]
        owner = np.searchsorted(self.ends, wanted, side="right")
        theta = np.empty((len(wanted), len(self.meta.names)))
        signal = np.empty((len(wanted), *self.x_shape), self.stores[0].dtype)
        for i, store in enumerate(self.stores):
            chosen = np.flatnonzero(owner == i)
            theta[chosen], signal[chosen] = store.read(wanted[chosen] - (self.ends[i] - store.n))
        return theta, signal


def _check_alike(first: Store, other: Store) -> None:
    own = {name: getattr(other.meta, name) for name in _OWN}
    different = replace(first.meta, **own).differences(other.meta)
    for name in ("x_shape", "dtype"):
        expected, got = getattr(first, name), getattr(other, name)
        different += [f"{name}: expected {expected}, got {got}"] if expected != got else []
    if different:
        raise ValueError(
            f"{other.path}: expected a store like {first.path}, got another simulation's: {'; '.join(different)}"
        )
