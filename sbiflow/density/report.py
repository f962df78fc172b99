"""Calibration of a density on rows that it has never seen.

If the density is right, a held-out row is one more of its draws. So for each row its rank among independent draws
(for the same `given`) is uniform: of every column (the probability integral transform), of the log-density (coverage
of highest-density regions) and of the distance to a reference point (TARP, which looks at all columns together).
These are the rank tests of simulation-based calibration (calibration/sbc.py), judged together. A classifier of rows
against draws (calibration/c2st.py) says how large a difference is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sbiflow.calibration.c2st import C2stResult, c2st
from sbiflow.calibration.coverage import coverage_test, hpd_mass
from sbiflow.calibration.sbc import SbcResult, rank_test, sbc_ranks
from sbiflow.calibration.tarp import tarp_ranks, tarp_test
from sbiflow.checks import check_count
from sbiflow.density.evidence import Rows, two_samples
from sbiflow.seeding import check_seed, torch_generator

if TYPE_CHECKING:
    from sbiflow.density.model import Density

_KEY, _CLASSIFIER_KEY = 0x44524550, 0x44433253
_FEWEST = 20
_BOUND_SAMPLES = 4  # of a count's log-density, the same for row and draws, so that ranks stay uniform


@dataclass(frozen=True)
class DensityReport:
    """Whether a density is that of the rows held out.

    Attributes:
        ranks: a test for each column, HPD coverage and TARP, judged together.
        c2st: a classifier of rows against draws.
        n, draws, seed: rows, draws for each, and their seed.
    """

    ranks: SbcResult
    c2st: C2stResult
    n: int
    draws: int
    seed: int

    @property
    def passed(self) -> bool:
        """Whether all rank tests pass: false with probability alpha at most if the density is right."""
        return self.ranks.passed

    @property
    def verdict(self) -> str:
        """In plain words."""
        if self.passed:
            return (
                f"Calibrated: {len(self.ranks.tests)} rank tests on {self.n} held-out rows find no fault (a right "
                f"density would fail with probability {self.ranks.alpha:g} at most)."
            )
        faults = "; ".join(f"{test.name}: {test.reading} (p {test.p_text})" for test in self.ranks.failures)
        return f"Not calibrated: {faults}."

    def __str__(self) -> str:
        return f"{self.verdict}\n{self.c2st}"


def report(density: Density, rows: Rows, n: int, draws: int, seed: int, alpha: float) -> DensityReport:
    """See `Density.check`."""
    check_count(n, "n", _FEWEST)
    check_count(draws, "draws", _FEWEST)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: expected a value in (0, 1), got {alpha}")
    some = rows.some(n)
    device = density.posterior.device
    drawn, log_q = density.draw(some.given, draws, torch_generator(check_seed(seed), _KEY, device=device))
    stars, log_q_star, log_q = _log_densities(density, some, drawn, log_q, seed)
    dice, moved = torch_generator(seed, _KEY, 1), density.columns.centred(drawn)
    periods = [m.support[1] - m.support[0] if m.periodic else None for m in density.prior.marginals]
    ranks = sbc_ranks(stars, moved, dice, periods)
    tests = [
        *(rank_test(name, u) for name, u in zip(density.names, ranks.numpy().T, strict=True)),
        coverage_test(hpd_mass(log_q_star, log_q, dice).numpy()),
        tarp_test(tarp_ranks(stars, some.given, moved, density.prior, dice).numpy()),
    ]
    return DensityReport(
        SbcResult(tuple(tests), alpha), _classified(density, rows, seed), len(some), draws, seed
    )


def _log_densities(
    density: Density, rows: Rows, drawn: Tensor, log_q: Tensor, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (N, D) with counts in the middle of their cells, their log-densities (N,) and those of the draws (L, N)."""
    stars = density.columns.centred(rows.data)
    given = rows.given_or_none
    if density.dequantiser is None:
        return stars, density.log_prob(rows.data, given), log_q
    together = torch.cat([rows.data[None], drawn])
    behind = None if given is None else given.expand(len(together), -1, -1).reshape(-1, given.shape[1])
    flat = together.reshape(-1, together.shape[-1])
    values = density.log_prob(flat, behind, samples=_BOUND_SAMPLES, seed=seed).reshape(together.shape[:2])
    return stars, values[0], values[1:]


def _classified(density: Density, rows: Rows, seed: int) -> C2stResult:
    device = density.posterior.device
    reference, drawn = two_samples(density, rows, torch_generator(seed, _CLASSIFIER_KEY, device=device))
    varies = reference.std(0) > 0  # a count may be 0 in every row held out
    return c2st(reference[:, varies], drawn[:, varies], seed=seed, method="fast")
