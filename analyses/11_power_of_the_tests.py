"""How often do the tests of `sf.calibrate` reject exact posteriors, and how often wrong ones?

Posteriors known in closed form are calibrated as they are, and with one fault each, over many seeds. A case is
rejected if the report fails; every test is also counted alone, at the level that it has in the report. Exact
posteriors have to pass (alpha = 1e-4), and be rejected at alpha = 0.05 no more often than that says.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import stats

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from common import Number, options, output_folder, report_numbers

import sbiflow as sf
from tests.toys import LinearGaussian, TwoModes

NAME = "11_power_of_the_tests"
N, DRAWS = 1000, 150
ALPHA, HIGH = 1e-4, 0.05
POWER = 0.99
SURE = 1e-4  # false alarm of each bound on counted false alarms
COLUMNS = (
    "report",
    "SBC",
    "HPD coverage",
    "TARP",
    "log-likelihood",
    "distance to regression on x",
    "contraction",
)


class Case(NamedTuple):
    """A proposal, its simulator, and which of the tests have to find its fault (none: it is exact)."""

    name: str
    simulator: Any
    proposal: Any
    caught_by: tuple[str, ...] = ()


def cases() -> list[Case]:
    """Exact posteriors first."""
    line, modes = LinearGaussian(), TwoModes()
    return [
        Case("exact", line, line.exact_proposal()),
        Case("exact, two modes", modes, modes.exact_proposal()),
        Case("SD x 0.8", line, line.exact_proposal(0.8), ("report", "SBC", "HPD coverage", "TARP")),
        Case("SD x 1.25", line, line.exact_proposal(1.25), ("report", "HPD coverage", "TARP")),
        Case("bias 0.3 sigma", line, line.exact_proposal(1.0, 0.3), ("report", "SBC", "TARP")),
        Case("posterior = prior", line, line.prior_proposal(), ("report", "TARP", *COLUMNS[4:])),
        Case("mode weights 0.7 / 0.3, exact 0.5 / 0.5", modes, modes.exact_proposal(0.7), ("report", "TARP")),
    ]  # fmt: skip


def outcome(case: Case, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Who rejects at ALPHA (one flag a column), and the p-values of the rank tests."""
    found = sf.calibrate(
        case.proposal, case.simulator, n=N, draws=DRAWS, seed=seed, alpha=ALPHA, progress=False
    )
    failed = {test.name for test in found.ranks.failures}
    alarm = any(row.misses_information for row in found.contraction)
    sbc = bool(failed & set(case.simulator.prior.names))
    flags = [not found.passed, sbc, *(name in failed for name in COLUMNS[2:-1]), alarm]
    return np.array(flags), np.array([test.p_value for test in found.ranks.tests])


def measure(arguments: argparse.Namespace, seeds: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Case -> flags (seeds, columns), p-values (seeds, tests)."""
    found = {}
    for case in cases():
        runs = [
            outcome(case, arguments.seed * 100_000 + i)
            for i in track(range(seeds), case.name, transient=True)
        ]
        flags, p_values = zip(*runs, strict=True)
        found[case.name] = np.stack(flags), np.stack(p_values)
    return found


def false_alarms(name: str, flags: np.ndarray, p_values: np.ndarray) -> list[Number]:
    """Rejections of an exact posterior: at ALPHA none, at HIGH as many as the level says."""
    seeds, tests = p_values.shape
    none, together = int(flags[:, 0].sum()), int((p_values.min(1) <= HIGH / tests).sum())
    alone = (p_values <= HIGH).sum(0)
    most = int(stats.binom.isf(SURE, seeds, HIGH))
    low, high = stats.binom.ppf(SURE / tests / 2, seeds, HIGH), stats.binom.isf(SURE / tests / 2, seeds, HIGH)
    met = bool((alone >= low).all() and (alone <= high).all())
    return [
        Number(f"{name}: reports that fail, alpha = {ALPHA:g}", f"{none} of {seeds}", "0", "", none == 0),
        Number(f"{name}: rank tests together, alpha = {HIGH:g}", f"{together} of {seeds}", f"<= {most}", "", together <= most),
        Number(f"{name}: each of {tests} tests alone, alpha = {HIGH:g}", f"{alone.min()} to {alone.max()} of {seeds}", f"{low:.0f} to {high:.0f}", "", met),
    ]  # fmt: skip


def power(case: Case, flags: np.ndarray) -> list[Number]:
    """Rejections of a wrong posterior, by the report and by each test alone, with a 95 % lower bound."""
    seeds, numbers = len(flags), []
    for column, count in zip(COLUMNS, flags.sum(0).tolist(), strict=True):
        wanted = column in case.caught_by
        low = stats.beta.ppf(0.05, count, seeds - count + 1) if count else 0.0
        measured = f"{count / seeds:.3f} (> {low:.3f})"
        met = count / seeds >= POWER if wanted else None
        numbers.append(Number(f"{case.name}: {column}", measured, str(POWER) if wanted else "", "", met))
    return numbers


def print_powers(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """One line a case, one column a test."""
    table = Table("share rejected", *COLUMNS, title=f"N = {N}, alpha = {ALPHA:g}")
    for name, (flags, _) in found.items():
        table.add_row(name, *(f"{share:.3f}" for share in flags.mean(0)))
    Console(width=140).print(table)


def main() -> None:
    arguments = options(__doc__ or "", seeds=200)
    seeds = 3 if arguments.fast else arguments.seeds
    started = time.perf_counter()
    found = measure(arguments, seeds)
    print_powers(found)
    numbers = []
    for case in cases():
        numbers += (
            power(case, found[case.name][0]) if case.caught_by else false_alarms(case.name, *found[case.name])
        )
    numbers.append(Number("seeds for each case", str(seeds)))
    numbers.append(Number("time, minutes", f"{(time.perf_counter() - started) / 60:.1f}"))
    title = f"Power and false alarms of calibrate, N = {N}" + (
        " (--fast: proves nothing)" if arguments.fast else ""
    )
    report_numbers(title, numbers, output_folder(NAME, arguments.fast), arguments)


if __name__ == "__main__":
    main()
