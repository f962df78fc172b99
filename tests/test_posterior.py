import json
import math
import pickle
import shutil
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from scipy.stats import ks_2samp

from sbiflow import Posterior, TrainConfig, posterior
from sbiflow.contracts import Proposal
from sbiflow.posterior import ModelInfo
from sbiflow.priors import PeriodicUniform, Prior, Uniform
from sbiflow.samples import load
from tests.quick import EMBEDDING, FLOW, NOT_A_PICKLE, quick_store, quick_train, same_weights

RING_PRIOR = Prior(Uniform("r", 2, 5, unit="m"), PeriodicUniform("phi", 0, 360, unit="deg"))
LINE_PRIOR = Prior(Uniform("a", -1, 3))


@dataclass(frozen=True)
class Ring:
    """x = (r cos phi, r sin phi, r) + noise; r bounded, phi periodic."""

    prior: Prior = RING_PRIOR
    x_shape: tuple[int, ...] = (3,)
    name: str = "ring"

    def signal(self, theta):
        r, phi = theta[:, 0], theta[:, 1] * math.pi / 180
        return torch.stack([r * torch.cos(phi), r * torch.sin(phi), r], -1)

    def observe(self, signal, generator=None):
        return signal + 0.5 * torch.randn(signal.shape, generator=generator, dtype=signal.dtype)


RING = Ring()
ORDINARY = torch.tensor([[2.0, 2.0, 3.0], [-3.0, 1.0, 3.3], [0.0, -4.5, 4.6]], dtype=torch.float64)


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    store = quick_store(tmp_path_factory.mktemp("posterior") / "s.h5", RING, 3000)
    return quick_train(store, RING, TrainConfig(steps=150, batch=128, patience=None))


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """One parameter, observed with a scalar x."""

    @dataclass(frozen=True)
    class Line(Ring):
        prior: Prior = LINE_PRIOR
        x_shape: tuple[int, ...] = ()

        def signal(self, theta):
            return theta[:, 0]

    store = quick_store(tmp_path_factory.mktemp("line") / "s.h5", Line(), 1000)
    return quick_train(store, Line(), TrainConfig(steps=60, batch=128, patience=None))


@pytest.fixture
def model(ring, tmp_path):
    ring.save(tmp_path / "model")
    return tmp_path / "model"


# --- draws


def test_draws_carry_names_units_observation_and_seed(ring):
    draws = ring.sample(ORDINARY[0], 50, seed=4)
    assert draws.names == ("r", "phi") and draws.units == ("m", "deg")
    assert draws.theta.shape == (50, 2) and draws.log_q.shape == (50,)
    assert draws.theta.dtype == draws.log_q.dtype == torch.float64
    assert draws.x.equal(ORDINARY[0]) and draws.seed == 4 and draws.prior == RING.prior
    assert draws.source == "spline_coupling flow trained on 3000 simulations"
    assert ring.sample(ORDINARY, 50).theta.shape == (50, 3, 2)
    assert ring.sample(ORDINARY[:1], 50).theta.shape == (50, 1, 2)


@pytest.mark.parametrize("form", [np.asarray, lambda x: x.tolist(), lambda x: x.float()])
def test_an_observation_may_be_an_array_a_list_or_a_tensor(ring, form):
    expected = ring.sample(ORDINARY[0], 5, seed=1).theta
    assert ring.sample(form(ORDINARY[0]), 5, seed=1).theta.equal(expected)


def test_the_same_seed_gives_the_same_draws(ring):
    first = ring.sample(ORDINARY, 20, seed=1)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    again, other = ring.sample(ORDINARY, 20, seed=1), ring.sample(ORDINARY, 20, seed=2)
    assert again.theta.equal(first.theta) and again.log_q.equal(first.log_q)
    assert not (other.theta == first.theta).any()
    assert torch.get_rng_state().equal(state)


def test_log_q_is_the_log_prob_of_the_draw(ring):
    draws = ring.sample(ORDINARY, 200, seed=1)
    for i, x in enumerate(ORDINARY):
        torch.testing.assert_close(draws.log_q[:, i], ring.log_prob(draws.theta[:, i], x), rtol=0, atol=2e-3)


def test_a_batch_of_observations_is_its_observations_one_by_one(ring):
    """Two-sample Kolmogorov-Smirnov at 1e-4 in each of six columns; densities to float32."""
    batch = ring.sample(ORDINARY, 3000, seed=1)
    for i, x in enumerate(ORDINARY):
        single = ring.sample(x, 3000, seed=2 + i)
        for d in range(2):
            assert ks_2samp(batch.theta[:, i, d], single.theta[:, d]).pvalue > 1e-4
    theta = batch.theta[0]
    one_by_one = torch.cat([ring.log_prob(theta[i : i + 1], ORDINARY[i]) for i in range(3)])
    torch.testing.assert_close(ring.log_prob(theta, ORDINARY), one_by_one, rtol=0, atol=1e-4)


