"""Checks at the public boundary: one clear line, with what was expected and what came, before any work starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(value: Any, name: str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor from an array, a sequence or a tensor; floating point (float64 unless it already is floating).

    Raises:
        ValueError: `value` is not numeric.
    """
    try:
        tensor = value if isinstance(value, Tensor) else _from_array(np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected numbers, got {type(value).__name__} ({error})") from None
    if dtype is None and not tensor.is_floating_point():
        dtype = torch.float64
    return tensor if dtype is None else tensor.to(dtype)


def _from_array(array: np.ndarray) -> Tensor:
    """torch takes no reversed view, no other byte order (FITS has it) and warns of read-only memory."""
    return torch.as_tensor(np.require(array, array.dtype.newbyteorder("="), ["C_CONTIGUOUS", "WRITEABLE"]))


def check_shape(value: Any, name: str, expected: Sequence[int | str]) -> None:
    """Raise unless `value.shape` matches; a string stands for a free dimension and is shown in the message.

    >>> check_shape(torch.zeros(7, 3), "theta", ("n", 3))
    """
    shape = tuple(value.shape)
    fits = len(shape) == len(expected) and all(
        isinstance(want, str) or want == got for want, got in zip(expected, shape, strict=True)
    )
    if not fits:
        text = ", ".join(str(item) for item in expected) + ("," if len(expected) == 1 else "")
        raise ValueError(f"{name}: expected shape ({text}), got {shape}")


def check_finite(value: Tensor, name: str) -> None:
    """Raise if a value is NaN or infinite, with their number and the first place."""
    bad = ~torch.isfinite(value)
    if bool(bad.any()):
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"{name}: expected finite values, got {int(bad.sum())} NaN or inf, the first at {first}"
        )


def check_positive(value: float, name: str) -> None:
    """Raise unless value > 0."""
    if not value > 0:
        raise ValueError(f"{name}: expected a value > 0, got {value}")


def check_count(value: Any, name: str, minimum: int = 1) -> int:
    """`value` as an int; raise unless it is a whole number >= minimum."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name}: expected a whole number >= {minimum}, got {value!r}")
    return int(value)
