"""Each alarm fires on weights made for it, and none on good ones; missed mass that exploration saw is reported."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from sbiflow.integrate import alarms
from sbiflow.integrate.alarms import (
    Consistency,
    consistency,
    diagnose,
    ess_growth,
    explored,
    reasons,
    verdict,
)
from sbiflow.integrate.domain import Domain
from sbiflow.integrate.iterations import IntegralDiagnostics, Iteration
from sbiflow.integrate.proposal import Proposal
from sbiflow.integrate.replay import Replay
from tests.integrate.small import config, cube

FLOAT, INF, NAN = torch.float64, math.inf, math.nan
AGREED = Consistency(3.0, 4, 0.56)
NOTHING_COUNTED = SimpleNamespace(n_zero=0, n_nan=0, n_inf=0)


def figures_of(log_w: np.ndarray, replay: Replay | None = None, proposal: Proposal | None = None):
    run = SimpleNamespace(integrand=NOTHING_COUNTED, replay=replay or Replay(), proposal=proposal)
    return diagnose(run, torch.from_numpy(log_w))


def found(figures: IntegralDiagnostics, error: float = 1e-3, agreement: Consistency = AGREED) -> list[str]:
    return reasons(figures, figures.n, error, agreement)


def lognormal(n: int, sigma: float, seed: int) -> np.ndarray:
    return sigma * np.random.default_rng(seed).normal(size=n)


def pareto(n: int, shape: float, seed: int) -> np.ndarray:
    """log of weights whose tail falls as w^(-1/shape): moments below 1/shape exist."""
    return -shape * np.log(np.random.default_rng(seed).uniform(size=n))


def rarely_hit(n: int, share: float, seed: int) -> np.ndarray:
    """Cuts: zero but for a share of the points."""
    rng = np.random.default_rng(seed)
    return np.where(rng.uniform(size=n) < share, 0.3 * rng.normal(size=n), -INF)


GOOD = {
    "all equal": lambda n, seed: np.full(n, -1234.5),
    "nearly equal": lambda n, seed: lognormal(n, 0.01, seed),
    "flow": lambda n, seed: lognormal(n, 0.4, seed),
    "bounded": lambda n, seed: np.log(np.random.default_rng(seed).uniform(size=n)),
    "cuts": lambda n, seed: rarely_hit(n, 0.05, seed),
    "underflowing": lambda n, seed: lognormal(n, 0.4, seed) - 5000.0,
}
GOOD_FIGURES = figures_of(GOOD["flow"](20_000, 1))


@pytest.mark.parametrize("kind", GOOD)
def test_no_alarm_on_good_weights(kind):
    """None in 40 samples of 10,000: at 95 % confidence the false-alarm rate is below 7 %; expected is none."""
    for seed in range(40):
        assert found(figures_of(GOOD[kind](10_000, seed))) == []


def test_every_figure():
    log_w = np.log(np.array([1.0, 2.0, 1.0, 4.0] * 500))
    figures = figures_of(log_w)
    w = np.exp(log_w)
    assert figures.n == 2000 and figures.ess == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert figures.efficiency == pytest.approx(figures.ess / 2000)
    assert figures.max_weight_share == pytest.approx(4 / w.sum())
    assert figures.ess_growth == pytest.approx(1.0, abs=0.05)
    assert math.isnan(figures.missed_share)  # nothing was explored


# --- every reason


def test_heavy_tail_is_caught():
    """No mean exists for k = 1.1, no variance for k = 0.8: caught in every sample."""
    for seed in range(20):
        assert any("k-hat" in text for text in found(figures_of(pareto(10_000, 1.1, seed))))
        assert found(figures_of(pareto(10_000, 0.8, seed)))


def test_few_effective_points():
    assert any("worth" in text for text in found(figures_of(lognormal(90, 0.1, 1))))
    assert not any("worth" in text for text in found(figures_of(lognormal(120, 0.1, 1))))


def test_one_point_that_carries_much():
    log_w = np.zeros(3000)
    log_w[17] = math.log(200.0)
    assert any("one point carries 6%" in text for text in found(figures_of(log_w)))


def test_mass_expected_beyond_the_largest_weight():
    assert found(replace(GOOD_FIGURES, unseen_share=0.021)) != []
    assert found(replace(GOOD_FIGURES, unseen_share=0.019)) == []
    assert any("not drawn yet" in text for text in found(replace(GOOD_FIGURES, unseen_share=INF)))


def test_slow_growth_of_the_effective_size():
    """Twelve weights carry the sum, and most blocks have none of them."""
    log_w = np.zeros(32_000)
    log_w[np.random.default_rng(1).choice(32_000, 12, replace=False)] = math.log(1500.0)
    figures = figures_of(log_w)
    assert figures.ess_growth < 0.5 and any("grows as" in text for text in found(figures))


@pytest.mark.parametrize("name", ("n_nan", "n_inf"))
def test_too_many_nonfinite_values(name):
    n = GOOD_FIGURES.n
    assert any("NaN or infinite" in text for text in found(replace(GOOD_FIGURES, **{name: n // 50})))
    few = replace(GOOD_FIGURES, **{name: n // 200})
    assert found(few) == []
    assert any("count as zero" in text for text in alarms.further_warnings(few, 1e-3))


def test_share_of_nonfinite_values_is_of_all_evaluations():
    figures = replace(GOOD_FIGURES, n_nan=GOOD_FIGURES.n // 80)
    assert reasons(figures, GOOD_FIGURES.n, 1e-3, AGREED)
    assert not reasons(figures, 2 * GOOD_FIGURES.n, 1e-3, AGREED)


def test_missed_mass_against_the_error():
    figures = replace(GOOD_FIGURES, missed_share=0.01)
    assert any("hardly draws" in text for text in found(figures, error=0.003))
    assert found(figures, error=0.005) == []
    assert found(replace(GOOD_FIGURES, missed_share=0.0), error=0.0) == []


def test_disagreement_with_earlier_estimates():
    assert any("disagree" in text for text in found(GOOD_FIGURES, agreement=Consistency(90.0, 3, 1e-19)))
    assert found(GOOD_FIGURES, agreement=Consistency(0.0, 0, NAN)) == []


@pytest.mark.parametrize("n_nan", (0, 500))
def test_everything_zero(n_nan):
    figures = replace(figures_of(np.full(500, -INF)), n_nan=n_nan)
    text, reliable = verdict(figures, 1000, INF, Consistency(0.0, 0, NAN))
    assert not reliable and "zero" in text and ("NaN" in text) == bool(n_nan)


def test_a_few_points_that_are_not_zero():
    log_w = np.full(2000, -INF)
    log_w[:3] = 0.0
    text, reliable = verdict(figures_of(log_w), 2000, 0.6, Consistency(0.0, 0, NAN))
    assert not reliable and text.startswith("Do not use: ") and "k-hat" in text


def test_verdict_says_which():
    good, reliable = verdict(GOOD_FIGURES, GOOD_FIGURES.n, 1e-3, AGREED)
    assert reliable and good.startswith("Trustworthy: relative error 1.0e-03")
    bad, reliable = verdict(replace(GOOD_FIGURES, ess=3.0, khat=0.9), GOOD_FIGURES.n, 1e-3, AGREED)
    assert not reliable and bad.startswith("Do not use: ") and bad.count(";") == 1 and bad.endswith(".")


def test_further_warnings():
    assert alarms.further_warnings(GOOD_FIGURES, 1e-3) == []
    assert any("above 0.5" in text for text in alarms.further_warnings(replace(GOOD_FIGURES, khat=0.6), 1e-3))
    assert any("opposite signs" in text for text in alarms.further_warnings(GOOD_FIGURES, 0.8))


def test_hidden_error():
    light = replace(GOOD_FIGURES, khat=0.2, unseen_share=0.01, tail_error=0.0)
    heavy = replace(GOOD_FIGURES, khat=0.4, unseen_share=0.003, tail_error=0.004)
    assert alarms.hidden_error(light) == 0.0
    assert alarms.hidden_error(heavy) == pytest.approx(0.005)
    assert alarms.hidden_error(replace(heavy, unseen_share=INF, tail_error=NAN)) == 1.0


# --- growth


@pytest.mark.parametrize(
    "kind, low, high", (("flow", 0.95, 1.05), ("cuts", 0.95, 1.05), ("all equal", 0.999, 1.001))
)
def test_growth_is_one_for_finite_variance(kind, low, high):
    assert low < ess_growth(torch.from_numpy(GOOD[kind](20_000, 3))) < high


def test_growth_is_slow_for_infinite_variance():
    slopes = [ess_growth(torch.from_numpy(pareto(20_000, 0.9, seed))) for seed in range(20)]
    assert np.median(slopes) < 0.6


def test_growth_without_enough_points():
    assert math.isnan(ess_growth(torch.zeros(1500, dtype=FLOAT)))
    assert math.isnan(ess_growth(torch.full((5000,), -INF, dtype=FLOAT)))


# --- earlier estimates


def earlier(mean: float, sdev: float, **changes) -> Iteration:
    it = Iteration("flow", 1000, mean, sdev, math.log(mean), 0.5, 0.1, 1.0, 0.0, sdev / mean)
    return replace(it, **changes)


def test_chi_squared_by_hand():
    its = (earlier(1.02, 0.01), earlier(0.99, 0.02))
    got = consistency(math.log(1.0), 0.005, its)
    values, errors = np.array([1.0, 1.02, 0.99]), np.array([0.005, 0.01, 0.02])
    centre = (values / errors**2).sum() / (1 / errors**2).sum()
    want = (((values - centre) / errors) ** 2).sum()
    assert got.chi2 == pytest.approx(want, rel=1e-9) and got.dof == 2
    assert pytest.approx(stats.chi2.sf(want, 2), rel=1e-9) == got.Q


def test_only_comparable_iterations_count():
    far = earlier(5.0, 0.01)
    for changes in ({"beta": 0.5}, {"phase": "final"}, {"ess": 0.05}, {"khat": 0.6}, {"khat": INF}):
        assert consistency(0.0, 0.01, (replace(far, **changes),)).dof == 0
    assert consistency(0.0, 0.01, (far,)).Q < 1e-8
    assert math.isnan(consistency(0.0, 0.01, ()).Q) and consistency(-INF, INF, (far,)).dof == 0


def test_q_is_uniform_for_honest_errors():
    """Kolmogorov-Smirnov over 300 repetitions, false-alarm rate 1e-4."""
    rng = np.random.default_rng(1)
    qs = []
    for _ in range(300):
        its = tuple(earlier(1 + 0.01 * rng.normal(), 0.01) for _ in range(5))
        qs.append(consistency(math.log(1 + 0.003 * rng.normal()), 0.003, its).Q)
    assert stats.kstest(qs, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("sign", (1.0, -1.0))
def test_the_sign_counts(sign):
    """The same modulus with the other sign is a disagreement, also where the mean has underflowed to -0."""
    for mean in (-sign, -sign * 0.0):
        other = replace(earlier(1.0, 0.1), mean=mean)
        assert consistency(0.0, 0.1, (other,), sign).Q < 1e-8
        assert consistency(0.0, 0.1, (replace(other, mean=-mean),), sign).Q == 1.0


def test_rounding_is_no_disagreement():
    """A constant integrand: every error is zero."""
    its = tuple(earlier(1 + k * 2e-15, 0.0) for k in range(-3, 4))
    assert consistency(0.0, 0.0, its).Q > 0.01


def test_an_earlier_mean_of_zero():
    """A signed integrand whose halves cancelled exactly."""
    its = (replace(earlier(1.0, 0.1), mean=0.0, log_mean=-INF, log_sdev=INF), earlier(0.1, 0.1))
    got = consistency(math.log(0.05), 2.0, its)
    assert math.isfinite(got.chi2) and got.Q > 0.01


# --- what exploration saw


def two_modes(y: torch.Tensor) -> torch.Tensor:
    """log of two equal Gaussians of sigma 0.03 in two dimensions; the integral is 2."""
    logs = [-0.5 * (((y - c) / 0.03) ** 2).sum(1) - math.log(2 * math.pi * 0.03**2) for c in (0.25, 0.75)]
    return torch.logsumexp(torch.stack(logs), 0)


def proposal_at(*centres: float, width: float = 0.03, defence: float = 1e-4) -> Proposal:
    """A grid fitted to points around the given centres on the diagonal."""
    proposal = Proposal(Domain.from_bounds(cube(2)), config(defence=defence, grid_bins=40))
    rng = np.random.default_rng(1)
    points = np.concatenate([c + width * rng.normal(size=(4000, 2)) for c in centres])
    proposal.parts[0].grid.fit(torch.from_numpy(points.clip(0, 1)))
    return proposal


def explored_by_uniform(n: int, seed: int) -> Replay:
    y = torch.rand(n, 2, dtype=FLOAT, generator=torch.Generator().manual_seed(seed))
    replay = Replay()
    replay.add(y, two_modes(y), torch.zeros(n, dtype=FLOAT))
    return replay


def final_weights(proposal: Proposal, n: int, seed: int, near: float | None = None) -> np.ndarray:
    points = torch.rand(n, 3, dtype=FLOAT, generator=torch.Generator().manual_seed(seed))
    y, log_q, _ = proposal.draw(points)
    kept = torch.ones(n, dtype=torch.bool) if near is None else ((y - near).abs() < 0.2).all(1)
    return torch.where(kept, two_modes(y) - log_q, -INF).numpy()


def test_a_missed_mode_that_exploration_saw():
    """The final points are those around 0.25 only; the other mode carries as much as they do."""
    proposal = proposal_at(0.25)
    for seed in range(5):
        log_w = final_weights(proposal, 5000, seed, near=0.25)
        figures = figures_of(log_w, explored_by_uniform(3000, 100 + seed), proposal)
        assert figures.missed_share == pytest.approx(1.0, rel=0.5)
        assert any("hardly draws" in text for text in found(figures, error=0.01))
        weights_alone = found(replace(figures, missed_share=0.0), error=0.01)
        assert not any("k-hat" in text for text in weights_alone)  # nothing else would have told


def test_a_proposal_that_knows_both_modes():
    """No false alarm in 20 repetitions, with errors as small as the weights' own."""
    proposal = proposal_at(0.25, 0.75, defence=0.02)
    for seed in range(20):
        log_w = final_weights(proposal, 5000, seed)
        figures = figures_of(log_w, explored_by_uniform(3000, 100 + seed), proposal)
        error = math.sqrt((1 / figures.efficiency - 1) / figures.n)
        assert found(figures, error) == [] and figures.missed_share < error
        assert alarms.hidden_error(figures) < 2 * error


