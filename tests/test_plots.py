"""Figures: what is drawn is what was given, every axis has its unit, and odd input is drawn or refused."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from sbiflow import plots

RNG = np.random.default_rng(0)
DRAWS = RNG.normal([1200.0, 0.1, 3e-7], [80.0, 0.01, 5e-8], (3000, 3))
NAMES, UNITS = ("B", "v_los", "eta"), ("G", "km/s", "")


def _render(figure: Figure) -> Figure:
    """Draw it: the layout engine and the text renderer raise here."""
    figure.savefig(BytesIO(), dpi=40)
    return figure


def test_corner_labels_titles_and_truth() -> None:
    overlay = [("emcee", np.add(DRAWS[:500], [40, 0, 0]), None)]
    figure = _render(plots.corner_figure(DRAWS, NAMES, UNITS, truth=[1250, 0.1, np.nan], overlay=overlay))
    bottom = figure.axes[6:]
    assert [axes.get_xlabel() for axes in bottom] == ["B [G]", "v_los [km/s]", "eta [$10^{-7}$]"]
    assert bottom[0].get_ylabel() == "eta [$10^{-7}$]"
    assert figure.axes[0].get_title().startswith("B\n$1197_{-79}")
    assert figure.axes[8].get_title().endswith("× $10^{-7}$")
    assert figure.axes[0].lines[0].get_xdata()[0] == 1250
    assert len(figure.axes[7].lines) == 1  # v_los marked, the unknown eta not
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["draws", "emcee", "truth"]


def test_corner_uses_the_weights() -> None:
    """Draws from N(0, 1) weighted to N(1, 1): the title's median moves to 1."""
    x = np.random.default_rng(1).normal(size=(20_000, 1))
    figure = plots.corner_figure(x, ["a"], [""], weights=np.exp(x[:, 0]))
    median = float(figure.axes[0].get_title().split("$")[1].split("_")[0])
    assert median == pytest.approx(1.0, abs=0.05)


def test_corner_draws_degenerate_input() -> None:
    constant = np.c_[np.full(50, 3.0), np.zeros(50)]
    _render(plots.corner_figure(constant, ["a", "b"], ["", ""]))
    one_heavy = np.r_[1.0, np.zeros(49)]
    _render(plots.corner_figure(RNG.normal(size=(50, 2)), ["a", "b"], ["", ""], weights=one_heavy))


