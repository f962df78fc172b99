"""The command that integrates: a function that the user names, over a box, with the verdict as exit status."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import typer

from sbiflow import provenance
from sbiflow.cli import lookup
from sbiflow.cli.pipeline import DeviceOption, SeedOption
from sbiflow.integrate import IntegralResult, Integrator

UNRELIABLE = 1  # as of `sbiflow check`

Option, Argument = typer.Option, typer.Argument
Bounds = Sequence[tuple[float, float]]


def integrate_command(
    integrand: Annotated[
        str,
        Argument(
            help="package.module:name or path/to/file.py:name: a function, or an object with f and bounds.",
            show_default=False,
        ),
    ],
    dim: Annotated[
        int | None, Option(min=1, help="Axes; without --bounds the unit cube of so many.", show_default=False)
    ] = None,
    bounds: Annotated[
        str | None,
        Option(help='Limits, "0,1;-1,1;0,inf"; one pair with --dim stands for all.', show_default=False),
    ] = None,
    budget: Annotated[str, Option(help="Evaluations at most, training included.")] = "1e6",
    rtol: Annotated[float, Option(min=0, help="Stop at this relative error; 0: spend the budget.")] = 0.0,
    atol: Annotated[float, Option(min=0, help="Stop at this absolute error.")] = 0.0,
    seed: SeedOption = 0,
    log: Annotated[
        bool, Option("--log", help="The function returns the logarithm of the integrand.")
    ] = False,
    calls: Annotated[str, Option(help="How it is called: auto, numpy, torch or scalar.")] = "auto",
    device: DeviceOption = "auto",
    out: Annotated[Path | None, Option(help="The result as JSON.", show_default=False)] = None,
    figure: Annotated[
        Path | None, Option(help="Convergence by iteration, png or pdf.", show_default=False)
    ] = None,
    save: Annotated[Path | None, Option(help="Folder for the trained proposal.", show_default=False)] = None,
    resume: Annotated[
        Path | None, Option(help="Folder of --save: go on from that proposal.", show_default=False)
    ] = None,
) -> None:
    """Integrate a function over a box; exit status 1 if the estimate is not reliable."""
    evaluations = _whole(budget)
    for path in (out, figure):
        lookup.check_target(path)
    _check_folder(save)
    target = _integrand_by_name(integrand)
    integrator = _integrator(target, dim, bounds, resume, lookup.pick_device(device))
    logs = log or target.log
    result = integrator(target.f, evaluations, rtol=rtol, atol=atol, seed=seed, log=logs, calls=calls)
    typer.echo(str(result))
    if target.truth is not None:
        typer.echo(_against(result, target.truth, logs))
    if save is not None:
        integrator.save(save)
        typer.echo(f"proposal: {save}")
    if out is not None:
        about = {"integrand": integrand, "budget": evaluations, "seed": seed, "bounds": bounds, "dim": dim}
        out.write_text(_json(result, about), encoding="utf-8")
        typer.echo(f"result: {out}")
    if figure is not None:
        truth, log_truth = (None, target.truth) if logs else (target.truth, None)
        result.figure(truth, log_truth).savefig(figure, dpi=150)
        typer.echo(f"figure: {figure}")
    raise typer.Exit(0 if result.reliable else UNRELIABLE)


@dataclass(frozen=True)
class _Target:
    """What a name stands for: f, and what it brings: its limits, its integral, whether f and that are logs."""

    name: str
    f: Callable[..., Any]
    bounds: Bounds | None
    truth: float | None
    log: bool


def _integrand_by_name(text: str) -> _Target:
    """The function or the object of that name; modules are looked for in the current folder first.

    Raises:
        ValueError: there is none, its code raises, or it is not a function.
    """
    module, colon, name = text.rpartition(":")
    if not (module and colon and name):
        raise ValueError(f"integrand: expected package.module:name or path/to/file.py:name, got {text!r}")
    try:
        found = attrgetter(name)(_module(module))
    except Exception as error:  # it is the user's code: whatever it raises
        raise ValueError(f"integrand {text}: {type(error).__name__}: {error}") from error
    f = getattr(found, "f", found)
    if not callable(f) or isinstance(f, type):
        raise ValueError(
            f"integrand {text}: expected a function or an object with f and bounds, got {_kind(found)}"
        )
    bounds, truth, log = (getattr(found, name, None) for name in ("bounds", "truth", "log"))
    return _Target(text, f, bounds, truth, log is True)


def _module(name: str) -> ModuleType:
    if not name.endswith(".py"):
        _search_first(os.getcwd())
        return importlib.import_module(name)
    path = Path(name).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {name}")
    _search_first(str(path.parent))
    spec: Any = importlib.util.spec_from_file_location(f"integrand_file_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look a class's module up
    spec.loader.exec_module(module)
    return module


def _search_first(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _kind(thing: Any) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__


def _integrator(
    target: _Target, dim: int | None, bounds: str | None, resume: Path | None, device: str
) -> Integrator:
    if resume is not None:
        if dim is not None or bounds is not None:
            raise ValueError("--resume: expected neither --dim nor --bounds; they are those of the saved one")
        return Integrator.load(resume, device=device)
    return Integrator(_limits(target, dim, bounds), device=device)


def _limits(target: _Target, dim: int | None, bounds: str | None) -> Bounds:
    """By --bounds, else --dim, else the integrand's own."""
    if bounds is None and dim is None:
        if target.bounds is None:
            raise ValueError(f"integrand {target.name}: expected --dim or --bounds, for it has no bounds")
        return target.bounds
    pairs = [(0.0, 1.0)] if bounds is None else [_pair(text) for text in bounds.strip(" ;").split(";")]
    if dim is not None and len(pairs) not in (1, dim):
        raise ValueError(f"--bounds: expected one pair or {dim} (--dim), got {len(pairs)}")
    return pairs * dim if dim is not None and len(pairs) == 1 else pairs


def _pair(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f'--bounds: expected pairs as in "0,1;-1,1;0,inf", got {text.strip()!r}') from None
    return low, high


def _whole(text: str) -> int:
    """1e6 as 1000000."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 1 and value == int(value)):
        raise ValueError(f"--budget: expected a whole number >= 1, such as 1e6, got {text!r}")
    return int(value)


def _check_folder(path: Path | None) -> None:
    """Raise before any work if the folder cannot be made."""
    if path is None:
        return
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: expected a folder, got a file")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: expected a folder in an existing folder, got no folder {path.parent}")


def _against(result: IntegralResult, truth: float, log: bool) -> str:
    """How far the estimate is from the known integral (its logarithm if `log`)."""
    mean, sdev = float(np.ravel(result.mean)[0]), float(np.ravel(result.sdev)[0])
    if log:
        mean, sdev = result.log_mean, result.log_sdev
    text = f"{'ln truth' if log else 'truth'} = {truth:.10g}"
    return f"{text}: the estimate is off by {(mean - truth) / sdev:+.2f} sd" if sdev > 0 else text


def _json(result: IntegralResult, about: dict[str, Any]) -> str:
    made = {"sbiflow_version": provenance.package_version(), "created": provenance.now()}
    return json.dumps({**about, **made, **result.to_dict()}, indent=1, allow_nan=False) + "\n"
