"""One pair of ordinary differential equations for two tasks, solved for many rows at once.

In log-populations u and v, both Lotka-Volterra and SIR are

    u' = a - b e^v,    v' = d e^u - c.

The solver is the eighth-order Runge-Kutta method of Cooper & Verner (1972, SIAM J. Numer. Anal. 9, 389) in float64.
Every row crosses every output interval with m and with 2 m equal steps, from m = 2 on; where the two differ by
`tolerance` or more, it is crossed again with twice as many, up to a limit beyond which the row is NaN. As the finer
solution is kept, its error in one interval is some hundred times smaller than the tolerance. What happens to a row
does not depend on the others, but for rounding.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_S = math.sqrt(21.0)
_STAGES = (
    (1 / 2,),
    (1 / 4, 1 / 4),
    (1 / 7, (-7 - 3 * _S) / 98, (21 + 5 * _S) / 49),
    ((11 + _S) / 84, 0, (18 + 4 * _S) / 63, (21 - _S) / 252),
    ((5 + _S) / 48, 0, (9 + _S) / 36, (-231 + 14 * _S) / 360, (63 - 7 * _S) / 80),
    ((10 - _S) / 42, 0, (-432 + 92 * _S) / 315, (633 - 145 * _S) / 90, (-504 + 115 * _S) / 70, (63 - 13 * _S) / 35),
    (1 / 14, 0, 0, 0, (14 - 3 * _S) / 126, (13 - 3 * _S) / 63, 1 / 9),
    (1 / 32, 0, 0, 0, (91 - 21 * _S) / 576, 11 / 72, (-385 - 75 * _S) / 1152, (63 + 13 * _S) / 128),
    (1 / 14, 0, 0, 0, 1 / 9, (-733 - 147 * _S) / 2205, (515 + 111 * _S) / 504, (-51 - 11 * _S) / 56,
     (132 + 28 * _S) / 245),
    (0, 0, 0, 0, (-42 + 7 * _S) / 18, (-18 + 28 * _S) / 45, (-273 - 53 * _S) / 72, (301 + 53 * _S) / 72,
     (28 - 28 * _S) / 45, (49 - 7 * _S) / 18),
    (1 / 20, 0, 0, 0, 0, 0, 0, 49 / 180, 16 / 45, 49 / 180, 1 / 20),
)  # fmt: skip
"""Rows 2 to 11 of the method's matrix, then its weights."""

_CHUNK = 2048  # rows: the stages of one step fit into a core's cache
_MIN_STEPS, _MAX_STEPS = 2, 4096  # per output interval


def exchange(
    start: tuple[float, float], rates: Tensor, interval: float, n_times: int, tolerance: float = 1e-7
) -> Tensor:
    """Solve u' = a - b e^v, v' = d e^u - c from `start` = (u, v) at time 0.

    Args:
        start: log-populations at time 0.
        rates: (n, 4), the columns a, b, c, d.
        interval: between output times.
        n_times: the first output time is 0.
        tolerance: of the difference between m and 2 m steps, in u and v.

    Returns:
        u and v, (n, 2, n_times) float64 on the device of `rates`; NaN from the first interval on that could not be
        crossed. Computed on the CPU: NumPy's small arrays cost a quarter of torch's.
    """
    values = rates.detach().double().cpu().numpy()
    found = np.full((len(values), 2, n_times), np.nan)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refined, and in the end NaN
        for first in range(0, len(values), _CHUNK):
            constant, gain = _rows(values[first : first + _CHUNK])
            y = np.repeat(np.array(start)[:, None], gain.shape[1], axis=1)
            for i in range(n_times):
                y = y if i == 0 else _cross(y, constant, gain, interval, tolerance)
                found[first : first + _CHUNK, :, i] = y.T
    return torch.from_numpy(found).to(rates.device)


def _rows(rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a, -c) and (-b, d), (2, n) each: y' = constant + gain e^(y upside down)."""
    a, b, c, d = rates.T
    return np.stack([a, -c]), np.stack([-b, d])


def _cross(
    y: np.ndarray, constant: np.ndarray, gain: np.ndarray, interval: float, tolerance: float
) -> np.ndarray:
    """y (2, n) one output interval later; NaN where it cannot be found."""
    found = np.full_like(y, np.nan)
    rows = np.flatnonzero(np.isfinite(y).all(0))
    steps = _MIN_STEPS
    coarse = _fixed(y[:, rows], constant[:, rows], gain[:, rows], interval, steps)
    while len(rows) and 2 * steps <= _MAX_STEPS:
        steps *= 2
        fine = _fixed(y[:, rows], constant[:, rows], gain[:, rows], interval, steps)
        settled = np.abs(fine - coarse).max(0) < tolerance  # False where either is NaN
        found[:, rows[settled]] = fine[:, settled]
        rows, coarse = rows[~settled], fine[:, ~settled]
    return found


def _fixed(y: np.ndarray, constant: np.ndarray, gain: np.ndarray, interval: float, steps: int) -> np.ndarray:
    """y (2, n) after `steps` equal steps; what overflows turns into inf or NaN."""
    y = np.array(y, order="C")
    weights = [np.array(stage) * (interval / steps) for stage in _STAGES]
    slopes, at, growth = np.empty((len(_STAGES), *y.shape)), np.empty_like(y), np.empty_like(y)
    upside_down, flat, flat_at = growth[::-1], slopes.reshape(len(_STAGES), -1), at.reshape(-1)
    used = [flat[:i] for i in range(1, len(_STAGES) + 1)]
    for _ in range(steps):
        at[:] = y
        for slope, weight, so_far in zip(slopes, weights, used, strict=True):
            np.exp(at, out=growth)
            np.multiply(gain, upside_down, out=slope)
            np.add(slope, constant, out=slope)
            np.dot(weight, so_far, out=flat_at)
            np.add(at, y, out=at)
        y[:] = at
    return y
