"""What many runs say together: errors, pulls, coverage, warnings, time; table and figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from analyses.common import Number
from analyses.integrands import Integrand
from analyses.integrator_peers import Run

LOST = 4.0  # standard errors: a run further off that says nothing is silently wrong
FULL = 1_000_000  # the budget of the floors
FEW = 5  # seeds: below, the mark in the figure is hollow
COLOURS = {"ours": "C0", "vegas": "C3", "madnis": "C2"}


@dataclass(frozen=True)
class Pulls:
    """Of some runs: how many, rms of error/sigma, share within 2 sigma; off by more than LOST."""

    n: int
    rms: float
    coverage: float
    lost: int

    @classmethod
    def of(cls, values: np.ndarray) -> Pulls:
        share = float(np.mean(abs(values) <= 2)) if len(values) else math.nan
        return cls(len(values), rms(values), share, int((abs(values) > LOST).sum()))


@dataclass(frozen=True)
class Summary:
    """The runs of a method on an integrand at a budget; they differ in the seed only.

    Args:
        error: actual relative error, root mean square; its own error is error/√(2 seeds).
        bias, bias_error: mean relative error and its standard error.
        pulls, silent: of all runs, and of those without a warning.
        warned, unreliable: numbers of runs; `unreliable` is None for a method without a verdict.
        seconds, cpu_seconds, seconds_integrand: medians. n_evals, n_train: means.
    """

    method: str
    integrand: str
    budget: int
    seeds: int
    error: float
    bias: float
    bias_error: float
    pulls: Pulls
    silent: Pulls
    warned: int
    unreliable: int | None
    seconds: float
    cpu_seconds: float
    seconds_integrand: float
    n_evals: float
    n_train: float


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2))) if len(values) else math.nan


def summarise(runs: list[Run]) -> Summary:
    """An estimate that is no number counts as off by 100 %."""
    errors = np.array([run.error if math.isfinite(run.error) else 1.0 for run in runs])
    pulls = np.array([_pull(error, run.sigma) for error, run in zip(errors, runs, strict=True)])
    silent = np.array([not run.warned for run in runs])
    verdicts = [run.reliable for run in runs]
    return Summary(
        method=runs[0].method,
        integrand=runs[0].integrand,
        budget=runs[0].budget,
        seeds=len(runs),
        error=rms(errors),
        bias=float(errors.mean()),
        bias_error=float(errors.std(ddof=1) / math.sqrt(len(runs))) if len(runs) > 1 else math.nan,
        pulls=Pulls.of(pulls),
        silent=Pulls.of(pulls[silent]),
        warned=len(runs) - int(silent.sum()),
        unreliable=None if None in verdicts else verdicts.count(False),
        seconds=float(np.median([run.seconds for run in runs])),
        cpu_seconds=float(np.median([run.cpu_seconds for run in runs])),
        seconds_integrand=float(np.median([run.seconds_integrand for run in runs])),
        n_evals=float(np.mean([run.n_evals for run in runs])),
        n_train=float(np.mean([run.n_train for run in runs])),
    )


def _pull(error: float, sigma: float) -> float:
    if sigma > 0 and math.isfinite(sigma):
        return error / sigma
    return 0.0 if error == 0 else math.inf  # an estimate without an error is wrong unless it is exact


def summaries(runs: Iterable[Run]) -> list[Summary]:
    """One for every method, integrand and budget."""
    groups: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.integrand, run.method, run.budget), []).append(run)
    return [summarise(group) for group in groups.values()]


def print_tables(found: list[Summary], integrands: list[Integrand]) -> None:
    """One table for each budget."""
    columns = ["method", "seeds", "rms error", "bias", "pull", "2 sigma", "warned", "unreliable"]
    columns += ["silent: pull", "2 sigma", f"> {LOST:g} sigma", "s", "CPU s", "calls", "training"]
    for budget in sorted({row.budget for row in found}):
        table = Table("integrand", *columns, title=f"{budget:,} evaluations")
        for integrand in integrands:
            for row in found:
                if (row.integrand, row.budget) == (integrand.name, budget):
                    table.add_row(integrand.name, *_cells(row))
        Console(width=180).print(table)


def _cells(row: Summary) -> Iterator[str]:
    yield from (row.method, str(row.seeds), f"{row.error:.1e}", f"{row.bias:+.1e}({row.bias_error:.0e})")
    yield from (f"{row.pulls.rms:.3g}", f"{row.pulls.coverage:.0%}", str(row.warned))
    yield "" if row.unreliable is None else str(row.unreliable)
    yield from (f"{row.silent.rms:.3g}", f"{row.silent.coverage:.0%}", str(row.silent.lost))
    yield from (f"{row.seconds:.1f}", f"{row.cpu_seconds:.1f}", f"{row.n_evals:.0f}", f"{row.n_train:.0f}")


def numbers(found: list[Summary], integrands: list[Integrand]) -> list[Number]:
    """Every cell (floors: of ours at 1e6), then what the issue asks of runs without a warning."""
    lines = [
        _cell_line(row, integrand)
        for integrand in integrands
        for row in found
        if row.integrand == integrand.name
    ]
    ours = [row for row in found if row.method == "ours"]
    return lines + (_honesty(ours) if ours else []) + list(_against_vegas(found))


def _cell_line(row: Summary, integrand: Integrand) -> Number:
    what = f"{row.integrand}, {row.budget:,}: {row.method}, relative rms error over {row.seeds} seeds"
    more = f"pull {row.pulls.rms:.3g}, {row.warned} warned, {row.cpu_seconds:.1f} CPU s"
    measured = f"{row.error:.1e} ± {row.error / math.sqrt(2 * row.seeds):.0e} ({more})"
    if row.budget != FULL or row.method == "madnis":
        return Number(what, measured)
    if row.method == "vegas":
        return Number(what, measured, _shown(integrand.vegas_published, " in the issue"))
    met = None if integrand.floor is None else row.error <= integrand.floor
    return Number(what, measured, _shown(integrand.floor), _shown(integrand.reach), met)


def _shown(value: float | None, more: str = "") -> str:
    return "" if value is None else f"{value:.1e}{more}"


def _honesty(ours: list[Summary]) -> list[Number]:
    """Where no warning fires: pull rms <= 1.3, 2 sigma coverage >= 90 %, and nothing is lost."""
    cells = [row.silent for row in ours if row.silent.n]
    n = sum(cell.n for cell in cells)
    if not n:
        return [Number("ours: runs without a warning", "0")]
    lost, runs = sum(cell.lost for cell in cells), sum(row.seeds for row in ours)
    pull = math.sqrt(sum(cell.rms**2 * cell.n for cell in cells) / n)
    inside = sum(cell.coverage * cell.n for cell in cells) / n
    worst = max(cell.rms for cell in cells)
    return [
        Number("ours: runs without a warning", f"{n} of {runs}"),
        Number(f"ours: of those off by more than {LOST:g} sigma", str(lost), "0", "", lost == 0),
        Number("ours: their pull rms", f"{pull:.2f} (largest of a cell {worst:.2f})", "1.3", "", pull <= 1.3),
        Number("ours: their 2 sigma coverage", f"{inside:.1%}", "90 %", "", inside >= 0.9),
    ]


def _against_vegas(found: list[Summary]) -> Iterator[Number]:
    """Where ours does worst beside vegas, and where best."""
    errors = {(row.method, row.integrand, row.budget): row.error for row in found}
    for budget in sorted({row.budget for row in found}):
        ratios = {
            name: error / errors["vegas", name, budget]
            for (method, name, at), error in errors.items()
            if method == "ours" and at == budget and errors.get(("vegas", name, budget))
        }
        if ratios:
            low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
            shown = f"{ratios[low]:.2g} ({low}) to {ratios[high]:.2g} ({high})"
            yield Number(f"{budget:,}: rms error of ours over that of vegas", shown)


def figure(found: list[Summary], integrands: list[Integrand]) -> Figure:
    """Relative rms error against the budget, one panel each; bars: error/√(2 seeds); hollow: few seeds."""
    columns = min(4, len(integrands))
    lines = math.ceil(len(integrands) / columns)
    page = Figure(figsize=(3.4 * columns, 2.8 * lines), layout="constrained")
    panels = page.subplots(lines, columns, squeeze=False, sharex=True).ravel()
    for panel, integrand in zip(panels, integrands, strict=False):
        _errors(panel, [row for row in found if row.integrand == integrand.name])
        _targets(panel, integrand)
        panel.set(xscale="log", yscale="log", title=integrand.name)
    for panel in panels[len(integrands) :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    page.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    page.supxlabel("evaluations of the integrand, training included")
    page.supylabel("relative rms error")
    return page


def _errors(panel: Any, rows: list[Summary]) -> None:
    for method, colour in COLOURS.items():
        line = sorted((row for row in rows if row.method == method), key=lambda row: row.budget)
        if line:
            y = np.array([row.error for row in line])
            bars = y / np.sqrt([2 * row.seeds for row in line])
            style: dict[str, Any] = {"color": colour, "marker": "o", "capsize": 3, "label": method}
            style["fillstyle"] = "full" if line[0].seeds >= FEW else "none"
            panel.errorbar([row.budget for row in line], y, bars, **style)


def _targets(panel: Any, integrand: Integrand) -> None:
    marks = {
        "floor": (integrand.floor, "_", "k"),
        "reach for": (integrand.reach, "*", "k"),
        "vegas, issue": (integrand.vegas_published, "x", "C3"),
    }
    for name, (value, marker, colour) in marks.items():
        if value is not None:
            panel.plot(FULL, value, marker, ms=10, color=colour, label=name)
