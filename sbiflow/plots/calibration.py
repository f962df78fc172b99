"""Figures of a calibration: ECDFs of ranks, coverage, P-P plot, each in its simultaneous band."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from sbiflow.plots.style import BLUE, CYCLE, DASHES, GREY, RED, TEXT


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
        title = f"{name}: outside the band" if outside.any() else name
        axes.set_title(textwrap.fill(title, 28), fontsize=10)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes in panels[max(len(names) - columns, 0) : len(names)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("rank of the true value, as a fraction of the draws", fontsize=10)
    figure.supylabel("ECDF − uniform", fontsize=10)
    return figure


def coverage_curve(
    nominal: ArrayLike,
    empirical: ArrayLike,
    band_low: ArrayLike,
    band_high: ArrayLike,
    region: str = "highest-density region",
    below: str = "below the line: overconfident",
    above: str = "above the line: too wide",
) -> Figure:
    """Share of truths inside a credible region against its nominal mass, in a simultaneous band.

    Args:
        nominal: masses (K,), in [0, 1].
        empirical: share of truths inside, (K,).
        band_low, band_high: of the share, (K,).
        region: what the credible region is.
        below, above: what it means if the curve lies there.
    """
    level, share, low, high = (np.asarray(a, float) for a in (nominal, empirical, band_low, band_high))
    inside = bool(((share >= low) & (share <= high)).all())
    figure = Figure(figsize=(4.6, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(level, low, high, color=GREY, alpha=0.3, linewidth=0, label="simultaneous band")
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.7, label="exact calibration")
    measured = "measured" if inside else "measured: outside the band"
    axes.plot(level, share, color=BLUE if inside else RED, linewidth=1.4, label=measured)
    axes.set_title(f"{above}\n{below}", fontsize=9, color=TEXT)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xlabel(f"nominal mass of the {region}")
    axes.set_ylabel("share of true parameters inside")
    axes.legend(frameon=False, loc="best", fontsize=9)
    return figure


def pp_curves(
    grid: ArrayLike,
    curves: ArrayLike,
    labels: Sequence[str],
    bands: Sequence[tuple[str, ArrayLike, ArrayLike]],
) -> Figure:
    """P-P plot: share of truths within each credible level, one line a parameter, in simultaneous bands.

    Args:
        grid: credible levels (K,), in [0, 1].
        curves: share of truths, (D, K).
        labels: D legend entries.
        bands: (label, low (K,), high (K,)), the narrowest first.

    Raises:
        ValueError: the shapes disagree.
    """
    level, shares = np.asarray(grid, float), np.asarray(curves, float)
    if shares.shape != (len(labels), len(level)):
        raise ValueError(f"curves: expected shape ({len(labels)}, {len(level)}), got {shares.shape}")
    below = len(labels) > 6  # so many entries do not fit beside the curves
    rows = -(-(len(labels) + len(bands)) // 2)
    figure = Figure(figsize=(4.6, 4.8 + 0.2 * rows if below else 4.8), layout="constrained")
    axes = figure.subplots()
    for i, (text, low, high) in reversed(list(enumerate(bands))):
        shade = str(0.72 + 0.2 * i / max(len(bands) - 1, 1))
        axes.fill_between(level, low, high, color=shade, linewidth=0, label=text)
    for i, (label, share) in enumerate(zip(labels, shares, strict=True)):
        colour, dash = CYCLE[i % len(CYCLE)], DASHES[i // len(CYCLE) % len(DASHES)]
        axes.plot(level, share, color=colour, linestyle=dash, linewidth=1.2, label=label)
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.5)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xlabel("credible level p")
    axes.set_ylabel("share of true parameters below level p")
    handles, texts = axes.get_legend_handles_labels()
    order = [*range(len(bands), len(texts)), *reversed(range(len(bands)))]
    entries = [handles[i] for i in order], [texts[i] for i in order]
    if below:
        figure.legend(*entries, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    else:
        axes.legend(*entries, loc="best", frameon=False, fontsize=8)
    return figure
