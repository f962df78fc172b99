"""Does a row come from the density? Three scores, each with a p-value against the density's own held-out rows.

Likelihood: -log p(x). A row of low density is rare. But a row of high density need not be ordinary: in many
dimensions nearly all of a density's own rows lie where it is far below its maximum, and rows of another kind that are
simpler (smoother, darker, quieter) get more of it than the density's own (Nalisnick et al. 2019, arXiv 1810.09136).

Likelihood ratio: log p_0(x) - log p(x) with a background density p_0 that knows what rows of all kinds have in common
(Ren et al. 2019, arXiv 1906.02845, eq. 4). What p and p_0 agree on cancels, however much of the density it makes up.
p_0 is fitted to rows of the wider population if there are any, or to the density's own rows after `perturb`.

Typicality: |-log p(x) - H| with H the entropy, the mean of -log p over the rows trained on (Nalisnick et al. 2019,
arXiv 1906.02994, eq. 4 for one row). It calls a row of too high density as strange as one of too low.

The scores' distributions are not assumed: with m held-out rows, unknown to training, p = (1 + number at least as
high) / (1 + m) is valid for whatever density and background. It is at most conservative, and never below 1 / (1 + m).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbiflow.checks import as_tensor, check_finite, check_shape
from sbiflow.density.evidence import Rows
from sbiflow.density.model import Density
from sbiflow.seeding import check_seed, torch_generator

_KEY = 0x50455254


@dataclass(frozen=True, eq=False)
class Score:
    """A score, the larger the stranger.

    Attributes:
        values: of the rows asked for, (n,).
        null: of the density's held-out rows, ascending, (m,).
    """

    values: Tensor
    null: Tensor

    @property
    def p_value(self) -> Tensor:
        """(n,): of a row of the density to score as high; at least 1 / (1 + m)."""
        below = torch.searchsorted(self.null, self.values)  # a score of inf is above all, -inf below
        return (1 + len(self.null) - below).double() / (1 + len(self.null))


@dataclass(frozen=True, eq=False)
class OutlierScores:
    """Scores of n rows.

    Attributes:
        likelihood: -log p [nats].
        ratio: log p_background - log p [nats]; None without a background.
        typicality: |-log p - entropy| [nats].
        log_prob: log p (n,).
        warnings: of the density and of the background.
    """

    likelihood: Score
    ratio: Score | None
    typicality: Score
    log_prob: Tensor
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        kinds = {"likelihood": self.likelihood, "likelihood ratio": self.ratio, "typicality": self.typicality}
        lines = [
            f"{name}: {int((score.p_value <= 0.01).sum())} of {len(score.values)} rows with p <= 0.01 "
            f"(against {len(score.null)} held-out rows)"
            for name, score in kinds.items()
            if score is not None
        ]
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])


def outliers(
    density: Density, data: Any, background: Density | None = None, *, given: Any = None, seed: int = 0
) -> OutlierScores:
    """Score rows (n, D) against a density.

    Args:
        density: of the ordinary rows.
        data: (n, D), the density's columns.
        background: a density of the same columns, for the likelihood ratio; fitted to rows of the wider population, or
            to `perturb` of the ordinary ones, and not to the density's held-out rows.
        given: (n, G) or (G,) of a conditional density.
        seed: of the bounds that stand for the log-density of counts.

    Raises:
        ValueError: a background of other columns; and what `Density.log_prob` raises.
    """
    if background is not None and background.columns != density.columns:
        raise ValueError(
            f"background: expected a density of {density.columns}, got one of {background.columns}"
        )
    rows = Rows(*density.columns.rows(data, given))
    (own, null), entropy = (
        (_log_prob(density, part, seed) for part in (rows, density.held_out)),
        density.entropy,
    )
    ratio = None
    if background is not None:
        other, other_null = (_log_prob(background, part, seed) for part in (rows, density.held_out))
        ratio = _score(_ratio(other, own), _ratio(other_null, null))
    return OutlierScores(
        likelihood=_score(-own, -null),
        ratio=ratio,
        typicality=_score((-own - entropy).abs(), (-null - entropy).abs()),
        log_prob=own,
        warnings=density.warnings
        + tuple(f"background: {text}" for text in (background.warnings if background else ())),
    )


def _log_prob(density: Density, rows: Rows, seed: int) -> Tensor:
    return density.log_prob(rows.data, rows.given_or_none, seed=seed)


def _ratio(background: Tensor, own: Tensor) -> Tensor:
    """log p_0 - log p; a row that neither allows is as strange as can be."""
    return torch.where(torch.isneginf(own), torch.inf, background - own)


def _score(values: Tensor, null: Tensor) -> Score:
    return Score(values, null.sort().values)


def perturb(data: Any, rate: float = 0.2, *, seed: int = 0) -> Tensor:
    """Rows (n, D) in which each entry is, with probability `rate`, that of the same column in some other row.

    The columns keep their distributions, what holds between them is lost: rows for a background density, after the
    mutations of Ren et al. (2019, arXiv 1906.02845, section 3), which replace an entry by any of its values.

    Raises:
        ValueError: no table, NaN or inf, a rate outside (0, 1].
    """
    table = as_tensor(data, "data", torch.float64).detach().cpu()
    check_shape(table, "data", ("n", "D"))
    check_finite(table, "data")
    if not 0 < rate <= 1:
        raise ValueError(f"rate: expected a share in (0, 1], got {rate}")
    dice = torch_generator(check_seed(seed), _KEY)
    replaced = torch.rand(table.shape, generator=dice) < rate
    source = torch.randint(len(table), table.shape, generator=dice)
    return torch.where(replaced, table.gather(0, source), table)
