"""How far a distilled posterior is from its teacher: both directions of KL, measured and kept with the model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbiflow.flows import ConditionalFlow
from sbiflow.posterior import Posterior
from sbiflow.priors import Prior
from sbiflow.seeding import torch_generator
from sbiflow.training.lesson import gap

FAR = 0.05  # [nats] from the teacher, in either direction: beyond, a warning
_MEASURE = 0x64697378  # random stream
_DRAWS, _LEAST = 50_000, 256  # for all observations, and for each at least
_ROWS = 4096  # draws at a time


class DistillationWarning(UserWarning):
    """The student is not the teacher."""


@dataclass(frozen=True)
class Distillation:
    """Where a distilled posterior comes from, and how far it is from there.

    Attributes:
        teacher: family of the teacher's flow; simulator and simulations are the model's own entries.
        teacher_created: when the teacher was made.
        observations: that the student was trained at.
        held_out: further ones that the distances were measured at; 0 if there were too few to hold any out, and
            then they are distances at the training's observations.
        draws: of teacher and student, in all of training.
        kl, kl_error: KL(student || teacher) [nats], mean over observations, and its standard error.
        forward_kl, forward_kl_error: KL(teacher || student).
        worst: the largest of both distances at a single observation, from a few hundred draws.
    """

    teacher: str
    teacher_created: str
    observations: int
    held_out: int
    draws: int
    kl: float
    kl_error: float
    forward_kl: float
    forward_kl_error: float
    worst: float

    @classmethod
    def of(cls, posterior: Posterior) -> Distillation:
        """Of a distilled posterior, loaded or fresh.

        Raises:
            ValueError: the posterior was not distilled.
        """
        found = posterior.info.training.get("distillation")
        if found is None:
            raise ValueError(
                "distillation: expected a posterior that `distill` made, got one from simulations"
            )
        return cls(**found)

    @property
    def is_far(self) -> bool:
        """Whether either distance is above `FAR`, or not a number."""
        return not max(self.kl, self.forward_kl) <= FAR

    def __str__(self) -> str:
        return (
            f"KL(student || teacher) {self.kl:.4f} ± {self.kl_error:.4f}, "
            f"KL(teacher || student) {self.forward_kl:.4f} ± {self.forward_kl_error:.4f} nats"
        )


@torch.no_grad()
def measured(
    student: ConditionalFlow, master: ConditionalFlow, context: Tensor, prior: Prior, seed: int
) -> tuple[Tensor, Tensor, float]:
    """What `Distillation` is made from.

    Returns:
        log q - log p of the student's draws and log p - log q of the teacher's, (n, B) each, float64, for contexts
        (B, C); and the mean of log q of the teacher's draws in physical units.
    """
    noise = torch_generator(seed, _MEASURE, device=context.device)
    count = max(_DRAWS // len(context), _LEAST)
    rows = max(_ROWS // len(context), 1)
    backward, forward, log_density = [], [], []
    for start in range(0, count, rows):
        n = min(rows, count - start)
        backward.append(gap(student, master, context, n, noise).double())
        z, log_p = master.draw(context, n, noise)
        log_q = student.log_prob_given(z, context)
        forward.append((log_p - log_q).double())
        log_jacobian = prior.constrain(z.cpu().double().flatten(0, 1))[1]
        log_density.append(log_q.cpu().double().flatten() - log_jacobian)
    return torch.cat(backward), torch.cat(forward), float(torch.cat(log_density).mean())


def mean_and_error(values: Tensor, sampled: bool) -> tuple[float, float]:
    """Mean of (n, B) and its standard error: over observations that were `sampled`, or over the draws at given ones."""
    n, count = values.shape
    if sampled and count > 1:
        return float(values.mean()), float(values.mean(0).std() / math.sqrt(count))
    return float(values.mean()), float((values.var(0) / n).sum().sqrt() / count)
