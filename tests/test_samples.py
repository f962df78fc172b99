"""Result objects against the closed-form linear-Gaussian posterior, and their files."""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sbiflow.priors import Normal, PeriodicUniform, Prior, Uniform
from sbiflow.samples import PosteriorSamples, WeightedSamples, load
from tests.toys import LinearGaussian, normal_prior

TOY = LinearGaussian()
X = torch.tensor([0.4, -0.2, 0.9], dtype=torch.float64)
N = 4000


def _draws(scale: float = 1.0, n: int = N, seed: int = 0) -> PosteriorSamples:
    generator = torch.Generator().manual_seed(seed)
    theta, log_q = TOY.exact_proposal(scale).sample_and_log_prob(X[None], n, generator)
    return PosteriorSamples(theta[:, 0], log_q[:, 0], X, TOY.prior, seed, "exact", ("read me",))


def _batch() -> PosteriorSamples:
    x = torch.stack([X, X + 1, X - 1])
    theta, log_q = TOY.exact_proposal().sample_and_log_prob(x, 500, torch.Generator().manual_seed(5))
    return PosteriorSamples(theta, log_q, x, TOY.prior, 5, "exact")


def _uniform_draws(n: int = 40_000) -> PosteriorSamples:
    """Draws from the prior Uniform(0, 10), an honest proposal for any observation."""
    prior = Prior(Uniform("a", 0.0, 10.0, unit="m"))
    theta = prior.sample(n, torch.Generator().manual_seed(8))
    return PosteriorSamples(theta, prior.log_prob(theta), torch.tensor([4.0]), prior, 8, "prior")


def _normal_likelihood(theta: Tensor, x: Tensor) -> Tensor:
    return torch.distributions.Normal(theta[:, 0], 1.0).log_prob(x[0])


def test_summary_matches_the_exact_posterior() -> None:
    """Means and medians within 4.5 standard errors (1.25 of them for a median): 2e-5 false alarms."""
    mean, covariance = TOY.posterior(X)
    for row, m, variance in zip(_draws().summary(), mean, covariance.diagonal(), strict=True):
        sd = float(variance.sqrt())
        assert row.mean == pytest.approx(float(m), abs=4.5 * sd / math.sqrt(N))
        assert row.median == pytest.approx(float(m), abs=1.25 * 4.5 * sd / math.sqrt(N))
        assert row.sd == pytest.approx(sd, rel=4.5 / math.sqrt(2 * N))
        assert row.unit == "m"


def test_reweighting_a_wide_proposal_gives_posterior_and_evidence() -> None:
    """Everything within 4.5 standard errors at the effective sample size: 3e-5 false alarms together."""
    weighted = _draws(1.5, 20_000, seed=1).reweight(TOY.log_likelihood, progress=False)
    found = weighted.diagnostics
    assert found.reliable, found.verdict
    exact = float(TOY.log_evidence(X))
    assert found.log_evidence == pytest.approx(exact, abs=4.5 * found.log_evidence_error)
    assert 0 < found.log_evidence_error < 0.02
    mean, covariance = TOY.posterior(X)
    for row, m, variance in zip(weighted.summary(), mean, covariance.diagonal(), strict=True):
        sd = float(variance.sqrt())
        assert row.mean == pytest.approx(float(m), abs=4.5 * sd / math.sqrt(found.ess))
        assert row.sd == pytest.approx(sd, rel=4.5 / math.sqrt(found.ess))


def test_exact_proposal_is_fully_efficient() -> None:
    found = _draws().reweight(TOY.log_likelihood, progress=False).diagnostics
    assert found.efficiency == pytest.approx(1.0)
    assert found.log_evidence == pytest.approx(float(TOY.log_evidence(X)), abs=1e-9)


