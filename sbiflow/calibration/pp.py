"""P-P plots as in gravitational-wave astronomy: does a credible level of p hold the truth in p of all cases?

The credible level of a true parameter is its posterior distribution function there: the share of draws below
it, made continuous as in `sbc.py`. For the exact posterior the levels of N fresh simulations are uniform; each
parameter is tested by Kolmogorov-Smirnov against the uniform distribution, with the exact law of the
statistic. Sources: Cook, Gelman & Rubin (2006), J. Comput. Graph. Stat. 15, 675; for its use with
gravitational waves Veitch et al. (2015), arXiv 1409.7215; Romero-Shaw et al. (2020, bilby), arXiv 2006.00714,
section 4.

Two combined p-values are given. Fisher's (-2 sum log p is chi-squared of 2 D degrees of freedom) is what the
field quotes; it assumes that the D p-values are independent, which those of parameters with correlated
posteriors are not, so it can raise false alarms. Bonferroni's, D times the smallest, is valid under any
dependence. The verdict of a report uses neither: it tests the same levels by the simultaneous ECDF band,
which sees the tails better than Kolmogorov-Smirnov does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sbiflow.calibration.ecdf import EcdfBand, ecdf, simultaneous_band
from sbiflow.optional import deferred

stats = deferred("scipy.stats")

SIGMAS = (1, 2, 3)
GRID = 100


@dataclass(frozen=True)
class PpPlot:
    """Credible levels of the true parameters.

    Attributes:
        names: D parameters.
        levels: credible level of every truth, (N, D) in [0, 1].
        p_values: Kolmogorov-Smirnov, (D,).
        fisher: combined p-value if the p-values were independent.
        bonferroni: combined p-value, valid under any dependence.
    """

    names: tuple[str, ...]
    levels: np.ndarray
    p_values: tuple[float, ...]
    fisher: float
    bonferroni: float

    @property
    def p_by_name(self) -> dict[str, float]:
        """Kolmogorov-Smirnov p-value of each parameter."""
        return dict(zip(self.names, self.p_values, strict=True))

    @property
    def grid(self) -> np.ndarray:
        """Credible levels at which the curves are drawn, (K,)."""
        return np.linspace(0.0, 1.0, GRID + 1)

    @property
    def curves(self) -> np.ndarray:
        """Share of truths within each credible level of `grid`, (D, K)."""
        return np.stack([ecdf(column, self.grid) for column in self.levels.T])

    def bands(self) -> tuple[EcdfBand, ...]:
        """Bands that a curve of an exact posterior leaves with the probabilities of 1, 2 and 3 sigma."""
        return tuple(
            simultaneous_band(len(self.levels), GRID, float(2 * stats.norm.sf(sigma))) for sigma in SIGMAS
        )


def pp_plot(names: Sequence[str], levels: np.ndarray) -> PpPlot:
    """P-values of credible levels (N, D) in [0, 1], as from `sbc_ranks`.

    Raises:
        ValueError: shape or range is wrong.
    """
    u = np.asarray(levels, dtype=float)
    if u.ndim != 2 or u.shape[1] != len(names) or not len(u):
        raise ValueError(f"levels: expected shape (N, {len(names)}), got {u.shape}")
    if not ((u >= 0) & (u <= 1)).all():
        raise ValueError("levels: expected values in [0, 1]")
    p = np.array([stats.kstest(column, "uniform").pvalue for column in u.T])
    fisher = float(stats.combine_pvalues(np.maximum(p, np.finfo(float).tiny), method="fisher").pvalue)
    bonferroni = float(min(1.0, len(p) * p.min()))
    return PpPlot(tuple(names), u, tuple(float(v) for v in p), fisher, bonferroni)
