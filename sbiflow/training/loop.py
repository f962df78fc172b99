"""The training loop: minimise -E log q(theta | x) over simulated pairs.

Batches, order, extrinsic parameters and noise depend on (seed, step) only (and on the lane of the batch, where there
are several: distributed.py), and a checkpoint is only ever written between steps: a run that was killed and resumed
from its checkpoint ends with the same weights, bit for bit, on the same device.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from sbiflow.contracts import RowSimulator, Simulator
from sbiflow.flows import ConditionalFlow
from sbiflow.observing import observe, theta_for
from sbiflow.seeding import torch_generator
from sbiflow.training.checkpoint import Checkpoint, pack, unpack
from sbiflow.training.compiled import Objective, compiled_objective, worthwhile
from sbiflow.training.config import TrainConfig
from sbiflow.training.data import DROPOUT, EXTRINSIC, NOISE, Data, redrawn
from sbiflow.training.distributed import Team
from sbiflow.training.interrupt import deferred_interrupt
from sbiflow.training.optimiser import build_optimisers
from sbiflow.training.progress import TrainingLog, progress_bar

_LOG_EVERY = 50
_WARM_UP = {"cosine": 0.03, "onecycle": 0.3}
_VALIDATION_CHUNK = 2048


class Observed(NamedTuple):
    """Pairs of base-space parameters z (n, D) and observations x (n, *x_shape)."""

    z: Tensor
    x: Tensor


class Training:
    """The mutable state of one run: model, optimisers, step, best weights, log. `config` has its steps resolved."""

    def __init__(
        self,
        model: ConditionalFlow,
        data: Data,
        validation: Observed,
        simulator: Simulator | RowSimulator,
        config: TrainConfig,
        checkpoint: Checkpoint | None = None,
        team: Team | None = None,
    ) -> None:
        self.model, self.data, self.simulator, self.config = model.eval(), data, simulator, config
        self.validation, self.checkpoint, self.team = validation, checkpoint, team or Team()
        self.lanes = config.lanes or 1
        if len(data) < self.lanes:
            raise ValueError(f"lanes: expected at most the {len(data)} rows to train on, got {self.lanes}")
        _check_one_part(model, max(self.lanes, self.team.size))
        self.optimisers = build_optimisers(model, config.optimiser, config.learning_rate)
        self.best = {name: value.clone() for name, value in model.state_dict().items()}
        self.step, self.waited, self.log = 0, 0, TrainingLog(is_log_prob=model.climbs_log_prob)
        self.parameters = list(model.parameters())
        self.objective: Objective = model.objective

    def loop(self, progress: bool) -> None:
        """Train to the end of the budget, or until the validation loss has stopped falling."""
        steps, every = self.config.steps or 0, self.config.validate_every or 1
        patience = self.config.patience or math.inf
        started = time.monotonic() - self.log.seconds
        if self.step < steps and self._compiles(steps):
            self.objective = compiled_objective(self.model, *self._batch(self.step))
        if self.step == 0:
            self._validate()  # the start may be better than what a few simulations teach
        shown, patient = progress and self.team.rank == 0, self.team.size > 1
        with progress_bar(steps, self.step, shown) as show, deferred_interrupt(patient) as interrupted:
            while self.step < steps and self.waited < patience:
                loss = self._update(rate(self.step / steps, self.config))
                self.step += 1
                self.log.seconds = time.monotonic() - started
                validate = self.step % every == 0 or self.step == steps
                log = validate or self.step % _LOG_EVERY == 0
                if log:
                    self._record(loss)
                    if validate:
                        self._validate()
                    show(self.step, self.log.loss[-1], self.log.best)
                if self.team.stops(interrupted(), listen=log or loss.device.type == "cpu"):
                    self._interrupt()
                if self.checkpoint and self.step % self.checkpoint.every == 0:
                    self.save()
        self.save()

    def _compiles(self, steps: int) -> bool:
        if self.config.compile is not None:
            return self.config.compile
        return worthwhile(self.model, steps, self._size, self.validation.z.device)

    def _update(self, rate: float) -> Tensor:
        """One step on one batch; returns the loss without waiting for it."""
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = rate
        loss = self._backward(self.step)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip or math.inf)
        if loss.device.type == "cpu" and not math.isfinite(loss.item() + norm.item()):
            self._diverged(self.step + 1)  # before the weights are touched; a GPU is not made to wait for it
        for optimiser in self.optimisers:
            optimiser.step()
        return loss

    def _backward(self, step: int) -> Tensor:
        """Gradients of the mean loss of a batch, and the loss: lane after lane, then all processes' together."""
        losses = []
        for lane in self.team.own(self.lanes):
            z, x = self._batch(step, lane)
            with random_stream(self.model, self.config.seed, *_key(step, lane)):
                loss = -self.objective(z, x).mean() / self.lanes
            loss.backward()
            losses.append(loss.detach())
        return self.team.add_gradients(self.model, torch.stack(losses).sum())

    def _batch(self, step: int, lane: int = 0) -> tuple[Tensor, Tensor]:
        z, signal = self.data.batch(step, self._size, self._rows(lane))
        z = redrawn(self.simulator, z, self.config.seed, EXTRINSIC, *_key(step, lane))
        noise = torch_generator(self.config.seed, NOISE, *_key(step, lane), device=z.device)
        return z, observe(self.simulator, theta_for(self.simulator, z), signal, noise)

    def _rows(self, lane: int) -> slice:
        size = self._size // self.lanes
        return slice(lane * size, (lane + 1) * size)

    @property
    def _size(self) -> int:
        """Rows of a batch; of few data as many as make equal lanes."""
        size = min(self.config.batch or len(self.data), len(self.data))
        return size - size % self.lanes

    def _record(self, loss: Tensor) -> None:
        if not math.isfinite(loss.item()):
            self._diverged(self.step)
        self.log.step.append(self.step)
        self.log.loss.append(loss.item())
        self.log.rate.append(self.optimisers[0].param_groups[0]["lr"])

    @torch.no_grad()
    def _validate(self) -> None:
        self.team.check_weights(self.model, self.step)
        values = self._validation_objective()
        loss = -values.double().mean().item()
        if not math.isfinite(loss):
            bad = ~torch.isfinite(values).cpu()
            self._stop(self.step, "validation loss", self.data.validation.rows[bad])
        self.waited = 0 if loss < self.log.best else self.waited + 1
        if loss < self.log.best:
            self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.log.validation_step.append(self.step)
        self.log.validation_loss.append(loss)

    def _validation_objective(self) -> Tensor:
        """Chunk by chunk, shared out among the processes; chunks depend on the lanes only, and so does rounding.

        What is random in it is the same in every validation.
        """
        z, x = self.validation
        size = min(_VALIDATION_CHUNK, -(-len(z) // self.lanes))
        values = z.new_zeros(len(z))
        for chunk, start in enumerate(range(0, len(z), size)):
            if chunk % self.team.size == self.team.rank:
                rows = slice(start, start + size)
                with random_stream(self.model, self.config.seed, 0, chunk, 1, training=False):
                    values[rows] = self.model.objective(z[rows], x[rows])
        return self.team.add(values)

    @torch.no_grad()
    def _diverged(self, step: int) -> NoReturn:
        """Name the rows of the batch whose density is not finite, and stop.

        On a GPU, which is only asked now and then, it may have happened up to `_LOG_EVERY` steps before.
        """
        bad = torch.zeros(self._size, device=self.validation.z.device)
        for lane in self.team.own(self.lanes):
            z, x = self._batch(step - 1, lane)
            with random_stream(self.model, self.config.seed, *_key(step - 1, lane)):
                values = self.model.objective(z, x)
            good = torch.isfinite(values) & torch.isfinite(x.reshape(len(x), -1)).all(1)
            bad[self._rows(lane)] = (~good).float()
        rows = self.data.batch_rows(step - 1, self._size)
        self._stop(step, "loss or its gradient", rows[self.team.add(bad).bool().cpu()])

    def _stop(self, step: int, what: str, rows: Tensor) -> NoReturn:
        blame = (
            f"{len(rows)} rows are to blame (of the store: {rows[:10].tolist()})"
            if len(rows)
            else "no single row is to blame"
        )
        file = self.checkpoint.path if self.checkpoint and self.checkpoint.path.exists() else None
        kept = f"the last good state is in {file}" if file else "nothing was kept"
        raise FloatingPointError(
            f"training: the {what} is not finite at step {step} of {self.config.steps}; {blame}; {kept}; "
            "a lower learning_rate or clip may help"
        )

    def _interrupt(self) -> NoReturn:
        self.save()
        kept = (
            f"run the same again to go on from {self.checkpoint.path}"
            if self.checkpoint
            else "nothing is kept (give a checkpoint file to keep it)"
        )
        text = f"stopped at step {self.step} of {self.config.steps}: {kept}"
        if self.team.rank == 0:
            print(f"\n{text}", file=sys.stderr)
        raise KeyboardInterrupt(text)

    def save(self) -> None:
        """Write the checkpoint, if one was asked for, in process 0; never weights that are not finite."""
        if self.checkpoint is None:
            return
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            self._diverged(self.step)
        state = {"step": self.step, "waited": self.waited, "log": self.log.state()}
        if self.team.rank == 0:
            self.checkpoint.write(pack(self.model, self.optimisers, self.best), state)
        self.team.gather(None)  # none goes on, or looks for the file, before it is there

    def resume(self) -> None:
        """Go on from the checkpoint if there is one; refuse another run's."""
        found = self.checkpoint.read() if self.checkpoint else None
        if self.checkpoint:
            step = found[1]["step"] if found else "no such file"
            self.team.check_same(f"{self.checkpoint.path} (on a file system that all share)", {"step": step})
        if found is None:
            return
        tensors, state = found
        best = unpack(tensors, self.model, self.optimisers)
        self.best = {name: value.to(self.validation.z.device) for name, value in best.items()}
        self.step, self.waited, self.log = state["step"], state["waited"], TrainingLog(**state["log"])


@contextmanager
def random_stream(model: ConditionalFlow, seed: int, *key: int, training: bool = True) -> Iterator[None]:
    """What is random in the objective (dropout, estimates) drawn from a stream of (seed, *key).

    A flow without any is left alone. One with it is in training mode meanwhile, unless `training` is false.
    """
    if not model.is_random:
        yield
        return
    devices = [parameter.device for parameter in islice(model.parameters(), 1) if parameter.is_cuda]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(torch_generator(seed, DROPOUT, *key).initial_seed()))
        model.train(training)
        yield
        model.eval()


def _check_one_part(model: ConditionalFlow, parts: int) -> None:
    """Raise if rows of a batch enter each other's densities, and the batch comes in parts."""
    if parts > 1 and any(getattr(part, "mixes_rows", False) for part in model.modules()):
        raise ValueError(
            "batchnorm: expected one lane and one process, for statistics of a part of a batch differ from part to "
            f'part, got {parts} lanes; normalisation="actnorm" has none'
        )


def _key(step: int, lane: int) -> tuple[int, ...]:
    """Of the random streams of a lane; the first has those of a batch that is not divided."""
    return (step, lane) if lane else (step,)


def rate(progress: float, config: TrainConfig) -> float:
    """The learning rate: linear warm-up, then a cosine to zero; `progress` in [0, 1)."""
    warm = _WARM_UP[config.schedule]
    if progress < warm:
        return config.learning_rate * (progress / warm * 0.98 + 0.02)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))
