"""Clocks that are fair on a machine that does other things: the contestants take turns, and ratios are of neighbours.

Every repeat times each contestant once, in an order that turns round, in loops of at least a given time. A ratio is
taken within a repeat, so what else runs on the machine hits both sides; its median and quartiles are reported, on the
wall clock and of CPU times (of the whole process), which are the better measure where a core is shared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np

Call = Callable[[], object]


@dataclass(frozen=True)
class Series:
    """Seconds per call of every repeat, on the wall clock and of CPU time; `loops` calls in each."""

    clock: tuple[float, ...]
    cpu: tuple[float, ...]
    loops: int

    @classmethod
    def of(cls, times: list[tuple[float, float]], loops: int) -> Series:
        """From (clock, cpu) of every repeat."""
        return cls(tuple(clock for clock, _ in times), tuple(cpu for _, cpu in times), loops)

    @property
    def seconds(self) -> float:
        """The median on the wall clock."""
        return median(self.clock)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        low, middle, high = np.percentile(values, [25, 50, 75]).tolist()
        return cls(middle, low, high)

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio(numerator: Series, denominator: Series, cpu: bool = False) -> Spread:
    """Of two contestants of one `alternate`, repeat by repeat."""
    pairs = zip(*((s.cpu if cpu else s.clock) for s in (numerator, denominator)), strict=True)
    return Spread.of([above / below for above, below in pairs])


def timed(call: Call, loops: int) -> tuple[float, float]:
    """Seconds per call on the wall clock and of CPU time."""
    clock, cpu = time.perf_counter(), time.process_time()
    for _ in range(loops):
        call()
    return (time.perf_counter() - clock) / loops, (time.process_time() - cpu) / loops


def loops_for(call: Call, seconds: float) -> int:
    """Calls that take `seconds`, from CPU times; the first call, which pays for what is made once, only warms up."""
    first = timed(call, 1)[1]
    again = first if first > 2 * seconds else timed(call, 1)[1]
    return max(1, math.ceil(seconds / max(again, 1e-7)))


def alternate(calls: Mapping[str, Call], repeats: int, seconds: float) -> dict[str, Series]:
    """Time the calls by turns.

    Args:
        calls: contestants by name.
        repeats: per contestant.
        seconds: a repeat lasts at least that long.

    Returns:
        A `Series` for each name, in the order of `calls`.

    Raises:
        ValueError: no contestants, no repeats, or a time that is not positive.
    """
    if not calls or repeats < 1 or not seconds > 0:
        raise ValueError(
            f"expected contestants, repeats and seconds > 0; got {len(calls)}, {repeats}, {seconds}"
        )
    loops = {name: loops_for(call, seconds) for name, call in calls.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for repeat in range(repeats):
        for name in list(calls)[:: -1 if repeat % 2 else 1]:
            times[name].append(timed(calls[name], loops[name]))
    return {name: Series.of(own, loops[name]) for name, own in times.items()}
