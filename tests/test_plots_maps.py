"""Figures of maps: what is drawn, in which colours, and what is refused."""

import io

import numpy as np
import pytest
from matplotlib.colors import LogNorm, to_hex

from sbiflow.plots.maps import Panel, map_figure


def image_of(panel: Panel):
    return map_figure([panel]).axes[0].images[0]


FIELD = np.arange(12.0).reshape(3, 4)


def test_every_panel_has_a_labelled_colour_bar():
    names = [("B", "G"), ("eta0", ""), ("v", "km/s"), ("S0", ""), ("S1", "")]
    figure = map_figure([Panel(FIELD, name, unit) for name, unit in names])
    bars = [axes for axes in figure.axes if not axes.images and axes.get_ylabel()]
    assert [axes.get_ylabel() for axes in bars] == ["B [G]", "eta0", "v [km/s]", "S0", "S1"]
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_xlabel() for axes in shown] == ["", "", *["x [pixel]"] * 3]  # the lowest of each column
    assert [axes.get_ylabel() for axes in shown] == ["y [pixel]", "", "", "y [pixel]", ""]
    figure.savefig(io.BytesIO(), format="png")


def test_pixels_without_an_answer_are_grey_and_the_first_row_is_at_the_bottom():
    values = FIELD.copy()
    values[1, 2] = np.nan
    image = image_of(Panel(values, "B"))
    assert to_hex(image.cmap(np.ma.masked)) == "#b0b0b0" and image.origin == "lower"
    np.testing.assert_array_equal(image.get_array().filled(np.nan), values)


def test_an_angle_has_cyclic_colours_over_its_whole_period():
    image = image_of(Panel(FIELD / 4, "azimuth", "rad", limits=(0, np.pi), cyclic=True))
    assert image.get_clim() == (0, np.pi) and image.cmap.name == "twilight"
    ends = image.cmap([0.0, 1.0])
    np.testing.assert_allclose(ends[0], ends[1], atol=0.02)


def test_values_of_both_signs_have_white_at_zero():
    image = image_of(Panel(np.linspace(-1, 3, 400).reshape(20, 20), "v"))
    low, high = image.get_clim()
    assert low == -high and high == pytest.approx(3, abs=0.05) and image.cmap.name == "RdBu_r"
    assert image_of(Panel(FIELD + 1, "B")).cmap.name == "viridis"


def test_single_wild_pixels_do_not_take_the_colours_and_the_bar_says_so():
    values = np.random.default_rng(1).uniform(1, 2, (50, 50))
    values[0, 0] = 1e6
    figure = map_figure([Panel(values, "B")])
    image = figure.axes[0].images[0]
    assert image.get_clim()[1] < 2.01 and image.colorbar.extend == "both"


def test_logarithmic_colours_and_zeros():
    values = np.logspace(-4, 0, 100).reshape(10, 10)
    values[0, 0] = 0
    image = image_of(Panel(values, "p", log=True))
    assert isinstance(image.norm, LogNorm) and image.norm.vmin > 0
    colours = image.to_rgba(image.get_array())
    np.testing.assert_array_equal(
        colours[0, 0], image.cmap(0)
    )  # the darkest, not the grey of a missing value
    assert image.colorbar.extend in ("min", "both")


def test_categories_have_their_names_on_the_bar():
    figure = map_figure(
        [Panel(np.array([[0, 1], [2, np.nan]]), "alarms", categories=("none", "unlike", "both"))]
    )
    bar = figure.axes[0].images[0].colorbar
    assert [text.get_text() for text in bar.ax.get_yticklabels()] == ["none", "unlike", "both"]
    colours = [figure.axes[0].images[0].to_rgba(k) for k in range(3)]
    assert len({to_hex(colour) for colour in colours}) == 3


@pytest.mark.parametrize(
    "values", [np.full((3, 3), np.nan), np.ones((3, 3)), np.zeros((3, 3)), np.ones((1, 1))]
)
@pytest.mark.parametrize("log", [True, False])
def test_images_without_contrast_or_without_any_value(values, log):
    map_figure([Panel(values, "B", log=log)]).savefig(io.BytesIO(), format="png")


def test_a_large_image_is_thinned():
    image = image_of(Panel(np.zeros((10, 9000), np.float32), "B"))
    assert max(image.get_array().shape) <= 2048 and image.get_extent()[1] == 8999.5


@pytest.mark.parametrize(
    ("panels", "message"),
    [
        ([], "panels: expected images of one shape"),
        ([Panel(FIELD, "a"), Panel(FIELD.T, "b")], r"got \[\(3, 4\), \(4, 3\)\]"),
        ([Panel(FIELD[0], "a")], r"expected images of one shape \(ny, nx\), got \[\(4,\)\]"),
        ([Panel(FIELD, "a", categories=tuple("abcdefg"))], "categories: expected at most 6"),
    ],
)
def test_what_is_refused(panels, message):
    with pytest.raises(ValueError, match=message):
        map_figure(panels)
