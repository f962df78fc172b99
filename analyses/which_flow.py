"""What `43_which_flow.py` compares, and how it shows it."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import sbiflow as sf
from sbiflow.families import Family

START, END = "<!-- which flow -->", "<!-- end of which flow -->"


@dataclass(frozen=True)
class Flow:
    """A configuration and the learning rate that suits it."""

    config: sf.FlowConfig
    rate: float = 4e-3


def _flow(family: str, layers: int = 6, rate: float = 4e-3, **further: Any) -> Flow:
    return Flow(sf.FlowConfig(family, layers=layers, hidden=64, start="prior", **further), rate)


FLOWS: dict[str, Flow] = {
    "linear": _flow("linear", 1),
    "planar": _flow("planar", 16),
    "radial": _flow("radial", 16),
    "sylvester": _flow("sylvester", 8),
    "nice": _flow("nice", 8),
    "realnvp": _flow("realnvp", 8),
    "realnvp + batchnorm": _flow("realnvp", 8, normalisation="batchnorm"),
    "realnvp + actnorm": _flow("realnvp", 8, normalisation="actnorm"),
    "glow": _flow("glow", 6),
    "maf": _flow("maf"),
    "iaf": _flow("iaf"),
    "flow++": _flow("flowpp"),
    "linear spline": _flow("spline_coupling", spline="linear"),
    "quadratic spline": _flow("spline_coupling", spline="quadratic"),
    "cubic spline": _flow("spline_coupling", spline="cubic"),
    "spline_coupling": _flow("spline_coupling"),
    "bounded spline": _flow("spline_coupling", spline="bounded_rational_quadratic"),
    "spline_autoregressive": _flow("spline_autoregressive", 4),
    "residual": _flow("residual", 8),
    "flow_matching": _flow("flow_matching", 4),
    "naf": _flow("naf", 3),
    "unaf": _flow("unaf", 3),
    "sospf": _flow("sospf", 3),
    "bpf": _flow("bpf", 3),
    "gf": _flow("gf", 6),
    "ffjord": _flow("ffjord", 1),
}


def is_installed(family: Family) -> bool:
    """Whether the optional library of a family is there."""
    return not family.needs or importlib.util.find_spec(family.needs) is not None


def _ordered(runs: list[dict[str, Any]], targets: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Flow -> target -> run, flows in the order of FLOWS."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for label in FLOWS:
        own = {run["target"]: run for run in runs if run["flow"] == label}
        if own:
            found[label] = {name: own[name] for name in targets if name in own}
    return found


def table_of(runs: list[dict[str, Any]], targets: list[str]) -> str:
    """Markdown: a row per flow; gaps per target, then the costs on the last target that has been run, named if smaller."""
    head = [
        "flow",
        *(f"{name}: gap" for name in targets),
        "parameters",
        "training",
        "10,000 draws",
        "10,000 densities",
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for label, own in _ordered(runs, targets).items():
        gaps = [_gap(own.get(name)) for name in targets]
        costs = ["", "", "", ""]
        if whole := [name for name in targets if "gap" in own.get(name, {})]:
            run, other = own[whole[-1]], "" if whole[-1] == targets[-1] else f" ({whole[-1]})"
            costs = [f"{run['parameters']:,}{other}", f"{run['training']:.0f} s"]
            costs += [f"{run[key]:.3g} s" for key in ("draws_10000", "density_10000")]
        lines.append(f"| {' | '.join([label, *gaps, *costs])} |")
    return "\n".join(lines)


def _gap(run: dict[str, Any] | None) -> str:
    if run is None:
        return ""
    if "failed" in run:
        return "diverged"
    classifier = f"; C2ST {run['c2st']:.3f}" if run["c2st"] is not None else ""
    return f"{run['gap']:.3f} ± {run['error']:.3f}{classifier}"


def page_with(page: str, table: str) -> str:
    """The page with its table replaced.

    Raises:
        ValueError: the page has lost the marks around its table.
    """
    if page.count(START) != 1 or page.count(END) != 1:
        raise ValueError(
            f"page: expected one {START} and one {END}, got {page.count(START)} and {page.count(END)}"
        )
    before, after = page.split(START)[0], page.split(END)[1]
    return f"{before}{START}\n{table}\n{END}{after}"


def figure_of(runs: list[dict[str, Any]], targets: list[str]) -> Figure:
    """A panel per target, gap against training time, flows by number; the last panel says which is which."""
    figure = Figure(figsize=(16, 9), layout="constrained")
    *panels, key = figure.subplots(2, math.ceil((len(targets) + 1) / 2)).flat
    for axes, name in zip(panels, targets, strict=False):
        found = [run for run in runs if run["target"] == name and "gap" in run]
        times = np.array([run["training"] for run in found])
        gaps = np.maximum([run["gap"] for run in found], 1e-3)
        axes.errorbar(times, gaps, [run["error"] for run in found], fmt="none", ecolor="#9ab8d8")
        for run, x, y in zip(found, times, gaps, strict=True):
            number = list(FLOWS).index(run["flow"]) + 1
            axes.text(x, y, str(number), ha="center", va="center", fontsize=9, color="#0b3d6e")
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="training [CPU s]",
            ylabel="gap to the truth [nats]",
            title=name,
        )
        axes.grid(alpha=0.3, which="both")
    for axes in panels[len(targets) :]:
        axes.set_axis_off()
    key.set_axis_off()
    half = math.ceil(len(FLOWS) / 2)
    for i, label in enumerate(FLOWS):
        key.text(
            0.02 + 0.5 * (i // half), 0.98 - (i % half) / half, f"{i + 1:>2}  {label}", va="top", fontsize=10
        )
    return figure
