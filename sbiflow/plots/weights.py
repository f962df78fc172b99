"""Importance weights."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from sbiflow.plots.style import BLUE


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
