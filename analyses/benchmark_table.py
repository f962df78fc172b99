"""The table of the benchmark: C2ST next to the published figures, and what the weights said."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, Number, report_numbers, save_figure
from matplotlib.figure import Figure

# task: mean C2ST of NPE as published (arXiv 2101.04653) at 1e3, 1e4, 1e5; floors and reaches of ours at 1e4, 1e5
PUBLISHED = {
    "gaussian_linear": ((0.694, 0.552, 0.506), (0.55, 0.51), (0.51, 0.50)),
    "gaussian_linear_uniform": ((0.696, 0.553, 0.509), (0.55, 0.51), (0.52, 0.50)),
    "gaussian_mixture": ((0.716, 0.615, 0.548), (0.60, 0.54), (0.52, 0.51)),
    "two_moons": ((0.725, 0.606, 0.542), (0.58, 0.53), (0.52, 0.51)),
    "slcp": ((0.975, 0.901, 0.831), (0.85, 0.75), (0.65, 0.55)),
    "slcp_distractors": ((0.982, 0.970, 0.863), (0.95, 0.85), (0.80, 0.70)),
    "bernoulli_glm": ((0.863, 0.678, 0.559), (0.65, 0.55), (0.56, 0.52)),
    "bernoulli_glm_raw": ((0.900, 0.765, 0.607), (0.75, 0.60), (0.65, 0.55)),
    "sir": ((0.815, 0.680, 0.585), (0.65, 0.56), (0.56, 0.54)),
    "lotka_volterra": ((0.999, 0.997, 0.981), (0.95, 0.88), (0.74, 0.70)),
}
BUDGETS = (1000, 10_000, 100_000)


def targets(name: str, budget: int) -> tuple[float, float, float | None]:
    """Published figure, floor and reach; at the smallest budget the floor is the published figure."""
    published, floors, reaches = PUBLISHED[name]
    if budget not in BUDGETS:
        return float("nan"), float("nan"), None
    i = BUDGETS.index(budget)
    return published[i], floors[i - 1] if i else published[0], reaches[i - 1] if i else None


def scores(cell: dict[str, Any], which: str) -> np.ndarray:
    """C2ST of the observations for which it was computed."""
    values = np.array([getattr(answer, which) for answer in cell["answers"]])
    return values[np.isfinite(values)]


def line(name: str, budget: int, cells: list[dict[str, Any]]) -> Number:
    """One task at one budget, over its seeds: mean and spread (sd over seeds, or over observations of one seed)."""
    per_seed = [scores(cell, "c2st") for cell in cells]
    means = np.array([values.mean() for values in per_seed if len(values)])
    fast = np.mean([scores(cell, "c2st_fast").mean() for cell in cells])
    published, floor, reach = targets(name, budget)
    answers = [answer for cell in cells for answer in cell["answers"]]
    n_observations = min(len(values) for values in per_seed)
    if n_observations:
        of = f"{n_observations} of {len(cells[0]['answers'])} observations"
        spread = f" ± {per_seed[0].std(ddof=1):.3f} sd of {of}" if n_observations > 1 else f" ({of})"
        if len(means) > 1:
            spread = f" ± {means.std(ddof=1):.3f} sd of {len(means)} seeds, {of}"
        shown = f"{means.mean():.3f}{spread}"
    else:
        shown = "not computed"
    reliable = sum(answer.reliable for answer in answers)
    false = sum(answer.reliable and abs(answer.pull) > 4 for answer in answers)
    efficiency = np.median([answer.efficiency for answer in answers])
    seconds = np.mean([cell["seconds"] for cell in cells])
    what = (
        f"{name}, {budget:,} simulations (published NPE {published:.3f}; fast C2ST {fast:.3f}, "
        f"{seconds:.0f} s training, efficiency {efficiency:.1%}, reliable {reliable}/{len(answers)}, falsely {false})"
    )
    complete = n_observations == len(cells[0]["answers"]) and np.isfinite(floor)
    met = bool(means.mean() <= floor) if complete else None  # fewer observations decide nothing
    return Number(what, shown, f"{floor:.3f}", "" if reach is None else f"{reach:.2f}", met)


def markdown(cells: list[dict[str, Any]]) -> str:
    """The README's table: C2ST by the published protocol, its observations in brackets, next to NPE as published."""
    lines = [
        "| task | NPE, published: 1e3 / 1e4 / 1e5 | sbiflow, 1e3 | 1e4 | 1e5 |",
        "|---|---|---|---|---|",
    ]
    for name, (published, _, _) in PUBLISHED.items():
        shown = []
        for budget in BUDGETS:
            own = [cell for cell in cells if (cell["task"], cell["budget"]) == (name, budget)]
            values = np.concatenate([scores(cell, "c2st") for cell in own]) if own else np.array([])
            shown.append(f"{values.mean():.3f} ({len(values)})" if len(values) else "-")
        lines.append(f"| {name} | {' / '.join(f'{p:.3f}' for p in published)} | {' | '.join(shown)} |")
    return "\n".join(lines)


