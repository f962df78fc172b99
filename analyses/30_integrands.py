"""Twelve known integrals by `sbiflow.Integrator` with its defaults: estimate, pull, verdict, seconds.

One seed each: what a physicist sees. Many seeds, and vegas and madnis beside them: benchmarks/integrators.py.
`--only camel8,rosen6`, `--budget 1e6`, `--integrands issue|held-out|all`; `--tables 1` prints every
iteration.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

sys.path[:0] = [str(Path(__file__).parents[1])]
from analyses.common import Number, options, output_folder, report_numbers, save_figure
from analyses.integrands import INTEGRANDS, Integrand, by_names
from analyses.integrands_held_out import HELD_OUT
from sbiflow.integrate import IntegralResult, Integrator
from sbiflow.integrate.notation import with_error

NAME = "30_integrands"
SETS = {"issue": INTEGRANDS, "held-out": HELD_OUT, "all": INTEGRANDS + HELD_OUT}
FAST = ("circles2,box3,corrgauss8", 10_000)  # integrands and budget
WRONG = 5.0  # standard errors from the truth: no seed of a sound method does that


@dataclass(frozen=True)
class Answer:
    """What was found: relative error and its claimed standard deviation, seconds on the clock."""

    integrand: Integrand
    result: IntegralResult
    error: float
    sigma: float
    seconds: float

    @property
    def pull(self) -> float:
        return self.error / self.sigma if self.sigma > 0 else math.copysign(math.inf, self.error)

    @property
    def value(self) -> str:
        """1.2345(67), of a log integrand the logarithm of the integral."""
        if self.integrand.log:
            return "ln I = " + with_error(self.result.log_mean, self.result.log_sdev)
        return with_error(float(self.result.mean), float(self.result.sdev))

    @property
    def trusted(self) -> bool:
        """Nothing made the user look again."""
        return self.result.reliable and not self.result.warnings

    def number(self) -> Number:
        """Right, or not trusted: an estimate far from the truth has to say so."""
        wrong = self.trusted and abs(self.pull) > WRONG
        says = "reliable" if self.trusted else "warned" if self.result.reliable else "UNRELIABLE"
        reach = "" if self.integrand.reach is None else f"rms {self.integrand.reach:.0e} at 1e6"
        measured = (
            f"{self.value}, error {self.error:+.1e}, pull {self.pull:+.1f}, {says}, {self.seconds:.1f} s"
        )
        return Number(self.integrand.name, measured, f"|pull| <= {WRONG:g} or a warning", reach, not wrong)


def answer(integrand: Integrand, budget: int, seed: int) -> Answer:
    """Integrate, and compare with the truth."""
    start = time.perf_counter()
    result = Integrator(integrand.bounds)(integrand.f, budget, seed=seed, log=integrand.log, progress=False)
    seconds = time.perf_counter() - start
    found = (float(result.mean), float(result.sdev), result.log_mean, result.log_sdev)
    return Answer(integrand, result, *integrand.relative(*found), seconds)


def print_answers(answers: list[Answer], budget: int) -> None:
    """One line each, then what the warnings say."""
    columns = (
        "truth",
        "estimate",
        "error",
        "pull",
        "k-hat",
        "ESS",
        "proposal",
        "calls",
        "verdict",
        "s (flow)",
    )
    table = Table("integrand", *columns, title=f"{budget:,} evaluations, training included")
    for one in answers:
        result, health = one.result, one.result.diagnostics
        table.add_row(
            one.integrand.name, f"{one.integrand.truth:.10g}", one.value, f"{one.error:+.1e}",
            f"{one.pull:+.1f}",
            f"{health.khat:.2f}", f"{health.efficiency:.0%}", result.method, f"{result.n_evals:,}",
            "reliable" if one.trusted else "warned" if result.reliable else "UNRELIABLE",
            f"{one.seconds:.1f} ({result.seconds_flow:.1f})",
        )  # fmt: skip
    Console(width=170).print(table)
    for one in answers:
        if not one.trusted:
            remarks = (one.result.verdict, *one.result.warnings)
            print(f"{one.integrand.name}: {' '.join(dict.fromkeys(remarks))}")


def figure(answers: list[Answer]) -> Figure:
    """Relative error with its bar, in units of the reach (of sigma where there is none): the truth is 0."""
    page = Figure(figsize=(7, 0.35 * len(answers) + 1.2), layout="constrained")
    axes = page.subplots()
    for height, one in enumerate(answers):
        unit = one.integrand.reach or one.sigma or 1.0
        colour = "C0" if one.trusted else "C3"
        error = float(np.clip(one.error / unit, -40, 40))
        axes.errorbar(error, height, xerr=min(one.sigma / unit, 40.0), fmt="o", color=colour, capsize=3)
    axes.axvline(0, color="0.5", lw=1)
    axes.axvspan(-1, 1, color="0.9", zorder=0)
    axes.set_yticks(range(len(answers)), [one.integrand.name for one in answers])
    axes.set_ylim(-0.7, len(answers) - 0.3)
    axes.invert_yaxis()
    axes.set_xlabel("(estimate / truth − 1) / reach; red: with a warning; beyond ±40 cut off")
    return page


def main() -> None:
    arguments = options(__doc__ or "", only="", budget="1e6", integrands="issue", tables=0)
    if arguments.fast:
        arguments.only, arguments.budget, arguments.integrands = FAST[0], str(FAST[1]), "issue"
    budget = int(float(arguments.budget))
    answers = []
    for integrand in by_names(arguments.only, SETS[arguments.integrands]):
        answers.append(answer(integrand, budget, arguments.seed))
        print(f"{integrand.name}: {integrand.about}\n  {answers[-1].number().measured}", flush=True)
        if arguments.tables:
            print(answers[-1].result.table())
    print_answers(answers, budget)
    folder = output_folder(NAME, arguments.fast)
    save_figure(figure(answers), folder / "errors.png")
    numbers = [one.number() for one in answers]
    trusted = sum(one.trusted for one in answers)
    numbers.append(Number("reliable, without a warning", f"{trusted} of {len(answers)}"))
    numbers.append(Number("time, minutes", f"{sum(one.seconds for one in answers) / 60:.1f}"))
    title = f"Known integrals, {budget:,} evaluations" + (
        " (--fast: proves nothing)" if arguments.fast else ""
    )
    report_numbers(title, numbers, folder, arguments)


if __name__ == "__main__":
    main()
