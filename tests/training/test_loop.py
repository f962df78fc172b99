import os
import re
import signal
import threading
from dataclasses import dataclass, field, replace

import h5py
import numpy as np
import pytest
import torch

from sbiflow import EmbeddingConfig, TrainConfig, simulator_from_function
from sbiflow.priors import Normal, Prior, Uniform
from sbiflow.training.checkpoint import Checkpoint, load_tensors
from sbiflow.training.data import load_training_data
from sbiflow.training.interrupt import deferred_interrupt
from sbiflow.training.loop import Training
from sbiflow.training.optimiser import Muon
from sbiflow.training.run import _build, observed
from tests.quick import CONFIG, EMBEDDING, FLOW, quick_store, quick_train, same_weights
from tests.toys import LinearGaussian, normal_prior

TOY = LinearGaussian()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return quick_store(tmp_path_factory.mktemp("loop") / "s.h5", TOY)


@pytest.fixture(scope="module")
def posterior(store):
    return quick_train(store, TOY)


def training(store, config=CONFIG, simulator=TOY):
    """The state of a run before its first step."""
    config = config.resolved(store.n_ok)
    data = load_training_data(store, simulator.prior, config.validation, config.seed, torch.device("cpu"))
    fit = observed(simulator, data.some(10**6), config.seed)
    valid = observed(simulator, data.validation, config.seed)
    model = _build(simulator, FLOW, EMBEDDING, config.seed, fit, data.some(10**6))
    return Training(model, data, valid, simulator, config)


# --- what a run depends on


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(store, posterior):
    torch.manual_seed(99)  # the global generator has no part in it, and is left as it was
    state = torch.get_rng_state()
    assert same_weights(quick_train(store, TOY), posterior)
    assert torch.get_rng_state().equal(state)
    assert not same_weights(quick_train(store, TOY, replace(CONFIG, seed=1)), posterior)


def test_a_seed_longer_than_64_bits(store):
    first, second = (
        quick_train(store, TOY, replace(CONFIG, steps=2, seed=seed)) for seed in (2**70, 2**70 + 1)
    )
    assert not same_weights(first, second)


def test_noise_differs_between_batches_and_validation_noise_does_not(tmp_path):
    noise = []

    @dataclass(frozen=True)
    class Recording(LinearGaussian):
        def observe(self, signal, generator=None):
            x = super().observe(signal, generator)
            noise.append(x - signal)
            return x

    store = quick_store(tmp_path / "s.h5", Recording(), 100)
    run = training(store, replace(CONFIG, batch=10**6), Recording())
    noise.clear()
    batches = [run._batch(step)[1] for step in (0, 1, 0)]
    assert [len(x) for x in batches] == [85, 85, 85]
    assert noise[0].equal(noise[2]) and batches[0].equal(batches[2])  # a function of seed and step
    assert not noise[0].equal(noise[1])
    assert abs(torch.corrcoef(torch.stack([noise[0].flatten(), noise[1].flatten()]))[0, 1]) < 0.3
    noise.clear()
    run._validate()
    assert noise == []


def test_the_log_and_the_info_say_what_was_done(store, posterior):
    log, info = posterior.log, posterior.info
    assert log.validation_step == [0, 10, 20, 30, 40] and log.step == [10, 20, 30, 40]
    assert log.rate[0] == pytest.approx(CONFIG.learning_rate, rel=0.2) and log.rate[-1] < 1e-4
    assert (info.steps, info.seed, info.simulations, info.failed_simulations) == (40, 0, 600, 0)
    assert info.simulator == "linear-gaussian" and info.training["batch"] == 64
    assert 0 < info.training_seconds < 60
    # physical units: the same density, seen in theta instead of z
    run = training(store)
    theta = TOY.prior.constrain(run.validation.z.double())[0]
    expected = posterior.log_prob(theta, run.validation.x).mean()
    assert info.validation_log_prob == pytest.approx(float(expected), abs=1e-4)


# --- the budget


def test_early_stopping_returns_the_best_weights(tmp_path):
    store = quick_store(tmp_path / "s.h5", TOY, 60)
    still = replace(TOY, noise_sd=1e-3)  # few rows and next to no noise: it soon overfits
    config = TrainConfig(
        steps=4000, batch=32, learning_rate=0.03, validation=0.5, validate_every=10, patience=4
    )
    posterior = quick_train(store, still, config, flow=replace(FLOW, start="prior"))
    losses = posterior.log.validation_loss
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 4 and posterior.info.steps == 10 * (len(losses) - 1) < 4000
    assert losses[-1] > losses[best] + 0.1
    run = training(store, config, still)
    with torch.no_grad():
        loss = -posterior.flow.log_prob(run.validation.z, run.validation.x).double().mean()
    assert float(loss) == pytest.approx(losses[best], abs=1e-5)