def report(cells: list[dict[str, Any]], folder: Path, arguments: argparse.Namespace, published: bool) -> None:
    """Print and write the table and a figure of all finished cells."""
    numbers = []
    for budget in sorted({cell["budget"] for cell in cells}):
        for name in PUBLISHED:
            own = [cell for cell in cells if (cell["task"], cell["budget"]) == (name, budget)]
            numbers += [line(name, budget, own)] if own else []
    floors = [json.loads(path.read_text()) for path in sorted(folder.glob("floor-*.json"))]
    if floors:
        worst = max(floors, key=lambda found: found["c2st"])
        text = f"{np.mean([f['c2st'] for f in floors]):.3f}, worst {worst['c2st']:.3f} ({worst['task']})"
        numbers.append(
            Number(f"our reference against the published one, first observation of {len(floors)} tasks", text)
        )
    answers = [answer for cell in cells for answer in cell["answers"]]
    false = sum(answer.reliable and abs(answer.pull) > 4 for answer in answers)
    reliable = sum(answer.reliable for answer in answers)
    worst_pull = max((abs(a.pull) for a in answers if a.reliable), default=0.0)
    calls = sum(answer.likelihood_calls for answer in answers)
    numbers += [
        Number(
            "simulations of all cells, likelihood calls of all weights",
            f"{sum(c['budget'] for c in cells):,}, {calls:,}",
        ),
        Number(f"answers called reliable, of {len(answers)}", str(reliable)),
        Number("of these |Δ ln Z| > 4 σ: false 'reliable'", str(false), "0", "", false == 0),
        Number("largest |Δ ln Z| / σ of a reliable answer", f"{worst_pull:.2f}", "4", "", worst_pull <= 4),
    ]
    title = (
        "SBI benchmark, C2ST by the published protocol, "
        + ("published" if published else "own")
        + " observations"
    )
    report_numbers(
        title + (" (--fast: proves nothing)" if arguments.fast else ""), numbers, folder, arguments
    )
    drawn = figure(cells)
    save_figure(drawn, folder / "c2st.png")
    if arguments.record and not arguments.fast:
        drawn.savefig(HERE / "results" / "10_benchmark_tasks.png", dpi=70)  # the README shows it
    (folder / "table.md").write_text(markdown(cells) + "\n")


def figure(cells: list[dict[str, Any]]) -> Figure:
    """C2ST against the number of simulations, a panel per task, the published figures beside it."""
    drawn = Figure(figsize=(13, 5.5), layout="constrained")
    axes = drawn.subplots(2, 5, sharex=True, sharey=True)
    for name, axis in zip(PUBLISHED, axes.flat, strict=True):
        axis.plot(BUDGETS, PUBLISHED[name][0], "o--", color="0.5", label="NPE, published")
        own = sorted({cell["budget"] for cell in cells if cell["task"] == name})
        for which, style, label in (("c2st", "s-", "sbiflow"), ("c2st_fast", ":", "sbiflow, fast C2ST")):
            grouped = [
                np.concatenate([scores(c, which) for c in cells if (c["task"], c["budget"]) == (name, b)])
                for b in own
            ]
            points = [(b, values.mean()) for b, values in zip(own, grouped, strict=True) if len(values)]
            if points:
                axis.plot(*zip(*points, strict=True), style, color="C0", label=label)
        axis.set(xscale="log", ylim=(0.48, 1.02), title=name.replace("_", " "))
        axis.axhline(0.5, color="0.8", lw=0.8)
    for axis in axes[-1]:
        axis.set_xlabel("simulations")
    for axis in axes[:, 0]:
        axis.set_ylabel("C2ST")
    handles = {h.get_label(): h for axis in axes.flat for h in axis.get_legend_handles_labels()[0]}
    axes[0, 0].legend(handles=handles.values(), frameon=False, fontsize=8)
    return drawn
