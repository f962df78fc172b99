"""Draws against a reference, parameter by parameter, each figure with its own Monte-Carlo error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sbiflow.calibration.reference import Reference
from sbiflow.checks import as_tensor, check_shape
from sbiflow.priors import Prior
from sbiflow.summary import circular_mean, unwrap

_LEVELS = np.array([0.16, 0.5, 0.84])


@dataclass(frozen=True)
class ComparisonRow:
    """One parameter.

    Attributes:
        median, reference_median: physical units; circular parameters within half a period of the reference's
            mean.
        sigma: half of the reference's 16-84 % interval.
        shift, shift_error: (median - reference median) / sigma, with the Monte-Carlo error of both.
        width_ratio, width_error: 84 % - 16 % of the draws over that of the reference, with the error of both.
    """

    name: str
    unit: str
    median: float
    reference_median: float
    sigma: float
    shift: float
    shift_error: float
    width_ratio: float
    width_error: float


@dataclass(frozen=True)
class ComparisonTable:
    """Rows per parameter; `converged` says whether the reference may be believed."""

    rows: tuple[ComparisonRow, ...]
    converged: bool

    @property
    def worst_shift(self) -> float:
        """Largest |shift| in sigma."""
        return max(abs(row.shift) for row in self.rows)

    @property
    def worst_width(self) -> float:
        """Largest |width ratio - 1|."""
        return max(abs(row.width_ratio - 1) for row in self.rows)

    def within(self, shift: float, width: float) -> bool:
        """Whether all medians agree within `shift` sigma and all widths within the fraction `width`."""
        return self.converged and self.worst_shift <= shift and self.worst_width <= width

    def __str__(self) -> str:
        head = f"{'parameter':<22}{'median':>13}{'reference':>13}{'shift/sigma':>18}{'width ratio':>18}"
        lines = [head] + [
            f"{f'{r.name} [{r.unit}]' if r.unit else r.name:<22}{r.median:>13.5g}{r.reference_median:>13.5g}"
            f"{r.shift:>+10.3f} ± {r.shift_error:.3f}{r.width_ratio:>10.3f} ± {r.width_error:.3f}"
            for r in self.rows
        ]
        if not self.converged:
            lines.append("The reference has NOT converged: this comparison proves nothing.")
        return "\n".join(lines)


def weighted_quantile(values: np.ndarray, weights: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Quantiles of weighted draws (n,), the mass of each centred on its value."""
    order = np.argsort(values)
    mass = weights[order] / weights.sum()
    return np.interp(levels, np.cumsum(mass) - mass / 2, values[order])


def _location(values: np.ndarray, weights: np.ndarray, ess: float) -> tuple[float, float, float, float]:
    """Median, 16-84 % width and the standard errors of both.

    The error of a quantile is half the distance between the quantiles one binomial standard deviation below
    and above; those of the 16 and 84 % quantiles are correlated by 0.16 / 0.84.
    """
    step = np.sqrt(_LEVELS * (1 - _LEVELS) / max(ess, 1.0))
    below, at, above = (
        weighted_quantile(values, weights, np.clip(_LEVELS + sign * step, 0, 1)) for sign in (-1, 0, 1)
    )
    error = (above - below) / 2
    width_error = np.sqrt(error[0] ** 2 + error[2] ** 2 - 2 * (0.16 / 0.84) * error[0] * error[2])
    return float(at[1]), float(at[2] - at[0]), float(error[1]), float(width_error)


def _unwrapped(theta: np.ndarray, reference: np.ndarray, prior: Prior) -> tuple[np.ndarray, np.ndarray]:
    """Both (n, D), periodic parameters within half a period of the reference's circular mean."""
    ours, theirs = theta.copy(), reference.copy()
    for d, marginal in enumerate(prior.marginals):
        if marginal.periodic:
            centre = circular_mean(reference[:, d], *marginal.support)
            ours[:, d] = unwrap(theta[:, d], *marginal.support, centre)
            theirs[:, d] = unwrap(reference[:, d], *marginal.support, centre)
    return ours, theirs


def compare(draws: Tensor, reference: Reference, weights: Tensor | None = None) -> ComparisonTable:
    """Medians and 16-84 % widths of draws (n, D) against a reference.

    Args:
        draws: independent draws, physical units.
        reference: from `emcee_reference`.
        weights: importance weights (n,), >= 0; their effective sample size sets the errors. None: equal.

    Raises:
        ValueError: wrong shapes, or weights that are negative, NaN or all zero.
    """
    prior = reference.prior
    theta = as_tensor(draws, "draws").detach().double().cpu()
    check_shape(theta, "draws", ("n", prior.dim))
    w = (
        np.ones(len(theta))
        if weights is None
        else as_tensor(weights, "weights").detach().double().cpu().numpy()
    )
    if w.shape != (len(theta),) or not (w >= 0).all() or not 0 < w.sum() < np.inf:
        raise ValueError(
            f"weights: expected {len(theta)} finite values >= 0, not all zero, got shape {w.shape}"
        )
    ess = float(w.sum() ** 2 / (w**2).sum())
    ours, theirs = _unwrapped(theta.numpy(), reference.theta.numpy(), prior)
    equal = np.ones(len(theirs))
    rows = []
    for d, name in enumerate(prior.names):
        median, width, median_error, width_error = _location(ours[:, d], w, ess)
        at, span, at_error, span_error = _location(theirs[:, d], equal, min(reference.ess[d], len(theirs)))
        sigma, ratio = span / 2, width / span
        rows.append(
            ComparisonRow(
                name=name,
                unit=prior.units[d],
                median=median,
                reference_median=at,
                sigma=sigma,
                shift=(median - at) / sigma,
                shift_error=float(np.hypot(median_error, at_error)) / sigma,
                width_ratio=ratio,
                width_error=float(np.hypot(width_error / width if width > 0 else 0.0, span_error / span))
                * ratio,
            )
        )
    return ComparisonTable(tuple(rows), reference.converged)
