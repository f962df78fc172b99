"""What an inference returns: draws with names, units and their density, plain or importance weighted."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sbiflow import importance, plots, samples_file
from sbiflow.checks import check_count
from sbiflow.draws import Draws
from sbiflow.importance import LogLikelihood, WeightDiagnostics
from sbiflow.optional import require
from sbiflow.priors import Prior
from sbiflow.seeding import torch_generator

_RESAMPLE_KEY = 0x5E5A


@dataclass(frozen=True, eq=False, repr=False)
class PosteriorSamples(Draws):
    """Equally weighted draws from q(θ|x); fields as in `Draws`."""

    def __str__(self) -> str:
        if self.theta.ndim == 3:
            return repr(self)
        return "\n".join([str(self.summary()), *(f"warning: {text}" for text in self.warnings)])

    def _relative_weights(self) -> None:
        return None

    def _ess(self) -> None:
        return None

    def _file_extras(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {}, {}

    def reweight(
        self,
        log_likelihood: LogLikelihood,
        prior: Prior | None = None,
        *,
        chunk: int = importance.CHUNK,
        progress: bool = True,
    ) -> WeightedSamples:
        """Importance weights p(x|θ) p(θ) / q(θ|x) for the posterior under the exact likelihood.

        Args:
            log_likelihood: theta (m, D), x (*x_shape) -> (m,) [nats], called with float64.
            prior: another prior than the training one, within its support.
            chunk: rows per call of the likelihood.
            progress: show a progress bar.

        Raises:
            ValueError: a batch of observations, a prior wider than the training prior (the flow knows nothing
                there), or draws without a density.
        """
        self._single()
        wider = [] if prior is None else self.prior.covers(prior)
        if wider:
            raise ValueError("prior: expected one within the training prior: " + "; ".join(wider))
        target = self.prior if prior is None else prior
        like = importance.evaluate_log_likelihood(log_likelihood, self.theta, self.x, chunk, progress)
        log_weights, n_nonfinite = importance.importance_weights(
            like, target.log_prob(self.theta), self.log_q
        )
        shared = {field.name: getattr(self, field.name) for field in fields(self)}
        shared |= {"prior": target, "source": f"{self.source}, importance weighted".lstrip(", ")}
        return WeightedSamples(
            **shared,
            log_weights=log_weights,
            diagnostics=importance.diagnose(log_weights, n_nonfinite),
        )

    def to_arviz(self) -> Any:
        """An ArviZ InferenceData with one chain, log_q as a sample statistic, and the units as attributes."""
        theta = self._single()
        arviz = require("arviz", extra="export")
        data = arviz.from_dict(
            posterior={name: column[None] for name, column in zip(self.names, theta.T, strict=True)},
            sample_stats={"log_q": self.log_q.numpy()[None]},
        )
        for name, unit in zip(self.names, self.units, strict=True):
            data.posterior[name].attrs["units"] = unit
        return data


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class WeightedSamples(Draws):
    """Draws with importance weights for one observation, made by `PosteriorSamples.reweight`.

    Attributes:
        log_weights: (n,), unnormalised (their mean weight is the evidence), −inf for zero.
        diagnostics: effective sample size, k̂, evidence and the verdict.
    """

    log_weights: Tensor
    diagnostics: WeightDiagnostics

    @property
    def weights(self) -> Tensor:
        """(n,) weights that sum to one.

        Raises:
            ValueError: every weight is zero.
        """
        if self.diagnostics.ess == 0:
            raise ValueError(
                f"weights: expected at least one above zero, got none. {self.diagnostics.verdict}"
            )
        return torch.softmax(self.log_weights, 0)

    def __str__(self) -> str:
        table = [str(self.summary())] if self.diagnostics.ess else []
        return "\n".join([*table, str(self.diagnostics), *(f"  warning: {text}" for text in self.warnings)])

    def _relative_weights(self) -> np.ndarray:
        return self.weights.numpy()

    def _ess(self) -> float:
        return self.diagnostics.ess

    def _file_extras(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        found = self.diagnostics
        attributes = {
            name: getattr(found, name)
            for name in ("n_nonfinite", "ess", "khat", "log_evidence", "log_evidence_error", "verdict")
        }
        arrays = {"log_weights": self.log_weights.numpy()}
        return (arrays | {"weights": self.weights.numpy()} if found.ess else arrays), attributes

    def resample(self, n: int, seed: int, replace: bool = True) -> PosteriorSamples:
        """n equally weighted posterior draws; their log_q is the posterior's own normalised log-density.

        With replacement they repeat heavy draws, and are worth no more than the effective sample size.
        Without, they are distinct but flatter than the posterior unless n is far below it.

        Raises:
            ValueError: every weight is zero, or without replacement n exceeds the draws of positive weight.
        """
        check_count(n, "n")
        weights, generator = self.weights, torch_generator(seed, _RESAMPLE_KEY)
        available = int((weights > 0).sum())
        if not replace and n > available:
            raise ValueError(
                f"n: expected at most {available} (the draws of positive weight) without replacement, got {n}"
            )
        rows = (
            _with_replacement(weights, n, generator) if replace else _without(self.log_weights, n, generator)
        )
        doubt = () if self.diagnostics.reliable else (self.diagnostics.verdict,)
        return PosteriorSamples(
            theta=self.theta[rows],
            log_q=(self.log_q + self.log_weights - self.diagnostics.log_evidence)[rows],
            x=self.x,
            prior=self.prior,
            seed=seed,
            source=f"{self.source}, resampled",
            warnings=self.warnings + self.diagnostics.warnings + doubt,
        )

    def weight_histogram(self) -> Figure:
        """Histogram of the weights over their mean."""
        return plots.weight_histogram(self.log_weights.numpy())

    def to_arviz(self, seed: int = 0) -> Any:
        """An ArviZ InferenceData. ArviZ has no weights: it holds a resampling of as many draws as the ESS."""
        return self.resample(max(1, int(self.diagnostics.ess)), seed).to_arviz()


def _with_replacement(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    edges = weights.cumsum(0)
    u = torch.rand(n, generator=generator, dtype=torch.float64) * edges[-1]
    last = int(weights.nonzero()[-1])  # u may round up to the last edge; never onto a draw of zero weight
    return torch.searchsorted(edges, u, right=True).clamp(max=last)


def _without(log_weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Gumbel's trick: the n largest of log w + noise are n successive draws without replacement."""
    u = torch.rand(len(log_weights), generator=generator, dtype=torch.float64).clamp(min=2.0**-54)
    return (log_weights - (-u.log()).log()).topk(n).indices


def load(path: str | os.PathLike[str]) -> PosteriorSamples | WeightedSamples:
    """Read draws that `save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, foreign, damaged or of a newer format.
    """
    arrays, attributes = samples_file.read(path)
    shared: dict[str, Any] = {
        name: torch.from_numpy(np.asarray(arrays[name])) for name in ("theta", "log_q", "x")
    }
    shared |= {
        "prior": Prior.from_spec(json.loads(attributes["prior"])),
        "seed": json.loads(attributes["seed"]),
        "source": attributes["source"],
        "warnings": tuple(json.loads(attributes["warnings"])),
    }
    if "log_weights" not in arrays:
        return PosteriorSamples(**shared)
    log_weights = torch.from_numpy(arrays["log_weights"])
    diagnostics = importance.diagnose(log_weights, int(attributes["n_nonfinite"]))
    return WeightedSamples(**shared, log_weights=log_weights, diagnostics=diagnostics)
