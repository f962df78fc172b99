"""Initial value problems, many at once, each with a step size of its own.

A solver with one step size for a batch (torchdiffeq, the usual choice) controls the error of the batch's norm: what it
returns for a row then depends on the rows beside it, and a row that is hard is less accurate in company than alone.
Here every row has its own step, error and end, and rows that have arrived cost nothing more.

The methods are Dormand and Prince's of order 5, and for tolerances below 1e-7 that of order 8 (Hairer, Norsett &
Wanner 1993, Solving Ordinary Differential Equations I, sec. II.5 and II.10), with scipy's coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbiflow.optional import deferred

integrate = deferred("scipy.integrate")

Slope = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Times (m,), states (m, K) and which rows of the batch they are (m,) -> d state / d time (m, K)."""

_FINE = 1e-7  # a tolerance below which the higher order needs fewer evaluations
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
_FIRST = 0.1  # of the span
_MOST_STEPS = 2_000


@dataclass(frozen=True)
class Solution:
    """States (n, K) at the end, NaN where the step size fell to rounding; evaluations (n,) of the slope."""

    end: Tensor
    evaluations: Tensor


@dataclass(frozen=True)
class _Step:
    """An accepted step of some rows: which (m,), from which time (m,), how far (m,)."""

    rows: Tensor
    time: Tensor
    size: Tensor

    def of(self, chosen: Tensor) -> _Step:
        return _Step(self.rows[chosen], self.time[chosen], self.size[chosen])


@dataclass(frozen=True)
class _Method:
    """Weights of earlier slopes in each of S stages (S, S), in the step (S,), and in its error estimates (S + 1, 1 or
    2); nodes (S,); order of the error."""

    a: Tensor
    b: Tensor
    errors: Tensor
    c: list[float]
    order: int

    @classmethod
    def of(cls, tolerance: float, like: Tensor) -> _Method:
        fine = tolerance < _FINE
        own = integrate.DOP853 if fine else integrate.RK45
        errors = [own.E5, own.E3] if fine else [own.E]
        a, b, *e = (like.new_tensor(part) for part in (own.A, own.B, *errors))
        return cls(a, b, torch.stack(e, 1), own.C.tolist(), own.error_estimator_order + 1)


def solve(slope: Slope, start: Tensor, begin: float, end: float, tolerance: float) -> Solution:
    """States at the time `end` of those at `begin`, start (n, K).

    The root mean square over K of a step's error is held below tolerance (1 + |state|). The steps are chosen without
    gradients; if gradients are on, they are repeated with them: the gradient is that of the steps as they were taken.
    """
    method, steps = _Method.of(tolerance, start), list[_Step]()
    keep = steps if torch.is_grad_enabled() else None
    with torch.no_grad():
        found = _adapt(slope, start.detach(), begin, end, tolerance, method, keep)
    if keep is None:
        return found
    arrived = torch.isfinite(found.end).all(1)  # the others are not repeated: their gradients would be NaN
    state = torch.where(arrived[:, None], start, found.end)
    for step in (step.of(arrived[step.rows]) for step in steps):
        own = state.index_select(0, step.rows)
        first = slope(step.time, own, step.rows)
        state = state.index_copy(0, step.rows, _advance(slope, own, first, step, method)[0])
    return Solution(state, found.evaluations)


def _advance(
    slope: Slope, state: Tensor, first: Tensor, step: _Step, method: _Method
) -> tuple[Tensor, Tensor]:
    """The states (m, K) after a step, and the slopes of its stages (m, K, S)."""
    size, slopes = step.size[:, None], [first]
    for stage in range(1, len(method.c)):
        change = torch.stack(slopes, -1) @ method.a[stage, :stage]
        slopes.append(slope(step.time + method.c[stage] * step.size, state + size * change, step.rows))
    every = torch.stack(slopes, -1)
    return state + size * (every @ method.b), every


@dataclass(frozen=True)
class _Front:
    """Rows under way: which (m,), states (m, K) and their slopes, times (m,), and the next step's size (m,)."""

    rows: Tensor
    state: Tensor
    slope: Tensor
    time: Tensor
    size: Tensor

    def of(self, chosen: Tensor) -> _Front:
        return _Front(*(value[chosen] for value in vars(self).values()))


def _adapt(
    slope: Slope,
    start: Tensor,
    begin: float,
    end: float,
    tolerance: float,
    method: _Method,
    keep: list[_Step] | None,
) -> Solution:
    """Row by row in steps that meet the tolerance, appended to `keep`."""
    result, rows = torch.full_like(start, math.nan), torch.arange(len(start), device=start.device)
    time, evaluations = start.new_full((len(start),), begin), torch.ones_like(rows)
    front = _Front(rows, start, slope(time, start, rows), time, torch.full_like(time, _FIRST * (end - begin)))
    least = 4 * torch.finfo(start.dtype).eps * abs(end - begin)
    for _ in range(_MOST_STEPS):
        if not len(front.rows):
            break
        evaluations[front.rows] += len(method.c)
        front, good, last, step = _attempt(slope, front, end, tolerance, method)
        if keep is not None:
            keep.append(step.of(good))
        arrived = front.of(good & last)
        result[arrived.rows] = arrived.state
        front = front.of(~(good & last) & (good | (front.size.abs() >= least)))
    return Solution(result, evaluations)


def _attempt(
    slope: Slope, front: _Front, end: float, tolerance: float, method: _Method
) -> tuple[_Front, Tensor, Tensor, _Step]:
    """Every row after a step, or where it was if the error was too large; whether it was not; whether the step went
    to the end; and the step."""
    left = end - front.time
    last = front.size.abs() >= left.abs()
    step = _Step(front.rows, front.time, torch.where(last, left, front.size))
    ahead, slopes = _advance(slope, front.state, front.slope, step, method)
    after = slope(front.time + step.size, ahead, front.rows)
    error = _error(torch.cat([slopes, after[..., None]], -1), step, front.state, ahead, method, tolerance)
    good = error <= 1
    factor = (_SAFETY * error ** (-1 / method.order)).clamp(_SHRINK, _GROW).nan_to_num(_SHRINK)
    state = torch.where(good[:, None], ahead, front.state)
    slope_there = torch.where(good[:, None], after, front.slope)
    time = torch.where(good, front.time + step.size, front.time)
    return _Front(front.rows, state, slope_there, time, step.size * factor), good, last, step


def _error(
    slopes: Tensor, step: _Step, state: Tensor, ahead: Tensor, method: _Method, tolerance: float
) -> Tensor:
    """Error of a step in units of what is allowed, (m,): a root mean square, or of order 8 two of them combined
    (Hairer et al., sec. II.10, eq. 10.17)."""
    allowed = tolerance * (1 + torch.maximum(state.abs(), ahead.abs()))
    found = ((slopes @ method.errors) / allowed[..., None]).square().mean(1)
    error, length = found[:, 0], step.size.abs()
    if found.shape[1] == 1:
        return length * error.sqrt()
    return length * error / (error + 0.01 * found[:, 1]).clamp_min(torch.finfo(error.dtype).tiny).sqrt()
