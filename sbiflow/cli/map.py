"""The command that maps a field of view."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sbiflow.cli import lookup
from sbiflow.cli.pipeline import DeviceOption, ModelArgument, SeedOption, SimulatorOption
from sbiflow.contracts import AnySimulator
from sbiflow.ensemble import Ensemble, load_posterior
from sbiflow.maps import MapConfig, MapResult
from sbiflow.posterior import Posterior

Option, Argument = typer.Option, typer.Argument
_FIGURES = ("medians", "widths", "checks")


def map_command(
    model: ModelArgument,
    cube: Annotated[
        Path, Argument(help="FITS, HDF5 or npy file, one observation per pixel.", show_default=False)
    ],
    out: Annotated[Path, Option(help="HDF5 file; continued if it exists.", show_default=False)],
    n: Annotated[int, Option("--n", help="Draws per pixel.")] = 50,
    chi2: Annotated[int, Option(min=0, help="Draws per pixel, each a simulation, to test the fit at.")] = 0,
    axes: Annotated[
        str, Option(help="Pixel axes first (ny, nx, ...) or last (..., ny, nx), as in FITS.")
    ] = "first",
    dataset: Annotated[
        str | None, Option(help="Dataset (HDF5) or extension (FITS) of the observations.")
    ] = None,
    fits: Annotated[Path | None, Option(help="FITS file for all images.")] = None,
    figures: Annotated[Path | None, Option(help="Folder for medians.png, widths.png and checks.png.")] = None,
    threads: Annotated[int, Option(min=1, help="Cores to work on.")] = 1,
    seed: SeedOption = 0,
    simulator: SimulatorOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Posteriors of a field of view: median, 16 and 84 %, and which pixels to distrust. Ctrl-C loses nothing."""
    lookup.check_target(out)
    lookup.check_target(fits)
    posterior = load_posterior(model, lookup.pick_device(device))
    chosen = _simulator(model, posterior, simulator) if chi2 else None
    config = MapConfig(axes=axes, dataset=dataset, predictive=chi2 or 1, threads=threads)
    found = posterior.map(cube, n, out, simulator=chosen, seed=seed, config=config)
    typer.echo(str(found))
    if fits is not None:
        typer.echo(f"FITS: {found.to_fits(fits)}")
    if figures is not None:
        _save_figures(found, figures)


def _simulator(model: Path, posterior: Posterior | Ensemble, given: str | None) -> AnySimulator:
    info = posterior.info
    chosen = lookup.recorded_simulator(given, info.simulator, model)
    if different := lookup.differences(chosen, info.simulator, info.simulator_version):
        typer.echo(f"warning: {model} was made with another simulator; {'; '.join(different)}", err=True)
    return chosen


def _save_figures(found: MapResult, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in zip(_FIGURES, found.figures(), strict=True):
        figure.savefig(folder / f"{name}.png", dpi=130, bbox_inches="tight")
    typer.echo(f"figures: {folder}")
