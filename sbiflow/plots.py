"""Arrays in, matplotlib `Figure` out. Nothing of sbiflow is imported, no global figure state is touched.

Every figure is made with `matplotlib.figure.Figure`, so that no display is needed and nothing stays open;
`figure.savefig(path)` writes it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

with (
    warnings.catch_warnings()
):  # corner imports ArviZ where it is installed, which warns of its own future once a day
    warnings.simplefilter("ignore", FutureWarning)
    import corner

BLUE, ORANGE, GREEN, RED, GREY = "#0b559f", "#d95f02", "#1b7837", "#b2182b", "#7f7f7f"
OVERLAY_COLOURS = (ORANGE, GREEN, "#7b3294", RED)
MASS_LEVELS = (0.68, 0.95)

Overlay = tuple[str, np.ndarray, "np.ndarray | None"]


def axis_label(name: str, unit: str = "") -> str:
    """The name with its unit in brackets.

    >>> axis_label("v_los", "km/s"), axis_label("eta_0")
    ('v_los [km/s]', 'eta_0')
    """
    return f"{name} [{unit}]" if unit else name


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


def training_curve(
    steps: ArrayLike, loss: ArrayLike, val_steps: ArrayLike, val_loss: ArrayLike, lr: ArrayLike | None = None
) -> Figure:
    """Training and validation loss [nats] against the step, with the learning rate (at `steps`) below."""
    figure = Figure(figsize=(7, 4.8 if lr is not None else 3.8), layout="constrained")
    rows = 1 if lr is None else 2
    axes = figure.subplots(rows, 1, sharex=True, height_ratios=(3, 1)[:rows], squeeze=False).ravel()
    axes[0].plot(steps, loss, color=GREY, linewidth=0.7, alpha=0.7, label="training")
    axes[0].plot(val_steps, val_loss, color=BLUE, marker="o", markersize=3, label="validation")
    axes[0].set_ylim(*_loss_limits(np.asarray(loss, float), np.asarray(val_loss, float)))
    axes[0].set_ylabel("loss  −log q(θ|x) [nats]")
    axes[0].legend(frameon=False)
    if lr is not None:
        axes[1].plot(steps, lr, color=ORANGE)
        axes[1].set_ylim(bottom=0)
        axes[1].set_ylabel("learning rate")
    axes[-1].set_xlabel("training step")
    return figure


def _loss_limits(loss: np.ndarray, val_loss: np.ndarray) -> tuple[float, float]:
    """The first steps are far above the rest: start the axis where the best 95 % of the steps lie."""
    values = np.concatenate([loss, val_loss])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = values.min(), np.quantile(values, 0.95)
    margin = 0.08 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def rank_ecdf(
    ranks_unit: ArrayLike, band_low: ArrayLike, band_high: ArrayLike, grid: ArrayLike, names: Sequence[str]
) -> Figure:
    """ECDF of the ranks minus the uniform's, one panel a parameter, inside its simultaneous band.

    Args:
        ranks_unit: ranks as fractions in [0, 1], (N, D).
        band_low: lower edge of the ECDF (not of the difference) at `grid`, in [0, 1], (K,).
        band_high: upper edge, (K,).
        grid: (K,) in [0, 1].
        names: D names.
    """
    ranks, grid_, low, high = (np.asarray(a, float) for a in (ranks_unit, grid, band_low, band_high))
    if ranks.ndim != 2 or ranks.shape[1] != len(names):
        raise ValueError(f"ranks_unit: expected shape (N, {len(names)}), got {ranks.shape}")
    rows = -(-len(names) // 4)
    columns = -(-len(names) // rows)
    figure = Figure(figsize=(max(2.7 * columns, 4.2) + 0.6, 2.3 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, name, rank in zip(panels, names, ranks.T, strict=False):
        empirical = np.searchsorted(np.sort(rank), grid_, side="right") / len(rank)
        outside = (empirical < low) | (empirical > high)
        axes.fill_between(grid_, low - grid_, high - grid_, color=GREY, alpha=0.3, linewidth=0)
        axes.step(grid_, empirical - grid_, where="post", color=RED if outside.any() else BLUE, linewidth=1.2)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_title(f"{name}: outside the band" if outside.any() else name, fontsize=10)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes in panels[max(len(names) - columns, 0) : len(names)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("rank of the true value, as a fraction of the draws", fontsize=10)
    figure.supylabel("ECDF − uniform", fontsize=10)
    return figure


def coverage_curve(
    nominal: ArrayLike, empirical: ArrayLike, band_low: ArrayLike, band_high: ArrayLike
) -> Figure:
    """Share of truths inside the highest-density region against its nominal mass, in a simultaneous band."""
    level, share, low, high = (np.asarray(a, float) for a in (nominal, empirical, band_low, band_high))
    inside = bool(((share >= low) & (share <= high)).all())
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(level, low, high, color=GREY, alpha=0.3, linewidth=0, label="simultaneous band")
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.7, label="exact calibration")
    axes.plot(level, share, color=BLUE if inside else RED, label="measured")
    axes.text(0.97, 0.03, "below the line: overconfident", ha="right", fontsize=9, color=GREY)
    axes.text(0.97, 0.09, "above the line: too wide", ha="right", fontsize=9, color=GREY)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xlabel("nominal mass of the highest-density region")
    axes.set_ylabel("share of true parameters inside")
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    return figure


def fit_residuals(
    wavelength: ArrayLike,
    observed: ArrayLike,
    noise: ArrayLike,
    bands: ArrayLike,
    labels: Sequence[str] = ("I", "Q", "U", "V"),
    units: tuple[str, str] = ("Å", ""),
) -> Figure:
    """Observation, posterior-predictive median and 68/95 % bands, residual in units of the noise.

    Args:
        wavelength: (W,).
        observed: (S, W), one row per Stokes parameter.
        noise: standard deviation, (S, W) or (S,).
        bands: predictive quantiles at 2.5, 16, 50, 84, 97.5 %, (5, S, W).
        labels: S names.
        units: of the wavelength and of the observation.
    """
    x, y, quantile = (np.asarray(a, float) for a in (wavelength, observed, bands))
    count = len(labels)
    if y.shape != (count, len(x)) or quantile.shape != (5, *y.shape):
        raise ValueError(
            f"expected observed ({count}, {len(x)}) and bands (5, {count}, {len(x)}), "
            f"got {y.shape} and {quantile.shape}"
        )
    sigma = np.asarray(noise, float)
    sigma = np.broadcast_to(sigma[:, None] if sigma.ndim == 1 else sigma, y.shape)
    figure = Figure(figsize=(3.3 * count + 0.8, 4.6), layout="constrained")
    panels = figure.subplots(2, count, sharex=True, height_ratios=(2.4, 1), squeeze=False)
    for i, (top, bottom) in enumerate(panels.T):
        _fit_panel(top, x, y[i], sigma[i], quantile[:, i])
        _residual_panel(bottom, x, (y[i] - quantile[2, i]) / sigma[i])
        top.set_title(axis_label(labels[i], units[1]), fontsize=10)
        bottom.set_xlabel(axis_label("wavelength", units[0]))
    panels[1, 0].set_ylabel("residual [σ]")
    panels[0, 0].set_ylabel(axis_label("signal", units[1]))
    handles, texts = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def _fit_panel(axes: Axes, x: np.ndarray, y: np.ndarray, sigma: np.ndarray, bands: np.ndarray) -> None:
    axes.fill_between(x, bands[0], bands[4], color=BLUE, alpha=0.18, linewidth=0, label="95 %")
    axes.fill_between(x, bands[1], bands[3], color=BLUE, alpha=0.35, linewidth=0, label="68 %")
    axes.plot(x, bands[2], color=BLUE, linewidth=1, label="predictive median")
    axes.errorbar(x, y, sigma, fmt=".", color="black", markersize=4, linewidth=0.8, label="observed ± noise")
    axes.margins(x=0.03)
    axes.locator_params(axis="x", nbins=4)
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-2, 4))


def _residual_panel(axes: Axes, x: np.ndarray, residual: np.ndarray) -> None:
    for width, alpha in ((2, 0.15), (1, 0.25)):
        axes.axhspan(-width, width, color=GREY, alpha=alpha, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.plot(x, residual, ".", color="black", markersize=5)
    reach = max(3.0, 1.15 * float(np.nanmax(np.abs(residual))))
    axes.set_ylim(-reach, reach)


def weight_histogram(log_weights: ArrayLike, bins: int = 60) -> Figure:
    """Histogram of the importance weights over their mean, with the share that the largest one carries."""
    values = np.asarray(log_weights, float).ravel()
    kept = values[np.isfinite(values)]
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("log10(weight / mean weight)")
    axes.set_ylabel("draws")
    if not kept.size:
        axes.text(0.5, 0.5, "every weight is zero", ha="center", transform=axes.transAxes)
        return figure
    weights = np.exp(kept - kept.max())
    relative = (kept - kept.max() - np.log(weights.sum() / values.size)) / np.log(10)
    centre = np.median(relative)
    floor = max(relative.min(), min(centre - 6.0, -6.0))  # a long tail of negligible weights goes to one bin
    axes.hist(np.maximum(relative, floor), bins=bins, color=BLUE, alpha=0.8)
    axes.axvline(0, color="black", linewidth=0.8, linestyle="--")
    axes.set_yscale("log")
    ess = weights.sum() ** 2 / (weights**2).sum()
    axes.set_title(
        f"{values.size:,} draws, {values.size - kept.size:,} of zero weight\n"
        f"effective sample size {ess:,.1f}, largest weight {1 / weights.sum():.2%} of the sum",
        fontsize=9,
    )
    return figure