def test_without_patience_the_whole_budget_is_used(tmp_path):
    store = quick_store(tmp_path / "s.h5", TOY, 60)
    config = TrainConfig(steps=150, batch=32, learning_rate=0.03, validate_every=10, patience=None)
    posterior = quick_train(store, replace(TOY, noise_sd=1e-3), config)
    assert posterior.info.steps == 150 and len(posterior.log.validation_step) == 16
    assert posterior.log.best == min(posterior.log.validation_loss)


def test_a_run_shorter_than_its_validation_interval_is_validated_at_the_end(store):
    log = quick_train(store, TOY, TrainConfig(steps=3, batch=32, validate_every=100)).log
    assert log.validation_step == [0, 3]


def test_clipping_bounds_the_gradient(store):
    for clip in (1e-3, None):
        run = training(store, replace(CONFIG, clip=clip))
        run._update(0.01)
        norm = torch.nn.utils.get_total_norm([p.grad for p in run.model.parameters() if p.grad is not None])
        assert (norm <= 1e-3 * 1.001) == (clip is not None)


# --- Ctrl-C


@pytest.fixture
def ctrl_c_in_step(monkeypatch):
    """Send SIGINT in the middle of a step, between the updates of the two optimisers."""

    def arrange(steps):
        real, count = Muon.step, iter(range(1, 10**9))

        def step(self, closure=None):
            real(self)
            if next(count) in steps:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(Muon, "step", step)

    return arrange


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(
    store, posterior, tmp_path, capsys, ctrl_c_in_step
):
    file = tmp_path / "c"
    ctrl_c_in_step({17})
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 17 of 40"):
        quick_train(store, TOY, checkpoint=file)
    assert f"stopped at step 17 of 40: run the same again to go on from {file}" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler
    assert load_tensors(file)[1]["state"]["step"] == 17
    assert same_weights(quick_train(store, TOY, checkpoint=file), posterior)


def test_ctrl_c_without_a_checkpoint_says_that_nothing_is_kept(store, capsys, ctrl_c_in_step):
    ctrl_c_in_step({3})
    with pytest.raises(KeyboardInterrupt):
        quick_train(store, TOY)
    assert "stopped at step 3 of 40: nothing is kept (give a checkpoint file" in capsys.readouterr().err


def test_a_second_ctrl_c_does_not_wait_and_leaves_the_former_checkpoint(
    store, posterior, tmp_path, monkeypatch
):
    def impatient(self, closure=None):
        if self.param_groups[0]["lr"] != 0 and next(count) == 17:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        real(self)

    real, count = Muon.step, iter(range(10**9))
    monkeypatch.setattr(Muon, "step", impatient)
    with pytest.raises(KeyboardInterrupt):
        quick_train(store, TOY, checkpoint=tmp_path / "c", checkpoint_every=5)
    assert load_tensors(tmp_path / "c")[1]["state"]["step"] == 15
    assert same_weights(quick_train(store, TOY, checkpoint=tmp_path / "c", checkpoint_every=5), posterior)


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_interrupt() as interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            assert not interrupted()
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_in_another_thread(store, posterior):
    found = []
    thread = threading.Thread(target=lambda: found.append(quick_train(store, TOY)))
    thread.start()
    thread.join()
    assert same_weights(found[0], posterior)


# --- numbers that are not finite


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_a_bad_signal_in_the_store_is_refused_before_any_work(tmp_path, value):
    store = quick_store(tmp_path / "s.h5", TOY, dtype="float64")
    with h5py.File(store.path, "r+") as file:
        file["signal"][[7, 400], 1] = value
    with pytest.raises(ValueError, match=r"expected finite signals, got NaN or inf in 2 rows: \[7, 400\]"):
        quick_train(store, TOY)


@dataclass(frozen=True)
class Glitch(LinearGaussian):
    """Noise that is NaN for one row of one batch."""

    at: int = 0
    calls: list = field(default_factory=list)
    hit: list = field(default_factory=list)

    def observe(self, signal, generator=None):
        x = super().observe(signal, generator)
        self.calls.append(len(signal))
        if len(self.calls) in (self.at, self.at + 1):  # the batch, and once more when the rows are looked for
            x[5, 1] = torch.nan
            self.hit.append(signal[5].clone())
        return x


