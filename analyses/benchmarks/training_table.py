"""What the runs of training.py say: for every case the cheapest of our runs that reaches sbi's log-density; tables."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analyses.common import Number

if TYPE_CHECKING:
    from analyses.benchmarks.training import Run

FLOOR, REACH = 2.0, 6.0  # of the issue


@dataclass(frozen=True)
class Pair:
    """sbi's run on some pairs with a seed, and ours on the same with all budgets."""

    sbi: Run
    ours: tuple[Run, ...]

    @property
    def default(self) -> Run:
        """Ours with all of its default steps."""
        return max(self.ours, key=lambda run: run.case.budget)

    def cheapest(self, target: float) -> Run | None:
        """The run of ours of the fewest CPU seconds among those that reach a log-density."""
        reached = [run for run in self.ours if run.log_prob >= target]
        return min(reached, key=lambda run: run.cpu_seconds, default=None)

    @property
    def corrected(self) -> float:
        """sbi's log-density over the mass of its flow inside the support."""
        return self.sbi.log_prob + self.sbi.leak

    def ratios(self) -> Ratios:
        """sbi's seconds over ours; 0 where no run of ours reaches the target."""
        ours, hard = self.cheapest(self.sbi.log_prob), self.cheapest(self.corrected)
        return Ratios(
            complete=self.sbi.cpu_seconds / ours.cpu_seconds if ours else 0.0,
            clock=self.sbi.seconds / ours.seconds if ours else 0.0,
            close=self.sbi.cpu_close / ours.cpu_seconds if ours else 0.0,
            corrected=self.sbi.cpu_seconds / hard.cpu_seconds if hard else 0.0,
            default=self.sbi.cpu_seconds / self.default.cpu_seconds,
        )


@dataclass(frozen=True)
class Ratios:
    """sbi's seconds over ours.

    Args:
        complete: CPU seconds of its complete run over our cheapest run that reaches its log-density.
        clock: the same on the clock. close: its CPU seconds until its own validation curve was close to its best.
        corrected: as `complete`, its log-density corrected for the leak.
        default: both complete runs with their defaults, whatever they reach.
    """

    complete: float
    clock: float
    close: float
    corrected: float
    default: float


@dataclass(frozen=True)
class Summary:
    """Medians over the seeds of a task, a family and a number of pairs; log-densities are means."""

    task: str
    family: str
    n: int
    seeds: int
    sbi_log_prob: float
    sbi_corrected: float
    sbi_cpu: float
    sbi_parameters: int
    ours_log_prob: float
    ours_cpu: float
    ours_parameters: int
    budgets: tuple[float, ...]  # of the run that reached sbi's log-density, per seed; inf where none did
    ratios: Ratios

    @classmethod
    def of(cls, pairs: list[Pair]) -> Summary:
        first, default = pairs[0].sbi, [pair.default for pair in pairs]
        found = [asdict(pair.ratios()) for pair in pairs]
        reached = [pair.cheapest(pair.sbi.log_prob) for pair in pairs]
        return cls(
            task=first.case.task, family=first.case.family, n=first.case.n, seeds=len(pairs),
            sbi_log_prob=_mean(pair.sbi.log_prob for pair in pairs),
            sbi_corrected=_mean(pair.corrected for pair in pairs),
            sbi_cpu=_median(pair.sbi.cpu_seconds for pair in pairs), sbi_parameters=first.parameters,
            ours_log_prob=_mean(run.log_prob for run in default),
            ours_cpu=_median(run.cpu_seconds for run in default), ours_parameters=default[0].parameters,
            budgets=tuple(run.case.budget if run else math.inf for run in reached),
            ratios=Ratios(**{name: _median(one[name] for one in found) for name in found[0]}),
        )  # fmt: skip


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


def pairs_of(runs: Iterable[Run], budgets: tuple[float, ...]) -> list[Pair]:
    """A pair for every seed of which sbi's run and ours with all budgets are there."""
    runs = list(runs)
    key = {run.case: run for run in runs}
    found = []
    for run in runs:
        if run.case.method == "sbi":
            ours = [
                key.get(type(run.case)(**asdict(run.case) | {"method": "ours", "budget": b})) for b in budgets
            ]
            if all(ours):
                found.append(Pair(run, tuple(one for one in ours if one)))
    return found


def summaries(pairs: list[Pair]) -> list[Summary]:
    """One for every number of pairs, family and task, in this order."""
    groups: dict[tuple[Any, ...], list[Pair]] = {}
    for pair in pairs:
        case = pair.sbi.case
        groups.setdefault((case.n, case.family, case.task), []).append(pair)
    return [Summary.of(groups[key]) for key in sorted(groups)]


def markdown(found: list[Summary], bayesflow: list[Run]) -> str:
    """The table of all cases, and what BayesFlow did."""
    lines = [
        "| task | flow | pairs | seeds | parameters sbi / ours | log q sbi (corrected) | log q ours | CPU s sbi | CPU s ours "
        "| steps to sbi's log q | faster, to the same log q | close | corrected | defaults |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found:
        r = row.ratios
        budgets = ", ".join("never" if math.isinf(b) else f"{b:g}" for b in row.budgets)
        lines.append(
            f"| {row.task} | {row.family} | {row.n:,} | {row.seeds} | {row.sbi_parameters:,} / {row.ours_parameters:,} "
            f"| {row.sbi_log_prob:.2f} ({row.sbi_corrected:.2f}) | {row.ours_log_prob:.2f} | {row.sbi_cpu:.0f} "
            f"| {row.ours_cpu:.0f} | {budgets} | **{times(r.complete)}** | {times(r.close)} | {times(r.corrected)} "
            f"| {times(r.default)} |"
        )
    for run in bayesflow:
        lines.append(
            f"\nBayesFlow, {run.case.task}, {run.case.n:,} pairs: log q {run.log_prob:.2f} (mass outside the support "
            f"not corrected for), {run.cpu_seconds:.0f} s CPU, {run.parameters:,} parameters, {run.steps:,} steps of "
            f"{run.batch}."
        )
    return "\n".join(lines)


def times(ratio: float) -> str:
    """A ratio to two digits; 0 means that the target was not reached.

    >>> times(11.93), times(2.04), times(0.0)
    ('12×', '2.0×', 'not reached')
    """
    return "not reached" if ratio == 0 else f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×"


def numbers(found: list[Summary]) -> list[Number]:
    """For every family and number of pairs the worst task and the geometric mean."""
    lines = []
    for family, n in sorted({(row.family, row.n) for row in found}):
        rows = [row for row in found if (row.family, row.n) == (family, n)]
        for name, what in {
            "complete": "to sbi's log q, complete runs",
            "close": "the same, sbi only until close to its best",
            "corrected": "to sbi's log q corrected for its leak",
        }.items():
            ratios = {row.task: float(getattr(row.ratios, name)) for row in rows}
            worst = min(ratios, key=lambda task: ratios[task])
            mean = math.prod(ratios.values()) ** (1 / len(ratios))
            lines.append(
                Number(
                    f"{family}, {n:,} pairs: {what}, sbi / ours",
                    f"{times(mean)} (worst: {worst} {times(ratios[worst])})",
                    f"{FLOOR:g}×", f"{REACH:g}×", ratios[worst] >= FLOOR,
                )
            )  # fmt: skip
        gain = min(row.ours_log_prob - row.sbi_corrected for row in rows)
        lines.append(
            Number(
                f"{family}, {n:,} pairs: log q with defaults, ours minus sbi's corrected, least",
                f"{gain:+.2f} nats", "> 0", "", gain > 0,
            )
        )  # fmt: skip
    return lines
