"""From a store and a simulator to a posterior: neural posterior estimation.

With theta ~ p(theta) and x ~ p(x | theta), the expectation of -log q(theta | x) is least where q is the posterior
(Papamakarios & Murray 2016, arXiv 1605.06376). Signals are stored, noise is drawn anew for every batch, so one
simulation serves any number of noise realisations. So are the parameters that the simulator calls extrinsic, on which
its signals do not depend: they and x are redrawn together, the pair is still one of p(theta, x).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sbiflow.checks import check_count, check_shape
from sbiflow.contracts import RowSimulator, Simulator
from sbiflow.embedding import EmbeddingConfig
from sbiflow.families import FlowConfig
from sbiflow.flows import ConditionalFlow
from sbiflow.novelty import Novelty
from sbiflow.observing import (
    check_extrinsic,
    extrinsic_columns,
    noiseless,
    observe,
    shape_difference,
    theta_for,
)
from sbiflow.posterior import ModelInfo, Posterior
from sbiflow.provenance import now, package_version
from sbiflow.seeding import torch_generator
from sbiflow.store import Store
from sbiflow.structure import Structure
from sbiflow.training.checkpoint import CHECKPOINT_FORMAT, Checkpoint, digest, flat
from sbiflow.training.config import TrainConfig
from sbiflow.training.data import (
    VALIDATION_EXTRINSIC,
    VALIDATION_NOISE,
    Data,
    Rows,
    redrawn,
)
from sbiflow.training.distributed import Team
from sbiflow.training.group import join
from sbiflow.training.loop import Observed, Training
from sbiflow.training.shards import Shards
from sbiflow.training.stream import training_data

_FIT_ROWS = 50_000  # rows that the standardiser, the SVD and the novelty test are fitted on
_COSTLY_ROWS = 2048  # for a log-density that training does not compute by itself
_CHECKED_ROWS = 4  # simulated again, to see that what is called extrinsic is


class Source(NamedTuple):
    """Where the rows of a run come from, for its records: names of what made them, and how many there are."""

    simulator: str
    version: str
    source_hash: str
    rows: int
    failed: int


def train(
    store: Store | Sequence[Store],
    simulator: Simulator | RowSimulator,
    config: TrainConfig | None = None,
    *,
    flow: FlowConfig | None = None,
    embedding: EmbeddingConfig | None = None,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
    split: int | None = None,
    progress: bool = True,
    memory: float | None = None,
) -> Posterior:
    """Train a conditional flow on a store of simulations; under torchrun, one flow on all processes (distributed.py).

    Args:
        store: simulations of this simulator; or several stores of different seeds, whose rows count as one store's, in
            ascending order of the seeds.
        simulator: its `observe` adds the noise, its `prior` gives names and bijection; `extrinsic` parameters, if it
            has any, are redrawn for every batch.
        config, flow, embedding: settings; the defaults suit most problems of up to about 15 parameters.
        device: "auto" takes a GPU if there is one, for every process its own.
        checkpoint: file to write every `checkpoint_every` steps, on Ctrl-C or SIGTERM and at the end; if it exists and
            belongs to the same run, training goes on from there. All processes have to see it; process 0 writes it.
        split: seed of the split into training and validation rows, if not the configuration's own.
        memory: [GB] that the simulations may take; if half of it does not hold them (loading takes two copies), they
            are read from the disk while training, in an order of their own (`StreamedData`). None: what is available
            on this machine now, and 1 GB if they are read from the disk.

    Raises:
        ValueError: the store is of another simulator or prior, has too few rows, its signals depend on parameters
            that are called extrinsic, or the checkpoint is of another run; it changed while it was read from the disk;
            processes that differ in data, settings or the checkpoint that they see, or that cannot share the batch
            out equally.
        FloatingPointError: the loss is not finite; says the step, the rows and where the last good state is.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the step in work is finished and the checkpoint written.
        RuntimeError: another process of the run is gone, or has other weights.
    """
    config, flow, embedding = config or TrainConfig(), flow or FlowConfig(), embedding or EmbeddingConfig()
    flow = _with_structure(flow, simulator)
    check_count(checkpoint_every, "checkpoint_every")
    team, shards = join(), Shards.of(store)
    where = team.device(pick_device(device))
    for part in shards.stores:
        _check_same_problem(part, simulator)
    config = config.resolved(shards.n_ok, team.size)
    share = config.validation or 0.0
    with training_data(shards, simulator.prior, share, config.seed, where, split, memory, checkpoint) as data:
        source = _source(shards)
        run, fit = train_on(
            source, data, simulator, config, flow, embedding, checkpoint, checkpoint_every, progress, team
        )
    return finished(source, simulator, run, fit, flow, embedding)


def _source(store: Shards) -> Source:
    meta = store.meta
    return Source(meta.simulator, meta.version, meta.source_hash, store.n_done, store.n_failed)


def train_on(
    source: Source,
    data: Data,
    simulator: Simulator | RowSimulator,
    config: TrainConfig,
    flow: FlowConfig,
    embedding: EmbeddingConfig,
    checkpoint: str | Path | None,
    checkpoint_every: int,
    progress: bool,
    team: Team,
    wrap: Callable[[ConditionalFlow], ConditionalFlow] = lambda flow: flow,
) -> tuple[Training, Observed]:
    """The run at its end, and the rows that it started from. The settings of `config` are resolved.

    `wrap` makes of the new flow, before it is fitted, what is trained in its place.
    """
    some = data.some(_FIT_ROWS)
    valid, fit = observed(simulator, data.validation, config.seed), observed(simulator, some, config.seed, 1)

    file = None
    if checkpoint is not None or team.size > 1:
        identity = _identity(source, data, valid, simulator, config, flow, embedding)
        team.check_same("train", flat(identity))
    if checkpoint is not None:
        file = Checkpoint(Path(checkpoint), checkpoint_every, identity)
        file.path.parent.mkdir(parents=True, exist_ok=True)
    model = _build(simulator, flow, embedding, config.seed, fit, some, wrap)
    team.share(model)
    run = Training(model, data, valid, simulator, config, file, team)
    del some  # an eighth of what rows from the disk may take
    run.resume()
    run.loop(progress)
    return run, fit


def finished(
    source: Source,
    simulator: Simulator | RowSimulator,
    run: Training,
    fit: Observed,
    flow: FlowConfig,
    embedding: EmbeddingConfig,
) -> Posterior:
    """The posterior of a run at its end."""
    run.model.load_state_dict(run.best)
    novelty = Novelty.fit(fit.x, run.validation.x, run.model.embedding)
    run.team.share(novelty)
    shape, (info, log) = tuple(simulator.x_shape), run.team.first((_info(source, simulator, run), run.log))
    return Posterior(run.model.eval(), flow, embedding, simulator.prior, shape, novelty, info, log)


def _with_structure(flow: FlowConfig, simulator: Simulator | RowSimulator) -> FlowConfig:
    """The flow with the simulator's anchors and symmetries, unless it was given its own."""
    known = getattr(simulator, "structure", Structure())
    return flow if flow.structure != Structure() else replace(flow, structure=known)


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f'device: expected "auto", "cpu" or "cuda", got {name!r}') from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: expected one that this machine has, got {name!r} and no GPU is visible")
    return device