def test_a_nan_stops_with_the_step_and_the_row_and_the_checkpoint_stays_good(store, posterior, tmp_path):
    before_the_loop = 3  # the fits, the validation part, and what identifies the noise
    glitch = Glitch(at=before_the_loop + 23)
    file = tmp_path / "c"
    with pytest.raises(FloatingPointError) as error:
        quick_train(store, glitch, checkpoint=file, checkpoint_every=10)
    row = np.flatnonzero((store.signal() == glitch.hit[0].numpy()).all(1)).tolist()
    text = str(error.value)
    assert f"not finite at step 23 of 40; 1 rows are to blame (of the store: {row})" in text
    assert f"the last good state is in {file}" in text and "\n" not in text
    tensors, meta = load_tensors(file)
    assert meta["state"]["step"] == 20
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())
    assert same_weights(quick_train(store, TOY, checkpoint=file, checkpoint_every=10), posterior)


def test_nan_without_a_checkpoint(store):
    with pytest.raises(
        FloatingPointError, match=r"at step 1 of 40; 1 rows are to blame .*; nothing was kept"
    ):
        quick_train(store, Glitch(at=3))


def test_noise_that_is_not_finite_from_the_start_is_refused(store):
    with pytest.raises(ValueError, match="observe: expected finite values, got NaN or inf in 1 rows"):
        quick_train(store, Glitch(at=1))


@pytest.mark.parametrize("optimiser", ["muon", "adam"])
def test_an_exploding_learning_rate_stops_and_no_bad_weights_are_kept(store, tmp_path, optimiser):
    config = replace(CONFIG, learning_rate=1e30, optimiser=optimiser)
    with pytest.raises(FloatingPointError, match=r"at step [23] of 40; 64 rows are to blame") as error:
        quick_train(store, TOY, config, checkpoint=tmp_path / "c", checkpoint_every=1)
    tensors, meta = load_tensors(tmp_path / "c")
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())
    assert f"at step {meta['state']['step'] + 1} of" in str(error.value)


def test_a_gradient_that_overflows_stops_before_the_weights_are_touched(store):
    run = training(store)
    run._update(0.01)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    next(run.model.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(FloatingPointError, match=r"loss or its gradient .* no single row is to blame"):
        run._update(0.01)
    after = run.model.state_dict()
    assert all(after[name].equal(value) for name, value in before.items())


def test_a_validation_loss_that_is_not_finite_stops(store):
    run = training(store)
    run.validation.x[4] = torch.nan
    row = int(run.data.rows_validation[4])
    match = rf"validation loss is not finite at step 0 of 40; 1 rows are to blame \(of the store: \[{row}\]\)"
    with pytest.raises(FloatingPointError, match=match):
        run.loop(progress=False)


def test_weights_that_are_not_finite_are_never_saved(store, tmp_path):
    run = training(store)
    run.step, run.checkpoint = 1, Checkpoint(tmp_path / "c", 1, {"run": 1})
    run.save()
    before = (tmp_path / "c").read_bytes()
    with torch.no_grad():
        next(run.model.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError):
        run.save()
    assert (tmp_path / "c").read_bytes() == before


# --- what is refused


@pytest.mark.parametrize(
    "simulator, message",
    [
        (
            LinearGaussian(prior=normal_prior((0.5, -1.0), (1.0, 3.0))),
            r"prior\[1\]: expected .*3\.0.*got .*2\.0",
        ),
        (LinearGaussian(name="other"), "simulator: expected other, got linear-gaussian"),
        (LinearGaussian(version="2"), "version: expected 2, got 1"),
        (LinearGaussian(matrix=((1.0, 0.5),)), r"x_shape: expected \(1,\), got \(3,\)"),
    ],
)
def test_a_store_of_another_simulator_is_refused(store, simulator, message):
    with pytest.raises(ValueError, match=rf"s\.h5: a store of another simulator or prior: {message}"):
        quick_train(store, simulator)


def test_other_noise_needs_no_other_store(store, posterior):
    assert not same_weights(quick_train(store, replace(TOY, noise_sd=0.6)), posterior)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: x[:, :2], r"simulator\.observe: expected shape \(\d+, 3\), got \(\d+, 2\)"),
        (
            lambda x: x.double(),
            r"simulator\.observe: expected torch\.float32 as its signal has, got torch\.float64",
        ),
    ],
)
def test_an_observe_that_changes_shape_or_dtype_is_refused(store, change, message):
    @dataclass(frozen=True)
    class Odd(LinearGaussian):
        def observe(self, signal, generator=None):
            return change(super().observe(signal, generator))

    with pytest.raises(ValueError, match=message):
        quick_train(store, Odd())


