"""End-to-end training against sbi's NPE: seconds to the same held-out log-density; BayesFlow as a third column.

The target of a case is L*, the mean log q(theta | x) of sbi's finished posterior on 10,000 held-out pairs, in physical
units. Our time is that of a complete run of `sbiflow.train`: of runs of 1/8, 1/4, 1/2 and all of the default number of
steps, the cheapest that reaches L* of the same pairs and seed. sbi's is its complete run; "close" is when its own
validation curve first came within 0.01 nats of its best, which its user cannot know at that time. "corrected" is the
target after sbi divides by the mass of its flow inside the prior's support. Settings: training_peers.py.

Every run has a process of its own, one thread, and trains on 200 pairs before its clock starts, so that no import and
no first call is counted. CPU seconds are compared (on an idle machine those are the seconds on the clock, which are
in the table too). Every run is one line in analyses/output/training_benchmark/runs.jsonl, written as soon as it is
done; what is there, of the same version of its method, is not done again. `--only slcp,maf,10000` selects tasks,
families and sizes; `--methods ours,sbi,bayesflow`, where "" runs none and makes the table of what is there; `--stale keep` counts lines of other versions too; `--record`
also writes benchmarks/results/training.json. Needs `pip install "sbiflow[bench]"`.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[2])]

from analyses.benchmarks.training_peers import FAMILIES, METHODS, Case, make_problem
from analyses.benchmarks.training_table import markdown, numbers, pairs_of, summaries
from analyses.common import Number, options, output_folder, report_numbers
from sbiflow.provenance import now

NAME = "training_benchmark"
TASKS = ("slcp", "two_moons", "lotka_volterra")
BUDGETS: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
SEEDS = {10_000: 3, 100_000: 2}  # pairs: seeds
BAYESFLOW = ("slcp", 10_000)  # where it runs
TEST = 10_000
WARM_UP = 200
SOURCE = Path(__file__).parents[2] / "sbiflow"
TRAINED_BY = (
    "training/*.py",
    "transforms/*.py",
    "families/*.py",
    "flows.py",
    "embedding.py",
    "guess.py",
    "novelty.py",
)
FAST = {"only": "two_moons,maf", "methods": "ours,sbi", "stale": "keep"}


@dataclass(frozen=True)
class Run:
    """A finished case: `Trained` (see there) with the mean of log_prob and its standard error instead of its values."""

    case: Case
    seconds: float
    cpu_seconds: float
    seconds_close: float | None
    steps: int
    batch: int
    parameters: int
    log_prob: float
    error: float
    leak: float
    version: str
    created: str
    load: float

    @property
    def cpu_close(self) -> float:
        """CPU seconds at `seconds_close`; all of them where there is no such time."""
        return self.cpu_seconds * (1.0 if self.seconds_close is None else self.seconds_close / self.seconds)


@functools.cache  # what was imported counts, not what is edited meanwhile
def version(method: str) -> str:
    """Of the package; of ours a hash of what trains: no run of another state of the code is taken for one."""
    if method != "ours":
        try:
            return importlib.metadata.version(method)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"
    sources = b"".join(path.read_bytes() for pattern in TRAINED_BY for path in sorted(SOURCE.glob(pattern)))
    return hashlib.sha256(sources).hexdigest()[:12]


def measure(case: Case, folder: Path, test: int) -> Run:
    """Train a case in this process, after a short training that is not counted."""
    torch.set_num_threads(1)
    version(case.method)
    warm = make_problem(case.task, WARM_UP, 0, WARM_UP, folder)
    METHODS[case.method](warm, replace(case, budget=0.02))
    load = os.getloadavg()[0]
    found = METHODS[case.method](make_problem(case.task, case.n, case.seed, test, folder), case)
    density = found.log_prob.double().numpy()
    values = {k: v for k, v in vars(found).items() if k != "log_prob"}
    return Run(
        case=case, log_prob=float(density.mean()), error=float(density.std() / len(density) ** 0.5),
        version=version(case.method), created=now(), load=load, **values,
    )  # fmt: skip


def read(path: Path, stale: str) -> dict[Case, Run]:
    """The runs of a file; a line that a kill cut off is left out. Of repeated ones the last counts."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        case = Case(**record.pop("case"))
        if stale == "keep" or record["version"] == version(case.method):
            found[case] = Run(case=case, **record)
    return found


def append(path: Path, run: Run) -> None:
    """One line, on disk before the next run starts."""
    cut_off = path.exists() and not path.read_text().endswith("\n") and path.stat().st_size > 0
    with path.open("a") as file:
        file.write(("\n" if cut_off else "") + json.dumps(asdict(run)) + "\n")


