"""What is compared in speed.py: rows of the table, the targets among them, and what came out."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, replace
from typing import Any

from analyses.benchmarks.alternate import Series, Spread, ratio
from analyses.benchmarks.architecture import AS_TRAINED, BAYESFLOW, NFLOWS, OURS, SAME_NET, ZUKO, Case
from analyses.benchmarks.compiled import Compiled
from analyses.benchmarks.roofline import Executed, Work
from analyses.common import Number

RELU, COMPILED, PASS = ", ReLU", ", compiled", "sbiflow, density of the draws"
THREE = (OURS, NFLOWS, ZUKO)


@dataclass(frozen=True)
class Job:
    """One comparison. kind: "train", "density", "draw" (for one observation), "many" (for a thousand)."""

    kind: str
    case: Case
    rows: int
    names: tuple[str, ...] = THREE

    @property
    def contexts(self) -> int:
        """Observations, each with the same number of draws; in training and density every row has its own."""
        return {"draw": 1, "many": min(1000, self.rows)}.get(self.kind, self.rows)

    @property
    def label(self) -> str:
        """What --only looks at."""
        named = " named" if any(target.asks(self) for target in TARGETS) else ""
        case = self.case
        return f"{self.kind} {case.family} D={case.dim} hidden={case.hidden} rows={self.rows}{named}"


@dataclass(frozen=True)
class Target:
    """A line of the issue's table: peer's time over ours (or, `at_most`, ours over the peer's)."""

    kind: str
    family: str
    dim: int
    hidden: int
    rows: int
    peer: str
    floor: float
    reach: float
    at_most: bool = False

    def asks(self, job: Job) -> bool:
        own = (job.kind, job.case.family, job.case.dim, job.case.hidden, job.rows)
        return own == (self.kind, self.family, self.dim, self.hidden, self.rows) and self.peer in job.names


TARGETS = (
    Target("train", "maf", 15, 256, 1000, NFLOWS, 1.8, 3),
    Target("train", "maf", 15, 256, 1000, ZUKO, 2.5, 4),
    Target("train", "spline", 9, 128, 1000, SAME_NET, 1.8, 4),
    Target("draw", "maf", 5, 50, 10_000, NFLOWS, 6, 20),
    Target("draw", "maf", 5, 50, 10_000, ZUKO, 5, 20),
    Target("draw", "maf", 15, 256, 10_000, NFLOWS, 30, 80),
    Target("draw", "maf", 15, 256, 10_000, ZUKO, 28, 80),
    Target("draw", "maf", 5, 50, 10_000, PASS, 1.5, 1.1, at_most=True),
    Target("draw", "maf", 15, 256, 10_000, PASS, 1.5, 1.1, at_most=True),
)


@dataclass(frozen=True)
class Row:
    """What a job measured. `deviation`: worst of |mean(g / q) - 1| in standard errors, see `deviation`."""

    job: Job
    parameters: dict[str, int]
    series: dict[str, Series]
    deviation: dict[str, float]
    work: Work
    limit: float
    executed: Executed
    compiled: dict[str, Compiled]

    def against(self, peer: str, cpu: bool = False) -> Spread:
        """The peer's time over ours."""
        return ratio(self.series[peer], self.series[OURS], cpu)

    def brief(self) -> str:
        """One line: our time, its distance from the limit, the peers' times over ours."""
        ours = self.series[OURS].seconds
        ratios = ", ".join(f"{name} {self.against(name).median:.2f}" for name in self.series if name != OURS)
        return f"{self.job.label}: {1e3 * ours:.3g} ms, {ours / self.limit:.1f} limits; over ours: {ratios}"


def jobs(fast: bool) -> list[Job]:
    """All comparisons, those that import BayesFlow last; contestants whose library is missing are left out."""
    dims, widths, batches = ((5,), (50,), (200,)) if fast else ((2, 5, 15), (50, 256), (200, 1000, 4096))
    draws, many, batch = (500, 1000, 200) if fast else (10_000, 100_000, 1000)
    cases = [Case(family, dim, h) for family in ("maf", "spline") for dim in dims for h in widths]
    found = [Job(kind, case, rows) for case in cases for rows in batches for kind in ("train", "density")]
    found += [Job("draw", case, draws, (*THREE, PASS)) for case in cases]
    found += [Job("many", case, many) for case in cases if (case.dim, case.hidden) == (5, 50)]
    wide, nine, six = Case("maf", 15, widths[-1]), Case("spline", 9, 128), Case("spline", 5, 50, layers=6)
    found.append(Job("train", wide, batch, (OURS, NFLOWS + RELU, ZUKO + RELU)))
    found.append(Job("train", nine, batch, (OURS, SAME_NET, NFLOWS, ZUKO, AS_TRAINED, NFLOWS + RELU)))
    pair = (OURS, BAYESFLOW)
    found += [Job("train", six, batch, pair), Job("density", six, batch, pair), Job("draw", six, draws, pair)]
    there = [replace(job, names=tuple(name for name in job.names if installed(name))) for job in found]
    return [job for job in there if len(job.names) > 1]


def installed(name: str) -> bool:
    """Whether a contestant's library is there."""
    library = name.split(",")[0].split()[0]
    return importlib.util.find_spec(library) is not None


def chosen(label: str, only: str) -> bool:
    """Whether the label has all words of one of the parts of --only."""
    return not only or any(all(word in label.split() for word in part.split()) for part in only.split(","))


def numbers(rows: list[Row], processes: dict[str, Any]) -> list[Number]:
    """The lines of the issue, and whether what was timed is right."""
    lines = []
    for target in TARGETS:
        for row in rows:
            if target.asks(row.job):
                lines.append(_line(target, row))
    imports: dict[str, Series] = processes["import"]
    for module in [name for name in imports if name != "torch"]:
        over = Spread.of([a - b for a, b in zip(imports[module].clock, imports["torch"].clock, strict=True)])
        ours = module == "sbiflow"
        bounds = ("<= 0.5", "<= 0.2", over.median <= 0.5) if ours else ("", "", None)
        lines.append(Number(f"import {module} over import torch, seconds", str(over), *bounds))
    for what, megabytes in processes["memory"].items():
        added = megabytes["peak"] - megabytes["before"]
        lines.append(Number(f"memory, {what}: peak, added (MB)", f"{megabytes['peak']:.0f}, {added:.0f}"))
    every = [value for row in rows for value in row.deviation.values()]
    if every:
        worst = math.nan if any(map(math.isnan, every)) else max(every)
        what = "densities of the draws: worst deviation, standard errors"
        lines.append(Number(what, f"{worst:.1f}", "<= 5", "", worst <= 5))
    return lines


def _line(target: Target, row: Row) -> Number:
    job = f"{target.kind} {target.family}, {target.dim}-D, {target.hidden} hidden, {target.rows:,} rows"
    if target.at_most:
        spread = ratio(row.series[OURS], row.series[target.peer])
        what, sign, met = f"{OURS} over {target.peer}", "<=", spread.median <= target.floor
    else:
        spread = row.against(target.peer)
        what, sign, met = f"{target.peer} over {OURS}", ">=", spread.median >= target.floor
    best = "" if target.at_most else f"; {row.series[target.peer].seconds / row.limit:.1f} at the limit"
    return Number(
        f"{job}: {what}", f"{spread}{best}", f"{sign} {target.floor:g}", f"{sign} {target.reach:g}", met
    )
