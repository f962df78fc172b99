"""Flow matching: velocity, divergence and objective against closed forms, and the posteriors trained with it."""

from __future__ import annotations

import copy
import csv
import math
from dataclasses import replace

import pytest
import torch
from torchdiffeq import odeint

from sbiflow import FlowConfig, Posterior, TrainConfig, train
from sbiflow.calibration.c2st import c2st
from sbiflow.training.data import load_training_data
from sbiflow.training.loop import Training
from sbiflow.training.run import observed
from sbiflow.transforms.bounded import wrap
from sbiflow.transforms.vector_field import VectorField
from simulators.benchmark import task
from tests.quick import CONFIG, FLOW, quick_store, quick_train, same_weights
from tests.test_flows import make_flow, observations
from tests.toys import LinearGaussian
from tests.transforms.case import randomise

TOY, MATCHING = LinearGaussian(), replace(FLOW, family="flow_matching")


def field(dim: int = 3, periodic: tuple[int, ...] = (), scale: float = 1.0, **options) -> VectorField:
    torch.manual_seed(0)
    made = VectorField(dim, 2, 12, 2, periodic, **options)
    return randomise(made, scale, seed=1).double()


def draws(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the velocity


@pytest.mark.parametrize("periodic", [(), (1,), (0, 2)], ids=str)
def test_velocity_and_divergence(periodic):
    """The value against the network's own pass, the divergence against autograd."""
    own, point, angle, context = (
        field(periodic=periodic).velocity,
        draws(5, 3),
        draws(5).sigmoid(),
        draws(5, 2, seed=4),
    )
    state = torch.cat([point, point.new_full((5, 1), 7.0)], 1)
    for given in (context, context[:1]):
        found = own.given(given)(angle, state, torch.arange(5))
        expected = own(angle, point, given)
        torch.testing.assert_close(found[:, :3], expected, rtol=1e-12, atol=1e-12)
        for i in range(5):
            each = given[i] if len(given) > 1 else given[0]
            matrix = torch.autograd.functional.jacobian(lambda y, i=i, c=each: own(angle[i], y, c), point[i])
            torch.testing.assert_close(found[i, 3], matrix.trace(), rtol=1e-11, atol=1e-11)


def test_a_new_field_is_the_identity_to_the_bit():
    new, z, context = VectorField(4, 2, 8, 3, (1,)), torch.randn(6, 4).clamp(-3, 3), torch.randn(6, 2)
    for way in (new.forward, new.inverse):
        outputs, logdet = way(z, context)
        torch.testing.assert_close(outputs, z, rtol=0, atol=1e-6)  # a phase is wrapped, which rounds
        assert torch.equal(outputs[:, [0, 2, 3]], z[:, [0, 2, 3]]) and not logdet.any()


@torch.no_grad()
def test_it_is_the_flow_of_the_straight_lines():
    """The same field as a velocity of x_t = (1 - t) e + t z, through torchdiffeq: with s = |(1 - t, t)| it is
    s'/s x + u(x / s) / s. Its end is ours."""
    own, e, context = field(), draws(6, 3), draws(6, 2, seed=4)

    def straight(t, x):
        s, rise = torch.hypot(1 - t, t), (2 * t - 1) / (1 - 2 * t + 2 * t * t)
        return rise * x + own.velocity(torch.atan2(t, 1 - t).expand(6), x / s, context) / s

    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    expected = odeint(straight, e, times, rtol=1e-11, atol=1e-11, method="dopri8")[-1]
    torch.testing.assert_close(own.inverse(e, context)[0], expected, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_round_trip_in_ten_digits_less_two():
    for periodic in ((), (1,)):
        own, e, context = field(periodic=periodic), draws(50, 3).clamp(-3, 3), draws(50, 2, seed=4)
        z, up = own.inverse(e, context)
        back, down = own.forward(z, context)
        assert wrap(back - e).abs().max() < 1e-8 and (up + down).abs().max() < 1e-8
        assert 0 < own.work.mean <= own.work.most < 600


# --- the objective


@pytest.mark.parametrize("periodic, expected", [((), 1.5), ((0, 1, 2), 2.0)], ids=["real", "phases"])
def test_the_objective_of_no_velocity(periodic, expected):
    """z standard normal: E |cos z - sin e|² / 2 = D / 2; phases: E way² (2 / pi)² / 2 = (pi² / 3)(2 / pi)² / 2 = 2 / 3
    each. Within five standard errors: false alarms 6e-7."""
    own, z = VectorField(3, 0, 8, 1, periodic).double(), draws(20_000, 3)
    torch.manual_seed(1)
    loss = -own.objective(z).detach()
    assert loss.shape == (20_000,)
    assert float(loss.mean()) == pytest.approx(expected, abs=5 * float(loss.std()) / math.sqrt(20_000))


def test_the_objective_is_random_and_of_any_shape():
    own, z, context = field(), draws(4, 6, 3), draws(6, 2, seed=4)
    torch.manual_seed(1)
    first = own.objective(z, context)
    assert first.shape == (4, 6) and not torch.equal(first, own.objective(z, context))
    torch.manual_seed(1)
    assert torch.equal(first, own.objective(z, context))
    assert own.objective(z[:0], context).shape == (0, 6)


# --- posteriors


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return quick_store(tmp_path_factory.mktemp("matching") / "s.h5", TOY)


@pytest.fixture(scope="module")
def posterior(store):
    return quick_train(store, TOY, flow=MATCHING)


def test_the_log_says_that_its_loss_is_no_log_density(store, posterior, tmp_path):
    posterior.save(tmp_path)
    assert not posterior.log.is_log_prob
    (axis, *_) = posterior.log.figure().axes
    assert "not" in axis.get_ylabel() and "nats" not in axis.get_ylabel()
    header, *_ = csv.reader((tmp_path / "training.csv").read_text().splitlines())
    assert header == ["step", "loss", "validation_loss", "learning_rate"]


def test_the_recorded_log_density_is_that_of_the_validation_rows(store, posterior):
    config = CONFIG.resolved(store.n_ok)
    data = load_training_data(store, TOY.prior, config.validation, config.seed, torch.device("cpu"))
    z, x = observed(TOY, data.validation, config.seed)
    expected = posterior.log_prob(TOY.prior.constrain(z.double())[0], x).mean()
    assert posterior.info.validation_log_prob == pytest.approx(float(expected), abs=1e-4)


def test_a_run_that_was_cut_off_ends_with_the_same_weights(store, posterior, tmp_path, monkeypatch):
    update = Training._update

    def until_25(self, rate):
        if self.step == 25:
            raise RuntimeError("cut off")
        return update(self, rate)

    options = {"flow": MATCHING, "checkpoint": tmp_path / "c", "checkpoint_every": 10}
    monkeypatch.setattr(Training, "_update", until_25)
    with pytest.raises(RuntimeError, match="cut off"):
        quick_train(store, TOY, **options)
    monkeypatch.setattr(Training, "_update", update)
    again = quick_train(store, TOY, **options)
    assert same_weights(again, posterior) and again.log.validation_loss == posterior.log.validation_loss


def test_saved_and_loaded(posterior, tmp_path):
    posterior.save(tmp_path)
    other, x = Posterior.load(tmp_path), torch.zeros(3)
    one, two = posterior.sample(x, 50, seed=4), other.sample(x, 50, seed=4)
    assert torch.equal(one.theta, two.theta) and torch.equal(one.log_q, two.log_q)


@torch.no_grad()
def test_draws_do_not_depend_on_their_company():
    """Ten digits whether an observation, or a draw, is alone or among many, and whatever is cut into parts."""
    flow, x = make_flow("flow_matching", (False, True, False)), observations(12)
    z, log_q = flow.sample_and_log_prob(x, 8, torch.Generator().manual_seed(2))
    context = flow.embedding(x)
    for i in (0, 11):
        again = flow.log_prob_given(z[:, i], context[i])
        torch.testing.assert_close(again, log_q[:, i], rtol=1e-8, atol=1e-8)
    base, _ = flow.transform(z[:2, :3], context[:3])
    torch.testing.assert_close(
        flow.transform.inverse(base, context[:3])[1], -flow.transform(z, context)[1][:2, :3]
    )


def test_float32_densities_agree_with_float64(posterior):
    """Within 3e-4 nats, of log-densities that spread over several."""
    x = TOY.observe(TOY.signal(TOY.prior.sample(20)), torch.Generator().manual_seed(1))
    found = posterior.sample(x, 20, seed=1)
    flow = copy.deepcopy(posterior.flow).double()
    z, log_jacobian = posterior.prior.unconstrain(found.theta.reshape(400, -1))
    with torch.no_grad():
        exact = flow.log_prob(z.view(20, 20, -1), x.double()) + log_jacobian.view(20, 20)
    assert float((found.log_q - exact).abs().max()) < 3e-4


@pytest.mark.slow
def test_two_moons_against_the_reference(tmp_path):
    """10,000 simulations; C2ST of 2,000 draws against exact ones, mean of three observations."""
    simulator = task("two_moons")
    store = quick_store(tmp_path / "moons.h5", simulator, 10_000)
    posterior = train(
        store, simulator, TrainConfig(patience=None), flow=FlowConfig("flow_matching"), progress=False
    )
    theta = simulator.prior.sample(3, torch.Generator().manual_seed(5))
    x = simulator.observe(simulator.signal(theta), torch.Generator().manual_seed(6))
    found = []
    for i, one in enumerate(x):
        exact, drawn = simulator.reference(one, 2000, seed=i), posterior.sample(one, 2000, seed=i).theta
        found.append(c2st(exact, drawn, seed=i).accuracy)
    assert sum(found) / 3 < 0.6
