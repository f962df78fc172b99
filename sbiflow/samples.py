"""What an inference returns: draws with names, units and their density, plain or importance weighted."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from sbiflow import importance, plots, samples_file
from sbiflow.checks import check_count
from sbiflow.contracts import Proposal
from sbiflow.draws import Draws
from sbiflow.elsewhere import look_elsewhere
from sbiflow.importance import Elsewhere, LogLikelihood, WeightDiagnostics
from sbiflow.novelty import NoveltyCheck
from sbiflow.optional import require
from sbiflow.priors import Prior
from sbiflow.seeding import torch_generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RESAMPLE_KEY = 0x5E5A
_ELSEWHERE_SHARE, _MIN_ELSEWHERE = 0.2, 500


@dataclass(frozen=True, eq=False, repr=False)
class _Judged(Draws):
    """Draws that know how ordinary their observations are.

    Attributes:
        novelty: p-values that the observations look like simulated ones, (B,), B = 1 for one observation; None if
            the source has no such test (a Markov chain).
    """

    novelty: NoveltyCheck | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        count = self.theta.shape[1] if self.theta.ndim == 3 else 1
        if self.novelty is not None and len(self.novelty) != count:
            raise ValueError(
                f"novelty: expected {count} p-values, one per observation, got {len(self.novelty)}"
            )

    def observation(self, i: int) -> Self:
        """The draws for observation i of a batch."""
        draws = Draws.observation(replace(self, novelty=None), i)
        return replace(draws, novelty=None if self.novelty is None else self.novelty.observation(i))

    def _novelty_lines(self) -> list[str]:
        return [] if self.novelty is None else [str(self.novelty)]

    def _novelty_extras(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """For the file of draws."""
        found = self.novelty
        if found is None:
            return {}, {}
        arrays = {"novelty_input": found.input.numpy(), "novelty_embedding": found.embedding.numpy()}
        return arrays, {"novelty_n_input": found.n_input, "novelty_n_embedding": found.n_embedding}


@dataclass(frozen=True, eq=False, repr=False)
class PosteriorSamples(_Judged):
    """Equally weighted draws from q(θ|x); fields as in `Draws`, and `novelty`: p-values (B,) of the observations.

    Attributes:
        proposal: what drew them, if it is at hand: `reweight` asks it for its density elsewhere. Not saved.
    """

    proposal: Proposal | None = None

    def __str__(self) -> str:
        table = repr(self) if self.theta.ndim == 3 else str(self.summary())
        warnings = () if self.theta.ndim == 3 else self.warnings
        return "\n".join([table, *self._novelty_lines(), *(f"warning: {text}" for text in warnings)])

    def _relative_weights(self) -> None:
        return None

    def _ess(self) -> None:
        return None

    def _file_extras(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return self._novelty_extras()

    def reweight(
        self,
        log_likelihood: LogLikelihood,
        prior: Prior | None = None,
        *,
        elsewhere: int | None = None,
        chunk: int = importance.CHUNK,
        progress: bool = True,
    ) -> WeightedSamples:
        """Importance weights p(x|θ) p(θ) / q(θ|x) for the posterior under the exact likelihood.

        Weights that look well are checked for what they cannot show, posterior mass where q does not draw, if the
        draws know their proposal (see `sbiflow.elsewhere`).

        Args:
            log_likelihood: theta (m, D), x (*x_shape) -> (m,) [nats], called with float64.
            prior: another prior than the training one, within its support.
            elsewhere: further likelihoods that the check may cost; by default a fifth of the draws and at least
                500, 0 if the draws do not know their proposal.
            chunk: rows per call of the likelihood.
            progress: show a progress bar.

        Raises:
            ValueError: a batch of observations, a prior wider than the training prior (the flow knows nothing
                there), draws without a density, or likelihoods elsewhere without a proposal.
        """
        self._single()
        wider = [] if prior is None else self.prior.covers(prior)
        if wider:
            raise ValueError("prior: expected one within the training prior: " + "; ".join(wider))
        if elsewhere is None:
            elsewhere = max(_MIN_ELSEWHERE, int(_ELSEWHERE_SHARE * len(self))) if self.proposal else 0
        elif check_count(elsewhere, "elsewhere", 0) and self.proposal is None:
            raise ValueError(
                f"elsewhere: expected 0 for draws that do not know their proposal, got {elsewhere}"
            )
        target = self.prior if prior is None else prior
        like = importance.evaluate_log_likelihood(log_likelihood, self.theta, self.x, chunk, progress)
        log_weights, n_nonfinite = importance.importance_weights(
            like, target.log_prob(self.theta), self.log_q
        )
        diagnostics = importance.diagnose(log_weights, n_nonfinite)
        if diagnostics.reliable and elsewhere and self.proposal:
            found = look_elsewhere(
                self.theta,
                log_weights,
                self.x,
                target,
                self.proposal,
                log_likelihood,
                elsewhere,
                self.seed or 0,
            )
            diagnostics = importance.diagnose(log_weights, n_nonfinite, found)
        shared = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "proposal"}
        shared |= {"prior": target, "source": f"{self.source}, importance weighted".lstrip(", ")}
        return WeightedSamples(
            **shared,
            log_weights=log_weights,
            diagnostics=diagnostics,
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
class WeightedSamples(_Judged):
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
        warnings = (f"  warning: {text}" for text in self.warnings)
        return "\n".join([*table, str(self.diagnostics), *self._novelty_lines(), *warnings])

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
        if found.elsewhere:
            attributes |= {f"elsewhere_{name}": value for name, value in asdict(found.elsewhere).items()}
        novelty, counts = self._novelty_extras()
        arrays, attributes = {"log_weights": self.log_weights.numpy()} | novelty, attributes | counts
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
            novelty=self.novelty,
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
    if "novelty_input" in arrays:
        shared["novelty"] = NoveltyCheck(
            torch.from_numpy(arrays["novelty_input"]),
            torch.from_numpy(arrays["novelty_embedding"]),
            int(attributes["novelty_n_input"]),
            int(attributes["novelty_n_embedding"]),
        )
    if "log_weights" not in arrays:
        return PosteriorSamples(**shared)
    log_weights = torch.from_numpy(arrays["log_weights"])
    elsewhere = None
    if "elsewhere_n" in attributes:
        elsewhere = Elsewhere(
            int(attributes["elsewhere_n"]),
            float(attributes["elsewhere_missed"]),
            float(attributes["elsewhere_reach"]),
        )
    diagnostics = importance.diagnose(log_weights, int(attributes["n_nonfinite"]), elsewhere)
    return WeightedSamples(**shared, log_weights=log_weights, diagnostics=diagnostics)
