"""Importance weights against closed forms, ArviZ and the exact evidence of a linear-Gaussian model."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logsumexp
from torch import Tensor
from torch.distributions import MultivariateNormal

from sbiflow import importance as imp
from sbiflow.elsewhere import look_elsewhere
from sbiflow.pareto import unseen_share
from sbiflow.priors import Normal, PeriodicUniform, Prior, Uniform
from sbiflow.samples import PosteriorSamples, load
from tests.toys import LinearGaussian

A = torch.tensor([[1.0, 0.5], [-0.3, 2.0], [0.7, 0.1]], dtype=torch.float64)
NOISE = 0.4
X = torch.tensor([0.9, -1.1, 0.3], dtype=torch.float64)
PRIOR = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())


def _log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
    return MultivariateNormal(theta @ A.T, NOISE**2 * torch.eye(3).double()).log_prob(x)


def _posterior(widen: float = 1.0) -> MultivariateNormal:
    precision = torch.eye(2).double() + A.T @ A / NOISE**2
    covariance = torch.linalg.inv(precision)
    return MultivariateNormal(covariance @ A.T @ X / NOISE**2, widen**2 * covariance)


def _exact_log_evidence() -> float:
    covariance = A @ A.T + NOISE**2 * torch.eye(3).double()
    return float(MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(X))


def _toy_log_weights(n: int, widen: float, seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        theta = _posterior(widen).sample((n,))
    log_q = _posterior(widen).log_prob(theta)
    return imp.importance_weights(_log_likelihood(theta, X), PRIOR.log_prob(theta), log_q)[0]


def _arviz_khat(log_weights: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its own refactoring once a day
        arviz = pytest.importorskip("arviz")
    return float(arviz.psislw(log_weights)[1])


@pytest.mark.parametrize("n", [25, 100, 1000, 20_000])
@pytest.mark.parametrize("shape", ["narrow", "wide", "student", "bounded", "with zeros"])
def test_khat_equals_arviz(n: int, shape: str) -> None:
    rng = np.random.default_rng(n)
    log_weights = {
        "narrow": lambda: 0.1 * rng.normal(size=n),
        "wide": lambda: 40 + 3 * rng.normal(size=n),
        "student": lambda: np.log(np.abs(rng.standard_t(1.5, size=n))),
        "bounded": lambda: np.log(rng.uniform(size=n)),
        "with zeros": lambda: np.where(rng.uniform(size=n) < 0.4, -np.inf, rng.normal(size=n)),
    }[shape]()
    assert imp.psis_khat(torch.tensor(log_weights)) == pytest.approx(_arviz_khat(log_weights), abs=1e-6)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_khat_finds_the_shape_of_a_pareto(k: float) -> None:
    """w = u^-k has Pareto shape k. The tail holds 949 draws: sd(k̂) = (1 + k)/√949; 4.5 sd, 7e-6 alarms."""
    u = torch.rand(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert imp.psis_khat(-k * u.log()) == pytest.approx(k, abs=4.5 * (1 + k) / math.sqrt(949) + 0.005)


def test_khat_without_a_tail() -> None:
    assert imp.psis_khat(torch.zeros(1000)) == 0.0  # an exact proposal
    assert imp.psis_khat(1e-13 * torch.randn(1000).double()) == 0.0  # and one to rounding
    assert imp.psis_khat(torch.zeros(10)) == math.inf  # too few draws
    assert imp.psis_khat(torch.full((1000,), -math.inf)) == math.inf
    lonely = torch.full((1000,), -1e6).double()
    lonely[3] = 0.0
    assert imp.psis_khat(lonely) == math.inf  # one draw carries everything


def test_effective_sample_size_closed_forms() -> None:
    assert imp.effective_sample_size(torch.tensor([1.0, 2.0, 3.0]).log()) == pytest.approx(36 / 14)
    assert imp.effective_sample_size(torch.tensor([5.0, 5.0, -math.inf, -math.inf])) == pytest.approx(2.0)
    assert imp.effective_sample_size(torch.full((4,), -math.inf)) == 0.0
    assert imp.effective_sample_size(torch.tensor([1e5, 1e5 - 1e3]).double()) == pytest.approx(1.0)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-300, 300), min_size=1, max_size=50),
    st.floats(-1e4, 1e4),
    st.randoms(use_true_random=False),
)
def test_figures_do_not_depend_on_scale_or_order(values: list[float], shift: float, order: object) -> None:
    lw = torch.tensor(values, dtype=torch.float64)
    ess, (evidence, error) = imp.effective_sample_size(lw), imp.log_evidence(lw)
    order.shuffle(values)  # type: ignore[attr-defined]
    moved = torch.tensor(values, dtype=torch.float64) + shift
    assert 1 - 1e-9 <= ess <= len(values) * (1 + 1e-9)
    assert imp.effective_sample_size(moved) == pytest.approx(ess, rel=1e-6)
    assert imp.log_evidence(moved)[0] == pytest.approx(evidence + shift, abs=1e-6)
    assert imp.log_evidence(moved)[1] == pytest.approx(error, rel=1e-4, abs=1e-5)


def test_exact_proposal_gives_the_evidence_without_error() -> None:
    found = imp.diagnose(_toy_log_weights(1000, 1.0, seed=0))
    assert found.log_evidence == pytest.approx(_exact_log_evidence(), abs=1e-10)
    assert found.log_evidence_error < 1e-6
    assert found.ess == pytest.approx(1000)
    assert found.khat == 0.0
    assert found.reliable


def test_evidence_pulls_are_unit_normal() -> None:
    """2,000 estimates from 1,000 draws each: mean and sd of (estimate − exact)/σ within 4.5 standard errors.

    False alarms 1.4e-5 together; a tenth too large or too small a σ would be 6 standard errors away. The
    allowance 0.03 on the mean is the bias of a logarithm, −σ/2.
    """
    lw = _toy_log_weights(2_000_000, 1.4, seed=1).reshape(2000, 1000)
    estimates = np.array([imp.log_evidence(row) for row in lw])
    pulls = (estimates[:, 0] - _exact_log_evidence()) / estimates[:, 1]
    assert abs(pulls.mean()) < 4.5 / math.sqrt(2000) + 0.03
    assert abs(pulls.std() - 1) < 4.5 / math.sqrt(2 * 2000)


def test_evidence_error_falls_as_the_root_of_n() -> None:
    """Slope of log rms error against log n, 500 estimates per n: −1/2 within 4.5 sd of 0.010, 7e-6 alarms."""
    sizes = [100, 400, 1600, 6400]
    rms = []
    for i, n in enumerate(sizes):
        rows = _toy_log_weights(500 * n, 1.4, seed=10 + i).reshape(500, n)
        errors = torch.logsumexp(rows, 1) - math.log(n) - _exact_log_evidence()
        rms.append(float(errors.square().mean().sqrt()))
    assert np.polyfit(np.log(sizes), np.log(rms), 1)[0] == pytest.approx(-0.5, abs=0.046)


@pytest.mark.parametrize("seed", range(5))
def test_too_narrow_a_proposal_is_not_trusted(seed: int) -> None:
    """0.4 of the width: the true Pareto shape is 1 − 0.4² = 0.84, k̂ alone is fooled by one seed in twenty."""
    found = imp.diagnose(_toy_log_weights(20_000, 0.4, seed=seed))
    assert not found.reliable
    assert found.verdict.startswith("Do not use")


def test_slightly_narrow_a_proposal_says_that_its_errors_are_doubtful() -> None:
    found = imp.diagnose(_toy_log_weights(20_000, 0.65, seed=0))  # Pareto shape 1 − 0.65² = 0.58
    assert found.reliable
    assert "the errors quoted are too small" in found.warnings[0]


def test_weights_are_the_three_terms() -> None:
    like, prior, q = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -math.inf]), torch.tensor([0.5, 0.5])
    lw, nonfinite = imp.importance_weights(like, prior, q)
    assert lw.dtype == torch.float64
    assert lw.tolist() == [-0.5, -math.inf]
    assert nonfinite == 0


def test_nan_likelihood_is_counted_and_weighs_nothing() -> None:
    like = torch.tensor([math.nan, 0.0, math.nan, -math.inf])
    prior = torch.tensor([0.0, 0.0, -math.inf, 0.0])  # the second NaN is outside the prior: no fault
    lw, nonfinite = imp.importance_weights(like, prior, torch.zeros(4))
    assert lw.tolist() == [-math.inf, 0.0, -math.inf, -math.inf]
    assert nonfinite == 1
    found = imp.diagnose(torch.cat([torch.zeros(1000), lw]), nonfinite)
    assert (found.n_zero, found.n_nonfinite, found.reliable) == (3, 1, True)
    assert "NaN for 1 of 1,004 draws" in found.warnings[0]
    assert not imp.diagnose(torch.zeros(1000), 11).reliable  # above one per cent


@pytest.mark.parametrize(
    ("like", "prior", "q", "message"),
    [
        (math.inf, 0.0, 0.0, r"log_likelihood: expected finite values, -inf or NaN, got 1 \+inf"),
        (0.0, math.nan, 0.0, "log_prior: expected"),
        (0.0, math.inf, 0.0, "log_prior: expected"),
        (0.0, 0.0, math.nan, "log_q: expected finite values"),
        (0.0, 0.0, -math.inf, "log_q: expected finite values"),
    ],
)
def test_nonsense_is_refused(like: float, prior: float, q: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imp.importance_weights(*(torch.tensor([0.0, value]) for value in (like, prior, q)))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="three equal shapes"):
        imp.importance_weights(torch.zeros(3), torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="log_weights: expected shape"):
        imp.diagnose(torch.zeros(0))
    with pytest.raises(ValueError, match="log_weights: expected finite values or -inf"):
        imp.diagnose(torch.tensor([0.0, math.nan]))


def test_no_weight_at_all_is_a_verdict_not_an_exception() -> None:
    found = imp.diagnose(torch.full((1000,), -math.inf))
    assert (found.ess, found.max_weight_share, found.log_evidence) == (0.0, 0.0, -math.inf)
    assert found.log_evidence_error == math.inf
    assert not found.reliable
    assert "every draw has zero weight" in str(found)


def test_verdict_thresholds() -> None:
    assert imp.khat_limit(1000) == pytest.approx(2 / 3)
    assert imp.khat_limit(10**6) == 0.7
    assert imp.verdict(1000, 500, 0.66)[1]
    assert not imp.verdict(1000, 500, 0.67)[1]
    assert not imp.verdict(1000, 99, 0.1)[1]
    assert not imp.verdict(1000, 500, math.nan)[1]
    assert "cannot be fitted" in imp.verdict(10, 5, math.inf)[0]


def test_low_efficiency_is_mentioned() -> None:
    lw = torch.full((20_000,), -20.0).double()
    lw[:500] = 0.0
    warnings_ = imp.diagnose(lw).warnings
    assert "efficiency below 5 %" in warnings_[-1]
    assert "4.5%" in warnings_[0]  # 1/√500 of the width


def test_log_likelihood_is_evaluated_in_chunks_in_float64() -> None:
    sizes = []

    def watch(theta: Tensor, x: Tensor) -> Tensor:
        assert theta.dtype == x.dtype == torch.float64
        sizes.append(len(theta))
        return _log_likelihood(theta, x)

    theta = torch.randn(1000, 2)
    chunked = imp.evaluate_log_likelihood(watch, theta, X.float(), chunk=300, progress=False)
    assert sizes == [300, 300, 300, 100]
    torch.testing.assert_close(chunked, _log_likelihood(theta.double(), X.float().double()))
    with pytest.raises(ValueError, match=r"log_likelihood: expected shape \(300,\), got \(300, 1\)"):
        imp.evaluate_log_likelihood(lambda t, x: _log_likelihood(t, x)[:, None], theta, X, chunk=300)


# --- can the verdict be falsely "Trustworthy"? Posteriors and proposals with exact densities, exact evidence 1


class Mixture:
    """Normals of weights (k,), means (k, D) and one standard deviation per dimension (D,)."""

    def __init__(self, weights: list[float], means: list[list[float]], sd: list[float]) -> None:
        self.weights, self.means, self.sd = np.array(weights), np.array(means, float), np.array(sd, float)

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        rows = rng.choice(len(self.weights), n, p=self.weights)
        return self.means[rows] + self.sd * rng.standard_normal((n, len(self.sd)))

    def log_density(self, theta: np.ndarray) -> np.ndarray:
        parts = stats.norm.logpdf(theta[:, None], self.means, self.sd).sum(-1)
        with np.errstate(divide="ignore"):
            return logsumexp(parts + np.log(self.weights), axis=1)

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        return torch.from_numpy(self.log_density(theta.numpy()))


class Student(Mixture):
    """One Student t with three degrees of freedom."""

    def __init__(self, dim: int) -> None:
        self.t = stats.multivariate_t(np.zeros(dim), np.eye(dim), 3)

    def log_density(self, theta: np.ndarray) -> np.ndarray:
        return self.t.logpdf(theta).reshape(len(theta))


class HalfNormal(Mixture):
    """On (0, inf)."""

    def __init__(self, sd: float) -> None:
        self.width = sd

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return np.abs(self.width * rng.standard_normal((n, 1)))

    def log_density(self, theta: np.ndarray) -> np.ndarray:
        return stats.halfnorm.logpdf(theta[:, 0], scale=self.width)


def normal(dim: int, sd: float = 1.0, mean: float = 0.0, first: int | None = None) -> Mixture:
    """Standard normal, but for sd and mean of its `first` dimensions."""
    changed = np.arange(dim) < (dim if first is None else first)
    return Mixture([1.0], [list(mean * changed)], list(np.where(changed, sd, 1.0)))


def modes(last: float, sd: float = 1.0) -> Mixture:
    """Four modes, three of them equal."""
    corners = [[-5, -5], [-5, 5], [5, -5], [5, 5]]
    return Mixture([(1 - last) / 3] * 3 + [last], corners, [sd, sd])


def plane(dim: int) -> Prior:
    return Prior(*(Normal(f"t{i}", 0.0, 10.0) for i in range(dim)))


def judged(
    posterior: Mixture, proposal: Mixture, prior: Prior, n: int, seed: int, elsewhere: bool
) -> imp.WeightDiagnostics:
    theta = proposal.draw(n, np.random.default_rng(seed))
    log_weights = torch.from_numpy(posterior.log_density(theta) - proposal.log_density(theta))
    found = imp.diagnose(log_weights)
    if not elsewhere or not found.reliable:
        return found

    def likelihood(at: Tensor, x: Tensor) -> Tensor:
        return posterior.log_prob(at, x) - prior.log_prob(at)

    x, size = torch.zeros(1).double(), max(500, n // 5)
    seen = look_elsewhere(torch.from_numpy(theta), log_weights, x, prior, proposal, likelihood, size, seed)
    return imp.diagnose(log_weights, 0, seen)


def counts(posterior: Mixture, proposal: Mixture, prior: Prior, n: int, seeds: range, elsewhere: bool = True):
    """Verdicts "Trustworthy", and how many of them while the evidence is off by more than 4 of its errors."""
    found = [judged(posterior, proposal, prior, n, seed, elsewhere) for seed in seeds]
    trusted = [each for each in found if each.reliable]
    return len(trusted), sum(abs(d.log_evidence) > 4 * d.log_evidence_error + 1e-9 for d in trusted)


ADVERSARIES = {
    "fourth mode without mass": (modes(0.25), modes(0.0), plane(2)),
    "fourth mode with mass 1e-4": (modes(0.25), modes(1e-4), plane(2)),
    "fourth mode with mass 1e-3": (modes(0.25), modes(1e-3), plane(2)),
    "modes 0.5 / 0.5 as 0.999 / 0.001": (
        Mixture([0.5, 0.5], [[-5, 0], [5, 0]], [1, 1]),
        Mixture([0.999, 0.001], [[-5, 0], [5, 0]], [1, 1]),
        plane(2),
    ),
    "modes 0.99 / 0.01 as 0.9999 / 0.0001": (
        Mixture([0.99, 0.01], [[-5, 0], [5, 0]], [1, 1]),
        Mixture([0.9999, 0.0001], [[-5, 0], [5, 0]], [1, 1]),
        plane(2),
    ),
    "half as wide in 1 of 10": (normal(10), normal(10, 0.5, first=1), plane(10)),
    "0.2 as wide in 1 of 10": (normal(10), normal(10, 0.2, first=1), plane(10)),
    "0.7 as wide in 10 of 10": (normal(10), normal(10, 0.7), plane(10)),
    "normal for Student t": (Student(5), normal(5), plane(5)),
    "wider normal for Student t": (Student(5), normal(5, 1.5), plane(5)),
    "shifted by 2 sd": (normal(2), normal(2, 1.0, 2.0, first=1), plane(2)),
    "shifted by 3 sd": (normal(2), normal(2, 1.0, 3.0, first=1), plane(2)),
    "cut at the edge of the prior": (HalfNormal(1.0), HalfNormal(0.4), Prior(Uniform("t", 0.0, 50.0))),
}


@pytest.mark.parametrize("n", [100, 1000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ADVERSARIES)
def test_no_adversary_is_falsely_trusted(name: str, n: int) -> None:
    """100 seeds each (20 in the quick runs); weights alone pass up to all of them (next test)."""
    assert counts(*ADVERSARIES[name], n, range(100 if n == 10_000 else 20))[1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ADVERSARIES)
def test_no_adversary_is_falsely_trusted_in_a_hundred_seeds(name: str) -> None:
    assert counts(*ADVERSARIES[name], 1000, range(100))[1] == 0


def test_weights_alone_cannot_see_a_missed_mode() -> None:
    """What the check elsewhere is for: without it the verdict is wrong nearly whenever it is favourable."""
    trusted, wrong = counts(*ADVERSARIES["fourth mode without mass"], 1000, range(40), elsewhere=False)
    assert trusted == wrong > 5


def test_a_small_far_mode_stays_invisible_and_the_reach_says_so() -> None:
    """A missed mode of 1e-4 of the prior's area: a hundred draws of the prior see nothing, and that is said."""
    found = judged(modes(0.25, 0.1), modes(0.0, 0.1), plane(2), 1000, 0, True)
    assert found.elsewhere is not None
    assert found.elsewhere.reach > 0.6
    assert "reach" in str(found)


