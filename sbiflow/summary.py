"""Median, 16/84 % interval, mean and standard deviation of weighted draws; circular for periodic parameters.

NumPy only. A periodic parameter is unwrapped: cut open half a period from its circular mean, so that a
posterior that straddles the edge of the support is one peak again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

LEVELS = (0.16, 0.5, 0.84)


@dataclass(frozen=True)
class ParameterSummary:
    """One parameter's figures, in `unit`.

    For a periodic parameter median and mean lie in the support and low ≤ median ≤ high, so an end of the
    interval may lie outside the support (by less than a period); sd is that of the unwrapped draws about the
    circular mean.
    """

    name: str
    unit: str
    median: float
    low: float
    high: float
    mean: float
    sd: float
    periodic: bool = False


@dataclass(frozen=True)
class SummaryTable:
    """A `ParameterSummary` per parameter, the number of draws, and their worth if weighted."""

    rows: tuple[ParameterSummary, ...]
    n: int
    ess: float | None = None

    def __getitem__(self, name: str) -> ParameterSummary:
        found = [row for row in self.rows if row.name == name]
        if not found:
            raise KeyError(f"no parameter {name!r}; the names are {', '.join(row.name for row in self.rows)}")
        return found[0]

    def __iter__(self) -> Iterator[ParameterSummary]:
        return iter(self.rows)

    def __str__(self) -> str:
        head = ("parameter", "unit", "median", "16 %", "84 %", "mean", "sd")
        body = [(r.name + "*" * r.periodic, r.unit, *_numbers(r)) for r in self.rows]
        widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in (head, *body)
        ]
        worth = "" if self.ess is None else f", worth {self.ess:,.0f} independent ones"
        lines.append(f"{self.n:,} draws{worth}")
        if any(row.periodic for row in self.rows):
            lines.append(
                "* periodic: circular mean; the ends of the interval may pass the edge of the support"
            )
        return "\n".join(lines)


def _numbers(row: ParameterSummary) -> tuple[str, ...]:
    values = (row.median, row.low, row.high, row.mean, row.sd)
    return tuple(rounded(value, row.sd) for value in values)


def rounded(value: float, error: float) -> str:
    """`value` to two significant digits of `error`.

    >>> rounded(1234.567, 8.0), rounded(-0.012346, 0.00021), rounded(3.2e-9, 1e-10), rounded(2.5, 0.0)
    ('1234.6', '-0.01235', '3.20e-09', '2.5')
    """
    if not error > 0 or not math.isfinite(value) or not math.isfinite(error):
        return f"{value:.6g}"
    decimals = 1 - math.floor(math.log10(error))
    largest = math.floor(math.log10(max(abs(value), error)))
    if -4 <= largest <= 6:
        return f"{round(value, decimals):z.{max(decimals, 0)}f}"  # z: no negative zero
    return f"{value:.{max(largest + decimals, 0)}e}"


def weighted_quantiles(
    values: np.ndarray, weights: np.ndarray | None, levels: tuple[float, ...]
) -> np.ndarray:
    """Quantiles of draws (n,) with weights (n,) >= 0; a draw's mass is centred on its value (Hazen)."""
    order = np.argsort(values)
    mass = np.ones(len(values)) if weights is None else weights[order]
    mass = mass / mass.sum()
    kept = mass > 0  # a draw of no weight must not bend the interpolation
    return np.interp(levels, (np.cumsum(mass) - mass / 2)[kept], values[order][kept])


def circular_mean(values: np.ndarray, low: float, high: float, weights: np.ndarray | None = None) -> float:
    """Direction of the mean unit vector of a periodic parameter on [low, high), in its own units."""
    phase = 2 * np.pi * (values - low) / (high - low)
    vector = np.average(np.exp(1j * phase), weights=weights)
    return low + (high - low) * (float(np.angle(vector)) / (2 * math.pi) % 1.0)


def unwrap(values: np.ndarray, low: float, high: float, centre: float) -> np.ndarray:
    """The values shifted by whole periods to within half a period of `centre`.

    >>> unwrap(np.array([0.1, 3.0]), 0.0, 3.2, centre=0.0).round(3).tolist()
    [0.1, -0.2]
    """
    period = high - low
    return values - period * np.round((values - centre) / period)


def summarise(
    values: np.ndarray,
    name: str,
    unit: str,
    period: tuple[float, float] | None = None,
    weights: np.ndarray | None = None,
) -> ParameterSummary:
    """Figures of one parameter: draws (n,), weights (n,) or None, [low, high) if it is periodic."""
    if period is None:
        low, median, high = weighted_quantiles(values, weights, LEVELS)
        mean = np.average(values, weights=weights)
        sd = math.sqrt(np.average((values - mean) ** 2, weights=weights))
        return ParameterSummary(name, unit, float(median), float(low), float(high), float(mean), sd)
    mean = circular_mean(values, *period, weights)
    flat = unwrap(values, *period, centre=mean)
    low, median, high = weighted_quantiles(flat, weights, LEVELS)
    sd = math.sqrt(np.average((flat - mean) ** 2, weights=weights))
    edge = period[0] + (median - period[0]) % (period[1] - period[0])
    shift = edge - median
    return ParameterSummary(name, unit, float(edge), float(low + shift), float(high + shift), mean, sd, True)
