"""Probability density distillation: a posterior that draws in one parallel pass, taught by one that does not.

No simulation is needed, only observations x. The student q is drawn from, and both densities of the draw are compared:

    KL(q || p) = E_x E_{z ~ q(z | x)} [log q(z | x) - log p(z | x)]        (p: the teacher)

(Parallel WaveNet, van den Oord et al. 2017, arXiv 1711.10433, eq. 4). Each side does what it does in one pass: an
inverse autoregressive student draws and knows the density of its own draws, a masked autoregressive teacher tells the
density of given points. The gradient follows the draws. The student reads the teacher's embedding of x as it is.

A student that leaves out one of the posterior's modes has a small KL(q || p), log 2 for one of two. So the other
direction, KL(p || q) over the teacher's draws, is what the first steps minimise (lesson.py), and both are measured
and kept with the model.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from sbiflow.families import FlowConfig
from sbiflow.flows import ConditionalFlow
from sbiflow.posterior import Posterior
from sbiflow.provenance import now, package_version
from sbiflow.seeding import torch_generator
from sbiflow.training.config import TrainConfig
from sbiflow.training.distance import FAR, Distillation, DistillationWarning, mean_and_error, measured
from sbiflow.training.lesson import Lesson
from sbiflow.transforms.composite import initialise

_SPLIT, _WEIGHTS = 0x64697374, 0x64697375  # random streams
_STEPS, _BATCH, _RATE, _VALIDATIONS = 2000, 512, 0.01, 20
_FEW = 20  # observations below which none is held out
_MEASURED, _DRAWS, _LEAST = (
    200,
    50_000,
    256,
)  # observations of the measurement, draws of all, and of each at least
_EMBEDDED = 4096  # observations at a time


def distill(
    teacher: Posterior,
    x: Any,
    config: TrainConfig | None = None,
    *,
    flow: FlowConfig | None = None,
    progress: bool = True,
) -> Posterior:
    """A posterior with the teacher's distribution whose draws, with their densities, are one parallel pass.

    It stands for the teacher where it was taught: at observations like those given. Its `info` says that and how far
    it is from the teacher (`Distillation.of(posterior)`); `info.validation_log_prob` is the mean of its log-density
    over the teacher's draws.

    Args:
        teacher: any flow with an exact density.
        x: observations (n, *x_shape), `draw_pairs(simulator, n, seed=...).x` for one; or a single one (*x_shape), for
            a student of that posterior alone. Of 20 and more a share is held out (`config.validation`, or a tenth).
        config: None for 2,000 steps of 512 draws at a rate of 0.01. One that does not say how many steps or how large
            a batch gets these; `lanes` and `compile` are for training from simulations only.
        flow: of the student; "iaf" of the teacher's size unless given. Start and structure are the teacher's.
        progress: show a bar.

    Raises:
        ValueError: x of another shape, NaN or infinite; a student whose draws carry no exact density, or with dropout.
        FloatingPointError: the distance or its gradient is not finite.

    Warns:
        DistillationWarning: either distance is above 0.05 nats.
    """
    if not isinstance(teacher, Posterior):
        raise ValueError(f"teacher: expected a Posterior, got {type(teacher).__name__}")
    config = _resolved(config or TrainConfig(learning_rate=_RATE, patience=None))
    batch, _ = teacher.observations(x)
    master = copy.deepcopy(teacher.flow).eval().requires_grad_(False)
    contexts = _embedded(master, batch.to(teacher.device, torch.float32))
    taught, held = _split(contexts, config)
    flow = _of_student(teacher, flow)
    student = _student(teacher, master, flow, taught, config.seed)
    lesson = Lesson(student, master, taught, (taught if held is None else held)[:_MEASURED], config)
    lesson.loop(progress)
    return _posterior(teacher, lesson, flow, 0 if held is None else len(lesson.held))


def _resolved(config: TrainConfig) -> TrainConfig:
    """With every None that matters here replaced."""
    if config.lanes is not None or config.compile:
        raise ValueError(
            f"distill: expected no lanes and no compilation, got {config.lanes} and {config.compile}"
        )
    steps = config.steps or _STEPS
    every = config.validate_every or max(steps // _VALIDATIONS, 1)
    return replace(config, steps=steps, batch=config.batch or _BATCH, validate_every=every)


@torch.no_grad()
def _embedded(flow: ConditionalFlow, x: Tensor) -> Tensor:
    """Contexts (n, C)."""
    return torch.cat([flow.embedding(part) for part in x.split(_EMBEDDED)])


def _split(contexts: Tensor, config: TrainConfig) -> tuple[Tensor, Tensor | None]:
    """Contexts to be taught at, and those held out, if there are enough."""
    if len(contexts) < _FEW:
        return contexts, None
    order = torch.randperm(len(contexts), generator=torch_generator(config.seed, _SPLIT))
    order = order.to(contexts.device)
    count = min(max(round((config.validation or 0.1) * len(contexts)), 1), len(contexts) - 1)
    return contexts[order[count:]], contexts[order[:count]]


def _of_student(teacher: Posterior, flow: FlowConfig | None) -> FlowConfig:
    own = teacher.flow_config
    flow = flow or replace(own, family="iaf", dropout=0.0)
    return replace(flow, start=own.start, structure=own.structure)


def _student(
    teacher: Posterior, master: ConditionalFlow, flow: FlowConfig, contexts: Tensor, seed: int
) -> ConditionalFlow:
    """Untrained, with the teacher's embedding and its guess."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch_generator(seed, _WEIGHTS).initial_seed()))
        student = ConditionalFlow(flow, teacher.embedding_config, master.periodic, teacher.x_shape)
    if student.is_random or not student.climbs_log_prob:
        raise ValueError(
            f"flow: expected one whose draws carry their exact density, and no dropout, got {flow.family!r} with "
            f"dropout {flow.dropout}"
        )
    student.embedding.load_state_dict(master.embedding.state_dict())
    for own, given in zip(student.whiten, master.whiten, strict=True):
        own.load_state_dict(given.state_dict())
    student = student.to(contexts.device).eval()
    if any(hasattr(part, "initialise") for part in student.transform.modules()):
        some = contexts[:_EMBEDDED]
        noise = torch_generator(seed, _WEIGHTS, device=contexts.device)
        with torch.no_grad():
            z = master.draw(some, max(_EMBEDDED // len(some), 1), noise)[0]
            initialise(student.transform, z.flatten(0, 1), some.repeat(len(z), 1))
    return student


def _posterior(teacher: Posterior, lesson: Lesson, flow: FlowConfig, held_out: int) -> Posterior:
    backward, forward, log_density = measured(
        lesson.student, lesson.master, lesson.held, teacher.prior, lesson.config.seed
    )
    kl, kl_error = mean_and_error(backward, held_out > 0)
    forward_kl, forward_error = mean_and_error(forward, held_out > 0)
    found = Distillation(
        teacher=teacher.flow_config.family, teacher_created=teacher.info.created,
        observations=len(lesson.contexts), held_out=held_out, draws=lesson.draws,
        kl=kl, kl_error=kl_error, forward_kl=forward_kl, forward_kl_error=forward_error,
        worst=float(torch.stack([backward.mean(0), forward.mean(0)]).max()),
    )  # fmt: skip
    told: tuple[str, ...] = ()
    if found.is_far:
        told = (f"the student is not the teacher: {found}; expected at most {FAR}",)
        advice = "Train for more steps, or give it more layers or another family"
        warnings.warn(f"{told[0]}. {advice}", DistillationWarning, stacklevel=3)
    info = replace(
        teacher.info, seed=lesson.config.seed, steps=lesson.step, validation_log_prob=log_density,
        training_seconds=lesson.log.seconds, training={**asdict(lesson.config), "distillation": asdict(found)},
        sbiflow_version=package_version(), created=now(), warnings=told,
        origin=f"distilled from a {found.teacher} flow trained on {teacher.info.simulations} simulations",
    )  # fmt: skip
    return Posterior(
        lesson.student, flow, teacher.embedding_config, teacher.prior, teacher.x_shape,
        copy.deepcopy(teacher.novelty), info, lesson.log,
    )  # fmt: skip
