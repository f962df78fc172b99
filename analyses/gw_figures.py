"""Derived parameters and figures of 20_gw150914.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sbiflow import plots
from sbiflow.summary import SummaryTable, summarise
from simulators.gravitational_waves import network
from simulators.gravitational_waves.data import in_band, whitened_time_series
from simulators.gravitational_waves.event import Event

_TURN = (0.0, 2 * math.pi)
_CELLS = (128, 64)  # of the sky in right ascension and sin(declination): 5.0 deg^2 each
_SHOWN = (35.0, 350.0)  # Hz: outside, whitened data are noise
_SPAN = (-0.15, 0.05)  # s around the trigger


@dataclass(frozen=True)
class Column:
    """A derived parameter: draws (n,), and its interval if it is periodic."""

    name: str
    unit: str
    label: str
    values: np.ndarray
    period: tuple[float, float] | None = None


def derived(theta: Tensor) -> tuple[Column, ...]:
    """What one reports of draws (n, 11): masses in the detector's frame, spins, place and time."""
    heavy, light = network.component_masses(theta)
    ratio, chi_1, chi_2 = theta[:, 1], theta[:, 2], theta[:, 3]
    effective = (chi_1 + ratio * chi_2) / (1 + ratio)
    ra, dec, time = network.sky(theta).unbind(-1)
    rows = [
        ("mass_1", "M☉", "$m_1$", heavy),
        ("mass_2", "M☉", "$m_2$", light),
        ("chirp_mass", "M☉", r"$\mathcal{M}$", theta[:, 0]),
        ("mass_ratio", "", "$q$", ratio),
        ("chi_1", "", r"$\chi_1$", chi_1),
        ("chi_2", "", r"$\chi_2$", chi_2),
        ("chi_eff", "", r"$\chi_\mathrm{eff}$", effective),
        ("d_L", "Mpc", "$d_L$", theta[:, 4]),
        ("theta_jn", "rad", r"$\theta_{JN}$", theta[:, 5]),
        ("ra", "rad", r"$\alpha$", ra),
        ("dec", "rad", r"$\delta$", dec),
        ("t_H1", "s", r"$t_\mathrm{H1}$", theta[:, 8]),
        ("t_geocentre", "s", r"$t_\oplus$", time),
    ]
    return tuple(
        Column(name, unit, label, values.numpy(), _TURN if name == "ra" else None)
        for name, unit, label, values in rows
    )


def table(theta: Tensor, weights: Tensor | None = None) -> SummaryTable:
    """Median, 16/84 %, mean and sd of the derived parameters."""
    w = None if weights is None else weights.numpy()
    rows = tuple(summarise(c.values, c.name, c.unit, c.period, w) for c in derived(theta))
    return SummaryTable(rows, len(theta), None if weights is None else float(1 / weights.square().sum()))


def corner(ours: Tensor, weights: Tensor, reference: Tensor) -> Figure:
    """Masses, spins, distance and inclination: the reweighted flow, and the sampler's contours."""
    shown = ("mass_1", "mass_2", "chi_1", "chi_2", "chi_eff", "d_L", "theta_jn")
    columns, others = ([c for c in derived(t) if c.name in shown] for t in (ours, reference))
    return plots.corner_figure(
        np.stack([c.values for c in columns], -1),
        [c.label for c in columns],
        [c.unit for c in columns],
        weights=weights.numpy(),
        overlay=[("emcee", np.stack([c.values for c in others], -1), None)],
        label="flow, reweighted",
    )


def credible_areas(density: np.ndarray, levels: Sequence[float]) -> list[float]:
    """Areas [deg^2] of the smallest regions of cells (any shape, equal areas) that hold shares of the whole."""
    ordered = np.sort(density.ravel())[::-1] / density.sum()
    cell = 4 * math.pi * math.degrees(1) ** 2 / density.size
    counts = np.searchsorted(np.cumsum(ordered), levels) + 1
    return [float(n * cell) for n in counts]


def sky_density(theta: Tensor, weights: Tensor | None = None) -> np.ndarray:
    """Probability per cell of equal area, (right ascension, sin(declination))."""
    ra, dec, _ = network.sky(theta).unbind(-1)
    w = None if weights is None else weights.numpy()
    edges = ((0.0, 2 * math.pi), (-1.0, 1.0))
    counts, _, _ = np.histogram2d(ra.numpy(), torch.sin(dec).numpy(), _CELLS, edges, weights=w)
    return counts / counts.sum()


def sky_map(ours: np.ndarray, reference: np.ndarray) -> Figure:
    """Two maps of `sky_density`, with the areas of their credible regions."""
    figure = Figure(figsize=(8, 8.2), layout="constrained")
    ra = np.linspace(-math.pi, math.pi, _CELLS[0] + 1)
    dec = np.arcsin(np.linspace(-1, 1, _CELLS[1] + 1))
    both = (("flow, reweighted", ours), ("emcee", reference))
    for place, (name, density) in enumerate(both, 1):
        axes = figure.add_subplot(2, 1, place, projection="mollweide")
        turned = np.roll(density, _CELLS[0] // 2, 0)  # right ascension 0 in the middle
        axes.pcolormesh(-ra[::-1], dec, turned[::-1].T, cmap="Blues", rasterized=True)
        half, most = credible_areas(density, (0.5, 0.9))
        axes.set_title(f"{name}: 50 % in {half:,.0f} deg², 90 % in {most:,.0f} deg²", pad=14)
        axes.set_xticks(np.radians([-120, -60, 0, 60, 120]), ["8 h", "4 h", "0 h", "20 h", "16 h"])
        axes.grid(alpha=0.4)
    return figure


def signal_figure(event: Event, draws: Tensor) -> Figure:
    """Whitened strain of both detectors, and the 90 % band of the posterior's signals, draws (n, 11)."""
    mask = in_band(event.frequencies, *_SHOWN)
    rate, start = 4096.0, event.duration / -2

    def series(whitened: Tensor) -> tuple[Tensor, Tensor]:
        times, values = whitened_time_series(
            whitened[..., mask], event.frequencies[mask], rate, event.duration, start=start
        )
        kept = (times >= _SPAN[0]) & (times < _SPAN[1])
        return times[kept], values[..., kept]

    times, data = series(event.whitened)
    signals = torch.cat([series(event.model(rows))[1] for rows in draws.split(50)])
    low, middle, high = torch.quantile(signals, torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64), dim=0)
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    for axes, name, i in zip(
        figure.subplots(2, 1, sharex=True), ("Hanford", "Livingston"), range(2), strict=True
    ):
        axes.plot(times, data[i], color=plots.GREY, linewidth=0.7, label="data")
        axes.fill_between(times, low[i], high[i], color=plots.ORANGE, alpha=0.5, label="posterior, 90 %")
        axes.plot(times, middle[i], color=plots.BLUE, linewidth=1.0, label="median")
        axes.set_ylabel(f"{name}, whitened strain")
    figure.axes[0].legend(loc="upper left", frameon=False, ncols=3)
    figure.axes[1].set_xlabel(f"time after the trigger [s], {_SHOWN[0]:g} to {_SHOWN[1]:g} Hz")
    return figure