def test_narrower_prior_gives_its_own_evidence() -> None:
    """Uniform(2, 5) instead of Uniform(0, 10): evidence [Φ(1) − Φ(−2)] / 3; 4.5 σ, 7e-6 false alarms."""
    narrow = Prior(Uniform("a", 2.0, 5.0, unit="m"))
    weighted = _uniform_draws().reweight(_normal_likelihood, prior=narrow, progress=False)
    exact = math.log((stats.norm.cdf(1) - stats.norm.cdf(-2)) / 3)
    found = weighted.diagnostics
    assert found.log_evidence == pytest.approx(exact, abs=4.5 * found.log_evidence_error)
    outside = (weighted.theta[:, 0] < 2) | (weighted.theta[:, 0] > 5)
    assert found.n_zero == int(outside.sum()) > 0
    assert float(weighted.weights[outside].sum()) == 0
    assert weighted.prior == narrow


def test_wider_prior_is_refused() -> None:
    wide = Prior(Uniform("a", -1.0, 10.0, unit="m"))
    with pytest.raises(ValueError, match=r"expected one within the training prior: .*wider"):
        _uniform_draws(100).reweight(_normal_likelihood, prior=wide)


def test_nan_likelihood_is_reported() -> None:
    def sometimes(theta: Tensor, x: Tensor) -> Tensor:
        return torch.where(theta[:, 0] > 9.95, torch.nan, _normal_likelihood(theta, x))

    draws = _uniform_draws()
    weighted = draws.reweight(sometimes, progress=False)
    count = int((draws.theta[:, 0] > 9.95).sum())
    assert weighted.diagnostics.n_nonfinite == count > 0
    assert f"the log-likelihood is NaN for {count}" in str(weighted)


def test_likelihood_that_is_zero_everywhere_is_a_verdict() -> None:
    weighted = _draws().reweight(lambda theta, x: torch.full((len(theta),), -torch.inf), progress=False)
    assert "every draw has zero weight" in str(weighted)
    assert not weighted.diagnostics.reliable
    for call in (weighted.summary, weighted.corner, lambda: weighted.resample(10, seed=0), weighted.to_arviz):
        with pytest.raises(ValueError, match="expected at least one above zero"):
            call()


def test_draws_of_unknown_density_cannot_be_reweighted() -> None:
    chain = PosteriorSamples(torch.zeros(10, 2), torch.full((10,), math.nan), X, TOY.prior)
    with pytest.raises(ValueError, match="log_q: expected finite values"):
        chain.reweight(TOY.log_likelihood, progress=False)


def test_resampled_draws_follow_the_posterior_and_know_its_density() -> None:
    """KS test of each marginal at α = 1e-4 for 1,000 of 20,000 draws; log q is the exact posterior's."""
    weighted = _draws(1.5, 20_000, seed=2).reweight(TOY.log_likelihood, progress=False)
    again = weighted.resample(1000, seed=3)
    mean, covariance = TOY.posterior(X)
    for i, column in enumerate(again.theta.T):
        exact = stats.norm(float(mean[i]), float(covariance[i, i].sqrt()))
        assert stats.kstest(column.numpy(), exact.cdf).pvalue > 5e-5
    exact_log_q = TOY.exact_proposal().log_prob(again.theta, X.expand(1000, 3))
    torch.testing.assert_close(again.log_q, exact_log_q, atol=0.02, rtol=0)  # the evidence's own error
    assert torch.equal(again.theta, weighted.resample(1000, seed=3).theta)
    assert not torch.equal(again.theta, weighted.resample(1000, seed=4).theta)


def test_resampling_frequencies_and_distinctness() -> None:
    """Weights 0, 1, 2, 5: counts by χ² at α = 1e-4; without replacement the first pick likewise."""
    prior = Prior(Uniform("a", 0.0, 10.0))
    theta = torch.tensor([[0.5], [1.5], [2.5], [3.5]])
    like = torch.tensor([0.0, 1.0, 2.0, 5.0]).log()
    draws = PosteriorSamples(theta, prior.log_prob(theta), torch.zeros(1), prior)
    weighted = draws.reweight(lambda t, x: like, progress=False)
    values = weighted.resample(40_000, seed=1).theta[:, 0]
    counts = [int((values == v).sum()) for v in (0.5, 1.5, 2.5, 3.5)]
    assert counts[0] == 0
    assert stats.chisquare(counts[1:], np.array([1, 2, 5]) * 5000).pvalue > 1e-4
    distinct = weighted.resample(3, seed=1, replace=False).theta[:, 0]
    assert sorted(distinct.tolist()) == [1.5, 2.5, 3.5]
    first = [float(weighted.resample(1, seed=s, replace=False).theta[0, 0]) for s in range(2000)]
    assert stats.chisquare([first.count(v) for v in (1.5, 2.5, 3.5)], np.array([1, 2, 5]) * 250).pvalue > 1e-4
    with pytest.raises(ValueError, match="at most 3"):
        weighted.resample(4, seed=1, replace=False)