def plan(seeds: dict[int, int], budgets: tuple[float, ...], methods: list[str]) -> Iterator[Case]:
    """Small before large, seed by seed; ours and sbi alternate, and every second seed turns the order around."""
    if unknown := set(methods) - set(METHODS):
        raise ValueError(f"methods: expected some of {', '.join(METHODS)}; got {', '.join(sorted(unknown))}")
    for n, count in seeds.items():
        for seed in range(1, count + 1):
            for task in TASKS:
                for family in FAMILIES:
                    cases = [Case("ours", task, family, n, seed, budget) for budget in budgets]
                    cases.insert(1, Case("sbi", task, family, n, seed))
                    yield from (c for c in cases[:: 1 if seed % 2 else -1] if c.method in methods)
                if (task, n, seed) == (*BAYESFLOW, 1) and "bayesflow" in methods:
                    yield Case("bayesflow", task, "affine", n, seed)


def chosen(case: Case, only: str) -> bool:
    """Whether the words of `--only` (of tasks, families and sizes) allow a case; none of a kind allows all.

    Raises:
        ValueError: a word that is none of them.
    """
    words = {word.strip() for word in only.split(",") if word.strip()}
    kinds = (set(TASKS), {*FAMILIES, "affine"}, {str(n) for n in SEEDS})
    known = sorted(kinds[0] | kinds[1] | kinds[2])
    if unknown := words - set(known):
        raise ValueError(f"only: expected some of {', '.join(known)}; got {', '.join(sorted(unknown))}")
    own = (case.task, case.family, str(case.n))
    return all(not words & kind or mine in words for mine, kind in zip(own, kinds, strict=True))


def run_all(cases: list[Case], path: Path, stale: str, test: int) -> list[str]:
    """Do what is not there yet, each in a fresh process; return what raised (the next call tries it again)."""
    done, raised = read(path, stale), []
    context = multiprocessing.get_context("spawn")
    for number, case in enumerate(cases, 1):
        if case in done:
            continue
        try:
            make_problem(case.task, case.n, case.seed, test, path.parent)  # here, so that it is made once
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                run = pool.submit(measure, case, path.parent, test).result()
        except Exception as error:  # hours of other runs go on
            raised.append(f"{case}: {type(error).__name__}: {error}")
            print(raised[-1], flush=True)
            continue
        append(path, run)
        print(
            f"{number}/{len(cases)} {case.task} {case.family} {case.n:,} seed {case.seed} {case.method} x{case.budget:g}: "
            f"{run.cpu_seconds:.1f} s CPU, {run.seconds:.1f} s, log q {run.log_prob:.3f}",
            flush=True,
        )
    return raised


def record(folder: Path, runs: list[Run]) -> None:
    """Beside the numbers every run that they were made of."""
    table = json.loads((folder / "numbers.json").read_text())
    table["runs"] = [asdict(run) for run in runs]
    target = Path(__file__).parent / "results" / "training.json"
    target.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n")
    print(f"numbers: {target}")


def main() -> None:
    arguments = options(__doc__ or "", methods="ours,sbi,bayesflow", only="", stale="drop")
    folder = output_folder(NAME, arguments.fast)
    path, seeds, budgets, test = folder / "runs.jsonl", SEEDS, BUDGETS, TEST
    if arguments.fast:
        vars(arguments).update(FAST)
        path.unlink(missing_ok=True)
        seeds, budgets, test = {WARM_UP: 1}, (0.05, 0.1), 300
    methods = [name.strip() for name in arguments.methods.split(",") if name.strip()]
    cases = [case for case in plan(seeds, budgets, methods) if chosen(case, arguments.only)]
    raised = run_all(cases, path, arguments.stale, test)
    runs = [run for case, run in read(path, arguments.stale).items() if chosen(case, arguments.only)]
    stale = len(read(path, "keep")) - len(read(path, arguments.stale))
    found = summaries(pairs_of(runs, budgets))
    text = markdown(found, [run for run in runs if run.case.method == "bayesflow"])
    (folder / "table.md").write_text(text + "\n")
    print(text)
    versions = ", ".join(f"{method} {version(method)}" for method in sorted({r.case.method for r in runs}))
    loads = [run.load for run in runs] or [os.getloadavg()[0]]
    lines = [*numbers(found), Number("versions, one thread", versions or "none")]
    lines.append(Number("load average before the runs", f"{min(loads):.1f} to {max(loads):.1f}"))
    lines.append(Number("runs of other versions, left out", str(stale)))
    lines.append(Number("runs that raised", str(len(raised)), "0", "", not raised))
    title = "End-to-end training, same log-density" + (" (fast: proves nothing)" if arguments.fast else "")
    report_numbers(title, lines, folder, argparse.Namespace(**vars(arguments) | {"record": False}))
    if arguments.record and not arguments.fast:
        record(folder, runs)


if __name__ == "__main__":
    main()