def test_observations_do_differ(ring):
    draws = ring.sample(ORDINARY, 1000, seed=1).theta
    assert ks_2samp(draws[:, 0, 1], draws[:, 1, 1]).pvalue < 1e-10


@pytest.mark.parametrize(
    "observations, n", [(1, 1), (1, 250), (1, 300), (7, 33), (99, 3), (100, 2), (230, 2)]
)
def test_work_is_done_in_chunks_whatever_the_numbers(ring, monkeypatch, observations, n):
    monkeypatch.setitem(posterior._CHUNK, "cpu", 100)
    passes = []
    real = type(ring.flow).draw

    def counting(self, context, n, generator):
        passes.append(n * len(context))
        return real(self, context, n, generator)

    monkeypatch.setattr(type(ring.flow), "draw", counting)
    x = ORDINARY[torch.arange(observations) % 3]
    draws = ring.sample(x, n, seed=1)
    assert draws.theta.shape == (n, observations, 2)
    assert sum(passes) == n * observations and max(passes) <= 100
    theta, repeated = draws.theta.flatten(0, 1), x.repeat(n, 1)
    torch.testing.assert_close(
        draws.log_q.flatten(), ring.log_prob(theta, repeated), rtol=0, atol=2e-3
    )  # in the right order, too
    assert len(theta[:, 0].unique()) == len(theta)


# --- densities


def test_the_density_integrates_to_one_over_the_support(line):
    for x in (-0.5, 1.0, 3.2):
        theta = torch.linspace(-1, 3, 4002, dtype=torch.float64)[1:-1, None]
        mass = torch.trapezoid(line.log_prob(theta, x).exp(), theta[:, 0])
        assert float(mass) == pytest.approx(1, abs=2e-3)


def test_the_density_integrates_to_one_over_a_period(ring):
    r, phi = torch.linspace(2, 5, 203).double()[1:-1], torch.linspace(0, 360, 401).double()[:-1]
    grid = torch.cartesian_prod(r, phi)
    mass = ring.log_prob(grid, ORDINARY[0]).exp().sum() * (3 / 202) * (360 / 400)
    assert float(mass) == pytest.approx(1, abs=0.01)


def test_zero_density_outside_the_support(ring):
    theta = torch.tensor([[1.9, 10.0], [3.0, 10.0], [5.0, 10.0], [3.0, 360.0], [3.0, -1.0]])
    result = ring.log_prob(theta, ORDINARY[0])
    assert torch.isfinite(result).tolist() == [False, True, False, False, False]
    assert (result[~torch.isfinite(result)] == -torch.inf).all()
    # the row that counts is paired with its own observation
    x = ORDINARY[torch.tensor([1, 0, 1, 1, 1])]
    torch.testing.assert_close(ring.log_prob(theta, x)[1], result[1], rtol=0, atol=1e-5)
    assert ring.log_prob(theta[:1], ORDINARY[0]).tolist() == [-math.inf]


def test_it_is_a_proposal(ring):
    proposal: Proposal = ring
    theta, log_q = proposal.sample_and_log_prob(ORDINARY.float(), 5, torch.Generator().manual_seed(1))
    assert theta.shape == (5, 3, 2) and log_q.shape == (5, 3) and theta.dtype == log_q.dtype == torch.float64


# --- observations that are strange, or none


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6, 1e12, 1e30, 1e38, 1e300])
def test_no_draw_leaves_the_prior_however_extreme_the_observation(ring, line, size):
    for signs in ((1, 1, 1), (-1, 1, -1), (0, 0, 1)):
        draws = ring.sample(size * torch.tensor(signs, dtype=torch.float64), 500, seed=1)
        assert bool(RING.prior.inside(draws.theta).all()) and torch.isfinite(draws.log_q).all()
        assert "unlike the simulations" in draws.warnings[0]
    draws = line.sample(-size, 500)
    assert bool(line.prior.inside(draws.theta).all()) and draws.warnings


def test_only_strange_observations_are_warned_of(ring):
    assert ring.sample(ORDINARY, 5).warnings == ()
    (warning,) = ring.sample(torch.cat([ORDINARY, 30 + ORDINARY[:1]]), 5).warnings
    assert warning.startswith("1 of 4 observations (index [3]) unlike the simulations (p = ")
    (warning,) = ring.sample(30 + ORDINARY[0], 5).warnings
    assert warning.startswith("the observation (index [0]) unlike the simulations")
    assert (ring.novelty_p_value(ORDINARY) > 0.01).all()


