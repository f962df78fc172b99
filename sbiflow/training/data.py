"""What the loop reads; every random choice is a function of (seed, what, step), so a restart needs no state.

Here: whole arrays on the device. What does not fit into memory comes from the disk, see stream.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sbiflow.contracts import RowSimulator, Simulator
from sbiflow.observing import extrinsic_columns, redraw_base
from sbiflow.priors import Prior
from sbiflow.seeding import torch_generator
from sbiflow.store import Store
from sbiflow.training.shards import Shards

# keys of the random streams
SPLIT, ORDER, NOISE, VALIDATION_NOISE, DROPOUT, EXTRINSIC, VALIDATION_EXTRINSIC = range(7)
_MAX_VALIDATION = 10_000
_WHOLE_SPLIT = 2**24  # rows whose permutation may be in memory
MIN_ROWS = 20


class Rows(NamedTuple):
    """Base-space parameters z (n, D), signals (n, *signal_shape), and the rows of the store that they are, (n,)."""

    z: Tensor
    signal: Tensor
    rows: Tensor


class Data(Protocol):
    """What the training loop reads: in memory (`TrainingData`) or from disk (`StreamedData`)."""

    @property
    def order(self) -> str:
        """What besides the seed the order of the rows depends on; "" for a permutation of all of them."""
        ...

    @property
    def validation(self) -> Rows:
        """The rows held out, on the device."""
        ...

    def __len__(self) -> int:
        """Training rows."""
        ...

    def some(self, n: int) -> Rows:
        """At most n training rows, spread over the whole store, on the device."""
        ...

    def batch(self, step: int, size: int, own: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """z and signal of the rows `own` of the batch of a step, on the device."""
        ...

    def batch_rows(self, step: int, size: int) -> Tensor:
        """Rows of the store that a batch is made of, on the CPU."""
        ...


@dataclass(frozen=True)
class TrainingData:
    """Base-space parameters z (n, D) and signals (n, *signal_shape), float32 on the device, split once by the seed.

    Extrinsic columns of z are those of the store: they are redrawn for every x that is made.
    """

    z: Tensor
    signal: Tensor
    z_validation: Tensor
    signal_validation: Tensor
    rows: Tensor  # row of the store that each training row is, for error messages
    rows_validation: Tensor
    seed: int

    def __len__(self) -> int:
        return len(self.z)

    @property
    def order(self) -> str:
        return ""

    @property
    def validation(self) -> Rows:
        return Rows(self.z_validation, self.signal_validation, self.rows_validation)

    def some(self, n: int) -> Rows:
        chosen = torch.arange(min(n, len(self))) * len(self) // min(n, len(self))
        on_device = chosen.to(self.z.device)
        return Rows(self.z[on_device], self.signal[on_device], self.rows[chosen])

    def batch(self, step: int, size: int, own: slice = slice(None)) -> tuple[Tensor, Tensor]:
        rows = self.indices(step, size)[own]
        return self.z.index_select(0, rows), self.signal.index_select(0, rows)

    def batch_rows(self, step: int, size: int) -> Tensor:
        return self.rows[self.indices(step, size).cpu()]

    def indices(self, step: int, batch: int) -> Tensor:
        """Rows of one batch: consecutive slices of a fresh permutation per epoch; the incomplete last is left out."""
        size = min(batch, len(self))
        per_epoch = len(self) // size
        epoch, position = divmod(step, per_epoch)
        return _order(self.seed, epoch, len(self))[position * size : (position + 1) * size].to(self.z.device)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> Tensor:
    return torch.randperm(rows, generator=torch_generator(seed, ORDER, epoch))


def load_training_data(
    store: Store | Shards,
    prior: Prior,
    validation: float,
    seed: int,
    device: torch.device,
    split: int | None = None,
) -> TrainingData:
    """Read the valid rows of a store, transform the parameters, split and move to the device.

    `split` is the seed of the split, if that is to be another one than `seed` (an ensemble shares its split).

    Raises:
        ValueError: fewer than 20 valid rows, or signals that are not finite in float32.
    """
    in_store = store.valid_rows()
    check_enough(len(in_store), str(store.path))
    pair = store.read(slice(None) if len(in_store) == store.n else in_store)
    theta, signal = torch.from_numpy(pair[0]), torch.from_numpy(pair[1]).float()
    bad = in_store[~torch.isfinite(signal.reshape(len(signal), -1)).all(1).numpy()].tolist()
    if bad:
        raise ValueError(
            f"{store.path}: expected finite signals, got NaN or inf in {len(bad)} rows: {bad[:10]}"
        )
    z = prior.unconstrain(theta)[0].float()
    valid = held_out(len(z), validation, seed if split is None else split)
    training = torch.ones(len(z), dtype=torch.bool)
    training[valid] = False
    train = training.nonzero().squeeze(1)
    rows = torch.from_numpy(in_store)
    return TrainingData(
        z[train].to(device), signal[train].to(device), z[valid].to(device), signal[valid].to(device),
        rows[train], rows[valid], seed,
    )  # fmt: skip


def check_enough(rows: int, path: str) -> None:
    """Raise unless so many valid rows will do to train on."""
    if rows < MIN_ROWS:
        raise ValueError(f"{path}: expected at least {MIN_ROWS} valid rows to train on, got {rows}")


def held_out(rows: int, share: float, seed: int, most: int = _MAX_VALIDATION) -> Tensor:
    """Which of 0 … rows - 1 are held out: a share of them, at most 10,000; with another `most` the first so many."""
    count = min(max(int(share * rows), 1), _MAX_VALIDATION, most)
    if rows <= _WHOLE_SPLIT:
        return torch.randperm(rows, generator=torch_generator(seed, SPLIT))[:count]
    dice = np.random.default_rng([seed, SPLIT])  # in memory proportional to what is drawn
    return torch.from_numpy(dice.choice(rows, min(_MAX_VALIDATION, rows), replace=False)[:count])


def redrawn(simulator: Simulator | RowSimulator, z: Tensor, seed: int, *key: int) -> Tensor:
    """z (n, D) with the simulator's extrinsic columns, if any, drawn from the prior by the stream (seed, *key)."""
    columns = extrinsic_columns(simulator)
    if not columns:
        return z
    return redraw_base(z, columns, simulator.prior.periodic, torch_generator(seed, *key, device=z.device))
