"""The SBI benchmark (Lueckmann et al. 2021, arXiv 2101.04653): ten tasks, three budgets, C2ST against our references.

A simulation is one frozen pair (theta, x): noise is never redrawn. Every cell (task, budget, seed) trains one
amortised ensemble, draws 10,000 from it for each of ten observations and reweights them by the likelihood. Cells are
files in analyses/output/10_benchmark_tasks/: a run that was stopped goes on, and two runs with different --tasks may
go on beside each other. "published" C2ST takes a minute per observation in ten dimensions: --published says for how
many observations.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from benchmark_observations import observations, published_folder, published_reference
from benchmark_references import log_evidence, reference
from benchmark_table import PUBLISHED, report
from common import HERE, options, output_folder

import sbiflow as sf
from sbiflow.calibration.c2st import c2st
from simulators.benchmark import TASKS, frozen

NAME = "10_benchmark_tasks"
DRAWS = 10_000


@dataclass(frozen=True)
class Answer:
    """One observation of one cell: C2ST (NaN where not computed), and what the importance weights say."""

    c2st: float
    c2st_fast: float
    khat: float
    efficiency: float
    log_evidence: float
    log_evidence_error: float
    reference_log_evidence: float
    reference_error: float
    reliable: bool
    likelihood_calls: int

    @property
    def pull(self) -> float:
        """Δ ln Z in errors of both."""
        error = np.hypot(self.log_evidence_error, self.reference_error)
        return float((self.log_evidence - self.reference_log_evidence) / max(error, 1e-12))


def references(
    name: str, subject: Any, raw: list[torch.Tensor], folder: Path, n: int
) -> list[dict[str, Any]]:
    """Reference draws (n, D) in the published parameters and ln Z of every observation; computed once and kept."""
    found = []
    for i, x in enumerate(raw):
        path = folder / f"reference-{name}-{i}.pt"
        if not path.exists():
            value, error = log_evidence(subject, x, seed=100 + i)
            draws = subject.published(reference(subject, x, n, seed=200 + i))
            torch.save({"draws": draws, "log_evidence": value, "error": error}, path)
        found.append(torch.load(path, weights_only=True))
    return found


def train(
    name: str, subject: Any, budget: int, seed: int, folder: Path, fast: bool
) -> tuple[sf.Ensemble, float]:
    """The ensemble of a cell, and the seconds of its training, resumed or not."""
    simulator = frozen(subject)
    store = sf.simulate(simulator, budget, folder / f"{name}-{budget}-{seed}.h5", seed=seed, progress=False)
    members = sf.default_members(budget)
    if fast:
        members = tuple(
            sf.Member(m.flow, m.embedding, sf.TrainConfig(steps=30, patience=None)) for m in members[:2]
        )
    checkpoints = folder / "checkpoints" / f"{name}-{budget}-{seed}"
    ensemble = sf.train_ensemble(
        store, simulator, members, seed=seed, checkpoint_folder=checkpoints, progress=False
    )
    return ensemble, ensemble.info.training_seconds


def answer(draws: sf.PosteriorSamples, simulator: Any, ref: dict[str, Any]) -> Answer:
    """Reweight, and compare with the reference."""
    weighted = draws.reweight(simulator.log_likelihood, progress=False)
    found = weighted.diagnostics
    fast = c2st(ref["draws"][: len(draws)], simulator.published(draws.theta), seed=1, method="fast")
    return Answer(
        c2st=float("nan"), c2st_fast=fast.accuracy, khat=found.khat, efficiency=found.efficiency,
        log_evidence=found.log_evidence, log_evidence_error=found.log_evidence_error,
        reference_log_evidence=ref["log_evidence"], reference_error=ref["error"], reliable=found.reliable,
        likelihood_calls=len(draws) + (found.elsewhere.n if found.elsewhere else 0),
    )  # fmt: skip


def run_cell(
    name: str, subject: Any, raw: list[torch.Tensor], budget: int, seed: int, folder: Path, fast: bool
) -> None:
    """Train, draw, reweight; the cell's file is written last."""
    path = folder / f"cell-{name}-{budget}-{seed}.json"
    if path.exists():
        return
    n = 500 if fast else DRAWS
    simulator, refs = frozen(subject), references(name, subject, raw, folder, n)
    ensemble, seconds = train(name, subject, budget, seed, folder, fast)
    answers, kept = [], []
    for i, (x, ref) in enumerate(zip(raw, refs, strict=True)):
        draws = ensemble.sample(simulator.x_of(x), n, seed=300 + i)
        answers.append(asdict(answer(draws, simulator, ref)))
        kept.append(simulator.published(draws.theta))
    torch.save(torch.stack(kept), path.with_suffix(".pt"))
    cell = {
        "task": name,
        "budget": budget,
        "seed": seed,
        "seconds": seconds,
        "weights": ensemble.weights,
        "answers": answers,
    }
    path.write_text(json.dumps(cell, indent=1))
    mean = np.mean([a["c2st_fast"] for a in answers])
    print(f"{name:<24}{budget:>8} seed {seed}: {seconds:.0f} s training, fast C2ST {mean:.3f}", flush=True)


