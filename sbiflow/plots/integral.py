"""Integrals: how the estimate settles with the iterations, and the weights of two proposals."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from sbiflow.plots.style import CYCLE, GREY, RED

_DECADES = 8.0  # below the mean: weights that are smaller still share the first bin


def convergence(
    phases: Sequence[str],
    evaluations: ArrayLike,
    means: ArrayLike,
    sdevs: ArrayLike,
    final: tuple[float, float],
    truth: float | None = None,
    label: str = "integral",
) -> Figure:
    """The integral by iteration, ± one standard deviation, with the final estimate as a band.

    Args:
        phases: what each iteration was for, N names; each has its colour.
        evaluations: evaluations up to and with each iteration, (N,).
        means: the integral by each iteration alone, (N,), in the integrand's units; those that are not
            finite are left out.
        sdevs: standard deviations, (N,); not finite: drawn without a bar.
        final: estimate and standard deviation.
        truth: known value, if any.
        label: of the vertical axis.

    Raises:
        ValueError: the lengths disagree.
    """
    x, y, error = (np.asarray(a, float).ravel() for a in (evaluations, means, sdevs))
    if not len(phases) == len(x) == len(y) == len(error):
        raise ValueError(
            f"convergence: expected {len(phases)} evaluations, means and sdevs, got {len(x)}, {len(y)}, {len(error)}"
        )
    bars = np.where(np.isfinite(error), error, 0.0)
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    mean, sdev = final
    if np.isfinite(sdev):
        axes.axhspan(mean - sdev, mean + sdev, color=GREY, alpha=0.35, linewidth=0)
    axes.axhline(mean, color="black", linewidth=0.8, label="estimate ± 1 sd")
    for colour, phase in zip(cycle(CYCLE), dict.fromkeys(phases), strict=False):
        chosen = np.array([name == phase for name in phases]) & np.isfinite(y)
        axes.errorbar(
            x[chosen],
            y[chosen],
            bars[chosen],
            fmt="o",
            markersize=3.5,
            linewidth=1,
            color=colour,
            label=phase,
        )
    if truth is not None:
        axes.axhline(truth, color=RED, linewidth=1, linestyle="--", label="truth")
    axes.set_ylim(*_limits(y, bars, final, truth))
    axes.set_xlabel("evaluations of the integrand")
    axes.set_ylabel(label)
    axes.legend(frameon=False, fontsize=9)
    return figure


def weights_by_proposal(log_weights: Sequence[tuple[str, ArrayLike]], bins: int = 80) -> Figure:
    """Histograms of log10(|w| / mean |w|) of several proposals for one integrand; a perfect one has a spike at 0.

    Args:
        log_weights: (label, ln |w| (n,)) of each, -inf for a weight of zero; sizes may differ.
        bins: of the common axis.

    Raises:
        ValueError: no proposal, or NaN or +inf among the weights.
    """
    if not log_weights:
        raise ValueError("log_weights: expected one proposal or more, got none")
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    relative = [_over_the_mean(label, np.asarray(values, float).ravel()) for label, values in log_weights]
    drawn = [np.maximum(values, -_DECADES) for values, _, _ in relative]
    everything = np.concatenate([*drawn, [0.0]])
    edges = np.linspace(everything.min() - 0.05, everything.max() + 0.05, bins + 1)
    for (label, _), values, (_, share, n), colour in zip(
        log_weights, drawn, relative, cycle(CYCLE), strict=False
    ):
        text = f"{label}: ESS {share:.1%}, {1 - values.size / n:.1%} of weight zero"
        axes.stairs(np.histogram(values, edges)[0] / n, edges, color=colour, label=text)
    axes.axvline(0, color=GREY, linewidth=0.8, linestyle="--")
    axes.set_yscale("log" if everything.size > 1 else "linear")
    axes.set_xlabel("log10(|weight| / mean |weight|)")
    axes.set_ylabel("share of the points in a bin")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _over_the_mean(label: str, log_weights: np.ndarray) -> tuple[np.ndarray, float, int]:
    """log10 of the weights above zero over the mean of all, effective sample size as a share of n, and n."""
    n = log_weights.size
    bad = int((np.isnan(log_weights) | (log_weights == np.inf)).sum())
    if bad or not n:
        raise ValueError(f"{label}: expected log-weights without NaN and +inf, got {bad} such of {n}")
    kept = log_weights[log_weights > -np.inf]
    if not kept.size:
        return kept, 0.0, n
    weights = np.exp(kept - kept.max())
    relative = (kept - kept.max() - np.log(weights.sum() / n)) / np.log(10)
    return relative, float(weights.sum() ** 2 / (weights**2).sum() / n), n


def _limits(
    means: np.ndarray, bars: np.ndarray, final: tuple[float, float], truth: float | None
) -> tuple[float, float]:
    """Room for the better half of the iterations, the estimate and the truth: the first may be far off."""
    mean, sdev = final[0], final[1] if np.isfinite(final[1]) else 0.0
    off = np.abs(means - mean) + bars
    off = off[np.isfinite(off)]
    typical = float(np.median(off)) if off.size else 0.0
    half = 1.15 * max(typical, 4 * sdev, abs(truth - mean) if truth is not None else 0.0)
    half = half or 0.05 * abs(mean) or 1.0
    return (mean - half, mean + half) if np.isfinite(mean) else (-1.0, 1.0)
