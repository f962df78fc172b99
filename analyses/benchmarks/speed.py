"""Training steps, densities and draws against nflows, zuko and BayesFlow, equal architectures, alternating in one run.

`--fast`; `--only "train maf,draw"`: rows whose label has all words of one of the parts ("named": those of the issue,
"import", "memory"); `--compile 1`: the named training steps through torch.compile as well, which takes minutes;
`--threads 1`; `--repeats 5`; `--record`: also benchmarks/results/speed.json, from which table.py writes the README's
table. What is equal: peers.py; the limit: roofline.py; turns and ratios: alternate.py; processes: footprint.py.
Needs `pip install "sbiflow[bench]"`; a peer that is not installed is left out, and said so.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.progress import track

sys.path[:0] = [str(Path(__file__).parents[2])]

from analyses.benchmarks import footprint
from analyses.benchmarks.alternate import alternate
from analyses.benchmarks.architecture import OURS, Case, Model
from analyses.benchmarks.comparisons import (
    COMPILED,
    PASS,
    RELU,
    THREE,
    Job,
    Row,
    chosen,
    installed,
    jobs,
    numbers,
)
from analyses.benchmarks.compiled import Compiled, compiled_trainer
from analyses.benchmarks.peers import CHUNK, build
from analyses.benchmarks.roofline import Machine, executed, needed
from analyses.common import options, output_folder, report_numbers
from sbiflow.flows import ConditionalFlow
from sbiflow.provenance import git_revision

NAME = "speed"
SECONDS = 0.2  # of every repeat, at least
PACKAGES = ("torch", "nflows", "zuko", "sbi", "bayesflow", "keras", "numpy")
WORKS = {"train": "train", "density": "density", "draw": "draw", "many": "draw"}


def model_of(name: str, case: Case) -> Model:
    """A contestant, with its own activation if it is to have that."""
    plain = name.removesuffix(RELU)
    return replace(build(plain, replace(case, activation="relu") if plain != name else case), name=name)


def density_of_draws(model: Model, z: torch.Tensor, x: torch.Tensor) -> None:
    """The density of draws for one observation, in the same chunks as drawing."""
    flow = cast(ConditionalFlow, model.module)
    context = flow.embedding(x)
    for part in z.split(CHUNK):
        flow.log_prob_given(part, context)


def call_of(job: Job, model: Model, z: torch.Tensor, x: torch.Tensor) -> Callable[[], object]:
    """What is timed."""
    if job.kind == "train":
        return model.trainer(z, x)
    if job.kind == "density":
        return lambda: model.log_prob(z, x)
    return lambda: model.draw(x, job.rows // job.contexts)


@functools.cache
def soundness(name: str, case: Case) -> float:
    """`deviation` of a contestant, once in a run."""
    return deviation(model_of(name, case), case)


@torch.no_grad()
def deviation(model: Model, case: Case, n: int = 1200) -> float:
    """Whether draws and density belong together: E_q[g(z) / q(z | x)] = 1 for every normalised density g.

    g is a normal of the covariance of half of the draws, times 0.8; the mean is over the other half. In standard
    errors: a right density passes 5 once in 1.7 million times, were the mean exactly normal.
    """
    torch.manual_seed(3)
    x = torch.randn(1, case.context)
    z = model.draw(x, n)[:, 0]
    first, second = z.double().split(n // 2)
    g = torch.distributions.MultivariateNormal(first.mean(0), 0.8 * torch.cov(first.T))
    log_q = model.log_prob(z[n // 2 :], x.expand(n // 2, -1)).double()
    weight = torch.exp(g.log_prob(second) - log_q)
    return float((weight.mean() - 1).abs() / (weight.std() / len(weight) ** 0.5))


def compiled_calls(
    job: Job, z: torch.Tensor, x: torch.Tensor
) -> tuple[dict[str, Callable[[], object]], dict[str, Compiled]]:
    """Contestants whose loss is compiled, and what that took."""
    torch._dynamo.reset()
    made = {name: compiled_trainer(model_of(name, job.case), z, x) for name in job.names}
    calls: dict[str, Callable[[], object]] = {name + COMPILED: call for name, (call, _) in made.items()}
    return calls, {name: found for name, (_, found) in made.items()}


def measure(job: Job, machine: Machine, arguments: argparse.Namespace) -> Row:
    """All contestants of a job by turns."""
    torch.manual_seed(arguments.seed)
    models = {name: model_of(name, job.case) for name in job.names if name != PASS}
    z, x = torch.randn(job.rows, job.case.dim), torch.randn(job.contexts, job.case.context)
    compiled: dict[str, Compiled] = {}
    with torch.set_grad_enabled(job.kind == "train"):
        off = {name: soundness(name, job.case) for name in models}
        calls = {name: call_of(job, model, z, x) for name, model in models.items()}
        if PASS in job.names:
            drawn = models[OURS].draw(x, job.rows)[:, 0]
            calls[PASS] = lambda: density_of_draws(models[OURS], drawn, x)
        if arguments.compile and job.kind == "train" and "named" in job.label:
            more, compiled = compiled_calls(job, z, x)
            calls |= more
        series = alternate(calls, arguments.repeats, 0.02 if arguments.fast else SECONDS)
        did = executed(calls[OURS])
    work = needed(WORKS[job.kind], job.case, job.rows, job.contexts)
    sizes = {name: model.size for name, model in models.items()}
    return Row(job, sizes, series, off, work, work.limit(machine), did, compiled)


def footprints(fast: bool, only: str, repeats: int) -> dict[str, Any]:
    """Imports and memory: {"import": {module: Series}, "memory": {"step sbiflow": {"before", "peak"}, ...}}."""
    found: dict[str, Any] = {"import": {}, "memory": {}}
    if chosen("import named", only):
        modules = ("torch", "sbiflow") if fast else footprint.IMPORTED
        found["import"] = footprint.import_seconds(modules, 1 if fast else repeats)
    if chosen("memory", only):
        sizes = {"step": 4096, "draw": 10_000 if fast else 1_000_000}
        pairs = [(kind, name) for kind in sizes for name in (THREE[:1] if fast else THREE) if installed(name)]
        found["memory"] = {
            f"{kind} {name}": footprint.memory(kind, name, sizes[kind]) for kind, name in pairs
        }
    return found


def caches() -> str:
    """Of the first core, as Linux names them."""
    found = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    read = [[(one / name).read_text().strip() for name in ("level", "type", "size")] for one in found]
    return ", ".join(f"L{level} {kind} {size}" for level, kind, size in read)


def versions() -> dict[str, str]:
    """Of the libraries that are there."""
    there = [name for name in PACKAGES if importlib.util.find_spec(name)]
    return {name: importlib.metadata.version(name) for name in there}


def as_json(row: Row) -> dict[str, Any]:
    """A row with its ratios, so that the file can be read without this script."""
    peers = [name for name in row.series if name != OURS]
    ratios = {
        name: {"clock": asdict(row.against(name)), "cpu": asdict(row.against(name, cpu=True))}
        for name in peers
    }
    return asdict(row) | {"label": row.job.label, "ratios": ratios}


def main() -> None:
    arguments = options(__doc__ or "", only="", compile=0, threads=1, repeats=5)
    if arguments.record and (arguments.only or arguments.fast):
        raise SystemExit("--record: a record is of one whole run, without --only and --fast")
    torch.set_num_threads(arguments.threads)
    load, machine = [os.getloadavg()], Machine.measure(*(((256,), 4) if arguments.fast else ()))
    asked = [job for job in jobs(arguments.fast) if chosen(job.label, arguments.only)]
    rows = []
    for job in track(asked, "comparisons"):
        rows.append(measure(job, machine, arguments))
        print(rows[-1].brief(), flush=True)
    processes = footprints(arguments.fast, arguments.only, arguments.repeats)
    load.append(os.getloadavg())
    title = "Speed against peers" + (" (fast: proves nothing)" if arguments.fast else "")
    folder = output_folder(NAME, arguments.fast)
    quiet = argparse.Namespace(**vars(arguments) | {"record": False})
    report_numbers(title, numbers(rows, processes), folder, quiet)
    document = json.loads((folder / "numbers.json").read_text()) | {
        "arguments": vars(arguments),
        "load": load, "cores": os.cpu_count(), "caches": caches(), "versions": versions(),
        "revision": git_revision(main), "rates": asdict(machine), "rows": [as_json(row) for row in rows],
        "import": {name: asdict(own) for name, own in processes["import"].items()},
        "memory": processes["memory"],
    }  # fmt: skip
    targets = [folder / "speed.json"] + [Path(__file__).parent / "results" / "speed.json"] * arguments.record
    for target in targets:
        target.write_text(json.dumps(document, indent=1) + "\n")
        print(f"rows: {target}")


if __name__ == "__main__":
    main()
