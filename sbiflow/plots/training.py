"""Loss against training step."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from sbiflow.plots.style import BLUE, GREY, ORANGE


def training_curve(
    steps: ArrayLike,
    loss: ArrayLike,
    val_steps: ArrayLike,
    val_loss: ArrayLike,
    lr: ArrayLike | None = None,
    is_log_prob: bool = True,
) -> Figure:
    """Training and validation loss against the step, with the learning rate (at `steps`) below.

    The losses are minus a log-density [nats], unless `is_log_prob` is false.
    """
    figure = Figure(figsize=(7, 4.8 if lr is not None else 3.8), layout="constrained")
    rows = 1 if lr is None else 2
    axes = figure.subplots(rows, 1, sharex=True, height_ratios=(3, 1)[:rows], squeeze=False).ravel()
    axes[0].plot(steps, loss, color=GREY, linewidth=0.7, alpha=0.7, label="training")
    axes[0].plot(val_steps, val_loss, color=BLUE, marker="o", markersize=3, label="validation")
    axes[0].set_ylim(*_loss_limits(np.asarray(loss, float), np.asarray(val_loss, float)))
    axes[0].set_ylabel("loss  −log q(θ|x) [nats]" if is_log_prob else "loss, not −log q(θ|x)")
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
