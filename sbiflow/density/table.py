"""From a table of numbers to named columns and the bijection that a density of them lives behind.

A column without bounds is standardised. One with two bounds goes through the distribution function of the uniform,
one with a single bound through that of a truncated normal, or through the logarithm if the bound is 0 and the data
are likelier so; an angle stays an angle. Each is a marginal of `sbiflow.priors`, whose support no draw can leave.

A count n is spread over the unit interval from n on (dequantise.py), so that its bounds are [low, high + 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbiflow.checks import as_tensor, check_finite, check_shape
from sbiflow.priors import LogNormal, Marginal, Normal, Prior, TruncatedNormal, Uniform

Bounds = Mapping[str, Marginal | tuple[float | None, float | None]]

MIN_ROWS = 100
_FARTHEST = 30.0  # z beyond which a truncated normal's tails run out of numbers (37.5)
_LARGEST_COUNT = 100_000  # above, float32 has too few numbers between two counts to spread one over


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are.

    Attributes:
        names: of the D columns whose density is wanted.
        given: names of the G columns that it is conditional on.
        counts: which of the D are counts, ascending.
    """

    names: tuple[str, ...]
    given: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()

    @property
    def x_shape(self) -> tuple[int]:
        """(G,)."""
        return (len(self.given),)

    def centred(self, data: Tensor) -> Tensor:
        """Rows (..., D) with every count moved to the middle of its cell."""
        shift = torch.zeros(len(self.names), dtype=data.dtype)
        shift[list(self.counts)] = 0.5
        return data + shift

    def floored(self, data: Tensor) -> Tensor:
        """Rows (..., D) with the count columns rounded down to whole numbers."""
        whole = torch.zeros(len(self.names), dtype=torch.bool)
        whole[list(self.counts)] = True
        return torch.where(whole, data.floor(), data)

    def rows(self, data: Any, given: Any) -> tuple[Tensor, Tensor]:
        """data (n, D) and given (n, G) or (G,), as float64, the latter expanded to (n, G).

        Raises:
            ValueError: other shapes, NaN or inf, `given` missing or too much, counts that are not whole numbers.
        """
        own = as_tensor(data, "data", torch.float64).detach().cpu()
        check_shape(own, "data", ("n", len(self.names)))
        check_finite(own, "data")
        self.check_whole(own)
        condition = self.condition(given)
        if condition.ndim == 1:
            condition = condition.expand(len(own), -1)
        check_shape(condition, "given", (len(own), len(self.given)))
        return own, condition

    def condition(self, given: Any) -> Tensor:
        """given as float64, (G,) or (B, G); empty for an unconditional density.

        Raises:
            ValueError: missing, or given to an unconditional density; another shape, NaN or inf.
        """
        if given is None and not self.given:
            return torch.zeros(0, dtype=torch.float64)
        if given is None:
            raise ValueError(f"given: expected values of {', '.join(self.given)}, got None")
        if not self.given:
            raise ValueError("given: expected None for an unconditional density, got values")
        values = as_tensor(given, "given", torch.float64).detach().cpu()
        check_shape(values, "given", self.x_shape if values.ndim == 1 else ("B", *self.x_shape))
        check_finite(values, "given")
        return values

    def check_whole(self, data: Tensor) -> None:
        """Raise unless the counts among rows (n, D) are whole numbers."""
        for i in self.counts:
            broken = int((data[:, i] != data[:, i].round()).sum())
            if broken:
                raise ValueError(f"{self.names[i]}: expected whole numbers in a count, got {broken} others")


def read_columns(
    data: Any, names: Sequence[str] | None, given: Sequence[str] | None, counts: Sequence[str] | None
) -> tuple[Columns, Tensor, Tensor]:
    """Columns, rows (n, D) and conditions (n, G), float64, of a table (n, D + G).

    Raises:
        ValueError: another shape, too few rows, NaN or inf, unknown or repeated names, no column left to estimate.
    """
    if names is None and hasattr(data, "columns"):
        names = [str(name) for name in data.columns]
    table = as_tensor(data, "data", torch.float64).detach().cpu()
    check_shape(table, "data", ("n", "columns"))
    check_finite(table, "data")
    if len(table) < MIN_ROWS:
        raise ValueError(f"data: expected at least {MIN_ROWS} rows, got {len(table)}")
    own = _names(names, table.shape[1])
    behind, whole = _chosen(given, own, "given"), _chosen(counts, own, "counts")
    if both := sorted(set(behind) & set(whole)):
        raise ValueError(f"counts: expected columns whose density is wanted, got {', '.join(both)} of given")
    left = tuple(name for name in own if name not in behind)
    if not left:
        raise ValueError("given: expected at least one column to be left, got all of them")
    columns = Columns(left, behind, tuple(i for i, name in enumerate(left) if name in whole))
    rows, conditions = (table[:, [own.index(name) for name in some]] for some in (left, behind))
    columns.check_whole(rows)
    return columns, rows, conditions


