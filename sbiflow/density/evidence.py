"""What a fitted density says of itself: its log-density on rows set apart, and whether its draws look like them.

The rows were set apart before anything was fitted: neither training nor the choice of when to stop has seen them, so
that for a density that is right they are further draws of it, and the p-value is exact. The test is the maximum mean
discrepancy (calibration/mmd.py) in the base space, where every column is about standard normal and an angle is a
point of the circle. A conditional density is tested by whole rows: (data, given) of one half against (draw, given)
of the other half, since rows that share `given` would not be independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from sbiflow.calibration.mmd import mmd
from sbiflow.seeding import torch_generator

if TYPE_CHECKING:
    from sbiflow.density.model import Density

ALARM = 1e-3  # p-value at or below which a density is said to differ; false alarms are 1 in 1,000
_N_NULL, _N_TEST = 1999, 1000
_KEY = 0x44455644


class DensityWarning(UserWarning):
    """A density is not that of its data, or a table is not what a density is for."""


@dataclass(frozen=True)
class Rows:
    """Rows of a table: data (m, D) and given (m, G), float64."""

    data: Tensor
    given: Tensor

    def __len__(self) -> int:
        return len(self.data)

    @property
    def given_or_none(self) -> Tensor | None:
        """As `log_prob` takes it."""
        return self.given if self.given.shape[1] else None

    def at(self, rows: Tensor) -> Rows:
        """Some rows, by their indices."""
        return Rows(self.data[rows], self.given[rows])

    def some(self, n: int) -> Rows:
        """At most n rows, evenly spaced."""
        size = min(n, len(self))
        return self.at(torch.arange(size) * len(self) // max(size, 1))


@dataclass(frozen=True)
class Evidence:
    """How a density does on rows that it has never seen.

    Attributes:
        n: their number.
        log_prob, log_prob_error: mean log-density [nats] and its standard error; a lower bound if there are counts.
        p_value: that draws and rows have one distribution, by their MMD.
        mmd2: the squared discrepancy, 0 on average for equal distributions.
    """

    n: int
    log_prob: float
    log_prob_error: float
    p_value: float
    mmd2: float

    @property
    def differs(self) -> bool:
        """Whether the test finds a difference; for a right density with probability 1e-3."""
        return self.p_value <= ALARM

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence if draws and rows differ, or the mean log-density is not finite."""
        found = []
        if self.differs:
            found.append(
                f"draws differ from the {self.n} rows held out (p = {self.p_value:.1g}; those of a right density do so "
                f"once in {1 / ALARM:.0f} times): more steps, a larger flow or more rows are needed"
            )
        if not math.isfinite(self.log_prob):
            found.append(f"the mean log-density of the {self.n} rows held out is {self.log_prob}")
        return tuple(found)

    def __str__(self) -> str:
        return (
            f"held-out log-density {self.log_prob:.3f} ± {self.log_prob_error:.3f} nats ({self.n} rows); draws against "
            f"these rows: MMD² {self.mmd2:.2g}, p = {self.p_value:.2g}"
        )


def judge(density: Density, rows: Rows, seed: int) -> Evidence:
    """The evidence of rows that the density has not seen."""
    values = density.log_prob(rows.data, rows.given_or_none, seed=seed)
    reference, drawn = two_samples(
        density, rows, torch_generator(seed, _KEY, device=density.posterior.device)
    )
    width = math.sqrt(reference.shape[1] / 2)  # half the median distance of standard normal rows
    found = mmd(reference, drawn, seed=seed, bandwidth=width, scale=False, n_test=_N_TEST, n_null=_N_NULL)
    error = float(values.std() / len(values) ** 0.5)
    return Evidence(len(rows), float(values.mean()), error, found.p_value, found.mmd2)


def two_samples(density: Density, rows: Rows, generator: Generator) -> tuple[Tensor, Tensor]:
    """Rows and as many draws as features (m, E): independent of each other if the density is right.

    All rows against draws, or of a conditional density the rows of one half against draws for the other.
    """
    if not rows.given.shape[1]:
        drawn, _ = density.draw(rows.given[:1], len(rows), generator)
        return features(density, rows.data, rows.given), features(density, drawn[:, 0], rows.given)
    half = len(rows) // 2
    others = rows.given[half : 2 * half]
    drawn, _ = density.draw(others, 1, generator)
    return features(density, rows.data[:half], rows.given[:half]), features(density, drawn[0], others)


def features(density: Density, data: Tensor, given: Tensor) -> Tensor:
    """Base coordinates of the data, angles as cosine and sine, and given columns in standard deviations: (m, E)."""
    z = density.prior.unconstrain(density.columns.centred(data))[0]
    parts = [
        part
        for column, periodic in zip(z.T, density.prior.periodic.tolist(), strict=True)
        for part in ((column.cos(), column.sin()) if periodic else (column,))
    ]
    spread = density.held_out.given.std(0) if given.shape[1] else given.new_ones(0)
    scaled = given / torch.where(spread > 0, spread, torch.ones_like(spread))
    return torch.cat([torch.stack(parts, -1), scaled], -1)
