"""Distillation: the student is the teacher, says how near, and says so when it is not.

The gates on KL are on means of some 50,000 draws at 200 observations; their standard errors, of which the tests make
sure, are a tenth of the gate, so that a student below half of it fails less than once in a million seeds.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from sbiflow import (
    Distillation,
    DistillationWarning,
    EmbeddingConfig,
    Ensemble,
    FlowConfig,
    Posterior,
    TrainConfig,
    distill,
    draw_pairs,
)
from sbiflow.flows import ConditionalFlow
from sbiflow.priors import Normal, PeriodicUniform, Prior, Uniform
from sbiflow.structure import Structure
from sbiflow.training.distance import mean_and_error
from sbiflow.transforms.inverse import Inverse
from tests.quick import quick_store, quick_train, same_weights
from tests.toys import LinearGaussian, normal_prior

EMBEDDING = EmbeddingConfig("residual", features=16, hidden=32, blocks=1)
MAF = FlowConfig("maf", layers=3, hidden=32, blocks=1)
TRAIN = TrainConfig(steps=300, batch=256, learning_rate=0.01, patience=None)
STUDENT = TrainConfig(steps=400, batch=256, learning_rate=0.02, patience=None, seed=5)
COUPLING = FlowConfig("spline_coupling", layers=2, hidden=24, blocks=1)
FLOOR = 0.02  # [nats], of issue 7
FEW = TrainConfig(steps=6, batch=64, validate_every=3, patience=None)


_POLAR, _TWICE = Prior(PeriodicUniform("phi"), Uniform("r", 0.5, 2.0)), Structure(turns=((0, 2),))


@dataclass(frozen=True)
class Bent:
    """x_i = theta_i + bend theta_{i-1}² + noise, around the circle: 5-D posteriors that no Gaussian describes."""

    bend: float = 0.25
    noise: float = 0.5
    dim: int = 5
    name: str = "bent"
    version: str = "1"

    @property
    def prior(self) -> Prior:
        return Prior(*(Normal(f"t{i}", 0.0, 1.0) for i in range(self.dim)))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def signal(self, theta: Tensor) -> Tensor:
        return theta + self.bend * theta.roll(1, -1) ** 2

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        return signal + self.noise * torch.randn(signal.shape, generator=generator, dtype=signal.dtype)


@dataclass(frozen=True)
class Turned:
    """A phase seen twice over, and a bounded length: structure and a periodic parameter."""

    prior: Prior = _POLAR
    x_shape: tuple[int, ...] = (2,)
    structure: Structure = _TWICE
    name: str = "turned"
    version: str = "1"

    def signal(self, theta: Tensor) -> Tensor:
        angle = 2 * theta[:, 0]
        return theta[:, 1:] * torch.stack([torch.cos(angle), torch.sin(angle)], -1)

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        return signal + 0.5 * torch.randn(signal.shape, generator=generator, dtype=signal.dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distill")


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Posterior:
    store = quick_store(folder / "bent.h5", Bent(), 10_000)
    return quick_train(store, Bent(), TRAIN, flow=MAF, embedding=EMBEDDING)


@pytest.fixture(scope="module")
def student(teacher: Posterior) -> Posterior:
    return distill(teacher, draw_pairs(Bent(), 2000, seed=2).x, STUDENT, progress=False)


@pytest.fixture(scope="module")
def turned(folder: Path) -> Posterior:
    store = quick_store(folder / "turned.h5", Turned(), 2000)
    return quick_train(store, Turned(), replace(TRAIN, steps=150), flow=replace(MAF, layers=2))


def test_a_student_of_a_five_dimensional_maf_is_its_teacher(student: Posterior) -> None:
    found = Distillation.of(student)
    assert student.flow_config.family == "iaf"
    assert isinstance(student.flow.transform.transforms[-1], Inverse)
    assert found.kl_error < FLOOR / 10 and found.forward_kl_error < FLOOR / 10
    assert found.kl < FLOOR and found.forward_kl < FLOOR
    assert not found.is_far and found.worst >= max(found.kl, found.forward_kl)


def test_the_distances_are_those_of_fresh_draws(teacher: Posterior, student: Posterior) -> None:
    """By the public interface, at other observations: in physical units, where KL is the same."""
    x = draw_pairs(Bent(), 100, seed=77).x
    dice = torch.Generator().manual_seed(3)
    found = Distillation.of(student)
    for one, other, told, error in (
        (student, teacher, found.kl, found.kl_error),
        (teacher, student, found.forward_kl, found.forward_kl_error),
    ):
        theta, log_q = one.sample_and_log_prob(x, 200, dice)
        mean, own = mean_and_error(log_q - other.log_prob_of_draws(theta, x), sampled=True)
        assert abs(mean - told) < 5 * math.hypot(own, error)  # one false alarm in two million


def test_what_a_model_says_of_its_distillation(teacher: Posterior, student: Posterior) -> None:
    found = Distillation.of(student)
    assert (found.teacher, found.teacher_created) == ("maf", teacher.info.created)
    assert (found.observations, found.held_out) == (1800, 200)
    assert found.draws == 400 * 256 and student.info.steps == 400 and student.info.seed == 5
    assert student.info.simulator == "bent" and student.info.simulations == 10_000
    x = draw_pairs(Bent(), 200, seed=78).x
    theta, _ = teacher.sample_and_log_prob(x, 100, torch.Generator().manual_seed(1))
    log_q = student.log_prob_of_draws(theta, x)
    error = mean_and_error(log_q, sampled=True)[1]
    assert abs(student.info.validation_log_prob - float(log_q.mean())) < 5 * math.sqrt(2) * error
    with pytest.raises(ValueError, match="got one from simulations"):
        Distillation.of(teacher)


def test_a_student_is_saved_and_loaded(student: Posterior, tmp_path: Path) -> None:
    student.save(tmp_path / "student")
    other = Posterior.load(tmp_path / "student")
    assert same_weights(student, other) and Distillation.of(other) == Distillation.of(student)
    x = draw_pairs(Bent(), 1, seed=4).x[0]
    one, same = student.sample(x, 50, seed=1), other.sample(x, 50, seed=1)
    assert torch.equal(one.theta, same.theta) and torch.equal(one.log_q, same.log_q)
    torch.testing.assert_close(other.log_prob(one.theta, x), one.log_q, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "student" / "training.csv").read_text().count("\n") > 10


def test_the_student_sees_what_the_teacher_sees(teacher: Posterior, student: Posterior) -> None:
    """The same embedding and guess, as copies."""
    x = torch.randn(7, 5)
    assert torch.equal(student.flow.embedding(x), teacher.flow.embedding(x))
    assert torch.equal(student.flow.whiten[0].factor, teacher.flow.whiten[0].factor)
    assert not any(
        a.data_ptr() == b.data_ptr()
        for a, b in zip(student.flow.embedding.parameters(), teacher.flow.embedding.parameters(), strict=True)
    )
    assert torch.equal(student.novelty_check(x).p_value, teacher.novelty_check(x).p_value)


def test_a_seed_fixes_a_student(teacher: Posterior) -> None:
    x = draw_pairs(Bent(), 30, seed=2).x
    with pytest.warns(DistillationWarning):
        one, same, other = (
            distill(teacher, x, replace(FEW, seed=seed), progress=False) for seed in (1, 1, 2)
        )
    assert same_weights(one, same) and not same_weights(one, other)
    assert Distillation.of(one) == Distillation.of(same)
    assert (Distillation.of(one).observations, Distillation.of(one).held_out) == (27, 3)


def test_a_student_that_is_far_away_says_so(teacher: Posterior, tmp_path: Path) -> None:
    """When it is made, and with every set of its draws, after it has been saved and loaded too."""
    x = draw_pairs(Bent(), 40, seed=2).x
    with pytest.warns(DistillationWarning, match=r"not the teacher: KL\(student .*expected at most 0.05"):
        student = distill(teacher, x, FEW, progress=False)
    found = Distillation.of(student)
    student.save(tmp_path)
    for own in (student, Posterior.load(tmp_path)):
        draws = own.sample(x[0], 10, seed=1)
        assert any("not the teacher" in text for text in draws.warnings)
        assert "distilled from a maf" in draws.source
    assert (
        found.is_far
        and replace(found, kl=math.nan).is_far
        and not replace(found, kl=0.0, forward_kl=0.0).is_far
    )


def test_one_observation_is_enough_for_a_student_of_its_posterior(teacher: Posterior) -> None:
    x = draw_pairs(Bent(), 1, seed=9).x[0]
    found = Distillation.of(distill(teacher, x, replace(STUDENT, steps=100), progress=False))
    assert (found.observations, found.held_out) == (1, 0)
    assert found.kl_error < FLOOR / 10 and found.kl < FLOOR and found.forward_kl < FLOOR


@pytest.mark.filterwarnings("ignore::sbiflow.training.distance.DistillationWarning")
@pytest.mark.parametrize(
    "flow", [None, pytest.param(COUPLING, marks=pytest.mark.slow)], ids=("iaf", "coupling")
)
def test_phases_bounds_and_symmetries_are_the_teachers(turned: Posterior, flow: FlowConfig | None) -> None:
    """And a student of another family: both sides of a coupling flow are one pass. An untrained one is 2 nats away."""
    x, config = draw_pairs(Turned(), 300, seed=2).x, replace(STUDENT, steps=250, learning_rate=0.01)
    student = distill(turned, x, config, flow=flow, progress=False)
    assert student.flow_config.structure == Turned().structure
    found = Distillation.of(student)
    assert found.kl < 0.1 and found.forward_kl < 0.1
    draws = student.sample(draw_pairs(Turned(), 1, seed=3).x[0], 4000, seed=1).theta
    copies = (draws[:, 0] > math.pi).double().mean()
    assert abs(float(copies) - 0.5) < 5 * 0.5 / math.sqrt(4000)


def test_a_linear_gaussian_teacher_is_its_own_student(folder: Path) -> None:
    """The regression start is the posterior already, and the student takes it over."""
    dice = torch.Generator().manual_seed(5)
    matrix = torch.randn(6, 5, generator=dice, dtype=torch.float64).tolist()
    toy = LinearGaussian(tuple(map(tuple, matrix)), 0.5, normal_prior((0.0,) * 5, (1.0,) * 5))
    store = quick_store(folder / "gaussian.h5", toy, 5000)
    linear = quick_train(store, toy, replace(TRAIN, steps=60), flow=MAF, embedding=EMBEDDING)
    student = distill(linear, draw_pairs(toy, 500, seed=2).x, replace(STUDENT, steps=60), progress=False)
    found = Distillation.of(student)
    assert found.kl < 0.005 and found.forward_kl < 0.005
    theta, x, _ = draw_pairs(toy, 2000, seed=3)
    gap = toy.exact_proposal().log_prob(theta, x) - student.log_prob(theta, x)
    assert float(gap.mean()) < 0.125  # as the families' contract: 0.025 nats for each parameter


@pytest.mark.parametrize("sampled", [True, False])
def test_the_error_of_a_mean(sampled: bool) -> None:
    """Over observations that are a sample, and over draws at observations that are given: the scatter of 400 repeats,
    which is known to 3.5 %."""
    dice = torch.Generator().manual_seed(1)
    own = torch.linspace(-1, 1, 30, dtype=torch.float64)  # of each observation
    found = []
    for _ in range(400):
        means = own[torch.randint(30, (30,), generator=dice)] if sampled else own
        noise = torch.randn(20, 30, generator=dice, dtype=torch.float64)
        found.append(mean_and_error(means + noise, sampled))
    means, errors = torch.tensor(found, dtype=torch.float64).T
    assert float(means.std()) == pytest.approx(float(errors.mean()), rel=0.15)


def test_what_cannot_be_distilled_is_refused(teacher: Posterior) -> None:
    x = draw_pairs(Bent(), 3, seed=1).x
    with pytest.raises(ValueError, match="expected a Posterior, got Ensemble"):
        distill(Ensemble((teacher,), (1.0,)), x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected no lanes and no compilation, got 2 and None"):
        distill(teacher, x, TrainConfig(lanes=2))
    with pytest.raises(ValueError, match="got 'iaf' with dropout"):
        distill(teacher, x, flow=FlowConfig("iaf", dropout=0.1))
    with pytest.raises(ValueError, match="x"):
        distill(teacher, x[:, :3])
    with pytest.raises(ValueError, match="finite"):
        distill(teacher, x * math.nan)


def test_a_distance_that_is_not_finite_stops_the_run(teacher: Posterior) -> None:
    broken = replace(teacher, flow=_with_nan(teacher))
    with pytest.raises(FloatingPointError, match="not finite at step 1"):
        distill(broken, draw_pairs(Bent(), 3, seed=1).x, FEW, progress=False)


def _with_nan(teacher: Posterior) -> ConditionalFlow:
    """The teacher's flow with a density that is not a number."""
    flow = copy.deepcopy(teacher.flow)
    next(flow.transform.parameters()).data.fill_(math.nan)
    return flow


def test_info_is_plain_data(student: Posterior) -> None:
    assert student.info.training["distillation"] == asdict(Distillation.of(student))
    assert student.info.training["steps"] == 400
