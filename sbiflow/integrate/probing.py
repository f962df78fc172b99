"""Find out how an integrand wants to be called, from a few rows.

A function of one point (D,) may well accept a batch (n, D) and return nonsense of a plausible shape. Hence
seven rows, or eleven for D = 7, so that sums over the wrong axis show in the shape; each row is evaluated once
more in a batch of its own and has to give the same value, which a function that mixes rows does not. Before that
the batch is evaluated a second time: what a stochastic function returns proves nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbiflow.integrate.budget import Budget, BudgetExceeded
from sbiflow.integrate.calling import MODES, Caller

_ROWS, _OTHER_ROWS = 7, 11
_ROWS_SCALAR = 2  # shows K; such functions are the expensive ones
# The same call rounds the same way, but for threads that add up in any order. A batch of another size may round
# differently, in float32 too.
_REPEAT, _ALONE = 1e-7, 1e-5


class _Stochastic(ValueError):
    """The same points gave other values: no other way of calling f can change that."""


def probe_size(dim: int) -> int:
    """Number of rows for a domain of `dim` axes."""
    return _ROWS if dim != _ROWS else _OTHER_ROWS


def find_caller(f: Callable[[Any], Any], calls: str, x: Tensor, budget: Budget) -> tuple[Caller, int]:
    """The way to call f and its number of components K.

    Args:
        f: the integrand; vegas' `lbatchintegrand` and `rbatchintegrand` are known by their mark.
        calls: one of MODES, or "auto": NumPy batches, torch batches, single rows, whichever works first; torch
            first if x is on a cuda device.
        x: (probe_size(D), D) points of the domain.
        budget: charged for every row evaluated.

    Raises:
        ValueError: f works in no way (the message has the failure of each), or is stochastic and `calls` is
            "auto"; with `calls` given, f returned no real numbers of shape (n,) or (n, K).
        BudgetExceeded: the budget does not suffice for the probe.
    """
    mark = getattr(f, "fcntype", None)
    if mark == "rbatch":
        f = _Transposed(f)
    if mark in ("batch", "lbatch", "rbatch") and calls == "auto":
        calls = "numpy"
    if calls != "auto":
        caller = Caller(f, calls)
        return caller, _charged(caller, x, budget).shape[1]
    return _first_that_works(f, x, budget)


def _first_that_works(f: Callable[[Any], Any], x: Tensor, budget: Budget) -> tuple[Caller, int]:
    order = MODES if not x.is_cuda else ("torch", "numpy", "scalar")
    failures: list[str] = []
    for mode in order:
        caller = Caller(f, mode)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of calls that may be wrong: they would only confuse
                values = _charged(caller, x, budget)
                _check_repeats(caller, x, values, budget)
                if mode != "scalar":
                    _check_rows_alone(caller, x, values, budget)
        except (BudgetExceeded, _Stochastic):
            raise
        except Exception as error:
            failures.append(f"{mode}: {type(error).__name__}: {_first_line(error)}")
        else:
            return caller, values.shape[1]
    n, dim = x.shape
    raise ValueError(
        f"integrand: expected a function of ({n}, {dim}) NumPy or torch points that returns ({n},) or ({n}, K), "
        f"or of one point ({dim},) that returns a number or (K,); tried\n  " + "\n  ".join(failures)
    )


def _charged(caller: Caller, x: Tensor, budget: Budget) -> Tensor:
    rows = x[:_ROWS_SCALAR] if caller.mode == "scalar" else x
    budget.charge(len(rows))
    return caller(rows)


def _check_repeats(caller: Caller, x: Tensor, values: Tensor, budget: Budget) -> None:
    again = _charged(caller, x, budget)
    if again.shape != values.shape or not _same(values, again, _REPEAT * values.abs()):
        raise _Stochastic(
            "integrand: expected the same values at the same points, got others the second time: it is stochastic "
            f'or keeps a state; calls="{caller.mode}" skips this test, and its noise then adds to the error'
        )


def _check_rows_alone(caller: Caller, x: Tensor, values: Tensor, budget: Budget) -> None:
    budget.charge(len(x))
    alone = [caller(row[None]) for row in x]
    if any(row.shape[1] != values.shape[1] for row in alone):
        raise ValueError("a row gives another number of components on its own than in a batch")
    size = torch.where(torch.isfinite(values), values.abs(), 0.0)
    if not _same(values, torch.cat(alone), _ALONE * (size + size.amax(dim=0))):
        raise ValueError("a row gives another value on its own than in a batch")


def _same(one: Tensor, other: Tensor, tolerance: Tensor) -> bool:
    equal = (one == other) | (torch.isnan(one) & torch.isnan(other))
    return bool((equal | ((one - other).abs() <= tolerance.nan_to_num(posinf=0.0))).all())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


@dataclass(frozen=True)
class _Transposed:
    """vegas' rbatch: (D, n) -> (n,) or (K, n)."""

    f: Callable[[Any], Any]

    def __call__(self, x: Any) -> Any:
        return self.f(x.T).T
