"""Integrands at the top level of a module, so that a process can be sent them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch


def numpy_batch(x: np.ndarray) -> np.ndarray:
    """x0 - x1²; fails on a single point and on torch."""
    return np.subtract(np.asarray(x[:, 0]), np.power(x[:, 1], 2), dtype=np.float64)


def torch_batch(x: torch.Tensor) -> torch.Tensor:
    """The same, on torch only."""
    return x.select(dim=1, index=0) - x.select(dim=1, index=1).square()


def scalar(x: Any) -> float:
    """The same, one point at a time."""
    return float(x[0]) - math.pow(x[1], 2)


def vector(x: np.ndarray) -> np.ndarray:
    """Three components."""
    return np.stack([numpy_batch(x), np.sin(x[:, 0]), x[:, 0] * 0.0], axis=1)


def vector_scalar(x: np.ndarray) -> list[float]:
    """The same three, one point at a time."""
    return [scalar(x), math.sin(x[0]), 0.0]


def fails_at_large_x(x: np.ndarray) -> np.ndarray:
    """Raises where x0 > 2."""
    if bool((x[:, 0] > 2.0).any()):
        raise ArithmeticError("no convergence")
    return x[:, 0]


def truth(x: torch.Tensor) -> torch.Tensor:
    """What all of the single-valued ones are."""
    return x[:, 0] - x[:, 1] ** 2
