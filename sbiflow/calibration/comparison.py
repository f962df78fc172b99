"""Draws against a reference, parameter by parameter, each figure with its own Monte-Carlo error.

A comparison shows no more than its reference knows. With a second, independent reference of the same problem the
two are compared first: their differences are the floor below which no agreement can be claimed, and where they
exceed their own errors one of them is wrong, and the comparison proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from sbiflow.checks import as_tensor, check_shape
from sbiflow.priors import Prior
from sbiflow.summary import circular_mean, unwrap

AGREE = 4.0  # standard errors between two references: one false alarm in 16,000 per figure
_LEVELS = np.array([0.16, 0.5, 0.84])


class ReferenceDraws(Protocol):
    """What `compare` needs of a reference: a `Reference`, a `NestedReference`, or exact draws of the same form.

    theta (m, D) in physical units, equally weighted; ess (D,) the independent draws that each parameter is worth.
    """

    @property
    def theta(self) -> Tensor: ...
    @property
    def prior(self) -> Prior: ...
    @property
    def ess(self) -> np.ndarray: ...
    @property
    def converged(self) -> bool: ...


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
    """Rows per parameter.

    Attributes:
        converged: whether the reference, and the other one where there is one, may be believed.
        floor: the other reference against the reference; None without one.
    """

    rows: tuple[ComparisonRow, ...]
    converged: bool
    floor: ReferenceFloor | None = None

    @property
    def worst_shift(self) -> float:
        """Largest |shift| in sigma."""
        return max(abs(row.shift) for row in self.rows)

    @property
    def worst_width(self) -> float:
        """Largest |width ratio - 1|."""
        return max(abs(row.width_ratio - 1) for row in self.rows)

    def within(self, shift: float, width: float) -> bool:
        """Whether all medians agree within `shift` sigma and all widths within the fraction `width`.

        False where the references have not converged, disagree, or cannot show an agreement as close as that.
        """
        if self.floor and (self.floor.disagreements or self.floor.shift > shift or self.floor.width > width):
            return False
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
        return "\n".join([*lines, str(self.floor)] if self.floor else lines)


@dataclass(frozen=True)
class ReferenceFloor:
    """What two references of one problem leave open.

    Attributes:
        rows: the second reference against the first.
        shift: largest |shift| or error of one [sigma].
        width: largest |width ratio - 1| or error of one.
        disagreements: figures that differ by more than `AGREE` standard errors; () for good references.
    """

    rows: tuple[ComparisonRow, ...]
    shift: float
    width: float
    disagreements: tuple[str, ...]

    def __str__(self) -> str:
        text = f"floor (two references): medians {self.shift:.3f} sigma, widths {self.width:.1%}"
        if self.disagreements:
            text = (
                f"The references DISAGREE: this comparison proves nothing: {'; '.join(self.disagreements)}."
            )
        return text


def reference_floor(first: ReferenceDraws, second: ReferenceDraws) -> ReferenceFloor:
    """How far two independent references of the same problem are apart.

    Raises:
        ValueError: they have different priors.
    """
    if first.prior != second.prior:
        raise ValueError(f"references: expected the same prior, got\n{first.prior}\nand\n{second.prior}")
    equal = np.ones(len(second.theta))
    rows = _rows(second.theta.double().cpu(), equal, second.ess, first)
    shifts = [max(abs(row.shift), row.shift_error) for row in rows]
    widths = [max(abs(row.width_ratio - 1), row.width_error) for row in rows]
    found = []
    for row in rows:
        if not abs(row.shift) <= AGREE * row.shift_error:
            found.append(f"median of {row.name} by {row.shift:+.3f} ± {row.shift_error:.3f} sigma")
        if not abs(row.width_ratio - 1) <= AGREE * row.width_error:
            found.append(f"width of {row.name} by the factor {row.width_ratio:.3f} ± {row.width_error:.3f}")
    return ReferenceFloor(rows, max(shifts), max(widths), tuple(found))


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


def compare(
    draws: Tensor,
    reference: ReferenceDraws,
    weights: Tensor | None = None,
    *,
    other_reference: ReferenceDraws | None = None,
) -> ComparisonTable:
    """Medians and 16-84 % widths of draws (n, D) against a reference.

    Args:
        draws: independent draws, physical units.
        reference: from `emcee_reference` or `nested_reference`.
        weights: importance weights (n,), >= 0; their effective sample size sets the errors. None: equal.
        other_reference: an independent one of the same problem. It sets the floor: the table says where the two
            disagree, and claims no agreement closer than theirs.

    Raises:
        ValueError: wrong shapes, weights that are negative, NaN or all zero, or references of different priors.
    """
    theta = as_tensor(draws, "draws").detach().double().cpu()
    check_shape(theta, "draws", ("n", reference.prior.dim))
    w = (
        np.ones(len(theta))
        if weights is None
        else as_tensor(weights, "weights").detach().double().cpu().numpy()
    )
    if w.shape != (len(theta),) or not (w >= 0).all() or not 0 < w.sum() < np.inf:
        raise ValueError(
            f"weights: expected {len(theta)} finite values >= 0, not all zero, got shape {w.shape}"
        )
    ess = np.full(reference.prior.dim, w.sum() ** 2 / (w**2).sum())
    floor = None if other_reference is None else reference_floor(reference, other_reference)
    converged = reference.converged and (other_reference is None or other_reference.converged)
    return ComparisonTable(_rows(theta, w, ess, reference), converged, floor)


def _rows(
    theta: Tensor, weights: np.ndarray, ess: Sequence[float] | np.ndarray, reference: ReferenceDraws
) -> tuple[ComparisonRow, ...]:
    """Weighted draws (n, D), worth ess (D,) independent ones, against a reference."""
    prior = reference.prior
    ours, theirs = _unwrapped(theta.numpy(), reference.theta.numpy(), prior)
    equal = np.ones(len(theirs))
    rows = []
    for d, name in enumerate(prior.names):
        median, width, median_error, width_error = _location(ours[:, d], weights, min(ess[d], len(ours)))
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
    return tuple(rows)