def _check_same_problem(store: Store, simulator: Simulator | RowSimulator) -> None:
    """The store's prior, simulator and shape; its source may have changed since (new noise needs no new store)."""
    prior = simulator.prior
    expected = replace(
        store.meta,
        names=tuple(prior.names),
        units=tuple(prior.units),
        prior_spec=prior.spec(),
        simulator=getattr(simulator, "name", None) or type(simulator).__name__,
        version=str(getattr(simulator, "version", "")),
    )
    different = expected.differences(store.meta)
    different += shape_difference(store.x_shape, simulator)
    if different:
        raise ValueError(f"{store.path}: a store of another simulator or prior: {'; '.join(different)}")
    if extrinsic_columns(simulator):
        check_extrinsic(simulator, *map(torch.from_numpy, store.read(store.valid_rows()[:_CHECKED_ROWS])))


def observed(simulator: Simulator | RowSimulator, part: Rows, seed: int, *key: int) -> Observed:
    """One draw of extrinsic parameters and noise for a whole array, checked once for what the loop relies on."""
    z, signal, rows = part
    z = redrawn(simulator, z, seed, VALIDATION_EXTRINSIC, *key)
    noise = torch_generator(seed, VALIDATION_NOISE, *key, device=signal.device)
    x = observe(simulator, theta_for(simulator, z), signal, noise)
    _check_made("observe", x, simulator, signal, rows)
    return Observed(z, x)