@pytest.mark.parametrize(
    ("draws", "weights", "message"),
    [
        (np.zeros((10, 2)), None, r"expected draws of shape \(n, 3\), got \(10, 2\)"),
        (np.zeros((3, 3)), None, "expected more than 3 draws"),
        (DRAWS, np.zeros(3000), "not all zero"),
        (DRAWS, np.ones(5), "expected 3000 weights"),
    ],
)
def test_corner_refuses(draws: np.ndarray, weights: np.ndarray | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.corner_figure(draws, NAMES, UNITS, weights=weights)


def test_training_curve() -> None:
    steps = np.arange(1, 201)
    loss = 1000 / steps**3 - 5
    figure = _render(plots.training_curve(steps, loss, steps[::20], loss[::20], np.full(200, 1e-3)))
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss  −log q(θ|x) [nats]", "learning rate"]
    assert figure.axes[1].get_xlabel() == "training step"
    assert figure.axes[0].get_ylim()[1] < 20  # the first steps do not flatten the rest
    assert len(_render(plots.training_curve(steps, loss, [], [])).axes) == 1
    _render(plots.training_curve([1, 2], [np.nan, np.nan], [], []))


def test_rank_ecdf_marks_the_parameter_outside_its_band() -> None:
    grid = np.arange(1, 50) / 50
    half = 4 * np.sqrt(grid * (1 - grid) / 400)
    ranks = np.linspace(0, 1, 400)[:, None] ** np.array([1.0, 2.0])
    figure = _render(plots.rank_ecdf(ranks, grid - half, grid + half, grid, ["good", "shifted"]))
    assert [axes.get_title() for axes in figure.axes] == ["good", "shifted: outside the band"]
    assert np.abs(figure.axes[0].lines[0].get_ydata()).max() < 0.01
    assert figure.axes[1].lines[0].get_ydata().max() == pytest.approx(0.25, abs=0.01)  # max of √z − z
    with pytest.raises(ValueError, match="ranks_unit: expected shape"):
        plots.rank_ecdf(ranks, grid, grid, grid, ["one"])


def test_rank_ecdf_of_fifteen_parameters() -> None:
    grid = np.linspace(0, 1, 11)
    figure = _render(
        plots.rank_ecdf(RNG.uniform(size=(50, 15)), grid, grid, grid, [f"p{i}" for i in range(15)])
    )
    assert sum(axes.axison for axes in figure.axes) == 15


@pytest.mark.parametrize(("power", "colour"), [(1.0, plots.BLUE), (2.0, plots.RED)])
def test_coverage_curve(power: float, colour: str) -> None:
    grid = np.linspace(0, 1, 21)
    figure = _render(plots.coverage_curve(grid, grid**power, grid - 0.1, grid + 0.1))
    measured = figure.axes[0].lines[1]
    assert measured.get_color() == colour
    np.testing.assert_array_equal(measured.get_ydata(), grid**power)


def test_coverage_curve_says_what_it_measures() -> None:
    grid = np.linspace(0, 1, 5)
    axes = plots.coverage_curve(grid, grid, grid, grid, "ball", "low", "high").axes[0]
    assert axes.get_xlabel() == "nominal mass of the ball"
    assert axes.get_title() == "high\nlow"
    outside = plots.coverage_curve(grid, grid**2, grid - 0.01, grid + 0.01).axes[0]
    assert "measured: outside the band" in [text.get_text() for text in outside.get_legend().get_texts()]


@pytest.mark.parametrize("count", [1, 5, 15])
def test_pp_curves(count: int) -> None:
    grid = np.linspace(0, 1, 21)
    curves = np.stack([grid ** (1 + 0.02 * i) for i in range(count)])
    bands = [(f"{k}σ", grid - 0.1 * k, grid + 0.1 * k) for k in (1, 2, 3)]
    labels = [f"p{i}" for i in range(count)]
    figure = _render(plots.pp_curves(grid, curves, labels, bands))
    lines = figure.axes[0].lines[:count]
    for line, curve in zip(lines, curves, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), curve)
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == count  # told apart
    legend = figure.legends[0] if figure.legends else figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [*labels, "1σ", "2σ", "3σ"]
    with pytest.raises(ValueError, match=r"curves: expected shape \(1, 21\)"):
        plots.pp_curves(grid, curves[:, :5], ["a"], bands)


def test_fit_residuals() -> None:
    x = np.linspace(6301.0, 6302.0, 16)
    observed = np.stack([np.full(16, 1.0), np.full(16, 0.01)])
    noise = np.array([0.1, 0.001])
    offsets = np.array([-2, -1, 0, 1, 2])[:, None, None]
    bands = (observed - 0.3 * noise[:, None])[None] + offsets * noise[:, None]
    figure = _render(plots.fit_residuals(x, observed, noise, bands, ("I", "V"), ("Å", "I_c")))
    assert [axes.get_title() for axes in figure.axes[:2]] == ["I [I_c]", "V [I_c]"]
    for axes in figure.axes[2:]:
        assert axes.get_xlabel() == "wavelength [Å]"
        np.testing.assert_allclose(axes.lines[1].get_ydata(), 0.3)  # in units of the noise
    assert figure.axes[2].get_ylabel() == "residual [σ]"
    with pytest.raises(ValueError, match=r"bands \(5, 2, 16\), got \(2, 16\) and \(3, 2, 16\)"):
        plots.fit_residuals(x, observed, noise, bands[:3], ("I", "V"))


def test_weight_histogram() -> None:
    log_weights = np.r_[np.full(90, 5.0), np.full(10, -np.inf)]
    figure = _render(plots.weight_histogram(log_weights))
    title = figure.axes[0].get_title()
    assert "100 draws, 10 of zero weight" in title
    assert "effective sample size 90.0, largest weight 1.11%" in title
    occupied = [patch for patch in figure.axes[0].patches if patch.get_height() > 0]
    assert sum(patch.get_height() for patch in occupied) == 90
    assert occupied[0].get_x() <= np.log10(100 / 90) <= occupied[0].get_x() + occupied[0].get_width() + 1e-9
    _render(plots.weight_histogram(np.full(10, -np.inf)))


def test_no_figure_stays_open() -> None:
    plots.corner_figure(DRAWS, NAMES, UNITS)
    plots.weight_histogram(np.zeros(10))
    assert pyplot.get_fignums() == []