@pytest.mark.parametrize(
    ("posterior", "proposal", "dim"),
    [(normal(2), normal(2), 2), (normal(5), normal(5, 1.2), 5), (normal(5), normal(5, 0.9), 5),
     (normal(2), normal(2, 1.0, 0.5), 2), (modes(0.25), modes(0.4), 2)],
)  # fmt: skip
def test_good_proposals_stay_trusted(posterior: Mixture, proposal: Mixture, dim: int) -> None:
    trusted, wrong = counts(posterior, proposal, plane(dim), 2000, range(8))
    assert (trusted, wrong) == (8, 0)


def test_look_elsewhere_measures_the_mass_of_a_missed_mode() -> None:
    """The missed quarter is a third of what is seen: within 4.5 standard errors of the estimates, 7e-6 alarms."""
    found = [judged(modes(0.25), modes(0.0), plane(2), 1000, seed, True).elsewhere for seed in range(60)]
    missed = np.array([each.missed for each in found if each is not None])
    assert len(missed) >= 10  # where the weights alone are trusted
    assert abs(missed.mean() - 1 / 3) < 4.5 * missed.std() / math.sqrt(len(missed))
    good = judged(normal(2), normal(2), plane(2), 1000, 0, True).elsewhere
    assert good is not None and good.missed == 0.0


