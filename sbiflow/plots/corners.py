"""Corner plots."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from sbiflow.plots.style import BLUE, GREEN, ORANGE, RED, axis_label

with (
    warnings.catch_warnings()
):  # corner imports ArviZ where it is installed, which warns of its own future once a day
    warnings.simplefilter("ignore", FutureWarning)
    import corner

OVERLAY_COLOURS = (ORANGE, GREEN, "#7b3294", RED)
MASS_LEVELS = (0.68, 0.95)

Overlay = tuple[str, np.ndarray, "np.ndarray | None"]


def corner_figure(
    samples: ArrayLike,
    names: Sequence[str],
    units: Sequence[str],
    weights: ArrayLike | None = None,
    truth: ArrayLike | None = None,
    overlay: Sequence[Overlay] | None = None,
    label: str = "draws",
    bins: int | None = None,
) -> Figure:
    """Corner plot with 68 and 95 % mass contours; the titles give the median and the 16/84 % interval.

    Args:
        samples: draws (n, D) in physical units.
        names: D names.
        units: D units, "" for none.
        weights: (n,) non-negative weights, or None for equal ones.
        truth: (D,) marked by a line; NaN for none.
        overlay: further (label, samples (m, D), weights (m,) or None), drawn as contours only.
        label: legend entry of `samples`, shown when there is an overlay.
        bins: bins per axis; by default 8 to 30, as the smallest effective number of draws allows.

    Raises:
        ValueError: the shapes disagree, fewer draws than parameters, or no positive weight.
    """
    sets = [(label, samples, weights), *(overlay or [])]
    checked = [(text, *_check_draws(text, draws, w, len(names))) for text, draws, w in sets]
    if len(units) != len(names):
        raise ValueError(f"units: expected {len(names)} entries, got {len(units)}")
    dim = len(names)
    limits = _common_limits(checked, truth)
    powers = [_power_of_ten(low, high) for low, high in limits]
    scale = 10.0 ** np.array(powers, float)
    scaled_units = [_scaled_unit(unit, power) for unit, power in zip(units, powers, strict=True)]
    side = 2.1 * dim + (2.4 if dim < 3 else 1.0)
    figure = Figure(figsize=(side, side))
    for i, (_, draws, w) in enumerate(checked):
        colour = BLUE if i == 0 else OVERLAY_COLOURS[(i - 1) % len(OVERLAY_COLOURS)]
        corner.corner(
            draws / scale,
            fig=figure,
            weights=w / w.sum(),  # a density per set, so that sets of different sizes share an axis
            range=[(low / s, high / s) for (low, high), s in zip(limits, scale, strict=True)],
            bins=_bins(checked) if bins is None else bins,
            smooth=0.8,
            levels=MASS_LEVELS,
            color=colour,
            labels=[axis_label(*pair) for pair in zip(names, scaled_units, strict=True)],
            max_n_ticks=4,
            plot_datapoints=False,
            plot_density=i == 0,
            no_fill_contours=i > 0,  # or each set would paint over the one below
            quiet=True,
            contour_kwargs={"linewidths": 1.2},
            hist_kwargs={"linewidth": 1.3},
        )
    figure.subplots_adjust(top=1 - 0.6 / side)  # corner leaves room for one line of title
    _rescale_histograms(figure, dim)
    _median_titles(figure, checked[0][1] / scale, checked[0][2], names, scaled_units)
    if truth is not None:
        _mark_truth(figure, np.asarray(truth, float) / scale)
    _corner_legend(figure, [text for text, _, _ in checked], truth is not None, side)
    return figure


def _check_draws(
    text: str, draws: ArrayLike, weights: ArrayLike | None, dim: int
) -> tuple[np.ndarray, np.ndarray]:
    array = np.asarray(draws, float)
    if array.ndim != 2 or array.shape[1] != dim:
        raise ValueError(f"{text}: expected draws of shape (n, {dim}), got {array.shape}")
    if len(array) <= dim:
        raise ValueError(f"{text}: expected more than {dim} draws for {dim} parameters, got {len(array)}")
    w = np.ones(len(array)) if weights is None else np.asarray(weights, float)
    if w.shape != (len(array),) or not np.isfinite(w).all() or (w < 0).any() or not w.sum() > 0:
        raise ValueError(f"{text}: expected {len(array)} weights >= 0, not all zero, got shape {w.shape}")
    return array, w


def _bins(sets: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> int:
    effective = min(w.sum() ** 2 / (w**2).sum() for _, _, w in sets)
    return int(np.clip(1.6 * np.cbrt(effective), 8, 30))


def _quantiles(values: np.ndarray, weights: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Quantiles of weighted values, each draw's mass centred on its value."""
    order = np.argsort(values)
    mass = weights[order] / weights.sum()
    return np.interp(levels, np.cumsum(mass) - mass / 2, values[order])


