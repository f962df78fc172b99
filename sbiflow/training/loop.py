"""The training loop: minimise -E log q(theta | x) over simulated pairs (neural posterior estimation).

With theta ~ p(theta) and x ~ p(x | theta), the expectation of -log q(theta | x) is least where q is the posterior
(Papamakarios & Murray 2016, arXiv 1605.06376). Signals are stored, noise is drawn anew for every batch, so one
simulation serves any number of noise realisations. Batches, order and noise depend on (seed, step) only: a run that
was killed and resumed from its checkpoint ends with the same weights, bit for bit, on the same device.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sbiflow.contracts import RowSimulator, Simulator
from sbiflow.embedding import EmbeddingConfig
from sbiflow.flows import ConditionalFlow, FlowConfig
from sbiflow.novelty import Novelty
from sbiflow.posterior import ModelInfo, Posterior
from sbiflow.provenance import now, package_version
from sbiflow.seeding import torch_generator
from sbiflow.store import Store
from sbiflow.training.checkpoint import CHECKPOINT_FORMAT, load_tensors, pack, save_tensors, unpack
from sbiflow.training.config import TrainConfig
from sbiflow.training.data import NOISE, VALIDATION_NOISE, TrainingData, load_training_data
from sbiflow.training.optimiser import build_optimisers
from sbiflow.training.progress import TrainingLog, progress_bar

_LOG_EVERY = 50
_WARM_UP = {"cosine": 0.03, "onecycle": 0.3}
_FIT_ROWS = 50_000  # rows that the standardiser, the SVD and the novelty test are fitted on


def train(
    store: Store,
    simulator: Simulator | RowSimulator,
    config: TrainConfig | None = None,
    *,
    flow: FlowConfig | None = None,
    embedding: EmbeddingConfig | None = None,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
    progress: bool = True,
) -> Posterior:
    """Train a conditional flow on a store of simulations.

    Args:
        store: simulations of this simulator.
        simulator: its `observe` adds the noise, its `prior` gives names and bijection.
        config, flow, embedding: settings; the defaults suit most problems of up to about 15 parameters.
        device: "auto" takes a GPU if there is one.
        checkpoint: file to write every `checkpoint_every` steps, on Ctrl-C and at the end; if it exists and belongs
            to the same run, training goes on from there.

    Raises:
        ValueError: the store is of another simulator or prior, has too few rows, or the checkpoint is of another run.
        FloatingPointError: the loss is not finite; says the step, the rows and where the last good state is.
    """
    config, flow, embedding = config or TrainConfig(), flow or FlowConfig(), embedding or EmbeddingConfig()
    where = torch.device(
        "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
    )
    _check_same_problem(store, simulator)
    data = load_training_data(store, simulator.prior, config.validation, config.seed, where)
    steps = config.steps_for(len(data))
    config = replace(config, steps=steps, validate_every=config.validate_every or max(steps // 20, 1))
    x_valid = simulator.observe(
        data.signal_validation, torch_generator(config.seed, VALIDATION_NOISE, device=where)
    )
    x_fit = simulator.observe(
        data.signal[:_FIT_ROWS], torch_generator(config.seed, VALIDATION_NOISE, 1, device=where)
    )
    model = _build(simulator, flow, embedding, config.seed, x_fit, data)
    novelty = Novelty.fit(x_fit, x_valid)

    run = _Run(
        model, data, x_valid, simulator, config, Path(checkpoint) if checkpoint else None, checkpoint_every
    )
    run.meta = {
        "format": CHECKPOINT_FORMAT, "config": asdict(config), "flow": asdict(flow), "embedding": asdict(embedding),
        "prior": simulator.prior.spec(), "rows": len(data), "simulator": store.meta.simulator,
    }  # fmt: skip
    run.resume()
    run.loop(progress)
    model.load_state_dict(run.best)
    info = ModelInfo(
        simulator=store.meta.simulator,
        simulator_version=store.meta.version,
        source_hash=store.meta.source_hash,
        simulations=store.n_done,
        failed_simulations=store.n_failed,
        seed=config.seed,
        steps=run.step,
        validation_log_prob=_physical_log_prob(run.log.best, data.z_validation, simulator),
        training_seconds=run.log.seconds,
        training=asdict(config),
        sbiflow_version=package_version(),
        created=now(),
    )
    return Posterior(
        model.eval(), flow, embedding, simulator.prior, tuple(simulator.x_shape), novelty, info, run.log
    )


class _Run:
    """The mutable state of one training run: model, optimisers, step, best weights, log."""

    def __init__(
        self,
        model: ConditionalFlow,
        data: TrainingData,
        x_validation: Tensor,
        simulator: Simulator | RowSimulator,
        config: TrainConfig,
        checkpoint: Path | None,
        checkpoint_every: int,
    ) -> None:
        self.model, self.data, self.simulator, self.config = model, data, simulator, config
        self.x_validation, self.checkpoint, self.checkpoint_every = x_validation, checkpoint, checkpoint_every
        self.optimisers = build_optimisers(model, config.optimiser, config.learning_rate)
        self.best = {name: value.clone() for name, value in model.state_dict().items()}
        self.step, self.waited, self.log, self.meta = 0, 0, TrainingLog(), dict[str, Any]()

    def loop(self, progress: bool) -> None:
        config, steps = self.config, self.config.steps or 0
        every, patience = config.validate_every or 1, config.patience or math.inf
        started, before = time.monotonic(), self.log.seconds
        try:
            with progress_bar(steps, self.step, progress) as show:
                while self.step < steps and self.waited < patience:
                    loss = self._update(_rate(self.step / steps, config))
                    self.step += 1
                    if self.step % _LOG_EVERY == 0 or self.step % every == 0 or self.step == steps:
                        self._record(loss)
                        if self.step % every == 0 or self.step == steps:
                            self._validate()
                        show(self.step, self.log.loss[-1], self.log.best)
                    self.log.seconds = before + time.monotonic() - started
                    if self.checkpoint and self.step % self.checkpoint_every == 0:
                        self.save()
        except KeyboardInterrupt:
            self._say_interrupted()
            raise
        if self.checkpoint:
            self.save()

    def _update(self, rate: float) -> Tensor:
        """One step on one batch; returns the loss without waiting for it."""
        z, x = self._batch(self.step)
        loss = -self.model.log_prob(z, x).mean()
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = rate
        loss.backward()
        if self.config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if loss.device.type == "cpu" and not math.isfinite(loss.item()):
            self._diverged()  # before the weights are touched
        for optimiser in self.optimisers:
            optimiser.step()
        return loss.detach()

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        rows = self.data.indices(step, self.config.batch)
        noise = torch_generator(self.config.seed, NOISE, step, device=self.data.z.device)
        return self.data.z[rows], self.simulator.observe(self.data.signal[rows], noise)

    def _record(self, loss: Tensor) -> None:
        if not math.isfinite(loss.item()):
            self._diverged()
        self.log.step.append(self.step)
        self.log.loss.append(loss.item())
        self.log.rate.append(self.optimisers[0].param_groups[0]["lr"])

    @torch.no_grad()
    def _validate(self) -> None:
        chunks = zip(self.data.z_validation.split(2048), self.x_validation.split(2048), strict=True)
        log_prob = torch.cat([self.model.log_prob(z, x) for z, x in chunks])
        loss = -log_prob.double().mean().item()
        self.waited = 0 if loss < self.log.best else self.waited + 1
        if loss < self.log.best:
            self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.log.validation_step.append(self.step)
        self.log.validation_loss.append(loss)

    def _diverged(self) -> None:
        """Name the rows of the current batch whose density is not finite, and stop."""
        step = min(self.step, (self.config.steps or 1) - 1)
        z, x = self._batch(step)
        with torch.no_grad():
            bad = ~torch.isfinite(self.model.log_prob(z, x)) | ~torch.isfinite(x.flatten(1)).all(1)
        rows = self.data.rows[self.data.indices(step, self.config.batch).cpu()[bad.cpu()]].tolist()
        kept = (
            f"the last good state is in {self.checkpoint}"
            if self.checkpoint
            else "no checkpoint was asked for"
        )
        raise FloatingPointError(
            f"training: the loss is not finite at step {self.step}; {len(rows)} rows of the batch are to blame "
            f"(valid rows {rows[:10]} of the store); {kept}; a lower learning_rate or clip may help"
        )

    def _say_interrupted(self) -> None:
        if self.checkpoint:
            self.save()
            print(f"\ninterrupted at step {self.step}; run the same command to go on from {self.checkpoint}")
        else:
            print(f"\ninterrupted at step {self.step}; nothing is kept (pass checkpoint= to keep it)")

    def save(self) -> None:
        """Write the checkpoint, if one was asked for."""
        if self.checkpoint:
            state = {"step": self.step, "waited": self.waited, "log": self.log.state()}
            save_tensors(
                self.checkpoint, pack(self.model, self.optimisers, self.best), {**self.meta, **state}
            )

    def resume(self) -> None:
        """Go on from the checkpoint if there is one; refuse another run's."""
        if not self.checkpoint or not self.checkpoint.exists():
            return
        tensors, meta = load_tensors(self.checkpoint)
        different = [
            f"{key}: expected {value}, got {meta.get(key)}"
            for key, value in self.meta.items()
            if meta.get(key) != value
        ]
        if different:
            raise ValueError(f"{self.checkpoint}: a checkpoint of another run; {'; '.join(different)}")
        self.best = unpack(tensors, self.model, self.optimisers)
        self.best = {name: value.to(self.data.z.device) for name, value in self.best.items()}
        self.step, self.waited, self.log = meta["step"], meta["waited"], TrainingLog(**meta["log"])


