"""The integrator against vegas and madnis: errors, pulls, coverage, warnings and seconds over many seeds.

Every (method, integrand, budget, seed) is one line in analyses/output/integrators/runs.jsonl, written as
soon as it is done; a run that is already there, of the same version of its method, is not done again. The
methods alternate within each seed, so that what else runs on the machine hits all of them.
`--methods ours,vegas,madnis`, `--only camel8,rosen6`, `--budgets 1e5,1e6`, `--seeds 10` (from `--seed` on),
`--integrands issue|held-out|all`, `--stale keep` (lines of other versions count too). `--record` also writes
benchmarks/results/integrators.json (integrators-held-out.json, ...) of all that is in the file.
Settings of the peers: integrator_peers.py. Needs `pip install "sbiflow[bench]"`.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2])]

from analyses.common import Number, options, output_folder, report_numbers, save_figure
from analyses.integrands import INTEGRANDS, Integrand, by_names
from analyses.integrands_held_out import HELD_OUT
from analyses.integrator_peers import METHODS, Run
from analyses.integrator_table import Summary, figure, numbers, print_tables, summaries
from sbiflow.provenance import now

NAME = "integrators"
SETS = {"issue": INTEGRANDS, "held-out": HELD_OUT, "all": INTEGRANDS + HELD_OUT}
SOURCE = Path(__file__).parents[2] / "sbiflow" / "integrate"
OPTIONS: dict[str, int | str] = {
    "methods": "ours,vegas",
    "only": "",
    "budgets": "1e5,1e6",
    "seeds": 10,
    "integrands": "issue",
    "stale": "drop",
}
FAST = {"methods": "ours,vegas", "only": "circles2,camel8", "budgets": "1e4", "seeds": 2}


@functools.cache  # what was imported counts, not what is edited meanwhile
def version(method: str) -> str:
    """Of the package; of ours a hash of its sources: no run of another state of the code is taken for one."""
    if method != "ours":
        try:
            return importlib.metadata.version(method)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"
    sources = b"".join(path.read_bytes() for path in sorted(SOURCE.rglob("*.py")))
    return hashlib.sha256(sources).hexdigest()[:12]


def read(path: Path, stale: str) -> list[Run]:
    """The runs of a file; a line that a kill cut off is left out. Of repeated ones the last counts."""
    names = [field.name for field in fields(Run)]
    found: dict[tuple[Any, ...], Run] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if stale == "keep" or record["version"] == version(record["method"]):
            run = Run(**{name: record[name] for name in names} | {"remarks": tuple(record["remarks"])})
            found[run.method, run.integrand, run.budget, run.seed] = run
    return list(found.values())


def append(path: Path, run: Run) -> None:
    """One line, on disk before the next run starts."""
    cut_off = path.exists() and not path.read_text().endswith("\n") and path.stat().st_size > 0
    record = asdict(run) | {"version": version(run.method), "created": now(), "load": os.getloadavg()[0]}
    with path.open("a") as file:
        file.write(("\n" if cut_off else "") + json.dumps(record) + "\n")


def plan(arguments: argparse.Namespace) -> Iterator[tuple[str, Integrand, int, int]]:
    """Seed by seed; the order of the methods turns with the seed."""
    methods = [name.strip() for name in arguments.methods.split(",")]
    if unknown := set(methods) - set(METHODS):
        raise ValueError(f"methods: expected some of {', '.join(METHODS)}; got {', '.join(sorted(unknown))}")
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        for budget in budgets(arguments):
            for integrand in chosen(arguments):
                turn = seed % len(methods)
                for method in methods[turn:] + methods[:turn]:
                    yield method, integrand, budget, seed


def budgets(arguments: argparse.Namespace) -> list[int]:
    return [int(float(budget)) for budget in arguments.budgets.split(",")]


def chosen(arguments: argparse.Namespace) -> list[Integrand]:
    """The integrands that the arguments name.

    Raises:
        ValueError: there is no such set, or no such integrand in it.
    """
    if arguments.integrands not in SETS:
        raise ValueError(f"integrands: expected one of {', '.join(SETS)}; got {arguments.integrands}")
    return by_names(arguments.only, SETS[arguments.integrands])


def measure(path: Path, arguments: argparse.Namespace) -> list[str]:
    """Do what is not there yet; return what raised (it is done again by the next call)."""
    version("ours")
    done = {(run.method, run.integrand, run.budget, run.seed) for run in read(path, arguments.stale)}
    raised = []
    for method, integrand, budget, seed in plan(arguments):
        if (method, integrand.name, budget, seed) in done or (method == "madnis" and integrand.dim == 1):
            continue  # madnis' couplings take two axes at least
        case = f"{integrand.name} {budget:,} seed {seed} {method}"
        try:
            run = METHODS[method](integrand, budget, seed)
        except Exception as error:  # hours of other runs go on
            raised.append(f"{case}: {type(error).__name__}: {error}")
            print(raised[-1], flush=True)
            continue
        append(path, run)
        found = f"error {run.error:+.1e}, sigma {run.sigma:.1e}{', warned' if run.warned else ''}"
        print(f"{case}: {found}, {run.seconds:.1f} s", flush=True)
    return raised


def record(folder: Path, found: list[Summary], integrands: str) -> None:
    """Beside the table everything that it was made of."""
    table = json.loads((folder / "numbers.json").read_text())
    table["summaries"] = [asdict(row) for row in found]
    suffix = "" if integrands == "issue" else f"-{integrands}"
    target = Path(__file__).parent / "results" / f"{NAME}{suffix}.json"
    target.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n")
    print(f"numbers: {target}")


def main() -> None:
    arguments = options(__doc__ or "", **OPTIONS)
    folder = output_folder(NAME, arguments.fast)
    path = folder / "runs.jsonl"
    if arguments.fast:
        vars(arguments).update(FAST)
        path.unlink(missing_ok=True)
    raised = measure(path, arguments)
    integrands = chosen(arguments)
    names = {integrand.name for integrand in integrands}
    found = summaries(run for run in read(path, arguments.stale) if run.integrand in names)
    print_tables(found, integrands)
    save_figure(figure(found, integrands), folder / f"errors-{arguments.integrands}.png")
    versions = [f"{method} {version(method)}" for method in sorted({row.method for row in found})]
    versions.append(f"load average {os.getloadavg()[0]:.1f}")
    lines = [*numbers(found, integrands), Number("versions, and the load at the end", ", ".join(versions))]
    lines.append(Number("runs that raised", str(len(raised)), "0", "", not raised))
    title = f"Integrators, integrands: {arguments.integrands}" + (
        " (fast: proves nothing)" if arguments.fast else ""
    )
    report_numbers(title, lines, folder, argparse.Namespace(**vars(arguments) | {"record": False}))
    if arguments.record and not arguments.fast:
        record(folder, found, arguments.integrands)


if __name__ == "__main__":
    main()
