"""A spectrum, its posterior predictive bands and the residual."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from sbiflow.plots.style import BLUE, GREY, axis_label


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
