"""Figures of the lecture examples: samples, density, and what each layer does to the plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

_SHOWN = 4000  # points of a scatter plot
_CELLS = 200


def _square(axes: Axes, half_width: float, title: str) -> None:
    axes.set(xlim=(-half_width, half_width), ylim=(-half_width, half_width), title=title, aspect="equal")
    axes.set(xlabel="x1", ylabel="x2")


def lattice(half_width: float, cells: int = _CELLS) -> Tensor:
    """Midpoints of cells over a square, (cells^2, 2), first column slowest."""
    axis = ((torch.arange(cells, dtype=torch.float64) + 0.5) / cells * 2 - 1) * half_width
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)


def learned_figure(
    name: str,
    half_width: float,
    truth: Tensor,
    flows: dict[str, tuple[Tensor, Tensor]],
    gaps: dict[str, float],
) -> Figure:
    """Draws of the target, and per flow its draws (n, 2) above its density on `lattice` (log q, cells^2)."""
    figure = Figure(figsize=(3.4 * (len(flows) + 1), 6.6), layout="constrained")
    panels = figure.subplots(2, len(flows) + 1)
    panels[0, 0].plot(*truth[:_SHOWN].T, ",", color="black")
    _square(panels[0, 0], half_width, f"{name}: draws")
    panels[1, 0].axis("off")
    highest = max(float(log_q.max()) for _, log_q in flows.values())
    extent = (-half_width, half_width, -half_width, half_width)
    for (above, below), (label, (draws, log_q)) in zip(panels[:, 1:].T, flows.items(), strict=True):
        above.plot(*draws[:_SHOWN].T, ",", color="#0b559f")
        _square(above, half_width, f"{label}: draws")
        image = log_q.exp().reshape(_CELLS, _CELLS).T
        shown = below.imshow(
            image, origin="lower", extent=extent, vmin=0, vmax=np.exp(highest), cmap="viridis"
        )
        _square(below, half_width, f"gap {gaps[label]:.3f} nats")
    figure.colorbar(shown, ax=panels[1, 0], location="right", shrink=0.7, label="density")
    return figure


def deformation_figure(name: str, stages: Sequence[Tensor], labels: Sequence[str]) -> Figure:
    """The same points (n, 2) after each layer, from base to data, coloured by their angle in the base."""
    figure = Figure(figsize=(2.6 * len(stages), 3.1), layout="constrained")
    colour = np.arctan2(stages[0][:, 1], stages[0][:, 0])
    for axes, points, label in zip(figure.subplots(1, len(stages)), stages, labels, strict=True):
        axes.scatter(*points.T, c=colour, s=1, cmap="hsv", rasterized=True)
        axes.set(title=label, aspect="equal", xlabel="z1", ylabel="z2")
        axes.tick_params(labelsize=7)
    figure.suptitle(f"{name}: from the base to the data, layer by layer")
    return figure


def planar_figure(before: Tensor, after: Tensor, lines: int) -> Figure:
    """A grid of lines x lines points before and after a planar flow, and how far each point went."""
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, points, title in ((left, before, "grid"), (middle, after, "z + u tanh(w·z)")):
        for line in points.reshape(lines, lines, 2):
            axes.plot(*line.T, color="#0b559f", lw=0.6)
        for line in points.reshape(lines, lines, 2).transpose(0, 1):
            axes.plot(*line.T, color="#d95f02", lw=0.6)
        axes.set(title=title, aspect="equal", xlabel="z1", ylabel="z2")
    right.plot(before[:, 0], (after - before)[:, 0], ".", ms=2, color="black")
    right.set(title="shift of z1", xlabel="z1", ylabel="Δz1")
    return figure