def test_look_elsewhere_with_periodic_parameters_and_a_cut_likelihood() -> None:
    """A phase across the cut; NaN and zero likelihoods elsewhere weigh nothing."""
    prior = Prior(PeriodicUniform("azimuth", 0.0, 360.0), Uniform("t", 0.0, 1.0))
    width = math.radians(20)

    class Phase:
        def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
            at = torch.from_numpy(stats.vonmises.logpdf(np.radians(theta[:, 0].numpy()), 1 / width**2))
            return at + math.log(math.pi / 180)

    rng = np.random.default_rng(0)
    azimuth = np.degrees(rng.vonmises(0.0, 1 / width**2, 2000)) % 360
    theta = torch.from_numpy(np.stack([azimuth, rng.uniform(size=2000)], -1))

    def likelihood(at: Tensor, x: Tensor) -> Tensor:
        value = Phase().log_prob(at, x) + math.log(360.0)
        return torch.where(at[:, 1] < 0.001, math.nan, value)

    x = torch.zeros(2, 3).double()
    found = look_elsewhere(theta, torch.zeros(2000).double(), x, prior, Phase(), likelihood, 500, 0)  # type: ignore[arg-type]
    assert (found.n, found.missed) == (500, 0.0)
    assert found.reach < 0.2


def test_draws_look_elsewhere_when_they_know_their_proposal(tmp_path) -> None:
    toy = LinearGaussian()
    x, calls = torch.tensor([1.0, -2.0, 0.5]).double(), []

    def likelihood(theta: Tensor, at: Tensor) -> Tensor:
        calls.append(len(theta))
        return toy.log_likelihood(theta, at)

    proposal = toy.exact_proposal(1.1)
    theta, log_q = proposal.sample_and_log_prob(x[None], 4000, torch.Generator().manual_seed(0))
    draws = PosteriorSamples(theta[:, 0], log_q[:, 0], x, toy.prior, seed=1, proposal=proposal)
    weighted = draws.reweight(likelihood, progress=False)
    assert weighted.diagnostics.elsewhere is not None
    assert weighted.diagnostics.elsewhere.n == 800
    assert sum(calls) == 4800
    assert weighted.diagnostics.reliable
    assert load(weighted.save(tmp_path / "draws.h5")).diagnostics == weighted.diagnostics  # type: ignore[union-attr]
    assert draws.reweight(likelihood, elsewhere=0, progress=False).diagnostics.elsewhere is None
    alone = PosteriorSamples(theta[:, 0], log_q[:, 0], x, toy.prior)
    assert "not looked for" in str(alone.reweight(likelihood, progress=False).diagnostics)
    with pytest.raises(ValueError, match="elsewhere: expected 0 for draws that do not know"):
        alone.reweight(likelihood, elsewhere=100, progress=False)


