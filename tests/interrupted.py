"""Run by test_simulate.py: simulate slowly and say when the first block is on its way, to be sent a SIGINT.

Usage: python -m tests.interrupted PATH
"""

from __future__ import annotations

import sys
import time

import torch

from sbiflow.simulate import simulate
from tests.toys import LinearGaussian


class Announcing(LinearGaussian):
    """A block takes 20 ms; the fourth call tells the parent."""

    def signal(self, theta: torch.Tensor) -> torch.Tensor:
        global calls
        calls += 1
        if calls == 4:
            print("ready", flush=True)
        time.sleep(0.02)
        return super().signal(theta)


calls = 0

if __name__ == "__main__":
    simulate(Announcing(), 4000, sys.argv[1], seed=1, block=10, progress=False)