def _rate(progress: float, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine to zero; `progress` in [0, 1)."""
    warm = _WARM_UP[config.schedule]
    if progress < warm:
        return config.learning_rate * (progress / warm * 0.98 + 0.02)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))


def _build(
    simulator: Simulator | RowSimulator,
    flow: FlowConfig,
    embedding: EmbeddingConfig,
    seed: int,
    x: Tensor,
    data: TrainingData,
) -> ConditionalFlow:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        periodic = tuple(bool(flag) for flag in simulator.prior.periodic)
        model = ConditionalFlow(flow, embedding, periodic, tuple(simulator.x_shape))
    model.embedding.fit(x.cpu(), data.signal[: len(x)].cpu())
    return model.to(x.device)


def _check_same_problem(store: Store, simulator: Simulator | RowSimulator) -> None:
    expected, got = store.meta.prior_spec, simulator.prior.spec()
    if expected != got:
        raise ValueError(f"{store.path}: made with another prior: expected {expected}, got {got}")
    if tuple(store.x_shape) != tuple(simulator.x_shape):
        raise ValueError(f"{store.path}: expected x of shape {store.x_shape}, got {tuple(simulator.x_shape)}")


def _physical_log_prob(loss: float, z: Tensor, simulator: Simulator | RowSimulator) -> float:
    """Mean log q(theta | x) of the validation part in physical units."""
    log_jacobian = simulator.prior.constrain(z.double().cpu())[1]
    return -loss - float(log_jacobian.mean())