def test_doubtful_weights_are_told_of_after_resampling() -> None:
    weighted = _draws(0.3).reweight(TOY.log_likelihood, progress=False)
    assert not weighted.diagnostics.reliable
    assert weighted.diagnostics.verdict in weighted.resample(10, seed=0).warnings
    assert "read me" in weighted.resample(10, seed=0).warnings


def test_batch_is_split_by_observation() -> None:
    batch = _batch()
    assert batch.to_numpy().shape == (500, 3, 2)
    one = batch.observation(1)
    assert torch.equal(one.theta, batch.theta[:, 1])
    assert torch.equal(one.x, X + 1)
    assert one.reweight(TOY.log_likelihood, progress=False).diagnostics.efficiency == pytest.approx(1.0)
    assert "observations=3" in str(batch)
    for call in (batch.summary, batch.corner, batch.to_dataframe, lambda: batch.reweight(TOY.log_likelihood)):
        with pytest.raises(ValueError, match=r"got 3: pick one with \.observation\(i\)"):
            call()
    with pytest.raises(ValueError, match="expected 0 to 2, got 3"):
        batch.observation(3)
    with pytest.raises(ValueError, match="got draws for one"):
        one.observation(0)


@pytest.mark.parametrize("kind", ["plain", "batch", "weighted", "zero"])
def test_file_round_trip(kind: str, tmp_path: Path) -> None:
    draws: PosteriorSamples | WeightedSamples = {
        "plain": _draws,
        "batch": _batch,
        "weighted": lambda: _draws(1.5).reweight(TOY.log_likelihood, progress=False),
        "zero": lambda: _draws().reweight(lambda t, x: torch.full((len(t),), -torch.inf), progress=False),
    }[kind]()
    again = load(draws.save(tmp_path / "draws.h5"))
    assert type(again) is type(draws)
    for name in ("theta", "log_q", "x"):
        assert torch.equal(getattr(again, name), getattr(draws, name))
    assert again.prior == draws.prior
    assert (again.seed, again.source, again.warnings) == (draws.seed, draws.source, draws.warnings)
    if isinstance(draws, WeightedSamples):
        assert isinstance(again, WeightedSamples)
        assert torch.equal(again.log_weights, draws.log_weights)
        assert again.diagnostics == draws.diagnostics
    assert [file.name for file in tmp_path.iterdir()] == ["draws.h5"]


def test_file_is_readable_without_sbiflow(tmp_path: Path) -> None:
    weighted = _draws(1.5).reweight(TOY.log_likelihood, progress=False)
    with h5py.File(weighted.save(tmp_path / "draws.h5")) as file:
        assert list(file.attrs["names"]) == ["t0", "t1"]
        assert list(file.attrs["units"]) == ["m", "m"]
        assert file["weights"][()].sum() == pytest.approx(1.0)
        assert len(file.attrs["x_sha256"]) == 64
        assert file.attrs["verdict"].startswith("Trustworthy")


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(tmp_path / "none.h5")
    path = _draws().save(tmp_path / "draws.h5")
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:5000])
    (tmp_path / "text.h5").write_text("theta,log_q\n")
    for name in ("cut.h5", "text.h5"):
        with pytest.raises(ValueError, match="truncated or foreign"):
            load(tmp_path / name)
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["theta"] = np.zeros((3, 2))
    with pytest.raises(ValueError, match="expected 'sbiflow samples', got an HDF5 file with format None"):
        load(tmp_path / "foreign.h5")
    with h5py.File(path, "a") as file:
        file["x"][0] = 99.0
    with pytest.raises(ValueError, match="damaged"):
        load(path)
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(ValueError, match=r"format version 1 or older, got 2"):
        load(path)


