"""The commands that do the work: simulate, train, sample, check."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer

from sbiflow.blocks import AnySimulator
from sbiflow.calibration import calibrate
from sbiflow.cli import lookup
from sbiflow.embedding import EmbeddingConfig
from sbiflow.ensemble import Ensemble, load_posterior
from sbiflow.families import NORMALISATIONS, SPLINES, FlowConfig
from sbiflow.posterior import ModelInfo, Posterior
from sbiflow.simulate import simulate
from sbiflow.store import Store
from sbiflow.training import TrainConfig, is_rank_zero, train, train_ensemble

_FLOW, _EMBEDDING, _TRAIN = FlowConfig(), EmbeddingConfig(), TrainConfig()
_CHECKPOINT = "checkpoint.safetensors"

Option, Argument = typer.Option, typer.Argument
SimulatorOption = Annotated[
    str | None, Option("--simulator", help="Name or package.module:attribute; needed if it is not built in.")
]
DeviceOption = Annotated[str, Option(help="auto (a GPU if there is one), cpu or cuda.")]
SeedOption = Annotated[int, Option(help="The same seed gives the same result.")]
ModelArgument = Annotated[Path, Argument(help="Folder made by `sbiflow train`.", show_default=False)]


def simulate_command(
    simulator: Annotated[
        str,
        Argument(help="Name (see `sbiflow list`) or package.module:attribute.", show_default=False),
    ],
    n: Annotated[int, Option("--n", help="Rows, e.g. 200000.", show_default=False)],
    out: Annotated[Path, Option(help="HDF5 file; continued or extended if it exists.", show_default=False)],
    seed: SeedOption = 0,
    workers: Annotated[int, Option(min=0, help="Processes; 0 runs here (torch uses all cores).")] = 0,
    timeout: Annotated[float | None, Option(help="Seconds per row, for row-by-row simulators.")] = None,
    block: Annotated[int | None, Option(help="Rows per unit of work: what a kill can lose.")] = None,
    dtype: Annotated[str | None, Option(help="Of the stored signal: float32 or float64.")] = None,
) -> None:
    """Simulate into a store. Ctrl-C loses nothing: the same command continues."""
    chosen = lookup.simulator_by_name(simulator)
    with _pool(workers) as executor:
        store = simulate(
            chosen, n, out, seed=seed, executor=executor, block=block, timeout=timeout, dtype=dtype
        )
    typer.echo(f"{store.n_ok:,} of {store.n:,} rows valid: {out}")


def train_command(
    store: Annotated[
        list[Path],
        Argument(help="HDF5 files made by `sbiflow simulate`, of different seeds.", show_default=False),
    ],
    out: Annotated[Path, Option(help="Folder for model, log and checkpoint.", show_default=False)],
    simulator: SimulatorOption = None,
    family: Annotated[str, Option(help="Flow: see `sbiflow list`.")] = _FLOW.family,
    layers: Annotated[int, Option(help="Flow: number of transforms.")] = _FLOW.layers,
    hidden: Annotated[int, Option(help="Flow: width of the networks.")] = _FLOW.hidden,
    bins: Annotated[int, Option(help="Flow: bins of a spline.")] = _FLOW.bins,
    spline: Annotated[str, Option(help=f"Flow: {', '.join(SPLINES)}.")] = _FLOW.spline,
    mixing: Annotated[str, Option(help="Flow: columns are mixed by lu or permutation.")] = _FLOW.mixing,
    normalisation: Annotated[
        str, Option(help=f"Flow: none, {', '.join(NORMALISATIONS)}.")
    ] = _FLOW.normalisation,
    embedding: Annotated[str, Option(help="residual, mlp, cnn or none.")] = _EMBEDDING.kind,
    features: Annotated[int, Option(help="Embedding: size of the context.")] = _EMBEDDING.features,
    embedding_hidden: Annotated[int, Option(help="Embedding: width.")] = _EMBEDDING.hidden,
    svd: Annotated[int, Option(help="Embedding: project x on so many singular vectors first; 0: no.")] = 0,
    steps: Annotated[
        int | None, Option(help="Steps; by default 40 passes, within 300 to 20,000 steps.")
    ] = None,
    batch: Annotated[int | None, Option(help="Rows per step; by default 128 to 512.")] = _TRAIN.batch,
    lanes: Annotated[
        int | None, Option(help="Parts of a batch, for the processes of torchrun; by default one each.")
    ] = None,
    rate: Annotated[float, Option(help="Peak learning rate.")] = _TRAIN.learning_rate,
    optimiser: Annotated[str, Option(help="muon or adam.")] = _TRAIN.optimiser,
    schedule: Annotated[str, Option(help="cosine or onecycle.")] = _TRAIN.schedule,
    patience: Annotated[
        int, Option(min=0, help="Validations without progress before stopping; 0: never.")
    ] = _TRAIN.patience or 0,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    ensemble: Annotated[
        bool,
        Option("--ensemble", help="Several stacked flows of tried settings; the options above are not used."),
    ] = False,
    memory: Annotated[
        float | None,
        Option(help="GB that simulations may take; more is read from disk. Default: what is free."),
    ] = None,
    restart: Annotated[bool, Option("--restart", help="Discard the checkpoint in OUT, train anew.")] = False,
) -> None:
    """Train a flow on a store. Ctrl-C loses nothing: the same command continues from the checkpoint."""
    opened = [Store.open(path) for path in store]
    chosen = lookup.recorded_simulator(simulator, opened[0].meta.simulator, store[0])
    for one in opened:
        _check_made_with(one, chosen)
    config = TrainConfig(
        steps=steps, batch=batch, learning_rate=rate, optimiser=optimiser, schedule=schedule,
        patience=patience or None, seed=seed, lanes=lanes,
    )  # fmt: skip
    flow = FlowConfig(
        family=family, layers=layers, hidden=hidden, bins=bins, spline=spline, mixing=mixing,
        normalisation=normalisation,
    )  # fmt: skip
    embed = EmbeddingConfig(kind=embedding, features=features, hidden=embedding_hidden, svd_components=svd)
    if ensemble:
        _train_ensemble(opened, chosen, out, seed, device, memory, restart)
        return
    checkpoint = out / _CHECKPOINT
    if restart:
        checkpoint.unlink(missing_ok=True)
    try:
        posterior = train(
            opened, chosen, config, flow=flow, embedding=embed, device=device, checkpoint=checkpoint,
            memory=memory,
        )  # fmt: skip
    except ValueError as error:
        if str(error).startswith(str(checkpoint)):  # of another run, or damaged
            raise ValueError(f"{error}; --restart discards it, or choose another --out") from error
        raise
    if not is_rank_zero():
        return
    posterior.save(out)
    info = posterior.info
    typer.echo(
        f"{info.steps:,} steps in {info.training_seconds:.0f} s; mean log q(theta|x) of the validation rows "
        f"{info.validation_log_prob:.3f} nats: {out}"
    )


def _check_made_with(store: Store, simulator: AnySimulator) -> None:
    """Raise if the store is of another simulator; warn of another source and of rows that are missing."""
    meta = store.meta
    if different := lookup.differences(simulator, meta.simulator, meta.version):
        raise ValueError(f"{store.path}: made with another simulator; {'; '.join(different)}")
    if lookup.source_changed(simulator, meta.source_hash):
        _warn(f"the simulator's source has changed since {store.path} was made")
    done = store.n_done
    if done < store.n:
        _warn(f"{store.path}: {done:,} of {store.n:,} rows are simulated so far; training on those")


def _train_ensemble(
    store: list[Store],
    simulator: AnySimulator,
    out: Path,
    seed: int,
    device: str,
    memory: float | None,
    restart: bool,
) -> None:
    checkpoints = out.with_name(out.name + "-checkpoints")
    if restart:
        shutil.rmtree(checkpoints, ignore_errors=True)
    trained = train_ensemble(
        store, simulator, seed=seed, device=device, checkpoint_folder=checkpoints, memory=memory
    )
    if not is_rank_zero():
        return
    trained.save(out)
    shares = ", ".join(f"{weight:.2f}" for weight in trained.weights)
    typer.echo(
        f"{len(trained.members)} flows in {trained.info.training_seconds:.0f} s, weights {shares}: {out} "
        f"(checkpoints: {checkpoints})"
    )


def sample_command(
    model: ModelArgument,
    observation: Annotated[Path, Argument(help="FITS, HDF5, npy, csv or txt file.", show_default=False)],
    n: Annotated[int, Option("--n", help="Draws.")] = 10_000,
    out: Annotated[Path | None, Option(help="HDF5 file for the draws.")] = None,
    reweight: Annotated[
        bool, Option("--reweight", help="Importance weights with the simulator's likelihood, and a verdict.")
    ] = False,
    corner: Annotated[Path | None, Option(help="Corner plot, png or pdf.")] = None,
    dataset: Annotated[
        str | None, Option(help="Dataset (HDF5) or extension (FITS) of the observation.")
    ] = None,
    seed: SeedOption = 0,
    simulator: SimulatorOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Draw from the posterior of an observation: median, 16 and 84 %, warnings, and on request weights."""
    lookup.check_target(out, made_by_us="samples")
    lookup.check_target(corner)
    posterior = load_posterior(model, lookup.pick_device(device))
    named = simulator or lookup.built_in(posterior.info.simulator)
    chosen = _simulator_of(model, posterior, simulator) if reweight or named else None
    x = lookup.load_observation(observation, posterior.x_shape, chosen, dataset)
    if reweight and getattr(chosen, "log_likelihood", None) is None:
        raise ValueError(
            f"--reweight: expected a simulator with a log_likelihood, got {type(chosen).__name__}"
        )
    plain = posterior.sample(x, n, seed=seed)
    draws = plain.reweight(cast(Any, chosen).log_likelihood) if reweight else plain
    typer.echo(str(draws))
    if out is not None:
        typer.echo(f"draws: {draws.save(out)}")
    if corner is not None:
        draws.corner().savefig(corner, dpi=150, bbox_inches="tight")
        typer.echo(f"corner plot: {corner}")