def published_protocol(name: str, budget: int, seed: int, folder: Path, count: int) -> None:
    """C2ST by the published protocol for the first `count` observations of a cell, where it is missing."""
    path = folder / f"cell-{name}-{budget}-{seed}.json"
    cell = json.loads(path.read_text())
    draws = torch.load(path.with_suffix(".pt"), weights_only=True)
    for i, found in enumerate(cell["answers"][:count]):
        if np.isnan(found["c2st"]):
            ref = torch.load(folder / f"reference-{name}-{i}.pt", weights_only=True)["draws"]
            found["c2st"] = c2st(ref[: draws.shape[1]], draws[i], seed=1).accuracy
            path.write_text(json.dumps(cell, indent=1))


def reference_floor(name: str, index: int, folder: Path, published: Path | None) -> None:
    """C2ST of our reference against the published one of an observation: the floor of every comparison."""
    path = folder / f"floor-{name}-{index}.json"
    if published is None or path.exists():
        return
    own = torch.load(folder / f"reference-{name}-{index}.pt", weights_only=True)["draws"]
    theirs = published_reference(name, index, published)[: len(own)].to(own.dtype)
    path.write_text(json.dumps({"task": name, "c2st": c2st(theirs, own, seed=1).accuracy}))


def load(folder: Path) -> list[dict[str, Any]]:
    """Every finished cell, its answers as `Answer`."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("cell-*.json"))]
    names = {field.name for field in fields(Answer)}
    return [{**c, "answers": [Answer(**{k: a[k] for k in names}) for a in c["answers"]]} for c in cells]


def main() -> None:
    arguments = options(
        __doc__ or "", seeds=1, published=10, tasks=",".join(TASKS), budgets="1000,10000,100000"
    )
    fast = arguments.fast
    folder = output_folder(NAME, fast)
    names = arguments.tasks.split(",") if not fast else ["gaussian_linear", "two_moons"]
    budgets = [int(b) for b in arguments.budgets.split(",")] if not fast else [300]
    if unknown := set(names) - set(PUBLISHED):
        raise SystemExit(
            f"--tasks: expected some of {', '.join(PUBLISHED)}, got {', '.join(sorted(unknown))}"
        )
    if fast:  # cells of earlier code would not be made again
        shutil.rmtree(folder)
        folder.mkdir()
    files = None if fast else published_folder(HERE / "output")
    print("observations: " + ("published" if files else "our own (see benchmark_observations.py)"))
    cells = [
        (b, s, n)
        for b in budgets
        for s in range(arguments.seed, arguments.seed + arguments.seeds)
        for n in names
    ]
    for budget, seed, name in cells:
        subject, raw = observations(name, files)
        run_cell(name, subject, raw[: 2 if fast else None], budget, seed, folder, fast)
    for count in range(
        1, arguments.published + 1
    ):  # the first observation of all cells before the second of any
        for budget, seed, name in cells:
            published_protocol(name, budget, seed, folder, count)
        for name in names:
            if count == 1:
                reference_floor(name, 0, folder, files)
    report(load(folder), folder, arguments, published=files is not None)


if __name__ == "__main__":
    main()
