"""How an integrand is called: in NumPy batches, in torch batches or a row at a time; here or on an executor.

Whatever it returns comes out as float64 of shape (n, K). Functions get a copy of the points: they may overwrite
their argument.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbiflow.checks import as_tensor

MODES = ("numpy", "torch", "scalar")
_CHUNKS_PER_WORKER = 4  # evens out workers of unequal speed, at little cost of transport
_UNKNOWN_WORKERS = 32  # assumed for an executor that does not say


@dataclass(frozen=True)
class Caller:
    """An integrand and the way to call it; picklable if f is.

    Args:
        f: "numpy" or "torch": (n, D) -> (n,) or (n, K); "scalar": (D,) -> a number or (K,).
        mode: one of MODES.
    """

    f: Callable[[Any], Any]
    mode: str

    def __call__(self, x: Tensor) -> Tensor:
        """f at x (n, D): (n, K) float64 on the device of x, K = 1 for a scalar-valued f.

        Raises:
            ValueError: f returned another shape, complex values or no numbers.
            Exception: whatever f raises, with a note that tells where.
        """
        if self.mode == "torch":
            raw = _with_note(self.f, x.clone(), x)
        elif self.mode == "numpy":
            raw = _with_note(self.f, x.numpy(force=True).copy(), x)
        else:
            raw = self._rows(x.numpy(force=True).copy())
        return _as_values(raw, len(x)).to(x.device)

    def _rows(self, rows: np.ndarray) -> list[Any]:
        values: list[Any] = []
        try:
            for row in rows:
                value = self.f(row)
                values.append(value.numpy(force=True) if isinstance(value, Tensor) else value)
        except Exception as error:
            error.add_note(f"raised by the integrand at x = {_brief(rows[len(values)])}")
            raise
        return values


def evaluate(caller: Caller, x: Tensor, executor: Executor | None) -> Tensor:
    """`caller(x)`, on the executor in about four chunks per worker, in order.

    The points travel as NumPy arrays; a torch integrand gets them on the device of x.
    """
    if executor is None or not len(x):
        return caller(x)
    workers = getattr(executor, "_max_workers", None) or _UNKNOWN_WORKERS
    chunks = torch.tensor_split(x, min(len(x), _CHUNKS_PER_WORKER * workers))
    futures = [
        executor.submit(_run_chunk, caller, chunk.numpy(force=True), str(x.device)) for chunk in chunks
    ]
    try:
        parts = [torch.from_numpy(future.result()) for future in futures]
    finally:
        for future in futures:
            future.cancel()
    sizes = sorted({part.shape[1] for part in parts})
    if len(sizes) > 1:
        raise ValueError(f"integrand: expected one number of components K, got {sizes}")
    return torch.cat(parts).to(x.device)


def check_executor(f: Callable[[Any], Any], executor: Executor | None) -> None:
    """Raise unless f can be sent where it is to run."""
    if not isinstance(executor, ProcessPoolExecutor):
        return
    try:
        ForkingPickler.dumps(f)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        raise ValueError(f"integrand: expected one that can be sent to a process, got {text}") from error


def _run_chunk(caller: Caller, x: np.ndarray, device: str) -> np.ndarray:
    return caller(torch.tensor(x, device=device)).numpy(force=True)


def _with_note(f: Callable[[Any], Any], argument: Any, x: Tensor) -> Any:
    try:
        return f(argument)
    except Exception as error:
        if len(x):
            low, high = (_brief(end.numpy(force=True)) for end in (x.amin(dim=0), x.amax(dim=0)))
            error.add_note(f"raised by the integrand for a batch of {len(x)} rows, x from {low} to {high}")
        raise


def _brief(row: np.ndarray) -> str:
    return np.array2string(row, precision=6, threshold=8, separator=", ")


def _as_values(raw: Any, n: int) -> Tensor:
    """(n, K) float64 from what an integrand returned."""
    values = raw.detach() if isinstance(raw, Tensor) else _from_array(raw)
    if values.is_complex():
        raise ValueError(f"integrand: expected real numbers, got {values.dtype}")
    shape = tuple(values.shape)
    if shape[:1] != (n,) or len(shape) > 2 or shape[1:] == (0,):
        raise ValueError(f"integrand: expected shape ({n},) or ({n}, K) for {n} rows, got {shape}")
    values = values.to(torch.float64)
    return values[:, None] if values.ndim == 1 else values


def _from_array(raw: Any) -> Tensor:
    try:
        values = np.asarray(raw)
    except (
        ValueError,
        RuntimeError,
        TypeError,
    ) as error:  # rows of different lengths, tensors with gradients
        raise ValueError(f"integrand: expected one array, got {type(raw).__name__} ({error})") from None
    if values.dtype.kind not in "biuf":
        raise ValueError(f"integrand: expected real numbers, got {type(raw).__name__} of {values.dtype}")
    return as_tensor(values.astype(np.float64, copy=False), "integrand")
