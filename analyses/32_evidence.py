"""Evidences of posteriors: the integrator, warm-started from a network's draws, against reweighting the draws.

Both spend likelihoods on the same posterior and know nothing of each other's: their difference has to agree with their
errors. A small network is trained for each problem (`--model FOLDER`: a finished one for Stokes, by
01_stokes_paper_case.py). The reference ln Z is exact for gaussian_linear and gaussian_mixture, a quadrature for
two_moons, the annealed mixture of benchmark_references.py for slcp, and 200,000 other reweighted draws for Stokes, whose
first observation is nested-sampled as well: that knows nothing of the network.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent))
from benchmark_references import log_evidence
from common import Number, options, output_folder, report_numbers, save_figure

import sbiflow as sf
from sbiflow.integrate import IntegratorConfig
from sbiflow.integrate.evidence import evidence
from sbiflow.pairs import draw_pairs
from simulators.benchmark import task
from simulators.stokes import MilneEddington

NAME = "32_evidence"
STOKES = "stokes"
PROBLEMS = (STOKES, "gaussian_linear", "gaussian_mixture", "two_moons", "slcp")
FLOW = sf.FlowConfig("spline_autoregressive", layers=2, hidden=64, blocks=1)
STOKES_FLOW = sf.FlowConfig("spline_coupling", layers=5, hidden=64, start="prior")
EMBEDDING = sf.EmbeddingConfig("residual", hidden=64, blocks=2, features=32)
OBSERVATIONS = 5200  # seed
REFERENCE_DRAWS, NESTED_LIVE = 200_000, 400
LARGEST, RMS = (
    4.0,
    1.3,
)  # of the differences over their errors: one false alarm in 500 tables; the bound


@dataclass(frozen=True)
class Size:
    """What is spent: simulations and steps of a network, draws to reweight, budget of an integral, repetitions."""

    simulations: int
    steps: int
    draws: int
    budget: int
    effort: float
    observations: int
    seeds: int


@dataclass(frozen=True)
class Found:
    """One estimate of ln Z [nats]."""

    value: float
    error: float
    reliable: bool
    calls: int

    def pull(self, other: Found) -> float:
        """Difference in units of both errors."""
        return (self.value - other.value) / max(math.hypot(self.error, other.error), 1e-12)


@dataclass(frozen=True)
class Case:
    """An observation x and a seed."""

    x: torch.Tensor
    integrated: Found
    reweighted: Found
    truth: Found

    @property
    def trusted(self) -> bool:
        """Both say that they may be used."""
        return self.integrated.reliable and self.reweighted.reliable


def network(name: str, subject: Any, size: Size, folder: Path, model: str, seed: int) -> sf.Posterior:
    """A posterior of the problem, trained here unless a finished one is given."""
    if name == STOKES and model:
        return sf.Posterior.load(model)
    path = folder / f"{name}-{size.simulations}-{seed}.h5"
    store = sf.simulate(subject, size.simulations, path, seed=seed, progress=False)
    config = sf.TrainConfig(steps=size.steps, patience=None, seed=seed)
    flow = STOKES_FLOW if name == STOKES else FLOW
    checkpoint = folder / f"{name}-{size.simulations}-{size.steps}-{seed}.safetensors"
    return sf.train(
        store, subject, config, flow=flow, embedding=EMBEDDING, checkpoint=checkpoint, progress=False
    )


def reference(name: str, subject: Any, posterior: sf.Posterior, x: torch.Tensor, seed: int) -> Found:
    """The most precise ln Z at hand; see the module."""
    if name != STOKES:
        return Found(*log_evidence(subject, x, seed=seed), True, 0)
    draws = posterior.sample(x, REFERENCE_DRAWS, seed=seed + 10_000)
    found = draws.reweight(subject.log_likelihood, progress=False).diagnostics
    return Found(found.log_evidence, found.log_evidence_error, found.reliable, len(draws))


def nested_line(case: Case, seed: int) -> Number:
    """Nested sampling of a Stokes observation beside the integrator."""
    subject = MilneEddington.paper_case()
    nested = sf.nested_reference(
        subject.log_likelihood, subject.prior, case.x, seed=seed, nlive=NESTED_LIVE, progress=False
    )
    calls = nested.n_likelihood_calls
    found = Found(nested.log_evidence, nested.log_evidence_error, nested.converged, calls)
    pull = case.integrated.pull(found)
    what = f"{STOKES}, first observation: nested sampling, {calls:,} likelihoods; pull of the integrator"
    measured = f"{found.value:.2f} ± {found.error:.2f}; {pull:+.1f}"
    return Number(what, measured, f"{LARGEST:g}", "", abs(pull) <= LARGEST)


def one_case(
    subject: Any, posterior: sf.Posterior, x: torch.Tensor, truth: Found, size: Size, seed: int
) -> Case:
    """Draw, reweight, integrate."""
    draws = posterior.sample(x, size.draws, seed=seed)
    weights = draws.reweight(subject.log_likelihood, progress=False).diagnostics
    elsewhere = weights.elsewhere.n if weights.elsewhere else 0
    config = IntegratorConfig(effort=size.effort)
    found = evidence(
        draws, subject.log_likelihood, size.budget, seed=seed, x=x, config=config, progress=False
    )
    return Case(
        x,
        Found(found.log_mean, found.log_sdev, found.reliable, found.n_evals),
        Found(weights.log_evidence, weights.log_evidence_error, weights.reliable, len(draws) + elsewhere),
        truth,
    )


def cases_of(name: str, size: Size, folder: Path, model: str, seed: int) -> list[Case]:
    """Every observation with every seed."""
    subject = MilneEddington.paper_case() if name == STOKES else task(name)
    posterior = network(name, subject, size, folder, model, seed)
    found = []
    for i, x in enumerate(draw_pairs(subject, size.observations, seed=OBSERVATIONS).x):
        truth = reference(name, subject, posterior, x, seed)
        for repeat in range(size.seeds):
            found.append(one_case(subject, posterior, x, truth, size, seed + 100 * repeat + i))
            case = found[-1]
            print(
                f"{name:<17} x {i}: integrator {case.integrated.value:9.4f} ± {case.integrated.error:.4f}, "
                f"reweighting {case.reweighted.value:9.4f} ± {case.reweighted.error:.4f}, "
                f"reference {truth.value:9.4f} ± {truth.error:.4f}",
                flush=True,
            )
    return found


def rms(values: list[float]) -> float:
    """Root mean square; NaN of none."""
    return float(np.sqrt(np.mean(np.square(values)))) if values else math.nan


def lines_of(name: str, cases: list[Case]) -> list[Number]:
    """Pulls, errors and calls of one problem."""
    both = [c.integrated.pull(c.reweighted) for c in cases if c.trusted]
    own = [c.integrated.pull(c.truth) for c in cases if c.integrated.reliable]
    other = [c.reweighted.pull(c.truth) for c in cases if c.reweighted.reliable]
    agree = bool(max(map(abs, both)) <= LARGEST) if both else None
    errors, scaled = [], []  # nats, and nats for one call: both fall as one over the root of the calls
    for which in ("integrated", "reweighted"):
        estimates = [getattr(c, which) for c in cases if getattr(c, which).reliable]
        errors.append(np.median([e.error for e in estimates]) if estimates else math.nan)
        scaled.append(np.median([e.error * e.calls**0.5 for e in estimates]) if estimates else math.nan)
    worst = f", largest {max(map(abs, both)):.1f}" if both else ""
    calls = f"{cases[0].integrated.calls:,} and {cases[0].reweighted.calls:,}"
    return [
        Number(f"{name}: integrator less reweighting, in errors of both: rms of {len(both)}",
               f"{rms(both):.2f}{worst}", f"largest {LARGEST:g}", "rms 1", agree),
        Number(f"{name}: pull from the reference, rms: integrator ({len(own)} of {len(cases)} reliable), reweighting "
               f"({len(other)})", f"{rms(own):.2f}, {rms(other):.2f}", f"{LARGEST:g} at the most", "1",
               bool(max(map(abs, own)) <= LARGEST) if own else None),
        Number(f"{name}: median error of ln Z, {calls} likelihoods", f"{errors[0]:.4f}, {errors[1]:.4f}"),
        Number(f"{name}: the same times the root of the calls", f"{scaled[0]:.2f}, {scaled[1]:.2f}"),
    ]  # fmt: skip


def figure(found: dict[str, list[Case]]) -> Figure:
    """ln Z less its reference, with both errors, per observation and seed; hollow: do not use."""
    page = Figure(figsize=(2.7 * len(found), 3.4), layout="constrained")
    for axes, (name, cases) in zip(
        page.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        for which, colour, shift in (("integrated", "C0", -0.12), ("reweighted", "C1", 0.12)):
            for row, case in enumerate(cases):
                one = getattr(case, which)
                axes.errorbar(
                    row + shift, one.value - case.truth.value, math.hypot(one.error, case.truth.error), fmt="o",
                    ms=4, capsize=2, color=colour, mfc=colour if one.reliable else "w",
                    label=which if row == 0 else None,
                )  # fmt: skip
        axes.axhline(0, color="0.6", lw=1, zorder=0)
        axes.set(title=name.replace("_", " "), xlabel="observation, seed", xticks=[])
    first = page.axes[0]
    first.set_ylabel("ln Z − reference [nats]")
    first.legend(frameon=False, fontsize=8)
    return page


def main() -> None:
    arguments = options(
        __doc__ or "", model="", only=",".join(PROBLEMS), budget=30_000, observations=3, seeds=2
    )
    fast, seed = arguments.fast, arguments.seed
    size = Size(20_000, 1_500, 10_000, arguments.budget, 1.0, arguments.observations, arguments.seeds)
    size = Size(2_000, 100, 2_000, 4_000, 0.2, 1, 1) if fast else size
    names = PROBLEMS[1:3] if fast else arguments.only.split(",")
    if unknown := set(names) - set(PROBLEMS):
        raise SystemExit(f"--only: expected some of {', '.join(PROBLEMS)}, got {', '.join(sorted(unknown))}")
    folder, start = output_folder(NAME, fast), time.process_time()
    found = {name: cases_of(name, size, folder, arguments.model, seed) for name in names}
    save_figure(figure(found), folder / "evidence.png")

    everything = [case for cases in found.values() for case in cases]
    trusted = [case for case in everything if case.trusted]
    pulls = [case.integrated.pull(case.reweighted) for case in trusted]
    false = sum(abs(c.integrated.pull(c.truth)) > LARGEST for c in everything if c.integrated.reliable)
    calls = sum(case.integrated.calls + case.reweighted.calls for case in everything)
    numbers = [line for name, cases in found.items() for line in lines_of(name, cases)]
    if STOKES in found:
        numbers.append(nested_line(found[STOKES][0], seed))
    numbers += [
        Number(f"all: integrator less reweighting, rms of {len(pulls)}", f"{rms(pulls):.2f}", f"{RMS:g}", "1",
               rms(pulls) <= RMS if pulls else None),
        Number(f"all: integrator reliable, of {len(everything)}; falsely (|pull| > {LARGEST:g})",
               f"{sum(c.integrated.reliable for c in everything)}; {false}", "0 falsely", "", false == 0),
        Number("all: reweighting reliable", str(sum(c.reweighted.reliable for c in everything))),
        Number("likelihood calls in all, CPU minutes", f"{calls:,}, {(time.process_time() - start) / 60:.1f}"),
    ]  # fmt: skip
    title = "Evidences by the integrator and by reweighting" + (" (--fast: proves nothing)" if fast else "")
    report_numbers(title, numbers, folder, arguments)


if __name__ == "__main__":
    main()
