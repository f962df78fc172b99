"""Stores and posteriors small enough to be made inside a test."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from sbiflow import EmbeddingConfig, FlowConfig, Posterior, Store, TrainConfig, simulate, train

FLOW = FlowConfig(layers=2, hidden=24, blocks=1, bins=5)  # wide enough for Muon to have matrices of its own
EMBEDDING = EmbeddingConfig("residual", features=8, hidden=20, blocks=1)
# which one depends on the bytes of the header, here the length of a JSON text
NOT_A_PICKLE = (
    pickle.UnpicklingError, ValueError, KeyError, EOFError, IndexError, AttributeError, ImportError, TypeError,
)  # fmt: skip
CONFIG = TrainConfig(steps=40, batch=64, validate_every=10, patience=None)


def quick_store(path: Path, simulator: Any, n: int = 600, seed: int = 3, **options: Any) -> Store:
    """A store of n rows."""
    return simulate(simulator, n, path, seed=seed, progress=False, **options)


def quick_train(store: Store, simulator: Any, config: TrainConfig = CONFIG, **options: Any) -> Posterior:
    """A posterior after a tenth of a second of training."""
    return train(
        store, simulator, config, **{"flow": FLOW, "embedding": EMBEDDING, "progress": False, **options}
    )


def same_weights(first: Posterior, second: Posterior) -> bool:
    """Whether two posteriors agree to the bit."""
    a, b = first.flow.state_dict(), second.flow.state_dict()
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
