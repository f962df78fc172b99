"""A density fitted to a table, with the evidence that it is right."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from sbiflow.checks import check_count
from sbiflow.density.dequantise import Dequantiser
from sbiflow.density.evidence import Evidence, Rows, judge
from sbiflow.density.report import DensityReport, report
from sbiflow.density.table import Columns
from sbiflow.model_file import part, read_model, write_model
from sbiflow.posterior import ModelInfo, Posterior
from sbiflow.priors import Prior
from sbiflow.samples import PosteriorSamples
from sbiflow.seeding import check_seed, torch_generator

_SAMPLE_KEY, _BOUND_KEY = 0x44534D50, 0x44424E44
_CHUNK = 4096


@dataclass(frozen=True)
class Density:
    """p(data), or p(data | given): made by `fit_density` or `Density.load`.

    Draws never leave the bounds of the columns; counts are drawn as whole numbers.

    Attributes:
        posterior: the flow behind the bijection of the columns, as a posterior with x = given; counts are n + u there.
        columns: names, and which are counts.
        dequantiser: draws the u of the counts; None without counts.
        held_out: rows that neither training nor its stopping has seen.
        evidence: how the density does on them.
        entropy: mean of -log p over the rows trained on [nats], at most 10,000.
    """

    posterior: Posterior
    columns: Columns
    dequantiser: Dequantiser | None
    held_out: Rows
    evidence: Evidence
    entropy: float

    @classmethod
    def of(
        cls,
        posterior: Posterior,
        columns: Columns,
        dequantiser: Dequantiser | None,
        held_out: Rows,
        trained: Rows,
        seed: int,
    ) -> Density:
        """With its evidence from the rows held out, and its entropy from (some of) those trained on."""
        nothing = Evidence(0, math.nan, math.nan, math.nan, math.nan)
        bare = cls(posterior, columns, dequantiser, held_out, nothing, math.nan)
        entropy = -float(bare.log_prob(trained.data, trained.given_or_none, seed=seed).mean())
        return replace(bare, evidence=judge(bare, held_out, seed), entropy=entropy)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the D columns."""
        return self.columns.names

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the G columns that it is conditional on."""
        return self.columns.given

    @property
    def prior(self) -> Prior:
        """The bijection of the columns to R^D; that of a count n is of n + u."""
        return self.posterior.prior

    @property
    def info(self) -> ModelInfo:
        """Where it comes from and what it cost."""
        return self.posterior.info

    @property
    def log(self) -> Any:
        """TrainingLog of a density fresh from training, else None."""
        return self.posterior.log

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences to be read before it is used."""
        return self.evidence.warnings

    def __str__(self) -> str:
        behind = f" | {', '.join(self.given)}" if self.given else ""
        columns = self.prior.table("column", "becomes normal as")
        lines = [f"p({', '.join(self.names)}{behind}), {self._source}", columns, str(self.evidence)]
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])

    @property
    def _source(self) -> str:
        return f"{self.posterior.flow_config.family} flow fitted to {self.info.simulations} rows"

    def sample(self, n: int, given: Any = None, *, seed: int = 0) -> PosteriorSamples:
        """n draws, with names, their log-density and the density's warnings.

        Args:
            n: draws, for each row of `given` if there are several.
            given: (G,) or (B, G) for a conditional density; with the p-values that they look like the table's.
            seed: the same seed gives the same draws on the same device.

        Returns:
            theta (n, D), or (n, B, D). log_q of counts is the bound of `log_prob`.

        Raises:
            ValueError: n < 1, `given` missing, of another shape, NaN or inf.
        """
        check_count(n, "n")
        x = self.columns.condition(given)
        batch = x[None] if x.ndim == 1 else x
        data, log_q = self.draw(
            batch, n, torch_generator(check_seed(seed), _SAMPLE_KEY, device=self.posterior.device)
        )
        if self.dequantiser is not None:
            flat = batch.expand(n, -1, -1).reshape(n * len(batch), -1) if self.given else None
            log_q = self.log_prob(data.reshape(-1, len(self.names)), flat, seed=seed).reshape(n, len(batch))
        novelty = self.posterior.novelty_check(batch) if self.given else None
        single = x.ndim == 1
        return PosteriorSamples(
            theta=data[:, 0] if single else data,
            log_q=log_q[:, 0] if single else log_q,
            x=x,
            prior=self.prior,
            seed=seed,
            source=self._source,
            warnings=self.warnings + (novelty.warnings if novelty else ()),
            novelty=novelty,
        )

    def draw(self, x: Tensor, n: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """x (B, G) -> rows (n, B, D) with whole counts, and log-densities (n, B), of n + u where there are counts."""
        data, log_q = self.posterior.sample_and_log_prob(x, n, generator)
        return self.columns.floored(data), log_q

    def log_prob(self, data: Any, given: Any = None, *, samples: int = 16, seed: int = 0) -> Tensor:
        """log p of rows [nats, per physical units; a count has none], (n,) float64; -inf outside of the bounds.

        With counts it is a lower bound (dequantise.py), from random u: tighter on average the more of them.

        Args:
            data: (n, D), the columns `names` in their order.
            given: (n, G), or (G,) for all rows.
            samples: K, draws of u for each row; without counts it plays no part.
            seed: of these draws.

        Raises:
            ValueError: other shapes, NaN or inf, `given` missing, counts that are not whole numbers.
        """
        rows, x = self.columns.rows(data, given)
        if not len(rows):
            return torch.zeros(0, dtype=torch.float64)
        if self.dequantiser is None:
            return self.posterior.log_prob(rows, x if self.given else x[0])
        check_count(samples, "samples")
        middle = self.columns.centred(rows)
        inside = self.prior.inside(middle)
        result = torch.full((len(rows),), -math.inf, dtype=torch.float64)
        if not bool(inside.any()):
            return result
        z, log_jacobian = self.prior.unconstrain(middle[inside])
        generator = torch_generator(check_seed(seed), _BOUND_KEY, device=self.posterior.device)
        result[inside] = self._bound(z, x[inside], samples, generator) + log_jacobian
        return result

    @torch.no_grad()
    def _bound(self, z: Tensor, x: Tensor, samples: int, generator: Generator) -> Tensor:
        """K-draw bounds on the log-densities at the cells of z (m, D), (m,)."""
        flow, device, found = self.posterior.flow, self.posterior.device, []
        if self.dequantiser is None:
            raise ValueError("counts: expected a dequantiser, got none")
        for rows, condition in zip(z.split(_CHUNK), x.split(_CHUNK), strict=True):
            terms, at_once = [], max(_CHUNK // len(rows), 1)
            for start in range(0, samples, at_once):
                count = min(at_once, samples - start)
                own, behind = (v.to(device, torch.float32).repeat(count, 1) for v in (rows, condition))
                moved, weight = self.dequantiser(own, behind, generator)
                values = flow.log_prob(moved, behind).double() + weight
                terms.append(values.cpu().reshape(count, len(rows)))
            found.append(torch.logsumexp(torch.cat(terms), 0) - math.log(samples))
        return torch.cat(found)

    def check(self, n: int = 1000, *, draws: int = 200, seed: int = 0, alpha: float = 0.01) -> DensityReport:
        """Calibration on the rows held out: ranks of every column, coverage, TARP, and a classifier (report.py).

        Args:
            n: rows, at most as many as are held out.
            draws: of the density, for each row.
            seed: of the draws.
            alpha: false-alarm probability of all rank tests together.

        Raises:
            ValueError: fewer than 20 rows or draws, alpha outside (0, 1).
        """
        return report(self, self.held_out, n, draws, seed, alpha)

    def save(self, folder: str | Path) -> None:
        """Write the density; the flow, in `flow/`, is a model of its own. No pickle."""
        folder = Path(folder)
        self.posterior.save(folder / "flow")
        tensors = {"held_out.data": self.held_out.data, "held_out.given": self.held_out.given}
        if self.dequantiser is not None:
            tensors |= {f"dequantiser.{name}": v for name, v in self.dequantiser.state_dict().items()}
        config = {
            "kind": "density", "columns": asdict(self.columns), "evidence": asdict(self.evidence),
            "dequantise": self.dequantiser and self.dequantiser.kind, "entropy": self.entropy,
            "flow_sha256": read_model(folder / "flow")[0]["weights_sha256"],
        }  # fmt: skip
        write_model(folder, config, tensors, None)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> Density:
        """A saved density.

        Raises:
            ValueError: no density there, an unreadable one, one of another version, or files of two densities.
        """
        folder = Path(folder)
        config, tensors = read_model(folder)
        posterior = Posterior.load(folder / "flow", device)
        if config.get("flow_sha256") != read_model(folder / "flow")[0]["weights_sha256"]:
            raise ValueError(f"{folder}: expected the flow that its config.json belongs to, got another")
        try:
            spec = {key: tuple(value) for key, value in config["columns"].items()}
            columns, held = Columns(**spec), Rows(tensors["held_out.data"], tensors["held_out.given"])
            own = cls(posterior, columns, None, held, Evidence(**config["evidence"]), config["entropy"])
            if config["dequantise"] is None:
                return own
            made = Dequantiser(
                posterior.prior,
                columns.counts,
                len(columns.given),
                config["dequantise"],
                posterior.flow_config,
            )
            made.load_state_dict(part(tensors, "dequantiser."))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{folder}: expected a density of this version of sbiflow, got {error!r}"
            ) from None
        return replace(own, dequantiser=made.to(device).eval())