def check_command(
    model: ModelArgument,
    n: Annotated[int, Option("--n", help="Fresh simulations.")] = 1000,
    draws: Annotated[int, Option(help="Posterior draws for each.")] = 1000,
    alpha: Annotated[float, Option(help="False-alarm probability of all tests together.")] = 0.01,
    report: Annotated[Path | None, Option(help="HTML page with tables and figures.")] = None,
    json: Annotated[Path | None, Option(help="The same numbers as JSON.")] = None,
    seed: SeedOption = 0,
    simulator: SimulatorOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Calibration on fresh simulations; exit status 1 if the posterior fails."""
    lookup.check_target(report)
    lookup.check_target(json)
    posterior = load_posterior(model, lookup.pick_device(device))
    chosen = _simulator_of(model, posterior, simulator)
    found = calibrate(posterior, chosen, n=n, draws=draws, seed=seed, alpha=alpha)
    typer.echo(str(found))
    if report is not None:
        typer.echo(f"report: {found.to_html(report)}")
    if json is not None:
        found.to_json(json)
    raise typer.Exit(0 if found.passed else 1)


def _simulator_of(model: Path, posterior: Posterior | Ensemble, given: str | None) -> AnySimulator:
    info: ModelInfo = posterior.info
    chosen = lookup.recorded_simulator(given, info.simulator, model)
    names, got = posterior.prior.names, chosen.prior.names
    if names != got:
        raise ValueError(
            f"simulator: expected the parameters {', '.join(names)} of {model}, got {', '.join(got)}"
        )
    if different := lookup.differences(chosen, info.simulator, info.simulator_version):
        _warn(f"{model} was made with another simulator; {'; '.join(different)}")
    elif lookup.source_changed(chosen, info.source_hash):
        _warn(f"the simulator's source has changed since {model} was made")
    return chosen


def _warn(text: str) -> None:
    typer.echo(f"warning: {text}", err=True)


@contextmanager
def _pool(workers: int) -> Iterator[Executor | None]:
    if not workers:
        yield None
        return
    context: Any = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker at once and without a traceback
