"""The published distractors of SLCP, read from the files of sbibm 1.1 (`tasks/slcp/files`), which are not ours to ship.

They were written by pickling a distribution object. Only the numbers are read here, and no code in the file is run:
in torch's old format every array stands in the file as its length (int64) followed by its values.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch

from simulators.benchmark.distractors import Distractors
from simulators.benchmark.slcp import SLCPDistractors

_COMPONENTS, _DIM = 20, 92


def published_distractors(folder: str | Path) -> SLCPDistractors:
    """The task with the published mixture and permutation, so that published observations are its own.

    Args:
        folder: with `gmm.torch` and `permutation_idx.torch`.

    Raises:
        ValueError: a file holds something else.
        OSError: a file cannot be read.
    """
    folder = Path(folder)
    path = folder / "gmm.torch"
    content = path.read_bytes()
    loc = _array(content, _COMPONENTS * _DIM, path).reshape(_COMPONENTS, _DIM)
    scale = _array(content, _COMPONENTS * _DIM * _DIM, path).reshape(_COMPONENTS, _DIM, _DIM)
    permutation = torch.load(folder / "permutation_idx.torch", weights_only=True)
    return SLCPDistractors(Distractors(torch.from_numpy(loc), torch.from_numpy(scale)), permutation)


def _array(content: bytes, length: int, path: Path) -> np.ndarray:
    """The float64 array of this length."""
    mark = struct.pack("<q", length)
    start = content.find(mark) + len(mark)
    if content.count(mark) != 1 or start + 8 * length > len(content):
        raise ValueError(f"{path}: expected one array of {length} numbers, got {content.count(mark)}")
    return np.frombuffer(content, np.float64, length, start).copy()