@pytest.mark.parametrize("k", [0.3, 0.6])
def test_unseen_share_covers_what_a_pareto_has_beyond(k: float) -> None:
    """Pareto weights u^-k: beyond the 1/n quantile lie n^(k - 1) of the mass; the estimate errs to the safe side."""
    n = 4000
    found = [unseen_share(-k * torch.rand(n, generator=torch.Generator().manual_seed(i)).double().log())
             for i in range(50)]  # fmt: skip
    exact = n ** (k - 1)
    assert exact < float(np.median(found)) < 4 * exact
    assert unseen_share(torch.zeros(1000)) == 0.0
    assert unseen_share(torch.zeros(10)) == math.inf


@pytest.mark.parametrize(
    ("efficiency", "n"), [(0.5, 1000), (0.1, 2000), pytest.param(0.01, 40_000, marks=pytest.mark.slow)]
)
def test_evidence_error_is_not_optimistic_where_the_verdict_trusts_it(efficiency: float, n: int) -> None:
    """Lognormal weights: no pull beyond 4 and a scatter below 1.15 (200 pulls of sd 1: 3 standard errors)."""
    spread = math.sqrt(-math.log(efficiency))
    rng = np.random.default_rng(5)
    found = [
        imp.diagnose(torch.from_numpy(spread * rng.standard_normal(n) - spread**2 / 2)) for _ in range(200)
    ]
    pulls = np.array([each.log_evidence / each.log_evidence_error for each in found if each.reliable])
    assert len(pulls) == 0 or (np.abs(pulls).max() < 4 and pulls.std() < 1.15)