def _common_limits(
    sets: Sequence[tuple[str, np.ndarray, np.ndarray]], truth: ArrayLike | None
) -> list[tuple[float, float]]:
    """Per parameter: the central 99.8 % of every set and the truth, with a margin."""
    tails = np.array(
        [[_quantiles(column, w, (0.001, 0.999)) for column in draws.T] for _, draws, w in sets]
    )  # (sets, D, 2)
    low, high = tails[..., 0].min(0), tails[..., 1].max(0)
    if truth is not None:
        low, high = np.fmin(low, truth), np.fmax(high, truth)
    margin = np.maximum(0.06 * (high - low), 1e-9 * np.maximum(np.abs(high), 1e-300))
    return list(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))


def _mark_truth(figure: Figure, truth: np.ndarray) -> None:
    for i, row in enumerate(truth):
        for j, column in enumerate(truth[: i + 1]):
            axes = figure.axes[i * len(truth) + j]
            if np.isfinite(column):
                axes.axvline(column, color=RED, linewidth=1.1)
            if j < i and np.isfinite(row):
                axes.axhline(row, color=RED, linewidth=1.1)


def _diagonal(figure: Figure, dim: int) -> list[Axes]:
    return [figure.axes[i * dim + i] for i in range(dim)]


def _rescale_histograms(figure: Figure, dim: int) -> None:
    for axes in _diagonal(figure, dim):
        axes.relim()
        tops = [patch.get_xy()[:, 1].max() for patch in axes.patches]  # type: ignore[attr-defined]
        axes.set_ylim(0, 1.1 * max(tops))


def _median_titles(
    figure: Figure, draws: np.ndarray, weights: np.ndarray, names: Sequence[str], units: Sequence[str]
) -> None:
    for axes, values, name, unit in zip(_diagonal(figure, len(names)), draws.T, names, units, strict=True):
        low, median, high = _quantiles(values, weights, (0.16, 0.5, 0.84))
        text = interval_text(median, median - low, high - median)
        times = "× " if unit.startswith("$10") else ""
        axes.set_title(f"{name}\n{text} {times}{unit}".rstrip(), fontsize=10)


def interval_text(median: float, minus: float, plus: float) -> str:
    """Median with its uncertainties, to two significant digits of the smaller one, in mathtext.

    >>> interval_text(1.23456, 0.0123, 0.0234)
    '$1.235_{-0.012}^{+0.023}$'
    """
    spread = min((s for s in (minus, plus) if s > 0), default=abs(median) or 1.0)
    digits = int(np.clip(1 - np.floor(np.log10(spread)), 0, 12))
    return f"${median:.{digits}f}_{{-{minus:.{digits}f}}}^{{+{plus:.{digits}f}}}$"


def _power_of_ten(low: float, high: float) -> int:
    """The power of ten that goes to the unit: 0 while the numbers are readable as they stand."""
    size = max(abs(low), abs(high))
    power = int(np.floor(np.log10(size))) if size > 0 else 0
    return power if power >= 5 or power <= -3 else 0


def _scaled_unit(unit: str, power: int) -> str:
    return f"$10^{{{power}}}$ {unit}".rstrip() if power else unit


def _corner_legend(figure: Figure, labels: Sequence[str], truth: bool, side: float) -> None:
    entries = list(zip(labels, (BLUE, *OVERLAY_COLOURS * len(labels)), strict=False))
    entries += [("truth", RED)] if truth else []
    handles = [figure.axes[0].plot([], [], color=colour, label=text)[0] for text, colour in entries]
    if len(figure.axes) == 1 and len(handles) > 1:
        figure.axes[0].legend(handles=handles, loc="upper right", frameon=False, fontsize=8)
    elif len(handles) > 1:
        figure.legend(handles=handles, loc="upper right", frameon=False, fontsize=10 + side / 2)
