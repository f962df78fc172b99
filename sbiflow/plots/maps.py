"""Images of a field of view, side by side, each with its colour bar and unit; pixels without an answer are grey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import ArrayLike

from sbiflow.plots.style import axis_label

_MISSING = "#b0b0b0"
_CATEGORIES = ("#e8eef5", "#d55e00", "#0072b2", "#cc79a7", "#009e73", "#e69f00")
_MOST = 2048  # pixels along an axis that a panel can show; more are thinned
_CLIP = (0.5, 99.5)  # percentiles that the colours span


@dataclass(frozen=True, eq=False)
class Panel:
    """One image.

    Attributes:
        image: (ny, nx), NaN where there is nothing to show; whole numbers from zero for categories.
        label, unit: of the colour bar.
        limits: of the colours; by default the 0.5 and 99.5 percentiles, about zero where values have both signs.
        cyclic: the ends of `limits` are the same value: an angle.
        log: logarithmic colours.
        categories: what the numbers 0, 1, … of the image stand for.
    """

    image: ArrayLike
    label: str
    unit: str = ""
    limits: tuple[float, float] | None = None
    cyclic: bool = False
    log: bool = False
    categories: tuple[str, ...] = ()


def map_figure(panels: Sequence[Panel], title: str = "") -> Figure:
    """Images side by side, three to a row (four: two), y upwards, axes in pixels.

    Raises:
        ValueError: no panel, images that are not two-dimensional or of different shapes, too many categories.
    """
    images = [np.asarray(panel.image, float) for panel in panels]
    shapes = {image.shape for image in images}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"panels: expected images of one shape (ny, nx), got {sorted(shapes)}")
    if any(len(panel.categories) > len(_CATEGORIES) for panel in panels):
        raise ValueError(f"categories: expected at most {len(_CATEGORIES)}")
    ny, nx = next(iter(shapes))
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = -(-len(panels) // columns)
    height = float(np.clip(3.3 * ny / nx, 1.4, 6.0))
    figure = Figure(figsize=(4.4 * columns, (height + 0.3) * rows + 0.6), layout="constrained")
    every = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, panel, image in zip(every.flat, panels, images, strict=False):
        _draw(axes, panel, image)
    for axes in every.flat[len(panels) :]:
        axes.set_visible(False)
    for column in range(columns):  # under the lowest panel of every column
        lowest = every[(len(panels) - 1 - column) // columns, column]
        lowest.set_xlabel("x [pixel]")
        lowest.tick_params(labelbottom=True)
    for axes in every[:, 0]:
        axes.set_ylabel("y [pixel]")
    figure.suptitle(title, fontsize=12)
    return figure


def _draw(axes: Axes, panel: Panel, image: np.ndarray) -> None:
    step = max(-(-max(image.shape) // _MOST), 1)
    ny, nx = image.shape
    colours, norm, extend = _colours(panel, image)
    if panel.log:  # zero is below every limit, not missing
        image = np.where(image <= 0, np.finfo(float).tiny, image)
    shown = axes.imshow(
        image[::step, ::step],
        origin="lower",
        extent=(-0.5, nx - 0.5, -0.5, ny - 0.5),
        cmap=colours.with_extremes(bad=_MISSING),
        norm=norm,
        interpolation="nearest",
    )
    bar = _colour_bar(axes, shown, panel, extend)
    bar.ax.tick_params(which="both", labelsize=8)
    if panel.categories:
        axes.set_title(panel.label, fontsize=10)
    else:
        bar.set_label(axis_label(panel.label, panel.unit), fontsize=10)
    axes.tick_params(labelsize=8)


def _colour_bar(axes: Axes, shown: ScalarMappable, panel: Panel, extend: str) -> Colorbar:
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("axes: expected axes of a figure")
    if panel.categories:
        bar = figure.colorbar(shown, ax=axes, ticks=range(len(panel.categories)), pad=0.02)
        bar.ax.set_yticklabels(panel.categories)
        bar.ax.minorticks_off()
        return bar
    bar = figure.colorbar(shown, ax=axes, extend=extend, pad=0.02)
    if panel.log:
        bar.ax.yaxis.set_major_formatter("{x:g}")
        low, high = shown.get_clim()
        if low and high and high > 20 * low:  # else a decade's end may not be on the bar
            bar.ax.yaxis.set_minor_formatter(NullFormatter())
        else:
            bar.ax.yaxis.set_minor_formatter("{x:g}")
    return bar


def _colours(panel: Panel, image: np.ndarray) -> tuple[Colormap, Normalize, str]:
    if panel.categories:
        count = len(panel.categories)
        return ListedColormap(_CATEGORIES[:count]), BoundaryNorm(np.arange(count + 1) - 0.5, count), "neither"
    finite = image[np.isfinite(image)]
    low, high = _limits(panel, finite[finite > 0] if panel.log else finite)
    norm = LogNorm(low, high) if panel.log else Normalize(low, high)
    below, above = bool((finite < low).any()), bool((finite > high).any())
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    name = "twilight" if panel.cyclic else "RdBu_r" if low == -high else "viridis"
    return matplotlib.colormaps[name], norm, extend[below, above]


def _limits(panel: Panel, finite: np.ndarray) -> tuple[float, float]:
    if panel.limits is not None:
        return panel.limits
    if not finite.size:
        return (0.1, 1.0) if panel.log else (0.0, 1.0)
    low, high = np.percentile(finite, _CLIP)
    if panel.log:
        return (low, high) if high > low * 1.01 else (low / 2, low * 2)
    if low < 0 < high:
        return -max(-low, high), max(-low, high)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