def test_failed_write_keeps_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _draws().save(tmp_path / "draws.h5")
    before = path.read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5py.Group, "create_dataset", full)
    with pytest.raises(OSError, match="No space left"):
        _draws(2.0).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["draws.h5"]


def test_dataframe() -> None:
    pytest.importorskip("pandas")
    draws = _draws(1.5)
    frame = draws.to_dataframe()
    assert list(frame.columns) == ["t0", "t1", "log_q"]
    assert frame.attrs["units"] == {"t0": "m", "t1": "m"}
    np.testing.assert_array_equal(frame["t1"], draws.theta[:, 1])
    assert draws.reweight(TOY.log_likelihood, progress=False).to_dataframe()["weight"].sum() == pytest.approx(
        1
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")  # ArviZ announces its own refactoring once a day
def test_arviz() -> None:
    pytest.importorskip("arviz")
    data = _draws(1.5).to_arviz()
    assert data.posterior["t0"].shape == (1, N)
    assert data.posterior["t0"].attrs["units"] == "m"
    weighted = _draws(1.5).reweight(TOY.log_likelihood, progress=False)
    assert weighted.to_arviz().posterior["t0"].shape == (1, int(weighted.diagnostics.ess))


def test_wrong_shapes_and_values_are_refused() -> None:
    theta, log_q = torch.zeros(5, 2), torch.zeros(5)
    with pytest.raises(ValueError, match=r"theta: expected shape \(n, 2\), got \(5, 3\)"):
        PosteriorSamples(torch.zeros(5, 3), log_q, X, TOY.prior)
    with pytest.raises(ValueError, match=r"log_q: expected shape \(5,\), got \(4,\)"):
        PosteriorSamples(theta, torch.zeros(4), X, TOY.prior)
    with pytest.raises(ValueError, match=r"x: expected shape \(3"):
        PosteriorSamples(torch.zeros(5, 3, 2), torch.zeros(5, 3), X[:2], TOY.prior)
    with pytest.raises(ValueError, match="theta: expected at least one draw"):
        PosteriorSamples(torch.zeros(0, 2), torch.zeros(0), X, TOY.prior)
    theta[3, 1] = torch.nan
    with pytest.raises(ValueError, match="theta: expected finite values, got 1"):
        PosteriorSamples(theta, log_q, X, TOY.prior)


def _azimuth_draws(offset: float, seed: int) -> PosteriorSamples:
    prior = Prior(PeriodicUniform("azimuth", 0.0, 180.0, unit="deg"), Normal("v", 0.0, 1.0, unit="km/s"))
    rng = np.random.default_rng(seed)
    theta = np.stack([(offset + rng.normal(0, 8, 2000)) % 180.0, rng.normal(0, 1, 2000)], -1)
    return PosteriorSamples(torch.from_numpy(theta), torch.zeros(2000), torch.zeros(3), prior)


def test_periodic_corner_is_one_peak_across_the_seam() -> None:
    draws = _azimuth_draws(2.0, seed=0)
    figure = draws.corner(truth=[179.0, math.nan], overlay={"other": _azimuth_draws(176.0, seed=1)})
    axes = figure.axes[2]  # the joint panel
    low, high = axes.get_xlim()
    assert -50 < low < -20 < 25 < high < 50
    assert [line.get_xdata()[0] for line in axes.lines] == pytest.approx([-1.0])
    assert axes.get_xlabel() == "azimuth [deg]"
    assert draws.summary()["azimuth"].sd == pytest.approx(8.0, rel=4.5 / math.sqrt(4000))
    with pytest.raises(ValueError, match="truth: expected shape"):
        draws.corner(truth=[1.0])


def test_weight_histogram_is_a_figure_with_all_draws() -> None:
    figure = _draws(1.5).reweight(TOY.log_likelihood, progress=False).weight_histogram()
    assert sum(patch.get_height() for patch in figure.axes[0].patches) == N


def test_names_come_from_the_prior() -> None:
    draws = _draws()
    assert (draws.names, draws.units, len(draws)) == (("t0", "t1"), ("m", "m"), N)
    assert draws.prior == normal_prior()
    assert "warning: read me" in str(draws)
    assert repr(draws) == "PosteriorSamples(n=4000, parameters=t0, t1, exact)"