def _check_made(
    what: str, x: Tensor, simulator: Simulator | RowSimulator, signal: Tensor, rows: Tensor
) -> None:
    """Raise unless the simulator's method made of signals (n, *signal_shape) what it is to make."""
    check_shape(x, f"simulator.{what}", (len(signal), *simulator.x_shape))
    if x.dtype != signal.dtype:
        raise ValueError(f"simulator.{what}: expected {signal.dtype} as its signal has, got {x.dtype}")
    bad = rows[~torch.isfinite(x.reshape(len(x), -1)).all(1).cpu()].tolist()
    if bad:
        raise ValueError(
            f"simulator.{what}: expected finite values, got NaN or inf in {len(bad)} rows: {bad[:10]}"
        )


def _identity(
    source: Source,
    data: Data,
    valid: Observed,
    simulator: Simulator | RowSimulator,
    config: TrainConfig,
    flow: FlowConfig,
    embedding: EmbeddingConfig,
) -> dict[str, Any]:
    """What a checkpoint has to share with a run that goes on from it; hashes stand for data and noise."""
    z, signal = valid.z[:100].cpu(), data.validation.signal[:100].cpu()
    noise = torch_generator(config.seed, VALIDATION_NOISE)
    return {
        "format": CHECKPOINT_FORMAT,
        "config": asdict(config),
        "flow": asdict(flow),
        "embedding": asdict(embedding),
        "prior": dict(zip(simulator.prior.names, simulator.prior.spec(), strict=True)),
        "simulator": source.simulator,
        "rows": len(data),
        "data": digest(valid.z, data.validation.signal),
        "noise": digest(observe(simulator, theta_for(simulator, z), signal, noise)),
        **({"order": data.order} if data.order else {}),
    }


def _build(
    simulator: Simulator | RowSimulator,
    flow: FlowConfig,
    embedding: EmbeddingConfig,
    seed: int,
    fit: Observed,
    some: Rows,
    wrap: Callable[[ConditionalFlow], ConditionalFlow] = lambda flow: flow,
) -> ConditionalFlow:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**64)  # of the CPU only, where weights are made
        periodic = tuple(bool(flag) for flag in simulator.prior.periodic)
        model = wrap(ConditionalFlow(flow, embedding, periodic, tuple(simulator.x_shape)))
    clean = noiseless(simulator, theta_for(simulator, fit.z), some.signal)
    _check_made("noiseless", clean, simulator, some.signal, some.rows)
    model.fit(fit.z.cpu(), fit.x.cpu(), clean.cpu())
    return model.to(fit.x.device)


def _info(source: Source, simulator: Simulator | RowSimulator, run: Training) -> ModelInfo:
    return ModelInfo(
        simulator=source.simulator,
        simulator_version=source.version,
        source_hash=source.source_hash,
        simulations=source.rows,
        failed_simulations=source.failed,
        seed=run.config.seed,
        steps=run.step,
        validation_log_prob=_physical_log_prob(run, simulator),
        training_seconds=run.log.seconds,
        training=asdict(run.config),
        sbiflow_version=package_version(),
        created=now(),
    )


@torch.no_grad()
def _physical_log_prob(run: Training, simulator: Simulator | RowSimulator) -> float:
    """Mean log q(theta | x) of the validation part in physical units."""
    z, x = run.validation
    if run.model.climbs_log_prob:
        mean = -run.log.best
    else:
        z, x = z[:_COSTLY_ROWS], x[:_COSTLY_ROWS]
        mean = float(run.model.log_prob(z, x).double().mean())
    log_jacobian = simulator.prior.constrain(z.double().cpu())[1]
    return mean - float(log_jacobian.mean())