def _names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    own = tuple(f"c{i}" for i in range(count)) if names is None else tuple(names)
    if len(own) != count or len(set(own)) != count:
        raise ValueError(f"names: expected {count} distinct names, one per column, got {', '.join(own)}")
    return own


def _chosen(some: Sequence[str] | None, names: tuple[str, ...], what: str) -> tuple[str, ...]:
    if isinstance(some, str):
        raise ValueError(f"{what}: expected a sequence of names, got {some!r}")
    chosen = tuple(some or ())
    unknown = [str(name) for name in chosen if name not in names]
    if unknown or len(set(chosen)) != len(chosen):
        raise ValueError(
            f"{what}: expected distinct names among {', '.join(names)}, got {', '.join(map(str, chosen))}"
        )
    return chosen


def bijection(columns: Columns, data: Tensor, fitted: Tensor, bounds: Bounds | None) -> Prior:
    """The marginals through which the D columns become real.

    Args:
        data: all rows (n, D), to be within the bounds.
        fitted: the rows (m, D) that means and spreads are taken from.
        bounds: by name (low, high), either None where there is none, or a marginal to be used as it is.

    Raises:
        ValueError: a constant column, data on or outside of a bound, bounds for no column, counts too large.
    """
    bounds = dict(bounds or {})
    if unknown := sorted(set(bounds) - set(columns.names)):
        raise ValueError(f"bounds: expected names among {', '.join(columns.names)}, got {', '.join(unknown)}")
    constant = [name for name, column in zip(columns.names, fitted.T, strict=True) if _is_constant(column)]
    if constant:
        raise ValueError(
            f"data: expected columns that vary, got the constant {', '.join(constant)}: a constant has no density, "
            "leave it out"
        )
    marginals = []
    for i, name in enumerate(columns.names):
        is_count = i in columns.counts
        limits = bounds.get(name, (0, None) if is_count else (None, None))
        marginals.append(_marginal(name, data[:, i], fitted[:, i], limits, is_count))
    return Prior(marginals)


def _is_constant(column: Tensor) -> bool:
    return float(column.max() - column.min()) <= 1e-12 * float(column.abs().max())


def _marginal(name: str, data: Tensor, fitted: Tensor, limits: Any, is_count: bool) -> Marginal:
    if is_count:
        data, fitted = data + 0.5, fitted + 0.5
    if isinstance(limits, Marginal):
        if is_count or limits.name != name:
            got = "a count" if is_count else f"the name {limits.name!r}"
            raise ValueError(f"bounds: expected (low, high) or a marginal named {name!r}, got one for {got}")
        own = limits
    else:
        low, high = _limits(name, limits)
        own = _between(name, fitted, low, high + is_count)
    outside = int((~own.inside(data)).sum())
    if outside:
        raise ValueError(
            f"{name}: expected values within {own.interval}, got {outside} of {len(data)} on or outside"
        )
    _check_range(own, data, is_count)
    return own


def _limits(name: str, limits: Any) -> tuple[float, float]:
    try:
        low, high = limits
        low, high = (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))
    except (TypeError, ValueError):
        raise ValueError(f"bounds of {name}: expected (low, high) or a marginal, got {limits!r}") from None
    if not low < high:
        raise ValueError(f"bounds of {name}: expected low < high, got {limits!r}")
    return low, high


def _between(name: str, values: Tensor, low: float, high: float) -> Marginal:
    """The marginal on (low, high) with the mean and spread of `values`."""
    if math.isinf(low) and math.isinf(high):
        return Normal(name, float(values.mean()), float(values.std()))
    if math.isfinite(low) and math.isfinite(high):
        return Uniform(name, low, high)
    edge = low if math.isfinite(low) else high
    spread = float((values - edge).square().mean().sqrt())
    found: Marginal = TruncatedNormal(name, edge, spread, low, high)
    inside = values[found.inside(values)]
    if low != 0.0 or not len(inside):
        return found
    logs = inside.log()
    other = LogNormal(name, float(logs.mean()), max(float(logs.std()), 1e-6))
    likelier = float(other.log_prob(inside).mean()) > float(found.log_prob(inside).mean())
    return other if likelier else found


def _check_range(own: Marginal, data: Tensor, is_count: bool) -> None:
    farthest = float(own.to_base(data).abs().max())
    if isinstance(own, TruncatedNormal) and farthest > _FARTHEST:
        raise ValueError(
            f"{own.name}: expected values within {_FARTHEST:g} spreads of its bound, got {farthest:.3g}: subtract the "
            "bound, so that it is 0 and the logarithm is taken"
        )
    if is_count and float(data.abs().max()) > _LARGEST_COUNT:
        raise ValueError(
            f"{own.name}: expected counts up to {_LARGEST_COUNT:,}, got {float(data.abs().max()):,.0f}: larger ones "
            "need no dequantisation, leave it out of `counts`"
        )
