"""The command line, `sbiflow`: argument glue only. Errors are in errors.py, names in lookup.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from sbiflow import provenance
from sbiflow.cli.errors import UserErrors
from sbiflow.cli.integrate import integrate_command
from sbiflow.cli.map import map_command
from sbiflow.cli.pipeline import check_command, sample_command, simulate_command, train_command
from sbiflow.cli.show import fetch_command, info_command, list_command

__all__ = ["app"]

app = typer.Typer(cls=UserErrors, no_args_is_help=True, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(provenance.package_version())
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Simulation-based Bayesian inference with normalizing flows."""


_EXAMPLES: dict[Callable[..., None], str] = {
    simulate_command: "sbiflow simulate stokes --n 200000 --out sims.h5",
    train_command: "sbiflow train sims.h5 --out model",
    sample_command: "sbiflow sample model observation.fits --out draws.h5 --reweight --corner corner.png",
    map_command: "sbiflow map model cube.fits --n 50 --out map.h5 --chi2 1 --fits map.fits --figures maps",
    check_command: "sbiflow check model --report report.html",
    integrate_command: "sbiflow integrate analyses.integrands:camel8 --budget 1e6",
    info_command: "sbiflow info sims.h5",
    list_command: "sbiflow list",
    fetch_command: "sbiflow fetch crisp/feobs.fits",
}
for _command, _example in _EXAMPLES.items():
    app.command(_command.__name__.removesuffix("_command"), epilog=f"Example: {_example}")(_command)
