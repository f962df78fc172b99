"""The result of a calibration: one verdict in plain words, the tables and figures behind it, and an HTML
page."""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from matplotlib.figure import Figure

from sbiflow import plots
from sbiflow.calibration.contraction import Contraction
from sbiflow.calibration.ecdf import ecdf
from sbiflow.calibration.page import TEMPLATE
from sbiflow.calibration.sbc import RankTest, SbcResult


@dataclass(frozen=True)
class CalibrationReport:
    """Whether a posterior can be trusted on the simulator's own data.

    Attributes:
        ranks: one test per parameter, then HPD coverage, then the data-dependent quantity, judged together.
        contraction: what was learned of each parameter.
        n, n_failed: pairs tested, and fresh simulations that failed.
        draws: posterior draws per pair.
        seed: of pairs and draws.
        mean_log_q, mean_log_q_error: mean of log q(theta* | x*) over the pairs [nats, physical units].
        seconds: wall time.
        provenance: names and versions of what was tested and with what.
    """

    ranks: SbcResult
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
    def verdict(self) -> str:
        """In plain words."""
        count = len(self.ranks.tests)
        if self.passed:
            text = (
                f"Calibrated: {count} rank tests on {self.n} fresh simulations find no fault "
                f"(an exact posterior would fail with probability {self.ranks.alpha:g})."
            )
        else:
            faults = [f"{t.name}: {t.reading} (p {t.p_text})" for t in self.ranks.failures]
            faults += [f"{c.name}: {c.reading}" for c in self.contraction if c.misses_information]
            text = "Not calibrated, do not use as it is. " + "; ".join(faults) + "."
        unlearned = [c.name for c in self.contraction if not c.learned and not c.misses_information]
        if unlearned:
            text += f" Warning: not learned, the posterior is the prior: {', '.join(unlearned)}."
        if self.n_failed:
            text += f" {self.n_failed} fresh simulations failed and were left out."
        return text

    def table(self) -> str:
        """Both tables as text."""
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
        lines += ["", f"mean log q(theta*|x*) = {self.mean_log_q:.3f} ± {self.mean_log_q_error:.3f} nats"]
        return "\n".join(lines)

    def _result(self, test: RankTest) -> str:
        return "pass" if test.passed(self.ranks.alpha_each) else f"FAIL: {test.reading}"

    def __str__(self) -> str:
        return f"{self.verdict}\n\n{self.table()}"

    def rank_figure(self) -> Figure:
        """ECDF of the ranks of every parameter and of the data-dependent quantity, in the band of each test.

        The band is for n ranks; a regression test, which has half as many, is left to the table.
        """
        shown = [t for t in self.ranks.tests if t.name != "HPD coverage" and len(t.u) == self.n]
        band = self.ranks.band()
        return plots.rank_ecdf(
            np.stack([t.u for t in shown], -1), band.low, band.high, band.z, [t.name for t in shown]
        )

    def coverage_figure(self) -> Figure:
        """Share of truths inside the highest-density region against its mass."""
        band = self.ranks.band()
        coverage = next(t for t in self.ranks.tests if t.name == "HPD coverage")
        return plots.coverage_curve(band.z, ecdf(coverage.u, band.z), band.low, band.high)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON-able values."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
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
        page = Environment(autoescape=True).from_string(TEMPLATE)
        figures = [
            ("Ranks of the truth among its posterior draws", self.rank_figure()),
            ("Coverage of the highest-density regions", self.coverage_figure()),
        ]
        text = page.render(
            report=self,
            figures=[(title, _png(figure)) for title, figure in figures],
            result=self._result,
        )
        Path(path).write_text(text, encoding="utf-8")
        return Path(path)


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
