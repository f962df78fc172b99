"""Several flows as one posterior: q(theta | x) = sum_m w_m q_m(theta | x).

With few simulations flows differ more by what they over-fit than by what they learned, and the mean density of
several beats each of them. The weights are those with the largest log-density on the validation rows that no member
was trained on (stacking: Yao et al. 2018, arXiv 1704.02030), so that settings that do not suit a problem cost
nothing but their training.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from sbiflow.checks import check_count
from sbiflow.contracts import AnySimulator
from sbiflow.maps import MapConfig, MapResult, Mixture, make_map
from sbiflow.novelty import NoveltyCheck
from sbiflow.posterior import ModelInfo, Posterior
from sbiflow.priors import Prior
from sbiflow.samples import PosteriorSamples
from sbiflow.seeding import check_seed, torch_generator

_SAMPLE_KEY = 0x5A4E
_FORMAT = 1
_FILE = "ensemble.json"


@dataclass(frozen=True)
class Ensemble:
    """A mixture of posteriors of one problem, a `Proposal`: made by `train_ensemble` or `Ensemble.load`.

    Attributes:
        members: posteriors of the same prior and x_shape.
        weights: shares of the mixture, non-negative, of sum one.
    """

    members: tuple[Posterior, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.members or len(self.members) != len(self.weights):
            raise ValueError(
                f"ensemble: expected one weight per member, got {len(self.members)} members and {len(self.weights)}"
            )
        if min(self.weights) < 0 or abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"ensemble weights: expected shares of sum one, got {self.weights}")
        first = self.members[0]
        if any(m.prior != first.prior or m.x_shape != first.x_shape for m in self.members):
            raise ValueError("ensemble: expected members of one prior and one x_shape, got different ones")

    @property
    def prior(self) -> Prior:
        return self.members[0].prior

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.members[0].x_shape

    @property
    def info(self) -> ModelInfo:
        """Of the member with the largest weight, but with the training time of all."""
        seconds = math.fsum(member.info.training_seconds for member in self.members)
        return replace(self._heaviest.info, training_seconds=seconds)

    @property
    def _heaviest(self) -> Posterior:
        return self.members[max(range(len(self.members)), key=self.weights.__getitem__)]

    def sample(self, x: Any, n: int, *, seed: int = 0) -> PosteriorSamples:
        """Draws of the mixture; arguments, result and errors as in `Posterior.sample`."""
        batch, single = self.members[0].observations(x)
        check_count(n, "n")
        theta, log_q = self.sample_and_log_prob(batch, n, torch_generator(check_seed(seed), _SAMPLE_KEY))
        novelty = self.novelty_check(batch)
        simulations = self._heaviest.info.simulations
        return PosteriorSamples(
            theta=theta[:, 0] if single else theta,
            log_q=log_q[:, 0] if single else log_q,
            x=batch[0] if single else batch,
            prior=self.prior,
            seed=seed,
            source=f"ensemble of {len(self.members)} flows trained on {simulations} simulations",
            warnings=novelty.warnings,
            novelty=novelty,
            proposal=self,
        )

    def sample_and_log_prob(
        self, x: Tensor, n: int, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, *x_shape) -> theta (n, B, D) and log q (n, B) of the mixture, float64 on the CPU.

        The number of draws of each member is multinomial, the same for all observations; their order is random.
        """
        shares = torch.tensor(self.weights, dtype=torch.float64)
        cpu = generator if generator is not None and generator.device.type == "cpu" else None
        counts = torch.multinomial(shares, n, replacement=True, generator=cpu).bincount(minlength=len(shares))
        parts = []
        for member, count in zip(self.members, counts.tolist(), strict=True):
            if count:
                parts.append(member.sample_and_log_prob(x, count, self._stream(member, generator))[0])
        theta = torch.cat(parts)[torch.randperm(n, generator=cpu)]
        return theta, self.log_prob_of_draws(theta, x)

    @staticmethod
    def _stream(member: Posterior, generator: Generator | None) -> Generator | None:
        """A generator on the member's device, seeded by the given one."""
        if generator is None or generator.device == member.device:
            return generator
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        return torch.Generator(member.device).manual_seed(seed)

    def log_prob_of_draws(self, theta: Tensor, x: Tensor) -> Tensor:
        """log q of draws inside the support: theta (n, B, D), x (B, *x_shape) -> (n, B), float64."""
        return self._mix([member.log_prob_of_draws(theta, x) for member in self._active])

    def log_prob(self, theta: Any, x: Any) -> Tensor:
        """Normalised log q(theta | x), as `Posterior.log_prob`."""
        return self._mix([member.log_prob(theta, x) for member in self._active])

    @property
    def _active(self) -> list[Posterior]:
        return [m for m, w in zip(self.members, self.weights, strict=True) if w > 0]

    def _mix(self, log_q: list[Tensor]) -> Tensor:
        shares = torch.tensor([w for w in self.weights if w > 0], dtype=torch.float64).log()
        return torch.logsumexp(torch.stack(log_q, -1) + shares, -1)

    def novelty_check(self, x: Any) -> NoveltyCheck:
        """p-values that x looks like a simulated observation, of the member with the largest weight."""
        return self._heaviest.novelty_check(x)

    def map(
        self,
        x: Any,
        n: int,
        out: str | Path,
        *,
        simulator: AnySimulator | None = None,
        seed: int = 0,
        config: MapConfig | None = None,
        progress: bool = True,
    ) -> MapResult:
        """The posteriors of a field of view; arguments, result and errors as in `Posterior.map`."""
        mixture = Mixture(self.members, self.weights)
        return make_map(mixture, x, n, out, simulator=simulator, seed=seed, config=config, progress=progress)

    def to(self, device: str) -> Ensemble:
        """Move the networks; returns self."""
        for member in self.members:
            member.to(device)
        return self

    def save(self, folder: str | Path) -> None:
        """A folder with the members as models of their own, and the weights; replaces an ensemble of the same path.

        Raises:
            ValueError: the folder exists and is no ensemble.
        """
        folder = Path(folder)
        if folder.exists() and not (folder / _FILE).is_file() and any(folder.iterdir()):
            raise ValueError(f"{folder}: expected a new folder or an ensemble's, got something else")
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            for i, member in enumerate(self.members):
                member.save(partial / f"member-{i}")
            text = json.dumps({"format_version": _FORMAT, "weights": self.weights})
            (partial / _FILE).write_text(text + "\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)  # only now: a full disk costs no former ensemble
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> Ensemble:
        """A saved ensemble.

        Raises:
            ValueError: no ensemble there, or an unreadable one.
        """
        path = Path(folder) / _FILE
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            weights = tuple(float(w) for w in config["weights"])
            version = config["format_version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder}: expected an ensemble made by `Ensemble.save`, got {error!r}"
            ) from None
        if version != _FORMAT:
            raise ValueError(f"{folder}: expected ensemble format {_FORMAT}, got {version}: update sbiflow")
        members = tuple(Posterior.load(Path(folder) / f"member-{i}", device) for i in range(len(weights)))
        return cls(members, weights)


def is_ensemble(folder: str | Path) -> bool:
    """Whether the folder holds an ensemble."""
    return (Path(folder) / _FILE).is_file()


def load_posterior(folder: str | Path, device: str = "cpu") -> Posterior | Ensemble:
    """What `Posterior.save` or `Ensemble.save` wrote; errors as in their `load`."""
    return Ensemble.load(folder, device) if is_ensemble(folder) else Posterior.load(folder, device)


def stack(log_q: Tensor, iterations: int = 500) -> tuple[float, ...]:
    """Weights (M,) that maximise the mean log of the mixture, by expectation maximisation.

    Args:
        log_q: log-densities (M, n) of rows that no member was trained on.
        iterations: each raises the objective, which is concave.

    One row's worth of evidence for equal weights is added, so that no member is dropped on the word of a few rows.

    >>> stack(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    (0.5, 0.5)
    """
    members, rows = log_q.shape
    weights = torch.full((members, 1), 1 / members, dtype=torch.float64)
    for _ in range(iterations):
        shares = torch.softmax(log_q.double() + weights.log(), 0)
        weights = (shares.sum(1, keepdim=True) + 1 / members) / (rows + 1)
    total = math.fsum(weights.flatten().tolist())
    return tuple(weight / total for weight in weights.flatten().tolist())
