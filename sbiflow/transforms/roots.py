"""Where an increasing function reaches a value: the inverse of a map that has none in closed form.

Newton's method, held within a bracket: a step that leaves it, or that is more than half of the step before, is replaced
by a bisection (Press et al., Numerical Recipes, sec. 9.4, `rtsafe`). Convergence is thus that of a bisection at worst
and quadratic near the root. The number of steps is fixed: shapes are static and no GPU is waited for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], tuple[Tensor, Tensor]]  # x (...) -> f(x), f'(x) > 0


def increasing_root(function: Function, target: Tensor, low: Tensor, high: Tensor, steps: int) -> Tensor:
    """x with f(x) = target, (...), differentiable to whatever f and the target depend on.

    Args:
        function: gives values and slopes.
        target: (...).
        low, high: (...), ends of a bracket; a root outside of it by rounding is found as well.
        steps: of the search.
    """
    with torch.no_grad():
        x = _search(function, target, low, high, steps)
    # The search is over; each Newton step from a constant start adds derivatives: the first all of first order, the
    # second those of second and third.
    for _ in range(2):
        value, slope = function(x)
        x = x - (value - target) / slope
    return x


def _search(function: Function, target: Tensor, low: Tensor, high: Tensor, steps: int) -> Tensor:
    step = high - low
    x = best = low + step / 2
    closest = torch.full_like(x, torch.inf)
    for _ in range(steps):
        value, slope = function(x)
        gap = target - value
        # Newton's steps end as noise that no longer shrinks, and bisections would lead away from the root
        best = torch.where(gap.abs() < closest, x, best)
        closest = torch.minimum(gap.abs(), closest)
        low, high = torch.where(gap > 0, x, low), torch.where(gap > 0, high, x)
        newton, middle = gap / slope, low + (high - low) / 2
        good = (x + newton >= low) & (x + newton <= high) & (2 * newton.abs() <= step)
        x, step = (
            torch.where(good, x + newton, middle),
            torch.where(good, newton.abs(), (high - low) / 2),
        )
    return best