def test_tail_error_is_what_the_heavy_region_adds_to_the_error():
    """f = 1 on the cube; q = 0.02 on a quarter of it: weights of 50, which the final points are made to miss."""
    density = torch.tensor([0.02, (1 - 0.005) / 0.75], dtype=FLOAT)

    class TwoLevels:
        def log_prob(self, y):
            return density[(y[:, 0] > 0.25).long()].log()

    y = torch.rand(20_000, 1, dtype=FLOAT, generator=torch.Generator().manual_seed(1))
    replay = Replay()
    replay.add(y, torch.zeros(20_000, dtype=FLOAT), torch.zeros(20_000, dtype=FLOAT))
    log_w = -density[1].log() * torch.ones(400, dtype=FLOAT)
    run = SimpleNamespace(replay=replay, proposal=TwoLevels())
    got = explored(run, log_w)
    mean = float(1 / density[1])  # what the final points say
    assert got.missed == pytest.approx(0.25 / mean, rel=0.05)
    assert got.tail_error == pytest.approx(math.sqrt(0.25 * 50 / mean**2 / 400), rel=0.05)
    with_them = torch.cat(
        [log_w, -density[0].log() * torch.ones(2, dtype=FLOAT)]
    )  # as many as there should be
    assert explored(run, with_them).missed == 0.0
    assert explored(run, with_them).tail_error < 0.5 * got.tail_error


def test_nothing_explored_or_nothing_found():
    run = SimpleNamespace(replay=Replay(), proposal=None)
    assert math.isnan(explored(run, torch.zeros(5, dtype=FLOAT)).missed)
    run.replay.add(torch.rand(5, 2), torch.zeros(5, dtype=FLOAT), torch.zeros(5, dtype=FLOAT))
    assert math.isnan(explored(run, torch.full((5,), -INF, dtype=FLOAT)).tail_error)
