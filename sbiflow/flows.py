"""A conditional flow: embedding of the observation, transform from z to the base, and the base's density."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sbiflow.embedding import Embedding, EmbeddingConfig
from sbiflow.families import FAMILIES, FlowConfig, build_transform
from sbiflow.guess import Guess, WithColumns
from sbiflow.transforms.bounded import wrap
from sbiflow.transforms.composite import Composite, WithContext, initialise, objective
from sbiflow.transforms.structure import Known, Spread, known_transform
from sbiflow.transforms.whiten import Whiten

_NOISE_ROWS = {"cpu": 4096}  # drawn at a time: a seed gives the same draws however many are asked for at once
_NOISE_ROWS_GPU = 262_144


class ConditionalFlow(nn.Module):
    """q(z | x): embedding, transform and base. Shapes: z (..., D), x (..., *x_shape) broadcasting against it."""

    phase: Tensor

    def __init__(
        self,
        config: FlowConfig,
        embedding: EmbeddingConfig,
        periodic: tuple[bool, ...],
        x_shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.dim, self.periodic = len(periodic), periodic
        structure = config.structure
        structure.check(periodic, math.prod(x_shape))
        real = [i for i in range(self.dim) if not periodic[i]]
        own = Embedding(embedding, x_shape)
        guided = config.start == "regression" and bool(real)
        learned = Guess(own, len(real)) if guided else own
        self.whiten = [Whiten(self.dim, real)] if guided else []
        made = build_transform(config, periodic, learned.features)
        parts = list(made.transforms) if isinstance(made, Composite) else [made]
        flow = Composite([*self.whiten, *parts])
        self.known: Known | None = known_transform(structure, periodic)
        self.spread = Spread(structure, self.dim) if structure.has_symmetry else None
        # An autoregressive inverse bounds its own memory, and its many small steps cost less for more draws at once.
        bounded = FAMILIES[config.family].bounds_memory and self.spread is None
        self.chunks_at_once = 4 if bounded else 1
        self.embedding: Embedding | Guess | WithColumns = learned
        self.transform = flow
        if self.known is not None:
            self.embedding = WithColumns(learned, self.known.columns)
            own_context, rest = slice(learned.features), slice(learned.features, None)
            self.transform = Composite([WithContext(self.known, rest), WithContext(flow, own_context)])
        self.register_buffer("phase", torch.tensor(periodic), persistent=False)
        self.is_random = config.dropout > 0 or any(
            getattr(part, "is_random", False) for part in flow.modules()
        )
        self.climbs_log_prob = not hasattr(flow.transforms[-1], "objective")

    def fit(self, z: Tensor, x: Tensor, signal: Tensor) -> None:
        """Fit what is not trained by gradients: z (n, D), noisy x and noise-free signal (n, *x_shape)."""
        whole = self.embedding
        learned = whole.inner if isinstance(whole, WithColumns) else whole
        if isinstance(whole, WithColumns) and isinstance(self.known, Known):
            inner = self.known.forward(z, whole.select(x))[0]
        else:
            inner = z
        learned.fit(x, signal)
        if isinstance(learned, Guess):
            (whiten,) = self.whiten
            whiten.fit(learned.regress(x, inner[:, whiten.columns.cpu()]))
        if any(hasattr(part, "initialise") for part in self.transform.modules()):
            self.eval()  # the start is not to depend on dropout
            with torch.no_grad():
                initialise(self.transform, z, self.embedding(x))

    def base_log_prob(self, u: Tensor) -> Tensor:
        """Standard normal per real column, uniform per phase; (..., D) -> (...)."""
        normal = -0.5 * (u * u + math.log(2 * math.pi))
        uniform = torch.full_like(u, -math.log(2 * math.pi))
        return torch.where(self.phase, uniform, normal).sum(-1)

    def objective(self, z: Tensor, x: Tensor) -> Tensor:
        """What training climbs, (...): log q(z | x), or what stands for it in a family that says so."""
        if self.climbs_log_prob:
            return self.log_prob(z, x)
        return objective(self.transform, z, self.embedding(x))

    def log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        """log q(z | x), (...)."""
        return self.log_prob_given(z, self.embedding(x))

    def log_prob_given(self, z: Tensor, context: Tensor) -> Tensor:
        """The same from contexts (..., C)."""
        u, logdet = self.transform(z, context)
        return self.base_log_prob(u) + logdet

    def sample_and_log_prob(
        self, x: Tensor, n: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """x (B, *x_shape) -> z (n, B, D), log q (n, B); the embedding is computed once per observation."""
        return self.draw(self.embedding(x), n, generator)

    def draw(self, context: Tensor, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The same from contexts (B, C)."""
        step = max(_NOISE_ROWS.get(context.device.type, _NOISE_ROWS_GPU) // max(len(context), 1), 1)
        steps = [min(step, n - start) for start in range(0, n, step)]
        base = torch.cat([self._noise(context, size, generator) for size in steps or [0]])
        z, logdet = self.transform.inverse(base, context)
        if self.spread is not None:
            z = self.spread(z, generator)
        return z, self.base_log_prob(base) - logdet

    def _noise(self, context: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        """n draws of the base for each context, (n, B, D)."""
        shape = (n, len(context), self.dim)
        normal = torch.randn(shape, generator=generator, device=context.device, dtype=context.dtype)
        if not any(self.periodic):
            return normal
        uniform = torch.rand(shape, generator=generator, device=context.device, dtype=context.dtype)
        return torch.where(self.phase, wrap((2 * uniform - 1) * math.pi), normal)
