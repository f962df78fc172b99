"""Run by test_stream.py in a process of its own: by how much reading one epoch raises the peak of resident memory.

Usage: python -m tests.training.peak_memory FILE GIGABYTES. The store holds zeros that were reserved, never written.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from sbiflow import Store
from sbiflow.simulate import _describe
from sbiflow.store import Status
from sbiflow.store_file import write_at
from sbiflow.training.shards import Shards
from sbiflow.training.stream import training_data
from tests.toys import LinearGaussian

ROWS, SHAPE = 50_000, (1000,)  # 200 MB


def zeros(path: Path) -> Store:
    """A store whose rows are all valid and zero."""
    store = Store.create(path, n=ROWS, x_shape=SHAPE, meta=_describe(LinearGaussian(), 0, 1024))
    region = store.layout["status"]
    with path.open("r+b") as file:
        write_at(file.fileno(), np.full(ROWS, Status.OK, np.uint8), region.dtype, region.offset)
    return store


def high_water() -> float:
    """Peak resident memory of this process [MB]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


def main(path: Path, gigabytes: float) -> float:
    """Megabytes."""
    store, prior = Shards.of(zeros(path)), LinearGaussian().prior
    prior.unconstrain(torch.zeros(2, 2))  # what torch loads late
    before = high_water()
    with training_data(store, prior, 0.05, 0, torch.device("cpu"), memory=gigabytes) as data:
        data.some(50_000)
        for step in range(len(data) // 512):
            data.batch(step, 512)
    return high_water() - before


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), float(sys.argv[2])))
