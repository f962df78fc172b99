"""Multiplications in matrix products, counted: torch's own FlopCounterMode does not see in-place ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_LEFT, _RIGHT = {"mm": 0, "addmm": 1, "addmm_": 1}, {"mm": 1, "addmm": 2, "addmm_": 2}


class Products(TorchDispatchMode):
    """`count` is the number of multiplications in the matrix products that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in _LEFT:
            left, right = args[_LEFT[name]], args[_RIGHT[name]]
            self.count += left.shape[0] * left.shape[1] * right.shape[1]
        return function(*args, **(kwargs or {}))


def multiplications(call: Callable[..., object], *args: torch.Tensor | None) -> int:
    """In the matrix products of call(*args)."""
    with Products() as counter:
        call(*args)
    return counter.count
