"""The loop of a distillation: minimise KL(student || teacher) over the student's own draws.

The first steps minimise KL(teacher || student) over the teacher's. Where the student has no draws the other distance
has no gradient: one that starts far from a narrow posterior, or beside a mode of it, would not find there.
"""

from __future__ import annotations

import copy
import math
import time

import torch
from torch import Generator, Tensor

from sbiflow.flows import ConditionalFlow
from sbiflow.seeding import torch_generator
from sbiflow.training.config import TrainConfig
from sbiflow.training.loop import rate
from sbiflow.training.optimiser import build_optimisers
from sbiflow.training.progress import TrainingLog, progress_bar

_NOISE, _CHECK = 0x64697376, 0x64697377  # random streams
_SHOWN = 0.3  # share of the steps on the teacher's draws
_LOG_EVERY = 50
_CHECKED = 4096  # draws of a validation


def gap(
    student: ConditionalFlow, master: ConditionalFlow, context: Tensor, n: int, noise: Generator
) -> Tensor:
    """log q - log p of n draws of the student for each context (B, C), (n, B); its mean is KL(student || teacher)."""
    z, log_q = student.draw(context, n, noise)
    return log_q - master.log_prob_given(z, context)


class Lesson:
    """The mutable state of a run.

    Args:
        student: its transform is trained, its embedding is left alone.
        master: the teacher's flow, whose parameters want no gradient.
        contexts, held: to be taught at and to be validated at, (n, C) and (m, C).
        config: with its steps, batch and validations resolved.
    """

    def __init__(
        self,
        student: ConditionalFlow,
        master: ConditionalFlow,
        contexts: Tensor,
        held: Tensor,
        config: TrainConfig,
    ) -> None:
        self.student, self.master, self.config = student, master, config
        self.contexts, self.held = contexts, held
        self.parameters = list(student.transform.parameters())
        self.optimisers = build_optimisers(student.transform, config.optimiser, config.learning_rate)
        self.step, self.waited, self.draws, self.log = 0, 0, 0, TrainingLog()
        self.best = self._weights()
        self.still = copy.deepcopy(student).requires_grad_(False)

    def loop(self, progress: bool) -> None:
        """Train to the end of the budget, or until the distance has stopped falling; keeps the best weights."""
        steps, every = self.config.steps or 0, self.config.validate_every or 1
        patience, started = self.config.patience or math.inf, time.monotonic()
        self._validate()
        with progress_bar(steps, 0, progress) as show:
            while self.step < steps and self.waited < patience:
                distance = self._update(rate(self.step / steps, self.config))
                self.step += 1
                validate = self.step % every == 0 or self.step == steps
                if validate or self.step % _LOG_EVERY == 0:
                    self._record(distance)
                    if validate:
                        self._validate()
                    show(self.step, distance, self.log.best)
        self.student.load_state_dict(self.best)
        self.log.seconds = time.monotonic() - started

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.student.state_dict().items()}

    def _update(self, rate: float) -> float:
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = rate
        noise = torch_generator(self.config.seed, _NOISE, self.step, device=self.contexts.device)
        context, n = self._batch(noise)
        begins = self.step < _SHOWN * (self.config.steps or 0)
        distance = (self._shown_gap if begins else self._path_gap)(context, n, noise).mean()
        distance.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip or math.inf)
        if not math.isfinite(distance.item() + norm.item()):
            raise FloatingPointError(
                f"distill: the distance or its gradient is not finite at step {self.step + 1}; a lower learning_rate "
                "or clip may help"
            )
        for optimiser in self.optimisers:
            optimiser.step()
        self.draws += n * len(context)
        return distance.item()

    def _shown_gap(self, context: Tensor, n: int, noise: Generator) -> Tensor:
        """log p - log q of the teacher's draws, (n, B)."""
        with torch.no_grad():
            z, log_p = self.master.draw(context, n, noise)
        return log_p - self.student.log_prob_given(z, context)

    def _path_gap(self, context: Tensor, n: int, noise: Generator) -> Tensor:
        """`gap`, with a gradient by way of the draws only.

        What is left out, the gradient of log q at a fixed draw, has mean zero and a variance that stays when student
        and teacher agree; without it the gradient's noise vanishes there (Roeder et al. 2017, arXiv 1703.09194;
        Vaitl et al. 2022, arXiv 2207.08219).
        """
        z = self.student.draw(context, n, noise)[0]
        with torch.no_grad():
            torch._foreach_copy_(list(self.still.transform.parameters()), self.parameters)
        return self.still.log_prob_given(z, context) - self.master.log_prob_given(z, context)

    def _batch(self, noise: Generator) -> tuple[Tensor, int]:
        """Contexts of a step, and draws for each."""
        size = self.config.batch or 1
        if len(self.contexts) <= size:
            return self.contexts, size // len(self.contexts)
        rows = torch.randint(len(self.contexts), (size,), generator=noise, device=noise.device)
        return self.contexts[rows], 1

    def _record(self, distance: float) -> None:
        self.log.step.append(self.step)
        self.log.loss.append(distance)
        self.log.rate.append(self.optimisers[0].param_groups[0]["lr"])

    @torch.no_grad()
    def _validate(self) -> None:
        """With the same noise every time."""
        noise = torch_generator(self.config.seed, _CHECK, device=self.held.device)
        count = max(_CHECKED // len(self.held), 1)
        distance = float(gap(self.student, self.master, self.held, count, noise).double().mean())
        self.waited = 0 if distance < self.log.best else self.waited + 1
        if distance < self.log.best:
            self.best = self._weights()
        self.log.validation_step.append(self.step)
        self.log.validation_loss.append(distance)
