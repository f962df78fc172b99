"""Stores written for the tests of training from the disk, and orders of their rows that are worse than ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sbiflow import Store
from sbiflow.store import Status
from sbiflow.training.chunks import Chunks, Epoch


def written(path: Path, like: Store, order: np.ndarray, failed: Sequence[int] = (), dtype="float32") -> Store:
    """A complete store of the rows `order` of another, some of them marked as failed, their signals NaN."""
    theta, signal = like.read(order)
    status = np.full(len(order), Status.OK, np.uint8)
    status[list(failed)], signal[list(failed)] = Status.EXCEPTION, np.nan
    meta = replace(like.meta, block=len(order))
    store = Store.create(path, n=len(order), x_shape=like.x_shape, meta=meta, dtype=dtype)
    with store.writer() as writer:
        writer.write(0, theta, signal, status, dict.fromkeys(failed, "no solution"))
    return store


def sorted_by_first_parameter(path: Path, like: Store) -> Store:
    """The same rows, ascending in the first parameter."""
    return written(path, like, np.argsort(like.theta()[:, 0]))


def one_after_the_other(cls: type[Epoch], chunks: Chunks, pools: int, seed: int, *key: int) -> Epoch:
    """Plain sequential reading with a shuffle buffer: pools are stretches of the disk."""
    hands = np.array_split(np.arange(len(chunks)), pools)
    return cls(hands, np.cumsum([chunks.counts[hand].sum() for hand in hands]))


def drawn_freely(cls: type[Epoch], chunks: Chunks, pools: int, seed: int, *key: int) -> Epoch:
    """Chunks permuted without strata."""
    dice = torch.Generator().manual_seed(seed + 1000 * key[-1])
    hands = [np.sort(hand) for hand in np.array_split(torch.randperm(len(chunks), generator=dice), pools)]
    return cls(hands, np.cumsum([chunks.counts[hand].sum() for hand in hands]))
