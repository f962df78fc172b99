"""Figures of an integration: what is drawn is what was given, and one bad iteration hides nothing."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from matplotlib.figure import Figure

from sbiflow import plots

RNG = np.random.default_rng(0)


def _render(figure: Figure) -> Figure:
    """Draw it: the layout engine and the text renderer raise here."""
    figure.savefig(BytesIO(), dpi=40)
    return figure


def _legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


PHASES = ["explore", "grid", "grid", "flow", "final", "final"]
EVALUATIONS = np.arange(1, 7) * 1000


def test_convergence_draws_iterations_estimate_and_truth() -> None:
    means, sdevs = np.array([0.9, 1.2, 0.95, 1.01, 1.002, 0.999]), np.full(6, 0.01)
    figure = _render(plots.convergence(PHASES, EVALUATIONS, means, sdevs, (1.0, 0.004), truth=1.003))
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("evaluations of the integrand", "integral")
    assert _legend(figure) == ["estimate ± 1 sd", "truth", "explore", "grid", "flow", "final"]
    drawn = np.concatenate([container.lines[0].get_xydata() for container in axes.containers])
    np.testing.assert_allclose(drawn, np.c_[EVALUATIONS, means])
    low, high = axes.patches[0].get_y(), axes.patches[0].get_y() + axes.patches[0].get_height()
    np.testing.assert_allclose([low, high], [0.996, 1.004])
    assert 1.003 in [line.get_ydata()[0] for line in axes.lines]


def test_one_wild_iteration_does_not_flatten_the_others() -> None:
    means = [1e9, 1.1, 0.95, 1.01, 1.002, 0.999]
    low, high = (
        plots.convergence(PHASES, EVALUATIONS, means, np.full(6, 0.01), (1.0, 0.004)).axes[0].get_ylim()
    )
    assert 0.9 < low < 0.99 and 1.01 < high < 1.1


def test_the_truth_is_in_the_picture_however_far_off_it_is() -> None:
    low, high = plots.convergence(["final"], [10], [1.0], [0.01], (1.0, 0.01), truth=9.0).axes[0].get_ylim()
    assert low < 1.0 and high > 9.0


@pytest.mark.parametrize(
    ("means", "sdevs", "final"),
    [
        ([np.nan] * 6, [np.inf] * 6, (0.0, np.inf)),
        ([0.0] * 6, [0.0] * 6, (0.0, 0.0)),
        ([3.0] * 6, [np.inf] * 6, (3.0, 0.0)),
        ([1.0] * 6, [1.0] * 6, (np.nan, np.nan)),
    ],
)
def test_convergence_draws_degenerate_input(means: list[float], sdevs: list[float], final: tuple) -> None:
    _render(plots.convergence(PHASES, EVALUATIONS, means, sdevs, final))


def test_convergence_of_nothing_and_of_unequal_lengths() -> None:
    _render(plots.convergence([], [], [], [], (1.0, 0.1)))
    with pytest.raises(ValueError, match="expected 6 evaluations, means and sdevs, got 6, 5, 6"):
        plots.convergence(PHASES, EVALUATIONS, np.ones(5), np.ones(6), (1.0, 0.1))


def test_weights_by_proposal_shows_shares_over_the_mean() -> None:
    """A tenth of the points carries weight 10: at log10(10 / mean) = 1, ESS 10 %, 90 % zero."""
    sparse = np.where(np.arange(1000) % 10 == 0, 5.0, -np.inf)
    figure = _render(plots.weights_by_proposal([("grid", sparse), ("flow", np.full(50, -700.0))]))
    assert _legend(figure) == [
        "grid: ESS 10.0%, 90.0% of weight zero",
        "flow: ESS 100.0%, 0.0% of weight zero",
    ]
    grid, flow = (patch.get_data() for patch in figure.axes[0].patches)
    for data, place, share in ((grid, 1.0, 0.1), (flow, 0.0, 1.0)):
        (i,) = np.flatnonzero(data.values)
        assert data.edges[i] <= place <= data.edges[i + 1]
        assert data.values[i] == pytest.approx(share)
    assert figure.axes[0].get_xlabel() == "log10(|weight| / mean |weight|)"


def test_weights_by_proposal_agree_with_the_definition() -> None:
    log_weights = RNG.normal(0, 2, 4000) + 900.0
    figure = _render(plots.weights_by_proposal([("flow", log_weights)], bins=30))
    data = figure.axes[0].patches[0].get_data()
    relative = np.log10(np.exp(log_weights - 900) / np.exp(log_weights - 900).mean())
    np.testing.assert_allclose(data.values, np.histogram(relative, data.edges)[0] / 4000)
    assert data.values.sum() == pytest.approx(1.0)


def test_weights_by_proposal_at_the_edges() -> None:
    _render(plots.weights_by_proposal([("flow", [-np.inf] * 3)]))
    data = plots.weights_by_proposal([("flow", [0.0, -5000.0])]).axes[0].patches[0].get_data()
    assert data.edges[0] > -9 and data.values[0] == 0.5
    with pytest.raises(ValueError, match="got none"):
        plots.weights_by_proposal([])
    for bad in ([np.nan, 0.0], [np.inf, 0.0], []):
        with pytest.raises(ValueError, match="flow: expected log-weights without NaN and"):
            plots.weights_by_proposal([("flow", bad)])