def test_every_sample_set_carries_its_p_values(ring, tmp_path):
    single, batch = ring.sample(ORDINARY[0], 50), ring.sample(torch.cat([ORDINARY, 30 + ORDINARY[:1]]), 5)
    assert len(single.novelty) == 1 and len(batch.novelty) == 4
    assert batch.novelty.p_value.equal(ring.novelty_p_value(batch.x))
    assert str(single.novelty) in str(single) and "looks like the simulations: p = 0." in str(single)
    assert "1 of 4 observations unlike the simulations; index 3: p = 0.00" in str(batch)
    for i in range(4):
        alone = batch.observation(i).novelty
        assert float(alone.input) == float(batch.novelty.input[i]) and len(alone) == 1
    weighted = single.reweight(lambda theta, x: torch.zeros(len(theta)), progress=False)
    for number, draws in enumerate((single, batch, weighted, weighted.resample(5, 1))):
        loaded = load(draws.save(tmp_path / f"{number}.h5"))
        assert loaded.novelty.input.equal(draws.novelty.input)
        assert loaded.novelty.embedding.equal(draws.novelty.embedding)
        assert loaded.novelty.levels == draws.novelty.levels and str(loaded) == str(draws)
    assert str(single.novelty) in str(weighted)
    without = replace(single, novelty=None)
    assert load(without.save(tmp_path / "none.h5")).novelty is None and "simulations: p" not in str(without)
    with pytest.raises(ValueError, match="novelty: expected 1 p-values, one per observation, got 4"):
        replace(single, novelty=batch.novelty)


def test_the_hole_in_a_ring_is_seen_in_embedding_space_only(ring):
    """x = 0 is the mean of the simulations, and no simulation lies near: r >= 2 and the noise is 0.5."""
    found = ring.novelty_check([0.0, 0.0, 3.5])
    assert float(found.input) > 0.2 and bool(found.alarm)


@pytest.mark.parametrize(
    "x, message",
    [
        ([1.0, math.nan, 1.0], r"x: expected finite values, got 1 NaN or inf, the first at \(1,\)"),
        ([[1.0, 1.0, 1.0], [1.0, 1.0, math.inf]], r"x: expected finite values, got 1 .* at \(1, 2\)"),
        ([1.0, 1.0], r"x: expected shape \(3,\), got \(2,\)"),
        ([[1.0, 1.0]], r"x: expected shape \(B, 3\), got \(1, 2\)"),
        ([[[1.0, 1.0, 1.0]]], r"x: expected shape \(B, 3\), got \(1, 1, 3\)"),
        (np.zeros((0, 3)), "x: expected at least one observation, got none"),
        ("spectrum", "x: expected numbers, got str"),
    ],
)
def test_a_bad_observation_is_refused_in_one_line(ring, x, message):
    for call in (
        lambda: ring.sample(x, 5),
        lambda: ring.log_prob([[3.0, 1.0]], x),
        lambda: ring.novelty_p_value(x),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n": 0}, "n: expected a whole number >= 1, got 0"),
        ({"n": 2.5}, r"n: expected a whole number >= 1, got 2\.5"),
        ({"n": 5, "seed": -1}, "seed: expected a whole number >= 0, got -1"),
    ],
)
def test_bad_numbers_are_refused(ring, options, message):
    with pytest.raises(ValueError, match=message):
        ring.sample(ORDINARY[0], **options)


@pytest.mark.parametrize(
    "theta, x, message",
    [
        ([3.0, 1.0], ORDINARY[0], r"theta: expected shape \(n, 2\), got \(2,\)"),
        ([[3.0]], ORDINARY[0], r"theta: expected shape \(n, 2\), got \(1, 1\)"),
        ([[3.0, math.nan]], ORDINARY[0], "theta: expected finite values"),
        ([[3.0, 1.0]], ORDINARY[:2], "x: expected one observation or 1, one per theta, got 2"),
    ],
)
def test_bad_parameters_are_refused(ring, theta, x, message):
    with pytest.raises(ValueError, match=message):
        ring.log_prob(theta, x)


def test_a_network_that_overflows_is_no_source_of_nan_draws(model):
    broken = Posterior.load(model)
    real = broken.flow.embedding.forward
    broken.flow.embedding.forward = lambda x: torch.where(x[:, :1] > 10, 1e38 * real(x), real(x))
    with pytest.raises(ValueError, match=r"got 1 so far away that the network overflows \(index \[1\]\)"):
        broken.sample(torch.stack([ORDINARY[0], ORDINARY[0] + 20, ORDINARY[1]]), 5)


# --- on disk


