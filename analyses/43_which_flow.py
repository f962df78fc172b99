"""Which flow? Every family on targets of exact density: how far it stays from the truth, and what it costs.

    python analyses/43_which_flow.py --record      # all families; resumes where it was stopped; an hour or two
    python analyses/43_which_flow.py --only maf,naf --targets "checkerboard;bent posterior, 5-D"

The gap is E[log p - log q] over fresh rows of the target [nats], an estimate of KL(p || q). All families train for
the same number of steps on the same rows; times are CPU seconds of one thread. A run is kept in
analyses/output/43_which_flow/runs.jsonl and not repeated; --record writes the table into analyses/which_flow.md.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.progress import track

import sbiflow as sf
from analyses.common import HERE, Number, options, output_folder, report_numbers, save_figure
from analyses.targets import LINEAR, POSTERIORS, Target, checkerboard, ring
from analyses.which_flow import FLOWS, figure_of, is_installed, page_with, table_of
from sbiflow.families import FAMILIES

NAME = "43_which_flow"
TARGETS = (checkerboard(), ring(), LINEAR, *POSTERIORS)


@dataclass(frozen=True)
class Size:
    """Of the training: rows, and steps of `batch` rows; of the test; and of what is timed."""

    rows: int = 100_000
    steps: int = 1_200
    batch: int = 512
    test: int = 4_000
    draws: int = 10_000
    compared: int = 2_000  # draws of each side of a C2ST
    conditions: int = 3  # at which there is one


FAST = Size(2_000, 20, 128, 200, 200, 200, 1)


def seconds(function: object, *arguments: object, **named: object) -> tuple[float, object]:
    """CPU time of a call, and what it returned."""
    start = time.process_time()
    value = function(*arguments, **named)  # type: ignore[operator]
    return time.process_time() - start, value


def measure(target: Target, label: str, size: Size, seed: int) -> dict[str, object]:
    """One family on one target."""
    generator = torch.Generator().manual_seed(seed)
    rows, test = target.sample(size.rows, generator), target.sample(size.test, generator)
    given = [f"x{i + 1}" for i in range(target.given)]
    names = [f"theta{i + 1}" for i in range(target.dim)] + given
    config = sf.TrainConfig(
        batch=size.batch, steps=size.steps, patience=None, learning_rate=FLOWS[label].rate
    )
    trained, density = seconds(
        sf.fit_density, rows, names, given=given, flow=FLOWS[label].config, config=config, seed=seed, progress=False
    )  # fmt: skip
    data, conditions = test.split([target.dim, target.given], -1)
    took, log_q = seconds(density.log_prob, data, conditions if given else None)
    gap = target.log_prob(test) - log_q
    drawn, _ = seconds(density.sample, size.draws, conditions[0] if given else None, seed=seed)
    return {
        "target": target.name, "flow": label, "seed": seed, "size": asdict(size),
        "gap": float(gap.mean()), "error": float(gap.std()) / math.sqrt(len(gap)),
        "parameters": sum(p.numel() for p in density.posterior.flow.parameters()),
        "c2st": classified(target, density, conditions[: size.conditions], size.compared, seed) if target is LINEAR else None,
        "training": trained, "density_10000": took * 10_000 / size.test, "draws_10000": drawn * 10_000 / size.draws,
    }  # fmt: skip


def classified(target: Target, density: sf.Density, conditions: torch.Tensor, n: int, seed: int) -> float:
    """C2ST of draws against exact ones, the mean over conditions; 0.5 is a perfect posterior."""
    generator, found = torch.Generator().manual_seed(seed), []
    for x in conditions:
        found.append(
            sf.c2st(
                density.sample(n, x, seed=seed).theta, target.posterior(x, n, generator), seed=seed
            ).accuracy
        )
    return sum(found) / len(found)


def all_runs(
    folder: Path, labels: list[str], targets: list[Target], size: Size, seed: int
) -> list[dict[str, object]]:
    """Measure what is not there yet."""
    file = folder / "runs.jsonl"
    runs = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {
        (run["target"], run["flow"]) for run in runs if run["seed"] == seed and run["size"] == asdict(size)
    }
    wanted = [(t, label) for label in labels for t in targets if (t.name, label) not in done]
    for target, label in track(wanted, "training", disable=not sys.stderr.isatty()):
        try:
            run = measure(target, label, size, seed)
        except FloatingPointError as error:  # a family that diverges has that as its result
            run = {
                "target": target.name,
                "flow": label,
                "seed": seed,
                "size": asdict(size),
                "failed": str(error),
            }
        runs.append(run)
        print(
            f"{target.name}, {label}: {run.get('gap', math.nan):.4f} nats, {run.get('training', math.nan):.0f} s"
        )
        with file.open("a") as out:
            out.write(json.dumps(run) + "\n")
    return [run for run in runs if run["seed"] == seed and run["size"] == asdict(size)]


def main() -> None:
    arguments = options(__doc__ or "", only="", targets="")
    torch.set_num_threads(1)
    folder, size = output_folder(NAME, arguments.fast), FAST if arguments.fast else Size()
    labels = arguments.only.split(",") if arguments.only else list(FLOWS)
    if unknown := [label for label in labels if label not in FLOWS]:
        raise SystemExit(f"--only: expected some of {', '.join(FLOWS)}, got {', '.join(unknown)}")
    labels = [label for label in labels if is_installed(FAMILIES[FLOWS[label].config.family])]
    if arguments.fast and not arguments.only:
        labels = ["spline_coupling", "maf"]
    named = arguments.targets.split(";")
    targets = [target for target in TARGETS if any(target.name.startswith(name) for name in named)]
    runs = all_runs(folder, labels, targets, size, arguments.seed)
    save_figure(figure_of(runs, [target.name for target in TARGETS]), folder / "gaps.png")
    numbers = [
        Number(f"{run['flow']}, {run['target']}: gap [nats]; training, 10,000 draws, 10,000 densities [CPU s]",
               run.get("failed") or f"{run['gap']:.4f} ± {run['error']:.4f}; {run['training']:.0f}, "
               f"{run['draws_10000']:.3f}, {run['density_10000']:.3f}")
        for run in runs if arguments.record or run["flow"] in labels
    ]  # fmt: skip
    report_numbers(
        "Which flow?" + (" (fast: proves nothing)" if arguments.fast else ""), numbers, folder, arguments
    )
    if arguments.record and not arguments.fast:
        page = HERE / "which_flow.md"
        page.write_text(page_with(page.read_text(), table_of(runs, [target.name for target in TARGETS])))
        print(f"table: {page}")


if __name__ == "__main__":
    main()
