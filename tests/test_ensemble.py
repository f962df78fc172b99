"""Mixtures of posteriors: densities, draws, stacking, training on a shared split, files."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from sbiflow import Ensemble, FlowConfig, Member, TrainConfig, default_members, train_ensemble
from sbiflow.ensemble import is_ensemble, stack
from tests.quick import CONFIG, EMBEDDING, FLOW, quick_store, quick_train, same_weights
from tests.toys import LinearGaussian

TOY = LinearGaussian()
X = torch.tensor([[0.3, -0.2, 0.1], [1.5, 0.4, -1.0]], dtype=torch.float64)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return quick_store(tmp_path_factory.mktemp("ensemble") / "s.h5", TOY)


@pytest.fixture(scope="module")
def ensemble(store):
    """Members that differ: one starts as the prior and has hardly been trained."""
    flows = (FLOW, replace(FLOW, start="prior"), replace(FLOW, family="maf"))
    members = tuple(quick_train(store, TOY, replace(CONFIG, seed=i), flow=f) for i, f in enumerate(flows))
    return Ensemble(members, (0.5, 0.3, 0.2))


def test_the_density_is_the_mixture(ensemble):
    theta = TOY.prior.sample(2, torch.Generator().manual_seed(0))
    expected = sum(
        w * m.log_prob(theta, X).exp() for w, m in zip(ensemble.weights, ensemble.members, strict=True)
    )
    torch.testing.assert_close(ensemble.log_prob(theta, X), expected.log())
    draws, log_q = ensemble.sample_and_log_prob(X, 5, torch.Generator().manual_seed(1))
    assert draws.shape == (5, 2, 2) and log_q.shape == (5, 2)
    for b in range(2):
        torch.testing.assert_close(log_q[:, b], ensemble.log_prob(draws[:, b], X[b]), rtol=1e-4, atol=1e-4)


def test_draws_follow_the_density(ensemble):
    """E_q[q'/q] = 1 for a normalised q' inside q's support: here q' is the first member. False alarms: 6e-5."""
    draws = ensemble.sample(X[0], 20_000, seed=4)
    ratio = (ensemble.members[0].log_prob(draws.theta, X[0]) - draws.log_q).exp().numpy()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(len(ratio))
    wrong = Ensemble(ensemble.members, (0.1, 0.8, 0.1)).sample(X[0], 20_000, seed=4)
    claimed = ensemble.log_prob(wrong.theta, X[0])
    ratio = (ensemble.members[0].log_prob(wrong.theta, X[0]) - claimed).exp().numpy()
    assert abs(ratio.mean() - 1) > 4 * ratio.std() / math.sqrt(len(ratio))


def test_any_part_of_the_draws_is_a_fair_sample(ensemble):
    """The members' draws are shuffled: the first half and the second have one distribution (KS, false alarms 1e-4)."""
    values = ensemble.sample(X[0], 8000, seed=5).theta[:, 0].numpy()
    assert stats.ks_2samp(values[:4000], values[4000:]).pvalue > 1e-4


def test_the_seed_fixes_the_draws_and_the_result_carries_its_evidence(ensemble):
    draws = ensemble.sample(X, 10, seed=3)
    assert draws.theta.equal(ensemble.sample(X, 10, seed=3).theta)
    assert not draws.theta.equal(ensemble.sample(X, 10, seed=4).theta)
    assert draws.source == "ensemble of 3 flows trained on 600 simulations" and len(draws.novelty) == 2
    weighted = ensemble.sample(X[0], 4000, seed=3).reweight(TOY.log_likelihood, progress=False)
    exact = float(TOY.log_evidence(X[0]))
    assert weighted.diagnostics.reliable
    assert abs(weighted.diagnostics.log_evidence - exact) < 4 * weighted.diagnostics.log_evidence_error


def test_a_member_of_weight_zero_is_never_asked(ensemble):
    only = Ensemble(ensemble.members, (1.0, 0.0, 0.0))
    theta = TOY.prior.sample(2, torch.Generator().manual_seed(0))
    assert only.log_prob(theta, X).equal(ensemble.members[0].log_prob(theta, X))


@pytest.mark.parametrize(
    "weights, message",
    [
        ((0.5, 0.5), "expected one weight per member, got 3 members and 2"),
        ((0.5, 0.6, 0.1), "expected shares of sum one"),
        ((1.2, -0.1, -0.1), "expected shares of sum one"),
    ],
)
def test_bad_weights_are_refused(ensemble, weights, message):
    with pytest.raises(ValueError, match=message):
        Ensemble(ensemble.members, weights)


def test_members_of_different_problems_are_refused(ensemble, tmp_path):
    other = LinearGaussian(matrix=((1.0, 0.0),) * 4)
    stranger = quick_train(quick_store(tmp_path / "s.h5", other, 100), other, replace(CONFIG, steps=1))
    with pytest.raises(ValueError, match="one prior and one x_shape"):
        Ensemble((ensemble.members[0], stranger), (0.5, 0.5))


def test_saved_and_loaded(ensemble, tmp_path):
    ensemble.save(tmp_path / "e")
    loaded = Ensemble.load(tmp_path / "e")
    assert is_ensemble(tmp_path / "e") and loaded.weights == ensemble.weights
    assert all(same_weights(a, b) for a, b in zip(loaded.members, ensemble.members, strict=True))
    assert loaded.sample(X, 7, seed=1).theta.equal(ensemble.sample(X, 7, seed=1).theta)
    Ensemble(ensemble.members[:1], (1.0,)).save(tmp_path / "e")  # replaces the three
    assert len(Ensemble.load(tmp_path / "e").members) == 1 and not (tmp_path / "e" / "member-1").exists()


def test_a_save_that_fails_keeps_the_former_ensemble(ensemble, tmp_path, monkeypatch):
    ensemble.save(tmp_path / "e")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("sbiflow.posterior.write_model", full)
    with pytest.raises(OSError, match="No space left"):
        ensemble.save(tmp_path / "e")
    assert Ensemble.load(tmp_path / "e").weights == ensemble.weights
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_what_is_no_ensemble_is_refused_and_left_alone(ensemble, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="expected a new folder"):
        ensemble.save(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"
    with pytest.raises(ValueError, match="expected an ensemble made by"):
        Ensemble.load(tmp_path)
    (tmp_path / "ensemble.json").write_text(json.dumps({"format_version": 99, "weights": [1.0]}))
    with pytest.raises(ValueError, match="expected ensemble format 1, got 99"):
        Ensemble.load(tmp_path)


# --- stacking


def test_stacking_finds_the_weights_of_a_mixture():
    """Rows from 0.8 N(0, 1) + 0.2 N(4, 1); 20,000 of them fix the share to 0.003, the gate is 4 of that."""
    rng = np.random.default_rng(0)
    rows = np.where(rng.random(20_000) < 0.8, 0.0, 4.0) + rng.standard_normal(20_000)
    log_q = torch.from_numpy(np.stack([stats.norm.logpdf(rows, mean) for mean in (0.0, 4.0)]))
    assert stack(log_q)[0] == pytest.approx(0.8, abs=0.012)


def test_stacking_drops_a_bad_member_and_shares_between_equals():
    good = torch.randn(200, generator=torch.Generator().manual_seed(0))
    weights = stack(torch.stack([good, good - 5.0, good]))
    assert weights[1] < 0.01 and weights[0] == pytest.approx(weights[2]) and sum(weights) == pytest.approx(1)


def test_a_member_that_excludes_a_row_is_survived():
    weights = stack(torch.tensor([[0.0, -math.inf, 0.0], [-1.0, -1.0, -1.0]]))
    assert all(math.isfinite(w) and w > 0 for w in weights)


# --- training


def test_members_share_the_split_and_differ_otherwise(store):
    member, quiet = Member(FLOW, EMBEDDING, CONFIG), replace(TOY, noise_sd=0.0)
    trained = train_ensemble(store, quiet, [member, member], seed=7, progress=False)
    first, second = trained.members
    assert not same_weights(first, second)
    assert torch.equal(first.novelty.input.null, second.novelty.input.null)  # of the same held-out rows
    other = train_ensemble(store, quiet, [member], seed=8, progress=False).members[0]
    assert not torch.equal(first.novelty.input.null, other.novelty.input.null)
    again = train_ensemble(store, quiet, [member, member], seed=7, progress=False)
    assert again.weights == trained.weights and same_weights(first, again.members[0])


def test_an_ensemble_resumes_from_its_checkpoints(store, tmp_path, monkeypatch):
    member = Member(FLOW, EMBEDDING, CONFIG)
    options = {"seed": 7, "checkpoint_folder": tmp_path / "c", "progress": False}
    trained = train_ensemble(store, TOY, [member, member], **options)
    monkeypatch.setattr("sbiflow.training.loop.Training._update", None)  # nothing is left to train
    assert train_ensemble(store, TOY, [member, member], **options).weights == trained.weights


def test_members_with_different_shares_are_refused(store):
    members = [Member(FLOW, EMBEDDING, TrainConfig(steps=1, validation=share)) for share in (0.1, 0.2)]
    with pytest.raises(ValueError, match="of one validation share"):
        train_ensemble(store, TOY, members, progress=False)
    with pytest.raises(ValueError, match="expected at least one"):
        train_ensemble(store, TOY, [], progress=False)


@pytest.mark.parametrize("simulations", [50, 1000, 10_000, 100_000, 10**7])
def test_the_default_members_are_settings_that_work(simulations):
    members = default_members(simulations)
    assert len(members) >= 2 and all(1 <= (m.config.steps or 0) <= 20_000 for m in members)
    assert any(m.flow.dropout > 0 for m in members) and FlowConfig().dropout == 0