@pytest.mark.parametrize("device", ["tpu-of-mine", "cuda"])
def test_a_device_that_is_not_there(store, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="device: expected"):
        quick_train(store, TOY, device=device)


# --- problems of every shape


@dataclass(frozen=True)
class Shaped:
    """x of any shape: every feature is the sum of the parameters plus noise, the first feature is a constant."""

    prior: Prior
    x_shape: tuple[int, ...]
    name: str = "shaped"

    def signal(self, theta):
        total = theta.sum(-1).reshape(-1, *[1] * len(self.x_shape))
        return total.expand(-1, *self.x_shape).clone()

    def observe(self, signal, generator=None):
        x = signal + 0.3 * torch.randn(signal.shape, generator=generator, dtype=signal.dtype)
        if signal[0].numel() > 1:
            x.reshape(len(x), -1)[:, 0] = 7.5
        return x


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize(
    "x_shape, kind", [((), "residual"), ((), "none"), ((5,), "cnn"), ((2, 3, 4), "residual"), ((2, 6), "cnn")]
)
def test_x_of_any_shape_and_one_parameter_or_more(tmp_path, x_shape, kind, dim):
    simulator = Shaped(Prior(*(Uniform(f"u{i}", -1, 1) for i in range(dim))), x_shape)
    store = quick_store(tmp_path / "s.h5", simulator, 200)
    embedding = EmbeddingConfig(kind, features=4, hidden=8, blocks=1)
    posterior = quick_train(store, simulator, replace(CONFIG, steps=5, batch=32), embedding=embedding)
    x = simulator.observe(simulator.signal(simulator.prior.sample(3, torch.Generator().manual_seed(1))))
    for given, shape in ((x, (7, 3, dim)), (x[0], (7, dim)), (x[:1], (7, 1, dim))):
        draws = posterior.sample(given, 7)
        assert draws.theta.shape == shape and bool(simulator.prior.inside(draws.theta).all())
    assert posterior.log_prob(simulator.prior.sample(3), x).shape == (3,)
    assert posterior.log_prob(simulator.prior.sample(4), x[0]).shape == (4,)
    assert posterior.novelty_p_value(x).shape == (3,)


def test_svd_of_features_of_which_some_are_constant(tmp_path):
    simulator = Shaped(Prior(Uniform("u", -1, 1)), (2, 3))
    store = quick_store(tmp_path / "s.h5", simulator, 200)
    posterior = quick_train(
        store, simulator, replace(CONFIG, steps=5), embedding=replace(EMBEDDING, svd_components=4)
    )
    assert torch.isfinite(posterior.sample(torch.zeros(2, 3), 10).log_q).all()


def test_a_function_of_numpy_is_learned(tmp_path):
    """Ten numbers around mu with sd 1, mu ~ N(0, 2): the posterior is normal with variance 1 / (1/4 + 10)."""

    def ten_numbers(theta, rng):
        return theta[0] + rng.normal(size=10)

    simulator = simulator_from_function(ten_numbers, Prior(Normal("mu", 0.0, 2.0)))
    store = quick_store(tmp_path / "s.h5", simulator, 4000)
    config = TrainConfig(steps=250, batch=256, patience=None)
    posterior = quick_train(store, simulator, config, flow=replace(FLOW, family="maf"))
    x = torch.linspace(0, 2, 10)
    draws = posterior.sample(x, 4000, seed=1).theta[:, 0]
    variance = 1 / (0.25 + 10)
    assert float(draws.mean()) == pytest.approx(10 * variance, abs=0.25 * variance**0.5)
    assert float(draws.std()) == pytest.approx(variance**0.5, rel=0.2)


def test_the_bar_and_nothing_else_is_printed(store, capsys):
    quick_train(store, TOY, replace(CONFIG, steps=2), progress=True)
    captured = capsys.readouterr()
    assert captured.out == "" and re.match(r"training\b.*2/2 loss .* left\s*$", captured.err)
