"""The trained posterior: draws and densities for any observation, in physical units."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from sbiflow.checks import as_tensor, check_count, check_finite, check_shape
from sbiflow.contracts import AnySimulator
from sbiflow.embedding import EmbeddingConfig
from sbiflow.families import FlowConfig
from sbiflow.flows import ConditionalFlow
from sbiflow.maps import MapConfig, MapResult, Mixture, make_map
from sbiflow.model_file import part, read_model, write_model
from sbiflow.novelty import Novelty, NoveltyCheck
from sbiflow.priors import Prior
from sbiflow.samples import PosteriorSamples
from sbiflow.seeding import check_seed, torch_generator

_CHUNK = {"cpu": 4096}  # rows per pass, what a core's cache holds; bounds the memory whatever n
_CHUNK_GPU = 262_144
_SAMPLE_KEY = 0x5A4D


@dataclass(frozen=True)
class ModelInfo:
    """Where a model comes from and what it cost."""

    simulator: str
    simulator_version: str
    source_hash: str
    simulations: int
    failed_simulations: int
    seed: int
    steps: int
    validation_log_prob: float
    training_seconds: float
    training: dict[str, Any]
    sbiflow_version: str
    created: str
    origin: str = ""  # of a posterior that was not trained on simulations itself
    warnings: tuple[str, ...] = ()  # that every set of its draws repeats

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> ModelInfo:
        """From what `dataclasses.asdict` made of one, and JSON of that."""
        return cls(**(spec | {"warnings": tuple(spec.get("warnings", ()))}))


@dataclass(frozen=True)
class Posterior:
    """q(theta | x), a `Proposal`: made by `train` or `Posterior.load`.

    Draws never leave the prior's support, and log q is normalised over it.
    """

    flow: ConditionalFlow
    flow_config: FlowConfig
    embedding_config: EmbeddingConfig
    prior: Prior
    x_shape: tuple[int, ...]
    novelty: Novelty
    info: ModelInfo
    log: Any = None  # TrainingLog of a posterior fresh from training

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.flow.parameters()).device

    @property
    def _chunk(self) -> int:
        return _CHUNK.get(self.device.type, _CHUNK_GPU)

    @property
    def _source(self) -> str:
        trained = f"trained on {self.info.simulations} simulations"
        return f"{self.flow_config.family} flow {self.info.origin or trained}"

    def to(self, device: str) -> Posterior:
        """Move the network; returns self."""
        self.flow.to(device)
        return self

    def sample(self, x: Any, n: int, *, seed: int = 0) -> PosteriorSamples:
        """Draws from q(theta | x).

        Args:
            x: one observation (*x_shape) or B of them (B, *x_shape).
            n: draws per observation.
            seed: the same seed gives the same draws on the same device.

        Returns:
            PosteriorSamples with theta (n, D) or (n, B, D), log q, for every observation the p-values that it looks
            like a simulated one, and a warning if any does not.

        Raises:
            ValueError: x of another shape, NaN or infinite values in x, n < 1.
        """
        batch, single = self.observations(x)
        check_count(n, "n")
        generator = torch_generator(check_seed(seed), _SAMPLE_KEY, device=self.device)
        theta, log_q = self.sample_and_log_prob(batch, n, generator)
        novelty = self.novelty_check(batch)
        return PosteriorSamples(
            theta=theta[:, 0] if single else theta,
            log_q=log_q[:, 0] if single else log_q,
            x=batch[0] if single else batch,
            prior=self.prior,
            seed=seed,
            source=self._source,
            warnings=self.info.warnings + novelty.warnings,
            novelty=novelty,
            proposal=self,
        )

    @torch.no_grad()
    def sample_and_log_prob(
        self, x: Tensor, n: int, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, *x_shape) -> theta (n, B, D) and log q (n, B), float64 on the CPU.

        Raises:
            ValueError: an observation so far from the simulations that the network's numbers overflow.
        """
        blocks = [
            self._draw(block, n, generator) for block in x.to(self.device, torch.float32).split(self._chunk)
        ]
        theta, log_q = (torch.cat(parts, 1) for parts in zip(*blocks, strict=True))
        bad = ~(torch.isfinite(theta).all(-1) & torch.isfinite(log_q)).all(0)
        if bool(bad.any()):
            index = bad.nonzero().flatten().tolist()
            raise ValueError(
                f"x: expected observations that look like the simulations, got {len(index)} so far away that the "
                f"network overflows (index {index[:10]})"
            )
        return theta, log_q

    def _draw(self, x: Tensor, n: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """At most `_chunk` observations; as many draws per pass, or a few times as many if the flow gains by that."""
        rows, context = max(self._chunk // len(x), 1) * self.flow.chunks_at_once, self.flow.embedding(x)
        parts = []
        for start in range(0, n, rows):
            z, log_q = self.flow.draw(context, min(rows, n - start), generator)
            theta, log_jacobian = self.prior.constrain(z.cpu().double())
            parts.append((theta, log_q.cpu().double() - log_jacobian))
        return torch.cat([theta for theta, _ in parts]), torch.cat([log_q for _, log_q in parts])

    @torch.no_grad()
    def log_prob_of_draws(self, theta: Tensor, x: Tensor) -> Tensor:
        """log q of draws inside the support: theta (n, B, D), x (B, *x_shape) -> (n, B), float64.

        As `log_prob`, but every observation is embedded once however many draws it has.
        """
        columns = []
        step = max(self._chunk // max(len(theta), 1), 1)
        for drawn, observed in zip(theta.split(step, 1), x.split(step), strict=True):
            context = self.flow.embedding(observed.to(self.device, torch.float32))
            rows = []
            for block in drawn.split(max(self._chunk // len(observed), 1)):
                z, log_jacobian = self.prior.unconstrain(block.reshape(-1, self.prior.dim))
                z = z.reshape(block.shape).to(self.device, torch.float32)
                log_q = self.flow.log_prob_given(z, context).cpu().double()
                rows.append(log_q + log_jacobian.reshape(block.shape[:-1]))
            columns.append(torch.cat(rows))
        return torch.cat(columns, 1)

    @torch.no_grad()
    def log_prob(self, theta: Any, x: Any) -> Tensor:
        """Normalised log q(theta | x) [nats, per physical units]; -inf outside the prior's support.

        Args:
            theta: (n, D).
            x: one observation (*x_shape) for all rows, or one per row (n, *x_shape).

        Raises:
            ValueError: theta or x of another shape, NaN or infinite.
        """
        theta = as_tensor(theta, "theta", torch.float64)
        check_shape(theta, "theta", ("n", self.prior.dim))
        check_finite(theta, "theta")
        batch, single = self.observations(x)
        if not single and len(batch) != len(theta):
            raise ValueError(f"x: expected one observation or {len(theta)}, one per theta, got {len(batch)}")
        inside = self.prior.inside(theta)
        result = torch.full((len(theta),), -math.inf, dtype=torch.float64)
        z, log_jacobian = self.prior.unconstrain(theta[inside])
        inputs = batch.to(self.device, torch.float32)
        inputs = inputs if single else inputs[inside.to(inputs.device)]
        parts = []
        for start in range(0, len(z), self._chunk):
            rows = slice(start, start + self._chunk)
            own = inputs if single else inputs[rows]
            parts.append(self.flow.log_prob(z[rows].to(self.device, torch.float32), own).cpu().double())
        if parts:
            result[inside] = torch.cat(parts) + log_jacobian
        return result

    @torch.no_grad()
    def novelty_check(self, x: Any) -> NoveltyCheck:
        """p-values (B,) that x looks like a simulated observation, in input and in embedding space.

        Raises:
            ValueError: x of another shape, NaN or infinite.
        """
        batch, _ = self.observations(x)
        blocks = batch.to(self.device, torch.float32).split(self._chunk)
        return self.novelty.check(batch, torch.cat([self.flow.embedding(block) for block in blocks]))

    def novelty_p_value(self, x: Any) -> Tensor:
        """Both p-values of `novelty_check` combined, (B,)."""
        return self.novelty_check(x).p_value

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
        """The posteriors of a field of view, n draws per pixel, written to `out` as they are computed.

        A map that was stopped, or killed, continues on the same path to the same result. Pixels with NaN or infinite
        values are masked, pixels that overflow the network refused; both are NaN in the map, counted and reported.

        Args:
            x: (ny, nx, *x_shape), NaN or inf for missing data: an array, memory map, h5py dataset, astropy HDU, or a
                .npy, .h5, .hdf5 or .fits file, of any size: what is in memory at once is bounded.
            n: draws per pixel; the error of a median is about 1.25 / sqrt(n) of the posterior's width.
            out: HDF5 file; maps/file.py says what is in it.
            simulator: to test whether the model fits every pixel at its posterior (maps/statistics.py); it is called
                `config.predictive` times per pixel.
            seed: the same seed gives the same map on the same device.
            config: axes, noise, threads.
            progress: show a bar.

        Raises:
            ValueError: x of another shape, a simulator of other parameters or without noise, or `out` is another map:
                of another model, x, n, seed, block, device or simulator; every difference is named.
            OSError: the disk has no room, or another process is writing `out`.
            KeyboardInterrupt: Ctrl-C, after what is finished has been written.
        """
        mixture = Mixture((self,), (1.0,))
        return make_map(mixture, x, n, out, simulator=simulator, seed=seed, config=config, progress=progress)

    def save(self, folder: str | Path) -> None:
        """Write model.safetensors, config.json and the training log; no pickle. Replaces a model of the same path."""
        tensors = {f"flow.{name}": value for name, value in self.flow.state_dict().items()}
        tensors |= {f"novelty.{name}": value for name, value in self.novelty.state_dict().items()}
        config = {
            "prior": self.prior.spec(), "x_shape": list(self.x_shape), "flow": asdict(self.flow_config),
            "embedding": asdict(self.embedding_config), "novelty": self.novelty.sizes, "info": asdict(self.info),
        }  # fmt: skip
        write_model(Path(folder), config, tensors, self.log.save if self.log is not None else None)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> Posterior:
        """A saved posterior.

        Raises:
            ValueError: no model there, an unreadable one, or one of another format version.
        """
        config, tensors = read_model(Path(folder))
        try:
            flow_config, embedding = (
                FlowConfig.from_spec(config["flow"]),
                EmbeddingConfig(**config["embedding"]),
            )
            prior, x_shape = Prior.from_spec(config["prior"]), tuple(config["x_shape"])
            info, novelty = ModelInfo.from_spec(config["info"]), Novelty(**config["novelty"])
            flow = ConditionalFlow(flow_config, embedding, tuple(prior.periodic.tolist()), x_shape)
            flow.load_state_dict(part(tensors, "flow."))
            novelty.load_state_dict(part(tensors, "novelty."))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{folder}: expected a model of this version of sbiflow, got {error!r}"
            ) from None
        return cls(flow.to(device).eval(), flow_config, embedding, prior, x_shape, novelty, info)

    def observations(self, x: Any) -> tuple[Tensor, bool]:
        """(B, *x_shape) float64 and whether one observation was given."""
        x = as_tensor(x, "x", torch.float64)
        single = x.ndim == len(self.x_shape)
        check_shape(x, "x", self.x_shape if single else ("B", *self.x_shape))
        if not single and not len(x):
            raise ValueError("x: expected at least one observation, got none")
        check_finite(x, "x")
        return (x[None] if single else x), single
