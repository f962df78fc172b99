"""The whole calibration: the truth passes, every fault is caught, bad input gets one clear line."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from sbiflow.calibration import calibrate
from sbiflow.priors import Normal, PeriodicUniform, Prior
from sbiflow.seeding import torch_generator
from tests.quick import quick_store, quick_train
from tests.toys import LinearGaussian, TwoModes, normal_prior

TOY = LinearGaussian()
REGRESSION = "distance to regression on x"


class WithoutLikelihood:
    """The same simulator, likelihood unknown."""

    prior, x_shape, name = TOY.prior, TOY.x_shape, "no likelihood"

    def signal(self, theta: Tensor) -> Tensor:
        return TOY.signal(theta)

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        return TOY.observe(signal, generator)


@pytest.mark.parametrize("simulator", [TOY, WithoutLikelihood()], ids=["likelihood", "regression"])
def test_exact_posterior_passes_for_many_seeds(simulator: object) -> None:
    """20 seeds at alpha = 1e-4: false alarm 2e-3 in all."""
    exact = TOY.exact_proposal()
    reports = [calibrate(exact, simulator, n=300, draws=200, seed=s, progress=False) for s in range(20)]
    assert all(r.passed_at(1e-4) for r in reports)
    assert not any(r.alarms for r in reports)
    assert sum(not r.passed_at(0.2) for r in reports) <= 12  # the level is kept; probability of 13 is 3e-5


@pytest.mark.parametrize(
    ("scale", "shift", "word"),
    [(0.8, 0.0, "too narrow"), (1.25, 0.0, "too wide"), (1.0, 0.3, "biased high"), (1.0, -0.3, "biased low")],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_wrong_width_and_place_are_rejected(scale: float, shift: float, word: str, seed: int) -> None:
    report = calibrate(TOY.exact_proposal(scale, shift), TOY, seed=seed, alpha=1e-4, progress=False)
    assert not report.ranks.passed
    assert word in report.verdict
    assert "FAIL" in report.table()


@pytest.mark.parametrize(
    ("simulator", "data_tests"),
    [(TOY, {"log-likelihood", REGRESSION}), (WithoutLikelihood(), {REGRESSION})],
    ids=["likelihood", "regression"],
)
def test_prior_as_posterior_passes_plain_ranks_and_is_caught(simulator: object, data_tests: set) -> None:
    report = calibrate(TOY.prior_proposal(), simulator, seed=4, alpha=1e-4, progress=False)
    assert {t.name for t in report.ranks.failures} == {"TARP", *data_tests}  # and no parameter, not HPD
    assert all(c.misses_information and not c.learned for c in report.contraction)
    assert "this parameter was not learned" in report.verdict
    assert not report.passed


def test_wrong_mode_weight_is_caught_by_tarp() -> None:
    modes = TwoModes()
    exact = calibrate(modes.exact_proposal(), modes, draws=200, seed=4, alpha=1e-4, progress=False)
    assert exact.passed
    wrong = calibrate(modes.exact_proposal(0.7), modes, draws=200, seed=4, alpha=1e-4, progress=False)
    assert "TARP" in {t.name for t in wrong.ranks.failures}
    assert "wrong weights of modes" in wrong.verdict
    assert wrong.tarp_area > 0.01


def test_one_parameter() -> None:
    toy = LinearGaussian(matrix=((1.0,), (0.5,)), prior=normal_prior((0.5,), (1.0,)))
    assert calibrate(toy.exact_proposal(), toy, n=300, draws=100, seed=7, progress=False).passed_at(1e-4)
    assert not calibrate(toy.exact_proposal(0.6), toy, draws=100, seed=7, progress=False).passed_at(1e-4)


class Chain:
    """Draws of a chain wrapped as a Proposal: any source of draws and densities can be judged."""

    prior = TOY.prior

    def __init__(self, factor: float) -> None:
        self.exact, self.factor = TOY.exact_proposal(), factor

    def sample_and_log_prob(self, x: Tensor, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Independence Metropolis from a wide start, thinned; `factor` is an error of its target's scale."""
        target, wide = TOY.exact_proposal(self.factor), TOY.exact_proposal(1.5)
        state, log_wide = wide.sample_and_log_prob(x, 1, generator)
        ratio, kept = target.distribution(x).log_prob(state[0]) - log_wide[0], []
        state = state[0]
        for step in range(6 * n):
            new, log_new = wide.sample_and_log_prob(x, 1, generator)
            log_ratio = target.distribution(x).log_prob(new[0]) - log_new[0]
            accept = torch.rand(len(x), generator=generator).log() < log_ratio - ratio
            state = torch.where(accept[:, None], new[0], state)
            ratio = torch.where(accept, log_ratio, ratio)
            if step % 6 == 5:
                kept.append(state)
        theta = torch.stack(kept)
        return theta, target.distribution(x).log_prob(theta)

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        return TOY.exact_proposal(self.factor).log_prob(theta, x)


