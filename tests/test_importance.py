"""Importance weights against closed forms, ArviZ and the exact evidence of a linear-Gaussian model."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal

from sbiflow import importance as imp

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
