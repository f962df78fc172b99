"""The commands that tell what there is: info, list, fetch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sbiflow import datasets, samples
from sbiflow.cli import lookup
from sbiflow.embedding import KINDS
from sbiflow.ensemble import Ensemble, is_ensemble
from sbiflow.families import FAMILIES, SPLINES
from sbiflow.posterior import Posterior
from sbiflow.priors import Prior
from sbiflow.store import Store
from sbiflow.training.config import OPTIMISERS, SCHEDULES
from simulators.registry import BUILT_IN


def info_command(
    path: Annotated[Path, typer.Argument(help="A store, a model folder or draws.", show_default=False)],
) -> None:
    """What a store, a model or a file of draws contains and where it comes from."""
    {"store": _show_store, "model": _show_model, "samples": _show_samples}[lookup.kind_of(path)](path)


def list_command() -> None:
    """Simulators with their parameters, flow families, data sets."""
    for name, entry in BUILT_IN.items():
        simulator = entry.make()
        typer.echo(f"simulator {name}: {entry.about}")
        typer.echo(f"  x {_shape(simulator.x_shape)}; observation: {entry.observation}\n")
        typer.echo(_indented(str(simulator.prior)) + "\n")
    _pairs(
        {
            "flow families": ", ".join(FAMILIES),
            "splines": ", ".join(SPLINES),
            "embeddings": ", ".join(KINDS),
            "optimisers": ", ".join(OPTIMISERS),
            "schedules": ", ".join(SCHEDULES),
        }
    )
    typer.echo("\ndata sets (`sbiflow fetch NAME`)")
    _pairs({name: f"{entry.what}; {_where(name)}" for name, entry in datasets.DATASETS.items()})


def fetch_command(
    name: Annotated[
        str, typer.Argument(help="Name in `sbiflow list`, e.g. crisp/feobs.fits.", show_default=False)
    ],
) -> None:
    """Download a data set, checked by SHA-256, unless it is on this machine; prints its path."""
    try:
        path = datasets.find(name)
    except FileNotFoundError:
        path = datasets.fetch(name)
    typer.echo(path)


def _show_store(path: Path) -> None:
    store = Store.open(path)
    meta, status = store.meta, store.n_done
    _pairs(
        {
            "store": path,
            "simulator": f"{meta.simulator} {meta.version}".strip(),
            "rows": f"{store.n:,}: {store.n_ok:,} valid, {store.n_failed:,} failed, {store.n - status:,} pending",
            "signal": f"{_shape(store.x_shape)} {store.dtype}",
            "seed": meta.seed,
            "block": meta.block,
            "made": _made(meta.sbiflow_version, meta.created, meta.git_revision),
            **{f"failed: {f.reason}": f"{f.rows:,} rows, the first {f.first_row}" for f in store.failures()},
        }
    )
    typer.echo(f"\n{_prior(meta.prior_spec)}")


def _show_model(path: Path) -> None:
    if (path / "checkpoint.safetensors").exists() and not (path / "config.json").exists():
        raise ValueError(f"{path}: its training is not finished; run the same `sbiflow train` again")
    if is_ensemble(path):
        trained = Ensemble.load(path)
        shares = ", ".join(f"{weight:.3f}" for weight in trained.weights)
        _pairs({"ensemble": path, "members": len(trained.members), "weights": shares})
        for i in range(len(trained.members)):
            typer.echo()
            _show_model(path / f"member-{i}")
        return
    posterior = Posterior.load(path)
    info = posterior.info
    _pairs(
        {
            "model": path,
            "simulator": f"{info.simulator} {info.simulator_version}".strip(),
            "trained on": f"{info.simulations:,} rows, {info.failed_simulations:,} of them failed",
            "training": f"{info.steps:,} steps, {info.training_seconds:.0f} s, seed {info.seed}",
            "validation": f"mean log q(theta|x) {info.validation_log_prob:.3f} nats, physical units",
            "x": _shape(posterior.x_shape),
            "flow": _settings(asdict(posterior.flow_config)),
            "embedding": _settings(asdict(posterior.embedding_config)),
            "settings": _settings(info.training),
            "weights": f"{sum(p.numel() for p in posterior.flow.parameters()):,}",
            "made": _made(info.sbiflow_version, info.created),
        }
    )
    typer.echo(f"\n{posterior.prior}")


def _show_samples(path: Path) -> None:
    draws = samples.load(path)
    _pairs(
        {
            "draws": path,
            "number": f"{len(draws):,}"
            + (f" for each of {draws.theta.shape[1]} observations" if draws.theta.ndim == 3 else ""),
            "from": draws.source,
            "seed": draws.seed,
            "x": _shape(tuple(draws.x.shape)),
        }
    )
    typer.echo(f"\n{draws}")


def _pairs(values: dict[str, Any]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")  # a path is never cut short
    for key, value in values.items():
        table.add_row(Text(key), Text(str(value)))
    Console().print(table)


def _prior(spec: list[dict[str, Any]]) -> str:
    return str(Prior.from_spec(spec))


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _made(version: str, created: str, revision: str = "") -> str:
    return f"{created}, sbiflow {version}" + (f", git {revision[:12]}" if revision else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ("," if len(shape) == 1 else "") + ")"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _where(name: str) -> str:
    try:
        return str(datasets.find(name))
    except FileNotFoundError:
        return "not on this machine"