def test_a_markov_chain_is_judged_like_a_flow() -> None:
    assert calibrate(Chain(1.0), TOY, n=300, draws=100, seed=13, progress=False).passed_at(1e-4)
    assert not calibrate(Chain(0.7), TOY, n=300, draws=100, seed=13, progress=False).passed_at(1e-4)


def test_parameter_without_influence_is_a_warning_not_a_failure() -> None:
    simulator = LinearGaussian(matrix=((1.0, 0.0), (0.5, 0.0)))
    report = calibrate(simulator.exact_proposal(), simulator, seed=5, progress=False)
    assert report.passed_at(1e-4)
    assert [c.name for c in report.alarms] == ["t1"]
    assert "not learned, the posterior is the prior: t1" in report.verdict


@dataclass(frozen=True)
class Circle:
    """An angle of period pi seen with von Mises noise in its double; the exact posterior is von Mises too."""

    concentration: float = 8.0
    factor: float = 1.0
    x_shape: tuple[int, ...] = (2,)

    @property
    def prior(self) -> Prior:
        return Prior(PeriodicUniform("azimuth", 0.0, math.pi, unit="rad"))

    def _noise(self, shape: tuple[int, ...], factor: float, generator: Generator | None) -> Tensor:
        seed = int(torch.randint(2**31, (1,), generator=generator))
        values = np.random.default_rng(seed).vonmises(0.0, factor * self.concentration, shape)
        return torch.from_numpy(values)

    def signal(self, theta: Tensor) -> Tensor:
        return torch.cat([(2 * theta).cos(), (2 * theta).sin()], -1)

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        angle = torch.atan2(signal[:, 1], signal[:, 0]) + self._noise((len(signal),), 1.0, generator)
        return torch.stack([angle.cos(), angle.sin()], -1)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        return self.concentration * (2 * theta[:, 0] - torch.atan2(x[..., 1], x[..., 0])).cos()

    def sample_and_log_prob(
        self, x: Tensor, n: int, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        centre = torch.atan2(x[:, 1], x[:, 0])
        theta = torch.remainder(centre + self._noise((n, len(x)), self.factor, generator), 2 * math.pi) / 2
        theta = torch.where(theta >= math.pi, 0.0, theta)
        log_q = torch.stack([self.log_prob(row[:, None], x) for row in theta])
        return theta[..., None], log_q

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        return self.factor * self.log_likelihood(theta, x)


def test_periodic_parameter() -> None:
    exact = calibrate(Circle(), Circle(), draws=200, seed=6, progress=False)
    assert exact.passed_at(1e-4)
    assert exact.contraction[0].learned
    assert exact.contraction[0].linear == pytest.approx(exact.contraction[0].contraction, abs=0.05)
    narrow = calibrate(Circle(factor=1.7), Circle(), draws=200, seed=6, alpha=1e-4, progress=False)
    assert {t.name for t in narrow.ranks.failures} == {
        "azimuth", "HPD coverage", "TARP", "log-likelihood", REGRESSION,
    }  # fmt: skip


def test_same_seed_same_report() -> None:
    first, second = (
        calibrate(TOY.exact_proposal(), TOY, n=100, draws=100, seed=8, progress=False) for _ in range(2)
    )
    assert first.table() == second.table()
    assert (
        first.table()
        != calibrate(TOY.exact_proposal(), TOY, n=100, draws=100, seed=9, progress=False).table()
    )


def test_mean_log_q_is_the_negative_conditional_entropy() -> None:
    """E log p(theta | x) of a linear Gaussian is that of its covariance; 4 standard errors."""
    report = calibrate(TOY.exact_proposal(), TOY, n=2000, draws=100, seed=10, progress=False)
    _, covariance = TOY.posterior(torch.zeros(3))
    entropy = 0.5 * torch.logdet(2 * math.pi * math.e * covariance)
    assert abs(report.mean_log_q + float(entropy)) < 4 * report.mean_log_q_error


def test_html_and_json(tmp_path: Path) -> None:
    report = calibrate(TOY.exact_proposal(0.8), TOY, n=500, draws=200, seed=11, progress=False)
    page = report.to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.index("FAIL") < page.index("too narrow") < page.index("Provenance")
    assert page.count("data:image/svg+xml;base64,") == page.count("<img") == page.count("<figcaption>") == 4
    for name, value in report.provenance.items():
        assert not value or f"<td>{name}</td><td>{value}</td>" in page
    data = json.loads(report.to_json(tmp_path / "report.json"))
    assert json.loads((tmp_path / "report.json").read_text()) == data
    assert data["passed"] is False
    names = ["t0", "t1", "HPD coverage", "TARP", "log-likelihood", REGRESSION]
    assert [t["name"] for t in data["tests"]] == names
    assert all(len(t["ranks"]) == 500 for t in data["tests"])
    assert data["pp"]["p_values"] == dict(report.pp.p_by_name)
    assert data["pp"]["fisher"] < 1e-3
    assert data["tarp_area_to_curve"] == report.tarp_area
    assert data["seed"] == 11
    assert [fault.split(":")[0] for fault in data["faults"]] == [t.name for t in report.ranks.failures]


def test_names_and_text_of_a_user_cannot_break_the_page(tmp_path: Path) -> None:
    prior = Prior(Normal("<b>a</b> & TARP", 0.5, 1.0), Normal("TARP", -1.0, 2.0))
    toy = LinearGaussian(prior=prior, name="<script>alert(1)</script>")
    report = calibrate(toy.exact_proposal(), toy, n=100, draws=100, seed=1, progress=False)
    page = report.to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<b>" not in page
    assert "&lt;b&gt;a&lt;/b&gt; &amp; TARP" in page


def test_figures_show_all_ranks() -> None:
    report = calibrate(TOY.exact_proposal(), TOY, n=100, draws=100, seed=12, progress=False)
    titles = [a.get_title() for a in report.rank_figure().axes]
    assert titles == ["t0", "t1", "log-likelihood", REGRESSION]
    assert "highest-density" in report.coverage_figure().axes[0].get_xlabel()
    assert "reference point" in report.tarp_figure().axes[0].get_xlabel()
    entries = [text.get_text() for text in report.pp_figure().axes[0].get_legend().get_texts()]
    assert [entry.split(" ")[0] for entry in entries] == ["t0", "t1", "1σ", "2σ", "3σ"]


FIVE = LinearGaussian(
    matrix=tuple(map(tuple, np.random.default_rng(0).normal(size=(8, 5)).tolist())),
    prior=normal_prior((0.0,) * 5, (1.0,) * 5),
)


def test_five_parameters_take_less_than_a_minute(tmp_path: Path) -> None:
    """N = 1,000 pairs of 1,000 draws, tables, figures and page.

    Processor time, which others on the machine do not change; a run alone on it takes no longer by the clock.
    """
    store = quick_store(tmp_path / "five.h5", FIVE, 300)
    posterior = quick_train(store, FIVE)
    start = time.process_time()
    calibrate(posterior, FIVE, n=1000, draws=1000, seed=1, progress=False).to_html(tmp_path / "five.html")
    assert time.process_time() - start < 60


class Broken:
    """A proposal with one fault, named by the argument."""

    def __init__(self, fault: str) -> None:
        self.fault, self.prior = fault, TOY.prior
        if fault == "prior":
            self.prior = Prior(Normal("t0", 0.5, 1.0), Normal("t1", -1.0, 2.5))

    def sample_and_log_prob(self, x: Tensor, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        theta, log_q = TOY.exact_proposal().sample_and_log_prob(x, n, generator)
        if self.fault == "support":
            theta[0, 0, 0] = math.inf
        if self.fault == "density":
            log_q[3, 1] = math.nan
        return theta, log_q

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        return TOY.exact_proposal().log_prob(theta, x)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("prior", "the simulator's prior"), ("support", "1 outside"), ("density", "got 1 NaN or inf")],
)
def test_faulty_proposals_get_one_clear_line(fault: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(Broken(fault), TOY, n=100, draws=100, seed=1, progress=False)


def test_bad_arguments_are_refused() -> None:
    for wrong in ({"n": 10}, {"draws": 5}, {"alpha": 0.0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            calibrate(TOY.exact_proposal(), TOY, **{"seed": 1, "progress": False, **wrong})


def test_generator_is_private() -> None:
    before = torch.get_rng_state()
    calibrate(TOY.exact_proposal(), TOY, n=60, draws=100, seed=1, progress=False)
    assert torch.equal(before, torch.get_rng_state())
    assert torch_generator(1, 2).initial_seed() == torch_generator(1, 2).initial_seed()
