"""gg → 4 g at √s = 1 TeV: the cross-section and the unweighting efficiency of sbiflow, vegas and madnis.

The leading-colour antenna (analyses/four_gluons.py) over four-body massless phase space, with every jet at p_T > 60 GeV,
|η| < 2.5 and ΔR > 0.4 from the others; partonic, α_s = 0.118. The methods get the same budget of calls, in two coordinate
systems: RAMBO on diet, where phase space is flat, and the jets' own p_T, η, φ, where the cuts on two jets are sides of
the cube and the softest jets come first. The reference has 2·10^8 calls of quasi-Monte Carlo.

Unweighting efficiency: the share of events that acceptance and rejection keeps, those outside the cuts counted, with
w_max such that heavier events carry 0.1 % (1 %) of the cross-section, or the largest weight, for the same number of events.
CPU seconds on one thread: the clock says as much of what else the machine does. Methods that are not installed are left
out; `--methods sbiflow-channels --coordinates RAMBO` adds two multi-peripheral channels to ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from common import Number, options, output_folder, report_numbers, save_figure

from analyses.four_gluons import CROSS_SECTION, CROSS_SECTION_ERROR, SQRT_S, GluonScattering
from analyses.jets import JetCoordinates, separations, transverse_momenta
from analyses.phase_space import Chain
from analyses.phase_space_methods import Run, methods, unweighting_efficiency
from sbiflow.integrate import IntegratorConfig
from sbiflow.integrate.notation import with_error

NAME = "31_phase_space"
COORDINATES = {"RAMBO": Chain(SQRT_S), "jets": JetCoordinates(SQRT_S)}
METHODS = ("sbiflow", "vegas", "madnis")
BUDGET, EVENTS, REFERENCE_EVENTS = 1_000_000, 500_000, 4_000_000
SHARES = (("0.1 % overweight", 1e-3), ("1 % overweight", 1e-2), ("largest weight", 0.0))
FAST = IntegratorConfig(rows=20_000)
PULL = 4.0  # two-sided false alarm 6e-5


def hardest(momenta: Tensor) -> Tensor:
    """p_T of the hardest jet [GeV]."""
    return transverse_momenta(momenta).amax(-1)


def closest(momenta: Tensor) -> Tensor:
    """The least ΔR of two jets."""
    return separations(momenta).amin(-1)


SPECTRA: tuple[tuple[str, str, Callable[[Tensor], Tensor], np.ndarray], ...] = (
    ("$p_T$ of the hardest jet [GeV]", "GeV", hardest, np.linspace(60, 480, 29)),
    (r"smallest $\Delta R$ of two jets", "1", closest, np.linspace(0.4, 2.4, 26)),
)


@dataclass(frozen=True)
class Spectrum:
    """An observable of the four jets, and the bins of its histogram."""

    label: str
    slope: str
    variable: Callable[[Tensor], Tensor]
    edges: np.ndarray

    def of(self, f: GluonScattering, u: Tensor, weights: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """dσ over d(variable), and its error, in every bin, from m weighted events."""
        inside, m = weights > 0, len(weights)
        values, w = self.variable(f.phase_space.forward(u[inside])[0]).numpy(), weights[inside].numpy()
        first, second = (np.histogram(values, self.edges, weights=w**k)[0] / m for k in (1, 2))
        width = np.diff(self.edges)
        return first / width, np.sqrt((second - first**2) / m) / width


SPECTRA = (
    Spectrum(
        "$p_T$ of the hardest jet [GeV]", r"$d\sigma/dp_T$ [pb / GeV]", hardest, np.linspace(60, 480, 22)
    ),
    Spectrum(
        r"smallest $\Delta R$ of two jets", r"$d\sigma/d\Delta R$ [pb]", closest, np.linspace(0.4, 2.4, 21)
    ),
)


def reference_events(n: int, seed: int) -> tuple[GluonScattering, Tensor, Tensor]:
    """Plain events in the jets' coordinates."""
    f = GluonScattering(COORDINATES["jets"])
    u = torch.rand(n, f.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return f, u, f(u)


def spectra_figure(
    f: GluonScattering, runs: list[Run], reference: tuple[GluonScattering, Tensor, Tensor]
) -> Figure:
    """Both spectra of all methods, over the ratio to the reference."""
    figure = Figure(figsize=(10.0, 5.6), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", height_ratios=(2, 1))
    for (upper, lower), shown in zip(axes.T, SPECTRA, strict=True):
        truth, error = shown.of(*reference)
        upper.stairs(truth, shown.edges, color="black", linewidth=0.8, label="reference")
        lower.stairs(1 + error / truth, shown.edges, baseline=1 - error / truth, fill=True, color="0.85")
        centre, width = (shown.edges[1:] + shown.edges[:-1]) / 2, shown.edges[1] - shown.edges[0]
        for i, run in enumerate(runs):
            place = centre + (i - (len(runs) - 1) / 2) * width / 5
            value, error = shown.of(f, run.u, run.weights)
            style = {"fmt": ".", "markersize": 3, "elinewidth": 0.8, "color": f"C{i}", "label": run.method}
            upper.errorbar(place, value, error, **style)
            lower.errorbar(place, value / truth, error / truth, **style)
        upper.set(ylabel=shown.slope, yscale="log")
        lower.set(xlabel=shown.label, ylabel="to reference", ylim=(0.8, 1.2))
    axes[0, 0].legend(frameon=False)
    return figure


def shown(run: Run) -> list[Number]:
    """A run's numbers."""
    ess = float(run.weights.sum() ** 2 / (run.weights**2).sum()) / len(run.weights)
    pull = run.pull(CROSS_SECTION, CROSS_SECTION_ERROR)
    return [
        Number("σ, pb", with_error(run.mean, run.sdev)),
        Number("pull", f"{pull:+.2f}", f"|pull| < {PULL:g}", "", abs(pull) < PULL),
        Number("relative error × √calls", f"{run.spread:.2f}"),
        *(
            Number(f"unweighting, {text}", f"{unweighting_efficiency(run.weights, share):.2%}")
            for text, share in SHARES
        ),
        Number("effective share of events", f"{ess:.1%}"),
        Number("calls", f"{run.calls:,}"),
        Number("training", f"{run.training:,}"),
        Number("CPU s", f"{run.seconds:.0f}"),
        Number("in f", f"{run.integrand:.1f}"),
    ]


def print_runs(name: str, runs: list[Run]) -> None:
    """One line a method."""
    rows = [shown(run) for run in runs]
    table = Table("method", *(number.what for number in rows[0]), "remark", title=f"{name} coordinates")
    for run, numbers in zip(runs, rows, strict=True):
        table.add_row(run.method, *(number.measured for number in numbers), run.remark)
    Console(width=190).print(table)


def numbers_of(name: str, runs: list[Run], fast: bool) -> list[Number]:
    """Every method's, and ours against the better of the peers."""
    numbers = []
    for run in runs:
        judged = run.method == "sbiflow" and not fast
        for number in shown(run):
            floor, met = (number.floor, number.met) if judged else ("", None)
            numbers.append(replace(number, what=f"{name}, {run.method}: {number.what}", floor=floor, met=met))
    ours = next((run for run in runs if run.method == "sbiflow"), None)
    peers = [run for run in runs if run is not ours] if ours else []
    return numbers + [number for peer in peers for number in against(name, ours, peer, fast)]


def against(name: str, ours: Run, peer: Run, fast: bool) -> list[Number]:
    """Ratios: vegas is the floor, the others are to be reached for."""
    spread = ours.spread / peer.spread
    efficiency = unweighting_efficiency(ours.weights) / unweighting_efficiency(peer.weights)
    floor = peer.method == "vegas"
    least, most = (("<= 1", ""), (">= 1", "")) if floor else (("", "<= 1"), ("", ">= 1"))
    judged = floor and not fast
    what = f"{name}, sbiflow over {peer.method}: "
    return [
        Number(what + "relative error × √calls", f"{spread:.2f}", *least, spread <= 1 if judged else None),
        Number(
            what + "unweighting, 0.1 % overweight",
            f"{efficiency:.2f}",
            *most,
            efficiency >= 1 if judged else None,
        ),
    ]


def named(text: str, known: Iterable[str], usual: Sequence[str]) -> list[str]:
    """The names of an option, separated by commas, or the usual ones that are known."""
    names = text.split(",") if text else [name for name in usual if name in known]
    if not set(names) <= set(known):
        raise SystemExit(f"expected some of {', '.join(known)}, got {text}")
    return names


def main() -> None:
    arguments = options(__doc__ or "", budget=BUDGET, events=EVENTS, methods="", coordinates="")
    fast = arguments.fast
    budget, events = (20_000, 20_000) if fast else (arguments.budget, arguments.events)
    folder = output_folder(NAME, fast)
    known = methods(FAST if fast else None)
    chosen = named(arguments.methods, known, METHODS)
    reference = reference_events(100_000 if fast else REFERENCE_EVENTS, arguments.seed)
    numbers = [Number("reference σ, pb", with_error(CROSS_SECTION, CROSS_SECTION_ERROR))]
    for name in named(arguments.coordinates, COORDINATES, tuple(COORDINATES)):
        f = GluonScattering(COORDINATES[name])
        runs = [known[method](f, budget, events, arguments.seed) for method in chosen]
        print_runs(name, runs)
        numbers += numbers_of(name, runs, fast)
        save_figure(spectra_figure(f, runs, reference), folder / f"spectra-{name}.png")
    numbers.append(Number("events for each efficiency", f"{events:,}"))
    title = f"gg -> 4 g antenna at 1 TeV, budget {budget:,} calls" + (
        " (--fast: proves nothing)" if fast else ""
    )
    report_numbers(title, numbers, folder, arguments)


if __name__ == "__main__":
    main()
