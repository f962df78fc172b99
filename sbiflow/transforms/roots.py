"""Where an increasing function reaches a value: the inverse of a map that has none in closed form.

Newton's method, held within a bracket, at whose ends it stops: a step that is more than half of the step before is
replaced by a bisection (Press et al., Numerical Recipes, sec. 9.4, `rtsafe`). Convergence is thus that of a bisection
at worst and quadratic near the root. `increasing_root` takes a fixed number of steps: shapes are static and no GPU is
waited for. Where f is so dear that a GPU may be waited for, `search` can stop early.
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
        low, high: (...), ends of a bracket; a root outside of it by rounding is taken to be at its end.
        steps: of the search.
    """
    with torch.no_grad():
        x = search(function, target, low, high, steps)
    if not torch.is_grad_enabled():
        return x
    left = (function(x)[0] - target).detach()
    # The search is over. Two Newton steps from a constant start, towards what the search has reached, move nothing
    # but add derivatives: the first all of first order, the second those of second and third. (Towards the target
    # they would divide what rounding has left by the slope, and where f is flat throw the root out of its bracket.)
    for _ in range(2):
        value, slope = function(x)
        x = x - (value - target - left) / slope
    return x


def search(
    function: Function, target: Tensor, low: Tensor, high: Tensor, steps: int, early: bool = False
) -> Tensor:
    """The point of a search whose value is closest to the target, (...); not differentiable.

    Args:
        function, target, low, high, steps: as of `increasing_root`.
        early: stop when no element gets closer.
    """
    step = high - low
    x = best = low + step / 2
    closest = torch.full_like(x, torch.inf)
    live = torch.isfinite(x)
    for _ in range(steps):
        if early and not bool(live.any()):
            break
        value, slope = function(x)
        gap = target - value
        # Newton's steps end as noise that no longer shrinks, and bisections would lead away from the root
        best = torch.where(gap.abs() < closest, x, best)
        closest = torch.minimum(gap.abs(), closest)
        low, high = torch.where(gap > 0, x, low), torch.where(gap > 0, high, x)
        # a root at an end of the bracket is there, not where rounding lets Newton's step leave it
        after, middle = torch.clamp(x + gap / slope, low, high), low + (high - low) / 2
        newton = (after - x).abs()
        good = 2 * newton <= step
        if early:
            live = live & ~_ends(gap, target, x, step, ~good)
        x, step = torch.where(good, after, middle), torch.where(good, newton, (high - low) / 2)
    return best


def _ends(gap: Tensor, target: Tensor, x: Tensor, step: Tensor, stalls: Tensor) -> Tensor:
    """Whether nothing is left to be won: the target is met, or a small step is followed by one that is no smaller.

    After a step of the root of the last digit Newton's next is nil, unless the value is noise. A step that is nil by
    bisection moves nothing either.
    """
    eps = torch.finfo(x.dtype).eps
    met = gap.abs() <= eps * target.abs()
    return met | (stalls & (step <= eps**0.5 * (1 + x.abs()))) | (step <= eps * x.abs()) | gap.isnan()