def test_a_saved_posterior_is_the_same_to_the_bit(ring, model):
    loaded = Posterior.load(model)
    assert same_weights(loaded, ring)
    assert (loaded.prior, loaded.x_shape, loaded.info) == (ring.prior, ring.x_shape, ring.info)
    assert (loaded.flow_config, loaded.embedding_config) == (FLOW, EMBEDDING)
    before, after = (one.sample(ORDINARY, 30, seed=1) for one in (ring, loaded))
    assert before.theta.equal(after.theta) and before.log_q.equal(after.log_q)
    assert before.novelty.input.equal(after.novelty.input)
    assert before.novelty.embedding.equal(after.novelty.embedding)
    assert ring.novelty_p_value(30 + ORDINARY).equal(loaded.novelty_p_value(30 + ORDINARY))
    assert ring.novelty_p_value(ORDINARY).equal(loaded.novelty_p_value(ORDINARY))


def test_a_loaded_posterior_can_be_saved(ring, model, tmp_path):
    Posterior.load(model).save(tmp_path / "copy")
    assert same_weights(Posterior.load(tmp_path / "copy"), ring)


def test_a_model_is_json_and_safetensors_with_the_log_beside_it(model):
    assert sorted(path.name for path in model.iterdir()) == [
        "config.json", "model.safetensors", "training.csv", "training.png",
    ]  # fmt: skip
    config = json.loads((model / "config.json").read_text())
    assert config["format_version"] == 2 and config["prior"] == RING.prior.spec()
    with safe_open(model / "model.safetensors", "pt") as opened:
        assert {name.split(".")[0] for name in opened.keys()} == {"flow", "novelty"}  # noqa: SIM118
    for name in ("config.json", "model.safetensors"):
        with (model / name).open("rb") as opened, pytest.raises(NOT_A_PICKLE):
            pickle.load(opened)


def test_saving_replaces_a_model_and_leaves_other_files_alone(ring, line, model):
    (model / "checkpoint").write_text("mine")
    line.save(model)
    assert Posterior.load(model).prior == line.prior
    assert (model / "checkpoint").read_text() == "mine"
    assert not model.with_name("model.partial").exists()


def test_a_save_that_fails_keeps_the_former_model_and_leaves_nothing_behind(ring, line, model, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("sbiflow.model_file.save_file", full)
    with pytest.raises(
        OSError, match=r"model: cannot be written \(.*No space left.*\); a former model is kept"
    ):
        line.save(model)
    assert same_weights(Posterior.load(model), ring)
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def edit(model, **changes):
    config = json.loads((model / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    (model / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("version", [1, 3, "2", None])
def test_a_model_of_another_format_version_is_refused(model, version):
    edit(model, format_version=version)
    (model / "model.safetensors").unlink()  # whatever that format keeps its weights in
    with pytest.raises(
        ValueError, match=rf"model: expected model format 2, got {version}: update sbiflow or ret"
    ):
        Posterior.load(model)


@pytest.mark.parametrize("keep", [0, 7, 500, -1])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_truncated_model_is_refused_in_one_line(model, name, keep):
    keep = -3 if (name, keep) == ("config.json", -1) else keep  # its last byte is a new line
    (model / name).write_bytes((model / name).read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{name}: expected a readable model, got") as error:
        Posterior.load(model)
    assert "\n" not in str(error.value)


def test_a_damaged_bit_is_noticed(model):
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (model / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"expected the weights that config\.json belongs to, got others"):
        Posterior.load(model)


def test_files_of_two_models_are_not_taken_for_one(ring, model, tmp_path):
    """What a kill in the middle of replacing a model may leave."""
    twin = Posterior.load(model)
    with torch.no_grad():
        next(twin.flow.parameters()).add_(1e-3)
    twin.save(tmp_path / "twin")
    shutil.copy(tmp_path / "twin" / "model.safetensors", model)
    with pytest.raises(ValueError, match=r"expected the weights that config\.json belongs to, got others"):
        Posterior.load(model)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_a_model_is_refused(model, name):
    (model / name).unlink()
    with pytest.raises(ValueError, match=f"expected a model made by `sbiflow train`, got no {name} there"):
        Posterior.load(model)


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"nowhere: expected a model made by `sbiflow train`, got no config\.json"
    ):
        Posterior.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "changes",
    [
        {"prior": None},
        {"flow": {"unknown": 1}},
        {"flow": {"layers": 7}},
        {"prior": [{"kind": "New"}]},
        {"info": {}},
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(model, changes):
    edit(model, **changes)
    with pytest.raises(ValueError, match="model: expected a model of this version of sbiflow, got"):
        Posterior.load(model)


def test_info_is_all_in_the_file(ring, model):
    config = json.loads((model / "config.json").read_text())
    found = {field.name: getattr(ring.info, field.name) for field in fields(ring.info)}
    assert config["info"] == found | {"warnings": []}  # JSON has no tuples
    assert ModelInfo.from_spec(config["info"]) == ring.info


def test_to_moves_the_network_and_returns_the_posterior(ring):
    assert ring.to("cpu") is ring and ring.device == torch.device("cpu")
