"""The comparison of integrators: its statistics, its file of runs, and what the peers are given."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from analyses.benchmarks import integrators
from analyses.integrands import Integrand, by_names
from analyses.integrands_held_out import HELD_OUT
from analyses.integrator_peers import Run, by_vegas, on_unit_cube
from analyses.integrator_table import LOST, figure, numbers, summaries, summarise
from tests import integrand_points as points

RUN = Run("vegas", "camel8", 1_000_000, 1, 0.0, 1e-3, 900_000, 450_000, 1.0, 0.9, 0.1, chi2_dof=1.0, q=0.9)


def runs(errors: list[float], warned: int = 0) -> list[Run]:
    """The last `warned` of them with a warning."""
    quiet = len(errors) - warned
    return [replace(RUN, seed=i, error=error, warned=i >= quiet) for i, error in enumerate(errors)]


def test_summary_of_known_errors() -> None:
    row = summarise(runs([3e-3, -1e-3, 1e-3, 1.0], warned=1))
    assert row.error == pytest.approx(math.sqrt((9e-6 + 2e-6 + 1.0) / 4))
    assert row.bias == pytest.approx(1.003 / 4)
    assert (row.pulls.n, row.pulls.coverage, row.pulls.lost) == (4, 0.5, 1)
    assert row.silent.rms == pytest.approx(math.sqrt(11 / 3))
    assert (row.silent.n, row.silent.coverage, row.silent.lost) == (3, pytest.approx(2 / 3), 0)
    assert (row.warned, row.unreliable, row.seeds) == (1, None, 4)


def test_pull_and_coverage_of_a_sound_method() -> None:
    """20,000 normal pulls: rms within 1 ± 0.025 and coverage within 0.9545 ± 0.0074, five standard errors."""
    row = summarise(runs(list(1e-3 * np.random.default_rng(1).normal(size=20_000))))
    assert row.pulls.rms == pytest.approx(1, abs=0.025)
    assert row.pulls.coverage == pytest.approx(0.9545, abs=0.0074)


@pytest.mark.parametrize("error, sigma", [(math.nan, 1e-3), (math.inf, 1e-3), (-1.0, 0.0), (-1.0, math.nan)])
def test_no_number_and_no_error_are_wrong(error: float, sigma: float) -> None:
    row = summarise([replace(RUN, error=error, sigma=sigma)])
    assert row.error == 1.0 and row.silent.lost == 1 and row.silent.rms > LOST


def test_honesty_of_ours_counts_silent_runs_only() -> None:
    lost = [
        replace(run, method="ours", reliable=not run.warned) for run in runs([1e-3] * 9 + [1.0], warned=1)
    ]
    integrands = by_names("camel8")
    met = {line.what: line.met for line in numbers(summaries(lost), integrands)}
    assert met["ours: of those off by more than 4 sigma"] is True
    assert met["camel8, 1,000,000: ours, relative rms error over 10 seeds"] is False
    silent = [replace(run, warned=False) for run in lost]
    met = {line.what: line.met for line in numbers(summaries(silent), integrands)}
    assert met["ours: of those off by more than 4 sigma"] is False
    assert met["ours: their pull rms"] is False


def test_figure_has_a_panel_for_each_integrand() -> None:
    integrands = by_names("camel8,rosen6")
    page = figure(summaries(runs([1e-3, 2e-3])), integrands)
    assert [axes.get_title() for axes in page.axes[:2]] == ["camel8", "rosen6"]


def test_runs_are_resumed_and_a_cut_off_line_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    first, second = runs([1e-3, math.nan])
    integrators.append(path, first)
    whole = path.read_text()
    path.write_text(whole + whole[: len(whole) // 2])
    assert integrators.read(path, "drop") == [first]
    integrators.append(path, second)
    read = integrators.read(path, "drop")
    assert [run.seed for run in read] == [0, 1] and math.isnan(read[1].error)
    path.write_text(path.read_text().replace('"version": "', '"version": "0'))
    assert integrators.read(path, "drop") == []
    assert len(integrators.read(path, "keep")) == 2


def test_plan_alternates_the_methods() -> None:
    asked = argparse.Namespace(
        methods="ours,vegas", seed=1, seeds=2, budgets="1e5", only="camel8", integrands="issue"
    )
    found = [(method, seed) for method, _, _, seed in integrators.plan(asked)]
    assert found == [("vegas", 1), ("ours", 1), ("ours", 2), ("vegas", 2)]
    asked.methods = "ours,guess"
    with pytest.raises(ValueError, match=r"expected some of ours, vegas, madnis; got guess"):
        next(integrators.plan(asked))
    asked.methods, asked.integrands = "ours", "mine"
    with pytest.raises(ValueError, match=r"expected one of issue, held-out, all; got mine"):
        next(integrators.plan(asked))


@pytest.mark.parametrize(
    "bounds, density",
    [
        ((-math.inf, math.inf), stats.norm(3, 2).pdf),
        ((0.0, math.inf), stats.gamma(3).pdf),
        ((-math.inf, 1.0), lambda x: stats.expon.pdf(1 - x)),
        ((-2.0, 5.0), stats.uniform(-2, 7).pdf),
    ],
)
def test_limits_on_the_unit_cube(bounds: tuple[float, float], density: Callable[..., np.ndarray]) -> None:
    f = on_unit_cube(Integrand("one", lambda x: density(x[:, 0]), (bounds,), 1.0))
    assert points.integral(lambda u: float(f(np.array([[u]]))[0]), 0, 1, 0.5, 0.9) == pytest.approx(
        1, abs=1e-9
    )


def test_axes_and_logarithms_on_the_unit_cube() -> None:
    unbounded, log = by_names("unbounded5,logcircles2", HELD_OUT)
    centre = np.array([[0.6, 0.55, 0.5, 0.5, 0.7]])
    x = np.array([[1.5, 0.1 / 0.99, 0.0, 0.0, 1 - 0.3 / 0.7]])
    slopes = 1 / 0.4**2 * 2 * (1 + 0.01) / 0.99**2 * 2 * 2 / 0.7**2
    assert on_unit_cube(unbounded)(centre) == pytest.approx(unbounded.f(x) * slopes, rel=1e-12)
    values = on_unit_cube(log)(np.random.default_rng(2).random((400_000, 2)))
    assert values.mean() == pytest.approx(1, abs=5 * values.std() / math.sqrt(400_000))
    plain = by_names("camel8")[0]
    assert on_unit_cube(plain) is plain.f


@pytest.mark.parametrize("name", ["circles2", "logcircles2"])
def test_vegas_is_right_where_it_should_be(name: str) -> None:
    pytest.importorskip("vegas")
    (integrand,) = by_names(name, (*by_names("circles2"), *HELD_OUT))
    run = by_vegas(integrand, 100_000, seed=1)
    assert abs(run.error) < 5 * run.sigma < 0.03
    assert run.n_train < run.n_evals <= 100_000 and run.error == by_vegas(integrand, 100_000, seed=1).error
