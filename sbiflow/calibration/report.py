"""The result of a calibration: one verdict in plain words, the tables and figures behind it, and an HTML
page."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sbiflow import plots
from sbiflow.calibration.contraction import Contraction
from sbiflow.calibration.ecdf import ecdf
from sbiflow.calibration.page import render
from sbiflow.calibration.pp import SIGMAS, PpPlot
from sbiflow.calibration.sbc import RankTest, SbcResult
from sbiflow.calibration.tarp import area_to_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class CalibrationReport:
    """Whether a posterior can be trusted on the simulator's own data.

    Attributes:
        ranks: one test per parameter, then HPD coverage, TARP and the data-dependent quantities (log-likelihood
            where there is one, distance to a regression), judged together.
        pp: P-P plot of the parameters with its p-values; not part of the verdict.
        contraction: what was learned of each parameter.
        n, n_failed: pairs tested, and fresh simulations that failed.
        draws: posterior draws per pair.
        seed: of pairs and draws.
        mean_log_q, mean_log_q_error: mean of log q(theta* | x*) over the pairs [nats, physical units].
        seconds: wall time.
        provenance: names and versions of what was tested and with what.
    """

    ranks: SbcResult
    pp: PpPlot
    contraction: tuple[Contraction, ...]
    n: int
    n_failed: int
    draws: int
    seed: int
    mean_log_q: float
    mean_log_q_error: float
    seconds: float
    provenance: dict[str, str]

    @property
    def alarms(self) -> tuple[Contraction, ...]:
        """Parameters that were not learned, or not fully."""
        return tuple(c for c in self.contraction if c.misses_information or not c.learned)

    @property
    def passed(self) -> bool:
        """All rank tests passed, and no parameter misses information that a linear fit finds in the data."""
        return self.ranks.passed and not any(c.misses_information for c in self.contraction)

    def passed_at(self, alpha: float) -> bool:
        """Whether all rank tests together pass at another false-alarm probability."""
        return SbcResult(self.ranks.tests, alpha).passed

    @property
    def headline(self) -> str:
        """The verdict in one sentence."""
        if self.passed:
            return (
                f"Calibrated: {len(self.ranks.tests)} rank tests on {self.n} fresh simulations find no fault "
                f"(an exact posterior would fail with probability {self.ranks.alpha:g} at most)."
            )
        return "Not calibrated, do not use as it is."

    @property
    def faults(self) -> tuple[str, ...]:
        """Each test that failed, with what its failure says."""
        failed = [f"{t.name}: {t.reading} (p {t.p_text})" for t in self.ranks.failures]
        return (*failed, *(f"{c.name}: {c.reading}" for c in self.contraction if c.misses_information))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What does not fail the posterior but has to be known."""
        found = []
        unlearned = [c.name for c in self.contraction if not c.learned and not c.misses_information]
        if unlearned:
            found.append(f"not learned, the posterior is the prior: {', '.join(unlearned)}.")
        if self.n_failed:
            found.append(f"{self.n_failed} fresh simulations failed and were left out.")
        return tuple(found)

    @property
    def verdict(self) -> str:
        """Headline, faults and warnings in plain words."""
        text = self.headline + (" " + "; ".join(self.faults) + "." if self.faults else "")
        return " ".join([text, *(f"Warning: {warning}" for warning in self.warnings)])

    def table(self) -> str:
        """All tables as text."""
        each = self.ranks.alpha_each
        level = f"alpha {self.ranks.alpha:g}, each {each:.2g}: Bonferroni"
        lines = [f"{'rank test':<30}{'p-value':>10}  result ({level})"]
        lines += [f"{t.name:<30}{t.p_text:>10}  {self._result(t)}" for t in self.ranks.tests]
        lines += ["", f"{'parameter':<22}{'contraction':>20}{'linear fit':>20}  reading"]
        lines += [
            f"{c.name:<22}{c.contraction:>12.4f} ± {c.error:.4f}"
            f"{c.linear:>11.4f} ± {c.linear_error:.4f}  {c.reading}"
            for c in self.contraction
        ]
        pp = ", ".join(f"{name} {p:.2g}" for name, p in self.pp.p_by_name.items())
        lines += ["", f"P-P (Kolmogorov-Smirnov): {pp}"]
        lines += [
            f"combined: Bonferroni {self.pp.bonferroni:.2g}, Fisher {self.pp.fisher:.2g} (if independent)"
        ]
        lines += ["", f"mean log q(theta*|x*) = {self.mean_log_q:.3f} ± {self.mean_log_q_error:.3f} nats"]
        return "\n".join(lines)

    def _result(self, test: RankTest) -> str:
        return "pass" if test.passed(self.ranks.alpha_each) else f"FAIL: {test.reading}"

    def __str__(self) -> str:
        return f"{self.verdict}\n\n{self.table()}"

    def _test(self, name: str) -> RankTest:
        return next(t for t in reversed(self.ranks.tests) if t.name == name)  # a parameter may have its name

    @property
    def tarp_area(self) -> float:
        """`area_to_curve` of TARP: negative if its balls hold the truth less often than they say."""
        return area_to_curve(self._test("TARP").u)

    def rank_figure(self) -> Figure:
        """ECDF of the ranks of every parameter and data-dependent quantity, in the band of each test."""
        coverages = (self._test("HPD coverage"), self._test("TARP"))
        shown = [t for t in self.ranks.tests if all(t is not other for other in coverages)]
        band = self.ranks.band()
        return plots.rank_ecdf(
            np.stack([t.u for t in shown], -1), band.low, band.high, band.z, [t.name for t in shown]
        )

    def coverage_figure(self) -> Figure:
        """Share of truths inside the highest-density region against its mass."""
        return self._coverage("HPD coverage")

    def tarp_figure(self) -> Figure:
        """Share of truths inside balls around reference points against their mass (ECP)."""
        region = "ball around a reference point"
        words = "below the line: too narrow", "above the line: shifted, too wide or blind to x"
        return self._coverage("TARP", region, *words)

    def _coverage(self, name: str, *words: str) -> Figure:
        band = self.ranks.band()
        inner = band.z, ecdf(self._test(name).u, band.z), band.low, band.high
        return plots.coverage_curve(*(np.r_[0, values, 1] for values in inner), *words)

    def pp_figure(self) -> Figure:
        """P-P plot with simultaneous bands of 1, 2 and 3 sigma."""
        inner = self.pp.bands()
        bands = [
            (f"{sigma}σ", np.r_[0, b.low, 1], np.r_[0, b.high, 1])
            for sigma, b in zip(SIGMAS, inner, strict=True)
        ]
        labels = [f"{name} (p = {p:.2g})" for name, p in self.pp.p_by_name.items()]
        return plots.pp_curves(self.pp.grid, self.pp.curves, labels, bands)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON-able values."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "faults": self.faults,
            "warnings": self.warnings,
            "alpha": self.ranks.alpha,
            "alpha_each": self.ranks.alpha_each,
            "tests": [
                {
                    "name": t.name,
                    "p_value": t.p_value,
                    "passed": t.passed(self.ranks.alpha_each),
                    "reading": t.reading,
                    "ranks": [round(float(u), 6) for u in t.u],
                }
                for t in self.ranks.tests
            ],
            "tarp_area_to_curve": self.tarp_area,
            "pp": {
                "p_values": self.pp.p_by_name,
                "fisher": self.pp.fisher,
                "bonferroni": self.pp.bonferroni,
            },
            "contraction": [
                {**asdict(c), "learned": c.learned, "misses_information": c.misses_information}
                for c in self.contraction
            ],
            **{
                k: getattr(self, k)
                for k in ("n", "n_failed", "draws", "seed", "mean_log_q", "mean_log_q_error")
            },
            "seconds": self.seconds,
            "provenance": self.provenance,
        }

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """JSON text of `to_dict`, also written to `path` if one is given."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False, default=float)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """One self-contained page: verdict, tables, figures, provenance."""
        Path(path).write_text(render(self), encoding="utf-8")
        return Path(path)
