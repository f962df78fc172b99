"""Random streams that can be entered at any row, so that results do not depend on batches, workers or restarts.

NumPy's Philox is counter-based: row i of a stream is reached by setting the counter, without drawing the rows
before it. Every stream is keyed by (seed, *key), so simulation, training and sampling never share one.
"""

from __future__ import annotations

import numpy as np
import torch

_WORDS_PER_COUNT = 4  # Philox4x64 yields four 64-bit words per counter increment


def _philox_key(seed: int, key: tuple[int, ...]) -> np.ndarray:
    return np.random.SeedSequence([seed, *key]).generate_state(2, np.uint64)


def check_seed(seed: int) -> int:
    """The seed as an int; raise ValueError unless it is a whole number >= 0."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed: expected a whole number >= 0, got {seed!r}")
    return int(seed)


def uniform_rows(seed: int, start: int, stop: int, dim: int, *key: int) -> np.ndarray:
    """Rows start..stop of an endless (rows, dim) table of uniforms in the open interval (0, 1), float64.

    >>> bool((uniform_rows(1, 0, 9, 5)[4:] == uniform_rows(1, 4, 9, 5)).all())
    True
    """
    counts = -(-dim // _WORDS_PER_COUNT)
    bits = np.random.Philox(key=_philox_key(check_seed(seed), key))
    bits.advance(start * counts)
    width = counts * _WORDS_PER_COUNT
    words = np.random.Generator(bits).random((stop - start, width))
    return np.maximum(words[:, :dim], 2.0**-54)  # multiples of 2^-53 below 1: only 0 has to be kept out


def row_rng(seed: int, row: int, *key: int) -> np.random.Generator:
    """The generator that belongs to one row: independent of every other row's."""
    return np.random.Generator(np.random.Philox(key=_philox_key(check_seed(seed), key), counter=row << 128))


def torch_generator(seed: int, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for (seed, *key) on a device."""
    state = np.random.SeedSequence([check_seed(seed), *key]).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(state >> np.uint64(1)))
